/* SPDX-License-Identifier: Apache-2.0 */
/* The reference of sim_units.h. */
#include "sim_units.h"

#include "sim_told.h"

static const enum page_event events[] = {
    [ENGINE_DATA] = PAGE_EVENT_DATA,
    [ENGINE_ZEROS] = PAGE_EVENT_ZEROS,
    [ENGINE_POISON] = PAGE_EVENT_LOST,
    [ENGINE_FLOOR] = PAGE_EVENT_FLOOR,
};

void units_begin(struct units_told *told, const struct world *world)
{
    *told = (struct units_told){
        .model = {.armed = world_armed(world),
                  .private_memory = world->private_memory,
                  .without_poison = world->engine.without_poison,
                  .frozen_version = world->engine.frozen_version},
        .unit_pages = world->regions.unit_pages,
    };
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        told->words[page] = table_word(&world->table, page);
}

static uint64_t start_of(const struct units_told *told, uint64_t page)
{
    return page - page % told->unit_pages;
}

static uint64_t end_of(const struct units_told *told, uint64_t page)
{
    uint64_t end = start_of(told, page) + told->unit_pages;

    return end < WORLD_PAGES ? end : WORLD_PAGES;
}

/* How many pages of its unit are in this state. */
static uint64_t count_of(const struct units_told *told, uint64_t page, enum page_state state)
{
    uint64_t start = start_of(told, page), count = 0;

    for (uint64_t i = start; i < end_of(told, page); i++)
        count += page_state(told->words[i]) == state;
    return count;
}

static bool any_held(const struct units_told *told, uint64_t page)
{
    uint64_t start = start_of(told, page);
    bool held = false;

    for (uint64_t i = start; i < end_of(told, page); i++)
        held |= page_held(told->words[i]);
    return held;
}

static void lose_unit(struct units_told *told, uint64_t page)
{
    uint64_t start = start_of(told, page);

    for (uint64_t i = start; i < end_of(told, page); i++) {
        told->changed += page_state(told->words[i]) != PAGE_POISONED;
        told->words[i] = model_lost(&told->model, told->words[i]);
    }
}

/* Touched or removed: it is marked each time, or held back where the kernel cannot. */
static void touch_lost(struct units_told *told, uint64_t page)
{
    uint64_t start = start_of(told, page);

    lose_unit(told, page);
    told->poisoned += !page_held(told->words[start]) && !told->model.without_poison;
    for (uint64_t i = start; i < end_of(told, page); i++)
        told->words[i] = model_fault(&told->model, told->words[i]);
}

/* If it is whole: the guest's, if somebody waits for it, or there are bytes to be mapped. */
static bool settle(struct units_told *told, uint64_t page, bool waited)
{
    uint64_t start = start_of(told, page);
    bool whole = count_of(told, page, PAGE_MISSING) + count_of(told, page, PAGE_WANTED) == 0 && !any_held(told, page);

    if (count_of(told, page, PAGE_POISONED) > 0) {
        if (waited)
            touch_lost(told, page);
        return waited;
    }
    if (!whole || (!waited && count_of(told, page, PAGE_CACHED) == 0))
        return whole;
    for (uint64_t i = start; i < end_of(told, page); i++)
        told->words[i] = page_word(PAGE_OWNED, false, page_version(told->words[i])) |
                         (told->words[i] & (PAGE_FRESH | PAGE_OWED));
    return true;
}

static void ask_cell(struct units_told *told, uint64_t page, enum page_event event)
{
    told->cells[page_state(told->words[page])][event][told->model.armed]++;
}

static void news_of_page(struct units_told *told, enum engine_kind kind, uint64_t page, uint64_t version)
{
    uint64_t word = told->words[page];
    struct model_outcome outcome = model_news(&told->model, word, kind, version);
    bool waited = page_state(word) == PAGE_WANTED && kind == ENGINE_ZEROS;

    if (outcome.cell)
        ask_cell(told, page, events[kind]);
    told->taken += outcome.class == MODEL_TAKEN;
    told->dropped += outcome.class == MODEL_DROPPED;
    told->stale += outcome.class == MODEL_STALE || (outcome.class == MODEL_ALARM && kind != ENGINE_FLOOR);
    told->alarm |= outcome.class == MODEL_ALARM;
    if (outcome.class != MODEL_TAKEN)
        return;
    told->words[page] = outcome.word;
    if (kind == ENGINE_POISON) {
        lose_unit(told, page);
    } else if (told->model.armed && kind != ENGINE_FLOOR) {
        /* what goes over at once for a page by itself has to wait for the others here, and what is in doubt with it */
        told->words[page] = page_word(kind == ENGINE_DATA ? PAGE_CACHED : PAGE_ZERO, waited && page_stale(word), version);
        settle(told, page, waited);
    }
}

void units_news(struct units_told *told, enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version)
{
    for (uint64_t page = first; page < first + count; page++)
        news_of_page(told, kind, page, version);
}

static bool in_doubt(uint64_t word)
{
    return page_stale(word) || page_held(word) || page_state(word) == PAGE_CACHED;
}

static bool clears(uint64_t word)
{
    return page_state(word) == PAGE_MISSING || page_state(word) == PAGE_CACHED;
}

static void removed_of_unit(struct units_told *told, uint64_t page, uint64_t end)
{
    bool waited = false;

    for (uint64_t i = page; i < end; i++) {
        uint64_t word = told->words[i];
        ask_cell(told, i, PAGE_EVENT_REMOVED);
        waited |= page_state(word) == PAGE_WANTED;
        if (clears(word))
            told->words[i] = page_word(PAGE_ZERO, false, page_version(word));
        else if (page_state(word) == PAGE_WANTED)
            told->words[i] = page_word(PAGE_ZERO, in_doubt(word), page_version(word));
        else if (page_state(word) == PAGE_POISONED)
            settle(told, i, true);
    }
    settle(told, page, waited);
}

/* All that is removed of a unit is claimed before the unit is looked at: a part of what is yet to go is not mapped. */
void units_removed(struct units_told *told, uint64_t first, uint64_t count)
{
    uint64_t end = first + count, next;

    for (uint64_t page = first; told->model.armed && page < end; page = next) {
        next = start_of(told, page) + told->unit_pages;
        next = next < end ? next : end;
        removed_of_unit(told, page, next);
    }
}

void units_fault(struct units_told *told, uint64_t page)
{
    uint64_t start = start_of(told, page);

    if (!any_held(told, page))
        ask_cell(told, page, PAGE_EVENT_FAULT);
    if (!told->model.armed || settle(told, page, true) || any_held(told, page))
        return;
    for (uint64_t i = start; i < end_of(told, page); i++)
        if (page_state(told->words[i]) == PAGE_MISSING) {
            told->words[i] = model_fault(&told->model, told->words[i]);
            told->asks++;
        }
}

void units_lost(struct units_told *told, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++)
        if (page_state(told->words[page]) != PAGE_POISONED) {
            ask_cell(told, page, PAGE_EVENT_LOST);
            lose_unit(told, page);
        }
}

static bool clings(const struct units_told *told, uint64_t start)
{
    bool any = false;

    for (uint64_t i = start; i < end_of(told, start); i++)
        any |= told->model.private_memory && page_state(told->words[i]) == PAGE_POISONED && page_stale(told->words[i]);
    return any;
}

void units_cleared(struct units_told *told, uint64_t first, uint64_t looked)
{
    for (uint64_t page = first; page < first + looked; page++) {
        uint64_t start = start_of(told, page);
        if (page_state(told->words[page]) != PAGE_POISONED || clings(told, start))
            continue;
        ask_cell(told, page, PAGE_EVENT_CLEARED);
        for (uint64_t i = start; i < end_of(told, page); i++) {
            told->changed += page_state(told->words[i]) == PAGE_POISONED;
            told->words[i] = model_cleared(&told->model, told->words[i]);
        }
    }
}

void units_told_of(struct units_told *told, const struct world *world, uint64_t page)
{
    uint64_t start = start_of(told, page), owed = PAGE_OWED | PAGE_HAD;

    for (uint64_t i = start; i < end_of(told, page); i++)
        told->words[i] = (told->words[i] & ~owed) | (table_word(&world->table, i) & owed);
}

void units_swept(struct units_told *told, uint64_t first, uint64_t count)
{
    for (uint64_t page = start_of(told, first); page < first + count; page += told->unit_pages)
        if (told->model.armed)
            settle(told, page, false);
}

void units_check(struct world *world, const struct units_told *told)
{
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        told_word(world, page, told->words[page]);
    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        for (int event = 0; event < PAGE_EVENT_COUNT; event++)
            for (int armed = 0; armed < 2; armed++)
                world->cells[state][event][armed] += told->cells[state][event][armed];
}
