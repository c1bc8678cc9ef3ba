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
#define WORLD_UNIT_PAGES 8 /* of VMs whose memory is in huge pages */
#define WORLD_ANSWERS 512
#define WORLD_DROPS 4

struct world_page {
    uint64_t version, version_before; /* at the source; before: what a late answer may still carry */
    uint64_t expected;                /* what the guest must read, once armed */
    uint32_t drops;                   /* removals under way: zeros are right too, and nothing is written */
    bool server_lost;                 /* the server has only poison for it */
    bool by_order;                    /* it was to be poisoned here */
    bool lost, lost_mapped;           /* the engine knows; the guest had it mapped, on private memory */
    bool may_clear;                   /* its poison is being cleared */
    bool to_drop;                     /* the VMM was asked to let go of it */
    uint32_t losses, clears;          /* how often each was done */
    bool asked, again;                /* an ask is out; it may be made again */
    bool held;                        /* the kernel has refused it, and the engine has said so */
};

enum world_lie { LIE_NONE = 0, LIE_STALE, LIE_OTHER, LIE_ABOVE }; /* OTHER: a version that another page has */

struct world_answer {
    bool used, urgent, later; /* later: the server cannot read the page now */
    enum world_lie lie;
    uint64_t first_page, page_count, due_ns;
};

/* A discard that was reported and is yet to happen; or an order to drop pages, given again until it is done. */
struct world_drop {
    bool used, reported, ordered;
    uint64_t first_page, page_count;
};

/* What a reader of the poison log has been told. */
struct world_reader {
    uint64_t number; /* of the newest entry */
    uint32_t sequence;
    struct table_log_entry newest;
    uint32_t losses[WORLD_PAGES], clears[WORLD_PAGES];
};

/* Places to be killed at that are no calls of the kernel, and numbered behind those: the engine asks the server; the
 * first worker marks what was in the page cache before it; a reader has an entry of the poison log, and it is not noted
 * yet. */
#define WORLD_ASK SIM_CALL_COUNT
#define WORLD_MARK (SIM_CALL_COUNT + 1)
#define WORLD_TELL (SIM_CALL_COUNT + 2)
#define WORLD_CALL_COUNT (SIM_CALL_COUNT + 3)

struct world {
    /* Left as they are when a VM begins. */
    uint64_t seed, random, steps, kills;
    uint64_t replays; /* batches with events in them that a worker left behind, and its successor worked on */
    bool crashes, verbose; /* crashes: workers are killed */
    /* Told of each place where the worker may be killed, and sets kill_at there. NULL: dice set it. */
    void (*passed)(struct world *world, unsigned call, enum sim_when when);
    const char *rerun; /* the command that does it again, or NULL */
    struct table table;
    uint64_t cells[PAGE_STATE_COUNT][PAGE_EVENT_COUNT][2];
    /* Emptied. */
    uint64_t now_ns;
    bool private_memory, live, frozen, healing;
    bool refusals; /* the kernel may refuse calls */
    bool lets_go; /* private memory: the VMM lets go of what is lost when it is asked to */
    bool without_poison; /* the pager is told that the kernel cannot poison */
    bool attached, recovering; /* the first worker has started; a successor starts */
    uint64_t places, kill_at; /* places passed where the worker may be killed; this one kills it, 0: none */
    jmp_buf killed;
    bool link_up, alarm_expected, alarm_seen, dead;
    uint64_t frozen_version, round;
    uint64_t since;    /* the server's map has been read up to this version; whoever takes over begins anew */
    uint64_t maps;     /* read so far, and of them, those that were cut off */
    uint64_t maps_cut;
    uint64_t answered; /* pages that were asked and are not WANTED any more */
    struct regions regions;
    struct sim_kernel sim;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    struct world_page pages[WORLD_PAGES];
    uint64_t targets[SIM_THREADS]; /* page + 1 that a thread is about to touch; 0: it thinks */
    bool writes[SIM_THREADS];
    struct world_answer answers[WORLD_ANSWERS];
    struct world_drop drops[WORLD_DROPS];
    struct world_reader readers[TABLE_LOG_READERS];
    uint64_t before[WORLD_PAGES]; /* the words before the step */
    uint8_t bytes[WORLD_PAGES * PAGE_BYTES];
};

/* Here the worker may be killed. */
void world_pass(struct world *world, unsigned call, enum sim_when when);
/* Prints where and why, and exits. */
_Noreturn void world_failed(struct world *world, uint64_t page, const char *text);

/* A new VM, unarmed, from the world's random. table_create was called once, the table is emptied. */
void world_begin(struct world *world);
void world_end(struct world *world);
bool world_armed(const struct world *world);
/* A worker has died here and left events in the table's batch area. */
bool world_batch_left(const struct table *table);
/* One random step, and all checks after it. */
void world_step(struct world *world);
/* The switch-over, if it has not been yet. */
void world_arm(struct world *world);
/* All troubles end: everything must settle, every thread run, every page be right. */
void world_heal(struct world *world);

#endif
