/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must become of pages that share a unit, written down a second time like sim_model.h, which says what becomes of
 * each by itself: a fault asks for all of its unit, bytes that come armed wait in the cache, a whole unit goes over at
 * once, and one that is lost takes the others along.
 */
#ifndef PAGEFERRY_SIM_UNITS_H
#define PAGEFERRY_SIM_UNITS_H

#include "sim_model.h"
#include "sim_world.h"

/* The words of all pages, moved on step by step; and what was counted on the way. */
struct units_told {
    struct model_world model;
    uint64_t unit_pages;
    uint64_t words[WORLD_PAGES];
    uint64_t taken, dropped, stale, asks, poisoned, changed;
    bool alarm;
    uint64_t cells[PAGE_STATE_COUNT][PAGE_EVENT_COUNT][2]; /* of the page machine, that were asked */
};

void units_begin(struct units_told *told, const struct world *world);
void units_news(struct units_told *told, enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version);
void units_removed(struct units_told *told, uint64_t first, uint64_t count);
void units_fault(struct units_told *told, uint64_t page);
/* By order; of `first` on, so many pages were looked at. */
void units_lost(struct units_told *told, uint64_t first, uint64_t count);
/* What the log was owed of the unit of this page counts as it is. */
void units_told_of(struct units_told *told, const struct world *world, uint64_t page);
void units_cleared(struct units_told *told, uint64_t first, uint64_t looked);
void units_swept(struct units_told *told, uint64_t first, uint64_t count);
/* Every word is as told; the cells are added to the world's. */
void units_check(struct world *world, const struct units_told *told);

#endif
