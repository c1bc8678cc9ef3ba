/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zap: see zap.h. Which way is used:
 *
 *   data kept     MADV_DONTNEED, and on locked memory, which refuses that with EINVAL, MADV_DONTNEED_LOCKED. A kernel
 *                 that has neither for this memory (hugetlbfs before 5.18): mapped anew, if nobody touches it meanwhile
 *   data dropped  in a file: PUNCH_HOLE. Private memory: as above, its data goes with its mappings
 */
#include "zap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "own_maps.h"
#include "uapi.h"

#define KERNEL_PAGE_BYTES UINT64_C(4096)

static int refuse(struct zap_done *done, int rc, const char *why)
{
    done->method = ZAP_METHOD_NONE;
    done->why = why;
    return rc;
}

/* ---------------------------------------------------------------------------------------------- what is to be zapped */

static bool multiples(const struct zap_request *request, uint64_t unit_bytes)
{
    uint64_t places = request->address | request->length_bytes | (request->backing_fd >= 0 ? request->offset_bytes : 0);

    return (places & (unit_bytes - 1)) == 0;
}

static int check_file(const struct zap_request *request, const struct own_maps *maps, struct zap_done *done,
                      uint64_t *unit_bytes)
{
    struct statfs system;
    int rc = 0;

    if (!maps->of_file)
        rc = refuse(done, -EINVAL, "that file is not what is mapped there, from that offset on");
    else if (!maps->shared)
        rc = refuse(done, -EOPNOTSUPP, "a private mapping of a file keeps what was written to it in its mappings alone, "
                                       "and would show the file's bytes after them: map the file shared");
    else if (fstatfs(request->backing_fd, &system) < 0)
        rc = refuse(done, -errno, "the file cannot be looked at");
    else if ((unsigned long)system.f_type == HUGETLBFS_MAGIC)
        *unit_bytes = (uint64_t)system.f_bsize;
    return rc;
}

static int check_private(const struct zap_request *request, struct own_maps *maps, struct zap_done *done,
                         uint64_t *unit_bytes)
{
    int rc = 0;

    if (!maps->private_memory)
        rc = refuse(done, -EINVAL, "shared memory is mapped there: say which file");
    else if (!maps->anonymous)
        rc = refuse(done, -EOPNOTSUPP, "a file is mapped there privately, whose bytes would show after its mappings");
    else if (!request->drop)
        rc = refuse(done, -EOPNOTSUPP, "private memory has its data in its mappings alone, and would lose it: put the "
                                       "memory into a file (memfd), mapped shared; or ask for the data to be dropped");
    else if (maps->huge && own_maps_look(request->address, request->length_bytes, NULL, 0, true, maps) == 0)
        *unit_bytes = maps->unit_bytes;
    return rc;
}

/* 0, and what the kernel maps at once there. */
static int examine(const struct zap_request *request, struct zap_done *done, uint64_t *unit_bytes)
{
    struct own_maps maps;
    struct stat file;
    int rc;

    *unit_bytes = KERNEL_PAGE_BYTES;
    if (request->length_bytes == 0 || request->length_bytes > UINT64_MAX - request->address ||
        !multiples(request, KERNEL_PAGE_BYTES))
        return refuse(done, -EINVAL, "whole pages of 4096 bytes can be zapped, at least one");
    if (request->backing_fd >= 0 && fstat(request->backing_fd, &file) < 0)
        return refuse(done, -EINVAL, "the file's descriptor is none");
    rc = own_maps_look(request->address, request->length_bytes, request->backing_fd >= 0 ? &file : NULL,
                       request->offset_bytes, false, &maps);
    if (rc < 0)
        rc = refuse(done, -EOPNOTSUPP, "what is mapped there cannot be seen, and so neither what would be lost: this "
                                       "process needs /proc");
    else if (!maps.whole)
        rc = refuse(done, -EINVAL, "not all of it is mapped");
    else if (request->backing_fd >= 0)
        rc = check_file(request, &maps, done, unit_bytes);
    else
        rc = check_private(request, &maps, done, unit_bytes);
    if (rc == 0 && !multiples(request, *unit_bytes))
        rc = refuse(done, -EINVAL, "the memory is of huge pages: only whole ones can be zapped");
    return rc;
}

/* --------------------------------------------------------------------------------------------------------- the ways */

static int advise(uint64_t address, uint64_t length_bytes, int advice)
{
    return syscall(SYS_madvise, address, length_bytes, advice) < 0 ? -errno : 0;
}

static int punch(const struct zap_request *request, uint64_t at_bytes, uint64_t length_bytes)
{
    long rc;

    do {
        rc = syscall(SYS_fallocate, request->backing_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     request->offset_bytes + at_bytes, length_bytes);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

/* What the mapping had been told goes with it, and is told again. */
static int restore(const struct zap_request *request, uint64_t address, uint64_t length_bytes, uint32_t flags)
{
    struct uffdio_register arg = {
        .range = {.start = address, .len = length_bytes},
        .mode = (flags & OWN_MAPS_MISSING ? UFFDIO_REGISTER_MODE_MISSING : 0) |
                (flags & OWN_MAPS_MINOR ? UFFDIO_REGISTER_MODE_MINOR : 0) |
                (flags & OWN_MAPS_WP ? UFFDIO_REGISTER_MODE_WP : 0),
    };
    int rc = arg.mode != 0 && ioctl(request->uffd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;

    if (rc == 0 && (flags & OWN_MAPS_NO_HUGE_PAGES) != 0)
        rc = advise(address, length_bytes, MADV_NOHUGEPAGE);
    if (rc == 0 && (flags & OWN_MAPS_NO_FORK) != 0)
        rc = advise(address, length_bytes, MADV_DONTFORK);
    if (rc == 0 && (flags & OWN_MAPS_NO_DUMP) != 0)
        rc = advise(address, length_bytes, MADV_DONTDUMP);
    return rc;
}

static int remap(const struct zap_request *request, uint64_t at_bytes, uint64_t length_bytes)
{
    uint64_t address = request->address + at_bytes;
    struct own_maps maps;
    int rc = own_maps_look(address, length_bytes, NULL, 0, true, &maps);

    if (rc < 0)
        return rc;
    if (syscall(SYS_mmap, address, length_bytes, maps.protection, MAP_SHARED | MAP_FIXED, request->backing_fd,
                request->offset_bytes + at_bytes) < 0)
        return -errno;
    return restore(request, address, length_bytes, maps.flags);
}

/* One step, by the first way that the kernel knows for this memory: tried, not guessed from its version. A range may
 * lie in several mappings of which only some are locked, so what DONTNEED refuses is asked for again as a whole. */
static int drop_mappings(const struct zap_request *request, uint64_t at_bytes, uint64_t length_bytes,
                         enum zap_method *method)
{
    uint64_t address = request->address + at_bytes;
    enum zap_method used = ZAP_METHOD_DONTNEED;
    int rc = advise(address, length_bytes, MADV_DONTNEED);

    if (rc == -EINVAL) {
        used = ZAP_METHOD_DONTNEED_LOCKED;
        rc = advise(address, length_bytes, MADV_DONTNEED_LOCKED);
    }
    if (rc == -EINVAL && request->backing_fd >= 0 && request->uffd >= 0) {
        used = ZAP_METHOD_REMAP;
        rc = remap(request, at_bytes, length_bytes);
    } else if (rc == -EINVAL) {
        rc = -EOPNOTSUPP;
    }
    if (used > *method)
        *method = used;
    return rc;
}

/* ---------------------------------------------------------------------------------------------------------- answers */

static const char *why_of(enum zap_method method, bool in_file)
{
    switch (method) {
    case ZAP_METHOD_DONTNEED:
        return in_file ? "the memory is shared: its mappings go, its data stays in the file"
                       : "private memory: its data goes with its mappings";
    case ZAP_METHOD_DONTNEED_LOCKED:
        return "the memory is locked, and MADV_DONTNEED is refused there";
    case ZAP_METHOD_REMAP:
        return "this kernel has no MADV_DONTNEED for this memory, and nobody touches it meanwhile; a lock on it is gone";
    case ZAP_METHOD_PUNCH:
        return "the data lies in a file and is to go: for every mapping of it";
    default:
        return "nothing was done";
    }
}

static const char *why_not(int rc)
{
    const char *why = "the kernel has refused the call";

    if (rc == -EOPNOTSUPP)
        why = "this kernel drops no mappings of such memory (MADV_DONTNEED_LOCKED: Linux 5.18), unless it is mapped anew: "
              "let the VM's threads stand still, and pass its userfaultfd";
    else if (rc == -EPERM)
        why = "the file, or the mapping, is sealed";
    return why;
}

int zap_here(const struct zap_request *request, struct zap_done *done)
{
    bool in_file = request->backing_fd >= 0;
    enum zap_method method = ZAP_METHOD_NONE;
    uint64_t unit_bytes, step_bytes;
    int rc;

    *done = (struct zap_done){.method = ZAP_METHOD_NONE};
    rc = examine(request, done, &unit_bytes);
    step_bytes = unit_bytes > ZAP_STEP_BYTES ? unit_bytes : ZAP_STEP_BYTES;
    if (rc < 0)
        return rc;
    while (rc == 0 && done->done_bytes < request->length_bytes) {
        uint64_t at_bytes = done->done_bytes, left_bytes = request->length_bytes - at_bytes;
        uint64_t length_bytes = left_bytes < step_bytes ? left_bytes : step_bytes;
        if (in_file && request->drop) {
            method = ZAP_METHOD_PUNCH;
            rc = punch(request, at_bytes, length_bytes);
        } else {
            rc = drop_mappings(request, at_bytes, length_bytes, &method);
        }
        done->done_bytes += rc == 0 ? length_bytes : 0;
    }
    if (rc < 0)
        return refuse(done, rc, why_not(rc));
    done->method = method;
    done->why = why_of(method, in_file);
    return 0;
}

int zap_count_written(int uffd, uint64_t address, uint64_t length_bytes)
{
    struct uffdio_writeprotect arg = {.range = {.start = address, .len = length_bytes}};

    return ioctl(uffd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
}
