/* SPDX-License-Identifier: Apache-2.0 */
/* Zaps from outside the VMM: see zapper.h. */
#include "zapper.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../kernel/zap.h"
#include "loop.h"
#include "orders.h"

#define PIECE_PAGES (ZAP_STEP_BYTES / PAGE_BYTES)
/* Punched in one turn: faults wait behind it, some microseconds a page. */
#define PUNCH_PAGES 64
#define PATIENCE_NS UINT64_C(10000000000)
#define MOMENT_NS UINT64_C(1000000)

static struct zapper_job *job_at_work(struct zapper *zapper)
{
    return &zapper->jobs[zapper->first];
}

static void fail(struct zapper_job *job, uint32_t reason, const char *why)
{
    job->reason = reason;
    job->why = why;
    job->left_pages = 0;
}

static bool add(struct zapper *zapper, const struct zapper_job *job)
{
    bool room = zapper->count < ZAPPER_JOBS_MAX;

    if (room)
        zapper->jobs[(zapper->first + zapper->count++) % ZAPPER_JOBS_MAX] = *job;
    return room;
}

/* ------------------------------------------------------------------------------------------------------------ orders */

void zapper_order(struct loop *loop, const struct pageferry_order *order)
{
    struct zapper_job job = {
        .cookie = order->cookie,
        .first_page = order->value,
        .left_pages = order->page_count,
        .drop = (order->flags & PAGEFERRY_ZAP_DROP) != 0,
    };
    uint64_t total = loop->regions.page_count, unit_pages = loop->regions.unit_pages;

    if ((order->flags & ~PAGEFERRY_ZAP_DROP) != 0)
        orders_refuse(loop, order->cookie, PF_REASON_BAD_REQUEST, "a flag of the zap is unknown");
    else if (order->page_count == 0 || order->value >= total || order->page_count > total - order->value)
        orders_refuse(loop, order->cookie, PF_REASON_BAD_REQUEST, "the pages to zap do not lie in the image");
    else if (((order->value | order->page_count) & (unit_pages - 1)) != 0)
        orders_refuse(loop, order->cookie, PF_REASON_BAD_REQUEST,
                      "the memory is of huge pages: only whole ones can be zapped");
    else if (unit_pages > PIECE_PAGES)
        orders_refuse(loop, order->cookie, PF_REASON_UNSUPPORTED, "huge pages of more than 2 MiB are not zapped");
    else if (!add(&loop->zapper, &job))
        orders_refuse(loop, order->cookie, PF_REASON_BUSY, "too many zaps wait: send some after the next DONE");
}

/* It is among those that are to be dropped. */
static bool waits(const struct zapper *zapper, uint64_t page)
{
    bool found = false;

    for (uint32_t i = 0; i < zapper->count && !found; i++) {
        const struct zapper_job *job = &zapper->jobs[(zapper->first + i) % ZAPPER_JOBS_MAX];
        found = job->ours && page - job->first_page < job->left_pages;
    }
    return found;
}

bool zapper_drop(struct loop *loop, uint64_t first_page, uint64_t page_count)
{
    struct zapper *zapper = &loop->zapper;
    struct zapper_job job = {.first_page = first_page, .left_pages = page_count, .drop = true, .ours = true};
    struct zapper_job *last = &zapper->jobs[(zapper->first + zapper->count - 1) % ZAPPER_JOBS_MAX];

    if (!loop->engine.private_memory || !vmm_hears(&loop->vmm) || zapper->in_vain)
        return false;
    if (waits(zapper, first_page))
        return true;
    if (zapper->count > 0 && last->ours && last->left_pages > 0 && last->first_page + last->left_pages == first_page)
        last->left_pages += page_count;
    else
        add(zapper, &job);
    return true;
}

/* Why this job cannot be done at all, or not any more; NULL: it can. */
static const char *obstacle(const struct loop *loop, const struct zapper_job *job, uint32_t *reason)
{
    bool by_vmm = loop->engine.private_memory || !job->drop;
    bool may_do_more = loop->engine.private_memory && loop->engine.zap_count > 0;
    const char *why = NULL;

    *reason = PF_REASON_UNSUPPORTED;
    if (loop->stage < LOOP_ARMED) {
        *reason = PF_REASON_WRONG_PHASE;
        why = "nothing is mapped before arming";
    } else if (loop->engine.private_memory && !job->drop) {
        why = "private memory has its data in its mappings alone, and would lose it: ask for the data to be dropped";
    } else if (by_vmm && !vmm_hears(&loop->vmm)) {
        why = "a VMM alone can drop its mappings, and this one speaks no frames (or not any more): start it under the "
              "shim, or let it call pageferry_zap";
    } else if (may_do_more) {
        why = "the VMM has not answered what it was told to drop before, and may do it yet";
    }
    return why;
}

/* ------------------------------------------------------------------------------------------------------- the VMM's part */

/* The next pages of the job, at most a piece, as long as they cling to the guest, or do not. */
static uint64_t run_that(const struct loop *loop, const struct zapper_job *job, bool clings)
{
    uint64_t pages = 0;

    while (pages < job->left_pages && pages < PIECE_PAGES &&
           engine_unit_clings(&loop->engine, job->first_page + pages) == clings)
        pages += loop->regions.unit_pages;
    return pages;
}

/* What the VMM has dropped by itself since may be the guest's again; and what is in vain is told as it is. */
static bool pass_over(const struct loop *loop, struct zapper_job *job)
{
    uint64_t pages = 0;

    if (job->ours)
        pages = loop->zapper.in_vain ? job->left_pages : run_that(loop, job, false);
    job->first_page += pages;
    job->left_pages -= pages;
    return pages > 0;
}

static void ask_vmm(struct loop *loop, struct zapper_job *job)
{
    struct zapper *zapper = &loop->zapper;
    struct kernel_span span;
    uint64_t pages = job->ours ? run_that(loop, job, true) : job->left_pages;

    if (pages > PIECE_PAGES)
        pages = PIECE_PAGES;
    pages = regions_span(&loop->regions, job->first_page, pages, &span);
    if (job->drop && !job->ours)
        engine_removed(&loop->engine, job->first_page, pages);
    engine_zaps(&loop->engine, job->first_page, pages); /* before it is told: its event may be read at any time */
    if (vmm_zap(&loop->vmm, &(struct vmm_span){++zapper->sequence, span.file_offset, span.length_bytes})) {
        zapper->out_pages = pages;
        zapper->out_until_ns = loop->now_ns + PATIENCE_NS;
    } /* else the socket has ended: the next step meets that */
}

static void answer_is_in(struct loop *loop)
{
    loop->zapper.out_pages = 0;
    engine_zaps(&loop->engine, 0, 0);
}

static void advance(struct loop *loop, struct zapper_job *job, uint64_t pages, uint32_t method)
{
    job->first_page += pages;
    job->left_pages -= pages;
    job->done_pages += pages;
    job->method = method > job->method ? method : job->method;
    stats_add(&loop->stats, STATS_zapped_pages_total, pages);
}

void zapper_answered(struct loop *loop, const struct vmm_span *span)
{
    struct zapper *zapper = &loop->zapper;
    struct zapper_job *job = job_at_work(zapper);
    uint64_t first_page = loop->engine.zap_first, pages = span->length_bytes / PAGE_BYTES;
    bool given_up = zapper->out_pages == 0;

    if (span->sequence != zapper->sequence)
        return;
    if (pages > loop->engine.zap_count)
        pages = loop->engine.zap_count;
    answer_is_in(loop);
    engine_dropped(&loop->engine, first_page, pages);
    engine_zapped(&loop->engine, first_page, pages);
    if (given_up)
        return;
    if (pages > 0) {
        advance(loop, job, pages, (uint32_t)span->offset_bytes);
    } else {
        job->error = (int)span->offset_bytes;
        fail(job, job->error == EOPNOTSUPP || job->error == EINVAL ? PF_REASON_UNSUPPORTED : PF_REASON_BUG,
             "the VMM could not drop the mappings: its log says why");
    }
}

/* ------------------------------------------------------------------------------------------------------- our own part */

/* In small pieces: one a turn. */
static void punch(struct loop *loop, struct zapper_job *job)
{
    uint64_t most = loop->regions.unit_pages > PUNCH_PAGES ? loop->regions.unit_pages : PUNCH_PAGES;
    uint64_t pages = job->left_pages < most ? job->left_pages : most, done;
    struct kernel_span span;
    int rc = 0;

    pages = regions_span(&loop->regions, job->first_page, pages, &span);
    done = engine_drop(&loop->engine, job->first_page, pages);
    if (done == pages && loop->handed_on)
        rc = zap_count_written(loop->uffd.fd, span.address, span.length_bytes);
    if (rc == -EAGAIN) /* events are unread: they are by then, and a drop may be done twice */
        loop->zapper.not_before_ns = loop->now_ns + MOMENT_NS;
    else if (done < pages || (rc < 0 && rc != -ENOENT && rc != -ESRCH)) /* nobody tracks it (any more) */
        fail(job, PF_REASON_BUG, "the data could not be dropped from the RAM file");
    else
        advance(loop, job, pages, PAGEFERRY_ZAPPED_BY_PUNCH);
}

/* ---------------------------------------------------------------------------------------------------------------- turn */

static bool tell_end(struct loop *loop, const struct zapper_job *job)
{
    struct pageferry_event event = {
        .kind = PAGEFERRY_EVENT_DONE,
        .cookie = job->cookie,
        .page = job->done_pages,
        .value = job->method,
    };
    char text[PAGEFERRY_TEXT_BYTES] = "";

    if (job->ours) { /* the poison log says what became of it */
        loop->zapper.in_vain |= job->why != NULL;
        return true;
    }
    if (job->why != NULL) {
        event = (struct pageferry_event){
            .kind = PAGEFERRY_EVENT_FAILED, .reason = job->reason, .cookie = job->cookie, .page = 1};
        snprintf(text, sizeof(text), "%s%s%s%s", job->why, job->error != 0 ? ": " : "",
                 job->error != 0 ? strerror(job->error) : "",
                 job->done_pages > 0 ? "; the pages before were zapped" : "");
    }
    return tell(&loop->tell, &event, text);
}

static void end_job(struct loop *loop, const struct zapper_job *job)
{
    struct zapper *zapper = &loop->zapper;

    if (tell_end(loop, job)) {
        zapper->first = (zapper->first + 1) % ZAPPER_JOBS_MAX;
        zapper->count--;
    } else { /* whoever reads is far behind */
        zapper->not_before_ns = loop->now_ns + 10 * MOMENT_NS;
    }
}

static void begin_piece(struct loop *loop, struct zapper_job *job)
{
    uint32_t reason;
    const char *why = obstacle(loop, job, &reason);

    if (loop->stage == LOOP_ENDED)
        fail(job, loop->end.reason, "nothing can be done for this VM any more");
    else if (why != NULL)
        fail(job, reason, why);
    else if (job->drop && !loop->engine.private_memory)
        punch(loop, job);
    else if (!pass_over(loop, job))
        ask_vmm(loop, job);
}

bool zapper_turn(struct loop *loop)
{
    struct zapper *zapper = &loop->zapper;
    struct zapper_job *job = job_at_work(zapper);
    bool hears = vmm_hears(&loop->vmm);

    if (!hears) /* what it has not done it will not do */
        engine_zaps(&loop->engine, 0, 0);
    if (zapper->count == 0 || loop->stage == LOOP_OPEN || loop->now_ns < zapper->not_before_ns)
        return false;
    if (zapper->out_pages > 0 && (!hears || loop->now_ns >= zapper->out_until_ns)) {
        zapper->out_pages = 0; /* it may do it yet, so that it stays announced */
        fail(job, PF_REASON_UNSUPPORTED, "the VMM was told to drop mappings and has not answered");
    }
    if (zapper->out_pages > 0)
        return false;
    if (job->left_pages == 0)
        end_job(loop, job);
    else
        begin_piece(loop, job);
    return zapper->count > 0 && zapper->out_pages == 0 && loop->now_ns >= zapper->not_before_ns;
}

uint64_t zapper_next_ns(const struct loop *loop)
{
    const struct zapper *zapper = &loop->zapper;
    uint64_t next_ns = UINT64_MAX;

    if (zapper->count > 0 && loop->stage != LOOP_OPEN)
        next_ns = zapper->out_pages > 0 ? zapper->out_until_ns : zapper->not_before_ns;
    return next_ns;
}
