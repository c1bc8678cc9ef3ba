/* SPDX-License-Identifier: Apache-2.0 */
/* Poison ordered and told: see poison.h. */
#include "poison.h"

#include "../pager/log.h"
#include "loop.h"
#include "orders.h"

#define PAGES_A_TURN 128 /* faults wait behind them, some microseconds a page */
#define AGAIN_NS UINT64_C(2000000) /* nothing tells that the owner has taken events, or that there is memory again */

_Static_assert(LOG_WAS_MAPPED == PAGEFERRY_POISONED_WAS_MAPPED && LOG_MAPPED == PAGEFERRY_POISONED_MAPPED &&
               LOG_HELD == PAGEFERRY_POISONED_HELD, "the log's flags are those of the event");

static struct poison_job *job_at_work(struct poison *poison)
{
    return &poison->jobs[poison->first];
}

static bool add(struct poison *poison, const struct poison_job *job)
{
    bool room = job->by_vmm ? poison->clears < POISON_CLEARS_MAX : poison->count - poison->clears < POISON_ORDERS_MAX;

    if (room) {
        poison->jobs[(poison->first + poison->count++) % POISON_JOBS_MAX] = *job;
        poison->clears += job->by_vmm;
    }
    return room;
}

static void fail(struct poison_job *job, uint32_t reason, const char *why)
{
    job->reason = reason;
    job->why = why;
    job->looked = job->page_count;
}

/* ------------------------------------------------------------------------------------------------------------ orders */

void poison_order(struct loop *loop, const struct pageferry_order *order)
{
    struct poison_job job = {
        .cookie = order->cookie,
        .first_page = order->value,
        .page_count = order->page_count,
        .clear = order->kind == PAGEFERRY_ORDER_CLEAR_POISON,
    };
    uint64_t total = loop->regions.page_count;

    if (order->flags != 0)
        orders_refuse(loop, order->cookie, PF_REASON_BAD_REQUEST, "an order of poison has no flags");
    else if (order->page_count == 0)
        orders_refuse(loop, order->cookie, PF_REASON_BAD_REQUEST, "an order of poison names at least one page");
    else if (order->value >= total || order->page_count > total - order->value)
        orders_refuse(loop, order->cookie, PF_REASON_OUT_OF_IMAGE, "the pages do not lie in the image");
    else if (!add(&loop->poison, &job))
        orders_refuse(loop, order->cookie, PF_REASON_BUSY, "too many orders wait: send some after the next DONE");
}

/* What reaches beyond the image ends there; a page is cleared whole or not at all. */
void poison_clear(struct loop *loop, const struct vmm_span *span)
{
    uint64_t total = loop->regions.page_count, first = span->offset_bytes / PAGE_BYTES;
    uint64_t count = span->length_bytes / PAGE_BYTES;
    struct poison_job job = {.cookie = span->sequence, .clear = true, .by_vmm = true, .first_page = first};

    if (first < total)
        job.page_count = count < total - first ? count : total - first;
    if (span->offset_bytes % PAGE_BYTES != 0)
        job.page_count = 0;
    if (!add(&loop->poison, &job)) /* its next frame is not read while too many wait, unless it has hung up */
        vmm_close_socket(&loop->vmm);
}

static bool works_for_vmm(const struct loop *loop)
{
    return loop->poison.count > 0 && loop->poison.jobs[loop->poison.first].by_vmm;
}

bool poison_holds_vmm(const struct loop *loop)
{
    return (works_for_vmm(loop) && loop->zapper.out_pages == 0) || loop->poison.clears == POISON_CLEARS_MAX;
}

/* -------------------------------------------------------------------------------------------------------------- work */

/* It clings, and that will end: the VMM is told to let go of it, or will be. */
static bool waits_for_vmm(const struct loop *loop, uint64_t page)
{
    bool told = page - loop->engine.zap_first < loop->zapper.out_pages;

    return engine_clings(&loop->engine, page) && (told || engine_owes(&loop->engine, page, 1));
}

static uint64_t clear_of_waits(const struct loop *loop, uint64_t page, uint64_t count)
{
    uint64_t pages = 0;

    while (pages < count && !waits_for_vmm(loop, page + pages))
        pages++;
    return pages;
}

/* True: the kernel calls of this step have gone as far as they were to. */
static bool step(struct loop *loop, struct poison_job *job)
{
    uint64_t at = job->first_page + job->looked, left = job->page_count - job->looked;
    uint64_t pages = left < PAGES_A_TURN ? left : PAGES_A_TURN, looked = pages;

    if (job->looked == 0)
        job->since = atomic_load(&loop->table.header->log_count);
    if (!job->clear) {
        job->changed += engine_lost(&loop->engine, at, pages);
    } else {
        pages = clear_of_waits(loop, at, pages);
        looked = engine_cleared(&loop->engine, at, pages, &job->changed);
    }
    job->looked += looked;
    return looked > 0;
}

static bool any_clings(const struct loop *loop, const struct poison_job *job)
{
    bool clings = false;

    for (uint64_t i = 0; i < job->page_count && loop->engine.private_memory && !clings; i++)
        clings = engine_clings(&loop->engine, job->first_page + i) && !waits_for_vmm(loop, job->first_page + i);
    return clings;
}

/* Why nothing can be done about these pages. */
static void check(struct loop *loop, struct poison_job *job)
{
    if (loop->stage == LOOP_ENDED)
        fail(job, loop->end.reason, "nothing can be done for this VM any more");
    else if (loop->let_go && !job->clear)
        fail(job, PF_REASON_WRONG_PHASE,
             "every page has come and the registration has ended, so nothing can be poisoned any more: a VM that is "
             "opened as one that is handed on keeps it");
    else if (job->looked == 0 && job->clear && !job->by_vmm && any_clings(loop, job))
        fail(job, PF_REASON_UNSUPPORTED,
             "the VMM has the lost bytes of one of these pages mapped still, and they would be back, or it was told to "
             "drop it and has not answered: it must drop it first, by MADV_DONTNEED");
}

static bool is_done(struct loop *loop, const struct poison_job *job)
{
    const struct table_header *header = loop->table.header;
    enum table_log_reader reader = job->by_vmm ? TABLE_LOG_VMM : TABLE_LOG_OWNER; /* who is answered knows it by then */
    bool told = atomic_load(&header->log_taken[reader]) == atomic_load(&header->log_count);

    return job->looked == job->page_count &&
           (job->why != NULL || (told && !engine_owes(&loop->engine, job->first_page, job->page_count)));
}

static bool answer(struct loop *loop, const struct poison_job *job)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_DONE, .cookie = job->cookie, .page = job->changed};
    struct vmm_span span = {job->cookie, job->first_page * PAGE_BYTES, job->changed * PAGE_BYTES};

    if (job->by_vmm) {
        vmm_cleared(&loop->vmm, &span);
        return true;
    }
    if (job->why != NULL)
        event = (struct pageferry_event){
            .kind = PAGEFERRY_EVENT_FAILED, .reason = job->reason, .cookie = job->cookie, .page = 1};
    return tell(&loop->tell, &event, job->why);
}

static bool work(struct loop *loop)
{
    struct poison *poison = &loop->poison;
    struct poison_job *job = job_at_work(poison);
    bool goes = false;

    if (poison->count == 0 || loop->stage == LOOP_OPEN)
        return false;
    check(loop, job);
    if (job->looked < job->page_count) {
        goes = step(loop, job);
    } else if (is_done(loop, job) && answer(loop, job)) {
        poison->first = (poison->first + 1) % POISON_JOBS_MAX;
        poison->count--;
        poison->clears -= job->by_vmm;
        goes = poison->count > 0;
    }
    return goes;
}

/* -------------------------------------------------------------------------------------------------------------- told */

static bool tell_owner(struct loop *loop, const struct table_log_entry *entry, uint64_t number)
{
    bool lost = entry->kind == LOG_POISONED;
    struct pageferry_event event = {
        .kind = lost ? PAGEFERRY_EVENT_POISONED : PAGEFERRY_EVENT_POISON_CLEARED,
        .page = entry->page,
        .value = lost ? entry->flags : 1,
        .cookie = number,
    };

    return tell(&loop->tell, &event, NULL);
}

/* What the VMM's own CLEAR has cleared is in the answer to it; not what somebody else had, before it began. */
static bool is_in_answer(struct loop *loop, const struct table_log_entry *entry, uint64_t number)
{
    const struct poison_job *job = job_at_work(&loop->poison);

    return entry->kind == LOG_CLEARED && works_for_vmm(loop) && job->looked > 0 && number > job->since &&
           entry->page - job->first_page < job->page_count;
}

static bool tell_vmm(struct loop *loop, const struct table_log_entry *entry, uint64_t number)
{
    struct vmm_span span = {entry->sequence, entry->page * PAGE_BYTES, PAGE_BYTES};
    bool told = true;

    if (!vmm_speaks(&loop->vmm) || is_in_answer(loop, entry, number))
        return true;
    if (!loop->vmm.accepted || !vmm_has_room(&loop->vmm)) {
        told = false;
    } else if (entry->kind == LOG_POISONED) {
        vmm_poisoned(&loop->vmm, &span, (entry->flags & LOG_HELD) != 0);
    } else {
        span.sequence = 0;
        vmm_cleared(&loop->vmm, &span);
    }
    return told;
}

static void tell_all(struct loop *loop)
{
    struct table_log_entry entry;
    uint64_t number;

    while (log_next(&loop->table, TABLE_LOG_OWNER, &entry, &number) && tell_owner(loop, &entry, number))
        log_taken(&loop->table, TABLE_LOG_OWNER);
    while (log_next(&loop->table, TABLE_LOG_VMM, &entry, &number) && tell_vmm(loop, &entry, number))
        log_taken(&loop->table, TABLE_LOG_VMM);
}

bool poison_turn(struct loop *loop)
{
    bool more = work(loop);

    tell_all(loop);
    return more;
}

uint64_t poison_next_ns(const struct loop *loop)
{
    struct table_log_entry entry;
    uint64_t number;
    bool waits = log_next(&loop->table, TABLE_LOG_OWNER, &entry, &number) ||
                 (loop->poison.count > 0 && loop->stage != LOOP_OPEN);

    return waits ? loop->now_ns + AGAIN_NS : UINT64_MAX;
}
