/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the engine decides, case by case: before arming, what is asked and when again, which versions are accepted, and
 * its bounds. Results of the kernel are in test_place.c, what the VMM takes away in test_removal.c; the simulation
 * finds what nobody thought of.
 */
#include "check.h"
#include "engine_bed.h"

/* ---------------------------------------------------------------------------------------------------- before arming */

static void missing_fault_unarmed_parks(void)
{
    bed_begin(false);
    bed.now_ns += 5;
    bed_fault(0, 3);
    CHECK_EQ(bed_state(3), PAGE_MISSING);
    CHECK_EQ(bed.ask_count, 0);
    CHECK(bed.sim.threads[0].sleeps);
    CHECK_EQ(bed_counter(STATS_faults_early_total), 1);
    CHECK_EQ(bed.engine.first_early_ns, bed.now_ns);
    CHECK_EQ(bed.engine.early_page, 3);
    bed.now_ns += 5;
    bed_fault(1, 4);
    CHECK_EQ(bed.engine.first_early_ns, bed.now_ns - 5);
    engine_arm(&bed.engine); /* the wake of arming brings both again */
    CHECK(!bed.sim.threads[0].sleeps);
    CHECK_EQ(bed.engine.first_early_ns, 0);
    bed_fault(0, 3);
    CHECK_EQ(bed_state(3), PAGE_WANTED);
    CHECK_EQ(bed.ask_count, 1);
    engine_arm(&bed.engine); /* once is enough */
    CHECK(bed.sim.threads[0].sleeps);
}

static void every_state_parks_a_fault_unarmed(void)
{
    bed_begin(false);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 2, 1, V1), 1);
    CHECK_EQ(bed_news(ENGINE_POISON, 3, 1, V1), 1);
    for (uint64_t page = 0; page < 4; page++)
        bed_fault((uint32_t)page, page);
    CHECK_EQ(bed_counter(STATS_faults_early_total), 4);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
    CHECK_EQ(bed_state(2), PAGE_ZERO);
    CHECK_EQ(bed_state(3), PAGE_POISONED);
    CHECK_EQ(bed.sim.calls[SIM_POISON], 0); /* no marker before arming either */
    engine_arm(&bed.engine);
    bed_fault(1, 1);
    bed_fault(2, 2);
    bed_fault(3, 3);
    CHECK_EQ(bed_reads(1), bed_token_of_page(1, V1));
    CHECK_EQ(bed_reads(2), 0);
    CHECK_EQ(bed.sim.pages[3].pte, SIM_PTE_POISON);
}

static void missing_data_unarmed_is_cached(void)
{
    bed_begin(false);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 4, V1), 4);
    CHECK_EQ(bed.sim.calls[SIM_POPULATE], 1); /* one call for the run */
    CHECK_EQ(bed_word(2), page_word(PAGE_CACHED, false, V1));
    CHECK_EQ(counts_of(&bed.engine.counts, PAGE_CACHED), 4);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V1), 0); /* not newer */
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V2), 1);
    CHECK_EQ(bed_word(2), page_word(PAGE_CACHED, false, V2));
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V1), 0);
    CHECK_EQ(bed_counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(bed.sim.pages[2].token, bed_token_of_page(2, V2));
}

static void private_memory_takes_no_bytes_before_arming(void)
{
    bed_begin(true);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 4, V1), 0);
    CHECK_EQ(bed_state(2), PAGE_MISSING);
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 4);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 2, 1, V1), 1);
    CHECK_EQ(bed_state(2), PAGE_ZERO);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 0);
}

static void zeros_punch_only_what_is_in_doubt(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 5, 99);
    engine_mark_stale(&bed.engine, 5, 1);
    CHECK(page_stale(bed_word(5)));
    CHECK_EQ(bed_news(ENGINE_DATA, 8, 1, V1), 1);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 4, 2, V1), 2);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 1);
    CHECK(!bed.sim.pages[5].present);
    CHECK_EQ(bed_word(5), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(bed_word(4), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(bed_news(ENGINE_ZEROS, 8, 1, V2), 1); /* CACHED, and newer */
    CHECK_EQ(bed_word(8), page_word(PAGE_ZERO, false, V2));
    CHECK(!bed.sim.pages[8].present);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 8, 1, V2 + 1), 1); /* ZERO, and newer */
    CHECK_EQ(page_version(bed_word(8)), V2 + 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 8, 1, V2 + 2), 1);
    CHECK_EQ(bed_state(8), PAGE_CACHED);
    CHECK_EQ(bed_counter(STATS_zero_pages_total), 4);
}

static void zeros_are_not_claimed_when_the_punch_fails(void)
{
    bed_begin(false);
    CHECK_EQ(bed_news(ENGINE_DATA, 8, 2, V1), 2);
    bed_force(SIM_PUNCH, KERNEL_FULL, 0, 1);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 8, 2, V2), 0);
    CHECK_EQ(bed_word(8), page_word(PAGE_MISSING, true, V2)); /* V1 is known to be old, V2 is not here */
    CHECK_EQ(bed_news(ENGINE_ZEROS, 8, 2, V2), 2);
    CHECK_EQ(bed_state(9), PAGE_ZERO);
}

static void floors_raise_and_forget(void)
{
    bed_begin(false);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 2, 1, V1), 1);
    bed_news(ENGINE_FLOOR, 0, 4, V2);
    CHECK_EQ(bed_word(0), page_word(PAGE_MISSING, false, V2));
    CHECK_EQ(bed_word(1), page_word(PAGE_MISSING, true, V2));
    CHECK_EQ(bed_word(2), page_word(PAGE_MISSING, true, V2)); /* it may be there as zeros */
    CHECK_EQ(bed_news(ENGINE_FLOOR, 0, 4, V1), 0); /* older news changes nothing */
    CHECK_EQ(page_version(bed_word(0)), V2);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V1), 0);
    CHECK_EQ(bed_counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, V2 + 1), 1); /* newer than the floor will do, before arming */
    CHECK_EQ(bed_word(1), page_word(PAGE_CACHED, false, V2 + 1));
    CHECK_EQ(bed_news(ENGINE_FLOOR, 1, 1, V2 + 1), 0);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
}

static void a_write_that_fails_half_way_claims_only_what_is_whole(void)
{
    bed_begin(false);
    bed_force(SIM_POPULATE, KERNEL_FULL, 2, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 4, V1), 2);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
    CHECK_EQ(bed_word(2), page_word(PAGE_MISSING, true, 0));
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 2, V1), 2);
    CHECK_EQ(bed.reports[ENGINE_REPORT_FULL_OVER], 1);
    CHECK_EQ(bed_word(2), page_word(PAGE_CACHED, false, V1));
    bed_force(SIM_POPULATE, KERNEL_FULL, 0, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V2), 0);
    CHECK_EQ(bed_word(2), page_word(PAGE_MISSING, true, V2)); /* V1 may be half gone, and is known to be old */
    CHECK_EQ(bed_news(ENGINE_DATA, 2, 1, V2), 1);
    CHECK(!engine_settled(&bed.engine));
    CHECK_EQ(bed_news(ENGINE_ZEROS, 4, PAGES, V1), PAGES - 4);
    CHECK(engine_settled(&bed.engine));
    engine_arm(&bed.engine);
    CHECK(!engine_settled(&bed.engine)); /* CACHED is not the guest's yet */
    CHECK_EQ(engine_sweep(&bed.engine, 0, PAGES), 4);
    CHECK(engine_settled(&bed.engine));
}

static void removals_unarmed_change_nothing(void)
{
    bed_begin(true);
    sim_remove(&bed.sim, bed_layout[0].address, bed_layout[0].address + 4 * PAGE_BYTES, true);
    engine_turn(&bed.engine, bed.now_ns);
    engine_removed(&bed.engine, 0, 4);
    CHECK_EQ(bed_state(0), PAGE_MISSING);
    CHECK_EQ(bed_counter(STATS_removes_total), 1);
    CHECK_EQ(bed_counter(STATS_removed_pages_total), 8);
}

/* -------------------------------------------------------------------------------------------------------- fetching */

static void a_page_is_asked_once(void)
{
    bed_begin_armed(false);
    for (uint32_t thread = 0; thread < 4; thread++)
        bed_fault(thread, 9);
    CHECK_EQ(bed.ask_count, 1);
    CHECK_EQ(bed.asks[0], 9);
    CHECK_EQ(bed_state(9), PAGE_WANTED);
    CHECK_EQ(bed_counter(STATS_asks_total), 1);
    CHECK_EQ(bed_counter(STATS_asks_outstanding), 1);
    CHECK_EQ(bed_counter(STATS_faults_again_total), 3);
    CHECK_EQ(bed_news(ENGINE_DATA, 9, 1, V1), 1);
    CHECK_EQ(bed_word(9), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(9), bed_token_of_page(9, V1));
    CHECK_EQ(bed_counter(STATS_asks_outstanding), 0);
    CHECK_EQ(bed_counter(STATS_asks_outstanding_max), 1);
    CHECK_EQ(bed_counter(STATS_copies_total), 1);
    for (uint32_t thread = 0; thread < 4; thread++)
        CHECK(!bed.sim.threads[thread].sleeps);
}

static void the_time_of_a_fetch_is_observed(void)
{
    uint64_t observed = 0;

    bed_begin_armed(false);
    bed_fault(0, 9);
    bed.now_ns += 44000;
    bed_news(ENGINE_DATA, 8, 3, V1);
    for (uint32_t bucket = 0; bucket < STATS_BUCKETS; bucket++)
        observed += atomic_load(&bed.stats.histogram[STATS_fault_fetch_ns][bucket]);
    CHECK_EQ(observed, 1); /* the neighbours were not asked */
    CHECK_EQ(atomic_load(&bed.stats.histogram[STATS_fault_fetch_ns][stats_bucket(44000)]), 1);
}

static void missing_data_armed_is_placed_by_one_copy(void)
{
    bed_begin_armed(false);
    CHECK_EQ(bed_news(ENGINE_DATA, FIRST - 4, 8, V1), 8);
    CHECK_EQ(bed.sim.calls[SIM_COPY], 2); /* one a region */
    CHECK_EQ(bed_state(FIRST - 1), PAGE_OWNED);
    CHECK_EQ(bed_reads(FIRST), bed_token_of_page(FIRST, V1));
    CHECK_EQ(bed_news(ENGINE_DATA, FIRST, 1, V1), 0);
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 1);
}

static void news_outside_the_image_is_cut(void)
{
    bed_begin_armed(false);
    CHECK_EQ(bed_news(ENGINE_ZEROS, PAGES - 2, UINT64_MAX, V1), 2);
    CHECK_EQ(bed_news(ENGINE_ZEROS, PAGES, 1, V1), 0);
    CHECK_EQ(bed_news(ENGINE_ZEROS, UINT64_MAX, 1, V1), 0);
    engine_removed(&bed.engine, UINT64_MAX, 5);
    engine_removed(&bed.engine, PAGES - 1, UINT64_MAX);
    engine_mark_stale(&bed.engine, UINT64_MAX, 5);
    CHECK_EQ(engine_sweep(&bed.engine, UINT64_MAX, UINT64_MAX), 0);
    engine_ask_later(&bed.engine, UINT64_MAX, 0);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
}

static void stale_data_armed_is_written_then_claimed_then_mapped(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 4, 99);
    sim_foreign(&bed.sim, 5, 98);
    engine_mark_stale(&bed.engine, 4, 2);
    engine_arm(&bed.engine);
    bed_fault(0, 4);
    CHECK_EQ(bed_word(4), page_word(PAGE_WANTED, true, 0));
    CHECK_EQ(bed_news(ENGINE_DATA, 4, 3, V1), 3); /* the third is not stale: COPY */
    CHECK_EQ(bed.sim.calls[SIM_POPULATE], 1);
    CHECK_EQ(bed.sim.calls[SIM_MAP], 1);
    CHECK_EQ(bed.sim.calls[SIM_COPY], 1);
    for (uint64_t page = 4; page < 7; page++) {
        CHECK_EQ(bed_word(page), page_word(PAGE_OWNED, false, V1));
        CHECK_EQ(bed_reads(page), bed_token_of_page(page, V1));
    }
}

static void wanted_zeros_are_mapped(void)
{
    bed_begin_armed(false);
    bed_fault(0, 3);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 2, 3, V1), 3);
    CHECK_EQ(bed_state(2), PAGE_ZERO);
    CHECK_EQ(bed_word(3), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(3), 0);
    CHECK(!bed.sim.threads[0].sleeps);
    bed_fault(0, 2);
    CHECK_EQ(bed_word(2), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(2), 0);
    CHECK_EQ(bed_counter(STATS_faults_resolved_total), 1);
}

static void wanted_zeros_of_a_stale_page_punch_first(void)
{
    bed_begin(false);
    sim_foreign(&bed.sim, 4, 99);
    engine_mark_stale(&bed.engine, 4, 1);
    engine_arm(&bed.engine);
    bed_fault(0, 4);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 4, 1, V1), 1);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], 1);
    CHECK_EQ(bed_word(4), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(bed_reads(4), 0);
}

static void lost_links_ask_for_all_that_is_wanted(void)
{
    bed_begin_armed(false);
    for (uint32_t thread = 0; thread < 3; thread++)
        bed_fault(thread, 10 * thread);
    engine_ask_later(&bed.engine, 10, bed.now_ns + 5 * MS);
    CHECK_EQ(engine_next_ns(&bed.engine), bed.now_ns + 5 * MS);
    bed.ask_count = 0;
    engine_asks_lost(&bed.engine);
    CHECK_EQ(bed.ask_count, 3);
    CHECK_EQ(bed_counter(STATS_asks_total), 3);
    CHECK_EQ(bed_counter(STATS_asks_again_total), 3);
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX); /* what was parked has been asked with the others */
}

static void a_page_that_is_late_is_asked_again_in_time(void)
{
    bed_begin_armed(false);
    bed_fault(0, 10);
    engine_ask_later(&bed.engine, 10, bed.now_ns + 5 * MS);
    engine_ask_later(&bed.engine, 11, bed.now_ns + 5 * MS); /* not WANTED */
    bed.ask_count = 0;
    bed_later(5 * MS - 1);
    CHECK_EQ(bed.ask_count, 0);
    bed_later(1);
    CHECK_EQ(bed.ask_count, 1);
    CHECK_EQ(bed_counter(STATS_asks_again_total), 1);
    engine_ask_later(&bed.engine, 10, bed.now_ns + 5 * MS);
    bed_news(ENGINE_DATA, 10, 1, V1);
    bed_later(5 * MS); /* it came by itself */
    CHECK_EQ(bed.ask_count, 1);
}

/* -------------------------------------------------------------------------------------------------------- versions */

static void versions_armed_must_be_those_of_the_map(void)
{
    bed_begin(false);
    bed_news(ENGINE_FLOOR, 0, 2, V2);
    bed.engine.frozen_version = V2;
    engine_arm(&bed.engine);
    bed_fault(0, 0);
    bed.ask_count = 0;
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 1, V1), 0);
    CHECK_EQ(bed_counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(bed_state(0), PAGE_WANTED);
    bed_later(ENGINE_ASK_AGAIN_NS); /* an answer that was no use is asked again */
    CHECK_EQ(bed.ask_count, 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 1, V2 + 1), 0);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed.report_page, 0);
    CHECK_EQ(bed_state(0), PAGE_WANTED);
    bed_later(ENGINE_ASK_AGAIN_NS);
    CHECK_EQ(bed.ask_count, 2);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 1, V2), 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V1), 0); /* a page without a floor takes the one version that there is */
    CHECK_EQ(bed_news(ENGINE_DATA, 5, 1, V2), 1);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 1, 0), 0); /* version 0 is none */
    CHECK_EQ(bed_counter(STATS_stale_dropped_pages_total), 4);
}

static void a_version_between_floor_and_frozen_is_not_the_maps(void)
{
    bed_begin(false);
    bed_news(ENGINE_FLOOR, 0, 2, V1);
    bed.engine.frozen_version = V2;
    engine_arm(&bed.engine);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 1, V2), 0);
    CHECK_EQ(bed_counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1); /* newer than the map has it */
    CHECK_EQ(bed_word(0), page_word(PAGE_MISSING, false, V1));
    CHECK_EQ(bed_news(ENGINE_POISON, 0, 1, V2), 0);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 2);
    CHECK_EQ(bed_news(ENGINE_POISON, 0, 1, V1), 1);
}

/* Bulk and a fault were under way for one page, and in between the server could not read it any more. */
static void what_is_here_is_not_lost_by_the_servers_word(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 2, V1);
    CHECK_EQ(bed_news(ENGINE_POISON, 1, 1, V1), 0);
    CHECK_EQ(bed_state(1), PAGE_CACHED);
    engine_arm(&bed.engine);
    CHECK_EQ(bed_news(ENGINE_POISON, 2, 1, V1), 0);
    bed_fault(0, 3);
    bed_news(ENGINE_DATA, 3, 1, V1);
    bed.sim.pages[3].token = 4711; /* by the guest */
    engine_removed(&bed.engine, 4, 1);
    CHECK_EQ(bed_news(ENGINE_POISON, 1, 4, V1), 0);
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 6);
    CHECK_EQ(bed_reads(3), 4711);
    CHECK_EQ(bed_untold(), 0);
    CHECK_EQ(bed_news(ENGINE_POISON, 5, 1, V1), 1); /* of what lacks it is news */
    CHECK_EQ(bed_state(5), PAGE_POISONED);
}

/* The manifest is that of the versions, however they came about and in whatever order. */
static void the_manifest_follows_the_versions(void)
{
    manifest_sum floors, sum = 0;

    bed_begin(false);
    CHECK(bed.engine.sum == 0);
    for (uint64_t page = 0; page < PAGES; page++)
        sum += manifest_of(page, page < 4 ? V2 : V1);
    bed_news(ENGINE_POISON, 3, 1, V1);
    bed_news(ENGINE_FLOOR, 0, PAGES, V1);
    bed_news(ENGINE_DATA, 1, 8, V1);
    bed_news(ENGINE_ZEROS, 20, 5, V1);
    CHECK(bed.engine.sum != sum);
    CHECK_EQ(bed_news(ENGINE_FLOOR, 0, 4, V2), 4);
    CHECK_EQ(bed_word(3), page_word(PAGE_POISONED, false, V2)); /* the number moves, the page stays lost */
    CHECK(bed.engine.sum == sum);
    floors = bed.engine.sum;
    engine_arm(&bed.engine);
    bed_fault(0, 0);
    CHECK_EQ(bed_news(ENGINE_DATA, 0, 2, V2), 2);
    engine_sweep(&bed.engine, 0, PAGES);
    engine_removed(&bed.engine, 30, 2);
    CHECK(bed.engine.sum == floors); /* armed, it stands still */
    CHECK(table_manifest(&bed.table) == floors);
    bed_succeed(false);
    CHECK(bed.engine.sum == floors);
    CHECK(manifest_of(1, V1) != manifest_of(1, V2) && manifest_of(1, V1) != manifest_of(2, V1));
    CHECK(manifest_of(1, UINT64_C(7) << 32) == 0); /* an incarnation without a round names nothing yet */
}

static void a_floor_after_arming_is_an_alarm(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&bed.engine);
    CHECK_EQ(bed_news(ENGINE_FLOOR, 0, 2, V2), 0);
    CHECK(bed.reports[ENGINE_REPORT_ALARM] > 0);
    CHECK_EQ(bed_word(0), 0);
    CHECK_EQ(bed_word(1), page_word(PAGE_CACHED, false, V1));
}

static void cached_and_zero_armed_drop_news(void)
{
    bed_begin(false);
    bed_news(ENGINE_DATA, 1, 1, V1);
    bed_news(ENGINE_ZEROS, 2, 1, V1);
    engine_arm(&bed.engine);
    CHECK_EQ(bed_news(ENGINE_DATA, 1, 2, V2), 0);
    CHECK_EQ(bed_news(ENGINE_ZEROS, 1, 2, V2), 0);
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), 4);
    CHECK_EQ(bed_word(1), page_word(PAGE_CACHED, false, V1));
    CHECK_EQ(bed_word(2), page_word(PAGE_ZERO, false, V1));
}

/* ---------------------------------------------------------------------------------------------------------- bounds */

static void what_cannot_be_parked_is_not_forgotten(void)
{
    static const struct region big = {.address = UINT64_C(0x7f0000000000), .page_count = 2 * ENGINE_PARKED_MAX};
    uint64_t page;

    bed_begin(false);
    bed_end();
    CHECK_EQ(regions_set(&bed.regions, &big, 1), 0);
    CHECK_EQ(table_create(big.page_count, &bed.table), 0);
    sim_open(&bed.sim, &bed.regions, false, 0);
    bed.sim.table = &bed.table;
    bed_start_engine(false);
    engine_arm(&bed.engine);
    for (page = 0; page < big.page_count; page++) {
        bed.sim.threads[0].sleeps = false;
        bed.sim.random = 1;
        bed_fault(0, page);
    }
    CHECK_EQ(bed.ask_count, big.page_count);
    for (page = 0; page < big.page_count; page++)
        engine_ask_later(&bed.engine, page, bed.now_ns + MS);
    CHECK_EQ(bed.engine.parked_count, ENGINE_PARKED_MAX);
    CHECK(bed.engine.rescan_wanted);
    bed.ask_count = 0;
    bed_later(MS);
    CHECK(bed.ask_count >= big.page_count); /* each at least once, at the price of some twice */
    bed.ask_count = 0;
    CHECK_EQ(engine_next_ns(&bed.engine), UINT64_MAX);
    for (page = 0; page < ENGINE_PARKED_MAX; page++)
        engine_ask_later(&bed.engine, page, bed.now_ns + 10 * MS);
    bed_news(ENGINE_ZEROS, big.page_count - 1, 1, V1); /* asked: mapped at once */
    CHECK_EQ(bed_state(big.page_count - 1), PAGE_OWNED);
    sim_drop_mapping(&bed.sim, big.page_count - 1);
    bed.sim.random = 1;
    bed_force(SIM_MAP, KERNEL_LATER, 0, 1);
    bed_fault(1, big.page_count - 1); /* no place for this fault: woken, so that it comes again */
    CHECK(!bed.sim.threads[1].sleeps);
}

static void a_fault_outside_the_regions_is_an_alarm(void)
{
    bed_begin_armed(false);
    bed.table.header->batch[0] = (struct kernel_event){.kind = KERNEL_EVENT_FAULT, .address = 4096};
    atomic_store(&bed.table.header->batch_count, 1);
    bed_succeed(false);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(bed.report_value, 4096);
}

static void steps_are_traced(void)
{
    const struct trace_step *step;

    bed_begin_armed(false);
    bed_fault(0, 3);
    bed_news(ENGINE_DATA, 2, 2, V1);
    step = &bed.trace.steps[(bed.trace.count - 1) % TRACE_STEPS];
    CHECK_EQ(step->page, 2);
    CHECK_EQ(step->page_count, 2);
    CHECK_EQ(step->event, PAGE_EVENT_DATA);
    CHECK_EQ(step->action, PAGE_ACTION_PLACE);
    CHECK_EQ(step->result, KERNEL_MAPPED);
    step = &bed.trace.steps[(bed.trace.count - 2) % TRACE_STEPS];
    CHECK_EQ(step->state, PAGE_MISSING);
    CHECK_EQ(step->action, PAGE_ACTION_ASK);
}

int main(void)
{
    RUN(missing_fault_unarmed_parks);
    RUN(every_state_parks_a_fault_unarmed);
    RUN(missing_data_unarmed_is_cached);
    RUN(private_memory_takes_no_bytes_before_arming);
    RUN(zeros_punch_only_what_is_in_doubt);
    RUN(zeros_are_not_claimed_when_the_punch_fails);
    RUN(floors_raise_and_forget);
    RUN(a_write_that_fails_half_way_claims_only_what_is_whole);
    RUN(removals_unarmed_change_nothing);
    RUN(a_page_is_asked_once);
    RUN(the_time_of_a_fetch_is_observed);
    RUN(missing_data_armed_is_placed_by_one_copy);
    RUN(news_outside_the_image_is_cut);
    RUN(stale_data_armed_is_written_then_claimed_then_mapped);
    RUN(wanted_zeros_are_mapped);
    RUN(wanted_zeros_of_a_stale_page_punch_first);
    RUN(lost_links_ask_for_all_that_is_wanted);
    RUN(a_page_that_is_late_is_asked_again_in_time);
    RUN(versions_armed_must_be_those_of_the_map);
    RUN(a_version_between_floor_and_frozen_is_not_the_maps);
    RUN(what_is_here_is_not_lost_by_the_servers_word);
    RUN(the_manifest_follows_the_versions);
    RUN(a_floor_after_arming_is_an_alarm);
    RUN(cached_and_zero_armed_drop_news);
    RUN(what_cannot_be_parked_is_not_forgotten);
    RUN(a_fault_outside_the_regions_is_an_alarm);
    RUN(steps_are_traced);
    bed_end();
    return check_done();
}
