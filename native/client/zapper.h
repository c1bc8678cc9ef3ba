/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zaps from outside the VMM: ORDER_ZAP, and what the loop wants zapped itself. Who can drop mappings is the VMM alone,
 * told by frame; the loop never waits for it: one piece is out at a time, its answer comes in a later turn, and faults
 * are served meanwhile. Its REMOVE event, where the VMM has those reported, is read in between.
 *
 *   shared memory, data kept     ZAP by the VMM; no word changes
 *   shared memory, data dropped  the pages are removed, then their bytes punched: here, in every mapping
 *   private memory, dropped      the pages are removed, then ZAP by the VMM
 */
#ifndef PAGEFERRY_ZAPPER_H
#define PAGEFERRY_ZAPPER_H

#include <stdbool.h>
#include <stdint.h>

#include "../pageferry.h"
#include "vmm.h"

#define ZAPPER_JOBS_MAX 32

struct loop;

struct zapper_job {
    uint64_t cookie;
    uint64_t first_page; /* of what is left */
    uint64_t left_pages;
    uint64_t done_pages;
    uint32_t method;     /* enum pageferry_zap_method, 0: nothing has been done */
    uint32_t reason;     /* it has failed, and with which words */
    const char *why;
    int error;           /* the VMM's errno, 0: none */
    bool drop;
    bool ours;           /* no order: a lost page is taken from the guest, and marked */
};

struct zapper {
    struct zapper_job jobs[ZAPPER_JOBS_MAX]; /* a ring: the oldest is at work */
    uint32_t first, count;
    uint64_t sequence;     /* of the newest ZAP */
    uint64_t out_pages;    /* of the ZAP whose answer is waited for; 0: none is */
    uint64_t out_until_ns; /* then it is given up */
    bool in_vain;          /* the VMM could not drop what we wanted dropped */
    uint64_t not_before_ns; /* what could not be done a moment ago: tried again then */
};

/* Takes the order; answered by DONE or FAILED. */
void zapper_order(struct loop *loop, const struct pageferry_order *order);
/* Of private memory, where the words say already that the bytes are gone: zeros, or lost. True: it will be done, unless too
 * much waits just now: it may be said again. False: it cannot be, the VMM speaks no frames, or could not do it once. The
 * engine is told when it is done (engine_dropped), and nobody else. */
bool zapper_drop(struct loop *loop, uint64_t first_page, uint64_t page_count);
/* The VMM has answered. */
void zapper_answered(struct loop *loop, const struct vmm_span *span);
/* One step. True: there is more to do at once. */
bool zapper_turn(struct loop *loop);
/* When zapper_turn has something to do; UINT64_MAX: nothing waits for a time. */
uint64_t zapper_next_ns(const struct loop *loop);

#endif
