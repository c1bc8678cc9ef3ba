/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's work at the source for a VMM that runs already and was never prepared: it is made to register its own
 * memory for asynchronous write protection, by injected system calls, in under a millisecond.
 *
 * Its userfaultfd is copied to us and closed there: tracking ends with the last copy, so a page server that is gone
 * leaves nothing behind, and the next one may attach anew. It reports faults of user mode only, for which nobody needs
 * a right, and reports none: the kernel resolves every write by itself, its own too.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../gen/contract.h"
#include "../kernel/create.h"
#include "../kernel/uapi.h"
#include "../pageferry.h"
#include "inject.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define SCRATCH_BYTES 4096
#define CALL(...) ((const uint64_t[6]){__VA_ARGS__})

struct attach {
    int pid;
    int pidfd;
    const struct pageferry_region *regions;
    uint32_t region_count;
    char *error;
    size_t error_bytes;
    struct inject inject;
    uint64_t scratch; /* a page of the VMM's, for what its calls point to */
    int64_t uffd;     /* the VMM's number */
    int copied;       /* ours */
    int rc;
};

__attribute__((format(printf, 3, 4))) static int refused(struct attach *attach, int reason, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(attach->error, attach->error_bytes, format, arguments);
    va_end(arguments);
    return -reason;
}

static int not_begun(struct attach *attach, int rc)
{
    switch (rc) {
    case -EPERM:
    case -EACCES:
        return refused(attach, PF_REASON_NOT_ALLOWED,
                       "process %d may not be traced: run the page server with CAP_SYS_PTRACE", attach->pid);
    case -ESRCH:
        return refused(attach, PF_REASON_NO_VMM, "process %d has exited: start the VM again", attach->pid);
    case -EBUSY:
        return refused(attach, PF_REASON_BUSY, "process %d is stopped: let it go on, then try again", attach->pid);
    case -ENOSYS:
        return refused(attach, PF_REASON_UNSUPPORTED,
                       "process %d is no x86-64 process with a vdso: start the VM under the shim", attach->pid);
    case -ETIMEDOUT:
        return refused(attach, PF_REASON_TOO_SLOW,
                       "process %d does not stop: a disk that does not answer may hold it; try again", attach->pid);
    default:
        return refused(attach, PF_REASON_BUG, "process %d cannot be stopped: %s", attach->pid, strerror(-rc));
    }
}

static int call_failed(struct attach *attach, const char *call, int64_t rc)
{
    if (rc == -ESRCH)
        return not_begun(attach, -ESRCH);
    return refused(attach, PF_REASON_UNSUPPORTED, "%s in process %d: %s: start the VM under the shim", call,
                   attach->pid, strerror((int)-rc));
}

/* An ioctl of the VMM's on its userfaultfd; what the argument is afterwards comes back. */
static int64_t uffd_call(struct attach *attach, unsigned long request, void *argument, size_t argument_bytes)
{
    int64_t rc = inject_write(&attach->inject, attach->scratch, argument, argument_bytes);

    if (rc == 0)
        rc = inject_call(&attach->inject, SYS_ioctl, CALL((uint64_t)attach->uffd, request, attach->scratch));
    if (rc == 0)
        rc = inject_read(&attach->inject, attach->scratch, argument, argument_bytes);
    return rc;
}

static int make_uffd(struct attach *attach)
{
    struct uffdio_api api = {.api = UFFD_API, .features = CREATE_TRACK_FEATURES};
    int64_t rc = inject_call(&attach->inject, SYS_mmap,
                             CALL(0, SCRATCH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                  (uint64_t)-1, 0));

    if (rc < 0)
        return call_failed(attach, "mmap", rc);
    attach->scratch = (uint64_t)rc;
    attach->uffd = inject_call(&attach->inject, SYS_userfaultfd, CALL(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (attach->uffd < 0)
        return call_failed(attach, "userfaultfd", attach->uffd);
    rc = uffd_call(attach, UFFDIO_API, &api, sizeof(api));
    if (rc < 0 || (api.features & CREATE_TRACK_FEATURES) != CREATE_TRACK_FEATURES)
        return refused(attach, PF_REASON_UNSUPPORTED,
                       "this kernel has no asynchronous write protection: use Linux 6.7 or later");
    return 0;
}

static int register_region(struct attach *attach, const struct pageferry_region *region)
{
    struct uffdio_register arg = {
        .range = {.start = region->address, .len = region->length_bytes},
        .mode = UFFDIO_REGISTER_MODE_WP,
    };
    int64_t rc = inject_call(&attach->inject, SYS_madvise,
                             CALL(region->address, region->length_bytes, MADV_NOHUGEPAGE));

    if (rc < 0 && rc != -EINVAL) /* a kernel without huge pages */
        return call_failed(attach, "MADV_NOHUGEPAGE", rc);
    rc = inject_call(&attach->inject, SYS_madvise, CALL(region->address, region->length_bytes, MADV_DONTFORK));
    if (rc < 0)
        return call_failed(attach, "MADV_DONTFORK", rc);
    rc = uffd_call(attach, UFFDIO_REGISTER, &arg, sizeof(arg));
    if (rc == -EBUSY)
        return refused(attach, PF_REASON_ALREADY_ATTACHED,
                       "the memory of process %d is registered with another userfaultfd: end who tracks it",
                       attach->pid);
    if (rc < 0)
        return call_failed(attach, "UFFDIO_REGISTER", rc);
    return 0;
}

static int take_copy(struct attach *attach)
{
    attach->copied = (int)syscall(SYS_pidfd_getfd, attach->pidfd, (int)attach->uffd, 0);
    if (attach->copied < 0)
        return refused(attach, PF_REASON_NOT_ALLOWED, "the userfaultfd of process %d cannot be had: %s", attach->pid,
                       strerror(errno));
    return 0;
}

/* The VMM keeps neither the page nor the descriptor. */
static void leave(struct attach *attach)
{
    if (attach->uffd >= 0)
        inject_call(&attach->inject, SYS_close, CALL((uint64_t)attach->uffd));
    if (attach->scratch != 0)
        inject_call(&attach->inject, SYS_munmap, CALL(attach->scratch, SCRATCH_BYTES));
}

/* On a thread of its own: where the VMM does not stop, the thread's end lets it go. */
static void *attach_thread(void *argument)
{
    struct attach *attach = argument;
    int ended, rc = inject_begin(&attach->inject, attach->pid);

    if (rc < 0) {
        attach->rc = not_begun(attach, rc);
        return NULL;
    }
    attach->rc = make_uffd(attach);
    for (uint32_t i = 0; attach->rc == 0 && i < attach->region_count; i++)
        attach->rc = register_region(attach, &attach->regions[i]);
    if (attach->rc == 0)
        attach->rc = take_copy(attach);
    leave(attach);
    ended = inject_end(&attach->inject);
    if (attach->rc == 0 && ended < 0)
        attach->rc = not_begun(attach, -ESRCH);
    return NULL;
}

int pageferry_attach(int vmm_pid, int vmm_pidfd, const struct pageferry_region *regions, uint32_t region_count,
                     char *error, size_t error_bytes)
{
    struct attach attach = {
        .pid = vmm_pid,
        .pidfd = vmm_pidfd,
        .regions = regions,
        .region_count = region_count,
        .error = error,
        .error_bytes = error_bytes,
        .uffd = -1,
        .copied = -1,
    };
    pthread_t thread;
    int rc;

    if (vmm_pid <= 0 || vmm_pidfd < 0 || region_count == 0 || region_count > PF_LIMIT_REGIONS_MAX)
        return refused(&attach, PF_REASON_BAD_REQUEST, "a process, its pidfd and 1 to %d regions are needed",
                       (int)PF_LIMIT_REGIONS_MAX);
    rc = pthread_create(&thread, NULL, attach_thread, &attach);
    if (rc != 0)
        return refused(&attach, PF_REASON_NO_MEMORY, "no thread: %s", strerror(rc));
    pthread_join(thread, NULL);
    if (attach.rc < 0 && attach.copied >= 0)
        close(attach.copied);
    return attach.rc < 0 ? attach.rc : attach.copied;
}
