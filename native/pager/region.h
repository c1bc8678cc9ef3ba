/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Regions: address <-> page. Addresses need not be in the order of offsets (facts/firecracker.md 10.10), so each way
 * has its own sorted order. Regions may leave gaps in neither order overlap; the pages of all make 0..page_count-1.
 *
 * A unit is what the kernel maps at once: a page, or the 512 or 262144 pages of a huge page of a pool. All regions of a
 * VM have the same (Firecracker and QEMU have no others), so that a page tells its unit without a search.
 */
#ifndef PAGEFERRY_REGION_H
#define PAGEFERRY_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "../kernel/kernel_ops.h"

#define REGIONS_MAX 64

struct region {
    uint64_t address;
    uint64_t first_page;
    uint64_t page_count;
    uint64_t unit_pages; /* 0: one */
};

struct regions {
    uint32_t count;
    uint64_t page_count;
    uint64_t unit_pages; /* of them all; a power of two */
    struct region by_page[REGIONS_MAX];
    struct region by_address[REGIONS_MAX];
};

/* Copies and sorts. -EINVAL: none or too many, empty, an address that is no multiple of 4096, wraps or overlaps, or
 * pages that do not make a seamless 0..n; units that differ, are no power of two, or that a region begins or ends in. */
int regions_set(struct regions *regions, const struct region *list, uint32_t count);
/* The unit that a page is in: its first page. */
static inline uint64_t regions_unit(const struct regions *regions, uint64_t page)
{
    return page & ~(regions->unit_pages - 1);
}

/* The page at an address; false when no region has it. */
bool regions_page(const struct regions *regions, uint64_t address, uint64_t *page);
/* The span of pages from `first`, at most `count` of them, cut at the end of the region; its pages are returned. */
uint64_t regions_span(const struct regions *regions, uint64_t first, uint64_t count, struct kernel_span *span);
/* The pages of [start, end) of addresses, from `start` on: the first piece that lies in one region. Returns its page
 * count (0: none left) and moves *start behind it. For REMOVE events, which may span regions and gaps. */
uint64_t regions_pages(const struct regions *regions, uint64_t *start, uint64_t end, uint64_t *first_page);

#endif
