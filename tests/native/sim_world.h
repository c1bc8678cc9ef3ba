/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole VM in a few arrays, for test_simulation.c: threads of a guest that check every byte they read, a VMM with
 * balloons and discards, a page server with delays and lies, a link that breaks, and the engine between them. The
 * world knows what each page must read as, and which word each step must leave (sim_model.h); whatever differs ends
 * the run at once, with seed, step and the last steps of the engine.
 */
#ifndef PAGEFERRY_SIM_WORLD_H
#define PAGEFERRY_SIM_WORLD_H

#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>

#include "pager/engine.h"
#include "sim_kernel.h"
#include "sim_model.h"

#define WORLD_PAGES 96
#define WORLD_ANSWERS 256
#define WORLD_DROPS 4

struct world_page {
    uint64_t version, version_before; /* at the source; before: what a late answer may still carry */
    uint64_t expected;                /* what the guest must read, once armed */
    uint32_t drops;                   /* removals under way: zeros are right too, and nothing is written */
    bool server_lost;                 /* the server has only poison for it */
    bool lost, lost_mapped;           /* the engine knows; the guest had it mapped, on private memory */
    bool asked, again;                /* an ask is out; it may be made again */
    bool held;                        /* the kernel has refused it, and the engine has said so */
};

enum world_lie { LIE_NONE = 0, LIE_STALE, LIE_OTHER, LIE_ABOVE }; /* OTHER: a version that another page has */

struct world_answer {
    bool used, urgent, later; /* later: the server cannot read the page now */
    enum world_lie lie;
    uint64_t first_page, page_count, due_ns;
};

/* A discard that was reported and is yet to happen. */
struct world_drop {
    bool used, reported;
    uint64_t first_page, page_count;
};

struct world {
    uint64_t seed, random, steps, now_ns;
    bool private_memory, live, frozen, crashes, verbose, healing;
    bool refusals; /* the kernel may refuse calls */
    bool link_up, alarm_expected, alarm_seen, dead;
    uint64_t frozen_version, round;
    uint64_t answered; /* pages that were asked and are not WANTED any more */
    struct regions regions;
    struct table table;
    struct sim_kernel sim;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    struct world_page pages[WORLD_PAGES];
    uint64_t targets[SIM_THREADS]; /* page + 1 that a thread is about to touch; 0: it thinks */
    bool writes[SIM_THREADS];
    struct world_answer answers[WORLD_ANSWERS];
    struct world_drop drops[WORLD_DROPS];
    uint64_t before[WORLD_PAGES]; /* the words before the step */
    uint64_t cells[PAGE_STATE_COUNT][PAGE_EVENT_COUNT][2];
    uint64_t kills, kill_countdown;
    jmp_buf killed;
    uint8_t bytes[WORLD_PAGES * PAGE_BYTES];
};

/* Prints where and why, and exits. */
_Noreturn void world_failed(struct world *world, uint64_t page, const char *text);

/* A new VM, unarmed, from the world's random. table_create was called once, the table is emptied. */
void world_begin(struct world *world);
void world_end(struct world *world);
bool world_armed(const struct world *world);
/* One random step, and all checks after it. */
void world_step(struct world *world);
/* All troubles end: everything must settle, every thread run, every page be right. */
void world_heal(struct world *world);

#endif
