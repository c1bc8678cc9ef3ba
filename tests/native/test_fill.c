/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling memory behind the faults, with a kernel that says yes to everything and the test in the place of the bulk
 * thread: how much is asked, when, and how long it waits after ranges that bring nothing. Time is the test's.
 */
#include <string.h>

#include "check.h"
#include "client/fill.h"
#include "gen/contract.h"

#define PAGES UINT64_C(4096)
#define MS UINT64_C(1000000)
#define VERSION PF_LIMIT_IMMUTABLE_VERSION

static struct table table;
static struct regions regions;
static struct engine engine;
static struct stats stats;
static struct trace trace;
static struct port port;
static struct fill fill;
static enum kernel_result answer; /* of whatever takes memory */
static uint64_t now_ns;
static struct plan_range asked[64];
static uint32_t asked_count;

static struct kernel_outcome yes(void *kernel, const struct kernel_span *span)
{
    (void)kernel;
    return (struct kernel_outcome){.result = KERNEL_MAPPED, .done_bytes = span->length_bytes};
}

static struct kernel_outcome take_bytes(void *kernel, const struct kernel_span *span, const void *bytes)
{
    (void)kernel, (void)bytes;
    return (struct kernel_outcome){.result = answer, .done_bytes = answer == KERNEL_MAPPED ? span->length_bytes : 0};
}

static int no_events(void *kernel, struct kernel_event *events, int capacity)
{
    (void)kernel, (void)events, (void)capacity;
    return 0;
}

static const struct kernel_ops ops = {.read_events = no_events, .populate = take_bytes, .map = yes, .copy = take_bytes,
                                      .zero = yes, .punch = yes, .poison = yes, .wake = yes};

static void on_ask(void *owner, uint64_t page)
{
    (void)owner, (void)page;
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner, (void)report, (void)page, (void)value, (void)text;
}

static void begin(void)
{
    static const struct region region = {.address = 1 << 30, .page_count = PAGES};
    struct port_options port_options = {.page_count = PAGES, .slots = 4};
    struct engine_options options = {.table = &table, .regions = &regions, .ops = &ops, .stats = &stats,
                                     .trace = &trace, .out = {.ask = on_ask, .report = on_report}};

    answer = KERNEL_MAPPED;
    now_ns = 1000 * MS;
    CHECK_EQ(regions_set(&regions, &region, 1), 0);
    CHECK_EQ(table_create(PAGES, &table), 0);
    CHECK_EQ(port_open(&port, &port_options), 0);
    engine_start(&engine, &options, now_ns);
    fill_start(&fill, &engine, &stats, &port);
}

static void end(void)
{
    port_close(&port);
    table_close(&table);
}

static uint32_t plan(void)
{
    asked_count = 0;
    fill_plan(&fill, now_ns);
    while (ring_take(&port.asks, &asked[asked_count]))
        asked_count++;
    return asked_count;
}

static void ends(uint64_t first_page, uint32_t reason)
{
    struct port_slice slice = {.slot = PORT_NO_SLOT, .range_page = first_page, .reason = reason};

    CHECK(ring_put(&port.slices, &slice));
}

/* A slice of data for a range, in slot 0. */
static void brings(uint64_t first_page, uint64_t pages, uint64_t kind)
{
    struct port_slice slice = {.slot = 0, .range_page = first_page, .run_count = 1, .runs = port.slots[0].runs,
                               .data = port.slots[0].message};

    port.slots[0].runs[0] = (struct run){first_page, pages, kind, VERSION};
    CHECK(ring_put(&port.slices, &slice));
}

static uint32_t turns(void)
{
    uint32_t count = 1;

    while (fill_take(&fill, now_ns))
        count++;
    return count;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void test_ranges(void)
{
    begin();
    CHECK_EQ(plan(), PF_LIMIT_BULK_RANGES_IN_FLIGHT);
    for (uint32_t i = 0; i < asked_count; i++) {
        CHECK_EQ(asked[i].first_page, i * PF_LIMIT_BULK_RANGE_IDLE_PAGES);
        CHECK_EQ(asked[i].page_count, PF_LIMIT_BULK_RANGE_IDLE_PAGES);
    }
    CHECK_EQ(plan(), 0); /* as many as there may be */
    brings(0, PF_LIMIT_BULK_RANGE_IDLE_PAGES, PF_RUN_KIND_DATA);
    ends(0, 0);
    turns();
    CHECK_EQ(counts_of(&engine.counts, PAGE_CACHED), PF_LIMIT_BULK_RANGE_IDLE_PAGES);
    CHECK_EQ(plan(), 1);
    end();
}

static void test_gently_behind_a_fault(void)
{
    begin();
    fill_hint(&fill, 999, now_ns);
    CHECK_EQ(plan(), PF_LIMIT_BULK_RANGES_GENTLE_MAX);
    CHECK_EQ(asked[0].first_page, 1000);
    CHECK_EQ(asked[0].page_count, PF_LIMIT_BULK_RANGE_PAGES);
    now_ns += PF_LIMIT_BULK_QUIET_MS * MS;
    CHECK_EQ(plan(), PF_LIMIT_BULK_RANGES_IN_FLIGHT - PF_LIMIT_BULK_RANGES_GENTLE_MAX);
    end();
}

/* Where the link's rate is known, several ranges may be under way, as many as the pace allows. */
static void test_paced_behind_a_fault(void)
{
    uint32_t ranges;

    begin();
    atomic_store(&port.link_rate, 125000000);
    fill_hint(&fill, 999, now_ns);
    CHECK_EQ(plan(), 0);
    now_ns += 10 * MS;
    ranges = plan();
    CHECK(ranges > PF_LIMIT_BULK_RANGES_GENTLE_MAX);
    CHECK(ranges < PF_LIMIT_BULK_RANGES_PACED_MAX);
    CHECK_EQ(asked[0].first_page, 1000);
    CHECK_EQ(asked[0].page_count, PF_LIMIT_BULK_RANGE_PAGES);
    CHECK(atomic_exchange(&port.held_back, false)); /* what comes now says little of the link */
    CHECK(fill_next_ns(&fill, now_ns) > now_ns);
    CHECK(fill_next_ns(&fill, now_ns) < now_ns + MS);
    now_ns += MS;
    CHECK_EQ(plan(), 1);
    CHECK(atomic_exchange(&port.held_back, false));
    now_ns += 100 * MS;
    CHECK(plan() > 0); /* no fault any more: flat out */
    CHECK(!atomic_load(&port.held_back));
    end();
}

static void test_a_cap(void)
{
    begin();
    pace_cap(&fill.pace, 10000000);
    CHECK_EQ(plan(), 0);
    CHECK(!fill_plan(&fill, now_ns)); /* the clock says when to go on */
    now_ns = fill_next_ns(&fill, now_ns);
    CHECK_EQ(plan(), 1);
    CHECK_EQ(plan(), 0);
    fill.urgent_bytes = 1000000; /* a tenth of a second */
    CHECK_EQ(plan(), 0);
    CHECK(fill_next_ns(&fill, now_ns) > now_ns + 100 * MS);
    pace_cap(&fill.pace, 0);
    CHECK_EQ(plan(), PF_LIMIT_BULK_RANGES_IN_FLIGHT - 1);
    end();
}

/* A turn copies a few pages and no more, whatever a slice holds; runs without bytes are bounded, too. */
static void test_a_bounded_piece_a_turn(void)
{
    uint32_t slot;

    begin();
    plan();
    brings(0, 64, PF_RUN_KIND_DATA);
    CHECK(fill_take(&fill, now_ns));
    CHECK_EQ(counts_of(&engine.counts, PAGE_CACHED), 16);
    CHECK(!ring_take(&port.back, &slot)); /* still in use */
    turns();
    CHECK_EQ(counts_of(&engine.counts, PAGE_CACHED), 64);
    CHECK(ring_take(&port.back, &slot));
    CHECK_EQ(slot, 0);
    brings(64, PAGES - 64, PF_RUN_KIND_ZERO);
    CHECK(turns() >= 3);
    CHECK_EQ(counts_of(&engine.counts, PAGE_ZERO), PAGES - 64);
    end();
}

/* Ends all that is under way with nothing; how long until the next try. */
static uint64_t delay_after_nothing(uint32_t reason)
{
    CHECK(plan() > 0);
    for (uint32_t i = 0; i < asked_count; i++)
        ends(asked[i].first_page, reason);
    turns();
    CHECK_EQ(plan(), 0);
    CHECK(fill_next_ns(&fill, now_ns) > now_ns);
    return fill_next_ns(&fill, now_ns) - now_ns;
}

static void test_longer_with_each_nothing(void)
{
    static const uint32_t reasons[] = {0, PF_REASON_GOING_AWAY, PF_REASON_BUSY};

    for (int i = 0; i < 3; i++) {
        uint64_t want_ns = PF_LIMIT_ASK_AGAIN_MIN_MS * MS;
        begin();
        for (int tries = 0; tries < 12; tries++) {
            CHECK_EQ(delay_after_nothing(reasons[i]), want_ns);
            now_ns += want_ns;
            want_ns = 2 * want_ns < PF_LIMIT_ASK_AGAIN_MAX_MS * MS ? 2 * want_ns : PF_LIMIT_ASK_AGAIN_MAX_MS * MS;
        }
        CHECK(!fill.doubtful);
        CHECK(plan() > 0); /* something comes: all is well again */
        brings(asked[0].first_page, 64, PF_RUN_KIND_DATA);
        for (uint32_t j = 0; j < asked_count; j++)
            ends(asked[j].first_page, reasons[i]);
        turns();
        CHECK_EQ(fill_next_ns(&fill, now_ns) - now_ns, PF_LIMIT_ASK_AGAIN_MIN_MS * MS);
        end();
    }
}

static void test_a_range_that_faults_have_emptied(void)
{
    begin();
    fill_hint(&fill, 0, now_ns);
    plan();
    brings(asked[0].first_page, asked[0].page_count, PF_RUN_KIND_DATA);
    turns();
    ends(asked[0].first_page, PF_REASON_GOING_AWAY); /* it lacks nothing: no reason to wait */
    turns();
    CHECK_EQ(plan(), 1);
    end();
}

static void test_wrong_digests_raise_a_doubt(void)
{
    begin();
    now_ns += delay_after_nothing(PF_REASON_MISMATCH);
    CHECK(!fill.doubtful); /* once: a flipped bit */
    now_ns += delay_after_nothing(PF_REASON_MISMATCH);
    CHECK(fill.doubtful);
    end();
}

static void test_no_memory(void)
{
    begin();
    answer = KERNEL_FULL;
    plan();
    brings(0, 64, PF_RUN_KIND_DATA);
    for (uint32_t i = 0; i < asked_count; i++)
        ends(asked[i].first_page, 0);
    turns();
    CHECK(engine.full);
    now_ns = fill_next_ns(&fill, now_ns);
    CHECK_EQ(plan(), 1); /* a probe: nothing is fetched to be thrown away */
    CHECK_EQ(asked[0].page_count, 1);
    CHECK_EQ(plan(), 0);
    answer = KERNEL_MAPPED;
    brings(asked[0].first_page, 1, PF_RUN_KIND_DATA);
    ends(asked[0].first_page, 0);
    turns();
    CHECK(!engine.full);
    now_ns = fill_next_ns(&fill, now_ns) == UINT64_MAX ? now_ns : fill_next_ns(&fill, now_ns);
    CHECK_EQ(plan(), PF_LIMIT_BULK_RANGES_IN_FLIGHT);
    end();
}

static void test_sweep(void)
{
    int calls = 0;

    begin();
    CHECK(!fill_sweep(&fill));
    plan();
    brings(0, 64, PF_RUN_KIND_DATA);
    turns();
    engine_arm(&engine);
    while (fill_sweep(&fill) && calls++ < 100)
        ;
    CHECK(calls < 100);
    CHECK_EQ(counts_of(&engine.counts, PAGE_OWNED), 64);
    end();
}

static void test_nothing_left(void)
{
    begin();
    plan();
    brings(0, PAGES, PF_RUN_KIND_ZERO);
    for (uint32_t i = 0; i < asked_count; i++)
        ends(asked[i].first_page, 0);
    turns();
    CHECK_EQ(counts_of(&engine.counts, PAGE_MISSING), 0);
    CHECK_EQ(plan(), 0);
    CHECK(fill_next_ns(&fill, now_ns) == UINT64_MAX);
    CHECK(!fill_plan(&fill, now_ns));
    end();
}

int main(void)
{
    RUN(test_ranges);
    RUN(test_gently_behind_a_fault);
    RUN(test_paced_behind_a_fault);
    RUN(test_a_cap);
    RUN(test_a_bounded_piece_a_turn);
    RUN(test_longer_with_each_nothing);
    RUN(test_a_range_that_faults_have_emptied);
    RUN(test_wrong_digests_raise_a_doubt);
    RUN(test_no_memory);
    RUN(test_sweep);
    RUN(test_nothing_left);
    return check_done();
}
