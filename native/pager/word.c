/* SPDX-License-Identifier: Apache-2.0 */
/* The words, and what is counted of them: see place.h. Every change of a word after the start goes through here. */
#include "place.h"

bool place_unclean(uint64_t word)
{
    return page_stale(word) && !page_held(word) &&
           (page_state(word) == PAGE_ZERO || page_state(word) == PAGE_POISONED);
}

static void store(struct engine *engine, uint64_t page, uint64_t before, uint64_t after)
{
    table_set(engine->table, page, after);
    if (page_version(after) != page_version(before))
        engine->sum += manifest_of(page, page_version(after)) - manifest_of(page, page_version(before));
    engine->unclean_count += (uint64_t)place_unclean(after) - (uint64_t)place_unclean(before);
    engine->held_count += (uint64_t)page_held(after) - (uint64_t)page_held(before);
}

static void note_outstanding(struct engine *engine)
{
    uint64_t now = engine->counts[PAGE_WANTED];

    stats_set(engine->stats, STATS_asks_outstanding, now);
    if (now > stats_get(engine->stats, STATS_asks_outstanding_max))
        stats_set(engine->stats, STATS_asks_outstanding_max, now);
}

void place_word(struct engine *engine, uint64_t page, enum page_state state, bool stale, uint64_t version)
{
    uint64_t before = table_word(engine->table, page), after = page_word(state, stale, version);

    store(engine, page, before, after);
    if (page_state(before) != state) {
        engine->counts[page_state(before)]--;
        engine->counts[state]++;
        if (page_state(before) == PAGE_WANTED || state == PAGE_WANTED)
            note_outstanding(engine);
    }
}

void place_count(struct engine *engine)
{
    table_count(engine->table, engine->counts);
    engine->sum = table_manifest(engine->table);
    engine->unclean_count = 0;
    engine->held_count = 0;
    for (uint64_t page = 0; page < engine->table->page_count; page++) {
        uint64_t word = table_word(engine->table, page);
        engine->unclean_count += place_unclean(word);
        engine->held_count += page_held(word);
    }
    note_outstanding(engine);
}

void place_hold(struct engine *engine, uint64_t page, const char *text)
{
    uint64_t word = table_word(engine->table, page);

    if (page_held(word))
        return;
    store(engine, page, word, word | PAGE_HELD);
    stats_add(engine->stats, STATS_alarms_total, 1);
    engine->out.report(engine->out.owner, ENGINE_REPORT_ALARM, page, 0, text);
}

void place_owned(struct engine *engine, uint64_t page, uint64_t count, uint64_t version)
{
    for (uint64_t i = 0; i < count; i++)
        place_word(engine, page + i, PAGE_OWNED, false, version);
}
