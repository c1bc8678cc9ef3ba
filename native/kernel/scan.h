/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of another process's memory have been written since they were last looked at: dirty tracking
 * from outside, by PAGEMAP_SCAN over memory that is registered for asynchronous write protection
 * (UFFD_FEATURE_WP_ASYNC: the kernel itself lets the first write of a page through and notes it; nobody waits
 * for us).
 *
 * What it sees, and what not (each proven in tests/native/test_scan.c):
 *   seen      writes through that mapping: of the process, of its vCPUs, and of the kernel on their behalf. A
 *   page that
 *             was never looked at counts as written
 *   not seen  writes through another mapping or by pwrite; DMA into pinned pages; and a hole that is punched
 *   into a
 *             page that was clean: who punches takes the protection off that page afterwards
 *             (UFFDIO_WRITEPROTECT without its bit, as the shim does), and so it counts as written
 *
 * Two steps, because a reset makes a KVM guest fault again on everything in the range that it is called for,
 * dirty or not: first a look without any effect, then a reset of exactly the dirty ranges.
 *
 * All of these return -errno. -ESRCH: the process has ended, or runs another program. -EPERM: the memory is
 * tracked no more (registration ended, all holders of its userfaultfd have closed it, something else is
 * mapped there), and what was written meanwhile is unknown.
 */
#ifndef PAGEFERRY_SCAN_H
#define PAGEFERRY_SCAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The kernel looks at most at so many ranges at once before it lets go of the page table. */
#define SCAN_RANGES_MAX 512

struct scan_range {
    uint64_t start; /* addresses in that process, multiples of 4096 */
    uint64_t end;
};

/*
 * Ranges that are dirty in [start, end): their number, at most SCAN_RANGES_MAX; *looked_end: so far it has
 * looked, `end` if there was room for all.
 */
typedef int scan_dirty_fn(int pagemap_fd, uint64_t start, uint64_t end, struct scan_range *ranges,
                          uint64_t *looked_end);
/* Whatever is dirty in [start, end) is clean when this returns: a write from then on makes it dirty again.
 * Where a huge page was mapped at once it is split, so that from now on each of its pages is dirty by itself.
 * */
typedef int scan_reset_fn(int pagemap_fd, uint64_t start, uint64_t end);

/* The seam: tests put themselves between the steps of a round. */
struct scan_calls {
    scan_dirty_fn *dirty;
    scan_reset_fn *reset;
};
extern const struct scan_calls scan_calls;

/*
 * /proc/PID/pagemap, which stays that process's memory and no other's. `pidfd` (-1: none) proves that the
 * number was not used again meanwhile. -EACCES, -EPERM: not allowed to look at it. -ENOTTY: this kernel has
 * no PAGEMAP_SCAN.
 */
int scan_open(pid_t pid, int pidfd);

/*
 * [start, end) is registered with `uffd` for faults too, which nobody will serve any more: from now on it is registered
 * for write protection alone. Who waited for a page there is woken; every page counts as written. For a moment nothing is
 * registered, so the caller sees to it that nobody looks meanwhile, and that no page is missing: it would be zeros.
 */
int scan_protect_alone(int uffd, uint64_t start, uint64_t end);

/* Every page of [start, end) is mapped and registered as above: 1, or 0. */
int scan_covered(int pagemap_fd, uint64_t start, uint64_t end);

struct scan_mapping {
    uint64_t address;
    uint64_t length_bytes;
    uint64_t file_offset;
};

/*
 * Is this how that process has the file mapped, shared, and nowhere else? 0; -EXDEV: something else is mapped
 * there; -EBUSY: the file is mapped there, and a second time elsewhere in that process, where writes would
 * not be seen.
 */
int scan_mapped(pid_t pid, int fd, const struct scan_mapping *mappings, uint32_t count);

#endif
