/* SPDX-License-Identifier: Apache-2.0 */
/* The map of a live image: see round.h. */
#include "round.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../rpc/payload.h"
#include "reasons.h"

#define MS_NS UINT64_C(1000000)
#define AGAIN_MIN_NS (PF_LIMIT_ASK_AGAIN_MIN_MS * MS_NS)
#define AGAIN_MAX_NS (PF_LIMIT_ASK_AGAIN_MAX_MS * MS_NS)
#define SILENT_NS (3 * PF_LIMIT_HEARTBEAT_TIMEOUT_MS * MS_NS) /* settling a round of a huge VM takes a while */
#define SLICE_PAGES UINT64_C(16384) /* about half a millisecond */
#define REJECTIONS_MAX 2

/* A round has a number, from 1 on, in each incarnation. */
static bool has_round(uint64_t version)
{
    return (uint32_t)version != 0;
}

static void decide(struct round *round, enum round_outcome outcome, uint32_t reason, const char *why)
{
    round->ended = (struct round_outcome_of){
        .outcome = outcome,
        .frozen = outcome == ROUND_READ && !round->open_first,
        .as_of = round->as_of,
        .newer_pages = round->newer_pages,
        .reason = reason,
    };
    snprintf(round->ended.why, sizeof(round->ended.why), "%s", why);
    round->complete = false;
    round->run_count = 0;
}

void round_refuse(struct round *round, uint32_t reason, const char *why)
{
    decide(round, ROUND_REFUSED, reason, why);
}

/* ------------------------------------------------------------------------------------------------------- the work */

/* Raises the floor of at most `pages` pages of the run that it has come to; returns of how many. */
static uint64_t apply_run(struct round *round, uint64_t pages, uint64_t now_ns)
{
    const struct run *run = &round->runs[round->run_at];
    struct engine_news news = {
        .kind = ENGINE_FLOOR,
        .first_page = run->first_page + round->run_pages,
        .page_count = run->page_count - round->run_pages < pages ? run->page_count - round->run_pages : pages,
        .version = run->version,
    };

    round->newer_pages += engine_news(round->engine, &news, now_ns);
    if (run->kind == PF_RUN_KIND_ZERO || run->kind == PF_RUN_KIND_POISON) {
        news.kind = run->kind == PF_RUN_KIND_ZERO ? ENGINE_ZEROS : ENGINE_POISON;
        engine_news(round->engine, &news, now_ns);
    }
    round->run_pages += news.page_count;
    if (round->run_pages == run->page_count) {
        round->run_pages = 0;
        round->run_at++;
    }
    return news.page_count;
}

/* All that there is has been read and applied. */
static void finish(struct round *round)
{
    bool whole = round->since != 0 || round->named_pages == round->engine->table->page_count;

    if (!has_round(round->as_of)) {
        round_refuse(round, PF_REASON_WRONG_PHASE, "the server has not settled a round yet");
    } else if (round->as_of < round->since) {
        round_refuse(round, PF_REASON_MISMATCH, "the server's map is older than the one it has told before");
    } else if (!whole) {
        round_refuse(round, PF_REASON_MISMATCH, "the server's map leaves out pages that were never named");
    } else {
        round->since = round->as_of;
        decide(round, ROUND_READ, 0, "");
    }
}

bool round_work(struct round *round, uint64_t now_ns)
{
    uint64_t pages = 0;

    while (round->run_at < round->run_count && pages < SLICE_PAGES)
        pages += apply_run(round, SLICE_PAGES - pages, now_ns);
    if (round->complete && !round_is_working(round))
        finish(round);
    return round_is_working(round);
}

bool round_is_working(const struct round *round)
{
    return round->run_at < round->run_count;
}

/* ------------------------------------------------------------------------------------------------------- the call */

static void again(struct round *round, uint64_t wait_ns, uint64_t now_ns)
{
    round->delay_ns = round->delay_ns == 0 ? AGAIN_MIN_NS : 2 * round->delay_ns;
    round->delay_ns = round->delay_ns < AGAIN_MAX_NS ? round->delay_ns : AGAIN_MAX_NS;
    round->due_ns = now_ns + (wait_ns != 0 ? wait_ns : round->delay_ns);
    round->run_count = 0;
}

static bool has_memory(struct round *round)
{
    if (round->runs == NULL)
        round->runs = malloc(PF_LIMIT_RUNS_MAX * sizeof(*round->runs));
    if (round->gathered == NULL)
        round->gathered = malloc(PF_LIMIT_BATCH_MESSAGE_BYTES_MAX);
    return round->runs != NULL && round->gathered != NULL;
}

void round_call(struct round *round, struct grpc_session *session, const struct grpc_headers *who, uint64_t now_ns)
{
    if (round->call != NULL && now_ns >= round->heard_ns + SILENT_NS)
        grpc_cancel(round->call);
    if (!round->wanted || round->ended.outcome != ROUND_UNDECIDED || round->complete || round->call != NULL ||
        now_ns < round->due_ns)
        return;
    round->named = round->rejected = false;
    round->as_of = round->next_page = round->named_pages = 0;
    round->run_count = round->run_at = 0;
    round->run_pages = 0;
    round->heard_ns = now_ns;
    if (has_memory(round))
        round->call = grpc_start_as(session, PF_PATH_STREAM_PAGES, who, NULL);
    if (round->call == NULL)
        again(round, 0, now_ns);
}

enum grpc_pulled round_pull(struct round *round, struct grpc_bytes *message)
{
    struct stream_request request = {
        .image = {(const uint8_t *)round->image, strlen(round->image)},
        .since_version = round->since,
        .versions_only = true,
        .open_round = round->open_first,
    };

    if (round->named)
        return GRPC_PULLED_LAST;
    round->named = true;
    message->data = round->request;
    message->length = write_stream_request(&request, round->request, sizeof(round->request));
    return GRPC_PULLED_MESSAGE;
}

/* Is it part of such a map, and the next one? */
static int check_map(struct round *round, const struct page_batch *batch, uint64_t content_id)
{
    uint64_t data_pages = 0;
    int rc = batch->run_count > 0 ? payload_check(content_id, batch, &data_pages) : 0;

    if (rc == 0 && !runs_inside(batch->runs, batch->run_count, round->engine->table->page_count))
        rc = -PF_REASON_OUT_OF_IMAGE;
    if (rc == 0 && (data_pages > 0 || batch->as_of == 0 || batch->as_of >= PAYLOAD_VERSION_END ||
                    (round->as_of != 0 && batch->as_of != round->as_of)))
        rc = -PF_REASON_BAD_REQUEST;
    for (uint32_t i = 0; rc == 0 && i < batch->run_count; i++) {
        if (batch->runs[i].first_page < round->next_page)
            rc = -PF_REASON_BAD_REQUEST;
        round->next_page = batch->runs[i].first_page + batch->runs[i].page_count;
        round->named_pages += batch->runs[i].page_count;
    }
    return rc;
}

/* The map that is the last one has nothing newer than itself. */
static bool is_frozen(const struct page_batch *batch)
{
    bool frozen = true;

    for (uint32_t i = 0; i < batch->run_count; i++)
        frozen = frozen && batch->runs[i].version <= batch->as_of;
    return frozen;
}

int round_message(struct round *round, struct grpc_bytes message, uint64_t content_id, struct stats *stats,
                  uint64_t now_ns)
{
    struct page_batch batch;
    int rc;

    while (round_work(round, now_ns)) /* the one before it has to be done with, however long it is */
        ;
    round->run_count = round->run_at = 0;
    rc = read_page_batch(message, round->runs, PF_LIMIT_RUNS_MAX, &batch);
    if (rc == 0)
        rc = check_map(round, &batch, content_id);
    if (rc == -PF_REASON_MISMATCH)
        stats_add(stats, STATS_digest_failures_total, 1);
    round->rejected = rc != 0;
    if (rc == 0 && !round->open_first && !is_frozen(&batch)) {
        round_refuse(round, PF_REASON_WRONG_PHASE, "the map is not frozen: the guest writes on at the source");
        rc = -PF_REASON_WRONG_PHASE;
    }
    if (rc == 0) {
        round->heard_ns = now_ns;
        round->as_of = batch.as_of;
        round->run_count = batch.run_count;
    }
    return rc;
}

bool round_over(struct round *round, const struct grpc_status *status, uint64_t now_ns)
{
    char why[GRPC_TEXT_BYTES];

    round->call = NULL;
    if (round->ended.outcome != ROUND_UNDECIDED)
        return false;
    round->rejections = round->rejected ? round->rejections + 1 : 0;
    if (status->code == GRPC_OK && !round->rejected && round->as_of != 0) {
        round->complete = true;
        round->delay_ns = 0;
    } else if (!round->rejected && reason_is_final(status)) {
        snprintf(why, sizeof(why), "%.180s", status->message);
        round_refuse(round, reason_of_refusal(status), why);
    } else {
        again(round, status->reason == PF_REASON_BUSY ? status->retry_after_ms * MS_NS : 0, now_ns);
    }
    return round->rejections >= REJECTIONS_MAX;
}

/* ------------------------------------------------------------------------------------------------- the owner's side */

void round_order(struct round *round, bool open_first)
{
    round->wanted = true;
    round->open_first = open_first;
    round->ended.outcome = ROUND_UNDECIDED;
    round->newer_pages = 0;
    round->rejections = 0;
    round->delay_ns = 0;
    round->due_ns = 0;
}

bool round_ended_as(struct round *round, struct round_outcome_of *ended)
{
    bool over = round->wanted && round->ended.outcome != ROUND_UNDECIDED && round->call == NULL;

    if (over) {
        *ended = round->ended;
        round->wanted = false;
        round->ended.outcome = ROUND_UNDECIDED;
    }
    return over;
}

uint64_t round_next_ns(const struct round *round)
{
    uint64_t next_ns = UINT64_MAX;

    if (round_is_working(round) || round->complete)
        next_ns = 0;
    else if (round->call != NULL)
        next_ns = round->heard_ns + SILENT_NS;
    else if (round->wanted && round->ended.outcome == ROUND_UNDECIDED)
        next_ns = round->due_ns;
    return next_ns;
}

void round_start(struct round *round, struct engine *engine, const char *image)
{
    round->engine = engine;
    round->image = image;
}

void round_close(struct round *round)
{
    free(round->runs);
    free(round->gathered);
    round->runs = NULL;
    round->gathered = NULL;
    round->run_count = 0;
}
