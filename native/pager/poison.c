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
 * A marker is no smaller than what the kernel maps at once: where that is a unit of many pages, all of it is lost
 * together and cleared together, each page with its own entry of the log.
 *
 * On private memory only the VMM can take a mapping away: it is asked to, where it can be. Until it has, the word is
 * stale, and such poison cannot be cleared: the old bytes would be back. It is marked when it faults again.
 */
#include "log.h"
#include "unit.h"
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

/* Shared memory: the bytes of a unit that is lost go together, so that it is given back. False: not now. */
static bool drop_lost(struct engine *engine, uint64_t first_page)
{
    uint64_t end = first_page + engine->regions->unit_pages, stale = 0;

    for (uint64_t page = first_page; page < end && !engine->private_memory; page++)
        stale += is_lost(table_word(engine->table, page)) && page_stale(table_word(engine->table, page));
    if (stale > 0 && place_punch(engine, first_page, end - first_page) != PLACING_DONE)
        return false;
    for (uint64_t page = first_page; page < end && stale > 0; page++)
        if (is_lost(table_word(engine->table, page)))
            place_word(engine, page, PAGE_POISONED, false, place_version(engine, page));
    return true;
}

/* What is owed for this page and its unit, as far as it can be done now; last, that it is told. */
static void settle(struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page), word;

    if (!drop_lost(engine, first_page))
        return;
    word = table_word(engine->table, page);
    if (wait_armed(engine) && !page_held(word) && (is_lost(word) || page_state(word) == PAGE_ZERO) &&
        !wait_settle(engine, page) && !page_held(table_word(engine->table, page)))
        return;
    if (engine_clings(engine, page) && page_owed(word) && engine->out.drop != NULL &&
        engine->out.drop(engine->out.owner, first_page, engine->regions->unit_pages))
        return;
    for (uint64_t i = 0; i < engine->regions->unit_pages && !engine->gone; i++)
        log_owed(engine, first_page + i);
}

/* ---------------------------------------------------------------------------------------------------------- lost */

static void claim_lost(struct engine *engine, uint64_t page, uint64_t version)
{
    uint64_t word = table_word(engine->table, page), bits = PAGE_OWED;
    bool successor = atomic_load(&engine->table->header->takeovers) > 0; /* of one that placed it perhaps, unclaimed */
    bool had = page_state(word) == PAGE_OWNED || (successor && wait_armed(engine));
    bool doubt = had || (!engine->private_memory && (place_in_doubt(word) || unit_many(engine)));

    if (page_owed(word)) /* that its poison was cleared comes first; room is kept for that */
        log_owed(engine, page);
    if (had)
        bits |= PAGE_HAD;
    if (engine->without_poison)
        bits |= PAGE_HELD;
    place_store(engine, page, page_word(PAGE_POISONED, doubt, version) | bits);
    stats_add(engine->stats, STATS_poisoned_pages_total, 1);
}

/* A page without a floor is one of an image that never changes: all its pages have one version. */
static uint64_t version_at_a_loss(const struct engine *engine, uint64_t page)
{
    uint64_t version = place_version(engine, page);

    return version != 0 ? version : engine->frozen_version;
}

/* Those of the unit that are not lost yet; how many they were. What was staged of it is of no use any more. */
static uint64_t claim_rest(struct engine *engine, uint64_t first_page)
{
    uint64_t pages = engine->regions->unit_pages, lost = 0;

    for (uint64_t page = first_page; page < first_page + pages; page++)
        if (!is_lost(table_word(engine->table, page))) {
            claim_lost(engine, page, version_at_a_loss(engine, page));
            lost++;
        }
    if (engine->private_memory && unit_many(engine))
        place_punch(engine, first_page, pages);
    return lost;
}

/* With what shares its unit. */
static uint64_t claim_with_unit(struct engine *engine, uint64_t page, uint64_t version)
{
    claim_lost(engine, page, version);
    return 1 + (unit_many(engine) ? claim_rest(engine, regions_unit(engine->regions, page)) : 0);
}

uint64_t place_lost(struct engine *engine, uint64_t page, uint64_t version)
{
    uint64_t lost = claim_with_unit(engine, page, version);

    settle(engine, page);
    return lost;
}

void place_broken(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    if (is_lost(word))
        return;
    claim_with_unit(engine, page, version_at_a_loss(engine, page));
    engine->owed_due_ns = engine->now_ns;
    wait_note(engine, page, 1, word, PAGE_EVENT_LOST, PAGE_ACTION_POISON);
}

void place_lost_rest(struct engine *engine, uint64_t first_page)
{
    claim_rest(engine, first_page);
    drop_lost(engine, first_page);
}

/* A kernel that cannot: who touches the page waits. Where that was not told with the entry of the log, it is an alarm. */
static void hold(struct engine *engine, uint64_t first_page)
{
    for (uint64_t page = first_page; page < first_page + engine->regions->unit_pages; page++) {
        uint64_t word = table_word(engine->table, page);
        if (page_owed(word) || page != first_page)
            place_store(engine, page, word | PAGE_HELD);
        else
            place_hold(engine, page, "the kernel cannot poison: who touches a lost page waits");
    }
}

void engine_dropped(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    for (uint64_t page = first_page; page < first_page + page_count && counts_of(&engine->counts, PAGE_POISONED) > 0; page++)
        if (engine_clings(engine, page))
            place_store(engine, page, table_word(engine->table, page) & ~PAGE_STALE);
}

enum placing place_poison(struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page), pages = engine->regions->unit_pages;
    struct kernel_outcome outcome = {.result = KERNEL_REFUSED};
    enum placing status = PLACING_DONE;

    if (!engine->without_poison)
        outcome = place_call(engine, CALL_POISON, first_page, pages, NULL);
    switch (outcome.result) {
    case KERNEL_MAPPED: /* so nothing was */
        engine_dropped(engine, first_page, pages);
        break;
    case KERNEL_ALREADY: /* marked before; or mapped still, on private memory */
    case KERNEL_ABSENT:
        place_wake(engine, first_page, pages);
        break;
    case KERNEL_REFUSED:
        hold(engine, first_page);
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
        uint64_t word = table_word(engine->table, page);
        struct page_step step = page_step(page_state(word), PAGE_EVENT_LOST, wait_armed(engine));
        if (step.action != PAGE_ACTION_POISON)
            continue;
        changed += place_lost(engine, page, version_at_a_loss(engine, page));
        wait_note(engine, page, 1, word, PAGE_EVENT_LOST, PAGE_ACTION_POISON);
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

/* Pages of the unit that are lost, each of them told; 0: one is not. */
static uint64_t lost_and_told(struct engine *engine, uint64_t first_page)
{
    uint64_t lost = 0;

    for (uint64_t page = first_page; page < first_page + engine->regions->unit_pages; page++) {
        log_owed(engine, page);
        if (page_owed(table_word(engine->table, page)))
            return 0;
        lost += is_lost(table_word(engine->table, page));
    }
    return lost;
}

/* The page, and what shares its marker; how many those were. 0: not now. The log is full, or the bytes cannot be
 * dropped. */
static uint64_t clear_page(struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page), end = first_page + engine->regions->unit_pages;
    uint64_t word = table_word(engine->table, page), lost = lost_and_told(engine, first_page);

    if (lost == 0 || log_room(engine->table) < engine->clearing_count + lost || !drop_lost(engine, first_page))
        return 0;
    for (uint64_t i = first_page; i < end; i++)
        if (is_lost(table_word(engine->table, i)))
            place_store(engine, i, page_word(PAGE_ZERO, false, place_version(engine, i)) | PAGE_OWED | PAGE_FRESH);
    stats_add(engine->stats, STATS_poison_cleared_pages_total, lost);
    settle(engine, page);
    wait_note(engine, page, lost, word, PAGE_EVENT_CLEARED, PAGE_ACTION_FRESH);
    return lost;
}

/* Something of the unit clings to the guest; or it is so large that the log cannot tell of all of it. */
static bool cannot_be_cleared(const struct engine *engine, uint64_t page)
{
    return engine_unit_clings(engine, page) || engine->regions->unit_pages > engine->table->header->log_capacity;
}

uint64_t engine_cleared(struct engine *engine, uint64_t first_page, uint64_t page_count, uint64_t *changed)
{
    uint64_t end = engine->table->page_count, page = first_page;

    if (page < end && page_count < end - page)
        end = page + page_count;
    for (; page < end && !engine->gone; page++) {
        uint64_t word = table_word(engine->table, page), cleared;
        struct page_step step = page_step(page_state(word), PAGE_EVENT_CLEARED, wait_armed(engine));
        if (step.action != PAGE_ACTION_FRESH || cannot_be_cleared(engine, page))
            continue;
        cleared = clear_page(engine, page);
        if (cleared == 0)
            break;
        *changed += cleared;
    }
    return page - first_page;
}

bool engine_clings(const struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    return engine->private_memory && is_lost(word) &&
           (page_stale(word) || page - engine->zap_first < engine->zap_count);
}

bool engine_unit_clings(const struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page), end = first_page + engine->regions->unit_pages;
    bool clings = false;

    for (uint64_t i = first_page; i < end; i++)
        clings |= engine_clings(engine, i);
    return clings;
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
