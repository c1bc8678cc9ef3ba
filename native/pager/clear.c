/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The actions of place.h for pages without bytes: zeros, removed. Their claim comes first, it needs nothing in memory;
 * the stale bit stays until the cache is clean, and is cleared before ZEROPAGE: from then on the guest may write to the
 * page, and it is never punched again. Poisoned pages are in poison.c.
 */
#include "place.h"

#include <stddef.h>

#define ZERO_TRIES 3

/* Shared memory only. What fails without being refused is tried again like a page without memory. */
enum placing place_punch(struct engine *engine, uint64_t page, uint64_t count)
{
    enum placing status = place_status(place_call(engine, CALL_PUNCH, page, count, NULL).result);

    return status == PLACING_LATER ? PLACING_FULL : status;
}

bool place_in_doubt(uint64_t word)
{
    return page_stale(word) || page_held(word) || page_state(word) == PAGE_CACHED;
}

/* --------------------------------------------------------------------------------------------------------- zeros */

struct placed place_zeros(struct engine *engine, uint64_t page, uint64_t count, uint64_t version)
{
    struct placed placed = {.pages = count, .status = PLACING_DONE};

    if (place_in_doubt(table_word(engine->table, page))) {
        for (uint64_t i = 0; i < count; i++)
            if (page_state(table_word(engine->table, page + i)) == PAGE_CACHED)
                place_word(engine, page + i, PAGE_MISSING, true, version);
        placed.status = place_punch(engine, page, count);
        if (placed.status != PLACING_DONE)
            placed.pages = 0;
    }
    for (uint64_t i = 0; i < placed.pages; i++)
        place_word(engine, page + i, PAGE_ZERO, false, version);
    return placed;
}

void place_removed(struct engine *engine, uint64_t page, uint64_t count)
{
    bool doubt = place_has_cache(engine) && place_in_doubt(table_word(engine->table, page)), held = false;

    for (uint64_t i = 0; i < count; i++) {
        held |= page_held(table_word(engine->table, page + i));
        place_word(engine, page + i, PAGE_ZERO, doubt, place_version(engine, page + i));
    }
    if (doubt && place_punch(engine, page, count) == PLACING_DONE)
        for (uint64_t i = 0; i < count; i++)
            place_word(engine, page + i, PAGE_ZERO, false, place_version(engine, page + i));
    if (held) /* whose threads were left asleep; those of a unit by its start */
        place_wake(engine, regions_unit(engine->regions, page), page % engine->regions->unit_pages + count);
}

/* What the cache holds goes. */
static enum placing clean_zero(struct engine *engine, uint64_t page)
{
    enum placing status = PLACING_DONE;

    if (page_stale(table_word(engine->table, page))) {
        status = place_punch(engine, page, 1);
        if (status == PLACING_DONE)
            place_word(engine, page, PAGE_ZERO, false, place_version(engine, page));
    }
    return status;
}

/* ZEROPAGE found something in a cache that should be empty. After a takeover it is what the worker before us has
 * placed, and the guest may have written to it; else it is nobody's, and goes. True: settled. */
static bool zero_found_something(struct engine *engine, uint64_t page)
{
    bool placed = atomic_load(&engine->table->header->takeovers) > 0;
    uint64_t version = place_version(engine, page);

    if (placed) {
        place_owned(engine, page, 1, version);
        place_map_or_wake(engine, page, 1);
    } else {
        place_word(engine, page, PAGE_ZERO, true, version);
    }
    return placed;
}

/* Whatever is punched, something stays: a page of a huge one that the kernel cannot split, because somebody holds it, is
 * made zeros and kept. Then the page is placed like one with bytes. */
static enum placing write_zeros(struct engine *engine, uint64_t page)
{
    static const uint8_t zeros[PAGE_BYTES];
    uint64_t version = place_version(engine, page);
    struct placed placed = place_write(engine, page, 1, zeros);

    place_owned(engine, page, placed.pages, version);
    if (placed.pages > 0)
        place_map_or_wake(engine, page, placed.pages);
    return placed.status;
}

static enum placing zero_shared(struct engine *engine, uint64_t page)
{
    enum placing status;

    for (int tries = 0; tries < ZERO_TRIES; tries++) {
        struct kernel_outcome outcome;
        status = clean_zero(engine, page);
        if (status != PLACING_DONE)
            return status;
        outcome = place_call(engine, CALL_ZERO, page, 1, NULL);
        if (outcome.result == KERNEL_MAPPED || outcome.result == KERNEL_ABSENT) {
            place_owned(engine, page, 1, place_version(engine, page));
            if (outcome.result == KERNEL_ABSENT) /* no mapping: nothing to do, and nothing to lose */
                place_wake(engine, page, 1);
            return PLACING_DONE;
        }
        if (outcome.result != KERNEL_ALREADY)
            return place_status(outcome.result);
        if (zero_found_something(engine, page))
            return PLACING_DONE;
    }
    return write_zeros(engine, page);
}

enum placing place_zero(struct engine *engine, uint64_t page)
{
    uint64_t version = place_version(engine, page);
    struct placed placed;

    if (!engine->private_memory)
        return zero_shared(engine, page);
    if (page_owed(table_word(engine->table, page))) /* a marker may be there, and only COPY replaces it */
        return place_fresh(engine, page);
    placed = place_mapped(engine, page, 1);
    if (placed.status == PLACING_DONE && !page_held(table_word(engine->table, page)))
        place_owned(engine, page, 1, version);
    return placed.status;
}

/* Together, so that a unit of many pages is given back. */
static uint64_t unclean_run(const struct engine *engine, uint64_t page)
{
    uint64_t most = place_cut(engine, page, engine->table->page_count - page), pages = 0;

    while (pages < most && place_unclean(engine, table_word(engine->table, page + pages)))
        pages++;
    return pages;
}

void place_clean(struct engine *engine)
{
    uint64_t pages = 1;

    for (uint64_t page = 0; page < engine->table->page_count && engine->unclean_count > 0; page += pages) {
        pages = unclean_run(engine, page);
        if (pages > 0 && place_punch(engine, page, pages) != PLACING_DONE)
            break;
        for (uint64_t i = page; i < page + pages; i++)
            place_word(engine, i, page_state(table_word(engine->table, i)), false, place_version(engine, i));
        pages = pages > 0 ? pages : 1;
    }
}
