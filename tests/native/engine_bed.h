/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An engine on the simulated kernel, for tests of single cases: two regions, one table, a clock that the test moves,
 * and a note of all that the engine says. One bed a program.
 */
#ifndef PAGEFERRY_ENGINE_BED_H
#define PAGEFERRY_ENGINE_BED_H

#include <string.h>

#include "pager/engine.h"
#include "pager/log.h"
#include "sim_kernel.h"

#define PAGES 48
#define FIRST 32 /* pages of the first region */
#define V1 ((UINT64_C(1) << 32) | 1)
#define V2 ((UINT64_C(1) << 32) | 2)
#define MS UINT64_C(1000000)
#define ASKS_MAX 4096

struct bed {
    uint64_t unit_pages; /* of the VMs that begin from now on; 0: one */
    struct regions regions;
    struct table table;
    struct sim_kernel sim;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    uint64_t now_ns;
    uint64_t asks[ASKS_MAX], ask_count;
    uint64_t reports[8]; /* how often each was made; of the newest: */
    uint64_t report_page, report_value;
    uint8_t bytes[PAGES * PAGE_BYTES];
};

extern struct bed bed;
/* The second lies below the first. */
extern const struct region bed_layout[2];

/* A new VM, before arming, or armed; whatever was there before is closed. */
void bed_begin(bool private_memory);
void bed_begin_armed(bool private_memory);
void bed_end(void);
/* On the table and the kernel as they are. */
void bed_start_engine(bool private_memory);
/* A worker has died: its successor starts on the same table. */
void bed_succeed(bool private_memory);

uint64_t bed_token_of_page(uint64_t page, uint64_t version);
/* News with the right bytes for its version; returns what engine_news does. */
uint64_t bed_news(enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version);
uint64_t bed_word(uint64_t page);
enum page_state bed_state(uint64_t page);
uint64_t bed_counter(enum stats_counter which);
/* The newest entry of the poison log; kind 0: there is none. Takes all of them. */
struct table_log_entry bed_told(void);
/* How many entries there are that were not taken. */
uint64_t bed_untold(void);
/* Thread `thread` touches a page, and whatever it raises is worked on. */
void bed_fault(uint32_t thread, uint64_t page);
/* What a thread that does not sleep reads now; SIM_TORN: it cannot. */
uint64_t bed_reads(uint64_t page);
/* Time passes, and the engine's timer runs. */
void bed_later(uint64_t wait_ns);
/* The next `times` calls of a kind answer this, after so many pages that go their way. */
void bed_force(enum sim_call call, enum kernel_result result, uint64_t done_pages, uint32_t times);

#endif
