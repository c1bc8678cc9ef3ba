/* SPDX-License-Identifier: Apache-2.0 */
/* Regions: address <-> page, each way. The second region lies below the first, as Firecracker's do. */
#include "pager/region.h"

#include <errno.h>
#include <string.h>

#include "check.h"
#include "pager/page.h"

#define LOW UINT64_C(0x7f0000000000)
#define HIGH UINT64_C(0x7f0000100000)

static const struct region two[] = {
    {.address = HIGH, .first_page = 0, .page_count = 16},
    {.address = LOW, .first_page = 16, .page_count = 8},
};

static void addresses_need_not_be_in_the_order_of_pages(void)
{
    struct regions regions;
    uint64_t page = 99;

    CHECK_EQ(regions_set(&regions, two, 2), 0);
    CHECK_EQ(regions.page_count, 24);
    CHECK(regions_page(&regions, HIGH, &page));
    CHECK_EQ(page, 0);
    CHECK(regions_page(&regions, HIGH + 16 * PAGE_BYTES - 1, &page));
    CHECK_EQ(page, 15);
    CHECK(regions_page(&regions, LOW + 3 * PAGE_BYTES + 5, &page));
    CHECK_EQ(page, 19);
    CHECK(!regions_page(&regions, LOW - 1, &page));
    CHECK(!regions_page(&regions, LOW + 8 * PAGE_BYTES, &page));
    CHECK(!regions_page(&regions, HIGH + 16 * PAGE_BYTES, &page));
    CHECK(!regions_page(&regions, UINT64_MAX, &page));
}

static void a_span_ends_with_its_region(void)
{
    struct regions regions;
    struct kernel_span span;

    CHECK_EQ(regions_set(&regions, two, 2), 0);
    CHECK_EQ(regions_span(&regions, 12, 100, &span), 4);
    CHECK_EQ(span.address, HIGH + 12 * PAGE_BYTES);
    CHECK_EQ(span.length_bytes, 4 * PAGE_BYTES);
    CHECK_EQ(span.file_offset, 12 * PAGE_BYTES);
    CHECK_EQ(regions_span(&regions, 16, 2, &span), 2);
    CHECK_EQ(span.address, LOW);
    CHECK_EQ(span.file_offset, 16 * PAGE_BYTES);
    CHECK_EQ(regions_span(&regions, 24, 1, &span), 0);
    CHECK_EQ(regions_span(&regions, UINT64_MAX, 1, &span), 0);
}

static void a_unit_is_in_one_region_and_the_same_in_all(void)
{
    struct region units[2];
    struct regions regions;

    memcpy(units, two, sizeof(units));
    units[0].unit_pages = units[1].unit_pages = 8;
    CHECK_EQ(regions_set(&regions, units, 2), 0);
    CHECK_EQ(regions.unit_pages, 8);
    CHECK_EQ(regions_unit(&regions, 0), 0);
    CHECK_EQ(regions_unit(&regions, 15), 8);
    CHECK_EQ(regions_unit(&regions, 16), 16);
    units[1].unit_pages = 4; /* another */
    CHECK_EQ(regions_set(&regions, units, 2), -EINVAL);
    units[0].unit_pages = units[1].unit_pages = 3; /* no power of two */
    CHECK_EQ(regions_set(&regions, units, 2), -EINVAL);
    units[0].unit_pages = units[1].unit_pages = 16; /* more than the second has */
    CHECK_EQ(regions_set(&regions, units, 2), -EINVAL);
    units[0].unit_pages = units[1].unit_pages = 8;
    units[1].address += 4 * PAGE_BYTES; /* one begins in the middle */
    CHECK_EQ(regions_set(&regions, units, 2), -EINVAL);
    CHECK_EQ(regions_set(&regions, two, 2), 0);
    CHECK_EQ(regions.unit_pages, 1);
    CHECK_EQ(regions_unit(&regions, 7), 7);
}

static void a_removal_may_span_regions_and_gaps(void)
{
    struct regions regions;
    uint64_t start = LOW - 10 * PAGE_BYTES, end = HIGH + 2 * PAGE_BYTES, first;

    CHECK_EQ(regions_set(&regions, two, 2), 0);
    CHECK_EQ(regions_pages(&regions, &start, end, &first), 8);
    CHECK_EQ(first, 16);
    CHECK_EQ(regions_pages(&regions, &start, end, &first), 2);
    CHECK_EQ(first, 0);
    CHECK_EQ(regions_pages(&regions, &start, end, &first), 0);
    CHECK_EQ(start, end);
    start = 0; /* and be all outside */
    CHECK_EQ(regions_pages(&regions, &start, LOW, &first), 0);
    start = HIGH + 16 * PAGE_BYTES;
    CHECK_EQ(regions_pages(&regions, &start, UINT64_MAX, &first), 0);
    start = LOW; /* or empty */
    CHECK_EQ(regions_pages(&regions, &start, LOW, &first), 0);
    start = LOW + 7; /* whoever names part of a page names the page */
    CHECK_EQ(regions_pages(&regions, &start, LOW + PAGE_BYTES + 1, &first), 2);
    CHECK_EQ(first, 16);
}

static void bad_regions_are_refused(void)
{
    struct regions regions;
    struct region bad[REGIONS_MAX + 1];

#define REFUSED(change) \
    do { \
        memcpy(bad, two, sizeof(two)); \
        change; \
        CHECK_EQ(regions_set(&regions, bad, 2), -EINVAL); \
        CHECK_EQ(regions.count, 0); \
    } while (0)
    REFUSED(bad[0].page_count = 0);
    REFUSED(bad[0].address += 1);
    REFUSED(bad[1].address = UINT64_MAX - PAGE_BYTES + 1);
    REFUSED(bad[1].address = HIGH + 15 * PAGE_BYTES);
    REFUSED(bad[1].first_page = 17);
    REFUSED(bad[1].first_page = 15);
    REFUSED(bad[1].first_page = 0);
    REFUSED(bad[1].page_count = UINT64_MAX / 2);
    REFUSED(bad[0].first_page = UINT64_MAX);
    CHECK_EQ(regions_set(&regions, two, 0), -EINVAL);
    for (uint32_t i = 0; i <= REGIONS_MAX; i++)
        bad[i] = (struct region){.address = LOW + i * PAGE_BYTES, .first_page = i, .page_count = 1};
    CHECK_EQ(regions_set(&regions, bad, REGIONS_MAX + 1), -EINVAL);
    CHECK_EQ(regions_set(&regions, bad, REGIONS_MAX), 0); /* neighbours may touch */
}

int main(void)
{
    RUN(addresses_need_not_be_in_the_order_of_pages);
    RUN(a_span_ends_with_its_region);
    RUN(a_unit_is_in_one_region_and_the_same_in_all);
    RUN(a_removal_may_span_regions_and_gaps);
    RUN(bad_regions_are_refused);
    return check_done();
}
