/* SPDX-License-Identifier: Apache-2.0 */
/* The bed of engine_bed.h. */
#include "engine_bed.h"

#include <stdlib.h>

struct bed bed = {.table.fd = -1};

const struct region bed_layout[2] = {
    {.address = UINT64_C(0x7f0000100000), .first_page = 0, .page_count = FIRST},
    {.address = UINT64_C(0x7f0000000000), .first_page = FIRST, .page_count = PAGES - FIRST},
};

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    if (bed.ask_count < ASKS_MAX)
        bed.asks[bed.ask_count] = page;
    bed.ask_count++;
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner;
    if (text == NULL)
        abort();
    bed.reports[report]++;
    bed.report_page = page;
    bed.report_value = value;
}

void bed_start_engine(bool private_memory)
{
    struct engine_options options = {
        .table = &bed.table,
        .regions = &bed.regions,
        .ops = &sim_kernel_ops,
        .kernel = &bed.sim,
        .out = {.ask = on_ask, .report = on_report},
        .stats = &bed.stats,
        .trace = &bed.trace,
        .private_memory = private_memory,
    };

    engine_start(&bed.engine, &options, bed.now_ns);
}

void bed_begin(bool private_memory)
{
    struct region layout[2];

    bed_end();
    memset(&bed.stats, 0, sizeof(bed.stats));
    memset(&bed.trace, 0, sizeof(bed.trace));
    memset(bed.reports, 0, sizeof(bed.reports));
    memset(bed.bytes, 0, sizeof(bed.bytes));
    bed.ask_count = 0;
    bed.now_ns = 1000 * MS;
    memcpy(layout, bed_layout, sizeof(layout));
    layout[0].unit_pages = layout[1].unit_pages = bed.unit_pages;
    if (regions_set(&bed.regions, layout, 2) < 0 || table_create(PAGES, &bed.table) < 0)
        abort();
    sim_open(&bed.sim, &bed.regions, private_memory, 0);
    bed.sim.random = 1; /* whole batches */
    bed.sim.table = &bed.table;
    bed_start_engine(private_memory);
}

void bed_begin_armed(bool private_memory)
{
    bed_begin(private_memory);
    engine_arm(&bed.engine);
}

uint64_t bed_token_of_page(uint64_t page, uint64_t version)
{
    return version << 20 | page;
}

uint64_t bed_news(enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version)
{
    struct engine_news told = {.kind = kind, .first_page = first, .page_count = count, .version = version};

    for (uint64_t i = 0; kind == ENGINE_DATA && i < count && i < PAGES; i++)
        sim_stamp(bed.bytes + i * PAGE_BYTES, bed_token_of_page(first + i, version));
    told.bytes = kind == ENGINE_DATA ? bed.bytes : NULL;
    return engine_news(&bed.engine, &told, bed.now_ns);
}

uint64_t bed_word(uint64_t page)
{
    return table_word(&bed.table, page);
}

enum page_state bed_state(uint64_t page)
{
    return page_state(bed_word(page));
}

uint64_t bed_counter(enum stats_counter which)
{
    return stats_get(&bed.stats, which);
}

uint64_t bed_untold(void)
{
    struct table_header *header = bed.table.header;

    return atomic_load(&header->log_count) - atomic_load(&header->log_taken[TABLE_LOG_OWNER]);
}

struct table_log_entry bed_told(void)
{
    struct table_log_entry entry = {0};
    uint64_t number;

    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        while (log_next(&bed.table, (enum table_log_reader)reader, &entry, &number))
            log_taken(&bed.table, (enum table_log_reader)reader);
    return entry;
}

void bed_fault(uint32_t thread, uint64_t page)
{
    uint64_t token;

    sim_touch(&bed.sim, thread, page, false, &token);
    engine_turn(&bed.engine, bed.now_ns);
}

uint64_t bed_reads(uint64_t page)
{
    uint64_t token = SIM_TORN;

    if (bed.sim.pages[page].pte == SIM_PTE_MAPPED)
        sim_touch(&bed.sim, 7, page, false, &token);
    return token;
}

void bed_later(uint64_t wait_ns)
{
    bed.now_ns += wait_ns;
    engine_tick(&bed.engine, bed.now_ns);
}

void bed_force(enum sim_call call, enum kernel_result result, uint64_t done_pages, uint32_t times)
{
    bed.sim.force[call] = (struct sim_force){.times = times, .result = result, .done_pages = done_pages};
}

void bed_end(void)
{
    table_close(&bed.table);
    sim_close(&bed.sim);
}

void bed_succeed(bool private_memory)
{
    bed.sim.before = bed.sim.after = NULL;
    atomic_fetch_add(&bed.table.header->takeovers, 1);
    memset(&bed.engine, 0xa5, sizeof(bed.engine));
    bed.ask_count = 0;
    bed_start_engine(private_memory);
}
