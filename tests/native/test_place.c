/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How pages get into memory: each result of each kernel call, by name, and the order of writing, claiming and mapping
 * when a worker is killed between them and another takes over.
 */
#include <setjmp.h>

#include "check.h"
#include "engine_bed.h"

/* ------------------------------------------------------------------------------------------ results of the kernel */

static void already_from_continue_means_mapped_and_wakes(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&bed.sim, 1);
    bed.sim.threads[0] = (struct sim_thread){.sleeps = true, .page = 1};
    sim_map_silently(&bed.sim, 1); /* nobody was woken */
    CHECK(bed.sim.threads[0].sleeps);
    engine_turn(&bed.engine, bed.now_ns);
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed_counter(STATS_already_total), 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
}

static void a_minor_fault_on_a_finished_page_is_continued(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&bed.sim, 1);
    bed_fault(0, 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
    CHECK_EQ(bed_counter(STATS_faults_minor_total), 1);
    CHECK_EQ(bed.ask_count, 0);
}

static void cached_fault_is_claimed_then_mapped(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&bed.engine);
    bed_fault(0, 1);
    CHECK_EQ(bed_word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed.sim.calls[SIM_MAP], 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
    CHECK_EQ(bed_counter(STATS_faults_resolved_total), 1);
}

static void a_hole_behind_a_claim_was_discarded_and_reads_zero(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 2, V1);
    engine_arm(&bed.engine);
    sim_discard(&bed.sim, 1);
    bed_fault(0, 1); /* CACHED */
    CHECK_EQ(bed_reads(1), 0);
    bed_fault(0, 2);
    sim_discard(&bed.sim, 2);
    bed_fault(0, 2); /* OWNED */
    CHECK_EQ(bed_reads(2), 0);
    CHECK_EQ(bed_counter(STATS_absent_total), 2);
    CHECK_EQ(bed.ask_count, 0);
}

static void a_hole_that_is_filled_meanwhile_is_mapped(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&bed.sim, 1);
    bed_force(SIM_MAP, KERNEL_ABSENT, 0, 1); /* and ZEROPAGE finds the bytes */
    bed_fault(0, 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
    sim_drop_mapping(&bed.sim, 1);
    bed_force(SIM_MAP, KERNEL_ABSENT, 0, 100); /* it never agrees: woken, to fault again */
    bed_fault(0, 1);
    CHECK(!bed.sim.threads[0].sleeps);
    bed_force(SIM_MAP, KERNEL_ABSENT, 0, 0);
    bed_fault(0, 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
}

/* Who reads the RAM file through another mapping has pages of zeros made there: such a page was once held back, and its
 * thread with it. */
static void something_where_nobody_wrote_is_written_over(void)
{
    bed_begin_armed(false);
    sim_foreign(&bed.sim, 5, 0);
    bed_fault(0, 5);
    CHECK_EQ(bed_news(ENGINE_DATA, 4, 3, V1), 3);
    CHECK_EQ(bed.sim.calls[SIM_POPULATE], 1);
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed.report_page, 5);
    sim_foreign(&bed.sim, 8, 99);
    CHECK_EQ(bed_news(ENGINE_DATA, 8, 1, V1), 1);
    for (uint64_t page = 4; page < 9; page += page == 6 ? 2 : 1) {
        CHECK_EQ(bed_word(page), page_word(PAGE_OWNED, false, V1));
        CHECK_EQ(bed_reads(page), bed_token_of_page(page, V1));
    }
    CHECK_EQ(bed_counter(STATS_already_copies_total), 2);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1); /* said once */
}

static void what_is_written_over_has_its_doubt_noted_first(void)
{
    bed_begin_armed(false);
    sim_foreign(&bed.sim, 5, 0);
    bed_fault(0, 5);
    bed_force(SIM_POPULATE, KERNEL_FULL, 0, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V1), 0);
    CHECK_EQ(bed_word(5), page_word(PAGE_WANTED, true, 0));
    bed_succeed(false); /* nothing was placed: it does not take the zeros for what its predecessor has placed */
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V1), 1);
    CHECK_EQ(bed_reads(5), bed_token_of_page(5, V1));
}

static void a_page_that_is_held_back_is_left_alone(void)
{
    bed_begin_armed(false);
    bed_force(SIM_COPY, KERNEL_REFUSED, 1, 1);
    bed_fault(0, 5);
    CHECK_EQ(bed_news(ENGINE_DATA, 4, 3, V1), 2);
    CHECK_EQ(bed_state(4), PAGE_OWNED);
    CHECK_EQ(bed_state(6), PAGE_OWNED);
    CHECK_EQ(bed_state(5), PAGE_WANTED);
    CHECK(page_held(bed_word(5)));
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed.report_page, 5);
    bed.ask_count = 0;
    engine_asks_lost(&bed.engine); /* nothing is done to it any more */
    bed_fault(1, 5);
    CHECK_EQ(bed.ask_count, 0);
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V1), 0);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 5, 1, V1), 0);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed.sim.pages[5].pte, SIM_PTE_NONE);
    for (uint64_t page = 0; page < PAGES; page++)
        bed_news(ENGINE_ZEROS, page, 1, V1);
    CHECK(!engine_settled(&bed.engine));
    engine_removed(&bed.engine, 5, 1); /* but the VMM may throw it away */
    CHECK_EQ(bed_word(5), page_word(PAGE_OWNED, false, 0));
    CHECK_EQ(bed_reads(5), 0);
    CHECK(engine_settled(&bed.engine));
}

static void zeropage_on_something_punches_and_tries_once_more(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 5, 1, V1);
    sim_foreign(&bed.sim, 5, 99);
    bed_fault(0, 5);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 1);
    CHECK_EQ(bed_word(5), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(5), 0);
}

/* As one of a huge page that cannot be split: it was once held back for ever, and its thread with it. */
static void a_page_that_cannot_be_emptied_is_written(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 5, 1, V1);
    bed_force(SIM_ZERO, KERNEL_ALREADY, 0, 10);
    bed_fault(0, 5);
    CHECK_EQ(bed.sim.calls[SIM_POPULATE], 1);
    CHECK_EQ(bed_word(5), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(5), 0);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 0);
}

static void where_there_is_no_memory_for_that_it_waits(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 5, 1, V1);
    bed_force(SIM_ZERO, KERNEL_ALREADY, 0, 3);
    bed_force(SIM_POPULATE, KERNEL_FULL, 0, 1);
    bed_fault(0, 5);
    CHECK_EQ(bed_state(5), PAGE_ZERO);
    CHECK(!page_held(bed_word(5)));
    CHECK(bed.sim.threads[0].sleeps);
    bed_later(ENGINE_FULL_WAIT_MAX_NS);
    CHECK_EQ(bed_word(5), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(5), 0);
}

static void partial_progress_goes_on_where_it_stopped(void)
{
    bed_begin_armed(false);
    bed_force(SIM_COPY, KERNEL_LATER, 3, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 8, V1), 8);
    CHECK_EQ(bed_counter(STATS_later_total), 1);
    for (uint64_t page = 0; page < 8; page++)
        CHECK_EQ(bed_reads(page), bed_token_of_page(page, V1));
}

static void later_in_news_reads_events_first(void)
{
    uint64_t end = bed_layout[0].address + 2 * PAGE_BYTES;

    bed_begin_armed(true);
    bed_fault(0, 1);
    bed_fault(1, 2);
    sim_remove(&bed.sim, bed_layout[0].address, end, true); /* pages 0 and 1 go, unread */
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 3, V1), 0);       /* the VMM is still about it: nothing can be placed */
    CHECK_EQ(bed_state(0), PAGE_ZERO);                  /* but the removal is known, and for ever */
    CHECK_EQ(bed_state(1), PAGE_ZERO);
    CHECK_EQ(bed_state(2), PAGE_WANTED);
    CHECK(engine_next_ns(&bed.engine) <= bed.now_ns + MS); /* tried again soon, by a timer */
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    bed.ask_count = 0;
    bed_later(MS);
    CHECK_EQ(bed.ask_count, 1); /* its bytes could not be kept */
    CHECK_EQ(bed.asks[0], 2);
    CHECK_EQ(bed_reads(1), 0);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 3, V1), 1);
    CHECK_EQ(bed_reads(2), bed_token_of_page(2, V1));
    CHECK_EQ(bed_state(0), PAGE_ZERO);
}

/* Only a call that maps waits for events: what a punch answers says nothing of them, and the marker follows at once. */
static void a_punch_that_fails_tells_nothing_of_events(void)
{
    bed_begin_armed(false);
    sim_foreign(&bed.sim, 3, 0xf0e1);
    engine_mark_stale(&bed.engine, 3, 1);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + PAGE_BYTES, false);
    bed_force(SIM_PUNCH, KERNEL_LATER, 0, 1);
    CHECK_EQ(bed_news(ENGINE_POISON, 3, 1, V1), 1);
    CHECK_EQ(bed_state(3), PAGE_POISONED);
    CHECK(page_stale(bed_word(3)));
}

/* The CONTINUE of a page that was written is refused by a removal that nobody has read: it is read before that page
 * is mapped or marked again, whoever does so. */
static void a_claimed_page_that_cannot_be_mapped_reads_events_first(void)
{
    bed_begin_armed(false);
    sim_foreign(&bed.sim, 3, 0xf0e1);
    engine_mark_stale(&bed.engine, 3, 1);
    bed_fault(0, 3);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + PAGE_BYTES, false);
    CHECK_EQ(bed_news(ENGINE_DATA, 3, 1, V1), 1);
    CHECK_EQ(bed_state(3), PAGE_OWNED);
    CHECK_EQ(bed_counter(STATS_removes_total), 1);
    CHECK(!bed.sim.threads[0].sleeps); /* its VMM is not done: it faults again */
    CHECK_EQ(engine_lost(&bed.engine, 3, 1), 1);
    CHECK_EQ(bed_state(3), PAGE_POISONED);
}

static void later_in_a_batch_is_parked_and_tried_soon(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&bed.engine);
    bed_force(SIM_MAP, KERNEL_LATER, 0, 1);
    bed_fault(0, 1);
    CHECK(bed.sim.threads[0].sleeps);
    CHECK_EQ(bed_state(1), PAGE_OWNED);
    CHECK_EQ(engine_next_ns(&bed.engine), bed.now_ns);
    bed_fault(1, 1); /* another thread resolves it for both */
    CHECK_EQ(bed_counter(STATS_faults_again_total), 1);
    CHECK(!bed.sim.threads[0].sleeps);
    engine_tick(&bed.engine, bed.now_ns);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
}

static void no_memory_is_said_once_and_tried_with_patience(void)
{
    uint64_t wait_ns;

    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 1, 1, V1);
    bed.sim.full = true;
    bed_fault(0, 1);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(engine_next_ns(&bed.engine), bed.now_ns + ENGINE_FULL_WAIT_MIN_NS);
    bed_fault(1, 2);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 4, V1), 0); /* WANTED: asked again; the others are not taken */
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    for (wait_ns = ENGINE_FULL_WAIT_MIN_NS; wait_ns < 5 * ENGINE_FULL_WAIT_MAX_NS; wait_ns *= 2)
        bed_later(wait_ns);
    CHECK(engine_next_ns(&bed.engine) <= bed.now_ns + ENGINE_FULL_WAIT_MAX_NS);
    CHECK(bed.sim.threads[0].sleeps);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    bed.sim.full = false;
    bed_later(ENGINE_FULL_WAIT_MAX_NS);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL_OVER], 1);
    CHECK_EQ(bed_reads(1), 0);
    CHECK(bed_counter(STATS_full_total) > 2);
    CHECK(bed_counter(STATS_asks_again_total) > 0);
}

static void a_vmm_that_is_gone_is_said_once(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 1, 1, V1);
    bed_fault(0, 2);
    sim_touch(&bed.sim, 1, 1, false, &bed.report_value);
    bed_force(SIM_ZERO, KERNEL_GONE, 0, 1);
    engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed.reports[ENGINE_REPORT_GONE], 1);
    bed.sim.gone = true;
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V1), 0);
    CHECK_EQ(engine_turn(&bed.engine, bed.now_ns), 0);
    engine_removed(&bed.engine, 0, PAGES);
    engine_sweep(&bed.engine, 0, PAGES);
    bed_later(MS);
    engine_arm(&bed.engine);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
    CHECK_EQ(bed.reports[ENGINE_REPORT_GONE], 1);
}

static void a_copy_without_a_mapping(void)
{
    bed_begin_armed(true); /* private: a balloon took the page, it is done */
    bed_fault(0, 1);
    bed_force(SIM_COPY, KERNEL_ABSENT, 0, 2);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 2, V1), 2); /* the first try named both: each by itself then */
    CHECK_EQ(bed_state(1), PAGE_OWNED);
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed_reads(2), bed_token_of_page(2, V1));
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 0);
    bed_begin_armed(false); /* shared: nothing of ours takes mappings away */
    bed_force(SIM_COPY, KERNEL_ABSENT, 0, 2);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 2, V1), 1);
    CHECK(page_held(bed_word(1)));
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed_reads(2), bed_token_of_page(2, V1));
}

static void a_zeropage_without_a_mapping_has_nothing_to_lose(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 1, 1, V1);
    bed_force(SIM_ZERO, KERNEL_ABSENT, 0, 1);
    bed_fault(0, 1);
    CHECK_EQ(bed_word(1), page_word(PAGE_OWNED, false, V1));
    CHECK(!bed.sim.threads[0].sleeps);
}

static void what_the_kernel_refuses_is_held_back(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 9, 99);
    engine_mark_stale(&bed.engine, 9, 1);
    bed_force(SIM_POPULATE, KERNEL_REFUSED, 1, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 3, V1), 2);
    CHECK(page_held(bed_word(1)));
    CHECK_EQ(bed_state(2), PAGE_CACHED);
    engine_arm(&bed.engine);
    bed_force(SIM_COPY, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 4, 2, V1), 1);
    CHECK(page_held(bed_word(4)));
    bed_force(SIM_MAP, KERNEL_REFUSED, 0, 1);
    bed_fault(0, 2);
    CHECK(page_held(bed_word(2)));
    CHECK(bed.sim.threads[0].sleeps);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
    bed_news(ENGINE_ZEROS, 6, 1, V1);
    bed_force(SIM_ZERO, KERNEL_REFUSED, 0, 1);
    bed_fault(1, 6);
    CHECK(page_held(bed_word(6)));
    bed_force(SIM_POISON, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(bed_news(ENGINE_POISON, 7, 1, V1), 1);
    CHECK(page_held(bed_word(7)));
    bed_force(SIM_PUNCH, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 9, 1, V1), 0);
    CHECK(page_held(bed_word(9)));
    CHECK_EQ(bed_state(9), PAGE_MISSING);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 5); /* of the lost page the poison log tells */
    CHECK_EQ(bed.engine.held_count, 5);
    CHECK_EQ(bed_told().flags, LOG_HELD);
}

/* Lost and marked, with no byte left in the cache; its entry of the log is the one there is. */
static void check_lost(uint64_t page, uint64_t entries)
{
    struct table_log_entry told;

    CHECK_EQ(bed_state(page), PAGE_POISONED);
    bed_later(MS);
    CHECK_EQ(bed_untold(), entries);
    told = bed_told();
    CHECK_EQ(told.kind, LOG_POISONED);
    CHECK_EQ(told.page, page);
    CHECK_EQ(bed.sim.pages[page].pte, SIM_PTE_POISON);
    CHECK(!bed.sim.pages[page].present);
}

static void broken_memory_is_lost_and_told_once(void)
{
    bed_begin(false);
    engine_mark_stale(&bed.engine, 9, 3);
    bed_news(ENGINE_DATA, 0, 4, V1);
    bed_force(SIM_POPULATE, KERNEL_BROKEN, 0, 1);
    bed_news(ENGINE_DATA, 20, 1, V1);
    engine_arm(&bed.engine);
    check_lost(20, 1);
    bed_force(SIM_MAP, KERNEL_BROKEN, 0, 1);
    bed_fault(0, 3);
    CHECK(bed.sim.threads[0].sleeps);
    check_lost(3, 1);
    CHECK(!bed.sim.threads[0].sleeps);
    bed_force(SIM_MAP, KERNEL_BROKEN, 1, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 9, 3, V1), 3);
    check_lost(10, 1);
    CHECK_EQ(bed_reads(9), bed_token_of_page(9, V1));
    CHECK_EQ(bed_reads(11), bed_token_of_page(11, V1));
    bed_fault(1, 3);
    bed_later(MS);
    CHECK_EQ(bed_untold(), 0);
    CHECK_EQ(bed_counter(STATS_alarms_total), 0);
}

/* Its worker dies before the marker is set: the successor sets it, and tells of it. */
static void broken_memory_is_told_by_a_successor(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 0, 4, V1);
    engine_arm(&bed.engine);
    bed_force(SIM_MAP, KERNEL_BROKEN, 0, 1);
    bed_fault(0, 3);
    bed_succeed(false);
    check_lost(3, 1);
    CHECK(!bed.sim.threads[0].sleeps);
}

/* --------------------------------------------------------------------------------------------------------- takeover */

static jmp_buf killed;
static enum sim_call kill_call;
static uint32_t kill_countdown;

static void kill_here(void *owner, enum sim_call call)
{
    (void)owner;
    if (call == kill_call && kill_countdown > 0 && --kill_countdown == 0)
        longjmp(killed, 1);
}

static void a_successor_of_a_copy_does_not_overwrite(void)
{
    bed_begin_armed(false);
    bed_fault(0, 1);
    bed.sim.after = kill_here;
    kill_call = SIM_COPY;
    kill_countdown = 1;
    if (setjmp(killed) == 0) {
        bed_news(ENGINE_DATA, 1, 1, V1);
        CHECK(!"killed");
    }
    CHECK_EQ(bed_state(1), PAGE_WANTED);       /* placed, and not claimed */
    bed.sim.pages[1].token = 4242;             /* the guest runs, and writes */
    sim_drop_mapping(&bed.sim, 1);
    bed_succeed(false);
    CHECK_EQ(bed.ask_count, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(bed_word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(1), 4242);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 0);
}

static void a_successor_of_a_write_writes_again(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 1, 99);
    engine_mark_stale(&bed.engine, 1, 1);
    engine_arm(&bed.engine);
    bed_fault(0, 1);
    bed.sim.after = kill_here;
    kill_call = SIM_POPULATE;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        bed_news(ENGINE_DATA, 1, 1, V1);
    CHECK_EQ(bed_word(1), page_word(PAGE_WANTED, true, 0));
    bed.sim.pages[1].token = SIM_TORN;
    bed_succeed(false);
    CHECK_EQ(bed.ask_count, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
}

static void a_successor_of_zeropage_does_not_punch(void)
{
    bed_begin_armed(false);
    bed_news(ENGINE_ZEROS, 1, 1, V1);
    sim_touch(&bed.sim, 0, 1, true, &bed.report_value);
    bed.sim.after = kill_here;
    kill_call = SIM_ZERO;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed_state(1), PAGE_ZERO);
    bed.sim.pages[1].token = 4242;
    sim_drop_mapping(&bed.sim, 1);
    bed_succeed(false);
    bed_fault(0, 1);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 0);
    CHECK_EQ(bed_word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(1), 4242);
}

static void a_successor_replays_the_batch_and_wakes_everyone(void)
{
    bed_begin_armed(true);
    bed_fault(0, 9);
    sim_touch(&bed.sim, 1, 3, false, &bed.report_value);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + 2 * PAGE_BYTES, true);
    bed.sim.after = kill_here;
    kill_call = SIM_READ; /* read from the kernel, and nothing done about it */
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed_state(0), PAGE_MISSING);
    bed_succeed(true);
    CHECK_EQ(bed_state(0), PAGE_ZERO);
    CHECK_EQ(bed_state(1), PAGE_ZERO);
    CHECK_EQ(bed_state(3), PAGE_WANTED);
    CHECK_EQ(bed.ask_count, 2); /* 9 again, 3 for the first time, each once */
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK(!bed.sim.threads[1].sleeps);
    CHECK_EQ(atomic_load(&bed.table.header->batch_count), 0);
}

/* What the first worker of all had not marked yet when it died would be taken for placed, and mapped. */
static void a_successor_marks_stale_until_something_is_placed(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 1, 99);
    bed_succeed(false);
    engine_mark_stale(&bed.engine, 1, 1);
    CHECK(page_stale(bed_word(1)));
    engine_arm(&bed.engine);
    bed.sim.after = kill_here;
    kill_call = SIM_COPY;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        bed_news(ENGINE_DATA, 2, 1, V1);
    CHECK(bed.sim.pages[2].present); /* placed, and not claimed */
    bed_succeed(false);
    engine_mark_stale(&bed.engine, 1, 2);
    CHECK(page_stale(bed_word(1)));
    CHECK(!page_stale(bed_word(2)));
}

static void a_lost_page_that_was_placed_and_not_claimed_is_emptied(void)
{
    bed_begin_armed(false);
    bed_fault(0, 1);
    bed.sim.after = kill_here;
    kill_call = SIM_COPY;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        bed_news(ENGINE_DATA, 1, 1, V1);
    CHECK_EQ(bed_word(1), page_word(PAGE_WANTED, false, 0));
    bed_succeed(false);
    CHECK_EQ(bed_news(ENGINE_POISON, 1, 1, V1), 1);
    CHECK_EQ(bed_word(1), page_word(PAGE_POISONED, false, V1));
    CHECK(!bed.sim.pages[1].present);
    CHECK_EQ(bed.sim.pages[1].pte, SIM_PTE_POISON);
}

static void held_pages_stay_held_after_a_takeover(void)
{
    bed_begin_armed(false);
    bed_force(SIM_COPY, KERNEL_REFUSED, 0, 1);
    bed_news(ENGINE_DATA, 5, 1, V1);
    CHECK(page_held(bed_word(5)));
    bed_succeed(false);
    CHECK_EQ(bed.engine.held_count, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V1), 0);
    CHECK_EQ(bed.sim.pages[5].pte, SIM_PTE_NONE);
}

int main(void)
{
    RUN(already_from_continue_means_mapped_and_wakes);
    RUN(a_minor_fault_on_a_finished_page_is_continued);
    RUN(cached_fault_is_claimed_then_mapped);
    RUN(a_hole_behind_a_claim_was_discarded_and_reads_zero);
    RUN(a_hole_that_is_filled_meanwhile_is_mapped);
    RUN(something_where_nobody_wrote_is_written_over);
    RUN(what_is_written_over_has_its_doubt_noted_first);
    RUN(a_page_that_is_held_back_is_left_alone);
    RUN(zeropage_on_something_punches_and_tries_once_more);
    RUN(a_page_that_cannot_be_emptied_is_written);
    RUN(where_there_is_no_memory_for_that_it_waits);
    RUN(partial_progress_goes_on_where_it_stopped);
    RUN(later_in_news_reads_events_first);
    RUN(a_punch_that_fails_tells_nothing_of_events);
    RUN(a_claimed_page_that_cannot_be_mapped_reads_events_first);
    RUN(later_in_a_batch_is_parked_and_tried_soon);
    RUN(no_memory_is_said_once_and_tried_with_patience);
    RUN(a_vmm_that_is_gone_is_said_once);
    RUN(a_copy_without_a_mapping);
    RUN(a_zeropage_without_a_mapping_has_nothing_to_lose);
    RUN(what_the_kernel_refuses_is_held_back);
    RUN(broken_memory_is_lost_and_told_once);
    RUN(broken_memory_is_told_by_a_successor);
    RUN(a_successor_of_a_copy_does_not_overwrite);
    RUN(a_successor_of_a_write_writes_again);
    RUN(a_successor_of_zeropage_does_not_punch);
    RUN(a_successor_replays_the_batch_and_wakes_everyone);
    RUN(a_successor_marks_stale_until_something_is_placed);
    RUN(a_lost_page_that_was_placed_and_not_claimed_is_emptied);
    RUN(held_pages_stay_held_after_a_takeover);
    bed_end();
    return check_done();
}
