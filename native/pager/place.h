/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a page gets into memory: the actions of the page machine, done with kernel_ops in the order of DESIGN 3.5, so
 * that a kill between any two lines leaves a word from which a successor goes on. Inside the pager only: engine.c
 * decides which action, this file carries it out and writes the words.
 */
#ifndef PAGEFERRY_PLACE_H
#define PAGEFERRY_PLACE_H

#include "engine.h"

#define PLACE_RUN_MAX 512 /* pages in one kernel call: bounds how long a fault waits behind it */

/* How an action ended. */
enum placing {
    PLACING_DONE = 0,
    PLACING_LATER, /* events wait unread, or the VMM is just dropping something: try again soon */
    PLACING_FULL,  /* no memory: try again after a while */
    PLACING_GONE,
    PLACING_HELD   /* it cannot be done at all: the page is held back, or lost */
};

/* For a run: pages that are settled, from its start, and how it ended for the page behind them. */
struct placed {
    uint64_t pages;
    enum placing status;
};

/* word.c: every change of a word after the start. */

/* Counts all words, once, at the start. */
void place_count(struct engine *engine);
/* Writes a word, and keeps the counts. */
void place_store(struct engine *engine, uint64_t page, uint64_t word);
/* The same, of these parts; what else the word says stays, unless it is of the state that is left. Ends the holding back
 * of the page; of a poisoned one, that was and is, it does not. */
void place_word(struct engine *engine, uint64_t page, enum page_state state, bool stale, uint64_t version);
void place_owned(struct engine *engine, uint64_t page, uint64_t count, uint64_t version);
/* What cannot be, was: says so, and nothing is done to the page any more. */
void place_hold(struct engine *engine, uint64_t page, const char *text);
/* Claimed as zeros or poison, but the cache has not been emptied yet. */
bool place_unclean(const struct engine *engine, uint64_t word);

static inline uint64_t place_version(const struct engine *engine, uint64_t page)
{
    return page_version(table_word(engine->table, page));
}

/* Bytes can lie somewhere before they are mapped: in the page cache, or in the staging file of private units. */
static inline bool place_has_cache(const struct engine *engine)
{
    return !engine->private_memory || engine->regions->unit_pages > 1;
}

/* call.c: the kernel. */

enum call { CALL_POPULATE, CALL_MAP, CALL_COPY, CALL_ZERO, CALL_PUNCH, CALL_POISON, CALL_WAKE };

/* One kernel call on a run that lies in one region; every result is counted and reported. */
struct kernel_outcome place_call(struct engine *engine, enum call call, uint64_t page, uint64_t count,
                                 const void *bytes);
/* How an action ends on a result that its caller has no other use for. */
enum placing place_status(enum kernel_result result);
void place_wake(struct engine *engine, uint64_t page, uint64_t count);
/* The part of a run that lies in one region, and in one unit if units have many pages, and is not too long for one call. */
uint64_t place_cut(const struct engine *engine, uint64_t page, uint64_t count);

/* place.c, clear.c and poison.c: the actions. */

/* Something lies, or may lie, in the page cache that has to go before the page is zeros or poison. */
bool place_in_doubt(uint64_t word);

/* The stale bits are set; writes, and says how far. */
struct placed place_write(struct engine *engine, uint64_t page, uint64_t count, const void *bytes);
/* The run actions: every page of the run is in one region, gets this action, and is in doubt like the first. */
struct placed place_data(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version);
struct placed place_cached(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version);
struct placed place_zeros(struct engine *engine, uint64_t page, uint64_t count, uint64_t version);
/* CLEAR for a page that was removed: done whatever the kernel says, the claim comes first. */
void place_removed(struct engine *engine, uint64_t page, uint64_t count);
/* Maps OWNED pages; a hole reads zero from now on. */
struct placed place_mapped(struct engine *engine, uint64_t page, uint64_t count);
/* The same, and what finds events unread reads them first; where it cannot be now, who waits is woken and faults again.
 * Returns pages mapped. */
uint64_t place_map_or_wake(struct engine *engine, uint64_t page, uint64_t count);

/* MAP_ZERO: a ZERO page becomes OWNED. */
enum placing place_zero(struct engine *engine, uint64_t page);
/* Drops what the cache still holds of pages that are claimed as ZERO or POISONED; stops where that fails. */
void place_clean(struct engine *engine);
/* Shared memory: what the cache holds goes. */
enum placing place_punch(struct engine *engine, uint64_t page, uint64_t count);

/* POISON, of a page that is not: claims it, drops its bytes, marks it, and has it told. What cannot be done now is
 * owed. What shares its unit is lost with it. Returns pages that were not lost before. */
uint64_t place_lost(struct engine *engine, uint64_t page, uint64_t version);
/* The same, in the middle of a call that found its memory broken: claims it; all else is owed, and due. */
void place_broken(struct engine *engine, uint64_t page);
/* A unit of which something is lost, and not all: claims and drops the rest. */
void place_lost_rest(struct engine *engine, uint64_t first_page);
/* Sets the marker of a page that is claimed so, and its unit; who waits there wakes into it. */
enum placing place_poison(struct engine *engine, uint64_t page);
/* FRESH where nothing is mapped: the page of zeros takes the place of the marker. */
enum placing place_fresh(struct engine *engine, uint64_t page);
/* Does what is owed of pages that were lost or cleared, as far as it can be done now. */
void place_owed(struct engine *engine);
/* After a takeover: the newest entry of the log was put, and its word does not know. */
void place_recall(struct engine *engine);

#endif
