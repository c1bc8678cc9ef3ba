/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Units of many pages, single cases on the simulated kernel: what random worlds (test_simulation) meet seldom, or, like
 * a death between two words, never.
 */
#include "check.h"
#include "engine_bed.h"

#define UNIT 8
#define FULL_MS (ENGINE_FULL_WAIT_MAX_NS / MS)

static void begin(bool private_memory)
{
    bed.unit_pages = UNIT;
    bed_begin_armed(private_memory);
}

static uint64_t in_state(uint64_t first, enum page_state state)
{
    uint64_t count = 0;

    for (uint64_t page = first; page < first + UNIT; page++)
        count += bed_state(page) == state;
    return count;
}

static void a_fault_asks_for_its_unit_once(void)
{
    begin(false);
    bed_news(ENGINE_ZEROS, 9, 2, V1);
    bed_fault(0, 13);
    CHECK_EQ(bed.ask_count, UNIT - 2);
    CHECK_EQ(bed.asks[0], 8);
    CHECK_EQ(in_state(8, PAGE_WANTED), UNIT - 2);
    bed_fault(1, 8);
    CHECK_EQ(bed.ask_count, UNIT - 2);
    CHECK_EQ(in_state(0, PAGE_MISSING), UNIT);
    CHECK_EQ(in_state(16, PAGE_MISSING), UNIT);
}

static void the_last_page_maps_it_whatever_its_kind(void)
{
    for (int private = 0; private < 2; private++) {
        begin(private);
        bed_fault(0, 3);
        CHECK_EQ(bed_news(ENGINE_DATA, 0, 7, V1), 7);
        CHECK_EQ(bed_reads(0), SIM_TORN);
        CHECK_EQ(bed.sim.calls[SIM_MAP], 0);
        CHECK_EQ(bed_news(ENGINE_ZEROS, 7, 1, V1), 1);
        CHECK_EQ(in_state(0, PAGE_OWNED), UNIT);
        CHECK_EQ(bed.sim.calls[SIM_MAP], 1);
        CHECK_EQ(bed_reads(6), bed_token_of_page(6, V1));
        CHECK_EQ(bed_reads(7), 0);
        CHECK_EQ(bed_counter(STATS_asks_outstanding), 0);
    }
}

/* The wait for a unit is one wait, however many pages it was. */
static void one_fault_is_observed_once(void)
{
    uint64_t values[STATS_BUCKETS + 1], count = 0;

    begin(false);
    bed_fault(0, 3);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(stats_copy_histogram(&bed.stats, STATS_fault_fetch_ns, values, STATS_BUCKETS + 1), STATS_BUCKETS + 1);
    for (uint32_t i = 0; i < STATS_BUCKETS; i++)
        count += values[i];
    CHECK_EQ(count, 1);
}

/* Foreign bytes lie where a page of zeros is to be: they are gone before the unit is mapped. */
static void stale_bytes_are_zeros_when_it_is_mapped(void)
{
    bed.unit_pages = UNIT;
    bed_begin(false);
    sim_foreign(&bed.sim, 5, 77);
    engine_mark_stale(&bed.engine, 0, UNIT);
    engine_arm(&bed.engine);
    bed_fault(0, 3);
    bed_news(ENGINE_ZEROS, 5, 1, V1);
    bed_news(ENGINE_DATA, 0, 5, V1);
    bed_news(ENGINE_DATA, 6, 2, V1);
    CHECK_EQ(in_state(0, PAGE_OWNED), UNIT);
    CHECK_EQ(bed_reads(5), 0);
    CHECK_EQ(bed_reads(6), bed_token_of_page(6, V1));
}

static void one_that_is_held_back_keeps_it_from_being_mapped(void)
{
    begin(false);
    bed_force(SIM_POPULATE, KERNEL_REFUSED, 2, 1);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK(page_held(bed_word(2)));
    bed_fault(0, 0);
    CHECK_EQ(bed.sim.calls[SIM_MAP], 0);
    CHECK_EQ(bed.ask_count, 0);
    CHECK_EQ(bed_reads(0), SIM_TORN);
    CHECK(!engine_settled(&bed.engine));
}

static void broken_memory_takes_the_unit_along(void)
{
    begin(false);
    bed_force(SIM_MAP, KERNEL_BROKEN, 0, 1);
    bed_fault(0, 3);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(in_state(0, PAGE_POISONED), UNIT);
    bed_later(MS);
    CHECK_EQ(bed_untold(), UNIT);
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed.sim.pages[5].pte, SIM_PTE_POISON);
    CHECK(!bed.sim.pages[5].present);
    CHECK_EQ(bed_counter(STATS_alarms_total), 0);
}

/* A hole under a unit that is claimed was punched by the VMM: it reads zero for ever. */
static void a_hole_under_a_claimed_unit_reads_zero(void)
{
    begin(false);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(bed_reads(4), bed_token_of_page(4, V1));
    sim_discard_unit(&bed.sim, 0);
    bed_fault(0, 4);
    CHECK_EQ(bed_reads(4), 0);
    CHECK_EQ(bed_reads(0), 0);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 8, V1), 0);
}

static void no_room_for_a_private_unit_is_said_and_waited_for(void)
{
    begin(true);
    bed.sim.full = true;
    bed_fault(0, 3);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 8, V1), 8); /* staged: that is not the guest's memory */
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(in_state(0, PAGE_CACHED), UNIT);
    CHECK_EQ(bed_news(ENGINE_DATA, 8, 4, V1), 4);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL_OVER], 0);
    bed.sim.full = false;
    for (int i = 0; i < 4; i++)
        bed_later(FULL_MS * MS);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL_OVER], 1);
    CHECK_EQ(bed_reads(3), bed_token_of_page(3, V1));
}

/* Staging has memory of its own: that it is there again is seen before a unit is whole. */
static void no_room_to_stage_ends_with_the_next_write(void)
{
    begin(true);
    bed_force(SIM_POPULATE, KERNEL_FULL, 0, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 2, V1), 0);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 2, V1), 2);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL_OVER], 1);
}

/* The worker died between two of its claims: the unit was copied, and may have been written since. */
static void claims_that_were_begun_are_finished(void)
{
    begin(true);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(in_state(0, PAGE_OWNED), UNIT);
    for (uint64_t page = 3; page < UNIT; page++)
        table_set(&bed.table, page, page_word(PAGE_CACHED, false, V1));
    bed.sim.pages[5].token = 4711; /* by the guest */
    sim_lose_staging(&bed.sim);
    bed_succeed(true);
    CHECK_EQ(in_state(0, PAGE_OWNED), UNIT);
    CHECK_EQ(bed_reads(5), 4711);
    CHECK(bed.ask_count == 0);
}

/* And before the first: nothing tells whether it was copied but the kernel. */
static void a_copy_without_claims_is_found(void)
{
    begin(true);
    bed_news(ENGINE_DATA, 0, 8, V1);
    for (uint64_t page = 0; page < UNIT; page++)
        table_set(&bed.table, page, page_word(PAGE_CACHED, false, V1));
    bed.sim.pages[5].token = 4711;
    bed_succeed(true);
    bed.engine.frozen_version = V1;
    CHECK_EQ(in_state(0, PAGE_MISSING), UNIT);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(in_state(0, PAGE_OWNED), UNIT);
    CHECK_EQ(bed_reads(5), 4711);
}

/* The same answer without a worker before us: the kernel says so of an empty pool. Nothing is claimed. */
static void a_private_unit_that_is_there_and_is_not_ours_is_not_claimed(void)
{
    begin(true);
    bed_force(SIM_MAP, KERNEL_ALREADY, 0, 40);
    bed_fault(0, 3);
    bed_news(ENGINE_DATA, 0, 8, V1);
    CHECK_EQ(in_state(0, PAGE_OWNED), 0);
    bed_force(SIM_MAP, KERNEL_MAPPED, 0, 0);
    bed_later(10 * MS);
    CHECK_EQ(bed_reads(3), bed_token_of_page(3, V1));
}

int main(void)
{
    RUN(a_fault_asks_for_its_unit_once);
    RUN(the_last_page_maps_it_whatever_its_kind);
    RUN(one_fault_is_observed_once);
    RUN(stale_bytes_are_zeros_when_it_is_mapped);
    RUN(one_that_is_held_back_keeps_it_from_being_mapped);
    RUN(broken_memory_takes_the_unit_along);
    RUN(a_hole_under_a_claimed_unit_reads_zero);
    RUN(no_room_for_a_private_unit_is_said_and_waited_for);
    RUN(no_room_to_stage_ends_with_the_next_write);
    RUN(claims_that_were_begun_are_finished);
    RUN(a_copy_without_claims_is_found);
    RUN(a_private_unit_that_is_there_and_is_not_ours_is_not_claimed);
    bed_end();
    return check_done();
}
