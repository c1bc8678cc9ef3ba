/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that a call has asked for and not been answered yet: runs, first in, first out. A bulk range, or the
 * pages that a fault storm leaves, fit without an allocation; the rest is bounded by the caller (RUNS_MAX,
 * WANTED_PAGES_MAX).
 */
#ifndef PAGEFERRY_ASKS_H
#define PAGEFERRY_ASKS_H

#include <stdbool.h>
#include <stdint.h>

#define ASKS_FEW 32

struct asked {
    uint64_t first_page;
    uint64_t page_count;
};

struct asks {
    uint64_t pages; /* of all runs */
    struct asked *runs;
    uint32_t first; /* the oldest */
    uint32_t count;
    uint32_t capacity;
    struct asked few[ASKS_FEW];
};

void asks_open(struct asks *asks);
void asks_close(struct asks *asks);
/* False when there is no memory. */
bool asks_add(struct asks *asks, uint64_t first_page, uint64_t page_count);
/* The oldest run; there is one. */
struct asked asks_oldest(const struct asks *asks);
/* The oldest run's first pages are answered; at most as many as it has. */
void asks_answered(struct asks *asks, uint64_t page_count);

#endif
