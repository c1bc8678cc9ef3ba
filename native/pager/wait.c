/* SPDX-License-Identifier: Apache-2.0 */
/* Parking and asking: see wait.h. */
#include "wait.h"

#include "unit.h"

#define LATER_TRIES 32

void wait_note(struct engine *engine, uint64_t page, uint64_t count, uint64_t word, enum page_event event,
               enum page_action action)
{
    struct trace_step step = {
        .now_ns = engine->now_ns,
        .page = page,
        .version = page_version(word),
        .state = (uint8_t)page_state(word),
        .event = (uint8_t)event,
        .action = (uint8_t)action,
        .result = (uint8_t)engine->last_result,
        .page_count = (uint32_t)count,
    };

    trace_add(engine->trace, &step);
}

void wait_alarm(struct engine *engine, uint64_t page, uint64_t value, const char *text)
{
    stats_add(engine->stats, STATS_alarms_total, 1);
    engine->out.report(engine->out.owner, ENGINE_REPORT_ALARM, page, value, text);
}

uint64_t wait_clock_ns(const struct engine *engine)
{
    return engine->out.clock_ns != NULL ? engine->out.clock_ns(engine->out.owner) : engine->now_ns;
}

/* -------------------------------------------------------------------------------------------------------- parking */

/* The place of a page in the list, or parked_count. */
static uint32_t find_parked(const struct engine *engine, uint64_t page, bool ask)
{
    uint32_t i = 0;

    while (i < engine->parked_count && (engine->parked[i].page != page || engine->parked[i].ask != ask))
        i++;
    return i;
}

bool wait_parked(const struct engine *engine, uint64_t page)
{
    return find_parked(engine, page, false) < engine->parked_count;
}

/* Where there is no place left: an ask is remembered for all, a fault is woken, so that it comes again. */
static void park(struct engine *engine, uint64_t page, bool ask, uint64_t due_ns)
{
    uint32_t at = find_parked(engine, page, ask);

    if (at < ENGINE_PARKED_MAX) {
        engine->parked[at] = (struct engine_parked){.page = page, .due_ns = due_ns, .ask = ask};
        engine->parked_count += at == engine->parked_count;
    } else if (ask) {
        engine->rescan_wanted = true;
        engine->rescan_due_ns = due_ns;
    } else {
        place_wake(engine, page, 1);
    }
}

uint64_t wait_full_due_ns(const struct engine *engine)
{
    return engine->full && engine->full_until_ns > engine->now_ns ? engine->full_until_ns
                                                                  : engine->now_ns + ENGINE_FULL_WAIT_MIN_NS;
}

/* Outside a batch: reads and works on what is unread. True: try again. */
bool wait_drain(struct engine *engine, int *tries)
{
    bool again = !engine->in_turn && !engine->gone && (*tries)++ < LATER_TRIES;

    if (again)
        engine_turn(engine, engine->now_ns);
    return again;
}

/* ----------------------------------------------------------------------------------------------------------- asks */

void wait_ask(struct engine *engine, uint64_t page)
{
    struct engine_recent_ask *recent = &engine->recent_asks[page & (ENGINE_RECENT_ASKS - 1)];

    *recent = (struct engine_recent_ask){.page_plus_1 = page + 1, .read_ns = engine->read_ns};
    wait_ask_with(engine, page);
}

void wait_ask_with(struct engine *engine, uint64_t page)
{
    stats_add(engine->stats, STATS_asks_total, 1);
    engine->out.ask(engine->out.owner, page);
}

void wait_ask_again(struct engine *engine, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);

    if (page_state(word) == PAGE_WANTED && !page_held(word)) {
        stats_add(engine->stats, STATS_asks_again_total, 1);
        engine->out.ask(engine->out.owner, page);
    }
}

/* Pages that were WANTED and are the guest's now. */
void wait_observe(struct engine *engine, uint64_t page, uint64_t count)
{
    uint64_t now_ns = 0;

    for (uint64_t i = 0; i < count; i++) {
        struct engine_recent_ask *recent = &engine->recent_asks[(page + i) & (ENGINE_RECENT_ASKS - 1)];
        if (recent->page_plus_1 != page + i + 1)
            continue;
        now_ns = now_ns == 0 ? wait_clock_ns(engine) : now_ns;
        stats_observe(engine->stats, STATS_fault_fetch_ns, now_ns > recent->read_ns ? now_ns - recent->read_ns : 0);
        recent->page_plus_1 = 0;
    }
}

void engine_ask_later(struct engine *engine, uint64_t page, uint64_t due_ns)
{
    if (page < engine->table->page_count && page_state(table_word(engine->table, page)) == PAGE_WANTED)
        park(engine, page, true, due_ns);
}

void engine_asks_lost(struct engine *engine)
{
    uint64_t left = counts_of(&engine->counts, PAGE_WANTED);
    uint32_t kept = 0;

    for (uint32_t i = 0; i < engine->parked_count; i++)
        if (!engine->parked[i].ask)
            engine->parked[kept++] = engine->parked[i];
    engine->parked_count = kept;
    engine->rescan_wanted = false;
    for (uint64_t page = 0; left > 0 && page < engine->table->page_count; page++)
        if (page_state(table_word(engine->table, page)) == PAGE_WANTED) {
            wait_ask_again(engine, page);
            left--;
        }
}

/* ------------------------------------------------------------------------------------------------ waiting threads */

static enum placing resolve(struct engine *engine, uint64_t page, const struct page_step *step)
{
    uint64_t word = table_word(engine->table, page), holes;
    enum placing status = PLACING_DONE;

    switch (step->action) {
    case PAGE_ACTION_MAP:
        if (page_state(word) == PAGE_CACHED) /* bytes are whole: claimed, and only then mapped */
            place_word(engine, page, PAGE_OWNED, false, page_version(word));
        holes = stats_get(engine->stats, STATS_absent_total);
        status = place_mapped(engine, page, 1).status;
        holes = stats_get(engine->stats, STATS_absent_total) - holes;
        stats_add(engine->stats,
                  page_state(word) == PAGE_CACHED ? STATS_absent_cached_total : STATS_absent_owned_total, holes);
        break;
    case PAGE_ACTION_MAP_ZERO:
        status = place_zero(engine, page);
        break;
    case PAGE_ACTION_POISON:
        status = place_poison(engine, page);
        break;
    default:
        wait_alarm(engine, page, step->action, "a fault met an action that is none of its");
        break;
    }
    if (status != PLACING_LATER) /* tries that are repeated at once would fill the trace */
        wait_note(engine, page, 1, word, PAGE_EVENT_FAULT, (enum page_action)step->action);
    return status;
}

bool wait_settle(struct engine *engine, uint64_t page)
{
    enum placing status;
    struct page_step step;
    uint64_t word;
    int tries = 0;

    page = regions_unit(engine->regions, page);
    do { /* judged each time: work on events in between may have changed the word */
        word = table_word(engine->table, page);
        step = page_step(page_state(word), PAGE_EVENT_FAULT, wait_armed(engine));
        if (page_held(word) || (unit_many(engine) && !unit_whole(engine, page)))
            return false;
        status = unit_many(engine) ? unit_resolve(engine, page) : resolve(engine, page, &step);
    } while (status == PLACING_LATER && wait_drain(engine, &tries));
    if (status == PLACING_LATER) {
        wait_note(engine, page, 1, word, PAGE_EVENT_FAULT, (enum page_action)step.action);
        park(engine, page, false, engine->in_turn ? engine->now_ns : engine->now_ns + ENGINE_LATER_NS);
    } else if (status == PLACING_FULL) {
        park(engine, page, false, wait_full_due_ns(engine));
    }
    return status == PLACING_DONE;
}

static void retry(struct engine *engine, const struct engine_parked *parked)
{
    if (parked->ask)
        wait_ask_again(engine, parked->page);
    else if (wait_armed(engine))
        wait_settle(engine, parked->page);
}

void engine_tick(struct engine *engine, uint64_t now_ns)
{
    uint32_t looks = engine->parked_count; /* what is parked meanwhile is for the next tick */

    engine->now_ns = now_ns;
    for (uint32_t i = 0; looks > 0 && i < engine->parked_count && !engine->gone; looks--) {
        struct engine_parked parked = engine->parked[i];
        if (parked.due_ns > now_ns) {
            i++;
            continue;
        }
        engine->parked[i] = engine->parked[--engine->parked_count];
        retry(engine, &parked);
    }
    if (engine->rescan_wanted && engine->rescan_due_ns <= now_ns && !engine->gone)
        engine_asks_lost(engine);
    if (engine->unclean_count > 0 && engine->unclean_due_ns <= now_ns && !engine->gone) {
        place_clean(engine);
        engine->unclean_due_ns = now_ns + ENGINE_FULL_WAIT_MIN_NS;
    }
    if (engine->owed_count > 0 && engine->owed_due_ns <= now_ns && !engine->gone) {
        uint64_t owed_count = engine->owed_count;
        place_owed(engine);
        engine->owed_due_ns = now_ns + (engine->owed_count < owed_count ? ENGINE_LATER_NS : ENGINE_FULL_WAIT_MIN_NS);
    }
}

uint64_t engine_next_ns(const struct engine *engine)
{
    uint64_t next_ns = UINT64_MAX;

    for (uint32_t i = 0; i < engine->parked_count; i++)
        if (engine->parked[i].due_ns < next_ns)
            next_ns = engine->parked[i].due_ns;
    if (engine->rescan_wanted && engine->rescan_due_ns < next_ns)
        next_ns = engine->rescan_due_ns;
    if (engine->unclean_count > 0 && engine->unclean_due_ns < next_ns)
        next_ns = engine->unclean_due_ns;
    if (engine->owed_count > 0 && engine->owed_due_ns < next_ns)
        next_ns = engine->owed_due_ns;
    return engine->gone ? UINT64_MAX : next_ns;
}
