/* SPDX-License-Identifier: Apache-2.0 */
/* The urgent connection: see urgent.h. */
#include "urgent.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../rpc/payload.h"
#include "answers.h"
#include "reasons.h"

#define MS_NS UINT64_C(1000000)
#define SILENT_NS (PF_LIMIT_LINK_SILENT_MS * MS_NS)
#define DESCRIBE_NS (PF_LIMIT_DIAL_TIMEOUT_MS * MS_NS) /* a server that says nothing is not there */
#define ENCODINGS (UINT32_C(1) << PF_ENCODING_IDENTITY)

void urgent_drop_soon(struct urgent *urgent, const char *why)
{
    if (urgent->drop_why[0] == 0)
        snprintf(urgent->drop_why, sizeof(urgent->drop_why), "%s", why);
}

/* Nothing counts as asked any more: the engine names all that is WANTED. */
static void ask_anew(struct urgent *urgent)
{
    urgent->in_flight = 0;
    urgent->ask_taken = urgent->ask_put;
    urgent->overflowed = false;
    urgent->again_ns = 0;
    urgent->answered_ns = *urgent->now_ns;
    engine_asks_lost(urgent->engine);
}

void urgent_refuse(struct urgent *urgent, uint32_t reason, const char *why)
{
    urgent->events->refused(urgent->owner, reason, why);
    urgent_drop_soon(urgent, why);
}

/* ---------------------------------------------------------------------------------------------- describe */

/* Regions must be the same: image offsets mean nothing else. */
static bool same_regions(const struct urgent *urgent, const struct describe_response *response, char *why, size_t size)
{
    const struct regions *regions = urgent->regions;
    bool same = response->page_count == regions->page_count && response->region_count == regions->count;

    for (uint32_t i = 0; same && i < regions->count; i++)
        same = response->region_pages[i] == regions->by_page[i].page_count;
    if (!same) {
        int used = snprintf(why, size, "the image has %" PRIu64 " pages in %u regions, the VM %" PRIu64
                            " in %u: give the VM the memory size of the image, or serve it with --regions",
                            response->page_count, response->region_count, regions->page_count, regions->count);
        for (uint32_t i = 0; i < regions->count && used > 0 && (size_t)used < size; i++)
            used += snprintf(why + used, size - (size_t)used, "%s%" PRIu64 "K", i == 0 ? " NAME=" : ",",
                             regions->by_page[i].page_count * (PAGE_BYTES / 1024));
    }
    return same;
}

/* Pages of a map that never changes any more: an image that never does, or a live one that was frozen. */
static bool has_moved_on(const struct urgent *urgent, const struct describe_response *response)
{
    if (urgent->live)
        return urgent->final_as_of != 0 && response->as_of != urgent->final_as_of;
    return response->as_of > urgent->as_of;
}

static bool describes_ours(const struct urgent *urgent, const struct describe_response *response, char *why,
                           size_t size)
{
    bool fits = false;

    if (response->page_bytes != PAGE_BYTES || response->unit_pages != 1)
        snprintf(why, size, "the image has pages of %u bytes in units of %u: only 4096 in units of 1 can be served",
                 response->page_bytes, response->unit_pages);
    else if (response->as_of == 0 || response->as_of >= PAYLOAD_VERSION_END || response->content_id == 0)
        snprintf(why, size, "the server's description lacks a content id, or a version within its bounds");
    else if (urgent->content_id != 0 && response->live != urgent->live)
        snprintf(why, size, "the server's image is %s now", response->live ? "live" : "no VM that runs");
    else if (urgent->content_id != 0 && response->content_id != urgent->content_id)
        snprintf(why, size, "the server's image has other bytes now: content id %016" PRIx64 ", not %016" PRIx64,
                 response->content_id, urgent->content_id);
    else if (urgent->content_id != 0 && has_moved_on(urgent, response))
        snprintf(why, size, "the server's image has %s pages now, as of %016" PRIx64 ", not %016" PRIx64,
                 urgent->live ? "other" : "newer", response->as_of,
                 urgent->live ? urgent->final_as_of : urgent->as_of);
    else
        fits = same_regions(urgent, response, why, size);
    return fits;
}

static uint32_t asks_allowed(uint32_t by_server)
{
    uint32_t most = by_server < PF_LIMIT_WANTED_PAGES_MAX ? by_server : PF_LIMIT_WANTED_PAGES_MAX;

    return most > 0 ? most : 1;
}

static int described(struct urgent *urgent, struct grpc_bytes message)
{
    struct describe_response response;
    char why[GRPC_TEXT_BYTES];
    int rc = read_describe_response(message, &response);

    if (rc != 0)
        return rc;
    urgent->waiting_ns = 0;
    if (response.live && urgent->who == NULL) {
        urgent_refuse(urgent, PF_REASON_UNSUPPORTED, "the image is live: it can only be moved in a session");
    } else if (!describes_ours(urgent, &response, why, sizeof(why))) {
        urgent_refuse(urgent, PF_REASON_MISMATCH, why);
    } else {
        urgent->as_of = urgent->content_id == 0 ? response.as_of : urgent->as_of;
        urgent->live = response.live;
        urgent->content_id = response.content_id;
        urgent->wanted_pages_max = asks_allowed(response.wanted_pages_max);
        urgent->named = false;
        urgent->batch_rejected = false;
        urgent->fetch = grpc_start_as(conn_session(urgent->link.conn), PF_PATH_FETCH_PAGES, urgent->who, NULL);
        if (urgent->fetch == NULL) {
            urgent_drop_soon(urgent, "the connection takes no calls");
        } else {
            urgent->attached = true;
            urgent->heartbeat_due_ns = *urgent->now_ns + PF_LIMIT_HEARTBEAT_INTERVAL_MS * MS_NS;
            urgent->events->attached(urgent->owner);
            ask_anew(urgent);
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------- fetch */

/* Takes pages off the ring into runs; neighbours join. */
static uint32_t gather_asks(struct urgent *urgent, struct run *runs)
{
    uint32_t count = 0;
    uint64_t pages = 0;

    while (urgent->ask_taken != urgent->ask_put && urgent->in_flight < urgent->wanted_pages_max) {
        uint64_t page = urgent->asks[urgent->ask_taken % URGENT_ASKS_MAX];
        bool repeated = false;
        for (uint32_t i = 0; i < count; i++)
            repeated |= page - runs[i].first_page < runs[i].page_count;
        if (repeated) { /* runs of one request never overlap */
            urgent->ask_taken++;
            continue;
        }
        if (count > 0 && page == runs[count - 1].first_page + runs[count - 1].page_count)
            runs[count - 1].page_count++;
        else if (count < URGENT_REQUEST_RUNS_MAX)
            runs[count++] = (struct run){.first_page = page, .page_count = 1};
        else
            break;
        urgent->ask_taken++;
        urgent->in_flight++;
        pages++;
    }
    if (pages > 0)
        stats_observe(urgent->stats, STATS_ask_batch_pages, pages);
    return count;
}

static enum grpc_pulled pull_fetch(struct urgent *urgent, struct grpc_bytes *message)
{
    struct run runs[URGENT_REQUEST_RUNS_MAX];
    struct fetch_request request = {.runs = runs};
    enum grpc_pulled pulled = GRPC_PULLED_NOTHING;

    if (!urgent->named) {
        request.image = (struct grpc_bytes){(const uint8_t *)urgent->image, strlen(urgent->image)};
        request.encodings = ENCODINGS;
    }
    request.run_count = gather_asks(urgent, runs);
    if (*urgent->now_ns >= urgent->heartbeat_due_ns) {
        request.heartbeat = ++urgent->heartbeat_sent;
        urgent->heartbeat_due_ns = *urgent->now_ns + PF_LIMIT_HEARTBEAT_INTERVAL_MS * MS_NS;
    }
    if (!urgent->named || request.run_count > 0 || request.heartbeat != 0) {
        message->data = urgent->request;
        message->length = write_fetch_request(&request, urgent->request, sizeof(urgent->request));
        urgent->named = true;
        pulled = GRPC_PULLED_MESSAGE;
    }
    return pulled;
}

/* -------------------------------------------------------------------------------- calls, as grpc.h wants them */

static enum grpc_pulled on_pull(void *owner, struct grpc_call *call, struct grpc_bytes *message)
{
    struct urgent *urgent = owner;
    struct describe_request request = {
        .image = {(const uint8_t *)urgent->image, strlen(urgent->image)},
    };
    enum grpc_pulled pulled = GRPC_PULLED_LAST;

    if (call == urgent->fetch) {
        pulled = pull_fetch(urgent, message);
    } else if (call == urgent->round.call) {
        pulled = round_pull(&urgent->round, message);
    } else if (!urgent->describe_sent) {
        message->data = urgent->request;
        message->length = write_describe_request(&request, urgent->request, sizeof(urgent->request));
        urgent->describe_sent = true;
        pulled = GRPC_PULLED_MESSAGE;
    }
    return pulled;
}

/* One call's at a time, and the map's: what DescribeImage would add to its answer has no room. */
static uint8_t *on_gather(void *owner, struct grpc_call *call, size_t length)
{
    struct urgent *urgent = owner;
    bool has_room = length <= PF_LIMIT_BATCH_MESSAGE_BYTES_MAX && (urgent->fetch == NULL || call == urgent->fetch);

    if (call == urgent->round.call)
        return length <= PF_LIMIT_BATCH_MESSAGE_BYTES_MAX ? urgent->round.gathered : NULL;
    return has_room ? urgent->gathered : NULL;
}

static int on_message(void *owner, struct grpc_call *call, struct grpc_bytes message)
{
    struct urgent *urgent = owner;
    int rc = 0;

    if (call == urgent->fetch)
        answers_take(urgent, message);
    else if (call == urgent->round.call)
        rc = round_message(&urgent->round, message, urgent->content_id, urgent->stats, *urgent->now_ns);
    else if (urgent->fetch == NULL)
        rc = described(urgent, message);
    else /* DescribeImage has one answer */
        urgent_drop_soon(urgent, "DescribeImage was answered twice");
    return rc;
}

static void on_ended(void *owner, struct grpc_call *call, const struct grpc_status *status)
{
    struct urgent *urgent = owner;
    char why[GRPC_TEXT_BYTES];
    bool fetch = call == urgent->fetch;

    if (call == urgent->round.call) {
        if (round_over(&urgent->round, status, *urgent->now_ns))
            urgent_drop_soon(urgent, "two maps in a row had a wrong digest, or were none");
        return;
    }
    if (call == urgent->describe)
        urgent->describe = NULL;
    if (fetch)
        urgent->fetch = NULL;
    if (!fetch && status->code == GRPC_OK) {
        if (urgent->fetch == NULL)
            urgent_drop_soon(urgent, "DescribeImage ended without an answer");
        return;
    }
    if (status->reason != 0) /* a page server of our contract: its own words say it best */
        snprintf(why, sizeof(why), "%.180s", status->message);
    else
        snprintf(why, sizeof(why), "%s ended with status %u: %.120s", fetch ? "FetchPages" : "DescribeImage",
                 status->code, status->message);
    if (reason_is_final(status))
        urgent_refuse(urgent, reason_of_refusal(status), why);
    else
        urgent_drop_soon(urgent, why);
}

static const struct grpc_owner urgent_calls = {
    .gather = on_gather,
    .message = on_message,
    .pull = on_pull,
    .ended = on_ended,
};

static void on_up(void *owner)
{
    struct urgent *urgent = owner;

    if (urgent->gathered == NULL)
        urgent->gathered = malloc(PF_LIMIT_BATCH_MESSAGE_BYTES_MAX);
    urgent->drop_why[0] = 0;
    urgent->describe_sent = false;
    urgent->waiting_ns = *urgent->now_ns;
    urgent->describe = grpc_start_as(conn_session(urgent->link.conn), PF_PATH_DESCRIBE_IMAGE, urgent->who, NULL);
    if (urgent->gathered == NULL)
        urgent_drop_soon(urgent, "no memory for its answers");
    else if (urgent->describe == NULL)
        urgent_drop_soon(urgent, "the connection takes no calls");
}

static void on_down(void *owner, const char *why)
{
    struct urgent *urgent = owner;

    urgent->attached = false;
    urgent->waiting_ns = 0;
    urgent->again_ns = 0;
    urgent->events->unreachable(urgent->owner, PF_REASON_GOING_AWAY, why);
    urgent->drop_why[0] = 0; /* only now: `why` may be this very text */
}

static const struct link_events urgent_link_events = {.up = on_up, .down = on_down};

/* ------------------------------------------------------------------------------------------ the owner's side */

void urgent_start(struct urgent *urgent, const struct urgent_options *options)
{
    struct link_options link = {
        .address = options->address,
        .calls = &urgent_calls,
        .events = &urgent_link_events,
        .owner = urgent,
        .stream_window_bytes = PF_LIMIT_CONNECTION_WINDOW_BYTES,
        .connection_window_bytes = PF_LIMIT_CONNECTION_WINDOW_BYTES,
        .stats = options->stats,
        .epoll_fd = options->epoll_fd,
        .epoll_tag = options->epoll_tag,
    };

    urgent->engine = options->engine;
    urgent->regions = options->regions;
    urgent->image = options->image;
    urgent->who = options->who;
    urgent->events = options->events;
    urgent->owner = options->owner;
    urgent->now_ns = options->now_ns;
    urgent->stats = options->stats;
    round_start(&urgent->round, options->engine, options->image);
    link_start(&urgent->link, &link);
}

void urgent_ask(struct urgent *urgent, uint64_t page)
{
    if (!urgent->attached)
        return; /* WANTED in the table: named again when attached */
    if (urgent->ask_put - urgent->ask_taken == URGENT_ASKS_MAX) {
        urgent->overflowed = true;
        return;
    }
    urgent->asks[urgent->ask_put++ % URGENT_ASKS_MAX] = page;
    if (urgent->fetch != NULL)
        grpc_resume(urgent->fetch);
}

bool urgent_agrees(const struct urgent *urgent)
{
    uint8_t ours[MANIFEST_BYTES];

    manifest_digest(urgent->engine->sum, ours);
    return !urgent->manifest_known || memcmp(ours, urgent->manifest, sizeof(ours)) == 0;
}

void urgent_ready(struct urgent *urgent, uint32_t events)
{
    link_ready(&urgent->link, events, *urgent->now_ns);
}

void urgent_doubt(struct urgent *urgent, const char *why)
{
    if (urgent->attached)
        urgent_drop_soon(urgent, why);
}

/* When the silence has become too long; UINT64_MAX: nothing is owed. */
static uint64_t silent_ns(const struct urgent *urgent)
{
    uint64_t patience_ns = urgent->fetch == NULL ? DESCRIBE_NS : SILENT_NS;

    return urgent->waiting_ns != 0 ? urgent->waiting_ns + patience_ns : UINT64_MAX;
}

/*
 * When to ask anew, beside a lost link: after a bad batch; when asks had no room and everything else is answered; or
 * when the count of what is owed keeps asks back (or such a rest) and nothing is answered: then the count is wrong,
 * since two asks of a page may get one answer. Asking again is always allowed.
 */
static uint64_t anew_ns(const struct urgent *urgent)
{
    bool kept_back = urgent->overflowed ||
                     (urgent->ask_put != urgent->ask_taken && urgent->in_flight >= urgent->wanted_pages_max);
    uint64_t next_ns = urgent->again_ns != 0 ? urgent->again_ns : UINT64_MAX;

    if (!urgent->attached)
        next_ns = UINT64_MAX;
    else if (urgent->overflowed && urgent->ask_put == urgent->ask_taken && urgent->in_flight == 0)
        next_ns = 0;
    else if (kept_back && urgent->answered_ns + SILENT_NS < next_ns)
        next_ns = urgent->answered_ns + SILENT_NS;
    return next_ns;
}

void urgent_turn(struct urgent *urgent)
{
    uint64_t now_ns = *urgent->now_ns;

    if (now_ns >= silent_ns(urgent))
        urgent_drop_soon(urgent, "the page server does not answer, though it is connected");
    if (urgent->drop_why[0] != 0)
        link_drop(&urgent->link, urgent->drop_why, now_ns);
    link_tick(&urgent->link, now_ns);
    if (urgent->attached)
        round_call(&urgent->round, conn_session(urgent->link.conn), urgent->who, now_ns);
    link_hold(&urgent->link, round_work(&urgent->round, now_ns), now_ns);
    if (now_ns >= anew_ns(urgent))
        ask_anew(urgent);
    if (urgent->fetch != NULL && now_ns >= urgent->heartbeat_due_ns && urgent->waiting_ns == 0)
        urgent->waiting_ns = now_ns;
    if (urgent->fetch != NULL && (now_ns >= urgent->heartbeat_due_ns || urgent->ask_put != urgent->ask_taken))
        grpc_resume(urgent->fetch);
    link_flush(&urgent->link, now_ns);
}

uint64_t urgent_next_ns(const struct urgent *urgent)
{
    uint64_t next_ns = link_next_ns(&urgent->link), silence_ns = silent_ns(urgent), again_ns = anew_ns(urgent);

    next_ns = silence_ns < next_ns ? silence_ns : next_ns;
    next_ns = again_ns < next_ns ? again_ns : next_ns;
    if (urgent->attached && round_next_ns(&urgent->round) < next_ns)
        next_ns = round_next_ns(&urgent->round);
    /* One that is due already leaves as soon as the socket takes it. */
    if (urgent->fetch != NULL && urgent->heartbeat_due_ns > *urgent->now_ns && urgent->heartbeat_due_ns < next_ns)
        next_ns = urgent->heartbeat_due_ns;
    if (urgent->drop_why[0] != 0)
        next_ns = 0;
    return next_ns;
}

void urgent_close(struct urgent *urgent)
{
    link_close(&urgent->link);
    round_close(&urgent->round);
    free(urgent->gathered);
    urgent->gathered = NULL;
}
