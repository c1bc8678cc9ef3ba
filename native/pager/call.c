/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of kernel_ops: see place.h. What each result means for all pages alike is counted and reported here, once. */
#include "place.h"

#include <stddef.h>

static const int call_counter[] = {
    [CALL_POPULATE] = STATS_populates_total, [CALL_MAP] = STATS_continues_total, [CALL_COPY] = STATS_copies_total,
    [CALL_ZERO] = STATS_zeropages_total,     [CALL_PUNCH] = -1,                  [CALL_POISON] = STATS_poison_marks_total,
    [CALL_WAKE] = STATS_wakes_total,
};

/* Of the guest's: what is staged takes only ours, for as long as its unit is not whole. */
static bool takes_memory(const struct engine *engine, enum call call)
{
    if (engine->private_memory && place_has_cache(engine))
        return call == CALL_MAP || call == CALL_ZERO;
    return call == CALL_POPULATE || call == CALL_COPY || call == CALL_ZERO;
}

static struct kernel_outcome call_kernel(struct engine *engine, enum call call, const struct kernel_span *span,
                                         const void *bytes)
{
    const struct kernel_ops *ops = engine->ops;
    struct kernel_outcome outcome = {.result = KERNEL_GONE};

    switch (call) {
    case CALL_POPULATE:
        outcome = ops->populate(engine->kernel, span, bytes);
        break;
    case CALL_MAP:
        outcome = ops->map(engine->kernel, span);
        break;
    case CALL_COPY:
        outcome = ops->copy(engine->kernel, span, bytes);
        break;
    case CALL_ZERO:
        outcome = ops->zero(engine->kernel, span);
        break;
    case CALL_PUNCH:
        outcome = ops->punch(engine->kernel, span);
        break;
    case CALL_POISON:
        outcome = ops->poison(engine->kernel, span);
        break;
    case CALL_WAKE:
        outcome = ops->wake(engine->kernel, span);
        break;
    }
    return outcome;
}

static void went_full(struct engine *engine, enum call call, uint64_t page)
{
    stats_add(engine->stats, STATS_full_total, 1);
    if (!engine->full || engine->now_ns >= engine->full_until_ns) { /* longer with each try that failed */
        engine->full_wait_ns = engine->full ? engine->full_wait_ns * 2 : ENGINE_FULL_WAIT_MIN_NS;
        if (engine->full_wait_ns > ENGINE_FULL_WAIT_MAX_NS)
            engine->full_wait_ns = ENGINE_FULL_WAIT_MAX_NS;
        engine->full_until_ns = engine->now_ns + engine->full_wait_ns;
    }
    if (!engine->full) {
        engine->full = true;
        engine->full_of_staging = !takes_memory(engine, call);
        engine->out.report(engine->out.owner, ENGINE_REPORT_FULL, page, 0, "no memory for a page");
    }
}

static void went_well(struct engine *engine, enum call call, uint64_t page)
{
    bool staging = call == CALL_POPULATE && engine->full_of_staging; /* that has its own memory */

    if (engine->full && (takes_memory(engine, call) || staging)) {
        engine->full = false;
        engine->out.report(engine->out.owner, ENGINE_REPORT_FULL_OVER, page, 0, "there is memory again");
    }
}

static void went_gone(struct engine *engine, uint64_t page)
{
    if (!engine->gone) {
        engine->gone = true;
        engine->out.report(engine->out.owner, ENGINE_REPORT_GONE, page, 0, "the VMM's address space is gone");
    }
}

struct kernel_outcome place_call(struct engine *engine, enum call call, uint64_t page, uint64_t count,
                                 const void *bytes)
{
    struct kernel_span span;
    struct kernel_outcome outcome = {.result = KERNEL_GONE};

    if (engine->gone)
        return outcome;
    regions_span(engine->regions, page, count, &span);
    if (takes_memory(engine, call) && atomic_load_explicit(&engine->table->header->placed, memory_order_relaxed) == 0)
        atomic_store_explicit(&engine->table->header->placed, 1, memory_order_release);
    outcome = call_kernel(engine, call, &span, bytes);
    engine->last_result = outcome.result;
    if (call_counter[call] >= 0)
        stats_add(engine->stats, (enum stats_counter)call_counter[call], 1);
    stats_add(engine->stats, STATS_partial_total, outcome.parts);
    switch (outcome.result) {
    case KERNEL_MAPPED:
        outcome.done_bytes = span.length_bytes;
        went_well(engine, call, page);
        break;
    case KERNEL_ALREADY:
        stats_add(engine->stats, STATS_already_total, 1);
        stats_add(engine->stats, STATS_already_copies_total, call == CALL_COPY);
        stats_add(engine->stats, STATS_already_continues_total, call == CALL_MAP);
        break;
    case KERNEL_ABSENT:
        if (call == CALL_MAP)
            stats_add(engine->stats, STATS_absent_total, 1);
        break;
    case KERNEL_LATER:
        stats_add(engine->stats, STATS_later_total, 1);
        break;
    case KERNEL_FULL:
        went_full(engine, call, page);
        break;
    case KERNEL_GONE:
        went_gone(engine, page);
        break;
    case KERNEL_BROKEN:
        place_broken(engine, page + outcome.done_bytes / PAGE_BYTES);
        break;
    case KERNEL_REFUSED:
        if (call != CALL_WAKE && call != CALL_POISON)
            place_hold(engine, page + outcome.done_bytes / PAGE_BYTES, "the kernel refuses it: the page is held back");
        break;
    }
    return outcome;
}

enum placing place_status(enum kernel_result result)
{
    static const enum placing statuses[] = {
        [KERNEL_MAPPED] = PLACING_DONE, [KERNEL_ALREADY] = PLACING_LATER, [KERNEL_ABSENT] = PLACING_LATER,
        [KERNEL_LATER] = PLACING_LATER, [KERNEL_FULL] = PLACING_FULL,     [KERNEL_GONE] = PLACING_GONE,
        [KERNEL_BROKEN] = PLACING_HELD,   [KERNEL_REFUSED] = PLACING_HELD,
    };

    return statuses[result];
}

void place_wake(struct engine *engine, uint64_t page, uint64_t count)
{
    place_call(engine, CALL_WAKE, page, count, NULL);
}

uint64_t place_cut(const struct engine *engine, uint64_t page, uint64_t count)
{
    struct kernel_span span;
    uint64_t unit_pages = engine->regions->unit_pages, most = PLACE_RUN_MAX;

    if (unit_pages > 1 && unit_pages - page % unit_pages < most)
        most = unit_pages - page % unit_pages;
    return regions_span(engine->regions, page, count < most ? count : most, &span);
}
