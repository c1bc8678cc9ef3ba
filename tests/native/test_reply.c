/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asked runs -> batches, on an image that exists in a table: any page may be data, zeros in an extent, a
 * hole, unreadable now, or of another version. Every batch is read back as a client reads it.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "rpc/payload.h"
#include "serve/reply.h"

#define PAGES 4096
#define NEW_VERSION (PF_LIMIT_IMMUTABLE_VERSION + 3)

enum what { HOLE = 0, DATA, ZEROS, LATER, GONE, DATA_NEW };

static uint8_t content[PAGES]; /* enum what */
static uint64_t reads, pages_read;

/* ---------------------------------------------------------------------------------------------- the image */

static void fill(uint64_t page, uint8_t *bytes)
{
    bool data = content[page] == DATA || content[page] == DATA_NEW;

    memset(bytes, 0, IMAGE_PAGE_BYTES);
    if (data)
        memcpy(bytes + IMAGE_PAGE_BYTES - sizeof(page), &page, sizeof(page)); /* the last bytes count too */
    bytes[0] = data;
}

static int table_read(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    (void)image;
    reads++;
    for (uint64_t i = 0; i < page_count; i++) {
        pages_read++;
        if (content[first_page + i] == LATER)
            return -PF_REASON_GOING_AWAY;
        if (content[first_page + i] == GONE)
            return -PF_REASON_MISMATCH;
        fill(first_page + i, bytes + i * IMAGE_PAGE_BYTES);
    }
    return 0;
}

static bool table_may_hold_data(const struct image *image, uint64_t page)
{
    (void)image;
    return content[page] != HOLE;
}

static uint64_t table_alike_end(const struct image *image, uint64_t page, uint64_t end)
{
    uint64_t at = page + 1;

    while (at < end && table_may_hold_data(image, at) == table_may_hold_data(image, page))
        at++;
    return at;
}

static uint64_t table_version(const struct image *image, uint64_t page, uint64_t *end)
{
    bool newer = content[page] == DATA_NEW;
    uint64_t at = page + 1;

    (void)image;
    while (at < *end && (content[at] == DATA_NEW) == newer)
        at++;
    *end = at;
    return newer ? NEW_VERSION : PF_LIMIT_IMMUTABLE_VERSION;
}

static uint64_t table_next_above(const struct image *of, uint64_t version, uint64_t page, uint64_t end)
{
    (void)of;
    while (page < end && (content[page] == DATA_NEW ? NEW_VERSION : PF_LIMIT_IMMUTABLE_VERSION) <= version)
        page++;
    return page;
}

static const struct image_ops table_ops = {
    .read = table_read,
    .may_hold_data = table_may_hold_data,
    .alike_end = table_alike_end,
    .version = table_version,
    .next_above = table_next_above,
};
static struct image image = {.ops = &table_ops, .content_id = 77, .page_count = PAGES,
                                   .as_of = NEW_VERSION};

/* ------------------------------------------------------------------------------- asking, and reading back */

static struct asks asks;
static struct stats stats;
static struct reply_order order;
static struct run runs[PF_LIMIT_RUNS_MAX], got[PF_LIMIT_RUNS_MAX];
static uint32_t got_count;
static uint64_t got_data_pages;
static uint32_t named[PAGES]; /* how often, over all batches */

static void begin(uint32_t pages_max, uint32_t runs_max)
{
    memset(content, HOLE, sizeof(content));
    memset(named, 0, sizeof(named));
    memset(&stats, 0, sizeof(stats));
    asks_close(&asks);
    reads = pages_read = 0;
    order = (struct reply_order){.image = &image, .as_of = NEW_VERSION, .pages_max = pages_max,
                                 .runs_max = runs_max};
}

static void ask(uint64_t first_page, uint64_t page_count)
{
    CHECK(asks_add(&asks, first_page, page_count));
}

static void check_page(uint64_t page, const struct run *run, const uint8_t *bytes)
{
    uint8_t want[IMAGE_PAGE_BYTES];
    static const uint64_t kinds[] = {
        [HOLE] = PF_RUN_KIND_ZERO,   [DATA] = PF_RUN_KIND_DATA,     [ZEROS] = PF_RUN_KIND_ZERO,
        [LATER] = PF_RUN_KIND_LATER, [DATA_NEW] = PF_RUN_KIND_DATA,
    };

    named[page]++;
    if (order.versions_only)
        CHECK_EQ(run->kind, content[page] == HOLE ? PF_RUN_KIND_ZERO : PF_RUN_KIND_VERSION);
    else
        CHECK_EQ(run->kind, kinds[content[page]]);
    CHECK_EQ(run->version, content[page] == DATA_NEW ? NEW_VERSION : PF_LIMIT_IMMUTABLE_VERSION);
    fill(page, want);
    if (run->kind == PF_RUN_KIND_DATA)
        CHECK(memcmp(bytes, want, sizeof(want)) == 0);
}

/* One batch. 0 or minus a reason. Its space has exactly the size that is asked for: sanitizers look. */
static int one_batch(void)
{
    size_t capacity = reply_bytes_max(order.pages_max, order.runs_max);
    uint8_t *bytes = malloc(capacity);
    struct reply_space exact = {.bytes = bytes, .capacity_bytes = capacity, .runs = runs};
    struct page_batch batch = {.runs = got};
    struct reply reply = {0};
    const uint8_t *data;
    int rc = reply_make(&order, &asks, &exact, &stats, &reply);

    if (rc == 0) {
        CHECK_EQ(read_page_batch(reply.message, got, PF_LIMIT_RUNS_MAX, &batch), 0);
        CHECK_EQ(batch.as_of, NEW_VERSION);
        CHECK_EQ(batch.run_count, reply.run_count);
        CHECK(batch.run_count <= order.runs_max);
        if (batch.run_count > 0)
            CHECK_EQ(payload_check(image.content_id, &batch, &got_data_pages), 0);
        CHECK_EQ(batch.data.length, batch.run_count > 0 ? got_data_pages * IMAGE_PAGE_BYTES : 0);
        CHECK(got_data_pages <= order.pages_max || batch.run_count == 0);
        data = batch.data.data;
        for (uint32_t i = 0; i < batch.run_count; i++) {
            for (uint64_t j = 0; j < got[i].page_count; j++) {
                check_page(got[i].first_page + j, &got[i], data);
                data += got[i].kind == PF_RUN_KIND_DATA ? IMAGE_PAGE_BYTES : 0;
            }
        }
        got_count = batch.run_count;
    }
    free(bytes);
    return rc;
}

static uint32_t all_batches(void)
{
    uint32_t count = 0;

    while (asks.count > 0 && count < 2 * PAGES) {
        CHECK_EQ(one_batch(), 0);
        count++;
    }
    CHECK_EQ(asks.pages, 0);
    return count;
}

static void is_run(uint32_t index, uint64_t first_page, uint64_t page_count, uint64_t kind)
{
    CHECK(index < got_count);
    CHECK_EQ(got[index].first_page, first_page);
    CHECK_EQ(got[index].page_count, page_count);
    CHECK_EQ(got[index].kind, kind);
}

/* ---------------------------------------------------------------------------------------------- the tests */

static void test_one_page_is_one_read(void)
{
    begin(1, 1);
    content[9] = DATA;
    ask(9, 1);
    CHECK_EQ(one_batch(), 0);
    is_run(0, 9, 1, PF_RUN_KIND_DATA);
    CHECK_EQ(reads, 1);
    ask(10, 1);
    CHECK_EQ(one_batch(), 0);
    is_run(0, 10, 1, PF_RUN_KIND_ZERO);
    CHECK_EQ(reads, 1); /* a hole is not read */
}

static void test_zeros_in_an_extent_give_their_place_to_the_next(void)
{
    begin(16, 16);
    content[0] = content[3] = content[4] = content[7] = DATA;
    content[1] = content[2] = content[5] = content[6] = ZEROS;
    ask(0, 10);
    CHECK_EQ(all_batches(), 1);
    CHECK_EQ(got_count, 6);
    is_run(0, 0, 1, PF_RUN_KIND_DATA);
    is_run(1, 1, 2, PF_RUN_KIND_ZERO);
    is_run(2, 3, 2, PF_RUN_KIND_DATA);
    is_run(3, 5, 2, PF_RUN_KIND_ZERO);
    is_run(4, 7, 1, PF_RUN_KIND_DATA);
    is_run(5, 8, 2, PF_RUN_KIND_ZERO);
    CHECK_EQ(reads, 1);
    CHECK_EQ(stats_get(&stats, STATS_sent_pages_total), 4);
    CHECK_EQ(stats_get(&stats, STATS_sent_zero_pages_total), 6);
}

static void test_batches_are_full_and_in_order(void)
{
    begin(64, 256);
    memset(content, DATA, 1000);
    ask(500, 300);
    ask(0, 100);
    CHECK_EQ(all_batches(), 7); /* 400 pages, 64 each */
    CHECK_EQ(reads, 8);         /* one more where the runs meet */
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(named[page], (page >= 500 && page < 800) || page < 100);
}

/* A file full of written zeros must not be read in one turn. */
static void test_the_work_of_a_batch_is_bounded(void)
{
    begin(64, 256);
    memset(content, ZEROS, sizeof(content));
    ask(0, PAGES);
    CHECK_EQ(one_batch(), 0);
    CHECK_EQ(pages_read, 64);
    is_run(0, 0, 64, PF_RUN_KIND_ZERO);
    begin(64, 256);
    ask(0, PAGES);
    CHECK_EQ(one_batch(), 0); /* one that is a hole is said at once */
    is_run(0, 0, PAGES, PF_RUN_KIND_ZERO);
    CHECK_EQ(pages_read, 0);
}

static void test_runs_are_bounded(void)
{
    begin(64, 8);
    for (uint64_t page = 0; page < PAGES; page++)
        content[page] = page % 2 == 0 ? DATA : ZEROS;
    ask(0, PAGES);
    CHECK_EQ(all_batches(), PAGES / 8);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(named[page], 1);
}

static void test_what_cannot_be_read_now_takes_no_neighbour_along(void)
{
    begin(16, 16);
    memset(content, DATA, 16);
    content[5] = LATER;
    content[6] = LATER;
    content[9] = ZEROS;
    ask(0, 16);
    CHECK_EQ(all_batches(), 1);
    CHECK_EQ(got_count, 5);
    is_run(0, 0, 5, PF_RUN_KIND_DATA);
    is_run(1, 5, 2, PF_RUN_KIND_LATER);
    is_run(2, 7, 2, PF_RUN_KIND_DATA);
    is_run(3, 9, 1, PF_RUN_KIND_ZERO);
    is_run(4, 10, 6, PF_RUN_KIND_DATA);
}

static void test_an_image_that_changed_ends_the_call(void)
{
    begin(16, 16);
    memset(content, DATA, 16);
    content[5] = GONE;
    ask(0, 16);
    CHECK_EQ(one_batch(), -PF_REASON_MISMATCH);
    content[4] = LATER;
    asks_close(&asks);
    ask(0, 16);
    CHECK_EQ(one_batch(), -PF_REASON_MISMATCH);
}

static void test_a_page_is_named_once_a_batch(void)
{
    begin(32, 64);
    order.may_repeat = true;
    memset(content, DATA, 40);
    ask(10, 4);
    ask(8, 8);
    ask(12, 1);
    ask(0, 3);
    ask(2, 9);
    CHECK_EQ(one_batch(), 0); /* payload_check refuses runs that overlap */
    for (uint64_t page = 0; page < 16; page++)
        CHECK_EQ(named[page], 1);
    CHECK_EQ(asks.pages, 0);
    ask(3, 1);
    CHECK_EQ(one_batch(), 0); /* asked again later, it is answered again */
    CHECK_EQ(named[3], 2);
}

static void test_only_what_is_newer(void)
{
    begin(16, 16);
    memset(content, DATA, 100);
    content[20] = content[21] = content[90] = DATA_NEW;
    order.since_version = PF_LIMIT_IMMUTABLE_VERSION;
    ask(0, PAGES);
    CHECK_EQ(all_batches(), 1);
    CHECK_EQ(got_count, 2);
    is_run(0, 20, 2, PF_RUN_KIND_DATA);
    is_run(1, 90, 1, PF_RUN_KIND_DATA);
    CHECK_EQ(pages_read, 3);
    order.since_version = NEW_VERSION;
    ask(0, PAGES);
    CHECK_EQ(one_batch(), 0);
    CHECK_EQ(got_count, 0);
}

static void test_versions_part_runs(void)
{
    begin(16, 16);
    memset(content, DATA, 8);
    content[3] = content[4] = DATA_NEW;
    ask(0, 8);
    CHECK_EQ(all_batches(), 1);
    CHECK_EQ(got_count, 3);
    is_run(1, 3, 2, PF_RUN_KIND_DATA);
    CHECK_EQ(got[1].version, NEW_VERSION);
    order.versions_only = true;
    reads = 0;
    ask(0, PAGES);
    CHECK_EQ(all_batches(), 1);
    CHECK_EQ(got_count, 4);
    is_run(2, 5, 3, PF_RUN_KIND_VERSION);
    is_run(3, 8, PAGES - 8, PF_RUN_KIND_ZERO);
    CHECK_EQ(reads, 0);
}

/* A version map of an image that is new all over must not be made in one turn. */
static void test_a_message_names_so_many_pages(void)
{
    begin(1, 16);
    order.versions_only = true;
    order.named_pages_max = 1000;
    for (uint64_t page = 0; page < PAGES; page++)
        content[page] = page / 300 % 2 == 0 ? DATA : HOLE;
    ask(0, PAGES);
    CHECK_EQ(one_batch(), 0);
    CHECK_EQ(got_count, 4); /* 300 each: the fourth is the one that fills it */
    is_run(3, 900, 300, PF_RUN_KIND_ZERO);
    all_batches();
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(named[page], 1);
}

static void test_a_space_too_small_is_not_written(void)
{
    uint8_t bytes[5000];
    struct reply_space small = {.bytes = bytes, .capacity_bytes = sizeof(bytes), .runs = runs};
    struct reply reply;

    begin(16, 16);
    ask(0, 1);
    CHECK_EQ(reply_make(&order, &asks, &small, &stats, &reply), -PF_REASON_BUG);
    CHECK_EQ(asks.pages, 1);
}

/* Random images and asks, each page asked is named once, with what it is. */
static void test_any_image(void)
{
    uint64_t random = 88172645463325252;

    for (int round = 0; round < 200; round++) {
        begin(1 + round % 64, 1 + round % 37);
        for (uint64_t page = 0; page < PAGES; page++) {
            random ^= random << 13, random ^= random >> 7, random ^= random << 17;
            if (page == 0 || random % (1 + round % 9) == 0)
                content[page] = (uint8_t[]){HOLE, DATA, ZEROS, LATER, DATA_NEW}[(random >> 32) % 5];
            else
                content[page] = content[page - 1];
        }
        for (uint64_t page = 0; page < 600; page += 1 + (random >> page % 40) % 5)
            ask(page, 1);
        ask(1000, 200);
        all_batches();
        for (uint64_t page = 1000; page < 1200; page++)
            CHECK_EQ(named[page], 1);
    }
}

static void test_asks_are_first_in_first_out(void)
{
    begin(1, 1);
    for (uint64_t i = 0; i < 5000; i++)
        ask(i * 2, 1);
    for (uint64_t i = 0; i < 4000; i++) {
        CHECK_EQ(asks_oldest(&asks).first_page, i * 2);
        asks_answered(&asks, 1);
    }
    for (uint64_t i = 5000; i < 9000; i++)
        ask(i * 2, 1);
    ask(18000, 5); /* 17998 was the last: a run of its own */
    ask(18005, 1); /* joins it */
    CHECK_EQ(asks.count, 5001);
    CHECK_EQ(asks.pages, 5006);
    for (uint64_t i = 4000; i < 9000; i++) {
        CHECK_EQ(asks_oldest(&asks).first_page, i * 2);
        asks_answered(&asks, 1);
    }
    asks_answered(&asks, 2);
    CHECK_EQ(asks_oldest(&asks).first_page, 18002);
    CHECK_EQ(asks_oldest(&asks).page_count, 4);
    CHECK(asks.capacity <= 8192);
    asks_close(&asks);
}

int main(void)
{
    asks_open(&asks);
    RUN(test_one_page_is_one_read);
    RUN(test_zeros_in_an_extent_give_their_place_to_the_next);
    RUN(test_batches_are_full_and_in_order);
    RUN(test_the_work_of_a_batch_is_bounded);
    RUN(test_runs_are_bounded);
    RUN(test_what_cannot_be_read_now_takes_no_neighbour_along);
    RUN(test_an_image_that_changed_ends_the_call);
    RUN(test_a_page_is_named_once_a_batch);
    RUN(test_only_what_is_newer);
    RUN(test_versions_part_runs);
    RUN(test_a_message_names_so_many_pages);
    RUN(test_a_space_too_small_is_not_written);
    RUN(test_any_image);
    RUN(test_asks_are_first_in_first_out);
    return check_done();
}
