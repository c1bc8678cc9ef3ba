/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that nobody has asked for: which ranges bulk fetches, how its slices get into memory, and the sweep that maps
 * what precopy brought. Part of a VM's loop, on its thread, a bounded piece a turn.
 */
#ifndef PAGEFERRY_FILL_H
#define PAGEFERRY_FILL_H

#include <stdbool.h>
#include <stdint.h>

#include "../pager/engine.h"
#include "../pager/plan.h"
#include "pace.h"
#include "port.h"

struct fill {
    struct engine *engine;
    struct stats *stats;
    struct port *port;
    struct plan plan;
    struct pace pace;
    uint64_t urgent_bytes;    /* that the urgent link has brought, as an interface counts it: told before fill_plan */
    uint64_t fault_ns;        /* the newest fault that had to be asked */
    uint64_t due_ns;          /* no range is planned before */
    uint64_t paced_ns;        /* nor before, for the pace's sake; 0: it allows all */
    uint64_t delay_ns;        /* that was the last delay: doubled while ranges bring nothing */
    bool doubtful;            /* ranges end with wrong digests: for whoever can ask what the server serves */
    uint64_t sweep_page;
    bool swept;               /* once round: what is cached in units of many pages goes over when the last page comes */
    bool sliced;              /* `slice` is being worked on */
    struct port_slice slice;
    uint32_t slice_run;
    uint64_t slice_run_page;  /* pages of that run that are done */
    uint64_t slice_data_page; /* pages of the slice's data that are done */
};

void fill_start(struct fill *fill, struct engine *engine, struct stats *stats, struct port *port);
/* A fault has asked for this page: bulk goes on behind it. */
void fill_hint(struct fill *fill, uint64_t page, uint64_t now_ns);
/* A bounded slice of what bulk has brought. True: there is more. */
bool fill_take(struct fill *fill, uint64_t now_ns);
/* Asks for the next ranges, when it is time. True: there is more to look through, at once. */
bool fill_plan(struct fill *fill, uint64_t now_ns);
/* Armed: maps a piece of what is cached. True: there is more. */
bool fill_sweep(struct fill *fill);
/* When fill_plan has something to do that it did not have now; UINT64_MAX: nothing. */
uint64_t fill_next_ns(const struct fill *fill, uint64_t now_ns);

#endif
