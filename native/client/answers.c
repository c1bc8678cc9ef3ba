/* SPDX-License-Identifier: Apache-2.0 */
/* What FetchPages answers: see answers.h. */
#include "answers.h"

#include <string.h>

#include "../rpc/payload.h"

#define MS_NS UINT64_C(1000000)
#define AGAIN_MIN_NS (PF_LIMIT_ASK_AGAIN_MIN_MS * MS_NS)
#define AGAIN_MAX_NS (PF_LIMIT_ASK_AGAIN_MAX_MS * MS_NS)

static uint64_t doubled(uint64_t delay_ns)
{
    uint64_t next_ns = delay_ns == 0 ? AGAIN_MIN_NS : 2 * delay_ns;

    return next_ns < AGAIN_MAX_NS ? next_ns : AGAIN_MAX_NS;
}

/* It cannot be read now. */
static void later(struct urgent *urgent, uint64_t page)
{
    struct urgent_later *last = &urgent->laters[page & (URGENT_LATERS - 1)];

    last->delay_ns = doubled(last->page_plus_1 == page + 1 ? last->delay_ns : 0);
    last->page_plus_1 = page + 1;
    stats_add(urgent->stats, STATS_later_pages_total, 1);
    engine_ask_later(urgent->engine, page, *urgent->now_ns + last->delay_ns);
}

/* Lost, or to be asked again: the pages that are asked, whatever else the run names. Its length is the server's choice, and
 * the cost of these is some system calls a page. */
static void apply_to_asked(struct urgent *urgent, const struct run *run)
{
    struct engine_news news = {.kind = ENGINE_POISON, .page_count = 1, .version = run->version};

    for (uint64_t page = run->first_page; page < run->first_page + run->page_count; page++) {
        if (page_state(table_word(urgent->engine->table, page)) != PAGE_WANTED)
            continue;
        news.first_page = page;
        if (run->kind == PF_RUN_KIND_POISON)
            engine_news(urgent->engine, &news, *urgent->now_ns);
        else
            later(urgent, page);
    }
}

static void apply(struct urgent *urgent, const struct run *run, const uint8_t *bytes)
{
    struct engine_news news = {.first_page = run->first_page, .page_count = run->page_count, .version = run->version};

    urgent->in_flight -= run->page_count < urgent->in_flight ? run->page_count : urgent->in_flight;
    switch (run->kind) {
    case PF_RUN_KIND_DATA:
        news.kind = ENGINE_DATA;
        news.bytes = bytes;
        stats_add(urgent->stats, STATS_urgent_pages_total, run->page_count);
        stats_add(urgent->stats, STATS_fetched_bytes_total, run->page_count * PAGE_BYTES);
        break;
    case PF_RUN_KIND_ZERO:
        news.kind = ENGINE_ZEROS;
        break;
    case PF_RUN_KIND_POISON:
    case PF_RUN_KIND_LATER:
        apply_to_asked(urgent, run);
        break;
    default: /* VERSION: nobody asked for it here */
        break;
    }
    if (news.kind != 0)
        engine_news(urgent->engine, &news, *urgent->now_ns);
}

/*
 * A wrong digest, or no batch of this image at all. Nothing of it is used, not even its page numbers: so all that is
 * WANTED is asked again, in a while. Twice in a row: the link is dropped, and with the next one the content id is asked
 * again; as the link is not well then (link_is_well), that happens less and less often.
 */
static void bad_batch(struct urgent *urgent, int rc)
{
    if (rc == -PF_REASON_MISMATCH)
        stats_add(urgent->stats, STATS_digest_failures_total, 1);
    if (urgent->batch_rejected) {
        urgent_drop_soon(urgent, "two answers in a row had a wrong digest, or were none");
    } else {
        urgent->batch_rejected = true;
        urgent->again_delay_ns = doubled(urgent->again_delay_ns);
        urgent->again_ns = *urgent->now_ns + urgent->again_delay_ns;
    }
}

/* No more than can be asked: what is looked at in one go is bounded. */
static bool could_be_asked(const struct page_batch *batch)
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < batch->run_count; i++)
        pages += batch->runs[i].page_count;
    return pages <= PF_LIMIT_WANTED_PAGES_MAX;
}

static int check_batch(struct urgent *urgent, struct grpc_bytes message, struct page_batch *batch)
{
    uint64_t data_pages;
    int rc = read_page_batch(message, urgent->runs, PF_LIMIT_RUNS_MAX, batch);

    if (rc == 0 && batch->run_count > 0)
        rc = payload_check(urgent->content_id, batch, &data_pages);
    if (rc == 0 && !runs_inside(batch->runs, batch->run_count, urgent->regions->page_count))
        rc = -PF_REASON_OUT_OF_IMAGE;
    if (rc == 0 && !could_be_asked(batch))
        rc = -PF_REASON_BAD_REQUEST;
    return rc;
}

/* Of a session: what the source is about, and the digest of its map once that is frozen. False: nothing of this server
 * may be installed any more. */
static bool take_state(struct urgent *urgent, const struct page_batch *batch)
{
    if (batch->phase != 0) {
        urgent->phase = batch->phase;
        urgent->cancel_requested = batch->cancel_requested;
    }
    if (batch->manifest_digest.length == sizeof(urgent->manifest)) {
        memcpy(urgent->manifest, batch->manifest_digest.data, sizeof(urgent->manifest));
        urgent->manifest_known = true;
    }
    if (urgent->final_as_of == 0 || urgent_agrees(urgent))
        return true;
    urgent_refuse(urgent, PF_REASON_MISMATCH, "the server's frozen map has other versions than the one we have read");
    return false;
}

void answers_take(struct urgent *urgent, struct grpc_bytes message)
{
    struct page_batch batch;
    uint64_t at = 0;
    int rc = check_batch(urgent, message, &batch);

    urgent->waiting_ns = 0;
    if (rc != 0) {
        bad_batch(urgent, rc);
        return;
    }
    if (!take_state(urgent, &batch))
        return;
    if (batch.run_count > 0 || batch.heartbeat != 0)
        link_is_well(&urgent->link);
    if (batch.run_count > 0) {
        urgent->batch_rejected = false;
        urgent->again_delay_ns = urgent->again_ns == 0 ? 0 : urgent->again_delay_ns;
        urgent->answered_ns = *urgent->now_ns;
    }
    for (uint32_t i = 0; i < batch.run_count; i++) {
        apply(urgent, &batch.runs[i], batch.data.data + at * PAGE_BYTES);
        if (batch.runs[i].kind == PF_RUN_KIND_DATA)
            at += batch.runs[i].page_count;
    }
}
