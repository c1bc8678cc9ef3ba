/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Protobuf messages: every reader of rpc/messages.h on arbitrary bytes. What is read must lie within the message, obey
 * the rules of the header, and come back the same when it is written and read once more.
 *
 * Input: a byte that chooses the reader and how many runs there is room for, then the message.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"
#include "gen/contract.h"
#include "rpc/messages.h"
#include "rpc/payload.h"

#define READERS 6
#define PAGES 1000
#define LONGEST 10 /* bytes of a varint */

static const uint32_t room_for[] = {PF_LIMIT_RUNS_MAX, 0, 1, 3};

/* One message and its runs, each in memory of just its size: a byte too far is seen. */
struct subject {
    struct grpc_bytes message;
    struct run *runs;
    uint32_t runs_max;
};

static void check_inside(const struct subject *subject, struct grpc_bytes bytes)
{
    const uint8_t *end = subject->message.data + subject->message.length;

    fuzz_check(bytes.length == 0 || (bytes.data >= subject->message.data && bytes.length <= (size_t)(end - bytes.data)));
}

static void check_runs(const struct subject *subject, const struct run *runs, uint32_t count, bool in_request)
{
    fuzz_check(runs == subject->runs && count <= subject->runs_max);
    for (uint32_t i = 0; i < count; i++) {
        fuzz_check(runs[i].page_count > 0 && runs[i].first_page <= UINT64_MAX - runs[i].page_count);
        fuzz_check(!in_request || (runs[i].kind == 0 && runs[i].version == 0));
        for (uint32_t j = 0; j < i && count <= 64; j++)
            fuzz_check(runs[i].first_page >= runs[j].first_page + runs[j].page_count ||
                       runs[j].first_page >= runs[i].first_page + runs[i].page_count);
        if (runs_inside(runs, count, PAGES))
            fuzz_check(runs[i].first_page + runs[i].page_count <= PAGES);
    }
}

static void check_same_bytes(struct grpc_bytes a, struct grpc_bytes b)
{
    fuzz_check(a.length == b.length && (a.length == 0 || memcmp(a.data, b.data, a.length) == 0));
}

static void check_same_runs(const struct run *a, uint32_t a_count, const struct run *b, uint32_t b_count)
{
    fuzz_check(a_count == b_count && (a_count == 0 || memcmp(a, b, a_count * sizeof(*a)) == 0));
}

/* Where it is written: more than any message with so many runs and bytes can need. */
static uint8_t *space_for(size_t bytes, uint32_t run_count, size_t *capacity)
{
    *capacity = 256 + 64 * LONGEST + bytes + (size_t)run_count * 4 * LONGEST;
    return malloc(*capacity);
}

/* A message that was written: `length` of it, in `space`, which is cut to that. */
static struct subject written(uint8_t *space, size_t length, const struct subject *first)
{
    return (struct subject){
        .message = {fuzz_copy(space, length), length},
        .runs = malloc((size_t)first->runs_max * sizeof(struct run) + 1),
        .runs_max = first->runs_max,
    };
}

static void drop(uint8_t *space, struct subject *again)
{
    free(space);
    free((void *)(uintptr_t)again->message.data);
    free(again->runs);
}

/* ----------------------------------------------------------------------------------------------------- the readers */

static void describe_request(struct subject *subject)
{
    struct describe_request in, out;
    size_t capacity, length;

    if (read_describe_request(subject->message, &in) != 0)
        return;
    check_inside(subject, in.image);
    uint8_t *space = space_for(in.image.length, 0, &capacity);
    length = write_describe_request(&in, space, capacity);
    fuzz_check(length > 0 || in.image.length == 0);
    fuzz_check(length == 0 || write_describe_request(&in, space, length - 1) == 0);
    struct subject again = written(space, length, subject);
    fuzz_check(read_describe_request(again.message, &out) == 0);
    check_same_bytes(in.image, out.image);
    drop(space, &again);
}

static void describe_response(struct subject *subject)
{
    struct describe_response in, out;
    size_t capacity, length;

    if (read_describe_response(subject->message, &in) != 0)
        return;
    fuzz_check(in.region_count <= sizeof(in.region_pages) / sizeof(in.region_pages[0]));
    uint8_t *space = space_for(0, 0, &capacity);
    length = write_describe_response(&in, space, capacity);
    for (size_t less = 1; less < 24 && less <= length; less++)
        fuzz_check(write_describe_response(&in, space, length - less) == 0);
    write_describe_response(&in, space, capacity);
    struct subject again = written(space, length, subject);
    fuzz_check(read_describe_response(again.message, &out) == 0);
    fuzz_check(in.content_id == out.content_id && in.page_count == out.page_count && in.as_of == out.as_of);
    fuzz_check(in.page_bytes == out.page_bytes && in.unit_pages == out.unit_pages && in.live == out.live);
    fuzz_check(in.region_count == out.region_count &&
               memcmp(in.region_pages, out.region_pages, in.region_count * sizeof(in.region_pages[0])) == 0);
    fuzz_check(in.batch_bytes_max == out.batch_bytes_max && in.runs_max == out.runs_max &&
               in.wanted_pages_max == out.wanted_pages_max && in.urgent_calls_max == out.urgent_calls_max &&
               in.encodings == out.encodings);
    drop(space, &again);
}

static void get_page_request(struct subject *subject)
{
    struct get_page_request in, out;
    size_t capacity, length;

    if (read_get_page_request(subject->message, &in) != 0)
        return;
    check_inside(subject, in.image);
    uint8_t *space = space_for(in.image.length, 0, &capacity);
    length = write_get_page_request(&in, space, capacity);
    fuzz_check(length == 0 || write_get_page_request(&in, space, length - 1) == 0);
    write_get_page_request(&in, space, capacity);
    struct subject again = written(space, length, subject);
    fuzz_check(read_get_page_request(again.message, &out) == 0);
    check_same_bytes(in.image, out.image);
    fuzz_check(in.page == out.page);
    drop(space, &again);
}

static void fetch_request(struct subject *subject)
{
    struct fetch_request in, out;
    size_t capacity, length;

    if (read_fetch_request(subject->message, subject->runs, subject->runs_max, &in) != 0)
        return;
    check_inside(subject, in.image);
    check_runs(subject, in.runs, in.run_count, true);
    uint8_t *space = space_for(in.image.length, in.run_count, &capacity);
    length = write_fetch_request(&in, space, capacity);
    struct subject again = written(space, length, subject);
    fuzz_check(read_fetch_request(again.message, again.runs, again.runs_max, &out) == 0);
    check_same_bytes(in.image, out.image);
    check_same_runs(in.runs, in.run_count, out.runs, out.run_count);
    fuzz_check(in.encodings == out.encodings && in.heartbeat == out.heartbeat);
    drop(space, &again);
}

static void stream_request(struct subject *subject)
{
    struct stream_request in, out;
    size_t capacity, length;

    if (read_stream_request(subject->message, subject->runs, subject->runs_max, &in) != 0)
        return;
    check_inside(subject, in.image);
    check_runs(subject, in.runs, in.run_count, true);
    uint8_t *space = space_for(in.image.length, in.run_count, &capacity);
    length = write_stream_request(&in, space, capacity);
    struct subject again = written(space, length, subject);
    fuzz_check(read_stream_request(again.message, again.runs, again.runs_max, &out) == 0);
    check_same_bytes(in.image, out.image);
    check_same_runs(in.runs, in.run_count, out.runs, out.run_count);
    fuzz_check(in.since_version == out.since_version && in.versions_only == out.versions_only &&
               in.open_round == out.open_round && in.encodings == out.encodings);
    drop(space, &again);
}

/* As it stands, and with the digest that it should have. */
static void check_payload(struct page_batch *batch)
{
    uint64_t data_pages = UINT64_MAX;

    for (int mended = 0; mended < 2; mended++) {
        int rc = payload_check(1, batch, &data_pages);
        fuzz_check(rc == 0 || rc == -PF_REASON_BAD_REQUEST || (rc == -PF_REASON_MISMATCH && mended == 0));
        fuzz_check(rc != 0 || data_pages * PF_LIMIT_PAGE_BYTES == batch->data.length);
        if (rc == 0 && data_pages > 0 && payload_page_is_zero(batch->data.data))
            fuzz_check(batch->data.data[0] == 0 && batch->data.data[PF_LIMIT_PAGE_BYTES - 1] == 0);
        batch->digest = payload_digest(1, batch->runs, batch->run_count, batch->data);
    }
}

static void page_batch(struct subject *subject)
{
    struct page_batch in, out;
    size_t capacity, length;

    if (read_page_batch(subject->message, subject->runs, subject->runs_max, &in) != 0)
        return;
    check_inside(subject, in.manifest_digest);
    check_inside(subject, in.data);
    check_runs(subject, in.runs, in.run_count, false);
    uint8_t *space = space_for(in.manifest_digest.length + in.data.length, in.run_count, &capacity);
    length = write_page_batch_head(&in, space, capacity);
    fuzz_check(length <= page_batch_head_max(in.run_count) + in.manifest_digest.length);
    if (in.data.length > 0)
        memcpy(space + length, in.data.data, in.data.length);
    struct subject again = written(space, length + in.data.length, subject);
    fuzz_check(read_page_batch(again.message, again.runs, again.runs_max, &out) == 0);
    check_same_bytes(in.manifest_digest, out.manifest_digest);
    check_same_bytes(in.data, out.data);
    check_same_runs(in.runs, in.run_count, out.runs, out.run_count);
    fuzz_check(in.as_of == out.as_of && in.encoding == out.encoding && in.digest == out.digest &&
               in.heartbeat == out.heartbeat && in.phase == out.phase && in.cancel_requested == out.cancel_requested);
    drop(space, &again);
    check_payload(&in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static void (*const readers[READERS])(struct subject *) = {describe_request, describe_response, get_page_request,
                                                              fetch_request,    stream_request,    page_batch};
    struct subject subject;

    if (size == 0)
        return 0;
    subject.message = (struct grpc_bytes){fuzz_copy(data + 1, size - 1), size - 1};
    subject.runs_max = room_for[data[0] / READERS % (sizeof(room_for) / sizeof(room_for[0]))];
    subject.runs = malloc((size_t)subject.runs_max * sizeof(struct run) + 1);
    readers[data[0] % READERS](&subject);
    free(subject.runs);
    free((void *)(uintptr_t)subject.message.data);
    return 0;
}
