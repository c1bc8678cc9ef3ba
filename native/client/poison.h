/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Poison, as it is ordered and spoken of. Orders of the owner and the VMM's CLEAR are worked on one after another, some
 * pages a turn, and answered when it is so: what was poisoned can be read by nobody, what was cleared by everybody.
 *
 * The log of the pager becomes events for the owner and frames for the VMM, each entry once and in order. A reader that
 * is behind, or does not read at all, gets them later; a VMM that speaks no frames is told nothing.
 */
#ifndef PAGEFERRY_POISON_H
#define PAGEFERRY_POISON_H

#include <stdbool.h>
#include <stdint.h>

#include "../pageferry.h"
#include "vmm.h"

#define POISON_ORDERS_MAX 64
#define POISON_CLEARS_MAX 8 /* the VMM's have places of their own */
#define POISON_JOBS_MAX (POISON_ORDERS_MAX + POISON_CLEARS_MAX)

struct loop;

struct poison_job {
    uint64_t cookie; /* of the order, or the sequence of the VMM's frame */
    uint64_t first_page;
    uint64_t page_count;
    uint64_t looked; /* pages that were worked on, from the first on */
    uint64_t changed;
    uint64_t since;  /* entries of the log that there were when it began */
    uint32_t reason; /* it has failed */
    const char *why;
    bool clear;
    bool by_vmm;
};

struct poison {
    struct poison_job jobs[POISON_JOBS_MAX]; /* a ring: the oldest is at work */
    uint32_t first, count;
    uint32_t clears; /* of them, the VMM's */
};

void poison_order(struct loop *loop, const struct pageferry_order *order);
/* The VMM has sent CLEAR. */
void poison_clear(struct loop *loop, const struct vmm_span *span);
/* One step of work, and tells what there is room for. True: there is more to do at once. */
bool poison_turn(struct loop *loop);
/* When poison_turn has something to do, though nothing happens; UINT64_MAX: it has not. */
uint64_t poison_next_ns(const struct loop *loop);
/* The VMM's next frame can wait: one of its CLEARs is being worked on, and needs no word of it; or too many wait. */
bool poison_holds_vmm(const struct loop *loop);

#endif
