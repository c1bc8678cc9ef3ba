/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine of engine.h: what comes, meets the word of its page, and page_step says what is done; place.c does it.
 * Nothing here is decided by the flavour of a fault.
 *
 * Two rules of order. A batch of kernel events is worked on whole before the next is read, removals first; a call that
 * finds events unread (LATER) in the middle of one is parked. Outside a batch, LATER is answered by reading and working
 * on events, a bounded number of times; every word is then judged anew, for they may have changed it.
 */
#include "engine.h"

#include <string.h>

#include "place.h"
#include "unit.h"
#include "wait.h"

/* --------------------------------------------------------------------------------------------------------- faults */

/* True: resolved at once. */
static bool take_fault(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);
    struct page_step step = page_step(page_state(word), PAGE_EVENT_FAULT, wait_armed(engine));
    bool resolved = false;

    if (unit_many(engine) && wait_armed(engine))
        return unit_fault(engine, page);
    if (page_held(word) && step.action != PAGE_ACTION_PARK)
        step.action = PAGE_ACTION_NOTHING;
    switch (step.action) {
    case PAGE_ACTION_PARK:
        stats_add(engine->stats, STATS_faults_early_total, 1);
        if (engine->first_early_ns == 0) {
            engine->first_early_ns = engine->now_ns;
            engine->early_page = page;
        }
        wait_note(engine, page, 1, word, PAGE_EVENT_FAULT, PAGE_ACTION_PARK);
        break;
    case PAGE_ACTION_ASK:
        place_word(engine, page, PAGE_WANTED, page_stale(word), page_version(word));
        wait_ask(engine, page);
        wait_note(engine, page, 1, word, PAGE_EVENT_FAULT, PAGE_ACTION_ASK);
        break;
    case PAGE_ACTION_NOTHING:
        stats_add(engine->stats, STATS_faults_again_total, 1);
        wait_note(engine, page, 1, word, PAGE_EVENT_FAULT, PAGE_ACTION_NOTHING);
        break;
    default:
        stats_add(engine->stats, STATS_faults_owned_total, page_state(word) == PAGE_OWNED);
        if (wait_parked(engine, page))
            stats_add(engine->stats, STATS_faults_again_total, 1);
        resolved = wait_settle(engine, page);
        break;
    }
    return resolved;
}

/* ------------------------------------------------------------------------------------------------------- removals */

static void remove_waited(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    place_word(engine, page, PAGE_ZERO, place_has_cache(engine) && place_in_doubt(word), page_version(word));
    if (!unit_many(engine))
        wait_settle(engine, page);
}

static bool cleared_alike(const struct engine *engine, uint64_t word, uint64_t next)
{
    struct page_step step = page_step(page_state(next), PAGE_EVENT_REMOVED, wait_armed(engine));

    return step.action == PAGE_ACTION_CLEAR && place_in_doubt(next) == place_in_doubt(word);
}

static void count_removed(struct engine *engine, uint64_t page, uint64_t count)
{
    static const enum stats_counter counters[PAGE_STATE_COUNT] = {
        [PAGE_MISSING] = STATS_removed_missing_pages_total, [PAGE_WANTED] = STATS_removed_wanted_pages_total,
        [PAGE_CACHED] = STATS_removed_cached_pages_total,   [PAGE_ZERO] = STATS_removed_zero_pages_total,
        [PAGE_OWNED] = STATS_removed_owned_pages_total,     [PAGE_POISONED] = STATS_removed_poisoned_pages_total,
    };

    for (uint64_t i = page; i < page + count; i++)
        stats_add(engine->stats, counters[page_state(table_word(engine->table, i))], 1);
}

static bool any_wanted(const struct engine *engine, uint64_t page, uint64_t end)
{
    while (page < end && page_state(table_word(engine->table, page)) != PAGE_WANTED)
        page++;
    return page < end;
}

/* The pages read zero from now on, whatever becomes of the calls: the claim needs no bytes. */
static void remove_pages(struct engine *engine, uint64_t page, uint64_t count)
{
    uint64_t end = page + count;

    count_removed(engine, page, count);
    while (page < end && !engine->gone) {
        uint64_t word = table_word(engine->table, page), pages = 1;
        struct page_step step = page_step(page_state(word), PAGE_EVENT_REMOVED, wait_armed(engine));
        switch (step.action) {
        case PAGE_ACTION_CLEAR:
            pages = place_cut(engine, page, end - page);
            for (uint64_t i = 1; i < pages; i++)
                if (!cleared_alike(engine, word, table_word(engine->table, page + i)))
                    pages = i;
            place_removed(engine, page, pages);
            break;
        case PAGE_ACTION_MAP_ZERO:
            remove_waited(engine, page);
            break;
        case PAGE_ACTION_POISON:
            wait_settle(engine, page);
            break;
        case PAGE_ACTION_NOTHING:
            break;
        default:
            wait_alarm(engine, page, step.action, "a removal met an action that is none of its");
            break;
        }
        if (step.action != PAGE_ACTION_NOTHING)
            wait_note(engine, page, pages, word, PAGE_EVENT_REMOVED, (enum page_action)step.action);
        page += pages;
    }
}

/* Units of many pages one by one, each looked at when all is claimed: one that lacks nothing any more, but of which
 * bytes are yet to be dropped, would be mapped with them. */
static void take_away(struct engine *engine, uint64_t page, uint64_t count)
{
    uint64_t end = page + count, next;

    if (!unit_many(engine) || !wait_armed(engine)) {
        remove_pages(engine, page, count);
        return;
    }
    for (; page < end && !engine->gone; page = next) {
        bool waited;
        next = regions_unit(engine->regions, page) + engine->regions->unit_pages;
        next = next < end ? next : end;
        waited = any_wanted(engine, page, next);
        remove_pages(engine, page, next - page);
        if (waited)
            wait_settle(engine, page);
        else
            unit_arrived(engine, page);
    }
}

void engine_removed(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    if (first_page >= engine->table->page_count)
        return;
    if (page_count > engine->table->page_count - first_page)
        page_count = engine->table->page_count - first_page;
    stats_add(engine->stats, STATS_removed_pages_total, page_count);
    take_away(engine, first_page, page_count);
}

/* Of these pages, those that our own zap under way has announced. */
static uint64_t announced(const struct engine *engine, uint64_t first_page, uint64_t count)
{
    uint64_t first = first_page > engine->zap_first ? first_page : engine->zap_first;
    uint64_t end = first_page + count, zap_end = engine->zap_first + engine->zap_count;

    end = end < zap_end ? end : zap_end;
    return first < end ? end - first : 0;
}

/* A REMOVE event: on shared memory it says only "look again" (DESIGN 3.8). */
static void take_remove(struct engine *engine, const struct kernel_event *event)
{
    uint64_t start = event->start, first_page, count;

    stats_add(engine->stats, STATS_removes_total, 1);
    while ((count = regions_pages(engine->regions, &start, event->end, &first_page)) > 0) {
        stats_add(engine->stats, STATS_removed_pages_total, count - announced(engine, first_page, count));
        if (engine->private_memory)
            take_away(engine, first_page, count);
    }
}

/* ---------------------------------------------------------------------------------------------------------- turns */

static bool lacks_bytes(uint64_t word)
{
    return page_state(word) == PAGE_MISSING || page_state(word) == PAGE_WANTED;
}

static void take_fault_event(struct engine *engine, const struct kernel_event *event, uint64_t *resolved)
{
    uint64_t page;

    stats_add(engine->stats, STATS_faults_total, 1);
    stats_add(engine->stats, STATS_faults_minor_total, (event->flags & KERNEL_FAULT_MINOR) != 0);
    if (regions_page(engine->regions, event->address, &page)) {
        if ((event->flags & KERNEL_FAULT_MINOR) != 0 && lacks_bytes(table_word(engine->table, page)))
            stats_add(engine->stats, STATS_faults_unheld_minor_total, 1);
        if (engine->private_memory) /* and here a lost page may be that cannot be marked */
            engine_dropped(engine, regions_unit(engine->regions, page), engine->regions->unit_pages);
        *resolved += take_fault(engine, page);
    } else {
        wait_alarm(engine, UINT64_MAX, event->address, "a fault outside the regions of the hand-off");
    }
}

/* The batch is done with. Its kinds go first, its count last: whoever finds it half emptied, or finds the next one half
 * read, sees no event that is not one. */
static void empty_batch(struct table_header *header, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        header->batch[i].kind = 0;
    atomic_signal_fence(memory_order_seq_cst);
    memset(header->batch, 0, count * sizeof(header->batch[0]));
    atomic_store_explicit(&header->batch_count, 0, memory_order_release);
}

/* The batch in the table, removals first: a fault may have been read before the removal that explains it. */
static void work_on_batch(struct engine *engine, uint32_t count)
{
    struct kernel_event *batch = engine->table->header->batch;
    uint64_t resolved = 0, taken_ns;

    engine->in_turn = true;
    for (uint32_t i = 0; i < count; i++) {
        if (batch[i].kind == KERNEL_EVENT_REMOVE)
            take_remove(engine, &batch[i]);
        else if (batch[i].kind != KERNEL_EVENT_FAULT && batch[i].kind != 0)
            stats_add(engine->stats, STATS_events_other_total, 1);
    }
    for (uint32_t i = 0; i < count && !engine->gone; i++)
        if (batch[i].kind == KERNEL_EVENT_FAULT)
            take_fault_event(engine, &batch[i], &resolved);
    engine->in_turn = false;
    empty_batch(engine->table->header, count);
    if (resolved > 0) {
        stats_add(engine->stats, STATS_faults_resolved_total, resolved);
        taken_ns = wait_clock_ns(engine) - engine->read_ns;
        for (uint64_t i = 0; i < resolved; i++)
            stats_observe(engine->stats, STATS_fault_local_ns, taken_ns);
    }
}

int engine_turn(struct engine *engine, uint64_t now_ns)
{
    struct table_header *header = engine->table->header;
    int count;

    if (engine->gone || engine->in_turn)
        return 0;
    engine->now_ns = now_ns;
    /* All of it counts before the kernel fills it: what is read is never without a count. */
    atomic_store_explicit(&header->batch_count, TABLE_BATCH_EVENTS, memory_order_release);
    count = engine->ops->read_events(engine->kernel, header->batch, TABLE_BATCH_EVENTS);
    if (count < 0)
        count = 0;
    atomic_store_explicit(&header->batch_count, (uint32_t)count, memory_order_release);
    if (count > 0) {
        engine->read_ns = now_ns;
        work_on_batch(engine, (uint32_t)count);
    }
    return count;
}

/* --------------------------------------------------------------------------------------------- start, orders, ends */

static void wake_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->regions->count && !engine->gone; i++)
        place_wake(engine, engine->regions->by_page[i].first_page, engine->regions->by_page[i].page_count);
}

/* The worker before us may have died at any instruction. Its last batch is worked on as if it were new, its asks are
 * made again, and every thread that sleeps is woken to fault again: what it had read and not resolved is lost. */
static void take_over(struct engine *engine)
{
    uint32_t count = atomic_load(&engine->table->header->batch_count);

    place_recall(engine);
    unit_take_over(engine);
    engine_asks_lost(engine);
    work_on_batch(engine, count < TABLE_BATCH_EVENTS ? count : TABLE_BATCH_EVENTS);
    empty_batch(engine->table->header, TABLE_BATCH_EVENTS);
    wake_all(engine);
}

void engine_start(struct engine *engine, const struct engine_options *options, uint64_t now_ns)
{
    memset(engine, 0, sizeof(*engine));
    engine->table = options->table;
    engine->regions = options->regions;
    engine->ops = options->ops;
    engine->kernel = options->kernel;
    engine->out = options->out;
    engine->stats = options->stats;
    engine->trace = options->trace;
    engine->private_memory = options->private_memory;
    engine->without_poison = options->without_poison;
    engine->now_ns = now_ns;
    engine->read_ns = now_ns;
    place_count(engine);
    if (atomic_load(&engine->table->header->takeovers) > 0)
        take_over(engine);
}

void engine_mark_stale(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    uint64_t left = first_page < engine->table->page_count ? engine->table->page_count - first_page : 0;
    struct table_header *header = engine->table->header;

    /* What a worker before us has placed may be the guest's already: nothing is marked then. If none had come that far,
     * it may have died while it marked, and all of it is marked again. */
    if (engine->private_memory || (atomic_load(&header->takeovers) > 0 && atomic_load(&header->placed) != 0))
        return;
    for (uint64_t i = 0; i < (page_count < left ? page_count : left); i++) {
        uint64_t word = table_word(engine->table, first_page + i);
        if (page_state(word) == PAGE_MISSING)
            place_word(engine, first_page + i, PAGE_MISSING, true, page_version(word));
    }
}

void engine_arm(struct engine *engine)
{
    if (!wait_armed(engine)) {
        atomic_store_explicit(&engine->table->header->armed, 1, memory_order_release);
        engine->first_early_ns = 0;
        wake_all(engine);
    }
}

static bool sweepable(const struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    return !page_held(word) &&
           page_step(page_state(word), PAGE_EVENT_SWEEP, wait_armed(engine)).action == PAGE_ACTION_MAP;
}

/* Claims a run and maps it; what cannot be mapped now faults and is mapped then. Returns pages mapped. */
static uint64_t sweep_run(struct engine *engine, uint64_t page, uint64_t count)
{
    uint64_t holes, mapped;

    wait_note(engine, page, count, table_word(engine->table, page), PAGE_EVENT_SWEEP, PAGE_ACTION_MAP);
    for (uint64_t i = 0; i < count; i++)
        place_word(engine, page + i, PAGE_OWNED, false, page_version(table_word(engine->table, page + i)));
    holes = stats_get(engine->stats, STATS_absent_total);
    mapped = place_map_or_wake(engine, page, count);
    stats_add(engine->stats, STATS_absent_cached_total, stats_get(engine->stats, STATS_absent_total) - holes);
    return mapped;
}

uint64_t engine_sweep(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    uint64_t end = engine->table->page_count, page = first_page, mapped = 0;

    if (page < end && page_count < end - page)
        end = page + page_count;
    if (unit_many(engine) && page < end)
        mapped = unit_sweep(engine, page, end - page);
    while (page < end && !engine->gone && !unit_many(engine)) {
        uint64_t most, pages = 0;
        if (!sweepable(engine, page)) {
            page++;
            continue;
        }
        most = place_cut(engine, page, end - page);
        while (pages < most && sweepable(engine, page + pages))
            pages++;
        mapped += sweep_run(engine, page, pages);
        page += pages;
    }
    stats_add(engine->stats, STATS_swept_pages_total, mapped);
    return mapped;
}

bool engine_settled(const struct engine *engine)
{
    const struct counts *counts = &engine->counts;
    uint64_t lacking = counts_of(counts, PAGE_MISSING) + counts_of(counts, PAGE_WANTED) + engine->held_count;

    return wait_armed(engine)
               ? lacking + counts_of(counts, PAGE_CACHED) + engine->unclean_count + engine->clearing_count == 0
               : lacking == 0;
}
