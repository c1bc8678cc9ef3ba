/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that are lost, and those whose poison ends. The order is the rule, so that it may be killed between any two
 * calls:
 *   lost      the word, with what is owed; then the bytes go out of the cache, and with them every mapping; then the
 *             marker; then the log. Before arming there is no marker: its fault comes after it
 *   cleared   bytes are gone; the word says ZERO, owed and fresh; then zeros take the place of the marker; then OWNED;
 *             then the log. The log keeps room for those that are under way
 * Each entry of the log is put while its word says that it is owed, and the word is told at once: of two that would be
 * one a successor can tell by the newest entry.
 *
 * On private memory only the VMM can take a mapping away. Until it has, the word is stale, and such poison cannot be
 * cleared: the old bytes would be back. It is marked when it faults again.
 */
#include "log.h"
#include "wait.h"

#include <stddef.h>

#define OWED_A_TICK 256 /* pages: bounds how long a fault waits behind them */

static bool is_lost(uint64_t word)
{
    return page_state(word) == PAGE_POISONED;
}

/* Its place is not one that is kept for a page whose poison ends. */
static bool log_takes_lost(const struct engine *engine)
{
    return log_room(engine->table) > engine->clearing_count;
}

static void log_owed(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);
    uint8_t flags = 0;

    if (!page_owed(word) || (is_lost(word) && !log_takes_lost(engine)))
        return;
    if (is_lost(word))
        flags = (word & PAGE_HAD ? LOG_WAS_MAPPED : 0) | (engine->private_memory && page_stale(word) ? LOG_MAPPED : 0) |
                (page_held(word) ? LOG_HELD : 0);
    log_put(engine->table, is_lost(word) ? LOG_POISONED : LOG_CLEARED, page, flags);
    place_store(engine, page, word & ~(PAGE_OWED | PAGE_HAD));
}

/* What is owed for this page, as far as it can be done now; last, that it is told. */
static void settle(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    if (is_lost(word) && page_stale(word) && !engine->private_memory) {
        if (place_punch(engine, page, 1) != PLACING_DONE)
            return;
        place_word(engine, page, PAGE_POISONED, false, page_version(word));
    }
    if (wait_armed(engine) && !page_held(word) && (is_lost(word) || page_state(word) == PAGE_ZERO) &&
        !wait_settle(engine, page) && !page_held(table_word(engine->table, page)))
        return;
    if (!engine->gone)
        log_owed(engine, page);
}

/* ---------------------------------------------------------------------------------------------------------- lost */

void place_lost(struct engine *engine, uint64_t page, uint64_t version)
{
    uint64_t word = table_word(engine->table, page), bits = PAGE_OWED;
    bool successor = atomic_load(&engine->table->header->takeovers) > 0; /* of one that placed it perhaps, unclaimed */
    bool had = page_state(word) == PAGE_OWNED || (successor && wait_armed(engine));
    bool doubt = had || (!engine->private_memory && place_in_doubt(word));

    if (page_owed(word)) /* that its poison was cleared comes first; room is kept for that */
        log_owed(engine, page);
    if (had)
        bits |= PAGE_HAD;
    if (engine->without_poison)
        bits |= PAGE_HELD;
    place_store(engine, page, page_word(PAGE_POISONED, doubt, version) | bits);
    stats_add(engine->stats, STATS_poisoned_pages_total, 1);
    settle(engine, page);
}

/* A kernel that cannot: who touches the page waits. Where that was not told with the entry of the log, it is an alarm. */
static void hold(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    if (page_owed(word))
        place_store(engine, page, word | PAGE_HELD);
    else
        place_hold(engine, page, "the kernel cannot poison: who touches a lost page waits");
}

enum placing place_poison(struct engine *engine, uint64_t page)
{
    struct kernel_outcome outcome = {.result = KERNEL_REFUSED};
    enum placing status = PLACING_DONE;

    if (!engine->without_poison)
        outcome = place_call(engine, CALL_POISON, page, 1, NULL);
    switch (outcome.result) {
    case KERNEL_MAPPED: /* so nothing was: private memory has let go of the bytes too */
        if (engine->private_memory)
            place_store(engine, page, table_word(engine->table, page) & ~PAGE_STALE);
        break;
    case KERNEL_ALREADY: /* marked before; or mapped still, on private memory */
    case KERNEL_ABSENT:
        place_wake(engine, page, 1);
        break;
    case KERNEL_REFUSED:
        hold(engine, page);
        status = PLACING_HELD;
        break;
    default:
        status = place_status(outcome.result);
        break;
    }
    return status;
}

uint64_t engine_lost(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    uint64_t end = engine->table->page_count, changed = 0;

    if (first_page < end && page_count < end - first_page)
        end = first_page + page_count;
    for (uint64_t page = first_page; page < end && !engine->gone; page++) {
        uint64_t word = table_word(engine->table, page), version = page_version(word);
        struct page_step step = page_step(page_state(word), PAGE_EVENT_LOST, wait_armed(engine));
        if (step.action != PAGE_ACTION_POISON)
            continue;
        place_lost(engine, page, version != 0 ? version : engine->frozen_version);
        wait_note(engine, page, 1, word, PAGE_EVENT_LOST, PAGE_ACTION_POISON);
        changed++;
    }
    return changed;
}

/* --------------------------------------------------------------------------------------------------------- cleared */

enum placing place_fresh(struct engine *engine, uint64_t page)
{
    static const uint8_t zeros[PAGE_BYTES];
    struct kernel_outcome outcome = place_call(engine, CALL_COPY, page, 1, zeros);
    enum placing status = PLACING_DONE;

    /* ALREADY: a worker before us has done it; the lost bytes were gone before the claim. */
    if (outcome.result == KERNEL_MAPPED || outcome.result == KERNEL_ALREADY || outcome.result == KERNEL_ABSENT) {
        place_owned(engine, page, 1, place_version(engine, page));
        if (outcome.result != KERNEL_MAPPED)
            place_wake(engine, page, 1);
    } else {
        status = place_status(outcome.result);
    }
    return status;
}

/* False: not now. The log is full, or the bytes cannot be dropped. */
static bool clear_page(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    log_owed(engine, page);
    if (page_owed(table_word(engine->table, page)) || !log_takes_lost(engine))
        return false;
    if (page_stale(word) && place_punch(engine, page, 1) != PLACING_DONE)
        return false;
    place_store(engine, page, page_word(PAGE_ZERO, false, page_version(word)) | PAGE_OWED | PAGE_FRESH);
    stats_add(engine->stats, STATS_poison_cleared_pages_total, 1);
    settle(engine, page);
    wait_note(engine, page, 1, word, PAGE_EVENT_CLEARED, PAGE_ACTION_FRESH);
    return true;
}

uint64_t engine_cleared(struct engine *engine, uint64_t first_page, uint64_t page_count, uint64_t *changed)
{
    uint64_t end = engine->table->page_count, page = first_page;

    if (page < end && page_count < end - page)
        end = page + page_count;
    for (; page < end && !engine->gone; page++) {
        uint64_t word = table_word(engine->table, page);
        struct page_step step = page_step(page_state(word), PAGE_EVENT_CLEARED, wait_armed(engine));
        if (step.action != PAGE_ACTION_FRESH || (engine->private_memory && page_stale(word)))
            continue;
        if (!clear_page(engine, page))
            break;
        *changed += 1;
    }
    return page - first_page;
}

bool engine_clings(const struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    return engine->private_memory && is_lost(word) && page_stale(word);
}

/* ----------------------------------------------------------------------------------------------------------- owed */

/* A full log waits for its readers; what is lost is out of the guest's reach all the same. */
static bool worth_a_try(const struct engine *engine, uint64_t word)
{
    return page_owed(word) && (!is_lost(word) || page_stale(word) || log_takes_lost(engine));
}

void place_owed(struct engine *engine)
{
    uint64_t page_count = engine->table->page_count, tries = 0;

    for (uint64_t i = 0; i < page_count && tries < OWED_A_TICK && engine->owed_count > 0 && !engine->gone; i++) {
        uint64_t page = engine->owed_page;
        engine->owed_page = page + 1 < page_count ? page + 1 : 0;
        if (worth_a_try(engine, table_word(engine->table, page))) {
            settle(engine, page);
            tries++;
        }
    }
}

bool engine_owes(const struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    bool owes = false;

    for (uint64_t i = 0; engine->owed_count > 0 && !owes && i < page_count; i++)
        owes = page_owed(table_word(engine->table, first_page + i));
    return owes;
}

void place_recall(struct engine *engine)
{
    struct table_log_entry newest;
    uint64_t word;

    if (!log_newest(engine->table, &newest) || newest.page >= engine->table->page_count)
        return;
    word = table_word(engine->table, newest.page);
    if (page_owed(word) && is_lost(word) == (newest.kind == LOG_POISONED))
        place_store(engine, newest.page, word & ~(PAGE_OWED | PAGE_HAD));
}
