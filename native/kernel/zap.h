/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zap: the mappings of memory go, so that the next access faults again. Only the process whose memory it is can do that
 * (process_madvise refuses MADV_DONTNEED from another), so this runs in the VMM: by the shim's thread, told by frame, or
 * by a VMM that calls pageferry_zap. docs/zap-table.md has what each way leaves behind on each kind of memory.
 *
 * What is about to go is looked at first: memory whose only copy lies in its mappings is refused, unless it is to be
 * dropped. The calls are the kernel's own and not libc's functions, which a preloaded shim takes for the VMM's: a zap
 * is no discard, and nobody may be told that it is one.
 */
#ifndef PAGEFERRY_ZAP_H
#define PAGEFERRY_ZAP_H

#include <stdint.h>

#define ZAP_STEP_BYTES (UINT64_C(2) << 20) /* dropped at once: bounds how long the address space is locked */

enum zap_method {
    ZAP_METHOD_NONE = 0,
    ZAP_METHOD_DONTNEED,        /* MADV_DONTNEED */
    ZAP_METHOD_DONTNEED_LOCKED, /* MADV_DONTNEED_LOCKED; Linux 5.18 */
    ZAP_METHOD_REMAP,           /* munmap, mmap, register: between the second and the third nothing is intercepted */
    ZAP_METHOD_PUNCH            /* FALLOC_FL_PUNCH_HOLE: drops the data too, in every mapping */
};

struct zap_request {
    uint64_t address;      /* multiples of what the kernel maps at once there */
    uint64_t length_bytes;
    int backing_fd;        /* -1: private anonymous memory */
    uint64_t offset_bytes; /* of `address` in the file */
    int drop;              /* the data goes too */
    int uffd;              /* -1, or: nobody touches the memory meanwhile, REMAP may be used and registers with this */
};

struct zap_done {
    enum zap_method method;
    uint64_t done_bytes; /* from the start on */
    const char *why;     /* of the method, or of the refusal: a sentence; never NULL */
};

/* 0; -EINVAL: not a range that can be zapped at all; -EOPNOTSUPP: not on this memory without losing data, or on this
 * kernel; or the -errno of the call that failed. Waits, where removals are reported, until they have been read: never on
 * the thread that reads them. What else this process maps, unmaps or moves there meanwhile is its own to keep in order. */
int zap_here(const struct zap_request *request, struct zap_done *done);

/* Memory whose writes are tracked has lost data, by a punch: those pages count as written from now on. A clean page that
 * becomes a hole would stay clean, and whoever has its old bytes keep them. From any process that has the userfaultfd.
 * 0 or -errno; -EAGAIN: events wait unread. */
int zap_count_written(int uffd, uint64_t address, uint64_t length_bytes);

#endif
