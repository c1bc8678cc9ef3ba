/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every call that a world makes of the engine, held against the reference (sim_model.h): when nothing stood in its
 * way, each word is what the reference says, and so are the counters, the alarms and the page machine's own table.
 */
#ifndef PAGEFERRY_SIM_TOLD_H
#define PAGEFERRY_SIM_TOLD_H

#include "sim_world.h"

/* The token of a page at a version: 0 is a page of zeros. */
uint64_t told_content(uint64_t page, uint64_t version);
void told_news(struct world *world, enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version);
void told_removed(struct world *world, uint64_t first, uint64_t count);
/* By order. */
void told_lost(struct world *world, uint64_t first, uint64_t count);
void told_cleared(struct world *world, uint64_t first, uint64_t count);
/* Armed, shared memory: an order drops these pages, all of them or as far as the kernel lets it. Pages done. */
uint64_t told_drop(struct world *world, uint64_t first, uint64_t count);
void told_turn(struct world *world);
void told_sweep(struct world *world, uint64_t first, uint64_t count);
/* The page's word is this one, but for what it may owe. */
void told_word(struct world *world, uint64_t page, uint64_t must_be);
/* If the word says POISONED, the guest may not read the page any more; if it has ended that, it reads zeros. */
void told_note_lost(struct world *world, uint64_t page);
/* One entry of the poison log, if there is one, comes to a reader. */
void told_log(struct world *world, enum table_log_reader reader);

#endif
