/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine against a world that knows every byte (sim_world.h). Each seed lives through several VMs, unarmed and
 * armed, on shared and on private memory, from an immutable image and from a source that runs on; each ends healed
 * and right. Every legal cell of the page machine must have been entered, and in a sample that is large enough to judge
 * (5 million steps) once in 20,000 steps: 1,000 times in 2,000 seeds of 10,000.
 *
 *   test_simulation              500 seeds of at least 10,000 steps, and some in which workers are killed
 *   test_simulation SEED         that seed, and each VM of it named; "kill SEED": with kills
 *   test_simulation SEEDS STEPS  so many from seed 1 on
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_world.h"

#define SEEDS 500
#define KILL_SEEDS 100
#define STEPS_A_SEED 10000
#define STEPS_A_VM 1200
#define STEPS_A_CELL 20000
#define STEPS_JUDGED 5000000

static struct world world;
static uint64_t steps_total, kills_total, replays_total;

static void run_vm(void)
{
    uint64_t end;

    world_begin(&world);
    end = world.steps + 200 + sim_below(&world.random, STEPS_A_VM);
    if (sim_below(&world.random, 40) == 0)
        end = world.steps + sim_below(&world.random, 50); /* some are short, and hardly begun */
    while (world.steps < end && !world.dead) {
        world_step(&world);
        if (sim_below(&world.random, 400000) == 0)
            world.sim.gone = true;
    }
    if (!world.sim.gone)
        world_heal(&world);
    if (world.verbose)
        printf("seed %llu: step %llu, %s in units of %llu, %s, %u takeovers, %llu asks, %llu faults%s\n", (unsigned long long)world.seed,
               (unsigned long long)world.steps, world.private_memory ? "private" : "shared",
               (unsigned long long)world.regions.unit_pages,
               world.live ? "live" : "immutable", atomic_load(&world.table.header->takeovers),
               (unsigned long long)stats_get(&world.stats, STATS_asks_total),
               (unsigned long long)stats_get(&world.stats, STATS_faults_total), world.dead ? ", gone" : "");
    world_end(&world);
}

static void run_seed(uint64_t seed, uint64_t steps, bool kills)
{
    world.seed = seed;
    world.random = seed * UINT64_C(0x9e3779b97f4a7c15) + kills;
    world.steps = 0;
    world.crashes = kills;
    world.kills = world.replays = 0;
    while (world.steps < steps)
        run_vm();
    steps_total += world.steps;
    kills_total += world.kills;
    replays_total += world.replays;
}

/* Prints how often each legal cell was entered; the number of those that were too seldom. */
static uint32_t print_cells(uint64_t must)
{
    uint32_t legal = 0, seldom = 0;
    uint64_t least = UINT64_MAX;

    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        for (int event = 0; event < PAGE_EVENT_COUNT; event++)
            for (int armed = 0; armed < 2; armed++) {
                struct page_step step = page_step((enum page_state)state, (enum page_event)event, armed);
                uint64_t entered = world.cells[state][event][armed];
                if (!step.legal)
                    continue;
                legal++;
                seldom += entered < must;
                least = entered < least ? entered : least;
                printf("cells %-8s %-7s %-7s %-9s %llu\n", page_state_name((enum page_state)state),
                       page_event_name((enum page_event)event), armed ? "armed" : "unarmed",
                       page_action_name((enum page_action)step.action), (unsigned long long)entered);
            }
    printf("cells %u legal, %u entered less than %llu times, least often %llu times\n", legal, seldom,
           (unsigned long long)must, (unsigned long long)least);
    return seldom;
}

int main(int argc, char **argv)
{
    uint64_t seeds = SEEDS, steps = STEPS_A_SEED, started;
    bool one = argc == 2 || (argc == 3 && strcmp(argv[1], "kill") == 0);
    uint32_t seldom = 0;

    if (table_create(WORLD_PAGES, &world.table) < 0)
        return 1;
    if (one) {
        world.verbose = true;
        run_seed(strtoull(argv[argc - 1], NULL, 10), STEPS_A_SEED, argc == 3);
        table_close(&world.table);
        return 0;
    }
    if (argc == 3) {
        seeds = strtoull(argv[1], NULL, 10);
        steps = strtoull(argv[2], NULL, 10);
    }
    for (uint64_t seed = 1; seed <= seeds; seed++)
        run_seed(seed, steps, false);
    printf("seeds %llu steps %llu\n", (unsigned long long)seeds, (unsigned long long)steps_total);
    seldom = print_cells(seeds * steps < STEPS_JUDGED ? 1 : seeds * steps / STEPS_A_CELL);
    started = steps_total;
    for (uint64_t seed = 1; seed <= seeds * KILL_SEEDS / SEEDS; seed++)
        run_seed(seed, steps, true);
    printf("crash seeds %llu steps %llu kills %llu batches replayed %llu\n",
           (unsigned long long)(seeds * KILL_SEEDS / SEEDS), (unsigned long long)(steps_total - started),
           (unsigned long long)kills_total, (unsigned long long)replays_total);
    table_close(&world.table);
    printf("%d passed, %d failed, 0 skipped\n", seldom == 0 ? 2 : 1, seldom != 0);
    return seldom != 0;
}
