/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Engine orders and events without manners: news of any page, count and version, removals, sweeps and marks of any
 * range, calls of the kernel that stop anywhere with any result, takeovers, memory that comes and goes under the
 * engine. Where fuzz_simulation knows what must come of each step, this one does what no world would do; the simulated
 * kernel audits every call, and the words must stay lawful.
 *
 * Input: a byte (bit 0: private memory, bit 1: an immutable image), then orders: a byte, and what it needs.
 */
#include <stdbool.h>

#include "fuzz.h"
#include "pager/engine.h"
#include "sim_kernel.h"

#define PAGES 40
#define FIRST 13
#define ORDERS_MAX 400
#define VERSION (UINT64_C(1) << 32 | 1)

static const struct region layout[] = {
    {.address = UINT64_C(0x7f0000100000), .first_page = 0, .page_count = FIRST},
    {.address = UINT64_C(0x7f0000000000), .first_page = FIRST, .page_count = PAGES - FIRST},
};

static struct bed {
    struct table table;
    struct regions regions;
    struct sim_kernel sim;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    uint64_t now_ns, frozen_version;
    bool private_memory;
    uint64_t before[PAGES];
    uint8_t bytes[PAGES * PAGE_BYTES];
} bed;

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    fuzz_check(page < PAGES && page_state(table_word(&bed.table, page)) == PAGE_WANTED);
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner, (void)page, (void)value;
    fuzz_check(report >= ENGINE_REPORT_ALARM && report <= ENGINE_REPORT_GONE && text != NULL);
}

static void on_failed(void *owner, uint64_t page, const char *text)
{
    (void)owner;
    fprintf(stderr, "the simulated kernel, page %llu: %s\n", (unsigned long long)page, text);
    abort();
}

static void start(void)
{
    struct engine_options options = {
        .table = &bed.table,
        .regions = &bed.regions,
        .ops = &sim_kernel_ops,
        .kernel = &bed.sim,
        .out = {.ask = on_ask, .report = on_report},
        .stats = &bed.stats,
        .trace = &bed.trace,
        .private_memory = bed.private_memory,
    };

    engine_start(&bed.engine, &options, bed.now_ns);
    bed.engine.frozen_version = bed.frozen_version;
}

/* ---------------------------------------------------------------------------------------------------------- orders */

static uint64_t any_page(struct fuzz_tape *tape)
{
    uint8_t byte = fuzz_byte(tape);

    return byte < 250 ? byte % (PAGES + 4) : UINT64_MAX - (byte - 250);
}

static uint64_t any_count(struct fuzz_tape *tape)
{
    uint8_t byte = fuzz_byte(tape);

    return byte < 250 ? byte % (PAGES + 4) : UINT64_MAX - (byte - 250);
}

static uint64_t any_version(struct fuzz_tape *tape)
{
    static const uint64_t versions[] = {VERSION, VERSION + 1, VERSION - 1, 0, 1, (UINT64_C(1) << 56) - 1};

    return versions[fuzz_byte(tape) % (sizeof(versions) / sizeof(versions[0]))];
}

static void tell(struct fuzz_tape *tape)
{
    struct engine_news news = {.kind = (enum engine_kind)(ENGINE_DATA + fuzz_byte(tape) % 4)};
    uint64_t taken;

    news.first_page = any_page(tape);
    news.page_count = any_count(tape);
    news.version = any_version(tape);
    for (uint64_t page = news.first_page; news.kind == ENGINE_DATA && page < PAGES; page++)
        sim_stamp(bed.bytes + (page - news.first_page) * PAGE_BYTES, news.version << 8 | page);
    news.bytes = news.kind == ENGINE_DATA ? bed.bytes : NULL;
    taken = engine_news(&bed.engine, &news, bed.now_ns);
    fuzz_check(taken <= news.page_count && taken <= PAGES);
}

/* The VMM drops what it likes, from inside a region into a gap, or another region. */
static void drop(struct fuzz_tape *tape)
{
    uint64_t start = layout[fuzz_byte(tape) % 2].address + ((uint64_t)fuzz_byte(tape) - 8) * PAGE_BYTES;
    uint64_t pages = fuzz_byte(tape) + 1;

    sim_remove(&bed.sim, start, start + pages * PAGE_BYTES, bed.private_memory);
}

static void stand_in_the_way(struct fuzz_tape *tape)
{
    uint8_t what = fuzz_byte(tape);

    bed.sim.force[what % SIM_CALL_COUNT] = (struct sim_force){
        .times = 1 + what / 64,
        .result = fuzz_byte(tape) % (KERNEL_REFUSED + 1),
        .done_pages = fuzz_byte(tape) % 4,
    };
}

/* What happens to memory behind the engine's back. */
static void happen(struct fuzz_tape *tape)
{
    uint8_t what = fuzz_byte(tape);
    uint64_t page = fuzz_byte(tape) % PAGES;

    switch (what % 6) {
    case 0:
        sim_drop_mapping(&bed.sim, page);
        break;
    case 1:
        bed.sim.full = !bed.sim.full;
        break;
    case 2:
        bed.sim.later_permille = (uint32_t)(what / 6) * 10;
        break;
    case 3:
        bed.sim.full_permille = (uint32_t)(what / 6) * 5;
        break;
    default:
        sim_removal_step(&bed.sim, what / 6 % SIM_REMOVALS);
        break;
    }
}

/* A worker dies between two calls, and another takes the table over. */
static void take_over(struct fuzz_tape *tape)
{
    if (fuzz_byte(tape) % 8 != 0)
        return;
    atomic_fetch_add(&bed.table.header->takeovers, 1);
    start();
}

static void order(struct fuzz_tape *tape)
{
    uint64_t page, count, token;
    uint8_t what = fuzz_byte(tape);

    switch (what % 16) {
    case 0:
    case 1:
    case 2:
        tell(tape);
        break;
    case 3:
        page = fuzz_byte(tape) % PAGES;
        if (!bed.sim.threads[what / 16 % SIM_THREADS].sleeps)
            sim_touch(&bed.sim, what / 16 % SIM_THREADS, page, what >= 128, &token);
        break;
    case 4:
    case 5:
        engine_turn(&bed.engine, bed.now_ns);
        break;
    case 6:
        drop(tape);
        break;
    case 7:
        happen(tape);
        break;
    case 8:
        engine_arm(&bed.engine);
        break;
    case 9:
        page = any_page(tape);
        count = any_count(tape);
        if (!bed.private_memory)
            engine_removed(&bed.engine, page, count);
        break;
    case 10:
        page = any_page(tape);
        engine_sweep(&bed.engine, page, any_count(tape));
        break;
    case 11:
        page = fuzz_byte(tape) % PAGES;
        engine_ask_later(&bed.engine, page, bed.now_ns + (uint64_t)fuzz_byte(tape) * 1000000);
        break;
    case 12:
        engine_asks_lost(&bed.engine);
        break;
    case 13:
        bed.now_ns += (uint64_t)fuzz_byte(tape) * 500000;
        engine_tick(&bed.engine, bed.now_ns);
        break;
    case 14:
        stand_in_the_way(tape);
        break;
    default:
        take_over(tape);
        break;
    }
}

/* ---------------------------------------------------------------------------------------------------------- checks */

static void check_page(uint64_t page, uint64_t counts[PAGE_STATE_COUNT])
{
    uint64_t was = bed.before[page], is = table_word(&bed.table, page);
    bool armed = atomic_load(&bed.table.header->armed) != 0;

    fuzz_check(page_state(is) < PAGE_STATE_COUNT);
    fuzz_check(armed || (page_state(is) != PAGE_WANTED && page_state(is) != PAGE_OWNED));
    fuzz_check(page_state(was) != PAGE_OWNED || page_state(is) == PAGE_OWNED || page_state(is) == PAGE_POISONED);
    fuzz_check(page_state(was) != PAGE_POISONED || page_state(is) == PAGE_POISONED);
    fuzz_check(page_state(was) != PAGE_OWNED || page_state(is) != PAGE_OWNED || page_version(was) == page_version(is));
    counts[page_state(is)]++;
    bed.before[page] = is;
}

static void check_all(void)
{
    uint64_t counts[PAGE_STATE_COUNT] = {0}, kept[PAGE_STATE_COUNT];

    for (uint64_t page = 0; page < PAGES; page++)
        check_page(page, counts);
    counts_read(&bed.engine.counts, kept);
    fuzz_check(memcmp(counts, kept, sizeof(counts)) == 0);
    fuzz_check(bed.engine.parked_count <= ENGINE_PARKED_MAX);
    if (engine_settled(&bed.engine))
        fuzz_check(counts[PAGE_MISSING] + counts[PAGE_WANTED] == 0);
    engine_next_ns(&bed.engine);
}

static void begin(uint8_t manner)
{
    if (bed.table.header == NULL)
        fuzz_check(table_create(PAGES, &bed.table) == 0 && regions_set(&bed.regions, layout, 2) == 0);
    for (uint64_t page = 0; page < PAGES; page++) {
        table_set(&bed.table, page, 0);
        bed.before[page] = 0;
    }
    atomic_store(&bed.table.header->armed, 0);
    atomic_store(&bed.table.header->takeovers, 0);
    atomic_store(&bed.table.header->batch_count, 0);
    memset(bed.table.header->batch, 0, sizeof(bed.table.header->batch));
    memset(&bed.stats, 0, sizeof(bed.stats));
    memset(&bed.trace, 0, sizeof(bed.trace));
    bed.private_memory = (manner & 1) != 0;
    bed.frozen_version = (manner & 2) != 0 ? VERSION : 0;
    bed.now_ns = UINT64_C(1000000000);
    sim_open(&bed.sim, &bed.regions, bed.private_memory, 1);
    bed.sim.table = &bed.table;
    bed.sim.failed = on_failed;
    start();
    for (uint64_t page = 0; (manner & 4) != 0 && !bed.private_memory && page < PAGES; page += 3) {
        sim_foreign(&bed.sim, page, UINT64_C(0xf0e1) << 48 | page);
        engine_mark_stale(&bed.engine, page, 2);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_tape tape = fuzz_tape_of(data, size);

    begin(fuzz_byte(&tape));
    for (int orders = 0; orders < ORDERS_MAX && tape.at < tape.end; orders++) {
        order(&tape);
        check_all();
    }
    sim_close(&bed.sim);
    return 0;
}
