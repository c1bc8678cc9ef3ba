/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Units of many pages: see unit.h. The order is that of place.c. Shared: all claims, then CONTINUE. Private: COPY, then the
 * claims. Whatever a unit still needs (zeros where the cache is in doubt) is done before either.
 */
#include "unit.h"

#include <stddef.h>

#include "wait.h"

#define HOLE_TRIES 3

/* What the words of a unit say, all together. */
struct tally {
    uint64_t states[PAGE_STATE_COUNT];
    uint64_t held;
};

static struct tally tally_of(const struct engine *engine, uint64_t first_page)
{
    struct tally tally = {.held = 0};

    for (uint64_t i = 0; i < engine->regions->unit_pages; i++) {
        uint64_t word = table_word(engine->table, first_page + i);
        tally.states[page_state(word)]++;
        tally.held += page_held(word);
    }
    return tally;
}

/* One that has begun to be lost is to be lost whole, whatever else is said of it. */
static bool is_whole(const struct tally *tally)
{
    return tally->states[PAGE_MISSING] + tally->states[PAGE_WANTED] + tally->held == 0 ||
           tally->states[PAGE_POISONED] > 0;
}

/* Pages come from the front: what lacks is found soonest from the end. */
bool unit_whole(const struct engine *engine, uint64_t first_page)
{
    struct tally tally;

    for (uint64_t i = engine->regions->unit_pages; i-- > 0 && counts_of(&engine->counts, PAGE_POISONED) == 0;) {
        uint64_t word = table_word(engine->table, first_page + i);
        if (page_state(word) == PAGE_MISSING || page_state(word) == PAGE_WANTED || page_held(word))
            return false;
    }
    tally = tally_of(engine, first_page);
    return is_whole(&tally);
}

/* ---------------------------------------------------------------------------------------------------------- faults */

/* Asks for all that is missing; how many pages that was. One of them stands for the fault in the histogram. */
static uint64_t ask_for(struct engine *engine, uint64_t first_page)
{
    uint64_t asked = 0;

    for (uint64_t page = first_page; page < first_page + engine->regions->unit_pages; page++) {
        uint64_t word = table_word(engine->table, page);
        if (page_state(word) != PAGE_MISSING)
            continue;
        place_word(engine, page, PAGE_WANTED, page_stale(word), page_version(word));
        if (asked++ == 0)
            wait_ask(engine, page);
        else
            wait_ask_with(engine, page);
    }
    return asked;
}

bool unit_fault(struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page), asked = 0;
    uint64_t word = table_word(engine->table, first_page);
    struct tally tally = tally_of(engine, first_page);
    enum page_action action = PAGE_ACTION_NOTHING;

    if (is_whole(&tally)) {
        stats_add(engine->stats, STATS_faults_again_total, wait_parked(engine, first_page));
        return wait_settle(engine, first_page);
    }
    if (tally.held == 0)
        asked = ask_for(engine, first_page);
    if (asked > 0)
        action = PAGE_ACTION_ASK;
    else
        stats_add(engine->stats, STATS_faults_again_total, 1);
    wait_note(engine, first_page, engine->regions->unit_pages, word, PAGE_EVENT_FAULT, action);
    return false;
}

/* --------------------------------------------------------------------------------------------------------- mapping */

static void claim(struct engine *engine, uint64_t first_page)
{
    for (uint64_t i = 0; i < engine->regions->unit_pages; i++)
        if (page_state(table_word(engine->table, first_page + i)) != PAGE_OWNED)
            place_word(engine, first_page + i, PAGE_OWNED, false, place_version(engine, first_page + i));
}

static void wake_unit(struct engine *engine, uint64_t first_page)
{
    place_wake(engine, first_page, engine->regions->unit_pages);
}

static struct kernel_outcome call_unit(struct engine *engine, enum call call, uint64_t first_page)
{
    return place_call(engine, call, first_page, engine->regions->unit_pages, NULL);
}

/* What is claimed as zeros, and may hold something else in the cache, gets its zeros. */
static enum placing clean_zeros(struct engine *engine, uint64_t first_page)
{
    uint64_t page = first_page, end = first_page + engine->regions->unit_pages, pages;

    for (; page < end; page += pages) {
        struct kernel_outcome outcome;
        pages = 0;
        while (page + pages < end && page_state(table_word(engine->table, page + pages)) == PAGE_ZERO &&
               page_stale(table_word(engine->table, page + pages)))
            pages++;
        if (pages == 0) {
            pages = 1;
            continue;
        }
        outcome = place_call(engine, CALL_PUNCH, page, pages, NULL);
        if (outcome.result != KERNEL_MAPPED)
            return outcome.result == KERNEL_LATER ? PLACING_FULL : place_status(outcome.result);
        for (uint64_t i = page; i < page + pages; i++)
            place_word(engine, i, PAGE_ZERO, false, place_version(engine, i));
    }
    return PLACING_DONE;
}

/* Claimed, all of it. A hole was punched by the VMM: it reads zero from now on. What remains in doubt is woken. */
static enum placing map_shared(struct engine *engine, uint64_t first_page)
{
    for (int tries = 0; tries < HOLE_TRIES; tries++) {
        struct kernel_outcome outcome = call_unit(engine, CALL_MAP, first_page);
        if (outcome.result == KERNEL_ABSENT)
            outcome = call_unit(engine, CALL_ZERO, first_page);
        else if (outcome.result == KERNEL_ALREADY)
            break;
        if (outcome.result == KERNEL_MAPPED)
            return PLACING_DONE;
        if (outcome.result == KERNEL_ABSENT)
            break;
        if (outcome.result != KERNEL_ALREADY) /* else something has filled the hole in between */
            return place_status(outcome.result);
    }
    wake_unit(engine, first_page);
    return PLACING_DONE;
}

/* Nothing but zeros, and none of it claimed as the guest's. Something there: zeros that were written to the cache, or what
 * the worker before us has placed. */
static enum placing map_zeros(struct engine *engine, uint64_t first_page)
{
    struct kernel_outcome outcome = call_unit(engine, CALL_ZERO, first_page);
    enum placing status = PLACING_DONE;

    if (outcome.result != KERNEL_MAPPED && outcome.result != KERNEL_ALREADY && outcome.result != KERNEL_ABSENT)
        return place_status(outcome.result);
    claim(engine, first_page);
    if (outcome.result == KERNEL_ALREADY && !engine->private_memory)
        status = map_shared(engine, first_page);
    else if (outcome.result != KERNEL_MAPPED)
        wake_unit(engine, first_page);
    return status;
}

/* All of it claimed, and the mapping gone: a balloon took it, so it is zero. */
static enum placing map_private_again(struct engine *engine, uint64_t first_page)
{
    struct kernel_outcome outcome = call_unit(engine, CALL_ZERO, first_page);

    if (outcome.result == KERNEL_ALREADY || outcome.result == KERNEL_ABSENT)
        wake_unit(engine, first_page);
    else if (outcome.result != KERNEL_MAPPED)
        return place_status(outcome.result);
    return PLACING_DONE;
}

/* Something there is what a worker before us has copied, and was killed before its claims: nobody else maps anything. No
 * mapping is one that a balloon is just taking away. */
static enum placing copy_private(struct engine *engine, uint64_t first_page)
{
    struct kernel_outcome outcome = call_unit(engine, CALL_MAP, first_page);
    bool placed = outcome.result == KERNEL_ALREADY && atomic_load(&engine->table->header->takeovers) > 0;

    if (outcome.result != KERNEL_MAPPED && outcome.result != KERNEL_ABSENT && !placed)
        return place_status(outcome.result);
    claim(engine, first_page);
    if (outcome.result != KERNEL_MAPPED) {
        call_unit(engine, CALL_PUNCH, first_page); /* what is staged is of no use any more */
        wake_unit(engine, first_page);
    }
    return PLACING_DONE;
}

static enum placing map_unit(struct engine *engine, uint64_t first_page, const struct tally *tally)
{
    enum placing status = PLACING_DONE;

    if (tally->states[PAGE_OWNED] == engine->regions->unit_pages)
        return engine->private_memory ? map_private_again(engine, first_page) : map_shared(engine, first_page);
    status = clean_zeros(engine, first_page);
    if (status != PLACING_DONE)
        return status;
    if (tally->states[PAGE_OWNED] + tally->states[PAGE_CACHED] == 0) {
        status = map_zeros(engine, first_page);
    } else if (!engine->private_memory) {
        claim(engine, first_page);
        status = map_shared(engine, first_page);
    } else {
        status = copy_private(engine, first_page);
    }
    if (status == PLACING_DONE)
        wait_observe(engine, first_page, engine->regions->unit_pages);
    return status;
}

enum placing unit_resolve(struct engine *engine, uint64_t first_page)
{
    struct tally tally = tally_of(engine, first_page);

    if (tally.states[PAGE_POISONED] == 0)
        return map_unit(engine, first_page, &tally);
    if (tally.states[PAGE_POISONED] < engine->regions->unit_pages) /* a worker was killed while it lost them */
        place_lost_rest(engine, first_page);
    return place_poison(engine, first_page);
}

/* ---------------------------------------------------------------------------------------------------------- arrival */

struct placed unit_place(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version)
{
    struct placed placed;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t word = table_word(engine->table, page + i);
        place_word(engine, page + i, page_state(word), true, page_version(word));
    }
    placed = place_write(engine, page, count, bytes);
    for (uint64_t i = 0; i < placed.pages; i++)
        place_word(engine, page + i, PAGE_CACHED, false, version);
    if (placed.pages > 0)
        unit_arrived(engine, page);
    return placed;
}

/* Whole, not nothing but zeros, and not the guest's or lost already. */
static bool to_be_mapped(const struct engine *engine, uint64_t first_page)
{
    struct tally tally;

    if (!unit_whole(engine, first_page))
        return false;
    tally = tally_of(engine, first_page);
    return tally.states[PAGE_CACHED] > 0 && tally.states[PAGE_POISONED] == 0;
}

void unit_arrived(struct engine *engine, uint64_t page)
{
    uint64_t first_page = regions_unit(engine->regions, page);

    if (unit_many(engine) && wait_armed(engine) && to_be_mapped(engine, first_page))
        wait_settle(engine, first_page);
}

uint64_t unit_sweep(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    uint64_t page = regions_unit(engine->regions, first_page), mapped = 0;

    for (; page < first_page + page_count && !engine->gone && wait_armed(engine); page += engine->regions->unit_pages)
        if (to_be_mapped(engine, page) && wait_settle(engine, page))
            mapped += engine->regions->unit_pages;
    return mapped;
}

/* ---------------------------------------------------------------------------------------------------------- takeover */

/* The staging file is a new one, and empty. */
static void forget_staged(struct engine *engine, uint64_t first_page)
{
    for (uint64_t i = first_page; i < first_page + engine->regions->unit_pages; i++) {
        uint64_t word = table_word(engine->table, i);
        if (page_state(word) == PAGE_CACHED)
            place_word(engine, i, PAGE_MISSING, false, page_version(word));
        else if (page_stale(word) && page_state(word) != PAGE_POISONED && !page_held(word))
            place_word(engine, i, page_state(word), false, page_version(word));
    }
}

void unit_take_over(struct engine *engine)
{
    if (!unit_many(engine) || !engine->private_memory)
        return;
    for (uint64_t page = 0; page < engine->table->page_count; page += engine->regions->unit_pages) {
        struct tally tally = tally_of(engine, page);
        if (tally.states[PAGE_OWNED] > 0 && tally.states[PAGE_POISONED] == 0)
            claim(engine, page);
        else
            forget_staged(engine, page);
    }
}
