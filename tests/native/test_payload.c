/* SPDX-License-Identifier: Apache-2.0 */
/* The digest of a batch, against values of another implementation, and what payload_check refuses. */
#include <string.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc/payload.h"

#define V PF_LIMIT_IMMUTABLE_VERSION
#define PAGE PF_LIMIT_PAGE_BYTES

static uint8_t pages[(PF_LIMIT_BATCH_BYTES_CAP / PAGE + 1) * PAGE];

static void fill(size_t at, uint32_t seed)
{
    for (size_t i = 0; i < PAGE; i++)
        pages[at * PAGE + i] = (uint8_t)(seed + i * 13 + (i >> 8));
}

static void test_known_digests(void)
{
    const struct run one[] = {{7, 1, PF_RUN_KIND_DATA, V}};
    const struct run three[] = {{0, 1, PF_RUN_KIND_DATA, V}, {1, 5, PF_RUN_KIND_ZERO, V}, {9, 2, PF_RUN_KIND_DATA, V}};
    const struct run zeros[] = {{100, 50, PF_RUN_KIND_ZERO, V}};
    const struct grpc_bytes none = {NULL, 0};

    /* The first two are in the test suite of xxHash; the others were computed with its Python binding. */
    CHECK(payload_digest(0, NULL, 0, none) == UINT64_C(0x2d06800538d394c2));
    CHECK(payload_digest(UINT64_C(0x9e3779b185ebca8d), NULL, 0, none) == UINT64_C(0xa8a6b918b2f0364a));
    fill(0, 3);
    CHECK(payload_digest(UINT64_C(0x0123456789abcdef), one, 1, (struct grpc_bytes){pages, PAGE}) ==
          UINT64_C(0x17a790ae20801aba));
    fill(0, 1), fill(1, 2), fill(2, 4);
    CHECK(payload_digest(1, three, 3, (struct grpc_bytes){pages, 3 * PAGE}) == UINT64_C(0xd0afa121d9426174));
    CHECK(payload_digest(UINT64_MAX, zeros, 1, none) == UINT64_C(0xe009a1c15d70dd66));
}

#define ID 77

/* Two pages of bytes and some zeros, with the right digest. */
static struct page_batch good_batch(struct run *runs)
{
    struct page_batch batch = {.as_of = V, .runs = runs, .run_count = 2, .encoding = PF_ENCODING_IDENTITY};

    runs[0] = (struct run){10, 2, PF_RUN_KIND_DATA, V};
    runs[1] = (struct run){20, 8, PF_RUN_KIND_ZERO, V};
    fill(0, 1), fill(1, 2);
    batch.data = (struct grpc_bytes){pages, 2 * PAGE};
    batch.digest = payload_digest(ID, runs, 2, batch.data);
    return batch;
}

static int check_signed(struct page_batch *batch)
{
    uint64_t data_pages = 0;

    batch->digest = payload_digest(ID, batch->runs, batch->run_count, batch->data);
    return payload_check(ID, batch, &data_pages);
}

static void test_good_batches(void)
{
    struct run runs[4];
    struct page_batch batch = good_batch(runs);
    uint64_t data_pages = 0;

    CHECK_EQ(payload_check(ID, &batch, &data_pages), 0);
    CHECK_EQ(data_pages, 2);
    for (uint64_t kind = PF_RUN_KIND_ZERO; kind <= PF_RUN_KIND_VERSION; kind++) {
        runs[0] = (struct run){0, UINT64_C(1) << 40, kind, V}; /* without bytes: as many as one likes */
        batch.run_count = 1;
        batch.encoding = 0;
        batch.data.length = 0;
        CHECK_EQ(check_signed(&batch), 0);
    }
}

static void test_wrong_digest(void)
{
    struct run runs[2];
    struct page_batch batch = good_batch(runs);
    uint64_t data_pages = 0;

    CHECK_EQ(payload_check(ID + 1, &batch, &data_pages), -PF_REASON_MISMATCH); /* another image */
    batch.digest ^= 1;
    CHECK_EQ(payload_check(ID, &batch, &data_pages), -PF_REASON_MISMATCH);
    batch.digest ^= 1;
    pages[PAGE + 5] ^= 0x10;
    CHECK_EQ(payload_check(ID, &batch, &data_pages), -PF_REASON_MISMATCH);
    pages[PAGE + 5] ^= 0x10;
    runs[1].page_count++;
    CHECK_EQ(payload_check(ID, &batch, &data_pages), -PF_REASON_MISMATCH);
    runs[1].page_count--;
    CHECK_EQ(payload_check(ID, &batch, &data_pages), 0);
}

static void test_wrong_lengths(void)
{
    static const size_t lengths[] = {0, 1, PAGE, 2 * PAGE - 1, 2 * PAGE + 1, 3 * PAGE};
    struct run runs[2];
    struct page_batch batch = good_batch(runs);

    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        batch.data.length = lengths[i];
        CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    }
    /* more pages than may be in a batch, also where their sum wraps */
    runs[0].page_count = PF_LIMIT_BATCH_BYTES_CAP / PAGE + 1;
    batch.data.length = runs[0].page_count * PAGE;
    batch.run_count = 1;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    runs[0].page_count = (UINT64_C(1) << 52) + 2; /* times 4096: two pages */
    batch.data.length = 2 * PAGE;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    runs[0].page_count = 2;
    runs[1] = (struct run){100, UINT64_MAX - 1, PF_RUN_KIND_DATA, V};
    batch.run_count = 2;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
}

static void test_bad_kinds(void)
{
    static const uint64_t kinds[] = {0, PF_RUN_KIND_VERSION + 1, 255, UINT64_C(1) << 32 | PF_RUN_KIND_ZERO};
    struct run runs[2];
    struct page_batch batch = good_batch(runs);

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        runs[1].kind = kinds[i];
        CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    }
}

static void test_other_faults(void)
{
    struct run runs[2];
    struct page_batch batch = good_batch(runs);

    runs[1].version = 0;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    batch = good_batch(runs);
    batch.encoding = PF_ENCODING_ZSTD; /* was not asked for */
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    batch.encoding = 0;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    batch = good_batch(runs);
    batch.as_of = 0;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    batch = good_batch(runs);
    runs[1].version = UINT64_C(1) << 56; /* wider than a version is: a page's word would cut it */
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
    batch = good_batch(runs);
    batch.run_count = 0;
    CHECK_EQ(check_signed(&batch), -PF_REASON_BAD_REQUEST);
}

static void test_zero_pages(void)
{
    memset(pages, 0, PAGE);
    CHECK(payload_page_is_zero(pages));
    for (size_t i = 0; i < PAGE; i++) {
        pages[i] = 1;
        CHECK(!payload_page_is_zero(pages));
        pages[i] = 0;
    }
}

int main(void)
{
    RUN(test_known_digests);
    RUN(test_good_batches);
    RUN(test_wrong_digest);
    RUN(test_wrong_lengths);
    RUN(test_bad_kinds);
    RUN(test_other_faults);
    RUN(test_zero_pages);
    return check_done();
}
