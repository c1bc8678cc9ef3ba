/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The actions of place.h. The order in each of them is the rule, so that it may be killed between any two calls:
 *   not stale      COPY, then the word: a successor's COPY answers "already" and cannot overwrite
 *   stale          write, then the word, then CONTINUE: before the word nothing is mapped, so writing again is harmless
 * Pages without bytes are in clear.c.
 */
#include "place.h"

#include <stddef.h>

#include "unit.h"
#include "wait.h"

#define HOLE_TRIES 3

/* ---------------------------------------------------------------------------------------------- mapping what is */

/* An OWNED page of shared memory whose CONTINUE found a hole: the VMM has discarded it. Something that fills the hole
 * between our two calls is mapped instead; whatever remains in doubt is woken and faults again. */
static enum placing fill_hole(struct engine *engine, uint64_t page)
{
    struct kernel_outcome outcome;

    for (int tries = 0; tries < HOLE_TRIES; tries++) {
        outcome = place_call(engine, CALL_ZERO, page, 1, NULL);
        if (outcome.result == KERNEL_ALREADY) {
            outcome = place_call(engine, CALL_MAP, page, 1, NULL);
            if (outcome.result == KERNEL_ABSENT)
                continue;
        }
        if (outcome.result == KERNEL_MAPPED)
            return PLACING_DONE;
        if (outcome.result != KERNEL_ALREADY && outcome.result != KERNEL_ABSENT)
            return place_status(outcome.result);
        break;
    }
    place_wake(engine, page, 1);
    return PLACING_DONE;
}

/* An OWNED page of private memory has lost its mapping: a balloon took it, so it is zero. */
static enum placing map_private(struct engine *engine, uint64_t page)
{
    struct kernel_outcome outcome = place_call(engine, CALL_ZERO, page, 1, NULL);
    enum placing status = PLACING_DONE;

    if (outcome.result == KERNEL_ALREADY || outcome.result == KERNEL_ABSENT)
        place_wake(engine, page, 1); /* it is mapped; or its mapping is gone, and there is nothing left to do */
    else if (outcome.result != KERNEL_MAPPED)
        status = place_status(outcome.result);
    return status;
}

struct placed place_mapped(struct engine *engine, uint64_t page, uint64_t count)
{
    struct placed placed = {.status = PLACING_DONE};

    while (placed.pages < count && placed.status == PLACING_DONE) {
        uint64_t at = page + placed.pages;
        struct kernel_outcome outcome;
        if (engine->private_memory) {
            placed.status = map_private(engine, at);
            placed.pages += placed.status == PLACING_DONE;
            continue;
        }
        outcome = place_call(engine, CALL_MAP, at, count - placed.pages, NULL);
        placed.pages += outcome.done_bytes / PAGE_BYTES;
        at = page + placed.pages;
        if (outcome.result == KERNEL_ALREADY)
            place_wake(engine, at, 1);
        else if (outcome.result == KERNEL_ABSENT)
            placed.status = fill_hole(engine, at);
        else if (outcome.result != KERNEL_MAPPED)
            placed.status = place_status(outcome.result);
        if (placed.status == PLACING_HELD)
            placed.status = PLACING_DONE;
        if (outcome.result != KERNEL_MAPPED && placed.status == PLACING_DONE)
            placed.pages++;
    }
    return placed;
}

uint64_t place_map_or_wake(struct engine *engine, uint64_t page, uint64_t count)
{
    struct placed placed;
    uint64_t mapped = 0;
    int tries = 0;

    do {
        placed = place_mapped(engine, page + mapped, count - mapped);
        mapped += placed.pages;
    } while (placed.status == PLACING_LATER && wait_drain(engine, &tries));
    if (mapped < count)
        place_wake(engine, page + mapped, count - mapped);
    return mapped;
}

/* --------------------------------------------------------------------------------------------------------- bytes */

/* COPY said that something is there. On private memory that is a mapping. On shared memory it is something in the
 * cache: what the worker before us has placed; or else room that somebody has made since the hand-off, by reserving it
 * or by a read through another mapping. Such a page is not mapped in the VMM, and is placed like any that is stale. */
static enum placing copy_found_something(struct engine *engine, uint64_t page, const uint8_t *bytes, uint64_t version)
{
    uint64_t word = table_word(engine->table, page);
    enum placing status = PLACING_DONE;

    if (engine->private_memory) {
        place_owned(engine, page, 1, version);
        place_wake(engine, page, 1);
    } else if (atomic_load(&engine->table->header->takeovers) > 0) {
        place_owned(engine, page, 1, version);
        place_map_or_wake(engine, page, 1);
    } else {
        if (stats_get(engine->stats, STATS_already_copies_total) == 1) /* said once, counted always */
            wait_alarm(engine, page, 0, "the RAM file held something where nobody had written, and is written over: "
                                        "which other process reads, fills or reserves it?");
        place_word(engine, page, page_state(word), true, page_version(word));
        status = place_data(engine, page, 1, bytes, version).status;
    }
    return status;
}

/* COPY found no mapping. On private memory that is a page which a balloon is just taking away, and done; on shared
 * memory nothing of ours takes mappings away. */
static enum placing copy_found_nothing(struct engine *engine, uint64_t page, uint64_t version)
{
    enum placing status = PLACING_DONE;

    if (engine->private_memory) {
        place_owned(engine, page, 1, version);
    } else {
        place_hold(engine, page, "the VMM has no memory at this page any more: the page is held back");
        status = PLACING_HELD;
    }
    place_wake(engine, page, 1);
    return status;
}

static struct placed copy_run(struct engine *engine, uint64_t page, uint64_t count, const uint8_t *bytes,
                              uint64_t version)
{
    struct placed placed = {.status = PLACING_DONE};
    uint64_t most = count;

    while (placed.pages < count && placed.status == PLACING_DONE) {
        uint64_t pages = count - placed.pages < most ? count - placed.pages : most;
        struct kernel_outcome outcome = place_call(engine, CALL_COPY, page + placed.pages, pages,
                                                   bytes + placed.pages * PAGE_BYTES);
        uint64_t done = outcome.done_bytes / PAGE_BYTES, at = page + placed.pages + done;
        place_owned(engine, page + placed.pages, done, version);
        placed.pages += done;
        if (outcome.result == KERNEL_MAPPED)
            continue;
        if (outcome.result == KERNEL_ABSENT && pages - done > 1) {
            most = 1; /* the mapping may only be split: each page by itself */
            continue;
        }
        if (outcome.result == KERNEL_ALREADY)
            placed.status = copy_found_something(engine, at, bytes + placed.pages * PAGE_BYTES, version);
        else if (outcome.result == KERNEL_ABSENT)
            placed.status = copy_found_nothing(engine, at, version);
        else
            placed.status = place_status(outcome.result);
        placed.pages += placed.status == PLACING_DONE;
    }
    return placed;
}

struct placed place_write(struct engine *engine, uint64_t page, uint64_t count, const void *bytes)
{
    struct kernel_outcome outcome = place_call(engine, CALL_POPULATE, page, count, bytes);
    struct placed placed = {.pages = outcome.done_bytes / PAGE_BYTES, .status = PLACING_DONE};

    if (outcome.result != KERNEL_MAPPED)
        placed.status = place_status(outcome.result);
    return placed;
}

struct placed place_data(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version)
{
    struct placed placed;

    if (unit_many(engine))
        return unit_place(engine, page, count, bytes, version);
    if (engine->private_memory || !page_stale(table_word(engine->table, page))) {
        placed = copy_run(engine, page, count, bytes, version);
    } else {
        placed = place_write(engine, page, count, bytes);
        place_owned(engine, page, placed.pages, version);
        if (placed.pages > 0)
            place_map_or_wake(engine, page, placed.pages);
    }
    return placed;
}

struct placed place_cached(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version)
{
    struct placed placed;

    for (uint64_t i = 0; i < count; i++) {
        bool missing = page_state(table_word(engine->table, page + i)) == PAGE_MISSING;
        /* Bytes of an older version are gone once the write begins; nothing below the new one will do then. */
        place_word(engine, page + i, PAGE_MISSING, true, missing ? place_version(engine, page + i) : version);
    }
    placed = place_write(engine, page, count, bytes);
    for (uint64_t i = 0; i < placed.pages; i++)
        place_word(engine, page + i, PAGE_CACHED, false, version);
    return placed;
}
