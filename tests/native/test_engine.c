/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine, case by case: each row of the page machine, each result of a kernel call, each rule of versions, on the
 * simulated kernel, which audits the order of every call. The simulation finds what nobody thought of.
 */
#include "pager/engine.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "sim_kernel.h"

#define PAGES 48
#define FIRST 32 /* pages of the first region */
#define V1 ((UINT64_C(1) << 32) | 1)
#define V2 ((UINT64_C(1) << 32) | 2)
#define MS UINT64_C(1000000)
#define ASKS_MAX 4096

static const struct region layout[] = {
    {.address = UINT64_C(0x7f0000100000), .first_page = 0, .page_count = FIRST},
    {.address = UINT64_C(0x7f0000000000), .first_page = FIRST, .page_count = PAGES - FIRST},
};

static struct regions regions;
static struct table table;
static struct sim_kernel sim;
static struct engine engine;
static struct stats stats;
static struct trace trace;
static uint64_t now_ns, asks[ASKS_MAX], ask_count, reports[8], report_page, report_value;
static uint8_t bytes[PAGES * PAGE_BYTES];

/* -------------------------------------------------------------------------------------------------------- fixture */

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    if (ask_count < ASKS_MAX)
        asks[ask_count] = page;
    ask_count++;
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner;
    CHECK(text != NULL);
    reports[report]++;
    report_page = page;
    report_value = value;
}

static void start_engine(bool private_memory)
{
    struct engine_options options = {
        .table = &table,
        .regions = &regions,
        .ops = &sim_kernel_ops,
        .kernel = &sim,
        .out = {.ask = on_ask, .report = on_report},
        .stats = &stats,
        .trace = &trace,
        .private_memory = private_memory,
    };

    engine_start(&engine, &options, now_ns);
}

static void begin(bool private_memory)
{
    table_close(&table);
    sim_close(&sim);
    memset(&stats, 0, sizeof(stats));
    memset(&trace, 0, sizeof(trace));
    memset(reports, 0, sizeof(reports));
    memset(bytes, 0, sizeof(bytes));
    ask_count = 0;
    now_ns = 1000 * MS;
    CHECK_EQ(regions_set(&regions, layout, 2), 0);
    CHECK_EQ(table_create(PAGES, &table), 0);
    sim_open(&sim, &regions, private_memory, 0);
    sim.random = 1; /* whole batches */
    sim.table = &table;
    start_engine(private_memory);
}

static void begin_armed(bool private_memory)
{
    begin(private_memory);
    engine_arm(&engine);
}

static uint64_t token_of_page(uint64_t page, uint64_t version)
{
    return version << 20 | page;
}

static uint64_t news(enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version)
{
    struct engine_news told = {.kind = kind, .first_page = first, .page_count = count, .version = version};

    for (uint64_t i = 0; kind == ENGINE_DATA && i < count && i < PAGES; i++)
        sim_stamp(bytes + i * PAGE_BYTES, token_of_page(first + i, version));
    told.bytes = kind == ENGINE_DATA ? bytes : NULL;
    return engine_news(&engine, &told, now_ns);
}

static uint64_t word(uint64_t page)
{
    return table_word(&table, page);
}

static enum page_state state(uint64_t page)
{
    return page_state(word(page));
}

static uint64_t counter(enum stats_counter which)
{
    return stats_get(&stats, which);
}

/* Thread `thread` touches a page, and whatever it raises is worked on. */
static void fault(uint32_t thread, uint64_t page)
{
    uint64_t token;

    sim_touch(&sim, thread, page, false, &token);
    engine_turn(&engine, now_ns);
}

/* What a thread that does not sleep reads now; SIM_TORN: it cannot. */
static uint64_t reads(uint64_t page)
{
    uint64_t token = SIM_TORN;

    if (sim.pages[page].pte == SIM_PTE_MAPPED)
        sim_touch(&sim, 7, page, false, &token);
    return token;
}

static void later(uint64_t wait_ns)
{
    now_ns += wait_ns;
    engine_tick(&engine, now_ns);
}

static void force(enum sim_call call, enum kernel_result result, uint64_t done_pages, uint32_t times)
{
    sim.force[call] = (struct sim_force){.times = times, .result = result, .done_pages = done_pages};
}

/* ---------------------------------------------------------------------------------------------------- before arming */

static void missing_fault_unarmed_parks(void)
{
    begin(false);
    now_ns += 5;
    fault(0, 3);
    CHECK_EQ(state(3), PAGE_MISSING);
    CHECK_EQ(ask_count, 0);
    CHECK(sim.threads[0].sleeps);
    CHECK_EQ(counter(STATS_faults_early_total), 1);
    CHECK_EQ(engine.first_early_ns, now_ns);
    CHECK_EQ(engine.early_page, 3);
    now_ns += 5;
    fault(1, 4);
    CHECK_EQ(engine.first_early_ns, now_ns - 5);
    engine_arm(&engine); /* the wake of arming brings both again */
    CHECK(!sim.threads[0].sleeps);
    CHECK_EQ(engine.first_early_ns, 0);
    fault(0, 3);
    CHECK_EQ(state(3), PAGE_WANTED);
    CHECK_EQ(ask_count, 1);
    engine_arm(&engine); /* once is enough */
    CHECK(sim.threads[0].sleeps);
}

static void every_state_parks_a_fault_unarmed(void)
{
    begin(false);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(news(ENGINE_ZEROS, 2, 1, V1), 1);
    CHECK_EQ(news(ENGINE_POISON, 3, 1, V1), 1);
    for (uint64_t page = 0; page < 4; page++)
        fault((uint32_t)page, page);
    CHECK_EQ(counter(STATS_faults_early_total), 4);
    CHECK_EQ(state(1), PAGE_CACHED);
    CHECK_EQ(state(2), PAGE_ZERO);
    CHECK_EQ(state(3), PAGE_POISONED);
    CHECK_EQ(sim.calls[SIM_POISON], 0); /* no marker before arming either */
    engine_arm(&engine);
    fault(1, 1);
    fault(2, 2);
    fault(3, 3);
    CHECK_EQ(reads(1), token_of_page(1, V1));
    CHECK_EQ(reads(2), 0);
    CHECK_EQ(sim.pages[3].pte, SIM_PTE_POISON);
}

static void missing_data_unarmed_is_cached(void)
{
    begin(false);
    CHECK_EQ(news(ENGINE_DATA, 2, 4, V1), 4);
    CHECK_EQ(sim.calls[SIM_POPULATE], 1); /* one call for the run */
    CHECK_EQ(word(2), page_word(PAGE_CACHED, false, V1));
    CHECK_EQ(engine.counts[PAGE_CACHED], 4);
    CHECK_EQ(news(ENGINE_DATA, 2, 1, V1), 0); /* not newer */
    CHECK_EQ(counter(STATS_dropped_pages_total), 1);
    CHECK_EQ(news(ENGINE_DATA, 2, 1, V2), 1);
    CHECK_EQ(word(2), page_word(PAGE_CACHED, false, V2));
    CHECK_EQ(news(ENGINE_DATA, 2, 1, V1), 0);
    CHECK_EQ(counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(sim.pages[2].token, token_of_page(2, V2));
}

static void private_memory_takes_no_bytes_before_arming(void)
{
    begin(true);
    CHECK_EQ(news(ENGINE_DATA, 2, 4, V1), 0);
    CHECK_EQ(state(2), PAGE_MISSING);
    CHECK_EQ(counter(STATS_dropped_pages_total), 4);
    CHECK_EQ(news(ENGINE_ZEROS, 2, 1, V1), 1);
    CHECK_EQ(state(2), PAGE_ZERO);
    CHECK_EQ(sim.calls[SIM_PUNCH], 0);
}

static void zeros_punch_only_what_is_in_doubt(void)
{
    begin(false);
    sim_foreign(&sim, 5, 99);
    engine_mark_stale(&engine, 5, 1);
    CHECK(page_stale(word(5)));
    CHECK_EQ(news(ENGINE_DATA, 8, 1, V1), 1);
    CHECK_EQ(news(ENGINE_ZEROS, 4, 2, V1), 2);
    CHECK_EQ(sim.calls[SIM_PUNCH], 1);
    CHECK(!sim.pages[5].present);
    CHECK_EQ(word(5), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(word(4), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(news(ENGINE_ZEROS, 8, 1, V2), 1); /* CACHED, and newer */
    CHECK_EQ(word(8), page_word(PAGE_ZERO, false, V2));
    CHECK(!sim.pages[8].present);
    CHECK_EQ(news(ENGINE_ZEROS, 8, 1, V2 + 1), 1); /* ZERO, and newer */
    CHECK_EQ(page_version(word(8)), V2 + 1);
    CHECK_EQ(news(ENGINE_DATA, 8, 1, V2 + 2), 1);
    CHECK_EQ(state(8), PAGE_CACHED);
    CHECK_EQ(counter(STATS_zero_pages_total), 4);
}

static void zeros_are_not_claimed_when_the_punch_fails(void)
{
    begin(false);
    CHECK_EQ(news(ENGINE_DATA, 8, 2, V1), 2);
    force(SIM_PUNCH, KERNEL_FULL, 0, 1);
    CHECK_EQ(news(ENGINE_ZEROS, 8, 2, V2), 0);
    CHECK_EQ(word(8), page_word(PAGE_MISSING, true, V2)); /* V1 is known to be old, V2 is not here */
    CHECK_EQ(news(ENGINE_ZEROS, 8, 2, V2), 2);
    CHECK_EQ(state(9), PAGE_ZERO);
}

static void floors_raise_and_forget(void)
{
    begin(false);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(news(ENGINE_ZEROS, 2, 1, V1), 1);
    news(ENGINE_FLOOR, 0, 4, V2);
    CHECK_EQ(word(0), page_word(PAGE_MISSING, false, V2));
    CHECK_EQ(word(1), page_word(PAGE_MISSING, true, V2));
    CHECK_EQ(word(2), page_word(PAGE_MISSING, false, V2));
    CHECK_EQ(news(ENGINE_FLOOR, 0, 4, V1), 0); /* older news changes nothing */
    CHECK_EQ(page_version(word(0)), V2);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V1), 0);
    CHECK_EQ(counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V2 + 1), 1); /* newer than the floor will do, before arming */
    CHECK_EQ(word(1), page_word(PAGE_CACHED, false, V2 + 1));
    CHECK_EQ(news(ENGINE_FLOOR, 1, 1, V2 + 1), 0);
    CHECK_EQ(state(1), PAGE_CACHED);
}

static void a_write_that_fails_half_way_claims_only_what_is_whole(void)
{
    begin(false);
    force(SIM_POPULATE, KERNEL_FULL, 2, 1);
    CHECK_EQ(news(ENGINE_DATA, 0, 4, V1), 2);
    CHECK_EQ(state(1), PAGE_CACHED);
    CHECK_EQ(word(2), page_word(PAGE_MISSING, true, 0));
    CHECK_EQ(reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(news(ENGINE_DATA, 2, 2, V1), 2);
    CHECK_EQ(reports[ENGINE_REPORT_FULL_OVER], 1);
    CHECK_EQ(word(2), page_word(PAGE_CACHED, false, V1));
    CHECK(!engine_settled(&engine));
    CHECK_EQ(news(ENGINE_ZEROS, 4, PAGES, V1), PAGES - 4);
    CHECK(engine_settled(&engine));
    engine_arm(&engine);
    CHECK(!engine_settled(&engine)); /* CACHED is not the guest's yet */
    CHECK_EQ(engine_sweep(&engine, 0, PAGES), 4);
    CHECK(engine_settled(&engine));
}

static void removals_unarmed_change_nothing(void)
{
    begin(true);
    sim_remove(&sim, layout[0].address, layout[0].address + 4 * PAGE_BYTES, true);
    engine_turn(&engine, now_ns);
    engine_removed(&engine, 0, 4);
    CHECK_EQ(state(0), PAGE_MISSING);
    CHECK_EQ(counter(STATS_removes_total), 1);
    CHECK_EQ(counter(STATS_removed_pages_total), 8);
}

/* -------------------------------------------------------------------------------------------------------- fetching */

static void a_page_is_asked_once(void)
{
    begin_armed(false);
    for (uint32_t thread = 0; thread < 4; thread++)
        fault(thread, 9);
    CHECK_EQ(ask_count, 1);
    CHECK_EQ(asks[0], 9);
    CHECK_EQ(state(9), PAGE_WANTED);
    CHECK_EQ(counter(STATS_asks_total), 1);
    CHECK_EQ(counter(STATS_asks_outstanding), 1);
    CHECK_EQ(counter(STATS_faults_again_total), 3);
    CHECK_EQ(news(ENGINE_DATA, 9, 1, V1), 1);
    CHECK_EQ(word(9), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(9), token_of_page(9, V1));
    CHECK_EQ(counter(STATS_asks_outstanding), 0);
    CHECK_EQ(counter(STATS_asks_outstanding_max), 1);
    CHECK_EQ(counter(STATS_copies_total), 1);
    for (uint32_t thread = 0; thread < 4; thread++)
        CHECK(!sim.threads[thread].sleeps);
}

static void the_time_of_a_fetch_is_observed(void)
{
    uint64_t observed = 0;

    begin_armed(false);
    fault(0, 9);
    now_ns += 44000;
    news(ENGINE_DATA, 8, 3, V1);
    for (uint32_t bucket = 0; bucket < STATS_BUCKETS; bucket++)
        observed += atomic_load(&stats.histogram[STATS_fault_fetch_ns][bucket]);
    CHECK_EQ(observed, 1); /* the neighbours were not asked */
    CHECK_EQ(atomic_load(&stats.histogram[STATS_fault_fetch_ns][stats_bucket(44000)]), 1);
}

static void missing_data_armed_is_placed_by_one_copy(void)
{
    begin_armed(false);
    CHECK_EQ(news(ENGINE_DATA, FIRST - 4, 8, V1), 8);
    CHECK_EQ(sim.calls[SIM_COPY], 2); /* one a region */
    CHECK_EQ(state(FIRST - 1), PAGE_OWNED);
    CHECK_EQ(reads(FIRST), token_of_page(FIRST, V1));
    CHECK_EQ(news(ENGINE_DATA, FIRST, 1, V1), 0);
    CHECK_EQ(counter(STATS_dropped_pages_total), 1);
}

static void news_outside_the_image_is_cut(void)
{
    begin_armed(false);
    CHECK_EQ(news(ENGINE_ZEROS, PAGES - 2, UINT64_MAX, V1), 2);
    CHECK_EQ(news(ENGINE_ZEROS, PAGES, 1, V1), 0);
    CHECK_EQ(news(ENGINE_ZEROS, UINT64_MAX, 1, V1), 0);
    engine_removed(&engine, UINT64_MAX, 5);
    engine_removed(&engine, PAGES - 1, UINT64_MAX);
    engine_mark_stale(&engine, UINT64_MAX, 5);
    CHECK_EQ(engine_sweep(&engine, UINT64_MAX, UINT64_MAX), 0);
    engine_ask_later(&engine, UINT64_MAX, 0);
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
}

static void stale_data_armed_is_written_then_claimed_then_mapped(void)
{
    begin(false);
    sim_foreign(&sim, 4, 99);
    sim_foreign(&sim, 5, 98);
    engine_mark_stale(&engine, 4, 2);
    engine_arm(&engine);
    fault(0, 4);
    CHECK_EQ(word(4), page_word(PAGE_WANTED, true, 0));
    CHECK_EQ(news(ENGINE_DATA, 4, 3, V1), 3); /* the third is not stale: COPY */
    CHECK_EQ(sim.calls[SIM_POPULATE], 1);
    CHECK_EQ(sim.calls[SIM_MAP], 1);
    CHECK_EQ(sim.calls[SIM_COPY], 1);
    for (uint64_t page = 4; page < 7; page++) {
        CHECK_EQ(word(page), page_word(PAGE_OWNED, false, V1));
        CHECK_EQ(reads(page), token_of_page(page, V1));
    }
}

static void wanted_zeros_are_mapped(void)
{
    begin_armed(false);
    fault(0, 3);
    CHECK_EQ(news(ENGINE_ZEROS, 2, 3, V1), 3);
    CHECK_EQ(state(2), PAGE_ZERO);
    CHECK_EQ(word(3), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(3), 0);
    CHECK(!sim.threads[0].sleeps);
    fault(0, 2);
    CHECK_EQ(word(2), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(2), 0);
    CHECK_EQ(counter(STATS_faults_resolved_total), 1);
}

static void wanted_zeros_of_a_stale_page_punch_first(void)
{
    begin(false);
    sim_foreign(&sim, 4, 99);
    engine_mark_stale(&engine, 4, 1);
    engine_arm(&engine);
    fault(0, 4);
    CHECK_EQ(news(ENGINE_ZEROS, 4, 1, V1), 1);
    CHECK_EQ(sim.calls[SIM_PUNCH], 1);
    CHECK_EQ(word(4), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(4), 0);
}

static void lost_links_ask_for_all_that_is_wanted(void)
{
    begin_armed(false);
    for (uint32_t thread = 0; thread < 3; thread++)
        fault(thread, 10 * thread);
    engine_ask_later(&engine, 10, now_ns + 5 * MS);
    CHECK_EQ(engine_next_ns(&engine), now_ns + 5 * MS);
    ask_count = 0;
    engine_asks_lost(&engine);
    CHECK_EQ(ask_count, 3);
    CHECK_EQ(counter(STATS_asks_total), 3);
    CHECK_EQ(counter(STATS_asks_again_total), 3);
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX); /* what was parked has been asked with the others */
}

static void a_page_that_is_late_is_asked_again_in_time(void)
{
    begin_armed(false);
    fault(0, 10);
    engine_ask_later(&engine, 10, now_ns + 5 * MS);
    engine_ask_later(&engine, 11, now_ns + 5 * MS); /* not WANTED */
    ask_count = 0;
    later(5 * MS - 1);
    CHECK_EQ(ask_count, 0);
    later(1);
    CHECK_EQ(ask_count, 1);
    CHECK_EQ(counter(STATS_asks_again_total), 1);
    engine_ask_later(&engine, 10, now_ns + 5 * MS);
    news(ENGINE_DATA, 10, 1, V1);
    later(5 * MS); /* it came by itself */
    CHECK_EQ(ask_count, 1);
}

/* -------------------------------------------------------------------------------------------------------- versions */

static void versions_armed_must_be_those_of_the_map(void)
{
    begin(false);
    news(ENGINE_FLOOR, 0, 2, V2);
    engine.frozen_version = V2;
    engine_arm(&engine);
    fault(0, 0);
    ask_count = 0;
    CHECK_EQ(news(ENGINE_DATA, 0, 1, V1), 0);
    CHECK_EQ(counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(state(0), PAGE_WANTED);
    later(ENGINE_ASK_AGAIN_NS); /* an answer that was no use is asked again */
    CHECK_EQ(ask_count, 1);
    CHECK_EQ(news(ENGINE_DATA, 0, 1, V2 + 1), 0);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(report_page, 0);
    CHECK_EQ(state(0), PAGE_WANTED);
    later(ENGINE_ASK_AGAIN_NS);
    CHECK_EQ(ask_count, 2);
    CHECK_EQ(news(ENGINE_DATA, 0, 1, V2), 1);
    CHECK_EQ(news(ENGINE_DATA, 5, 1, V1), 1); /* a page without a floor takes what the map may have */
    CHECK_EQ(news(ENGINE_DATA, 1, 1, 0), 0);  /* version 0 is none */
    CHECK_EQ(counter(STATS_stale_dropped_pages_total), 3);
}

static void a_version_between_floor_and_frozen_is_not_the_maps(void)
{
    begin(false);
    news(ENGINE_FLOOR, 0, 2, V1);
    engine.frozen_version = V2;
    engine_arm(&engine);
    CHECK_EQ(news(ENGINE_DATA, 0, 1, V2), 0);
    CHECK_EQ(counter(STATS_stale_dropped_pages_total), 1);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 0);
}

static void a_floor_after_arming_is_an_alarm(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&engine);
    CHECK_EQ(news(ENGINE_FLOOR, 0, 2, V2), 0);
    CHECK(reports[ENGINE_REPORT_ALARM] > 0);
    CHECK_EQ(word(0), 0);
    CHECK_EQ(word(1), page_word(PAGE_CACHED, false, V1));
}

static void cached_and_zero_armed_drop_news(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 1, V1);
    news(ENGINE_ZEROS, 2, 1, V1);
    engine_arm(&engine);
    CHECK_EQ(news(ENGINE_DATA, 1, 2, V2), 0);
    CHECK_EQ(news(ENGINE_ZEROS, 1, 2, V2), 0);
    CHECK_EQ(counter(STATS_dropped_pages_total), 4);
    CHECK_EQ(word(1), page_word(PAGE_CACHED, false, V1));
    CHECK_EQ(word(2), page_word(PAGE_ZERO, false, V1));
}

/* ---------------------------------------------------------------------------------------------- results of the kernel */

static void already_from_continue_means_mapped_and_wakes(void)
{
    begin_armed(false);
    news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&sim, 1);
    sim.threads[0] = (struct sim_thread){.sleeps = true, .page = 1};
    sim_map_silently(&sim, 1); /* nobody was woken */
    CHECK(sim.threads[0].sleeps);
    engine_turn(&engine, now_ns);
    CHECK(!sim.threads[0].sleeps);
    CHECK_EQ(counter(STATS_already_total), 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
}

static void a_minor_fault_on_a_finished_page_is_continued(void)
{
    begin_armed(false);
    news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&sim, 1);
    fault(0, 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
    CHECK_EQ(counter(STATS_faults_minor_total), 1);
    CHECK_EQ(ask_count, 0);
}

static void cached_fault_is_claimed_then_mapped(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&engine);
    fault(0, 1);
    CHECK_EQ(word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(sim.calls[SIM_MAP], 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
    CHECK_EQ(counter(STATS_faults_resolved_total), 1);
}

static void a_hole_behind_a_claim_was_discarded_and_reads_zero(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 2, V1);
    engine_arm(&engine);
    sim_discard(&sim, 1);
    fault(0, 1); /* CACHED */
    CHECK_EQ(reads(1), 0);
    fault(0, 2);
    sim_discard(&sim, 2);
    fault(0, 2); /* OWNED */
    CHECK_EQ(reads(2), 0);
    CHECK_EQ(counter(STATS_absent_total), 2);
    CHECK_EQ(ask_count, 0);
}

static void a_hole_that_is_filled_meanwhile_is_mapped(void)
{
    begin_armed(false);
    news(ENGINE_DATA, 1, 1, V1);
    sim_drop_mapping(&sim, 1);
    force(SIM_MAP, KERNEL_ABSENT, 0, 1); /* and ZEROPAGE finds the bytes */
    fault(0, 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
    sim_drop_mapping(&sim, 1);
    force(SIM_MAP, KERNEL_ABSENT, 0, 100); /* it never agrees: woken, to fault again */
    fault(0, 1);
    CHECK(!sim.threads[0].sleeps);
    force(SIM_MAP, KERNEL_ABSENT, 0, 0);
    fault(0, 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
}

static void something_where_nobody_wrote_is_held_back(void)
{
    begin_armed(false);
    sim_foreign(&sim, 5, 99);
    fault(0, 5);
    CHECK_EQ(news(ENGINE_DATA, 4, 3, V1), 2);
    CHECK_EQ(state(4), PAGE_OWNED);
    CHECK_EQ(state(6), PAGE_OWNED);
    CHECK_EQ(state(5), PAGE_WANTED);
    CHECK(page_held(word(5)));
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(report_page, 5);
    ask_count = 0;
    engine_asks_lost(&engine); /* nothing is done to it any more */
    fault(1, 5);
    CHECK_EQ(ask_count, 0);
    CHECK_EQ(news(ENGINE_DATA, 5, 1, V1), 0);
    CHECK_EQ(news(ENGINE_ZEROS, 5, 1, V1), 0);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(sim.pages[5].pte, SIM_PTE_NONE);
    for (uint64_t page = 0; page < PAGES; page++)
        news(ENGINE_ZEROS, page, 1, V1);
    CHECK(!engine_settled(&engine));
    engine_removed(&engine, 5, 1); /* but the VMM may throw it away */
    CHECK_EQ(word(5), page_word(PAGE_OWNED, false, 0));
    CHECK_EQ(reads(5), 0);
    CHECK(engine_settled(&engine));
}

static void zeropage_on_something_punches_and_tries_once_more(void)
{
    begin_armed(false);
    news(ENGINE_ZEROS, 5, 1, V1);
    sim_foreign(&sim, 5, 99);
    fault(0, 5);
    CHECK_EQ(sim.calls[SIM_PUNCH], 1);
    CHECK_EQ(word(5), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(5), 0);
}

static void a_page_that_fills_up_again_and_again_is_held_back(void)
{
    begin_armed(false);
    news(ENGINE_ZEROS, 5, 1, V1);
    force(SIM_ZERO, KERNEL_ALREADY, 0, 10);
    fault(0, 5);
    CHECK(page_held(word(5)));
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK(!engine_settled(&engine));
}

static void partial_progress_goes_on_where_it_stopped(void)
{
    begin_armed(false);
    force(SIM_COPY, KERNEL_LATER, 3, 1);
    CHECK_EQ(news(ENGINE_DATA, 0, 8, V1), 8);
    CHECK_EQ(counter(STATS_later_total), 1);
    for (uint64_t page = 0; page < 8; page++)
        CHECK_EQ(reads(page), token_of_page(page, V1));
}

static void later_in_news_reads_events_first(void)
{
    uint64_t end = layout[0].address + 2 * PAGE_BYTES;

    begin_armed(true);
    fault(0, 1);
    fault(1, 2);
    sim_remove(&sim, layout[0].address, end, true); /* pages 0 and 1 go, unread */
    CHECK_EQ(news(ENGINE_DATA, 0, 3, V1), 0);       /* the VMM is still about it: nothing can be placed */
    CHECK_EQ(state(0), PAGE_ZERO);                  /* but the removal is known, and for ever */
    CHECK_EQ(state(1), PAGE_ZERO);
    CHECK_EQ(state(2), PAGE_WANTED);
    CHECK(engine_next_ns(&engine) <= now_ns + MS); /* tried again soon, by a timer */
    sim_removal_step(&sim, 0);
    sim_removal_step(&sim, 0);
    ask_count = 0;
    later(MS);
    CHECK_EQ(ask_count, 1); /* its bytes could not be kept */
    CHECK_EQ(asks[0], 2);
    CHECK_EQ(reads(1), 0);
    CHECK_EQ(news(ENGINE_DATA, 0, 3, V1), 1);
    CHECK_EQ(reads(2), token_of_page(2, V1));
    CHECK_EQ(state(0), PAGE_ZERO);
}

static void later_in_a_batch_is_parked_and_tried_soon(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&engine);
    force(SIM_MAP, KERNEL_LATER, 0, 1);
    fault(0, 1);
    CHECK(sim.threads[0].sleeps);
    CHECK_EQ(state(1), PAGE_OWNED);
    CHECK_EQ(engine_next_ns(&engine), now_ns);
    fault(1, 1); /* another thread resolves it for both */
    CHECK_EQ(counter(STATS_faults_again_total), 1);
    CHECK(!sim.threads[0].sleeps);
    engine_tick(&engine, now_ns);
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
}

static void no_memory_is_said_once_and_tried_with_patience(void)
{
    uint64_t wait_ns;

    begin_armed(false);
    news(ENGINE_ZEROS, 1, 1, V1);
    sim.full = true;
    fault(0, 1);
    CHECK_EQ(reports[ENGINE_REPORT_FULL], 1);
    CHECK_EQ(engine_next_ns(&engine), now_ns + ENGINE_FULL_WAIT_MIN_NS);
    fault(1, 2);
    CHECK_EQ(news(ENGINE_DATA, 2, 4, V1), 0); /* WANTED: asked again; the others are not taken */
    CHECK_EQ(reports[ENGINE_REPORT_FULL], 1);
    for (wait_ns = ENGINE_FULL_WAIT_MIN_NS; wait_ns < 5 * ENGINE_FULL_WAIT_MAX_NS; wait_ns *= 2)
        later(wait_ns);
    CHECK(engine_next_ns(&engine) <= now_ns + ENGINE_FULL_WAIT_MAX_NS);
    CHECK(sim.threads[0].sleeps);
    CHECK_EQ(reports[ENGINE_REPORT_FULL], 1);
    sim.full = false;
    later(ENGINE_FULL_WAIT_MAX_NS);
    CHECK_EQ(reports[ENGINE_REPORT_FULL_OVER], 1);
    CHECK_EQ(reads(1), 0);
    CHECK(counter(STATS_full_total) > 2);
    CHECK(counter(STATS_asks_again_total) > 0);
}

static void a_vmm_that_is_gone_is_said_once(void)
{
    begin_armed(false);
    news(ENGINE_ZEROS, 1, 1, V1);
    fault(0, 2);
    sim_touch(&sim, 1, 1, false, &report_value);
    force(SIM_ZERO, KERNEL_GONE, 0, 1);
    engine_turn(&engine, now_ns);
    CHECK_EQ(reports[ENGINE_REPORT_GONE], 1);
    sim.gone = true;
    CHECK_EQ(news(ENGINE_DATA, 2, 1, V1), 0);
    CHECK_EQ(engine_turn(&engine, now_ns), 0);
    engine_removed(&engine, 0, PAGES);
    engine_sweep(&engine, 0, PAGES);
    later(MS);
    engine_arm(&engine);
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
    CHECK_EQ(reports[ENGINE_REPORT_GONE], 1);
}

static void a_copy_without_a_mapping(void)
{
    begin_armed(true); /* private: a balloon took the page, it is done */
    fault(0, 1);
    force(SIM_COPY, KERNEL_ABSENT, 0, 2);
    CHECK_EQ(news(ENGINE_DATA, 1, 2, V1), 2); /* the first try named both: each by itself then */
    CHECK_EQ(state(1), PAGE_OWNED);
    CHECK(!sim.threads[0].sleeps);
    CHECK_EQ(reads(2), token_of_page(2, V1));
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 0);
    begin_armed(false); /* shared: nothing of ours takes mappings away */
    force(SIM_COPY, KERNEL_ABSENT, 0, 2);
    CHECK_EQ(news(ENGINE_DATA, 1, 2, V1), 1);
    CHECK(page_held(word(1)));
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(reads(2), token_of_page(2, V1));
}

static void what_the_kernel_refuses_is_held_back(void)
{
    begin(false);
    sim_foreign(&sim, 9, 99);
    engine_mark_stale(&engine, 9, 1);
    force(SIM_POPULATE, KERNEL_REFUSED, 1, 1);
    CHECK_EQ(news(ENGINE_DATA, 0, 3, V1), 2);
    CHECK(page_held(word(1)));
    CHECK_EQ(state(2), PAGE_CACHED);
    engine_arm(&engine);
    force(SIM_COPY, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(news(ENGINE_DATA, 4, 2, V1), 1);
    CHECK(page_held(word(4)));
    force(SIM_MAP, KERNEL_REFUSED, 0, 1);
    fault(0, 2);
    CHECK(page_held(word(2)));
    CHECK(sim.threads[0].sleeps);
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
    news(ENGINE_ZEROS, 6, 1, V1);
    force(SIM_ZERO, KERNEL_REFUSED, 0, 1);
    fault(1, 6);
    CHECK(page_held(word(6)));
    force(SIM_POISON, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(news(ENGINE_POISON, 7, 1, V1), 1);
    CHECK(page_held(word(7)));
    force(SIM_PUNCH, KERNEL_REFUSED, 0, 1);
    CHECK_EQ(news(ENGINE_ZEROS, 9, 1, V1), 0);
    CHECK(page_held(word(9)));
    CHECK_EQ(state(9), PAGE_MISSING);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 6);
    CHECK_EQ(engine.held_count, 6);
}

/* -------------------------------------------------------------------------------------------------------- removals */

static void a_removal_on_private_memory_is_zero_for_ever(void)
{
    begin_armed(true);
    fault(0, 2);
    news(ENGINE_DATA, 3, 1, V1);
    news(ENGINE_POISON, 4, 1, V1);
    sim_remove(&sim, layout[0].address - 8 * PAGE_BYTES, layout[0].address + 5 * PAGE_BYTES, true);
    engine_turn(&engine, now_ns); /* the kernel still holds everything up: ZEROPAGE says LATER */
    CHECK_EQ(state(1), PAGE_ZERO);
    CHECK_EQ(state(2), PAGE_ZERO);
    CHECK_EQ(state(3), PAGE_OWNED);
    CHECK_EQ(state(4), PAGE_POISONED);
    CHECK_EQ(counter(STATS_removes_total), 1);
    CHECK_EQ(counter(STATS_removed_pages_total), 5);
    sim_removal_step(&sim, 0);
    later(MS);
    CHECK_EQ(state(2), PAGE_OWNED);
    CHECK_EQ(reads(2), 0);
    sim_removal_step(&sim, 0); /* the mappings go only now */
    fault(0, 2);
    fault(1, 3);
    fault(2, 4);
    CHECK_EQ(reads(2), 0);
    CHECK_EQ(reads(3), 0);
    CHECK_EQ(sim.pages[4].pte, SIM_PTE_POISON);
    CHECK_EQ(news(ENGINE_DATA, 0, 5, V1), 0);
    CHECK_EQ(state(1), PAGE_ZERO);
    CHECK_EQ(counter(STATS_dropped_pages_total), 5);
}

static void a_fault_is_read_before_the_removal_that_explains_it(void)
{
    uint64_t token;

    begin_armed(true);
    sim_remove(&sim, layout[0].address, layout[0].address + PAGE_BYTES, true);
    sim_touch(&sim, 0, 0, false, &token);
    CHECK_EQ(engine_turn(&engine, now_ns), 2); /* one batch, the fault first */
    CHECK_EQ(sim.newest_batch[0].kind, KERNEL_EVENT_FAULT);
    CHECK_EQ(ask_count, 0); /* but worked on last */
    sim_removal_step(&sim, 0);
    sim_removal_step(&sim, 0);
    later(MS);
    CHECK_EQ(reads(0), 0);
}

static void a_remove_event_on_shared_memory_changes_no_word(void)
{
    begin(false);
    news(ENGINE_DATA, 1, 1, V1);
    engine_arm(&engine);
    fault(0, 2);
    sim_remove(&sim, layout[0].address, layout[0].address + 4 * PAGE_BYTES, false);
    engine_turn(&engine, now_ns);
    CHECK_EQ(state(0), PAGE_MISSING);
    CHECK_EQ(state(1), PAGE_CACHED);
    CHECK_EQ(state(2), PAGE_WANTED);
    CHECK_EQ(sim.calls[SIM_PUNCH], 0);
}

static void a_reported_discard_is_zero_for_ever(void)
{
    begin(false);
    sim_foreign(&sim, 0, 99);
    engine_mark_stale(&engine, 0, 1);
    news(ENGINE_DATA, 2, 2, V1);
    news(ENGINE_ZEROS, 5, 1, V1);
    engine_arm(&engine);
    fault(0, 3); /* OWNED */
    fault(1, 4); /* WANTED */
    news(ENGINE_POISON, 6, 1, V1);
    engine_removed(&engine, 0, 7);
    CHECK_EQ(word(0), page_word(PAGE_ZERO, false, 0));
    CHECK_EQ(word(1), page_word(PAGE_ZERO, false, 0));
    CHECK_EQ(word(2), page_word(PAGE_ZERO, false, V1));
    CHECK_EQ(state(3), PAGE_OWNED);
    CHECK_EQ(state(4), PAGE_OWNED);
    CHECK_EQ(state(5), PAGE_ZERO);
    CHECK_EQ(state(6), PAGE_POISONED);
    CHECK(!sim.pages[0].present);
    CHECK(!sim.pages[2].present);
    CHECK_EQ(reads(4), 0);
    CHECK_EQ(reads(3), token_of_page(3, V1)); /* the VMM's own drop takes that one */
    CHECK_EQ(news(ENGINE_DATA, 0, 7, V1), 0);
}

static void a_discard_is_claimed_even_when_the_punch_fails(void)
{
    begin(false);
    news(ENGINE_DATA, 2, 2, V1);
    news(ENGINE_ZEROS, 0, 2, V1);
    news(ENGINE_ZEROS, 4, PAGES, V1);
    engine_arm(&engine);
    force(SIM_PUNCH, KERNEL_FULL, 0, 2);
    engine_removed(&engine, 2, 2);
    CHECK_EQ(word(2), page_word(PAGE_ZERO, true, V1));
    CHECK(!engine_settled(&engine)); /* the cache still has the bytes */
    CHECK(engine_next_ns(&engine) <= now_ns);
    later(1);
    CHECK(!engine_settled(&engine));
    later(ENGINE_FULL_WAIT_MIN_NS);
    CHECK_EQ(word(2), page_word(PAGE_ZERO, false, V1));
    CHECK(engine_settled(&engine));
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
}

/* ---------------------------------------------------------------------------------------------------------- poison */

static void poison_drops_the_bytes_and_stays(void)
{
    begin(false);
    news(ENGINE_DATA, 0, 2, V1);
    news(ENGINE_ZEROS, 2, 1, V1);
    engine_arm(&engine);
    fault(0, 1); /* OWNED */
    fault(1, 3); /* WANTED */
    CHECK_EQ(news(ENGINE_POISON, 0, 5, V1), 5);
    for (uint64_t page = 0; page < 5; page++) {
        CHECK_EQ(word(page), page_word(PAGE_POISONED, false, V1));
        CHECK_EQ(sim.pages[page].pte, SIM_PTE_POISON);
        CHECK(!sim.pages[page].present);
    }
    CHECK(!sim.threads[1].sleeps);
    CHECK_EQ(reports[ENGINE_REPORT_POISONED], 5);
    CHECK_EQ(counter(STATS_poisoned_pages_total), 5);
    CHECK_EQ(news(ENGINE_DATA, 0, 5, V1), 0);
    CHECK_EQ(news(ENGINE_ZEROS, 0, 5, V1), 0);
    CHECK_EQ(news(ENGINE_POISON, 0, 5, V1), 0);
    sim.pages[0].pte = SIM_PTE_NONE; /* a DONTNEED of the VMM has cleared the marker */
    fault(0, 0);
    CHECK_EQ(sim.pages[0].pte, SIM_PTE_POISON);
    sim.threads[0] = (struct sim_thread){.sleeps = true, .page = 0};
    engine_turn(&engine, now_ns); /* the marker is there: woken */
    CHECK(!sim.threads[0].sleeps);
}

static void poison_of_a_mapped_page_is_said(void)
{
    begin_armed(true);
    news(ENGINE_DATA, 0, 1, V1);
    CHECK_EQ(news(ENGINE_POISON, 0, 1, V1), 1);
    CHECK_EQ(report_value, 1);
    CHECK_EQ(state(0), PAGE_POISONED);
    CHECK_EQ(news(ENGINE_POISON, 1, 1, V1), 1);
    CHECK_EQ(report_value, 0);
}

/* ----------------------------------------------------------------------------------------------------------- sweep */

static void a_sweep_maps_runs_around_what_is_mapped_and_discarded(void)
{
    begin(false);
    news(ENGINE_DATA, 0, PAGES, V1);
    engine_arm(&engine);
    fault(0, 3);
    sim_discard(&sim, 5);
    CHECK_EQ(engine_sweep(&engine, 0, 8), 7);
    CHECK_EQ(state(8), PAGE_CACHED);
    CHECK_EQ(reads(5), 0);
    CHECK_EQ(reads(7), token_of_page(7, V1));
    sim.calls[SIM_MAP] = 0;
    CHECK_EQ(engine_sweep(&engine, 8, PAGES), PAGES - 8);
    CHECK_EQ(sim.calls[SIM_MAP], 2); /* one a region */
    CHECK_EQ(counter(STATS_swept_pages_total), PAGES - 1);
    CHECK(engine_settled(&engine));
    CHECK_EQ(engine_sweep(&engine, 0, PAGES), 0);
}

static void a_sweep_that_is_stopped_leaves_the_rest_to_faults(void)
{
    begin(false);
    news(ENGINE_DATA, 0, 8, V1);
    engine_arm(&engine);
    sim.threads[0] = (struct sim_thread){.sleeps = true, .event_read = true, .page = 6};
    sim_remove(&sim, layout[1].address, layout[1].address + PAGE_BYTES, false); /* read, and not completed */
    CHECK_EQ(engine_sweep(&engine, 0, 8), 0);
    CHECK_EQ(state(6), PAGE_OWNED);
    CHECK(!sim.threads[0].sleeps); /* whoever sleeps there comes again */
    sim_removal_step(&sim, 0);
    fault(0, 6);
    CHECK_EQ(reads(6), token_of_page(6, V1));
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

static void succeed(bool private_memory)
{
    sim.before = sim.after = NULL;
    atomic_fetch_add(&table.header->takeovers, 1);
    memset(&engine, 0xa5, sizeof(engine));
    ask_count = 0;
    start_engine(private_memory);
}

static void a_successor_of_a_copy_does_not_overwrite(void)
{
    begin_armed(false);
    fault(0, 1);
    sim.after = kill_here;
    kill_call = SIM_COPY;
    kill_countdown = 1;
    if (setjmp(killed) == 0) {
        news(ENGINE_DATA, 1, 1, V1);
        CHECK(!"killed");
    }
    CHECK_EQ(state(1), PAGE_WANTED);       /* placed, and not claimed */
    sim.pages[1].token = 4242;             /* the guest runs, and writes */
    sim_drop_mapping(&sim, 1);
    succeed(false);
    CHECK_EQ(ask_count, 1);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(1), 4242);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 0);
}

static void a_successor_of_a_write_writes_again(void)
{
    begin(false);
    sim_foreign(&sim, 1, 99);
    engine_mark_stale(&engine, 1, 1);
    engine_arm(&engine);
    fault(0, 1);
    sim.after = kill_here;
    kill_call = SIM_POPULATE;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        news(ENGINE_DATA, 1, 1, V1);
    CHECK_EQ(word(1), page_word(PAGE_WANTED, true, 0));
    sim.pages[1].token = SIM_TORN;
    succeed(false);
    CHECK_EQ(ask_count, 1);
    CHECK_EQ(news(ENGINE_DATA, 1, 1, V1), 1);
    CHECK_EQ(reads(1), token_of_page(1, V1));
}

static void a_successor_of_zeropage_does_not_punch(void)
{
    begin_armed(false);
    news(ENGINE_ZEROS, 1, 1, V1);
    sim_touch(&sim, 0, 1, true, &report_value);
    sim.after = kill_here;
    kill_call = SIM_ZERO;
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        engine_turn(&engine, now_ns);
    CHECK_EQ(state(1), PAGE_ZERO);
    sim.pages[1].token = 4242;
    sim_drop_mapping(&sim, 1);
    succeed(false);
    fault(0, 1);
    CHECK_EQ(sim.calls[SIM_PUNCH], 0);
    CHECK_EQ(word(1), page_word(PAGE_OWNED, false, V1));
    CHECK_EQ(reads(1), 4242);
}

static void a_successor_replays_the_batch_and_wakes_everyone(void)
{
    begin_armed(true);
    fault(0, 9);
    sim_touch(&sim, 1, 3, false, &report_value);
    sim_remove(&sim, layout[0].address, layout[0].address + 2 * PAGE_BYTES, true);
    sim.after = kill_here;
    kill_call = SIM_READ; /* read from the kernel, and nothing done about it */
    kill_countdown = 1;
    if (setjmp(killed) == 0)
        engine_turn(&engine, now_ns);
    CHECK_EQ(state(0), PAGE_MISSING);
    succeed(true);
    CHECK_EQ(state(0), PAGE_ZERO);
    CHECK_EQ(state(1), PAGE_ZERO);
    CHECK_EQ(state(3), PAGE_WANTED);
    CHECK_EQ(ask_count, 2); /* 9 again, 3 for the first time, each once */
    CHECK(!sim.threads[0].sleeps);
    CHECK(!sim.threads[1].sleeps);
    CHECK_EQ(atomic_load(&table.header->batch_count), 0);
}

static void a_successor_marks_nothing_stale(void)
{
    begin(false);
    sim_foreign(&sim, 1, 99);
    succeed(false);
    engine_mark_stale(&engine, 0, PAGES);
    CHECK(!page_stale(word(1)));
}

static void held_pages_stay_held_after_a_takeover(void)
{
    begin_armed(false);
    sim_foreign(&sim, 5, 99);
    news(ENGINE_DATA, 5, 1, V1);
    CHECK(page_held(word(5)));
    succeed(false);
    CHECK_EQ(engine.held_count, 1);
    CHECK_EQ(news(ENGINE_DATA, 5, 1, V1), 0);
    CHECK_EQ(sim.pages[5].pte, SIM_PTE_NONE);
}

/* ---------------------------------------------------------------------------------------------------------- bounds */

static void what_cannot_be_parked_is_not_forgotten(void)
{
    static const struct region big = {.address = UINT64_C(0x7f0000000000), .page_count = 2 * ENGINE_PARKED_MAX};
    uint64_t page;

    begin(false);
    table_close(&table);
    sim_close(&sim);
    CHECK_EQ(regions_set(&regions, &big, 1), 0);
    CHECK_EQ(table_create(big.page_count, &table), 0);
    sim_open(&sim, &regions, false, 0);
    sim.table = &table;
    start_engine(false);
    engine_arm(&engine);
    for (page = 0; page < big.page_count; page++) {
        sim.threads[0].sleeps = false;
        sim.random = 1;
        fault(0, page);
    }
    CHECK_EQ(ask_count, big.page_count);
    for (page = 0; page < big.page_count; page++)
        engine_ask_later(&engine, page, now_ns + MS);
    CHECK_EQ(engine.parked_count, ENGINE_PARKED_MAX);
    CHECK(engine.rescan_wanted);
    ask_count = 0;
    later(MS);
    CHECK(ask_count >= big.page_count); /* each at least once, at the price of some twice */
    ask_count = 0;
    CHECK_EQ(engine_next_ns(&engine), UINT64_MAX);
    for (page = 0; page < ENGINE_PARKED_MAX; page++)
        engine_ask_later(&engine, page, now_ns + 10 * MS);
    news(ENGINE_ZEROS, big.page_count - 1, 1, V1); /* asked: mapped at once */
    CHECK_EQ(state(big.page_count - 1), PAGE_OWNED);
    sim_drop_mapping(&sim, big.page_count - 1);
    sim.random = 1;
    force(SIM_MAP, KERNEL_LATER, 0, 1);
    fault(1, big.page_count - 1); /* no place for this fault: woken, so that it comes again */
    CHECK(!sim.threads[1].sleeps);
}

static void a_fault_outside_the_regions_is_an_alarm(void)
{
    begin_armed(false);
    table.header->batch[0] = (struct kernel_event){.kind = KERNEL_EVENT_FAULT, .start = 4096};
    atomic_store(&table.header->batch_count, 1);
    succeed(false);
    CHECK_EQ(reports[ENGINE_REPORT_ALARM], 1);
    CHECK_EQ(report_value, 4096);
}

static void steps_are_traced(void)
{
    const struct trace_step *step;

    begin_armed(false);
    fault(0, 3);
    news(ENGINE_DATA, 2, 2, V1);
    step = &trace.steps[(trace.count - 1) % TRACE_STEPS];
    CHECK_EQ(step->page, 2);
    CHECK_EQ(step->page_count, 2);
    CHECK_EQ(step->event, PAGE_EVENT_DATA);
    CHECK_EQ(step->action, PAGE_ACTION_PLACE);
    CHECK_EQ(step->result, KERNEL_MAPPED);
    step = &trace.steps[(trace.count - 2) % TRACE_STEPS];
    CHECK_EQ(step->state, PAGE_MISSING);
    CHECK_EQ(step->action, PAGE_ACTION_ASK);
}

int main(void)
{
    table.fd = -1;
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
    RUN(a_floor_after_arming_is_an_alarm);
    RUN(cached_and_zero_armed_drop_news);
    RUN(already_from_continue_means_mapped_and_wakes);
    RUN(a_minor_fault_on_a_finished_page_is_continued);
    RUN(cached_fault_is_claimed_then_mapped);
    RUN(a_hole_behind_a_claim_was_discarded_and_reads_zero);
    RUN(a_hole_that_is_filled_meanwhile_is_mapped);
    RUN(something_where_nobody_wrote_is_held_back);
    RUN(zeropage_on_something_punches_and_tries_once_more);
    RUN(a_page_that_fills_up_again_and_again_is_held_back);
    RUN(partial_progress_goes_on_where_it_stopped);
    RUN(later_in_news_reads_events_first);
    RUN(later_in_a_batch_is_parked_and_tried_soon);
    RUN(no_memory_is_said_once_and_tried_with_patience);
    RUN(a_vmm_that_is_gone_is_said_once);
    RUN(a_copy_without_a_mapping);
    RUN(what_the_kernel_refuses_is_held_back);
    RUN(a_removal_on_private_memory_is_zero_for_ever);
    RUN(a_fault_is_read_before_the_removal_that_explains_it);
    RUN(a_remove_event_on_shared_memory_changes_no_word);
    RUN(a_reported_discard_is_zero_for_ever);
    RUN(a_discard_is_claimed_even_when_the_punch_fails);
    RUN(poison_drops_the_bytes_and_stays);
    RUN(poison_of_a_mapped_page_is_said);
    RUN(a_sweep_maps_runs_around_what_is_mapped_and_discarded);
    RUN(a_sweep_that_is_stopped_leaves_the_rest_to_faults);
    RUN(a_successor_of_a_copy_does_not_overwrite);
    RUN(a_successor_of_a_write_writes_again);
    RUN(a_successor_of_zeropage_does_not_punch);
    RUN(a_successor_replays_the_batch_and_wakes_everyone);
    RUN(a_successor_marks_nothing_stale);
    RUN(held_pages_stay_held_after_a_takeover);
    RUN(what_cannot_be_parked_is_not_forgotten);
    RUN(a_fault_outside_the_regions_is_an_alarm);
    RUN(steps_are_traced);
    sim_close(&sim);
    table_close(&table);
    return check_done();
}
