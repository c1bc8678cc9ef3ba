/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in a world: see sim_checks.h. */
#include "sim_checks.h"

#include <string.h>

#include "sim_told.h"

/* ------------------------------------------------------------------------------------------------- after each step */

/* One that is lost takes its unit along. */
static bool unit_is_to_be_lost(const struct world *world, uint64_t page)
{
    uint64_t first = regions_unit(&world->regions, page);
    bool lost = false;

    for (uint64_t i = first; i < first + world->regions.unit_pages; i++)
        lost |= world->pages[i].server_lost || world->pages[i].by_order;
    return lost;
}

static void check_movement(struct world *world, uint64_t page, uint64_t before, uint64_t after)
{
    enum page_state was = page_state(before), is = page_state(after);
    struct world_page *facts = &world->pages[page];

    if ((was == PAGE_OWNED && is != PAGE_OWNED && is != PAGE_POISONED) ||
        (was == PAGE_POISONED && is != was && !page_fresh(after)))
        world_failed(world, page, "a page leaves what is for good");
    if (was == PAGE_OWNED && is == PAGE_OWNED && page_version(before) != page_version(after))
        world_failed(world, page, "an owned page changes its version");
    if (!world_armed(world) && (is == PAGE_WANTED || is == PAGE_OWNED))
        world_failed(world, page, "WANTED or OWNED before arming");
    if (is == PAGE_POISONED && !unit_is_to_be_lost(world, page))
        world_failed(world, page, "poisoned, and the server has it");
    told_note_lost(world, page);
    if (page_held(after) && !facts->held && !(is == PAGE_POISONED && world->sim.without_poison))
        world_failed(world, page, "held back");
    if (page_held(before) && ((after ^ before) & ~PAGE_OWED) != 0 && is != PAGE_POISONED && was != PAGE_POISONED && facts->drops == 0)
        world_failed(world, page, "a page that is held back is touched");
    facts->held = page_held(after);
    if (facts->asked && is != PAGE_WANTED) {
        facts->asked = false;
        world->answered++;
    }
    if (!facts->asked && is == PAGE_WANTED && !world->crashes)
        world_failed(world, page, "WANTED, and nobody asked");
}

/* Private units: what is CACHED is staged, and nothing but that. True: that is all there is to say of it. */
static bool check_staged(struct world *world, uint64_t page, uint64_t word)
{
    const struct sim_page *memory = &world->sim.pages[page];

    if (!world->private_memory)
        return false;
    if (!memory->staged || memory->staged_token != told_content(page, page_version(word)))
        world_failed(world, page, "CACHED, and it is not staged");
    return true;
}

/* What the memory must hold for each claim. */
static void check_content(struct world *world, uint64_t page)
{
    uint64_t word = table_word(&world->table, page);
    const struct sim_page *memory = &world->sim.pages[page];
    const struct world_page *facts = &world->pages[page];
    bool placed = atomic_load(&world->table.header->takeovers) > 0; /* perhaps, and not claimed yet */
    bool room = (world->regions.unit_pages > 1 || memory->room) && memory->token == 0; /* it came with another page of
                                                                                          the unit, or is nobody's */

    if (page_held(word))
        return;
    switch (page_state(word)) {
    case PAGE_MISSING:
    case PAGE_WANTED:
        if (!page_stale(word) && memory->present && !placed && !room)
            world_failed(world, page, "the cache holds something, and the stale bit is clear");
        break;
    case PAGE_CACHED:
        if (memory->pte != SIM_PTE_NONE && !(world->private_memory && placed))
            world_failed(world, page, "CACHED, and mapped");
        if (check_staged(world, page, word))
            break;
        if (memory->present && memory->token != told_content(page, page_version(word)) &&
            !(room && world_armed(world) && facts->expected == 0))
            world_failed(world, page, "CACHED, and these are not its bytes");
        if (!memory->present && (!world_armed(world) || facts->expected != 0))
            world_failed(world, page, "CACHED, and nothing is there");
        break;
    case PAGE_ZERO:
        if (!page_stale(word) && memory->present && !placed && !room)
            world_failed(world, page, "ZERO, and something is there");
        if (memory->present) /* by a worker before this one, and the guest has written there since */
            break;
        if (world_armed(world) && facts->expected != 0 && facts->drops == 0)
            world_failed(world, page, "ZERO, and the guest must read something else");
        if (!world_armed(world) && !page_fresh(word) && told_content(page, page_version(word)) != 0)
            world_failed(world, page, "ZERO, and it is none");
        break;
    case PAGE_OWNED:
        if (memory->present && memory->token != facts->expected && !(facts->drops > 0 && memory->token == 0))
            world_failed(world, page, "OWNED, and these are not its bytes");
        if (!memory->present && facts->expected != 0 && facts->drops == 0)
            world_failed(world, page, "OWNED, and nothing is there");
        break;
    case PAGE_POISONED:
        if (!world->private_memory && memory->present && !page_stale(word) && !placed && !room)
            world_failed(world, page, "POISONED, and its bytes are still there");
        break;
    default:
        world_failed(world, page, "a state that does not exist");
    }
}

static void check_all(struct world *world)
{
    uint64_t counts[PAGE_STATE_COUNT], kept[PAGE_STATE_COUNT], wanted;

    table_count(&world->table, counts);
    counts_read(&world->engine.counts, kept);
    if (memcmp(counts, kept, sizeof(counts)) != 0)
        world_failed(world, WORLD_PAGES, "the engine's counts are not those of the table");
    if (table_manifest(&world->table) != world->engine.sum)
        world_failed(world, WORLD_PAGES, "the engine's manifest is not that of the table");
    wanted = counts[PAGE_WANTED];
    if (stats_get(&world->stats, STATS_asks_outstanding) != wanted)
        world_failed(world, WORLD_PAGES, "asks_outstanding is not the number of WANTED pages");
    if (!world->crashes && stats_get(&world->stats, STATS_asks_total) != world->answered + wanted)
        world_failed(world, WORLD_PAGES, "asked is not answered + outstanding");
    if (stats_get(&world->stats, STATS_faults_early_total) != world->sim.faults_unarmed && !world->crashes)
        world_failed(world, WORLD_PAGES, "early faults are not counted right");
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        check_content(world, page);
}

void checks_step(struct world *world)
{
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        uint64_t after = table_word(&world->table, page);
        if (after != world->before[page] || page_state(after) == PAGE_WANTED)
            check_movement(world, page, world->before[page], after);
        world->before[page] = after;
    }
    if (world->steps % 16 == 0)
        check_all(world);
}

/* -------------------------------------------------------------------------------------------------------- the end */

/* One page that is held back keeps its unit from ever being whole. */
static bool held(const struct world *world, uint64_t page)
{
    uint64_t first = regions_unit(&world->regions, page);
    bool any = false;

    for (uint64_t i = first; i < first + world->regions.unit_pages; i++)
        any |= page_held(table_word(&world->table, i));
    return any;
}

/* A lost page that cannot be marked is held back, and settled. */
static bool never_settles(const struct world *world, uint64_t page)
{
    return held(world, page) && page_state(table_word(&world->table, page)) != PAGE_POISONED;
}

/* Whoever waits for a page that is held back waits for ever, and that is safe. */
static bool waits_in_vain(const struct world *world, uint32_t thread)
{
    return world->sim.threads[thread].sleeps && held(world, world->sim.threads[thread].page);
}

/* As the engine says; but for pages that are held back. */
static bool settled(const struct world *world)
{
    uint64_t lacking = 0, held_count = 0;

    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        enum page_state state = page_state(table_word(&world->table, page));
        held_count += never_settles(world, page);
        lacking += !held(world, page) && (state == PAGE_MISSING || state == PAGE_WANTED || state == PAGE_CACHED);
    }
    return held_count > 0 ? lacking == 0 && world->engine.unclean_count == 0 : engine_settled(&world->engine);
}

bool checks_quiet(const struct world *world)
{
    const struct table_header *header = world->table.header;
    bool is = settled(world) && sim_unread(&world->sim) == 0;

    for (uint32_t i = 0; i < SIM_THREADS; i++)
        is = is && (waits_in_vain(world, i) || (!world->sim.threads[i].sleeps && world->targets[i] == 0));
    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        is = is && world->sim.removals[i].stage == SIM_REMOVAL_FREE;
    for (uint32_t i = 0; i < WORLD_DROPS; i++)
        is = is && !world->drops[i].used;
    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        is = is && atomic_load(&header->log_taken[reader]) == atomic_load(&header->log_count);
    return is && engine_next_ns(&world->engine) == UINT64_MAX;
}

/* Nothing intercepts the memory any more: what does the guest find? */
static void check_final(struct world *world)
{
    uint64_t waiting = 0, held_count = 0;

    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        const struct sim_page *memory = &world->sim.pages[page];
        uint64_t found = memory->present ? memory->token : 0;
        held_count += never_settles(world, page);
        waiting += page_state(table_word(&world->table, page)) == PAGE_WANTED;
        if (never_settles(world, page))
            continue;
        if (page_state(table_word(&world->table, page)) == PAGE_POISONED) {
            if (!world->pages[page].lost)
                world_failed(world, page, "POISONED, and it was never lost");
            if (!world->private_memory && ((memory->present && memory->token != 0) || memory->pte == SIM_PTE_MAPPED))
                world_failed(world, page, "POISONED, and the guest still has its bytes");
            if (world->lets_go && memory->pte == SIM_PTE_MAPPED)
                world_failed(world, page, "POISONED, and the VMM was not asked to let go of it");
        } else if (found != world->pages[page].expected) {
            world_failed(world, page, "the guest ends with the wrong bytes");
        }
    }
    if (held_count > 0 && engine_settled(&world->engine))
        world_failed(world, WORLD_PAGES, "settled, and a page is held back");
    if (stats_get(&world->stats, STATS_asks_outstanding) != waiting)
        world_failed(world, WORLD_PAGES, "something is still outstanding");
}

/* Everyone has been told of everything, once. */
static void check_told(struct world *world)
{
    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        for (uint64_t page = 0; page < WORLD_PAGES; page++) {
            const struct world_page *facts = &world->pages[page];
            const struct world_reader *knows = &world->readers[reader];
            if (knows->losses[page] != facts->losses || knows->clears[page] != facts->clears)
                world_failed(world, page, "poisoned or cleared, and not told so");
        }
}

void checks_end(struct world *world)
{
    for (uint32_t i = 0; i < SIM_THREADS; i++)
        if (world->sim.threads[i].sleeps && !waits_in_vain(world, i))
            world_failed(world, world->sim.threads[i].page, "a thread is stranded");
    if (!settled(world))
        for (uint64_t page = 0; page < WORLD_PAGES; page++) {
            enum page_state state = page_state(table_word(&world->table, page));
            if (!held(world, page) && (state == PAGE_MISSING || state == PAGE_WANTED || state == PAGE_CACHED))
                world_failed(world, page, "does not settle");
        }
    if (!checks_quiet(world))
        world_failed(world, WORLD_PAGES, "does not settle");
    check_all(world);
    check_told(world);
    check_final(world);
}
