/* SPDX-License-Identifier: Apache-2.0 */
/* Tries what serving a VM needs, on scratch pages of our own: see probe.h. */
#include "probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mapping.h"
#include "uapi.h"
#include "uffd.h"

#define SCRATCH_PAGES 4
#define SCRATCH_BYTES (SCRATCH_PAGES * 4096)
#define SHARED_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)
#define CALL(name) (UINT64_C(1) << _UFFDIO_##name)

static const char *const newer_kernel = "use a newer kernel";

__attribute__((format(printf, 4, 5))) static void found(struct probe_fact *fact, enum probe_verdict verdict,
                                                        const char *remedy, const char *format, ...)
{
    va_list arguments;

    fact->verdict = verdict;
    fact->remedy = remedy;
    va_start(arguments, format);
    vsnprintf(fact->text, sizeof(fact->text), format, arguments);
    va_end(arguments);
}

/* ----------------------------------------------------------------------------------------------------- userfaultfd */

/* Everybody may have one that is blind to faults of the kernel; no VM can be served by it, so it is only named. */
static bool user_mode_only_works(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static bool probe_userfaultfd(int device_fd, struct probe *probe)
{
    static const char *const ways[] = {[CREATE_WAY_GIVEN] = "by the device that was passed on",
                                       [CREATE_WAY_SYSCALL] = "by the system call",
                                       [CREATE_WAY_DEVICE] = "by /dev/userfaultfd"};
    struct probe_fact *fact = &probe->facts[PROBE_USERFAULTFD];
    int fd = create_bare(device_fd, &probe->way);

    if (fd == -EPERM && user_mode_only_works()) {
        found(fact, PROBE_BAD, create_remedy(fd), "only for faults of user mode: a VMM's own reads would fail");
    } else if (fd < 0) {
        found(fact, PROBE_BAD, create_remedy(fd), "refused: %s", strerror(-fd));
    } else {
        found(fact, PROBE_GOOD, NULL, "%s", ways[probe->way]);
        close(fd);
    }
    return fd >= 0;
}

/* ------------------------------------------------------------------------------------------------ kinds of memory */

/* A few pages of one kind of memory, registered: what the kernel says it can do there, and whether it does. */
struct scratch {
    struct uffd uffd;
    uint8_t *start;
    uint64_t calls;
};

static void scratch_close(struct scratch *scratch)
{
    if (scratch->start != MAP_FAILED)
        munmap(scratch->start, SCRATCH_BYTES);
    if (scratch->uffd.fd >= 0)
        close(scratch->uffd.fd);
    if (scratch->uffd.backing_fd >= 0)
        close(scratch->uffd.backing_fd);
}

static int scratch_map(struct scratch *scratch, bool shared)
{
    int flags = shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;

    if (shared) {
        scratch->uffd.backing_fd = memfd_create("pageferry-probe", MFD_CLOEXEC);
        if (scratch->uffd.backing_fd < 0 || ftruncate(scratch->uffd.backing_fd, SCRATCH_BYTES) < 0)
            return -errno;
    }
    scratch->start = mmap(NULL, SCRATCH_BYTES, PROT_READ | PROT_WRITE, flags, scratch->uffd.backing_fd, 0);
    if (scratch->start == MAP_FAILED)
        return -errno;
    madvise(scratch->start, SCRATCH_BYTES, MADV_NOHUGEPAGE); /* fails where there are none: as good */
    return 0;
}

static int scratch_open(struct scratch *scratch, int device_fd, bool shared)
{
    struct uffdio_register arg = {.range = {.len = SCRATCH_BYTES}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int rc;

    *scratch = (struct scratch){.uffd = {.fd = -1, .backing_fd = -1}, .start = MAP_FAILED};
    rc = scratch_map(scratch, shared);
    if (rc < 0)
        return rc;
    scratch->uffd.fd = create_uffd(device_fd, shared ? SHARED_FEATURES : 0, NULL);
    if (scratch->uffd.fd < 0)
        return scratch->uffd.fd;
    if (shared)
        arg.mode |= UFFDIO_REGISTER_MODE_MINOR;
    arg.range.start = (uintptr_t)scratch->start;
    if (ioctl(scratch->uffd.fd, UFFDIO_REGISTER, &arg) < 0)
        return -errno;
    scratch->calls = arg.ioctls;
    return 0;
}

static struct kernel_span page_of(const struct scratch *scratch, uint64_t page)
{
    return (struct kernel_span){.address = (uintptr_t)scratch->start + page * 4096, .length_bytes = 4096,
                                .file_offset = page * 4096};
}

/* Page 0 by COPY, 1 by ZEROPAGE, 2 by a write to the file and CONTINUE; then all of it is read, which waits for ever
 * if one of them lied, so each must have said that it is mapped. */
static bool scratch_fills(struct scratch *scratch, bool shared)
{
    static const uint8_t bytes[4096] = {1};
    const struct kernel_ops *ops = &uffd_kernel_ops;
    struct kernel_span first = page_of(scratch, 0), second = page_of(scratch, 1), third = page_of(scratch, 2);

    if (ops->copy(&scratch->uffd, &first, bytes).result != KERNEL_MAPPED ||
        ops->zero(&scratch->uffd, &second).result != KERNEL_MAPPED)
        return false;
    if (shared && (ops->populate(&scratch->uffd, &third, bytes).result != KERNEL_MAPPED ||
                   ops->map(&scratch->uffd, &third).result != KERNEL_MAPPED))
        return false;
    return scratch->start[0] == 1 && scratch->start[4096] == 0 && (!shared || scratch->start[2 * 4096] == 1);
}

static void probe_memory(int device_fd, struct probe *probe, bool shared)
{
    struct probe_fact *fact = &probe->facts[shared ? PROBE_SHARED : PROBE_PRIVATE];
    uint64_t needed = CALL(WAKE) | CALL(COPY) | CALL(ZEROPAGE) | (shared ? CALL(CONTINUE) : 0);
    struct scratch scratch;
    int rc = scratch_open(&scratch, device_fd, shared);

    if (rc < 0)
        found(fact, PROBE_BAD, create_remedy(rc), "cannot be registered: %s", strerror(-rc));
    else if ((scratch.calls & needed) != needed)
        found(fact, PROBE_BAD, newer_kernel, "calls 0x%" PRIx64 " of 0x%" PRIx64 " are offered", scratch.calls & needed,
              needed);
    else if (!scratch_fills(&scratch, shared))
        found(fact, PROBE_BAD, newer_kernel, "is registered, but cannot be filled");
    else
        found(fact, PROBE_GOOD, NULL, "calls 0x%" PRIx64, scratch.calls);
    *(shared ? &probe->shared_calls : &probe->private_calls) = scratch.calls;
    if (shared && rc == 0) {
        struct kernel_span last = page_of(&scratch, 3);
        bool poisons = uffd_kernel_ops.poison(&scratch.uffd, &last).result == KERNEL_MAPPED;
        found(&probe->facts[PROBE_POISON], poisons ? PROBE_GOOD : PROBE_LESS, poisons ? NULL : newer_kernel, "%s",
              poisons ? "by UFFDIO_POISON" : "no UFFDIO_POISON (Linux 6.6): who reads a lost page waits for ever");
    }
    scratch_close(&scratch);
}

/* ------------------------------------------------------------------------------------------------------- the others */

static void probe_pagemap_scan(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_PAGEMAP_SCAN];
    struct pm_scan_arg arg = {.size = sizeof(arg)};
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        found(fact, PROBE_LESS, "mount /proc", "no /proc/self/pagemap: the VMM's word must do");
    else if (ioctl(fd, PAGEMAP_SCAN, &arg) < 0)
        found(fact, PROBE_LESS, newer_kernel, "no PAGEMAP_SCAN (Linux 6.7): read word by word");
    else
        found(fact, PROBE_GOOD, NULL, "there");
    if (fd >= 0)
        close(fd);
}

static void probe_huge_pages(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_HUGE_PAGES];
    enum thp_shmem setting;
    int rc = mapping_thp_shmem(&setting);

    if (rc < 0)
        found(fact, PROBE_LESS, "mount /sys", "cannot be read: %s", strerror(-rc));
    else if (setting == THP_SHMEM_FORCED)
        found(fact, PROBE_BAD,
              "set /sys/kernel/mm/transparent_hugepage/shmem_enabled, and each hugepages-*/shmem_enabled, to advise or "
              "never", "forced on: one page written may bring 512");
    else
        found(fact, PROBE_GOOD, NULL, "%s", setting == THP_SHMEM_ADVISE ? "where asked for" : "never");
}

void probe_run(int device_fd, struct probe *probe)
{
    memset(probe, 0, sizeof(*probe));
    for (int i = 0; i < PROBE_FACT_COUNT; i++)
        found(&probe->facts[i], PROBE_UNTRIED, NULL, "not tried");
    if (probe_userfaultfd(device_fd, probe)) {
        int fd = create_uffd(device_fd, 0, &probe->features);
        if (fd >= 0)
            close(fd);
        probe_memory(device_fd, probe, true);
        probe_memory(device_fd, probe, false);
    }
    probe_pagemap_scan(probe);
    probe_huge_pages(probe);
}

bool probe_usable(const struct probe *probe)
{
    bool usable = true;

    for (int i = 0; i < PROBE_FACT_COUNT; i++)
        usable &= probe->facts[i].verdict != PROBE_BAD;
    return usable;
}

#define PROBE_WORD(name, word, help) [PROBE_##name] = word,
static const char *const words[] = {PROBE_FACTS(PROBE_WORD)};
#undef PROBE_WORD
#define PROBE_HELP(name, word, help) [PROBE_##name] = help,
static const char *const helps[] = {PROBE_FACTS(PROBE_HELP)};
#undef PROBE_HELP

const char *probe_word(enum probe_name name)
{
    return (unsigned)name < PROBE_FACT_COUNT ? words[name] : NULL;
}

const char *probe_help(enum probe_name name)
{
    return (unsigned)name < PROBE_FACT_COUNT ? helps[name] : NULL;
}
