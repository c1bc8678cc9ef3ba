/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages of pages.proto against bytes that protobuf's own library made, and everything that must be refused.
 * Inputs are copied to memory of exactly their length, so that a sanitizer sees a read past the end.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc/messages.h"

#define V PF_LIMIT_IMMUTABLE_VERSION
#define RUNS_MAX 4
#define BAD (-PF_REASON_BAD_REQUEST)
#define BYTES(text) ((struct grpc_bytes){(const uint8_t *)(text), sizeof(text) - 1})

static const struct grpc_bytes describe_response_bytes =
    BYTES("\x09\xef\xcd\xab\x89\x67\x45\x23\x01\x10\x80\x80\x10\x18\x80\x20\x20\x01\x2a\x06\x80\x80\x0c\x80\x80\x04"
          "\x30\x01\x38\x81\x80\x80\x80\x10\x40\x80\x80\x10\x48\x80\x20\x50\x80\x20\x58\x08\x60\x02");
static const struct grpc_bytes fetch_bytes =
    BYTES("\x0a\x05web-1\x10\x02\x1a\x05\x00\x01\xac\x02\x10\x20\x4d");
static const struct grpc_bytes stream_bytes =
    BYTES("\x0a\x05web-1\x10\x81\x80\x80\x80\x10\x1a\x02\x05\x10\x20\x01\x28\x01\x30\x02");
static const struct grpc_bytes batch_bytes =
    BYTES("\x08\x81\x80\x80\x80\x10\x12\x10\x00\x01\x01\x81\x80\x80\x80\x10\x09\x03\x02\x81\x80\x80\x80\x10\x18\x01"
          "\x21\x88\x77\x66\x55\x44\x33\x22\x11\x28\x4d\x30\x04\x38\x01\x42\x02md\x7a\x04" "DATA");

static struct run runs[RUNS_MAX];

static bool is_text(struct grpc_bytes bytes, const char *text)
{
    return bytes.length == strlen(text) && memcmp(bytes.data, text, bytes.length) == 0;
}

static bool is_same(const uint8_t *got, size_t length, struct grpc_bytes wanted)
{
    return length == wanted.length && memcmp(got, wanted.data, length) == 0;
}

static void test_describe_request(void)
{
    struct describe_request request = {.image = BYTES("web-1")};
    uint8_t bytes[16];

    CHECK(is_same(bytes, write_describe_request(&request, bytes, sizeof(bytes)), BYTES("\x0a\x05web-1")));
    memset(&request, 0xff, sizeof(request));
    CHECK_EQ(read_describe_request(BYTES("\x0a\x05web-1"), &request), 0);
    CHECK(is_text(request.image, "web-1"));
    CHECK_EQ(read_describe_request((struct grpc_bytes){NULL, 0}, &request), 0);
    CHECK_EQ(request.image.length, 0);
}

static void test_describe_response(void)
{
    struct describe_response response;
    uint8_t bytes[128];

    memset(&response, 0xff, sizeof(response));
    CHECK_EQ(read_describe_response(describe_response_bytes, &response), 0);
    CHECK_EQ(response.content_id, 0x0123456789abcdef);
    CHECK_EQ(response.page_count, 262144);
    CHECK_EQ(response.page_bytes, 4096);
    CHECK_EQ(response.unit_pages, 1);
    CHECK_EQ(response.region_count, 2);
    CHECK_EQ(response.region_pages[0], 196608);
    CHECK_EQ(response.region_pages[1], 65536);
    CHECK(response.live);
    CHECK_EQ(response.as_of, V);
    CHECK_EQ(response.batch_bytes_max, 262144);
    CHECK_EQ(response.runs_max, 4096);
    CHECK_EQ(response.wanted_pages_max, 4096);
    CHECK_EQ(response.urgent_calls_max, 8);
    CHECK_EQ(response.encodings, 2);
    CHECK(is_same(bytes, write_describe_response(&response, bytes, sizeof(bytes)), describe_response_bytes));
}

static void test_too_many_regions(void)
{
    struct describe_response response;
    uint8_t bytes[2 + 65] = {0x2a, 65};

    memset(bytes + 2, 1, 65);
    CHECK_EQ(read_describe_response((struct grpc_bytes){bytes, sizeof(bytes)}, &response), BAD);
    bytes[1] = 64;
    CHECK_EQ(read_describe_response((struct grpc_bytes){bytes, sizeof(bytes) - 1}, &response), 0);
    CHECK_EQ(response.region_count, 64);
}

static void test_get_page_request(void)
{
    struct get_page_request request = {.image = BYTES("web-1"), .page = 300};
    uint8_t bytes[16];

    CHECK(is_same(bytes, write_get_page_request(&request, bytes, sizeof(bytes)), BYTES("\x0a\x05web-1\x10\xac\x02")));
    memset(&request, 0xff, sizeof(request));
    CHECK_EQ(read_get_page_request(BYTES("\x0a\x05web-1\x10\xac\x02"), &request), 0);
    CHECK_EQ(request.page, 300);
    CHECK_EQ(read_get_page_request(BYTES("\x0a\x05web-1"), &request), 0); /* page 0 is not on the wire */
    CHECK_EQ(request.page, 0);
    CHECK(is_same(bytes, write_get_page_request(&request, bytes, sizeof(bytes)), BYTES("\x0a\x05web-1")));
}

static void test_fetch_request(void)
{
    struct fetch_request request;
    uint8_t bytes[64];

    memset(&request, 0xff, sizeof(request));
    CHECK_EQ(read_fetch_request(fetch_bytes, runs, RUNS_MAX, &request), 0);
    CHECK(is_text(request.image, "web-1"));
    CHECK_EQ(request.encodings, 2);
    CHECK_EQ(request.heartbeat, 77);
    CHECK_EQ(request.run_count, 2);
    CHECK(runs[0].first_page == 0 && runs[0].page_count == 1 && runs[0].kind == 0 && runs[0].version == 0);
    CHECK(runs[1].first_page == 300 && runs[1].page_count == 16);
    CHECK(is_same(bytes, write_fetch_request(&request, bytes, sizeof(bytes)), fetch_bytes));
}

static void test_stream_request(void)
{
    struct stream_request request;
    uint8_t bytes[64];

    memset(&request, 0xff, sizeof(request));
    CHECK_EQ(read_stream_request(stream_bytes, runs, RUNS_MAX, &request), 0);
    CHECK(is_text(request.image, "web-1"));
    CHECK_EQ(request.since_version, V);
    CHECK_EQ(request.run_count, 1);
    CHECK(runs[0].first_page == 5 && runs[0].page_count == 16);
    CHECK(request.versions_only && request.open_round);
    CHECK_EQ(request.encodings, 2);
    CHECK(is_same(bytes, write_stream_request(&request, bytes, sizeof(bytes)), stream_bytes));
}

static void test_page_batch(void)
{
    struct page_batch batch;
    uint8_t bytes[64];
    size_t length;

    memset(&batch, 0xff, sizeof(batch));
    CHECK_EQ(read_page_batch(batch_bytes, runs, RUNS_MAX, &batch), 0);
    CHECK_EQ(batch.as_of, V);
    CHECK_EQ(batch.run_count, 2);
    CHECK(runs[0].first_page == 0 && runs[0].page_count == 1 && runs[0].kind == 1 && runs[0].version == V);
    CHECK(runs[1].first_page == 9 && runs[1].page_count == 3 && runs[1].kind == 2 && runs[1].version == V);
    CHECK_EQ(batch.encoding, 1);
    CHECK_EQ(batch.digest, 0x1122334455667788);
    CHECK_EQ(batch.heartbeat, 77);
    CHECK_EQ(batch.phase, 4);
    CHECK(batch.cancel_requested);
    CHECK(is_text(batch.manifest_digest, "md"));
    CHECK(is_text(batch.data, "DATA"));
    length = write_page_batch_head(&batch, bytes, sizeof(bytes));
    memcpy(bytes + length, "DATA", 4);
    CHECK(is_same(bytes, length + 4, batch_bytes));
}

static void test_head_max(void)
{
    static struct run many[300];
    static uint8_t bytes[16384];
    uint8_t manifest[64] = {1};
    struct page_batch batch = {
        .as_of = UINT64_MAX,
        .runs = many,
        .encoding = UINT32_MAX,
        .digest = UINT64_MAX,
        .heartbeat = UINT64_MAX,
        .phase = UINT32_MAX,
        .cancel_requested = true,
        .manifest_digest = {manifest, sizeof(manifest)},
        .data = {NULL, SIZE_MAX},
    };

    for (size_t i = 0; i < 300; i++)
        many[i] = (struct run){UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    for (batch.run_count = 0; batch.run_count <= 300; batch.run_count += 50) {
        size_t length = write_page_batch_head(&batch, bytes, page_batch_head_max(batch.run_count));
        CHECK(length > 0 && length <= page_batch_head_max(batch.run_count));
        CHECK_EQ(write_page_batch_head(&batch, bytes, length - 1), 0);
        CHECK_EQ(write_page_batch_head(&batch, bytes, length), length);
    }
}

/* Every reader on every beginning of every message: never past the end, and bad wherever a field is cut. */
static void read_any(struct grpc_bytes message)
{
    struct describe_request describe_request;
    struct describe_response describe_response;
    struct get_page_request get_page_request;
    struct fetch_request fetch_request;
    struct stream_request stream_request;
    struct page_batch page_batch;

    read_describe_request(message, &describe_request);
    read_describe_response(message, &describe_response);
    read_get_page_request(message, &get_page_request);
    read_fetch_request(message, runs, RUNS_MAX, &fetch_request);
    read_stream_request(message, runs, RUNS_MAX, &stream_request);
    read_page_batch(message, runs, RUNS_MAX, &page_batch);
}

static void test_truncated(void)
{
    const struct grpc_bytes all[] = {describe_response_bytes, fetch_bytes, stream_bytes, batch_bytes};
    struct grpc_bytes cut = batch_bytes;
    struct page_batch batch;

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        for (size_t length = 0; length <= all[i].length; length++) {
            uint8_t *copy = malloc(length + (length == 0));
            memcpy(copy, all[i].data, length);
            read_any((struct grpc_bytes){copy, length});
            free(copy);
        }
    cut.length--;
    CHECK_EQ(read_page_batch(cut, runs, RUNS_MAX, &batch), BAD);
    for (cut.length = 1; cut.length < 6; cut.length++)
        CHECK_EQ(read_page_batch(cut, runs, RUNS_MAX, &batch), BAD);
    CHECK_EQ(read_page_batch(cut, runs, RUNS_MAX, &batch), 0); /* as_of is whole */
}

static void test_random_bytes(void)
{
    uint32_t random = 4711;

    for (int round = 0; round < 20000; round++) {
        uint8_t *bytes = malloc(48);
        size_t length = 1 + (size_t)round % 48;
        for (size_t i = 0; i < length; i++) {
            random = random * 1103515245 + 12345;
            bytes[48 - length + i] = (uint8_t)(random >> 16) & (round % 2 == 0 ? 0xff : 0x1f);
        }
        read_any((struct grpc_bytes){bytes + 48 - length, length});
        free(bytes);
    }
}

/* The fields of a batch in every order say the same. */
static void test_every_order(void)
{
    static const struct grpc_bytes fields[] = {
        BYTES("\x08\x05"), BYTES("\x12\x04\x07\x01\x01\x05"), BYTES("\x18\x01"), BYTES("\x28\x09"),
        BYTES("\x7a\x02xy")};
    int order[5];

    for (int number = 0; number < 5 * 5 * 5 * 5 * 5; number++) {
        uint8_t bytes[64];
        size_t length = 0;
        unsigned seen = 0;
        struct page_batch batch;
        for (int i = 0, rest = number; i < 5; i++, rest /= 5) {
            order[i] = rest % 5;
            seen |= 1U << order[i];
        }
        if (seen != 31)
            continue;
        for (int i = 0; i < 5; i++) {
            memcpy(bytes + length, fields[order[i]].data, fields[order[i]].length);
            length += fields[order[i]].length;
        }
        CHECK_EQ(read_page_batch((struct grpc_bytes){bytes, length}, runs, RUNS_MAX, &batch), 0);
        CHECK(batch.as_of == 5 && batch.run_count == 1 && runs[0].first_page == 7 && batch.encoding == 1);
        CHECK(batch.heartbeat == 9 && is_text(batch.data, "xy"));
    }
}

static void test_last_scalar_counts(void)
{
    struct get_page_request request;

    CHECK_EQ(read_get_page_request(BYTES("\x10\x05\x0a\x01x\x10\x06\x0a\x02yz"), &request), 0);
    CHECK_EQ(request.page, 6);
    CHECK(is_text(request.image, "yz"));
}

/* Unknown numbers of all types, and known numbers of another type, are passed over. */
static void test_unknown_fields(void)
{
    struct get_page_request request;

    CHECK_EQ(read_get_page_request(BYTES("\xa0\x06\x01\xa1\x06\x01\x02\x03\x04\x05\x06\x07\x08\xa5\x06\x01\x02\x03\x04"
                                         "\xa2\x06\x03xyz\x10\x07"), &request), 0);
    CHECK_EQ(request.page, 7);
    CHECK_EQ(read_get_page_request(BYTES("\x12\x01\x09\x08\x05\x0a\x01x"), &request), 0);
    CHECK_EQ(request.page, 0);
    CHECK(is_text(request.image, "x"));
}

static int fetch(struct grpc_bytes message, uint32_t *run_count)
{
    struct fetch_request request;
    int rc = read_fetch_request(message, runs, RUNS_MAX, &request);

    *run_count = request.run_count;
    return rc;
}

static void test_packed_and_unpacked(void)
{
    static const struct grpc_bytes same[] = {
        BYTES("\x1a\x04\x01\x02\x08\x01"), BYTES("\x18\x01\x18\x02\x18\x08\x18\x01"),
        BYTES("\x1a\x01\x01\x1a\x03\x02\x08\x01"), BYTES("\x18\x01\x1a\x02\x02\x08\x1a\x00\x18\x01")};
    uint32_t run_count;

    for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
        CHECK_EQ(fetch(same[i], &run_count), 0);
        CHECK_EQ(run_count, 2);
        CHECK(runs[0].first_page == 1 && runs[0].page_count == 2 && runs[1].first_page == 8 && runs[1].page_count == 1);
    }
}

static void test_bad_runs(void)
{
    static const struct grpc_bytes bad[] = {
        BYTES("\x1a\x01\x01"),                         /* half a pair */
        BYTES("\x1a\x02\x01\x00"),                     /* count 0 */
        BYTES("\x1a\x04\x01\x02\x02\x01"),             /* overlap */
        BYTES("\x1a\x04\x02\x01\x01\x02"),             /* the other way round */
        BYTES("\x1a\x04\x05\x01\x05\x01"),             /* the same */
        BYTES("\x1a\x06\x05\x02\x01\x0a\x14\x01"),     /* one within another, out of order */
        BYTES("\x1a\x0a\x01\x01\x03\x01\x05\x01\x07\x01\x09\x01"),         /* too many: 5 */
        BYTES("\x1a\x0b\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01"),     /* past 2^64 */
        BYTES("\x1a\x0b\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),     /* wraps */
        BYTES("\x1a\x02\x01\x80"),                     /* a varint without end, within the list */
    };
    uint32_t run_count;

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK_EQ(fetch(bad[i], &run_count), BAD);
    CHECK_EQ(fetch(BYTES("\x1a\x08\x07\x01\x05\x01\x03\x01\x01\x01"), &run_count), 0); /* backwards is good */
    CHECK_EQ(run_count, 4);
    CHECK_EQ(fetch(BYTES("\x1a\x06\x05\x02\x01\x04\x07\x01"), &run_count), 0); /* so is touching */
    CHECK_EQ(run_count, 3);
}

/* Many runs, backwards: found out at once, and so is one that overlaps. */
static void test_many_runs(void)
{
    static struct run many[PF_LIMIT_RUNS_MAX + 1], back[PF_LIMIT_RUNS_MAX + 1];
    static uint8_t bytes[PF_LIMIT_RUNS_MAX * 24];
    struct fetch_request request = {.runs = many, .run_count = PF_LIMIT_RUNS_MAX}, got;
    size_t length;

    for (uint32_t i = 0; i <= PF_LIMIT_RUNS_MAX; i++)
        many[i] = (struct run){.first_page = (uint64_t)(i * 2467 % 4099) * 10, .page_count = 10};
    length = write_fetch_request(&request, bytes, sizeof(bytes));
    CHECK_EQ(read_fetch_request((struct grpc_bytes){bytes, length}, back, PF_LIMIT_RUNS_MAX, &got), 0);
    CHECK_EQ(got.run_count, PF_LIMIT_RUNS_MAX);
    CHECK(memcmp(many, back, PF_LIMIT_RUNS_MAX * sizeof(many[0])) == 0);
    CHECK_EQ(read_fetch_request((struct grpc_bytes){bytes, length}, back, PF_LIMIT_RUNS_MAX - 1, &got), BAD);
    many[2000].page_count = 11;
    length = write_fetch_request(&request, bytes, sizeof(bytes));
    CHECK_EQ(read_fetch_request((struct grpc_bytes){bytes, length}, back, PF_LIMIT_RUNS_MAX, &got), BAD);
    many[2000].page_count = 10;
    request.run_count++; /* beyond the limit, whatever room the caller has */
    length = write_fetch_request(&request, bytes, sizeof(bytes));
    CHECK_EQ(read_fetch_request((struct grpc_bytes){bytes, length}, back, PF_LIMIT_RUNS_MAX + 1, &got), BAD);
}

static void test_runs_inside(void)
{
    const struct run some[] = {{.first_page = 0, .page_count = 10}, {.first_page = 90, .page_count = 10}};
    const struct run wide = {.first_page = 1, .page_count = UINT64_MAX};

    CHECK(runs_inside(some, 2, 100));
    CHECK(!runs_inside(some, 2, 99));
    CHECK(runs_inside(some, 1, 10));
    CHECK(runs_inside(NULL, 0, 0));
    CHECK(!runs_inside(&wide, 1, 100));
}

static void test_no_room(void)
{
    struct get_page_request request = {.image = BYTES("web-1"), .page = 300};
    uint8_t bytes[10];

    for (size_t capacity = 0; capacity < 10; capacity++)
        CHECK_EQ(write_get_page_request(&request, bytes, capacity), 0);
    CHECK_EQ(write_get_page_request(&request, bytes, 10), 10);
}

int main(void)
{
    RUN(test_describe_request);
    RUN(test_describe_response);
    RUN(test_too_many_regions);
    RUN(test_get_page_request);
    RUN(test_fetch_request);
    RUN(test_stream_request);
    RUN(test_page_batch);
    RUN(test_head_max);
    RUN(test_truncated);
    RUN(test_random_bytes);
    RUN(test_every_order);
    RUN(test_last_scalar_counts);
    RUN(test_unknown_fields);
    RUN(test_packed_and_unpacked);
    RUN(test_bad_runs);
    RUN(test_many_runs);
    RUN(test_runs_inside);
    RUN(test_no_room);
    return check_done();
}
