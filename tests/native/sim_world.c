/* SPDX-License-Identifier: Apache-2.0 */
/* The world of sim_world.h: what it is made of, what must hold after each step, and how it ends. Steps: sim_steps.c. */
#include "sim_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_steps.h"
#include "sim_told.h"

/* Pages and addresses in different orders, with a gap, and two regions that touch. */
static const struct region layout[] = {
    {.address = UINT64_C(0x7f0000200000), .first_page = 0, .page_count = 48},
    {.address = UINT64_C(0x7f0000010000), .first_page = 48, .page_count = 16},
    {.address = UINT64_C(0x7f0000020000), .first_page = 64, .page_count = 32},
};

/* --------------------------------------------------------------------------------------------------------- failing */

static void print_trace(const struct trace *trace)
{
    uint64_t first = trace->count > 40 ? trace->count - 40 : 0;

    for (uint64_t i = first; i < trace->count; i++) {
        const struct trace_step *step = &trace->steps[i % TRACE_STEPS];
        printf("  %6llu us  page %3llu + %-3u %-9s %-8s %-9s version %llx result %u\n",
               (unsigned long long)(step->now_ns / 1000), (unsigned long long)step->page, step->page_count,
               page_state_name((enum page_state)step->state), page_event_name((enum page_event)step->event),
               page_action_name((enum page_action)step->action), (unsigned long long)step->version, step->result);
    }
}

void world_failed(struct world *world, uint64_t page, const char *text)
{
    printf("seed %llu step %llu: page %llu: %s\n", (unsigned long long)world->seed, (unsigned long long)world->steps,
           (unsigned long long)page, text);
    printf("%s memory, %s, %s, takeovers %u, kills %llu\n", world->private_memory ? "private" : "shared",
           world->live ? "live" : "immutable", world_armed(world) ? "armed" : "unarmed",
           atomic_load(&world->table.header->takeovers), (unsigned long long)world->kills);
    if (page < WORLD_PAGES) {
        const struct world_page *facts = &world->pages[page];
        const struct sim_page *memory = &world->sim.pages[page];
        uint64_t word = table_word(&world->table, page), before = world->before[page];
        printf("word %s%s version %llx, before the step %s%s version %llx\n", page_state_name(page_state(word)),
               page_stale(word) ? " stale" : "", (unsigned long long)page_version(word),
               page_state_name(page_state(before)), page_stale(before) ? " stale" : "",
               (unsigned long long)page_version(before));
        printf("pte %u present %d ever mapped %d token %llx; expected %llx version %llx drops %u lost %d asked %d\n",
               memory->pte, memory->present, memory->ever_mapped, (unsigned long long)memory->token,
               (unsigned long long)facts->expected, (unsigned long long)facts->version, facts->drops, facts->lost,
               facts->asked);
    }
    print_trace(&world->trace);
    exit(1);
}

static void sim_failed(void *owner, uint64_t page, const char *text)
{
    world_failed(owner, page, text);
}

/* ---------------------------------------------------------------------------------------- what the engine tells us */

static void on_ask(void *owner, uint64_t page)
{
    struct world *world = owner;
    struct world_page *facts = &world->pages[page];

    if (page_state(table_word(&world->table, page)) != PAGE_WANTED)
        world_failed(world, page, "asked, and not WANTED");
    if (facts->asked && !facts->again && !world->crashes)
        world_failed(world, page, "asked twice");
    facts->asked = true;
    facts->again = false;
    if (world->link_up)
        steps_server_asked(world, page);
    else
        facts->again = true; /* nobody heard it */
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    struct world *world = owner;

    (void)value;
    if (report == ENGINE_REPORT_ALARM && world->refusals && !world->alarm_expected &&
        page_held(table_word(&world->table, page))) {
        world->pages[page].held = true;
        return;
    }
    if (report == ENGINE_REPORT_ALARM && !world->alarm_expected)
        world_failed(world, page, text);
    if (report == ENGINE_REPORT_ALARM)
        world->alarm_seen = true;
    if (report == ENGINE_REPORT_GONE && world->dead)
        world_failed(world, page, "GONE is said twice");
    if (report == ENGINE_REPORT_GONE)
        world->dead = true;
}

static void kill_perhaps(void *owner, enum sim_call call)
{
    struct world *world = owner;

    (void)call;
    if (world->kill_countdown > 0 && --world->kill_countdown == 0)
        longjmp(world->killed, 1);
}

/* ----------------------------------------------------------------------------------------------------- begin, end */

static void start_engine(struct world *world)
{
    struct engine_options options = {
        .table = &world->table,
        .regions = &world->regions,
        .ops = &sim_kernel_ops,
        .kernel = &world->sim,
        .out = {.owner = world, .ask = on_ask, .report = on_report},
        .stats = &world->stats,
        .trace = &world->trace,
        .private_memory = world->private_memory,
    };

    engine_start(&world->engine, &options, world->now_ns);
    world->engine.frozen_version = world->frozen_version;
}

static void begin_pages(struct world *world)
{
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        world->pages[page].version = world->pages[page].version_before = world->round;
        if (!world->private_memory && sim_below(&world->random, 5) == 0) {
            uint64_t count = 1 + sim_below(&world->random, 3); /* more may be marked than is there */
            sim_foreign(&world->sim, page, UINT64_C(0xf0e1) << 48 | page);
            engine_mark_stale(&world->engine, page, count);
        }
    }
}

void world_begin(struct world *world)
{
    uint64_t seed = world->seed, steps = world->steps, random = world->random, kills = world->kills;
    bool crashes = world->crashes, verbose = world->verbose;
    struct table table = world->table;
    static uint64_t cells[PAGE_STATE_COUNT][PAGE_EVENT_COUNT][2];

    memcpy(cells, world->cells, sizeof(cells));
    memset(world, 0, offsetof(struct world, bytes));
    memcpy(world->cells, cells, sizeof(cells));
    world->seed = seed;
    world->steps = steps;
    world->random = random;
    world->kills = kills;
    world->crashes = crashes;
    world->verbose = verbose;
    world->table = table;
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        table_set(&world->table, page, 0);
    atomic_store(&world->table.header->armed, 0);
    atomic_store(&world->table.header->takeovers, 0);
    atomic_store(&world->table.header->batch_count, 0);
    world->now_ns = UINT64_C(1000000000);
    world->private_memory = sim_below(&world->random, 3) == 0;
    world->live = sim_below(&world->random, 2) == 0;
    /* After a kill a refused page may be the guest's already, and then a removal punches it: right, but the audit of
     * the simulated kernel does not know of removals. */
    world->refusals = sim_below(&world->random, 4) == 0 && !world->crashes;
    world->round = UINT64_C(1) << 32 | 1;
    world->frozen_version = world->live ? 0 : world->round;
    world->link_up = true;
    if (regions_set(&world->regions, layout, 3) < 0)
        world_failed(world, 0, "regions_set");
    sim_open(&world->sim, &world->regions, world->private_memory, sim_random(&world->random));
    world->sim.table = &world->table;
    world->sim.owner = world;
    world->sim.failed = sim_failed;
    world->sim.later_permille = (uint32_t)sim_below(&world->random, 2) * 20;
    world->sim.full_permille = (uint32_t)sim_below(&world->random, 2) * 5;
    if (world->crashes)
        world->sim.before = world->sim.after = kill_perhaps;
    start_engine(world);
    begin_pages(world);
}

void world_end(struct world *world)
{
    sim_close(&world->sim);
}

bool world_armed(const struct world *world)
{
    return atomic_load(&world->table.header->armed) != 0;
}

/* ------------------------------------------------------------------------------------------------- after each step */

static void check_movement(struct world *world, uint64_t page, uint64_t before, uint64_t after)
{
    enum page_state was = page_state(before), is = page_state(after);
    struct world_page *facts = &world->pages[page];

    if ((was == PAGE_OWNED && is != PAGE_OWNED && is != PAGE_POISONED) || (was == PAGE_POISONED && is != was))
        world_failed(world, page, "a page leaves what is for good");
    if (was == PAGE_OWNED && is == PAGE_OWNED && page_version(before) != page_version(after))
        world_failed(world, page, "an owned page changes its version");
    if (!world_armed(world) && (is == PAGE_WANTED || is == PAGE_OWNED))
        world_failed(world, page, "WANTED or OWNED before arming");
    if (is == PAGE_POISONED && !facts->server_lost)
        world_failed(world, page, "poisoned, and the server has it");
    told_note_lost(world, page);
    if (page_held(after) && !facts->held)
        world_failed(world, page, "held back");
    if (page_held(before) && after != before && is != PAGE_POISONED && facts->drops == 0)
        world_failed(world, page, "a page that is held back is touched");
    facts->held = page_held(after);
    if (facts->asked && is != PAGE_WANTED) {
        facts->asked = false;
        world->answered++;
    }
    if (!facts->asked && is == PAGE_WANTED && !world->crashes)
        world_failed(world, page, "WANTED, and nobody asked");
}

/* What the memory must hold for each claim. */
static void check_content(struct world *world, uint64_t page)
{
    uint64_t word = table_word(&world->table, page);
    const struct sim_page *memory = &world->sim.pages[page];
    const struct world_page *facts = &world->pages[page];
    bool placed = atomic_load(&world->table.header->takeovers) > 0; /* perhaps, and not claimed yet */

    if (page_held(word))
        return;
    switch (page_state(word)) {
    case PAGE_MISSING:
    case PAGE_WANTED:
        if (!page_stale(word) && memory->present && !placed)
            world_failed(world, page, "the cache holds something, and the stale bit is clear");
        break;
    case PAGE_CACHED:
        if (memory->pte != SIM_PTE_NONE)
            world_failed(world, page, "CACHED, and mapped");
        if (memory->present && memory->token != told_content(page, page_version(word)))
            world_failed(world, page, "CACHED, and these are not its bytes");
        if (!memory->present && (!world_armed(world) || facts->expected != 0))
            world_failed(world, page, "CACHED, and nothing is there");
        break;
    case PAGE_ZERO:
        if (!page_stale(word) && memory->present && !placed)
            world_failed(world, page, "ZERO, and something is there");
        if (memory->present) /* by a worker before this one, and the guest has written there since */
            break;
        if (world_armed(world) && facts->expected != 0 && facts->drops == 0)
            world_failed(world, page, "ZERO, and the guest must read something else");
        if (!world_armed(world) && told_content(page, page_version(word)) != 0)
            world_failed(world, page, "ZERO, and it is none");
        break;
    case PAGE_OWNED:
        if (memory->present && memory->token != facts->expected && !(facts->drops > 0 && memory->token == 0))
            world_failed(world, page, "OWNED, and these are not its bytes");
        if (!memory->present && facts->expected != 0 && facts->drops == 0)
            world_failed(world, page, "OWNED, and nothing is there");
        break;
    case PAGE_POISONED:
        if (!world->private_memory && memory->present && !page_stale(word) && !placed)
            world_failed(world, page, "POISONED, and its bytes are still there");
        break;
    default:
        world_failed(world, page, "a state that does not exist");
    }
}

static void check_all(struct world *world)
{
    uint64_t counts[PAGE_STATE_COUNT], wanted;

    table_count(&world->table, counts);
    if (memcmp(counts, world->engine.counts, sizeof(counts)) != 0)
        world_failed(world, WORLD_PAGES, "the engine's counts are not those of the table");
    wanted = counts[PAGE_WANTED];
    if (stats_get(&world->stats, STATS_asks_outstanding) != wanted)
        world_failed(world, WORLD_PAGES, "asks_outstanding is not the number of WANTED pages");
    if (!world->crashes && stats_get(&world->stats, STATS_asks_total) != world->answered + wanted)
        world_failed(world, WORLD_PAGES, "asked is not answered + outstanding");
    if (stats_get(&world->stats, STATS_faults_early_total) != world->sim.faults_unarmed && !world->crashes &&
        !world->refusals)
        world_failed(world, WORLD_PAGES, "early faults are not counted right");
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        check_content(world, page);
}

static void check_step(struct world *world)
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

/* The worker is dead; its table, its uffd and the VM live on. */
static void take_over(struct world *world)
{
    world->kills++;
    world->kill_countdown = 0;
    world->sim.refused_page_plus_1 = 0; /* who knew of it is dead */
    atomic_fetch_add(&world->table.header->takeovers, 1);
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        world->pages[page].again = true;
    start_engine(world);
}

void world_step(struct world *world)
{
    world->steps++;
    world->now_ns += sim_below(&world->random, 4) * 150000;
    if (!world->crashes) {
        steps_random(world);
    } else {
        if (setjmp(world->killed) != 0) {
            take_over(world);
        } else {
            if (world->kill_countdown == 0 && sim_below(&world->random, 50) == 0 && !world->healing)
                world->kill_countdown = 1 + sim_below(&world->random, 60);
            steps_random(world);
        }
    }
    check_step(world);
}

/* ---------------------------------------------------------------------------------------------------------- healing */

static bool held(const struct world *world, uint64_t page)
{
    return page_held(table_word(&world->table, page));
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
        held_count += held(world, page);
        lacking += !held(world, page) && (state == PAGE_MISSING || state == PAGE_WANTED || state == PAGE_CACHED);
    }
    return held_count > 0 ? lacking == 0 && world->engine.unclean_count == 0 : engine_settled(&world->engine);
}

static bool quiet(const struct world *world)
{
    bool is = settled(world) && sim_unread(&world->sim) == 0;

    for (uint32_t i = 0; i < SIM_THREADS; i++)
        is = is && (waits_in_vain(world, i) || (!world->sim.threads[i].sleeps && world->targets[i] == 0));
    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        is = is && world->sim.removals[i].stage == SIM_REMOVAL_FREE;
    for (uint32_t i = 0; i < WORLD_DROPS; i++)
        is = is && !world->drops[i].used;
    return is && engine_next_ns(&world->engine) == UINT64_MAX;
}

/* Nothing intercepts the memory any more: what does the guest find? */
static void check_final(struct world *world)
{
    uint64_t waiting = 0, held_count = 0;

    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        const struct sim_page *memory = &world->sim.pages[page];
        uint64_t found = memory->present ? memory->token : 0;
        held_count += held(world, page);
        waiting += page_state(table_word(&world->table, page)) == PAGE_WANTED;
        if (held(world, page))
            continue;
        if (page_state(table_word(&world->table, page)) == PAGE_POISONED) {
            if (!world->pages[page].lost)
                world_failed(world, page, "POISONED, and it was never lost");
        } else if (found != world->pages[page].expected) {
            world_failed(world, page, "the guest ends with the wrong bytes");
        }
    }
    if (held_count > 0 && engine_settled(&world->engine))
        world_failed(world, WORLD_PAGES, "settled, and a page is held back");
    if (stats_get(&world->stats, STATS_asks_outstanding) != waiting)
        world_failed(world, WORLD_PAGES, "something is still outstanding");
}

void world_heal(struct world *world)
{
    uint64_t tries;

    world->healing = true;
    world->sim.full = false;
    world->sim.later_permille = 0;
    world->sim.full_permille = 0;
    memset(world->sim.force, 0, sizeof(world->sim.force));
    world->kill_countdown = 0;
    if (world->dead)
        return;
    for (tries = 0; tries < 20000 && !quiet(world); tries++) {
        world->steps++;
        world->now_ns += UINT64_C(300000);
        steps_heal(world);
        check_step(world);
    }
    for (uint32_t i = 0; i < SIM_THREADS; i++)
        if (world->sim.threads[i].sleeps && !waits_in_vain(world, i))
            world_failed(world, world->sim.threads[i].page, "a thread is stranded");
    if (!settled(world))
        for (uint64_t page = 0; page < WORLD_PAGES; page++) {
            enum page_state state = page_state(table_word(&world->table, page));
            if (!held(world, page) && (state == PAGE_MISSING || state == PAGE_WANTED || state == PAGE_CACHED))
                world_failed(world, page, "does not settle");
        }
    if (!quiet(world))
        world_failed(world, WORLD_PAGES, "does not settle");
    check_all(world);
    check_final(world);
}
