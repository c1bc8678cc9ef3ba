/* SPDX-License-Identifier: Apache-2.0 */
/* What is taken away, lost, and mapped ahead: removals on both kinds of memory, poison, and the sweep. */
#include "check.h"
#include "engine_bed.h"

/* -------------------------------------------------------------------------------------------------------- removals */

static void a_removal_on_private_memory_is_zero_for_ever(void)
{
    bed_begin_armed(true);
    bed_fault(0, 2);
    bed_news(ENGINE_DATA, 3, 1, V1);
    bed_news(ENGINE_POISON, 4, 1, V1);
    sim_remove(&bed.sim, bed_layout[0].address - 8 * PAGE_BYTES, bed_layout[0].address + 5 * PAGE_BYTES, true);
    engine_turn(&bed.engine, bed.now_ns); /* the kernel still holds everything up: ZEROPAGE says LATER */
    CHECK_EQ(bed_state(1), PAGE_ZERO);
    CHECK_EQ(bed_state(2), PAGE_ZERO);
    CHECK_EQ(bed_state(3), PAGE_OWNED);
    CHECK_EQ(bed_state(4), PAGE_POISONED);
    CHECK_EQ(bed_counter(STATS_removes_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_pages_total), 5);
    CHECK_EQ(bed_counter(STATS_removed_missing_pages_total), 2);
    CHECK_EQ(bed_counter(STATS_removed_wanted_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_owned_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_poisoned_pages_total), 1);
    sim_removal_step(&bed.sim, 0);
    bed_later(MS);
    CHECK_EQ(bed_state(2), PAGE_OWNED);
    CHECK_EQ(bed_reads(2), 0);
    sim_removal_step(&bed.sim, 0); /* the mappings go only now */
    bed_fault(0, 2);
    bed_fault(1, 3);
    bed_fault(2, 4);
    CHECK_EQ(bed_reads(2), 0);
    CHECK_EQ(bed_reads(3), 0);
    CHECK_EQ(bed.sim.pages[4].pte, SIM_PTE_POISON);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 5, V1), 0);
    CHECK_EQ(bed_state(1), PAGE_ZERO);
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 5);
}

static void a_fault_is_read_before_the_removal_that_explains_it(void)
{
    uint64_t token;

    bed_begin_armed(true);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + PAGE_BYTES, true);
    sim_touch(&bed.sim, 0, 0, false, &token);
    CHECK_EQ(engine_turn(&bed.engine, bed.now_ns), 2); /* one batch, the fault first */
    CHECK_EQ(bed.sim.newest_batch[0].kind, KERNEL_EVENT_FAULT);
    CHECK_EQ(bed.ask_count, 0); /* but worked on last */
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    bed_later(MS);
    CHECK_EQ(bed_reads(0), 0);
}

static void a_remove_event_on_shared_memory_changes_no_word(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&bed.engine);
    bed_fault(0, 2);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + 4 * PAGE_BYTES, false);
    engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed_state(0), PAGE_MISSING);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
    CHECK_EQ(bed_state(2), PAGE_WANTED);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 0);
}

/* What the guest's balloon takes is counted, what our own zap drops is not. */
static void our_own_zap_is_no_removal(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&bed.engine);
    engine_zaps(&bed.engine, 1, 2);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + 4 * PAGE_BYTES, false);
    engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed_counter(STATS_removes_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_pages_total), 2);
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    engine_zaps(&bed.engine, 0, 0);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + 4 * PAGE_BYTES, false);
    engine_turn(&bed.engine, bed.now_ns);
    CHECK_EQ(bed_counter(STATS_removed_pages_total), 6);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
}

static void an_ordered_drop_is_zero_for_ever(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 2, 2, V1);
    CHECK_EQ(engine_drop(&bed.engine, 2, 2), 0); /* before arming there is nothing to drop */
    engine_arm(&bed.engine);
    bed_fault(0, 3); /* OWNED */
    bed_fault(1, 4); /* WANTED */
    bed.sim.drop_count = 8;
    CHECK_EQ(engine_drop(&bed.engine, 0, 8), 8);
    CHECK_EQ(bed_state(0), PAGE_ZERO);
    CHECK_EQ(bed_state(2), PAGE_ZERO);
    CHECK_EQ(bed_state(3), PAGE_OWNED);
    CHECK(!bed.sim.pages[2].present);
    CHECK(!bed.sim.pages[3].present);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 8, V1), 0);
    bed_fault(2, 3);
    CHECK_EQ(bed_reads(3), 0);
    bed_force(SIM_PUNCH, KERNEL_FULL, 1, 1);
    CHECK_EQ(engine_drop(&bed.engine, 0, 4), 1); /* as far as it came */
    CHECK_EQ(engine_drop(&bed.engine, PAGES, 1), 0);
}

static void a_reported_discard_is_zero_for_ever(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 0, 99);
    engine_mark_stale(&bed.engine, 0, 1);
    bed_news(ENGINE_DATA, 2, 2, V1);
    bed_news(ENGINE_ZEROS, 5, 1, V1);
    engine_arm(&bed.engine);
    bed_fault(0, 3); /* OWNED */
    bed_fault(1, 4); /* WANTED */
    bed_news(ENGINE_POISON, 6, 1, V1);
    engine_removed(&bed.engine, 0, 7);
    CHECK_EQ(bed_word(0), page_word(PAGE_ZERO, false, 0));
    CHECK_EQ(bed_word(1), page_word(PAGE_ZERO, false, 0));
    CHECK_EQ(bed_word(2), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(bed_state(3), PAGE_OWNED);
    CHECK_EQ(bed_state(4), PAGE_OWNED);
    CHECK_EQ(bed_state(5), PAGE_ZERO);
    CHECK_EQ(bed_state(6), PAGE_POISONED);
    CHECK(!bed.sim.pages[0].present);
    CHECK(!bed.sim.pages[2].present);
    CHECK_EQ(bed_reads(4), 0);
    CHECK_EQ(bed_reads(3), bed_token_of_page(3, V1)); /* the VMM's own drop takes that one */
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 7, V1), 0);
    CHECK_EQ(bed_counter(STATS_removed_missing_pages_total), 2);
    CHECK_EQ(bed_counter(STATS_removed_wanted_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_cached_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_zero_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_owned_pages_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_poisoned_pages_total), 1);
}

/* ------------------------------------------------------------------------------------------------- units of many pages */

#define UNIT 16

/* The VMM's thread is on another processor: once its removal has been read it may go on at any moment, also in the middle
 * of the batch. The first call that maps finds it done. */
static struct kernel_outcome map_after_the_zap(void *kernel, const struct kernel_span *span)
{
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    return sim_kernel_ops.map(kernel, span);
}

/* `waited`: a thread waits for it, so all of it was asked for. */
static void begin_units(bool private_memory, bool waited)
{
    bed_begin(private_memory);
    bed.regions.unit_pages = UNIT;
    engine_arm(&bed.engine);
    if (waited)
        bed_fault(0, 2);
    CHECK_EQ(bed_state(15), waited ? PAGE_WANTED : PAGE_MISSING);
    bed_news(ENGINE_DATA, 8, 4, V1);
    CHECK_EQ(bed_state(9), PAGE_CACHED);
}

/* Half of it has come when it is removed whole: that half must not be mapped just because nothing lacks any more. */
static void half_a_unit_is_removed(bool waited)
{
    struct kernel_ops ops = sim_kernel_ops;

    begin_units(true, waited);
    ops.map = map_after_the_zap;
    bed.engine.ops = &ops;
    bed_news(ENGINE_DATA, 12, 4, V1); /* what lacks is in front of what is here */
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + UNIT * PAGE_BYTES, true);
    engine_turn(&bed.engine, bed.now_ns);
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    bed_later(MS);
    bed_fault(0, 2);
    for (uint64_t page = 0; page < UNIT; page++)
        CHECK_EQ(bed_reads(page), 0);
}

static void a_unit_that_is_removed_is_removed_before_it_is_whole(void)
{
    half_a_unit_is_removed(true);
    half_a_unit_is_removed(false);
}

/* A part of it: what was not removed is mapped as it is, once nothing lacks. */
static void a_unit_of_which_a_part_is_removed(void)
{
    begin_units(false, true);
    engine_removed(&bed.engine, 0, 10);
    for (uint64_t page = 0; page < 10; page++)
        CHECK_EQ(bed_state(page), PAGE_ZERO);
    CHECK_EQ(bed_state(11), PAGE_CACHED);
    CHECK(bed.sim.threads[0].sleeps);
    bed_news(ENGINE_DATA, 0, UNIT, V1);
    CHECK_EQ(bed_state(0), PAGE_OWNED);
    CHECK(!bed.sim.threads[0].sleeps);
    for (uint64_t page = 0; page < UNIT; page++)
        CHECK_EQ(bed_reads(page), page < 10 ? 0 : bed_token_of_page(page, V1));
}

/* All that lacked of it is removed: who waits for it goes on, with bytes and zeros. */
static void a_unit_whose_rest_is_removed(void)
{
    begin_units(false, true);
    engine_removed(&bed.engine, 12, 4);
    engine_removed(&bed.engine, 0, 8);
    CHECK(!bed.sim.threads[0].sleeps);
    for (uint64_t page = 0; page < UNIT; page++)
        CHECK_EQ(bed_reads(page), page < 8 || page >= 12 ? 0 : bed_token_of_page(page, V1));
}

static void a_discard_is_claimed_even_when_the_punch_fails(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 2, 2, V1);
    bed_news(ENGINE_ZEROS, 0, 2, V1);
    bed_news(ENGINE_ZEROS, 4, PAGES, V1);
    engine_arm(&bed.engine);
    bed_force(SIM_PUNCH, KERNEL_FULL, 0, 2);
    engine_removed(&bed.engine, 2, 2);
    CHECK_EQ(bed_word(2), page_word(PAGE_ZERO, true, V1));
    CHECK(!engine_settled(&bed.engine)); /* the cache still has the bytes */
    CHECK(engine_next_ns(&bed.engine) <= bed.now_ns);
    bed_later(1);
    CHECK(!engine_settled(&bed.engine));
    bed_later(ENGINE_FULL_WAIT_MIN_NS);
    CHECK_EQ(bed_word(2), page_word(PAGE_ZERO, false, V1));
    CHECK(engine_settled(&bed.engine));
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
}

/* ---------------------------------------------------------------------------------------------------------- poison */

static void poison_drops_the_bytes_and_stays(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 0, 2, V1);
    bed_news(ENGINE_ZEROS, 2, 1, V1);
    engine_arm(&bed.engine);
    bed_fault(0, 1); /* OWNED */
    bed_fault(1, 3); /* WANTED */
    CHECK_EQ(bed_news(ENGINE_POISON, 0, 5, V1), 2); /* of those that are not here */
    CHECK_EQ(engine_lost(&bed.engine, 0, 5), 3);
    for (uint64_t page = 0; page < 5; page++) {
        CHECK_EQ(bed_word(page), page_word(PAGE_POISONED, false, V1));
        CHECK_EQ(bed.sim.pages[page].pte, SIM_PTE_POISON);
        CHECK(!bed.sim.pages[page].present);
    }
    CHECK(!bed.sim.threads[1].sleeps);
    CHECK_EQ(bed_untold(), 5);
    CHECK_EQ(bed_told().sequence, 5);
    CHECK_EQ(bed_counter(STATS_poisoned_pages_total), 5);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 5, V1), 0);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 0, 5, V1), 0);
    CHECK_EQ(bed_news(ENGINE_POISON, 0, 5, V1), 0);
    bed.sim.pages[0].pte = SIM_PTE_NONE; /* a DONTNEED of the VMM has cleared the marker */
    bed_fault(0, 0);
    CHECK_EQ(bed.sim.pages[0].pte, SIM_PTE_POISON);
    bed.sim.threads[0] = (struct sim_thread){.sleeps = true, .page = 0};
    engine_turn(&bed.engine, bed.now_ns); /* the marker is there: woken */
    CHECK(!bed.sim.threads[0].sleeps);
}

static void poison_of_a_mapped_page_is_said(void)
{
    bed_begin_armed(true);
    bed_news(ENGINE_DATA, 0, 1, V1);
    CHECK_EQ(engine_lost(&bed.engine, 0, 1), 1);
    CHECK_EQ(bed_told().flags, LOG_WAS_MAPPED | LOG_MAPPED);
    CHECK_EQ(bed_state(0), PAGE_POISONED);
    CHECK_EQ(bed_news(ENGINE_POISON, 1, 1, V1), 1);
    CHECK_EQ(bed_told().flags, 0);
}

/* What a VMM on private memory has not dropped yet cannot be cleared: its bytes would be back. */
static void poison_that_clings_is_not_cleared(void)
{
    uint64_t changed = 0;

    bed_begin_armed(true);
    bed_news(ENGINE_DATA, 0, 2, V1);
    CHECK_EQ(engine_lost(&bed.engine, 0, 2), 2);
    CHECK(engine_clings(&bed.engine, 0));
    CHECK_EQ(engine_cleared(&bed.engine, 0, 2, &changed), 2);
    CHECK_EQ(changed, 0);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + PAGE_BYTES, true);
    engine_turn(&bed.engine, bed.now_ns);
    sim_removal_step(&bed.sim, 0);
    sim_removal_step(&bed.sim, 0);
    bed_later(ENGINE_LATER_NS);
    CHECK_EQ(bed.sim.pages[0].pte, SIM_PTE_POISON);
    CHECK(!engine_clings(&bed.engine, 0));
    CHECK_EQ(engine_cleared(&bed.engine, 0, 2, &changed), 2);
    CHECK_EQ(changed, 1);
    CHECK_EQ(bed_reads(0), 0);
    CHECK_EQ(bed_state(1), PAGE_POISONED);
}

static void a_kernel_that_cannot_poison_holds(void)
{
    uint64_t changed = 0;

    bed_begin_armed(false);
    bed.sim.without_poison = true;
    bed_news(ENGINE_DATA, 0, 2, V1);
    CHECK_EQ(engine_lost(&bed.engine, 0, 1), 1); /* the kernel says so itself */
    CHECK_EQ(bed_told().flags, LOG_WAS_MAPPED | LOG_HELD);
    CHECK_EQ(bed.sim.calls[SIM_POISON], 1);
    bed.engine.without_poison = true; /* as it is told at the start: then it is not asked */
    CHECK_EQ(engine_lost(&bed.engine, 1, 2), 2);
    CHECK_EQ(bed.sim.calls[SIM_POISON], 1);
    CHECK_EQ(bed_told().flags, LOG_HELD);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 0);
    bed_fault(0, 0);
    CHECK(bed.sim.threads[0].sleeps);
    bed_news(ENGINE_ZEROS, 3, PAGES, V1);
    CHECK(engine_settled(&bed.engine)); /* whoever waits there is not owed anything by the source */
    bed_succeed(false);
    CHECK(bed.sim.threads[0].sleeps == false); /* woken, as all are */
    bed_fault(0, 0);
    CHECK(bed.sim.threads[0].sleeps);
    CHECK_EQ(engine_cleared(&bed.engine, 0, 3, &changed), 3);
    CHECK_EQ(changed, 3);
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed_reads(0), 0);
    CHECK_EQ(bed_told().kind, LOG_CLEARED);
}

/* The log is full: nothing is readable all the same, and it is told when there is room, once. */
static void a_full_log_delays_what_is_told(void)
{
    uint64_t changed = 0;

    bed_begin(false);
    bed.table.header->log_capacity = 2;
    bed_news(ENGINE_DATA, 0, PAGES, V1);
    engine_arm(&bed.engine);
    engine_sweep(&bed.engine, 0, PAGES);
    CHECK_EQ(engine_lost(&bed.engine, 0, 4), 4);
    for (uint64_t page = 0; page < 4; page++)
        CHECK_EQ(bed.sim.pages[page].pte, SIM_PTE_POISON);
    CHECK_EQ(bed_untold(), 2);
    CHECK(engine_owes(&bed.engine, 3, 1));
    CHECK(!engine_owes(&bed.engine, 1, 1));
    CHECK_EQ(engine_cleared(&bed.engine, 0, 4, &changed), 0);
    CHECK_EQ(bed_told().sequence, 2);
    bed_later(ENGINE_FULL_WAIT_MIN_NS);
    CHECK_EQ(bed_told().sequence, 4);
    CHECK_EQ(bed.engine.owed_count, 0);
    CHECK_EQ(engine_cleared(&bed.engine, 0, 4, &changed), 2);
    CHECK_EQ(changed, 2);
    CHECK_EQ(bed_told().page, 1);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
}

/* What the source says of it counts no more: neither its bytes come back, nor its poison. */
static void what_was_cleared_is_the_guests_own(void)
{
    uint64_t changed = 0;

    for (int armed = 0; armed < 2; armed++) {
        bed_begin(false);
        bed_news(ENGINE_DATA, 5, 1, V1);
        CHECK_EQ(engine_lost(&bed.engine, 5, 2), 2);
        if (armed)
            engine_arm(&bed.engine);
        CHECK_EQ(engine_cleared(&bed.engine, 0, PAGES, &changed), PAGES);
        if (!armed)
            CHECK_EQ(bed_news(ENGINE_FLOOR, 5, 1, V2), 1); /* counted for the manifest */
        CHECK_EQ(bed_news(ENGINE_DATA, 5, 2, armed ? V1 : V2), 0);
        CHECK_EQ(bed_news(ENGINE_POISON, 5, 2, armed ? V1 : V2), 0);
        engine_arm(&bed.engine);
        bed_fault(0, 5);
        CHECK_EQ(bed_reads(5), 0);
        CHECK_EQ(bed_state(5), PAGE_OWNED);
        CHECK_EQ(engine_lost(&bed.engine, 5, 1), 1); /* by order it can be lost again */
        CHECK_EQ(bed_told().sequence, 3);
        CHECK_EQ(bed_news(ENGINE_POISON, 5, 1, V2), 0);
    }
    CHECK_EQ(changed, 4);
}

/* ----------------------------------------------------------------------------------------------------------- sweep */

static void a_sweep_maps_runs_around_what_is_mapped_and_discarded(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 0, PAGES, V1);
    engine_arm(&bed.engine);
    bed_fault(0, 3);
    sim_discard(&bed.sim, 5);
    CHECK_EQ(engine_sweep(&bed.engine, 0, 8), 7);
    CHECK_EQ(bed_counter(STATS_absent_cached_total), 1);
    sim_discard(&bed.sim, 3);
    bed_fault(1, 3);
    CHECK_EQ(bed_counter(STATS_absent_owned_total), 1);
    CHECK_EQ(bed_counter(STATS_faults_owned_total), 1);
    CHECK_EQ(bed_reads(3), 0);
    CHECK_EQ(bed_state(8), PAGE_CACHED);
    CHECK_EQ(bed_reads(5), 0);
    CHECK_EQ(bed_reads(7), bed_token_of_page(7, V1));
    bed.sim.calls[SIM_MAP] = 0;
    CHECK_EQ(engine_sweep(&bed.engine, 8, PAGES), PAGES - 8);
    CHECK_EQ(bed.sim.calls[SIM_MAP], 2); /* one a region */
    CHECK_EQ(bed_counter(STATS_swept_pages_total), PAGES - 1);
    CHECK(engine_settled(&bed.engine));
    CHECK_EQ(engine_sweep(&bed.engine, 0, PAGES), 0);
}

static void a_sweep_that_is_stopped_leaves_the_rest_to_faults(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 0, 8, V1);
    engine_arm(&bed.engine);
    bed.sim.threads[0] = (struct sim_thread){.sleeps = true, .event_read = true, .page = 6};
    sim_remove(&bed.sim, bed_layout[1].address, bed_layout[1].address + PAGE_BYTES, false); /* and not completed */
    CHECK_EQ(engine_sweep(&bed.engine, 0, 8), 0);
    CHECK_EQ(bed_state(6), PAGE_OWNED);
    CHECK(!bed.sim.threads[0].sleeps); /* whoever sleeps there comes again */
    sim_removal_step(&bed.sim, 0);
    bed_fault(0, 6);
    CHECK_EQ(bed_reads(6), bed_token_of_page(6, V1));
}

int main(void)
{
    RUN(a_removal_on_private_memory_is_zero_for_ever);
    RUN(a_fault_is_read_before_the_removal_that_explains_it);
    RUN(a_remove_event_on_shared_memory_changes_no_word);
    RUN(our_own_zap_is_no_removal);
    RUN(an_ordered_drop_is_zero_for_ever);
    RUN(a_reported_discard_is_zero_for_ever);
    RUN(a_discard_is_claimed_even_when_the_punch_fails);
    RUN(a_unit_that_is_removed_is_removed_before_it_is_whole);
    RUN(a_unit_of_which_a_part_is_removed);
    RUN(a_unit_whose_rest_is_removed);
    RUN(poison_drops_the_bytes_and_stays);
    RUN(poison_of_a_mapped_page_is_said);
    RUN(poison_that_clings_is_not_cleared);
    RUN(a_kernel_that_cannot_poison_holds);
    RUN(a_full_log_delays_what_is_told);
    RUN(what_was_cleared_is_the_guests_own);
    RUN(a_sweep_maps_runs_around_what_is_mapped_and_discarded);
    RUN(a_sweep_that_is_stopped_leaves_the_rest_to_faults);
    bed_end();
    return check_done();
}
