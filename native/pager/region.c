/* SPDX-License-Identifier: Apache-2.0 */
/* Address <-> page of region.h: two sorted copies, binary search each way. */
#include "region.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "page.h"

static int compare(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

static int compare_pages(const void *a, const void *b)
{
    return compare(((const struct region *)a)->first_page, ((const struct region *)b)->first_page);
}

static int compare_addresses(const void *a, const void *b)
{
    return compare(((const struct region *)a)->address, ((const struct region *)b)->address);
}

static uint64_t region_bytes(const struct region *region)
{
    return region->page_count * PAGE_BYTES;
}

static bool well_formed(const struct region *region)
{
    return region->page_count != 0 && region->address % PAGE_BYTES == 0 &&
           region->page_count <= UINT64_MAX / PAGE_BYTES && region->first_page <= UINT64_MAX - region->page_count &&
           region->address <= UINT64_MAX - region_bytes(region);
}

/* The largest unit is far below where this wraps. */
static bool whole_units(const struct region *region, uint64_t unit_pages)
{
    uint64_t own_pages = region->unit_pages == 0 ? 1 : region->unit_pages;

    return own_pages == unit_pages && (region->first_page | region->page_count) % unit_pages == 0 &&
           region->address / PAGE_BYTES % unit_pages == 0;
}

int regions_set(struct regions *regions, const struct region *list, uint32_t count)
{
    uint64_t next_page = 0, unit_pages = count > 0 && list[0].unit_pages > 0 ? list[0].unit_pages : 1;
    bool good = count > 0 && count <= REGIONS_MAX && (unit_pages & (unit_pages - 1)) == 0;

    memset(regions, 0, sizeof(*regions));
    for (uint32_t i = 0; good && i < count; i++)
        good = well_formed(&list[i]) && whole_units(&list[i], unit_pages);
    if (!good)
        goto out;
    memcpy(regions->by_page, list, count * sizeof(*list));
    memcpy(regions->by_address, list, count * sizeof(*list));
    qsort(regions->by_page, count, sizeof(*list), compare_pages);
    qsort(regions->by_address, count, sizeof(*list), compare_addresses);
    for (uint32_t i = 0; good && i < count; i++) {
        good = regions->by_page[i].first_page == next_page;
        next_page += regions->by_page[i].page_count;
        if (i > 0)
            good = good && regions->by_address[i - 1].address + region_bytes(&regions->by_address[i - 1]) <=
                               regions->by_address[i].address;
    }
out:
    if (good) {
        regions->count = count;
        regions->page_count = next_page;
        regions->unit_pages = unit_pages;
    } else {
        memset(regions, 0, sizeof(*regions));
    }
    return good ? 0 : -EINVAL;
}

/* The last region that starts at or before the address; its index, or -1. */
static int at_or_before(const struct regions *regions, uint64_t address)
{
    int low = 0, high = (int)regions->count;

    while (low < high) {
        int middle = (low + high) / 2;
        if (regions->by_address[middle].address <= address)
            low = middle + 1;
        else
            high = middle;
    }
    return low - 1;
}

bool regions_page(const struct regions *regions, uint64_t address, uint64_t *page)
{
    int index = at_or_before(regions, address);
    bool found = index >= 0 && address - regions->by_address[index].address < region_bytes(&regions->by_address[index]);

    if (found) {
        const struct region *region = &regions->by_address[index];
        *page = region->first_page + (address - region->address) / PAGE_BYTES;
    }
    return found;
}

uint64_t regions_span(const struct regions *regions, uint64_t first, uint64_t count, struct kernel_span *span)
{
    int low = 0, high = (int)regions->count;
    uint64_t pages = 0;

    while (low < high) {
        int middle = (low + high) / 2;
        if (regions->by_page[middle].first_page <= first)
            low = middle + 1;
        else
            high = middle;
    }
    memset(span, 0, sizeof(*span));
    if (low > 0 && first - regions->by_page[low - 1].first_page < regions->by_page[low - 1].page_count) {
        const struct region *region = &regions->by_page[low - 1];
        uint64_t within = first - region->first_page;
        pages = count < region->page_count - within ? count : region->page_count - within;
        span->address = region->address + within * PAGE_BYTES;
        span->length_bytes = pages * PAGE_BYTES;
        span->file_offset = first * PAGE_BYTES;
    }
    return pages;
}

uint64_t regions_pages(const struct regions *regions, uint64_t *start, uint64_t end, uint64_t *first_page)
{
    int index = at_or_before(regions, *start);
    uint64_t pages = 0;

    if (index < 0 || *start - regions->by_address[index].address >= region_bytes(&regions->by_address[index]))
        index++; /* in a gap: the next region, if it begins before the end */
    if (*start < end && index < (int)regions->count && regions->by_address[index].address < end) {
        const struct region *region = &regions->by_address[index];
        uint64_t from = *start > region->address ? *start : region->address;
        uint64_t until = region->address + region_bytes(region) < end ? region->address + region_bytes(region) : end;
        *first_page = region->first_page + (from - region->address) / PAGE_BYTES;
        pages = (until - 1 - region->address) / PAGE_BYTES - (from - region->address) / PAGE_BYTES + 1;
        *start = until;
    } else {
        *start = end;
    }
    return pages;
}
