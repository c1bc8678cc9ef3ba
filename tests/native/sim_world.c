/* SPDX-License-Identifier: Apache-2.0 */
/* The world of sim_world.h: what it is made of, how its workers die, and how it ends. Steps: sim_steps.c. */
#include "sim_world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "pager/log.h"
#include "sim_checks.h"
#include "sim_steps.h"

/* Pages and addresses in different orders, with a gap, and two regions that touch. */
static const struct region small_layout[] = {
    {.address = UINT64_C(0x7f0000200000), .first_page = 0, .page_count = 48},
    {.address = UINT64_C(0x7f0000010000), .first_page = 48, .page_count = 16},
    {.address = UINT64_C(0x7f0000020000), .first_page = 64, .page_count = 32},
};
#define REGIONS 3

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
    printf("%s memory in units of %llu, %s, %s, takeovers %u, kills %llu\n",
           world->private_memory ? "private" : "shared", (unsigned long long)world->regions.unit_pages,
           world->live ? "live" : "immutable", world_armed(world) ? "armed" : "unarmed",
           atomic_load(&world->table.header->takeovers), (unsigned long long)world->kills);
    if (page < WORLD_PAGES) {
        const struct world_page *facts = &world->pages[page];
        const struct sim_page *memory = &world->sim.pages[page];
        uint64_t word = table_word(&world->table, page), before = world->before[page];
        printf("word %s bits %02llx version %llx, before the step %s bits %02llx version %llx\n",
               page_state_name(page_state(word)), (unsigned long long)word & 0xf8,
               (unsigned long long)page_version(word), page_state_name(page_state(before)),
               (unsigned long long)before & 0xf8, (unsigned long long)page_version(before));
        printf("pte %u present %d ever mapped %d token %llx; expected %llx version %llx drops %u lost %d asked %d\n",
               memory->pte, memory->present, memory->ever_mapped, (unsigned long long)memory->token,
               (unsigned long long)facts->expected, (unsigned long long)facts->version, facts->drops, facts->lost,
               facts->asked);
    }
    print_trace(&world->trace);
    if (world->rerun != NULL)
        printf("again: %s\n", world->rerun);
    exit(1);
}

static void sim_failed(void *owner, uint64_t page, const char *text)
{
    world_failed(owner, page, text);
}

/* ---------------------------------------------------------------------------------------- what the engine tells us */

void world_pass(struct world *world, unsigned call, enum sim_when when)
{
    if (!world->crashes)
        return;
    world->places++;
    if (world->passed != NULL)
        world->passed(world, call, when);
    if (world->places == world->kill_at)
        longjmp(world->killed, 1);
}

static void on_ask(void *owner, uint64_t page)
{
    struct world *world = owner;
    struct world_page *facts = &world->pages[page];

    world_pass(world, WORLD_ASK, SIM_BEFORE);
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

static bool on_drop(void *owner, uint64_t first_page, uint64_t page_count)
{
    struct world *world = owner;

    if (!world->private_memory)
        world_failed(world, first_page, "the VMM is asked to drop shared memory");
    if (world->lets_go && !world->pages[first_page].to_drop)
        steps_vmm_drops(world, first_page, page_count);
    return world->lets_go;
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
    if (report == ENGINE_REPORT_ALARM && world->sim.without_poison && !world->alarm_expected &&
        page_state(table_word(&world->table, page)) == PAGE_POISONED) {
        world->pages[page].held = true; /* lost before it was known that this kernel cannot poison */
        return;
    }
    if (report == ENGINE_REPORT_ALARM && !world->alarm_expected && world->sim.pages[page].room)
        return; /* COPY has found it */
    if (report == ENGINE_REPORT_ALARM && !world->alarm_expected)
        world_failed(world, page, text);
    if (report == ENGINE_REPORT_ALARM)
        world->alarm_seen = true;
    if (report == ENGINE_REPORT_GONE && world->dead)
        world_failed(world, page, "GONE is said twice");
    if (report == ENGINE_REPORT_GONE)
        world->dead = true;
}

static void before_call(void *owner, enum sim_call call)
{
    world_pass(owner, call, SIM_BEFORE);
}

static void in_call(void *owner, enum sim_call call)
{
    world_pass(owner, call, SIM_MIDDLE);
}

static void after_call(void *owner, enum sim_call call)
{
    world_pass(owner, call, SIM_AFTER);
}

/* ----------------------------------------------------------------------------------------------------- begin, end */

static void start_engine(struct world *world)
{
    struct engine_options options = {
        .table = &world->table,
        .regions = &world->regions,
        .ops = &sim_kernel_ops,
        .kernel = &world->sim,
        .out = {.owner = world, .ask = on_ask, .drop = on_drop, .report = on_report},
        .stats = &world->stats,
        .trace = &world->trace,
        .private_memory = world->private_memory,
        .without_poison = world->without_poison,
    };

    engine_start(&world->engine, &options, world->now_ns);
    world->engine.frozen_version = world->frozen_version;
}

/* Somebody else has left bytes in the RAM file, before the hand-off. */
static void begin_pages(struct world *world)
{
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        world->pages[page].version = world->pages[page].version_before = world->round;
        if (!world->private_memory && sim_below(&world->random, 5) == 0)
            sim_foreign(&world->sim, page, UINT64_C(0xf0e1) << 48 | page);
    }
}

/* What SEEK_DATA finds is marked, by every worker that attaches; more may be marked than is there. */
static void attach(struct world *world)
{
    start_engine(world);
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        if (world->private_memory || !world->sim.pages[page].present)
            continue;
        if (!world->attached)
            world_pass(world, WORLD_MARK, SIM_BEFORE);
        engine_mark_stale(&world->engine, page, 1 + page % 3);
    }
    world->attached = true;
}

void world_end(struct world *world)
{
    sim_close(&world->sim);
}

bool world_armed(const struct world *world)
{
    return atomic_load(&world->table.header->armed) != 0;
}

/* --------------------------------------------------------------------------------------------------------- killing */

bool world_batch_left(const struct table *table)
{
    uint32_t count = atomic_load(&table->header->batch_count);
    bool left = false;

    for (uint32_t i = 0; i < count && i < TABLE_BATCH_EVENTS; i++)
        left |= table->header->batch[i].kind != 0;
    return left;
}

/* A worker may die between its entry in the poison log and the word that owes it: no call lies between the two. */
static void die_after_log_put(struct world *world)
{
    const struct table_header *header = world->table.header;
    struct table_log_entry newest;
    bool taken = false;
    uint64_t word;

    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        taken |= atomic_load(&header->log_taken[reader]) == atomic_load(&header->log_count);
    if (taken || !log_newest(&world->table, &newest) || sim_below(&world->random, 2) == 0)
        return;
    word = table_word(&world->table, newest.page);
    if ((page_state(word) == PAGE_POISONED) == (newest.kind == LOG_POISONED))
        table_set(&world->table, newest.page, word | PAGE_OWED);
}

/* The worker is dead, and its connections with whatever was under way; its table, its uffd and the VM live on. */
static void take_over(struct world *world)
{
    int fd = dup(world->table.fd);

    world->kills++;
    world->kill_at = 0;
    die_after_log_put(world);
    world->alarm_expected = false;
    world->sim.refused_page_plus_1 = 0; /* who knew of it is dead */
    sim_lose_staging(&world->sim);
    world->sim.drop_count = 0;          /* and of this */
    table_close(&world->table);
    if (table_adopt(fd, WORLD_PAGES, &world->table) < 0)
        world_failed(world, WORLD_PAGES, "the table is not adopted");
    world->replays += world_batch_left(&world->table);
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        world->pages[page].again = true;
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        world->pages[page].to_drop = false; /* nobody waits for the VMM's answer any more */
    for (uint32_t i = 0; i < WORLD_ANSWERS; i++)
        world->answers[i].used = false;
    world->since = 0;
    world->recovering = true;
    attach(world);
    world->recovering = false;
}

/* A step, and if the worker is killed in it, its successor's start; and so on, if that is killed, too. */
static void run_killable(struct world *world, void (*step)(struct world *))
{
    void (*volatile next)(struct world *) = step;

    if (setjmp(world->killed) != 0)
        next = take_over;
    next(world);
}

static void set_regions(struct world *world, uint64_t unit_pages)
{
    struct region layout[REGIONS];

    memcpy(layout, small_layout, sizeof(layout));
    for (int i = 0; i < REGIONS; i++)
        layout[i].unit_pages = unit_pages;
    if (regions_set(&world->regions, layout, REGIONS) < 0)
        world_failed(world, 0, "regions_set");
}

void world_begin(struct world *world)
{
    memset((char *)world + offsetof(struct world, now_ns), 0,
           offsetof(struct world, bytes) - offsetof(struct world, now_ns));
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        table_set(&world->table, page, 0);
    atomic_store(&world->table.header->armed, 0);
    atomic_store(&world->table.header->takeovers, 0);
    atomic_store(&world->table.header->placed, 0);
    atomic_store(&world->table.header->batch_count, 0);
    atomic_store(&world->table.header->log_count, 0);
    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        atomic_store(&world->table.header->log_taken[reader], 0);
    world->now_ns = UINT64_C(1000000000);
    world->private_memory = sim_below(&world->random, 3) == 0;
    world->live = sim_below(&world->random, 2) == 0;
    /* After a kill a refused page may be the guest's already, and then a removal punches it: right, but the audit of
     * the simulated kernel does not know of removals. */
    world->refusals = sim_below(&world->random, 4) == 0 && !world->crashes;
    world->round = UINT64_C(1) << 32 | 1;
    world->frozen_version = world->live ? 0 : world->round;
    world->link_up = true;
    set_regions(world, sim_below(&world->random, 4) == 0 ? WORLD_UNIT_PAGES : 1);
    sim_open(&world->sim, &world->regions, world->private_memory, sim_random(&world->random));
    world->sim.table = &world->table;
    world->sim.owner = world;
    world->sim.failed = sim_failed;
    if (sim_below(&world->random, 2) == 0)
        world->table.header->log_capacity = world->regions.unit_pages << sim_below(&world->random, 4);
    else
        world->table.header->log_capacity = TABLE_LOG_ENTRIES;
    world->lets_go = world->private_memory && sim_below(&world->random, 2) == 0;
    world->without_poison = sim_below(&world->random, 8) == 0;
    world->sim.without_poison = world->without_poison || sim_below(&world->random, 16) == 0;
    world->sim.later_permille = (uint32_t)sim_below(&world->random, 2) * 20;
    world->sim.full_permille = (uint32_t)sim_below(&world->random, 2) * 5;
    world->sim.clings_permille = (uint32_t)sim_below(&world->random, 3) * 300;
    world->sim.before = before_call;
    world->sim.middle = in_call;
    world->sim.after = after_call;
    begin_pages(world);
    run_killable(world, attach);
}

/* ----------------------------------------------------------------------------------------------------------- steps */

void world_step(struct world *world)
{
    world->steps++;
    world->now_ns += sim_below(&world->random, 4) * 150000;
    if (world->crashes && world->passed == NULL && world->kill_at == 0 && sim_below(&world->random, 50) == 0 &&
        !world->healing)
        world->kill_at = world->places + 1 + sim_below(&world->random, 60);
    run_killable(world, steps_random);
    checks_step(world);
}

void world_arm(struct world *world)
{
    while (!world_armed(world)) {
        world->steps++;
        run_killable(world, steps_arm);
        checks_step(world);
    }
}

void world_heal(struct world *world)
{
    uint64_t tries;

    world->healing = true;
    world->sim.full = false;
    world->sim.later_permille = 0;
    world->sim.full_permille = 0;
    memset(world->sim.force, 0, sizeof(world->sim.force));
    world->kill_at = 0;
    if (world->dead)
        return;
    for (tries = 0; tries < 20000 && !checks_quiet(world); tries++) {
        world->steps++;
        world->now_ns += UINT64_C(300000);
        run_killable(world, steps_heal);
        checks_step(world);
    }
    checks_end(world);
}
