/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of the engine, held against the reference: see sim_told.h. */
#include "sim_told.h"

#include "pager/log.h"
#include "sim_units.h"

uint64_t told_content(uint64_t page, uint64_t version)
{
    uint64_t state = page * UINT64_C(0x100000001b3) ^ version << 17, token = sim_random(&state);
    uint64_t unit = page / WORLD_UNIT_PAGES * UINT64_C(0x1000193) ^ version << 13; /* some are nothing but zeros */

    return token % 4 == 0 || sim_random(&unit) % 8 == 0 ? 0 : token;
}

static struct model_world model_of(const struct world *world)
{
    return (struct model_world){
        .armed = world_armed(world),
        .private_memory = world->private_memory,
        .without_poison = world->engine.without_poison,
        .frozen_version = world->engine.frozen_version,
    };
}

/* Whether something stood in the way of an engine call, or another was made inside it. */
struct calm {
    uint64_t troubles, reads;
};

static struct calm calm_before(const struct world *world)
{
    return (struct calm){.troubles = world->sim.troubles, .reads = world->sim.calls[SIM_READ]};
}

static bool was_calm(const struct world *world, const struct calm *before, uint64_t own_reads)
{
    return world->sim.troubles == before->troubles && world->sim.calls[SIM_READ] == before->reads + own_reads;
}

/* A cell was entered, and left as the reference says; the table must say so too. An alarm is never legal. */
static void entered_as(struct world *world, uint64_t page, uint64_t word, enum page_event event, uint64_t next,
                       bool legal)
{
    bool armed = world_armed(world);
    struct page_step step = page_step(page_state(word), event, armed);

    world->cells[page_state(word)][event][armed]++;
    if (step.next != page_state(next))
        world_failed(world, page, "the table names another next state");
    if ((step.action != PAGE_ACTION_ILLEGAL) != legal)
        world_failed(world, page, "the table and the reference do not agree on what can be");
}

static void entered(struct world *world, uint64_t page, uint64_t word, enum page_event event, uint64_t next)
{
    entered_as(world, page, word, event, next, true);
}

/* A poisoned page that is touched, or removed, is marked each time. */
static bool is_marked(const struct model_world *model, uint64_t word)
{
    return model->armed && page_state(word) == PAGE_POISONED && !page_held(word) && !model->without_poison;
}

void told_word(struct world *world, uint64_t page, uint64_t must_be)
{
    uint64_t word = table_word(&world->table, page), ignored = 0;

    if (page_state(must_be) == PAGE_POISONED && world->private_memory)
        ignored |= PAGE_STALE;
    if (page_state(must_be) == PAGE_POISONED && page_stale(word) && world->lets_go) /* and until then it is not told */
        ignored |= PAGE_OWED | PAGE_HAD;
    if (log_room(&world->table) <= world->engine.clearing_count) /* it is told later */
        ignored |= PAGE_OWED | PAGE_HAD;
    if ((word & ~ignored) != (must_be & ~ignored))
        world_failed(world, page, "the step left another word than it must");
}

static bool many(const struct world *world)
{
    return world->regions.unit_pages > 1;
}

/* ------------------------------------------------------------------------------------------------------------ news */

void told_note_lost(struct world *world, uint64_t page)
{
    struct world_page *facts = &world->pages[page];

    if (facts->lost && page_state(table_word(&world->table, page)) != PAGE_POISONED) {
        if (!facts->may_clear)
            world_failed(world, page, "poison ends, and nobody has cleared it");
        facts->lost = facts->lost_mapped = facts->by_order = false;
        facts->expected = 0;
        facts->clears++;
    }
    if (page_state(table_word(&world->table, page)) != PAGE_POISONED || facts->lost)
        return;
    facts->lost = true;
    facts->losses++;
    facts->lost_mapped = world->sim.pages[page].pte == SIM_PTE_MAPPED; /* nothing of ours can take that away */
    if (facts->lost_mapped && !world->private_memory && !world->crashes && world->sim.full_permille == 0)
        world_failed(world, page, "poisoned, and still mapped");
}

/* Whatever shares a unit with these pages is lost and cleared with them. */
static void note_lost_units(struct world *world, uint64_t first, uint64_t count)
{
    uint64_t end = regions_unit(&world->regions, first + count - 1) + world->regions.unit_pages;

    for (uint64_t page = regions_unit(&world->regions, first); page < end; page++)
        told_note_lost(world, page);
}

static void allow_clearing(struct world *world, uint64_t first, uint64_t count, bool allowed)
{
    uint64_t end = regions_unit(&world->regions, first + count - 1) + world->regions.unit_pages;

    for (uint64_t page = regions_unit(&world->regions, first); page < end; page++)
        world->pages[page].may_clear = allowed && page_state(table_word(&world->table, page)) == PAGE_POISONED;
}

struct told {
    uint64_t first, count, version;
    enum engine_kind kind;
    uint64_t taken, dropped, stale;
    struct model_outcome outcomes[WORLD_PAGES];
    struct units_told units; /* instead, where a page is not alone in its unit */
};

static const enum page_event events[] = {
    [ENGINE_DATA] = PAGE_EVENT_DATA,
    [ENGINE_ZEROS] = PAGE_EVENT_ZEROS,
    [ENGINE_POISON] = PAGE_EVENT_LOST,
    [ENGINE_FLOOR] = PAGE_EVENT_FLOOR,
};

static void foretell_units(struct world *world, struct told *told)
{
    units_begin(&told->units, world);
    units_news(&told->units, told->kind, told->first, told->count, told->version);
    told->taken = told->units.taken;
    told->dropped = told->units.dropped;
    told->stale = told->units.stale;
    world->alarm_expected = told->units.alarm;
}

static void foretell(struct world *world, struct told *told)
{
    struct model_world model = model_of(world);

    if (many(world)) {
        foretell_units(world, told);
        return;
    }

    world->alarm_expected = false;
    for (uint64_t i = 0; i < told->count; i++) {
        uint64_t word = table_word(&world->table, told->first + i);
        told->outcomes[i] = model_news(&model, word, told->kind, told->version);
        told->taken += told->outcomes[i].class == MODEL_TAKEN;
        told->dropped += told->outcomes[i].class == MODEL_DROPPED;
        told->stale += told->outcomes[i].class == MODEL_STALE;
        if (told->outcomes[i].class == MODEL_ALARM && told->kind != ENGINE_FLOOR)
            told->stale++; /* a version above all is refused, too */
        world->alarm_expected |= told->outcomes[i].class == MODEL_ALARM;
    }
}

void told_news(struct world *world, enum engine_kind kind, uint64_t first, uint64_t count, uint64_t version)
{
    struct engine_news news = {.kind = kind, .first_page = first, .page_count = count, .version = version};
    struct told told = {.first = first, .count = count, .version = version, .kind = kind};
    struct calm before = calm_before(world);
    uint64_t dropped = stats_get(&world->stats, STATS_dropped_pages_total);
    uint64_t stale = stats_get(&world->stats, STATS_stale_dropped_pages_total), words[WORLD_PAGES], taken;

    foretell(world, &told);
    for (uint64_t i = 0; i < count; i++) {
        words[i] = table_word(&world->table, first + i);
        sim_stamp(world->bytes + i * PAGE_BYTES, told_content(first + i, version));
        if (page_state(words[i]) == PAGE_WANTED)
            world->pages[first + i].again = true; /* unless it is taken now, it must be asked again */
    }
    news.bytes = kind == ENGINE_DATA ? world->bytes : NULL;
    world->alarm_seen = false;
    taken = engine_news(&world->engine, &news, world->now_ns);
    if (was_calm(world, &before, 0) && !world->dead) {
        if (taken != told.taken || stats_get(&world->stats, STATS_dropped_pages_total) - dropped != told.dropped ||
            stats_get(&world->stats, STATS_stale_dropped_pages_total) - stale != told.stale)
            world_failed(world, first, "news is taken, dropped or refused that must not be");
        if (world->alarm_seen != world->alarm_expected)
            world_failed(world, first, "an alarm is missing");
        if (many(world))
            units_check(world, &told.units);
        for (uint64_t i = 0; i < count && !many(world); i++) {
            told_word(world, first + i, told.outcomes[i].word);
            if (told.outcomes[i].cell)
                entered_as(world, first + i, words[i], events[kind], told.outcomes[i].word,
                           told.outcomes[i].class != MODEL_ALARM);
        }
    }
    note_lost_units(world, first, count);
    for (uint64_t i = 0; i < count; i++) /* asked in the middle of it, and then its bytes could not be kept either */
        if (page_state(words[i]) == PAGE_MISSING && page_state(table_word(&world->table, first + i)) == PAGE_WANTED)
            world->pages[first + i].again = true;
    world->alarm_expected = false;
}

/* -------------------------------------------------------------------------------------------------------- removals */

void told_removed(struct world *world, uint64_t first, uint64_t count)
{
    struct model_world model = model_of(world);
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES], poison_calls = world->sim.calls[SIM_POISON], poisoned = 0;
    struct units_told units;

    for (uint64_t i = 0; i < count; i++)
        words[i] = table_word(&world->table, first + i);
    units_begin(&units, world);
    units_removed(&units, first, count);
    engine_removed(&world->engine, first, count);
    if (!was_calm(world, &before, 0))
        return;
    if (many(world)) {
        units_check(world, &units);
        poisoned = units.poisoned;
    }
    for (uint64_t i = 0; i < count && !many(world); i++) {
        uint64_t next = model_removed(&model, words[i]);
        told_word(world, first + i, next);
        entered(world, first + i, words[i], PAGE_EVENT_REMOVED, next);
        poisoned += is_marked(&model, words[i]);
    }
    if (world->sim.calls[SIM_POISON] - poison_calls != poisoned)
        world_failed(world, first, "a poisoned page that is removed is poisoned again");
}

/* ---------------------------------------------------------------------------------------------- poison, by order */

void told_lost(struct world *world, uint64_t first, uint64_t count)
{
    struct model_world model = model_of(world);
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES], changed, must_change = 0;
    struct units_told units;

    for (uint64_t i = 0; i < count; i++) {
        words[i] = table_word(&world->table, first + i);
        world->pages[first + i].by_order = true;
        must_change += page_state(words[i]) != PAGE_POISONED;
    }
    units_begin(&units, world);
    units_lost(&units, first, count);
    changed = engine_lost(&world->engine, first, count);
    if (was_calm(world, &before, 0)) {
        if (changed != (many(world) ? units.changed : must_change))
            world_failed(world, first, "more or less is poisoned than was ordered");
        if (many(world))
            units_check(world, &units);
        for (uint64_t i = 0; i < count && !many(world); i++) {
            uint64_t next = model_lost(&model, words[i]);
            told_word(world, first + i, next);
            if (page_state(words[i]) != PAGE_POISONED)
                entered(world, first + i, words[i], PAGE_EVENT_LOST, next);
        }
    }
    note_lost_units(world, first, count);
}

/* It goes as far as the log has room. */
void told_cleared(struct world *world, uint64_t first, uint64_t count)
{
    struct model_world model = model_of(world);
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES], looked, changed = 0, must_change = 0;
    struct units_told units;

    units_begin(&units, world);
    for (uint64_t i = 0; i < count; i++)
        words[i] = table_word(&world->table, first + i);
    allow_clearing(world, first, count, true);
    looked = engine_cleared(&world->engine, first, count, &changed);
    if (was_calm(world, &before, 0)) {
        if (looked < count && log_room(&world->table) > world->engine.clearing_count + world->regions.unit_pages)
            world_failed(world, first + looked, "not cleared, and nothing was in the way");
        if (many(world)) {
            units_cleared(&units, first, looked);
            if (looked < count) /* where it stopped, what was owed of the loss may have been told */
                units_told_of(&units, world, first + looked);
            units_check(world, &units);
            must_change = units.changed;
        }
        for (uint64_t i = 0; i < looked && !many(world); i++) {
            uint64_t next = model_cleared(&model, words[i]);
            told_word(world, first + i, next);
            must_change += page_state(next) != page_state(words[i]);
            if (page_state(next) != page_state(words[i]))
                entered(world, first + i, words[i], PAGE_EVENT_CLEARED, next);
        }
        if (changed != must_change)
            world_failed(world, first, "more or less is cleared than was lost");
    }
    note_lost_units(world, first, count);
    allow_clearing(world, first, count, false);
}

/* What a reader knows it keeps for good; a worker that dies before it has noted that tells the same once more. */
void told_log(struct world *world, enum table_log_reader reader)
{
    struct world_reader *knows = &world->readers[reader];
    struct table_log_entry entry;
    uint64_t number;
    bool lost;

    if (!log_next(&world->table, reader, &entry, &number))
        return;
    lost = entry.kind == LOG_POISONED;
    if (number == knows->number && world->crashes) {
        if (entry.page != knows->newest.page || entry.kind != knows->newest.kind)
            world_failed(world, entry.page, "two entries of the poison log have one number");
    } else {
        if (entry.page >= WORLD_PAGES || number != knows->number + 1)
            world_failed(world, entry.page, "an entry of the poison log is missing, or comes twice");
        if (lost != (knows->losses[entry.page] == knows->clears[entry.page]))
            world_failed(world, entry.page, "told as poisoned or cleared, and it was so before");
        if (entry.sequence != knows->sequence + lost)
            world_failed(world, entry.page, "poisoned pages are not counted");
        knows->losses[entry.page] += lost;
        knows->clears[entry.page] += !lost;
        knows->sequence = entry.sequence;
        knows->number = number;
        knows->newest = entry;
    }
    world_pass(world, WORLD_TELL, SIM_BEFORE);
    log_taken(&world->table, reader);
    world_pass(world, WORLD_TELL, SIM_AFTER);
}

uint64_t told_drop(struct world *world, uint64_t first, uint64_t count)
{
    struct model_world model = model_of(world);
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES], done;
    struct units_told units;

    for (uint64_t i = 0; i < count; i++)
        words[i] = table_word(&world->table, first + i);
    units_begin(&units, world);
    units_removed(&units, first, count);
    world->sim.drop_first = first;
    world->sim.drop_count = count;
    done = engine_drop(&world->engine, first, count);
    world->sim.drop_count = 0;
    if (!was_calm(world, &before, 0))
        return done;
    if (done != count)
        world_failed(world, first, "pages are not dropped, and nothing was in the way");
    if (many(world))
        units_check(world, &units);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t next = model_removed(&model, words[i]);
        if (world->sim.pages[first + i].present && !world->sim.pages[first + i].room)
            world_failed(world, first + i, "dropped, and its bytes are still there");
        if (many(world))
            continue;
        told_word(world, first + i, next);
        entered(world, first + i, words[i], PAGE_EVENT_REMOVED, next);
    }
    return done;
}

/* --------------------------------------------------------------------------------------------------- engine's turns */

/* The reference goes through the batch as the engine must: removals first. */
static void foretell_batch(struct world *world, uint64_t *words, uint64_t *poisoned)
{
    struct model_world model = model_of(world);
    const struct kernel_event *batch = world->sim.newest_batch;
    uint64_t page, first, count;

    for (int i = 0; i < world->sim.newest_batch_count; i++) {
        uint64_t start = batch[i].start;
        if (batch[i].kind != KERNEL_EVENT_REMOVE || !world->private_memory)
            continue;
        while ((count = regions_pages(&world->regions, &start, batch[i].end, &first)) > 0)
            for (page = first; page < first + count; page++) {
                uint64_t next = model_removed(&model, words[page]);
                *poisoned += is_marked(&model, words[page]);
                entered(world, page, words[page], PAGE_EVENT_REMOVED, next);
                words[page] = next;
            }
    }
    for (int i = 0; i < world->sim.newest_batch_count; i++)
        if (batch[i].kind == KERNEL_EVENT_FAULT && regions_page(&world->regions, batch[i].address, &page)) {
            uint64_t next = model_fault(&model, words[page]);
            *poisoned += is_marked(&model, words[page]);
            if (!page_held(words[page]))
                entered(world, page, words[page], PAGE_EVENT_FAULT, next);
            words[page] = next;
        }
}

/* Whatever stands in the way of calls: a batch asks for what is missing, unless a removal of the same batch says that
 * it is zero, even when the kernel gave the fault first. */
static uint64_t foretell_asks(const struct world *world, const uint64_t *words)
{
    const struct kernel_event *batch = world->sim.newest_batch;
    bool settled[WORLD_PAGES] = {false};
    uint64_t asks = 0, page, first, count;

    for (int i = 0; i < world->sim.newest_batch_count; i++) {
        uint64_t start = batch[i].start;
        if (batch[i].kind != KERNEL_EVENT_REMOVE || !world->private_memory)
            continue;
        while ((count = regions_pages(&world->regions, &start, batch[i].end, &first)) > 0)
            for (page = first; page < first + count; page++)
                settled[page] = true;
    }
    for (int i = 0; i < world->sim.newest_batch_count && world_armed(world); i++)
        if (batch[i].kind == KERNEL_EVENT_FAULT && regions_page(&world->regions, batch[i].address, &page)) {
            asks += page_state(words[page]) == PAGE_MISSING && !page_held(words[page]) && !settled[page];
            settled[page] = true;
        }
    return asks;
}

/* The same where pages share units: the batch is known only after it was read, the words were noted before. */
static void foretell_batch_of_units(struct world *world, struct units_told *told)
{
    const struct kernel_event *batch = world->sim.newest_batch;
    uint64_t page, first, count;

    for (int i = 0; i < world->sim.newest_batch_count; i++) {
        uint64_t start = batch[i].start;
        if (batch[i].kind == KERNEL_EVENT_REMOVE && world->private_memory)
            while ((count = regions_pages(&world->regions, &start, batch[i].end, &first)) > 0)
                units_removed(told, first, count);
    }
    for (int i = 0; i < world->sim.newest_batch_count; i++)
        if (batch[i].kind == KERNEL_EVENT_FAULT && regions_page(&world->regions, batch[i].address, &page))
            units_fault(told, page);
}

static void told_turn_of_units(struct world *world)
{
    struct calm before = calm_before(world);
    uint64_t poison_calls = world->sim.calls[SIM_POISON], asks = stats_get(&world->stats, STATS_asks_total);
    struct units_told told;

    units_begin(&told, world);
    engine_turn(&world->engine, world->now_ns);
    foretell_batch_of_units(world, &told);
    if (!was_calm(world, &before, 1))
        return;
    units_check(world, &told);
    if (world->sim.calls[SIM_POISON] - poison_calls != told.poisoned)
        world_failed(world, WORLD_PAGES, "a poisoned unit is marked again, each time");
    if (stats_get(&world->stats, STATS_asks_total) - asks != told.asks)
        world_failed(world, WORLD_PAGES, "a batch does not ask for what is missing of each unit, once each");
}

void told_turn(struct world *world)
{
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES], poison_calls = world->sim.calls[SIM_POISON], poisoned = 0;
    uint64_t asks = stats_get(&world->stats, STATS_asks_total);

    if (many(world)) {
        told_turn_of_units(world);
        return;
    }
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        words[page] = table_word(&world->table, page);
    engine_turn(&world->engine, world->now_ns);
    if (world->sim.calls[SIM_READ] == before.reads + 1 && !world->dead &&
        stats_get(&world->stats, STATS_asks_total) - asks != foretell_asks(world, words))
        world_failed(world, WORLD_PAGES, "a batch does not ask for what is missing, and not removed by it, once each");
    if (!was_calm(world, &before, 1))
        return;
    foretell_batch(world, words, &poisoned);
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        told_word(world, page, words[page]);
    if (world->sim.calls[SIM_POISON] - poison_calls != poisoned)
        world_failed(world, WORLD_PAGES, "a poisoned page is marked again, each time");
}

void told_sweep(struct world *world, uint64_t first, uint64_t count)
{
    struct model_world model = model_of(world);
    struct calm before = calm_before(world);
    uint64_t words[WORLD_PAGES];
    struct units_told units;

    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        words[page] = table_word(&world->table, page);
    units_begin(&units, world);
    units_swept(&units, first, count);
    engine_sweep(&world->engine, first, count);
    if (!was_calm(world, &before, 0))
        return;
    if (many(world)) {
        units_check(world, &units);
        return;
    }
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        uint64_t next = page - first < count ? model_swept(&model, words[page]) : words[page];
        told_word(world, page, next);
        if (page - first < count && page_state(words[page]) == PAGE_CACHED && model.armed)
            entered(world, page, words[page], PAGE_EVENT_SWEEP, next);
    }
}
