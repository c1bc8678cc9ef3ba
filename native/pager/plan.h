/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which range bulk should fetch next. The cursor follows the newest fault (cursor = page after it) and wraps round;
 * only MISSING pages count; ranges in flight are not named again. What it plans is a hint: the table decides.
 * A unit of many pages that was begun is brought to its end first, and only then the newest fault is followed: what has
 * come of a unit takes memory, and is of no use before the last of it is here.
 * Source: facts/qemu-versions.md section 5 (the hint halves the downtime; 16-page ranges while faults come).
 */
#ifndef PAGEFERRY_PLAN_H
#define PAGEFERRY_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "table.h"

#define PLAN_FLIGHTS_MAX 64

struct plan_range {
    uint64_t first_page;
    uint64_t page_count; /* 0: a free place */
};

struct plan {
    const struct table *table;
    uint64_t unit_pages;    /* 0: one. Set behind plan_start */
    uint64_t cursor;
    uint64_t hinted_plus_1; /* where the cursor goes at the end of its unit; 0: on */
    uint64_t passed_pages; /* words looked at, without a find, since the pass began */
    uint32_t flight_count;
    struct plan_range flights[PLAN_FLIGHTS_MAX];
};

void plan_start(struct plan *plan, const struct table *table);
/* The newest fault was here. */
void plan_hint(struct plan *plan, uint64_t page);
/* The next run of MISSING pages, at most pages_max, noted as in flight. False: nothing to ask for now (all is here,
 * or in flight, or there are too many flights). Looks at no more than `look_pages` words a call: *exhausted tells
 * that a full pass found nothing. */
bool plan_next(struct plan *plan, uint64_t pages_max, uint64_t look_pages, struct plan_range *range, bool *exhausted);
/* The answer came, or never will; pages that are still MISSING may be planned again. */
void plan_landed(struct plan *plan, uint64_t first_page);

#endif
