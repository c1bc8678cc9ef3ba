/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PageService's four methods; their rules are in pages.proto. What a request says is checked when it comes;
 * pages are read when the answer can leave.
 *
 * Limits: a request's bytes and runs (rpc/), pages asked and unanswered on one FetchPages call
 * (WANTED_PAGES_MAX, here), calls of one connection (STREAMS_MAX, rpc/), FetchPages calls of a session (gate.c).
 */
#include <string.h>

#include "calls.h"
#include "opening.h"

#define MAP_PAGES_MAX (UINT64_C(1) << 18) /* named in one message of a version map: so a turn stays short */
#define URGENT_RUNS_MAX 64 /* of one answer of FetchPages: 16 pages of bytes, zeros between and beside them */

static struct service *service_of(struct call *call)
{
    return call->connection->worker->service;
}

/* The image that a request names, into the call; 0 or minus a reason, told. */
static int name_image(struct call *call, struct grpc_bytes name)
{
    const char *why = NULL;
    uint32_t reason = gate_image(service_of(call), &call->pass, name, &call->image, &why);

    if (reason != 0)
        return call_refuse(call, reason, why);
    call->order.image = call->image;
    call->order.as_of = atomic_load(&call->image->as_of);
    return 0;
}

static int bad_request(struct call *call)
{
    return call_refuse(call, PF_REASON_BAD_REQUEST, "the request is malformed: its fields, or its runs");
}

static int check_runs(struct call *call, const struct run *runs, uint32_t run_count)
{
    if (!runs_inside(runs, run_count, call->image->page_count))
        return call_refuse(call, PF_REASON_OUT_OF_IMAGE, "a run ends past the end of the image");
    return 0;
}

/* Puts runs that a request asks for behind those that wait. */
static int ask(struct call *call, const struct run *runs, uint32_t run_count)
{
    for (uint32_t i = 0; i < run_count; i++) {
        if (!asks_add(&call->asks, runs[i].first_page, runs[i].page_count))
            return call_refuse(call, PF_REASON_NO_MEMORY, "the server has no memory for this request");
    }
    return 0;
}

/* Its own pages come from a read by this very call; others may have found more. */
static void tell_lost(struct call *call)
{
    atomic_store(&call->image->lost_news, true);
    sessions_ring(&service_of(call)->sessions);
}

/* The next answer, in the call's own memory or in a batch's. NOTHING: no news of what is asked. */
static enum grpc_pulled answer(struct call *call, struct grpc_bytes *message)
{
    struct worker *worker = call->connection->worker;
    bool few = call->order.pages_max == 1 && call->order.runs_max == 1;
    struct reply_space space = {
        .bytes = few ? call->own : call_batch(call),
        .capacity_bytes = few ? sizeof(call->own) : call_batch_bytes(),
        .runs = worker->runs,
    };
    struct reply reply;
    int rc = space.bytes == NULL ? -PF_REASON_NO_MEMORY
                                 : reply_make(&call->order, &call->asks, &space, &worker->stats, &reply);

    if (rc != 0) {
        bool changed = rc == -PF_REASON_MISMATCH;
        call_refuse(call, (uint32_t)-rc, changed ? "the image is not what it was: its file got shorter" : "");
        return GRPC_PULLED_LAST;
    }
    if (reply.lost_pages > 0)
        tell_lost(call);
    if (reply.run_count == 0 && call->begun)
        return GRPC_PULLED_NOTHING;
    call->begun = true;
    *message = reply.message;
    return GRPC_PULLED_MESSAGE;
}

/* What a session's target is told beside pages; the digest of the map at first and whenever it changes. */
static void add_state(struct call *call, struct page_batch *batch)
{
    struct session_state *told = &call->told, now;

    call->news = false;
    if (!gate_state(service_of(call), &call->pass, &now))
        return;
    batch->phase = now.phase;
    batch->cancel_requested = now.cancel_requested;
    if (now.frozen && (!call->begun || !told->frozen ||
                       memcmp(told->manifest_digest, now.manifest_digest, sizeof(now.manifest_digest)) != 0))
        batch->manifest_digest = (struct grpc_bytes){told->manifest_digest, sizeof(told->manifest_digest)};
    *told = now;
}

/* A batch without runs, in the call's own memory. */
static enum grpc_pulled say(struct call *call, uint64_t heartbeat, struct grpc_bytes *message)
{
    struct page_batch batch = {.heartbeat = heartbeat};

    add_state(call, &batch);
    call->order.as_of = batch.as_of = atomic_load(&call->image->as_of);
    message->data = call->own;
    message->length = write_page_batch_head(&batch, call->own, sizeof(call->own));
    call->begun = true;
    return GRPC_PULLED_MESSAGE;
}

/* ------------------------------------------------------------------------------------------ DescribeImage */

static int describe_message(struct call *call, struct grpc_bytes message)
{
    struct describe_request request;

    if (read_describe_request(message, &request) != 0)
        return bad_request(call);
    return name_image(call, request.image);
}

static enum grpc_pulled describe_pull(struct call *call, struct grpc_bytes *message)
{
    const struct image *image = call->image;
    struct describe_response response = {
        .content_id = image->content_id,
        .page_count = image->page_count,
        .page_bytes = PF_LIMIT_PAGE_BYTES,
        .unit_pages = 1,
        .region_count = image->region_count,
        .live = image->live,
        .as_of = image->as_of,
        .batch_bytes_max = PF_LIMIT_BATCH_BYTES_MAX,
        .runs_max = PF_LIMIT_RUNS_MAX,
        .wanted_pages_max = PF_LIMIT_WANTED_PAGES_MAX,
        .urgent_calls_max = PF_LIMIT_URGENT_CALLS_MAX,
        .encodings = UINT32_C(1) << PF_ENCODING_IDENTITY,
    };

    if (call->begun)
        return call_done(call);
    memcpy(response.region_pages, image->region_pages, sizeof(response.region_pages));
    message->data = call->own;
    message->length = write_describe_response(&response, call->own, sizeof(call->own));
    call->begun = true;
    return GRPC_PULLED_MESSAGE;
}

/* ------------------------------------------------------------------------------------------------ GetPage */

static int get_page_message(struct call *call, struct grpc_bytes message)
{
    struct get_page_request request;
    struct run run = {.page_count = 1};
    int rc = read_get_page_request(message, &request);

    if (rc != 0)
        return bad_request(call);
    rc = name_image(call, request.image);
    if (rc != 0)
        return rc;
    run.first_page = request.page;
    rc = check_runs(call, &run, 1);
    if (rc != 0)
        return rc;
    call->order.pages_max = call->order.runs_max = 1;
    stats_add(&call->connection->worker->stats, STATS_asked_pages_total, 1);
    return ask(call, &run, 1);
}

static enum grpc_pulled get_page_pull(struct call *call, struct grpc_bytes *message)
{
    return call->begun ? call_done(call) : answer(call, message);
}

/* --------------------------------------------------------------------------------------------- FetchPages */

static uint64_t oldest_heartbeat(struct call *call)
{
    uint64_t oldest = call->heartbeats[0];

    call->heartbeat_count--;
    memmove(call->heartbeats, call->heartbeats + 1, call->heartbeat_count * sizeof(oldest));
    return oldest;
}

/* The newest are kept: a heartbeat whose echo nobody reads proves nothing any more. */
static void note_heartbeat(struct call *call, uint64_t heartbeat)
{
    if (call->heartbeat_count == CALL_HEARTBEATS)
        oldest_heartbeat(call);
    call->heartbeats[call->heartbeat_count++] = heartbeat;
}

static int fetch_runs(struct call *call, const struct fetch_request *request)
{
    uint64_t pages = 0;
    int rc = check_runs(call, request->runs, request->run_count);

    if (rc != 0)
        return rc;
    for (uint32_t i = 0; i < request->run_count; i++)
        pages += request->runs[i].page_count;
    if (call->asks.pages + pages > PF_LIMIT_WANTED_PAGES_MAX)
        return call_refuse(call, PF_REASON_BUSY, "more pages are asked and unanswered than wanted_pages_max");
    stats_add(&call->connection->worker->stats, STATS_asked_pages_total, pages);
    return ask(call, request->runs, request->run_count);
}

static int fetch_message(struct call *call, struct grpc_bytes message)
{
    struct fetch_request request = {.runs = call->connection->worker->runs};
    int rc = read_fetch_request(message, request.runs, PF_LIMIT_RUNS_MAX, &request);

    if (rc != 0)
        return bad_request(call);
    if (call->image == NULL) /* later messages may name what they like: it is not looked at */
        rc = name_image(call, request.image);
    if (rc == 0)
        rc = fetch_runs(call, &request);
    if (rc != 0)
        return rc;
    if (request.heartbeat != 0)
        note_heartbeat(call, request.heartbeat);
    grpc_resume(call->grpc);
    return 0;
}

static enum grpc_pulled fetch_pull(struct call *call, struct grpc_bytes *message)
{
    if (call->image == NULL && call->half_closed) {
        call_refuse(call, PF_REASON_BAD_REQUEST, "the first message, which names the image, is missing");
        return GRPC_PULLED_LAST;
    }
    if (call->image == NULL)
        return GRPC_PULLED_NOTHING;
    if (!call->begun)
        return say(call, 0, message);
    if (call->heartbeat_count > 0)
        return say(call, oldest_heartbeat(call), message);
    if (call->news)
        return say(call, 0, message);
    if (call->asks.count > 0) {
        bool one = call->asks.pages == 1;
        call->order.as_of = atomic_load_explicit(&call->image->as_of, memory_order_acquire);
        call->order.may_repeat = true;
        call->order.pages_max = one ? 1 : PF_LIMIT_URGENT_BATCH_PAGES_MAX;
        call->order.runs_max = one ? 1 : URGENT_RUNS_MAX;
        return answer(call, message);
    }
    call_release(call);
    if (call->half_closed)
        return call_done(call);
    if (atomic_load_explicit(&service_of(call)->draining, memory_order_relaxed) != 0) {
        call_refuse(call, PF_REASON_GOING_AWAY, "the server drains");
        return GRPC_PULLED_LAST;
    }
    return GRPC_PULLED_NOTHING;
}

/* -------------------------------------------------------------------------------------------- StreamPages */

static int stream_message(struct call *call, struct grpc_bytes message)
{
    struct stream_request request = {.runs = call->connection->worker->runs};
    struct run whole = {0};
    int rc = read_stream_request(message, request.runs, PF_LIMIT_RUNS_MAX, &request);

    if (rc != 0)
        return bad_request(call);
    rc = name_image(call, request.image);
    if (rc == 0)
        rc = check_runs(call, request.runs, request.run_count);
    if (rc != 0)
        return rc;
    if (request.since_version > call->order.as_of)
        return call_refuse(call, PF_REASON_MISMATCH, "since_version is newer than this image");
    call->order.since_version = request.since_version;
    call->order.versions_only = request.versions_only;
    call->order.pages_max = request.versions_only ? 1 : CALL_BATCH_PAGES;
    call->order.runs_max = request.versions_only ? PF_LIMIT_RUNS_MAX : CALL_BATCH_RUNS;
    call->order.named_pages_max = MAP_PAGES_MAX;
    whole.page_count = call->image->page_count;
    rc = request.run_count == 0 ? ask(call, &whole, 1) : ask(call, request.runs, request.run_count);
    return rc == 0 && request.open_round ? opening_begin(call) : rc;
}

static enum grpc_pulled stream_pull(struct call *call, struct grpc_bytes *message)
{
    enum grpc_pulled pulled = GRPC_PULLED_NOTHING;

    if (call->round != 0) /* its round is not settled yet */
        return pulled;
    if (!call->begun || call->asks.count > 0)
        pulled = answer(call, message);
    return pulled == GRPC_PULLED_NOTHING ? call_done(call) : pulled;
}

/* ---------------------------------------------------------------------------------------------- the table */

static const struct method methods[] = {
    {PF_PATH_DESCRIBE_IMAGE, GATE_LOOK, false, describe_message, describe_pull},
    {PF_PATH_GET_PAGE, GATE_PAGES, false, get_page_message, get_page_pull},
    {PF_PATH_FETCH_PAGES, GATE_ATTACH, true, fetch_message, fetch_pull},
    {PF_PATH_STREAM_PAGES, GATE_PAGES, false, stream_message, stream_pull},
};

void methods_look_up(struct call *call)
{
    struct session_state now, *told = &call->told;

    if (call->pass.urgent == 0 || !call->begun || !gate_state(service_of(call), &call->pass, &now))
        return;
    if (now.phase != told->phase || now.cancel_requested != told->cancel_requested || now.frozen != told->frozen ||
        memcmp(now.manifest_digest, told->manifest_digest, sizeof(now.manifest_digest)) != 0) {
        call->news = true;
        grpc_resume(call->grpc);
    }
}

const struct method *methods_find(struct grpc_bytes path)
{
    return method_of(methods, sizeof(methods) / sizeof(methods[0]), path);
}
