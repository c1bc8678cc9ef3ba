/* SPDX-License-Identifier: Apache-2.0 */
/* Filling memory behind the faults: see fill.h. */
#include "fill.h"

#include <string.h>

#define MS_NS UINT64_C(1000000)
#define SLICE_PAGES 16 /* of bulk a turn: about 30 us of copying that a fault may have to wait for */
#define SLICE_RUNS 64
#define SWEEP_PAGES 512
#define PLAN_LOOK_PAGES 8192
#define DELAY_MIN_NS (PF_LIMIT_ASK_AGAIN_MIN_MS * MS_NS)
#define DELAY_MAX_NS (PF_LIMIT_ASK_AGAIN_MAX_MS * MS_NS)

static void slice_done(struct fill *fill)
{
    port_give_back(fill->port, fill->slice.slot);
    fill->sliced = false;
}

/* Applies at most `pages` pages of the run that the slice has come to; returns how many. */
static uint64_t apply_run(struct fill *fill, uint64_t pages, uint64_t now_ns)
{
    const struct run *run = &fill->slice.runs[fill->slice_run];
    struct engine_news news = {.first_page = run->first_page + fill->slice_run_page, .version = run->version};
    uint64_t left = run->page_count - fill->slice_run_page, taken = 0;

    news.page_count = left < pages ? left : pages;
    if (run->kind == PF_RUN_KIND_DATA) {
        news.kind = ENGINE_DATA;
        news.bytes = fill->slice.data + fill->slice_data_page * PAGE_BYTES;
        fill->slice_data_page += news.page_count;
    } else if (run->kind == PF_RUN_KIND_ZERO) {
        news.kind = ENGINE_ZEROS;
    } else if (run->kind == PF_RUN_KIND_POISON) {
        news.kind = ENGINE_POISON;
    } else if (run->kind == PF_RUN_KIND_LATER) {
        stats_add(fill->stats, STATS_later_pages_total, news.page_count);
    }
    if (news.kind != 0)
        taken = engine_news(fill->engine, &news, now_ns);
    if (news.kind == ENGINE_DATA)
        stats_add(fill->stats, STATS_bulk_pages_total, taken);
    if (taken > 0)
        fill->delay_ns = 0;
    fill->slice_run_page += news.page_count;
    if (fill->slice_run_page == run->page_count) {
        fill->slice_run_page = 0;
        fill->slice_run++;
    }
    return news.kind == ENGINE_DATA ? news.page_count : 0; /* only bytes cost time */
}

/* The pages of the range under way that begins there. */
static uint64_t pages_of(const struct fill *fill, uint64_t first_page)
{
    uint64_t pages = 0;

    for (uint32_t i = 0; i < PLAN_FLIGHTS_MAX; i++)
        if (fill->plan.flights[i].first_page == first_page && fill->plan.flights[i].page_count > 0)
            pages = fill->plan.flights[i].page_count;
    return pages;
}

/* Did it leave anything to ask again? */
static bool lacks_pages(const struct fill *fill, uint64_t first_page, uint64_t page_count)
{
    bool lacks = false;

    for (uint64_t page = 0; page < page_count && !lacks; page++)
        lacks = page_state(table_word(fill->engine->table, first_page + page)) == PAGE_MISSING;
    return lacks;
}

/* Whatever the cause (LATER, a wrong digest, no memory, a server that leaves pages out): what a range did not bring is
 * asked again a little later, and later still while nothing at all comes. */
static void range_ended(struct fill *fill, uint64_t now_ns)
{
    uint64_t pages = pages_of(fill, fill->slice.range_page);
    bool lacks = lacks_pages(fill, fill->slice.range_page, pages);

    pace_landed(&fill->pace, pages);
    plan_landed(&fill->plan, fill->slice.range_page);
    if (lacks && now_ns >= fill->due_ns) {
        fill->delay_ns = fill->delay_ns == 0 ? DELAY_MIN_NS : 2 * fill->delay_ns;
        fill->delay_ns = fill->delay_ns < DELAY_MAX_NS ? fill->delay_ns : DELAY_MAX_NS;
        fill->due_ns = now_ns + fill->delay_ns;
    }
    if (fill->slice.reason == PF_REASON_MISMATCH && fill->delay_ns > DELAY_MIN_NS)
        fill->doubtful = true;
}

bool fill_take(struct fill *fill, uint64_t now_ns)
{
    uint64_t budget = SLICE_PAGES;
    uint32_t runs = SLICE_RUNS;

    while (budget > 0 && runs-- > 0) {
        if (!fill->sliced) {
            if (!port_take(fill->port, &fill->slice))
                return false;
            if (fill->slice.slot == PORT_NO_SLOT) {
                range_ended(fill, now_ns);
                continue;
            }
            fill->sliced = true;
            fill->slice_run = 0;
            fill->slice_run_page = 0;
            fill->slice_data_page = 0;
        }
        if (fill->slice_run < fill->slice.run_count)
            budget -= apply_run(fill, budget, now_ns);
        if (fill->slice_run == fill->slice.run_count)
            slice_done(fill);
    }
    return true;
}

static bool faults_come(const struct fill *fill, uint64_t now_ns)
{
    return fill->fault_ns != 0 && now_ns - fill->fault_ns < PF_LIMIT_BULK_QUIET_MS * MS_NS;
}

/* How much is under way at once: much while nobody waits; while somebody does, little, and if the link's rate is not
 * known yet, so that no pace can be kept, a single range: the time between two of them is then room enough. */
static void choose(struct fill *fill, uint64_t now_ns, uint64_t *pages_max, uint32_t *flights_max)
{
    bool gently = faults_come(fill, now_ns);

    port_tell_urgent(fill->port, fill->urgent_bytes);
    pace_look(&fill->pace, fill->urgent_bytes, port_arrived_bytes(fill->port), port_link_rate(fill->port), gently,
              now_ns);
    *pages_max = PF_LIMIT_BULK_RANGE_IDLE_PAGES;
    *flights_max = PF_LIMIT_BULK_RANGES_IN_FLIGHT;
    if (gently && !fill->pace.lifted)
        port_hold_back(fill->port);
    if (gently) {
        *pages_max = PF_LIMIT_BULK_RANGE_PAGES;
        *flights_max = pace_knows(&fill->pace) ? PF_LIMIT_BULK_RANGES_PACED_MAX : PF_LIMIT_BULK_RANGES_GENTLE_MAX;
    }
    *pages_max = pace_pages(&fill->pace, *pages_max);
    if (fill->engine->full) { /* try on, but little, and not in a hurry */
        *pages_max = *flights_max = 1;
        fill->due_ns = now_ns + PF_LIMIT_FULL_RETRY_MS * MS_NS;
    }
}

bool fill_plan(struct fill *fill, uint64_t now_ns)
{
    struct plan_range range;
    uint64_t pages_max;
    uint32_t flights_max;
    bool exhausted = false;

    if (now_ns < fill->due_ns || counts_of(&fill->engine->counts, PAGE_MISSING) == 0)
        return false;
    choose(fill, now_ns, &pages_max, &flights_max);
    fill->paced_ns = 0;
    while (fill->plan.flight_count < flights_max) {
        if (!pace_allows(&fill->pace, pages_max)) {
            fill->paced_ns = pace_next_ns(&fill->pace, pages_max);
            port_hold_back(fill->port);
            break;
        }
        if (!plan_next(&fill->plan, pages_max, PLAN_LOOK_PAGES, &range, &exhausted))
            break;
        if (!port_ask(fill->port, &range)) {
            plan_landed(&fill->plan, range.first_page);
            break;
        }
        pace_asked(&fill->pace, range.page_count);
    }
    if (exhausted && fill->plan.flight_count == 0) /* what is missing is held back: not looked for in each turn */
        fill->due_ns = now_ns + DELAY_MAX_NS;
    return !exhausted && fill->plan.flight_count == 0 && fill->paced_ns == 0;
}

bool fill_sweep(struct fill *fill)
{
    bool units = fill->engine->regions->unit_pages > 1;

    if (counts_of(&fill->engine->counts, PAGE_CACHED) == 0 || (units && fill->swept))
        return false;
    if (fill->sweep_page >= fill->engine->regions->page_count)
        fill->sweep_page = 0;
    engine_sweep(fill->engine, fill->sweep_page, SWEEP_PAGES);
    fill->sweep_page += SWEEP_PAGES;
    fill->swept |= fill->sweep_page >= fill->engine->regions->page_count;
    return true;
}

uint64_t fill_next_ns(const struct fill *fill, uint64_t now_ns)
{
    uint64_t next_ns = fill->due_ns > fill->paced_ns ? fill->due_ns : fill->paced_ns;

    return next_ns > now_ns && counts_of(&fill->engine->counts, PAGE_MISSING) > 0 ? next_ns : UINT64_MAX;
}

void fill_start(struct fill *fill, struct engine *engine, struct stats *stats, struct port *port)
{
    memset(fill, 0, sizeof(*fill));
    fill->engine = engine;
    fill->stats = stats;
    fill->port = port;
    plan_start(&fill->plan, engine->table);
    fill->plan.unit_pages = engine->regions->unit_pages;
}

void fill_hint(struct fill *fill, uint64_t page, uint64_t now_ns)
{
    fill->fault_ns = now_ns;
    plan_hint(&fill->plan, page);
}
