/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each row of PAGE_STEPS is one test, by its name: a page is brought into the state, the event happens, the next state
 * and the marks of the action are looked at. On shared memory, nothing in the way.
 */
#include "check.h"
#include "engine_bed.h"

#define PAGE 5

enum column { COLUMN_UNARMED, COLUMN_ARMED, COLUMN_ANY };

struct row {
    enum page_state state;
    enum page_event event;
    enum column column;
    enum page_action action;
    enum page_state next;
};

#define ROW(state_, event_, column_, action_, next_) \
    {PAGE_##state_, PAGE_EVENT_##event_, COLUMN_##column_, PAGE_ACTION_##action_, PAGE_##next_},
static const struct row rows[] = {PAGE_STEPS(ROW)};

/* A page in this state, its version V1 where it has one. WANTED and OWNED need arming. */
static void bring_into(enum page_state state, bool armed)
{
    bed_begin(false);
    if (state == PAGE_CACHED)
        bed_news(ENGINE_DATA, PAGE, 1, V1);
    else if (state == PAGE_ZERO)
        bed_news(ENGINE_ZEROS, PAGE, 1, V1);
    else if (state == PAGE_POISONED)
        bed_news(ENGINE_POISON, PAGE, 1, V1);
    if (armed)
        engine_arm(&bed.engine);
    if (state == PAGE_WANTED)
        bed_fault(0, PAGE);
    else if (state == PAGE_OWNED)
        bed_news(ENGINE_DATA, PAGE, 1, V1);
    CHECK_EQ(bed_state(PAGE), state);
    if (state == PAGE_OWNED)
        sim_drop_mapping(&bed.sim, PAGE); /* so that it can fault */
    memset(&bed.stats, 0, sizeof(bed.stats));
    memset(bed.reports, 0, sizeof(bed.reports));
    memset(bed.sim.calls, 0, sizeof(bed.sim.calls));
    bed.ask_count = 0;
    bed_told();
}

/* News is of V2. A page is lost by an order: the news that it is takes only a page that is not here. */
static void happens(enum page_event event)
{
    switch (event) {
    case PAGE_EVENT_FAULT:
        bed_fault(1, PAGE);
        break;
    case PAGE_EVENT_DATA:
        bed_news(ENGINE_DATA, PAGE, 1, V2);
        break;
    case PAGE_EVENT_ZEROS:
        bed_news(ENGINE_ZEROS, PAGE, 1, V2);
        break;
    case PAGE_EVENT_FLOOR:
        bed_news(ENGINE_FLOOR, PAGE, 1, V2);
        break;
    case PAGE_EVENT_SWEEP:
        engine_sweep(&bed.engine, PAGE, 1);
        break;
    case PAGE_EVENT_REMOVED:
        engine_removed(&bed.engine, PAGE, 1);
        break;
    case PAGE_EVENT_CLEARED:
        engine_cleared(&bed.engine, PAGE, 1, &(uint64_t){0});
        break;
    default:
        engine_lost(&bed.engine, PAGE, 1);
        break;
    }
}

/* How often an action must have left each mark. */
static void check_marks(const struct row *row, bool armed)
{
    enum page_action action = row->action;

    CHECK_EQ(bed_counter(STATS_faults_early_total), action == PAGE_ACTION_PARK);
    CHECK_EQ(bed.ask_count, action == PAGE_ACTION_ASK);
    CHECK_EQ(bed.sim.calls[SIM_POPULATE], action == PAGE_ACTION_POPULATE);
    CHECK_EQ(bed.sim.calls[SIM_COPY], action == PAGE_ACTION_PLACE);
    CHECK_EQ(bed.sim.calls[SIM_MAP], action == PAGE_ACTION_MAP);
    CHECK_EQ(bed.sim.calls[SIM_ZERO], action == PAGE_ACTION_MAP_ZERO || (action == PAGE_ACTION_FRESH && armed));
    CHECK_EQ(bed.sim.calls[SIM_POISON], action == PAGE_ACTION_POISON && armed);
    CHECK_EQ(bed.sim.calls[SIM_PUNCH], (action == PAGE_ACTION_CLEAR && row->state == PAGE_CACHED) ||
                                           (action == PAGE_ACTION_POISON && row->event == PAGE_EVENT_LOST &&
                                            (row->state == PAGE_CACHED || row->state == PAGE_OWNED)));
    CHECK_EQ(bed_counter(STATS_dropped_pages_total), action == PAGE_ACTION_DROP);
    CHECK_EQ(bed.reports[ENGINE_REPORT_ALARM], action == PAGE_ACTION_ILLEGAL);
    CHECK_EQ(bed_untold(), (action == PAGE_ACTION_POISON && row->event == PAGE_EVENT_LOST) ||
                               action == PAGE_ACTION_FRESH);
    CHECK_EQ(bed_counter(STATS_wakes_total), 0); /* every call that maps has woken */
    if (action == PAGE_ACTION_RAISE)
        CHECK_EQ(bed_word(PAGE), page_word(row->next, row->state == PAGE_ZERO, V2));
    if (action == PAGE_ACTION_FORGET)
        CHECK_EQ(bed_word(PAGE), page_word(PAGE_MISSING, true, V2));
}

static void run_row(const struct row *row, bool armed)
{
    check_bad = 0;
    bring_into(row->state, armed);
    happens(row->event);
    CHECK_EQ(bed_state(PAGE), row->next);
    CHECK(!page_held(bed_word(PAGE)));
    check_marks(row, armed);
    if (row->action == PAGE_ACTION_PLACE || row->action == PAGE_ACTION_MAP || row->action == PAGE_ACTION_MAP_ZERO ||
        (row->action == PAGE_ACTION_FRESH && armed))
        CHECK(bed_reads(PAGE) != SIM_TORN); /* it is mapped */
    if (row->next == PAGE_POISONED && armed && row->action == PAGE_ACTION_POISON)
        CHECK_EQ(bed.sim.pages[PAGE].pte, SIM_PTE_POISON);
    printf("%s %s %s %s\n", check_bad ? "FAIL" : "ok  ", page_state_name(row->state), page_event_name(row->event),
           armed ? "armed" : "unarmed");
    *(check_bad ? &check_failed : &check_passed) += 1;
}

int main(void)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        if (rows[i].column != COLUMN_ARMED)
            run_row(&rows[i], false);
        if (rows[i].column != COLUMN_UNARMED)
            run_row(&rows[i], true);
    }
    bed_end();
    return check_done();
}
