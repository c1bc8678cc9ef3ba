/* SPDX-License-Identifier: Apache-2.0 */
/* The words, and what is counted of them: see place.h. Every change of a word after the start goes through here. */
#include "place.h"

/* Private memory has nothing of ours that could be emptied. */
bool place_unclean(const struct engine *engine, uint64_t word)
{
    return page_stale(word) && !engine->private_memory &&
           ((page_state(word) == PAGE_ZERO && !page_held(word)) || page_state(word) == PAGE_POISONED);
}

/* Keeps it from settling; a poisoned page does not. */
static bool holds_up(uint64_t word)
{
    return page_held(word) && page_state(word) != PAGE_POISONED;
}

static bool clearing(uint64_t word)
{
    return page_owed(word) && page_state(word) != PAGE_POISONED;
}

static void note_outstanding(struct engine *engine)
{
    uint64_t now = counts_of(&engine->counts, PAGE_WANTED);

    stats_set(engine->stats, STATS_asks_outstanding, now);
    if (now > stats_get(engine->stats, STATS_asks_outstanding_max))
        stats_set(engine->stats, STATS_asks_outstanding_max, now);
}

void place_store(struct engine *engine, uint64_t page, uint64_t after)
{
    uint64_t before = table_word(engine->table, page);
    enum page_state was = page_state(before), is = page_state(after);

    table_set(engine->table, page, after);
    if (page_version(after) != page_version(before))
        engine->sum += manifest_of(page, page_version(after)) - manifest_of(page, page_version(before));
    engine->unclean_count += (uint64_t)place_unclean(engine, after) - (uint64_t)place_unclean(engine, before);
    engine->held_count += (uint64_t)holds_up(after) - (uint64_t)holds_up(before);
    engine->owed_count += (uint64_t)page_owed(after) - (uint64_t)page_owed(before);
    engine->clearing_count += (uint64_t)clearing(after) - (uint64_t)clearing(before);
    if (was != is) {
        counts_move(&engine->counts, was, is);
        if (was == PAGE_WANTED || is == PAGE_WANTED)
            note_outstanding(engine);
    }
}

void place_word(struct engine *engine, uint64_t page, enum page_state state, bool stale, uint64_t version)
{
    uint64_t before = table_word(engine->table, page), keeps = PAGE_OWED;

    if (state != PAGE_POISONED)
        keeps |= PAGE_FRESH;
    else if (page_state(before) == PAGE_POISONED)
        keeps |= PAGE_HELD | PAGE_HAD;
    place_store(engine, page, page_word(state, stale, version) | (before & keeps));
}

void place_count(struct engine *engine)
{
    uint64_t pages[PAGE_STATE_COUNT];

    table_count(engine->table, pages);
    counts_set(&engine->counts, pages);
    engine->sum = table_manifest(engine->table);
    engine->unclean_count = engine->held_count = engine->owed_count = engine->clearing_count = 0;
    for (uint64_t page = 0; page < engine->table->page_count; page++) {
        uint64_t word = table_word(engine->table, page);
        engine->unclean_count += place_unclean(engine, word);
        engine->held_count += holds_up(word);
        engine->owed_count += page_owed(word);
        engine->clearing_count += clearing(word);
    }
    note_outstanding(engine);
}

void place_hold(struct engine *engine, uint64_t page, const char *text)
{
    uint64_t word = table_word(engine->table, page);

    if (page_held(word))
        return;
    place_store(engine, page, word | PAGE_HELD);
    stats_add(engine->stats, STATS_alarms_total, 1);
    engine->out.report(engine->out.owner, ENGINE_REPORT_ALARM, page, 0, text);
}

void place_owned(struct engine *engine, uint64_t page, uint64_t count, uint64_t version)
{
    for (uint64_t i = 0; i < count; i++)
        place_word(engine, page + i, PAGE_OWNED, false, version);
}
