/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker is killed at every place, and its successor once more while it starts. Each seed is a short life of a VM in
 * the world of sim_world.h: attached, before arming, armed, healed. It runs once, to number its calls: those of the
 * kernel, and with them the asks, and what is marked at attach. Then it runs once for each place: before, in or after
 * one of its calls the worker is killed, and another takes its table over, works on the batch that it finds, asks
 * again, wakes everyone, and goes on. And for each place where such a successor can be killed before it has come that
 * far, once more; but for first places that leave behind what the place before them has left, bit for bit, since from
 * there everything is the same. Whatever the simulation checks must hold in all runs, to their end.
 *
 *   test_crashes                              a few seeds
 *   test_crashes SEEDS                        so many
 *   test_crashes SEED CALL WHEN [CALL WHEN]   one run: killed at that call and, its successor, at the second.
 *                                             WHEN: before, after, middle; middle2 for the second middle of the call
 *   test_crashes SEED 0                       one run without a kill
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sim_world.h"

#define SEEDS 8
#define STEPS_UNARMED 100
#define STEPS_ARMED 200
#define KILLS_MAX 2
#define PLACES_MAX 16384

struct place {
    uint32_t number; /* of the call in this run, from 1 on */
    uint16_t middle; /* which one, from 1 on; 0: before or after */
    uint8_t when;
    uint8_t call;
    bool same_remains; /* a worker killed here leaves what it would have left at the place before */
};

struct places {
    uint32_t count;
    struct place at[PLACES_MAX];
};

/* What a dead worker leaves behind. */
struct remains {
    uint64_t words[WORLD_PAGES];
    struct table_header header;
    struct sim_page memory[WORLD_PAGES];
    struct sim_thread threads[SIM_THREADS];
    struct sim_removal removals[SIM_REMOVALS];
    struct world_page pages[WORLD_PAGES];
    struct world_drop drops[WORLD_DROPS];
    struct world_reader readers[TABLE_LOG_READERS];
};

/* One run, and where it stands. */
struct run {
    uint64_t seed;
    uint32_t kill_count;
    struct place kills[KILLS_MAX];
    struct place here;
    struct places *found; /* if the worker is killed once more, it is at one of these */
    char rerun[128];
};

static const char *const call_names[WORLD_CALL_COUNT] = {
    [SIM_READ] = "read", [SIM_POPULATE] = "populate", [SIM_MAP] = "map",       [SIM_COPY] = "copy", [SIM_ZERO] = "zero",
    [SIM_PUNCH] = "punch", [SIM_POISON] = "poison",   [SIM_WAKE] = "wake", [WORLD_ASK] = "ask",  [WORLD_MARK] = "mark",
    [WORLD_TELL] = "tell",
};
static const char *const when_names[] = {[SIM_BEFORE] = "before", [SIM_MIDDLE] = "middle", [SIM_AFTER] = "after"};

static struct world world;
static struct run run;
static struct places found[KILLS_MAX + 1]; /* by the number of kills before */
static uint64_t runs[KILLS_MAX + 1], killed_at[WORLD_CALL_COUNT], replays;

/* ------------------------------------------------------------------------------------------------------------ runs */

static bool same(const struct place *a, const struct place *b)
{
    return a->number == b->number && a->when == b->when && a->middle == b->middle;
}

/* Whether a worker killed here leaves what it would have left at the last place. A batch without events is none. */
static bool remains_same(void)
{
    static struct remains last, now;
    bool is;

    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        now.words[page] = table_word(&world.table, page);
    memcpy(&now.header, world.table.header, sizeof(now.header));
    if (!world_batch_left(&world.table))
        atomic_store(&now.header.batch_count, 0);
    memcpy(now.memory, world.sim.pages, sizeof(now.memory));
    memcpy(now.threads, world.sim.threads, sizeof(now.threads));
    memcpy(now.removals, world.sim.removals, sizeof(now.removals));
    memcpy(now.pages, world.pages, sizeof(now.pages));
    memcpy(now.drops, world.drops, sizeof(now.drops));
    memcpy(now.readers, world.readers, sizeof(now.readers));
    is = memcmp(&last, &now, sizeof(now)) == 0;
    last = now;
    return is;
}

static void passed(struct world *where, unsigned call, enum sim_when when)
{
    struct place *here = &run.here;

    if (when == SIM_BEFORE)
        *here = (struct place){.number = here->number + 1, .call = (uint8_t)call};
    here->when = (uint8_t)when;
    here->middle = when == SIM_MIDDLE ? here->middle + 1 : here->middle;
    if (when == SIM_AFTER)
        here->middle = 0;
    if (where->kills < run.kill_count) {
        if (same(here, &run.kills[where->kills])) {
            killed_at[call]++;
            where->kill_at = where->places;
        }
    } else if (where->kills == 0 || where->recovering) {
        if (run.found->count == PLACES_MAX)
            world_failed(where, WORLD_PAGES, "more places than there is room for");
        run.found->at[run.found->count] = *here;
        run.found->at[run.found->count++].same_remains = run.kill_count == 0 && remains_same();
    }
}

static void name_run(void)
{
    int length = snprintf(run.rerun, sizeof(run.rerun), "test_crashes %llu%s", (unsigned long long)run.seed,
                          run.kill_count == 0 ? " 0" : "");

    for (uint32_t i = 0; i < run.kill_count; i++) {
        const struct place *kill = &run.kills[i];
        length += snprintf(run.rerun + length, sizeof(run.rerun) - (size_t)length, " %u %s", kill->number,
                           when_names[kill->when]);
        if (kill->middle > 1)
            length += snprintf(run.rerun + length, sizeof(run.rerun) - (size_t)length, "%u", kill->middle);
    }
    world.rerun = run.rerun;
}

static void run_once(void)
{
    run.here = (struct place){0};
    run.found = &found[run.kill_count];
    run.found->count = 0;
    name_run();
    world.seed = run.seed;
    world.random = run.seed * UINT64_C(0x9e3779b97f4a7c15);
    world.steps = world.kills = world.replays = 0;
    world_begin(&world);
    for (int i = 0; i < STEPS_UNARMED && !world_armed(&world); i++)
        world_step(&world);
    world_arm(&world);
    for (int i = 0; i < STEPS_ARMED; i++)
        world_step(&world);
    world_heal(&world);
    if (world.kills != run.kill_count)
        world_failed(&world, WORLD_PAGES, "the run did not come to where its worker is to be killed");
    world_end(&world);
    runs[run.kill_count]++;
    replays += world.replays;
}

/* This run, and then those in which the worker is killed at one place more. */
static void explore(void)
{
    const struct places *next = &found[run.kill_count];

    run_once();
    if (run.kill_count == KILLS_MAX || (run.kill_count > 0 && run.kills[run.kill_count - 1].same_remains))
        return;
    run.kill_count++;
    for (uint32_t i = 0; i < next->count; i++) {
        run.kills[run.kill_count - 1] = next->at[i];
        explore();
    }
    run.kill_count--;
}

/* -------------------------------------------------------------------------------------------------------- one run */

static bool parse_place(const char *number, const char *when, struct place *place)
{
    char *end;

    *place = (struct place){.number = (uint32_t)strtoul(number, &end, 10)};
    if (*end != '\0' || place->number == 0)
        return false;
    for (uint8_t i = 0; i < sizeof(when_names) / sizeof(when_names[0]); i++) {
        size_t length = strlen(when_names[i]);
        if (strncmp(when, when_names[i], length) != 0)
            continue;
        place->when = i;
        if (i == SIM_MIDDLE)
            place->middle = when[length] == '\0' ? 1 : (uint16_t)strtoul(when + length, &end, 10);
        return i == SIM_MIDDLE ? place->middle > 0 && *end == '\0' : when[length] == '\0';
    }
    return false;
}

static int rerun(int count, char **words)
{
    run.seed = strtoull(words[0], NULL, 10);
    run.kill_count = (uint32_t)(count - 1) / 2; /* 0 for "SEED 0" */
    if (run.kill_count > KILLS_MAX || (run.kill_count == 0 ? strcmp(words[1], "0") != 0 : count % 2 == 0)) {
        printf("SEED, and at most %d of CALL WHEN\n", KILLS_MAX);
        return 2;
    }
    for (uint32_t i = 0; i < run.kill_count; i++)
        if (!parse_place(words[1 + 2 * i], words[2 + 2 * i], &run.kills[i])) {
            printf("not a call and before, middle or after: %s %s\n", words[1 + 2 * i], words[2 + 2 * i]);
            return 2;
        }
    run_once();
    printf("%s: %s memory, %s, %llu steps, %llu kills, %llu batches replayed\n", run.rerun,
           world.private_memory ? "private" : "shared", world.live ? "live" : "immutable",
           (unsigned long long)world.steps, (unsigned long long)world.kills, (unsigned long long)world.replays);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- all of it */

static int print_sum(uint64_t seeds)
{
    bool all = replays > 0;
    uint32_t legal = 0, entered = 0;

    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        for (int event = 0; event < PAGE_EVENT_COUNT; event++)
            for (int armed = 0; armed < 2; armed++)
                if (page_step((enum page_state)state, (enum page_event)event, armed).legal) {
                    legal++;
                    entered += world.cells[state][event][armed] > 0;
                }
    printf("crash cells %u legal, %u entered\n", legal, entered);
    printf("crash points %llu, runs %llu (second crashes %llu, batches replayed %llu), seeds %llu, calls by op:",
           (unsigned long long)runs[1], (unsigned long long)(runs[1] + runs[2]), (unsigned long long)runs[2],
           (unsigned long long)replays, (unsigned long long)seeds);
    for (int call = 0; call < WORLD_CALL_COUNT; call++) {
        printf(" %s %llu", call_names[call], (unsigned long long)killed_at[call]);
        all = all && killed_at[call] > 0;
    }
    printf("\n");
    if (!all)
        printf("a call was never crashed at, or no batch was ever replayed\n");
    printf("%d passed, %d failed, 0 skipped\n", all ? 2 : 1, !all);
    return !all;
}

int main(int argc, char **argv)
{
    uint64_t seeds = argc == 2 ? strtoull(argv[1], NULL, 10) : SEEDS;
    int rc;

    if (table_create(WORLD_PAGES, &world.table) < 0)
        return 1;
    world.crashes = true;
    world.passed = passed;
    if (argc > 2) {
        rc = rerun(argc - 1, argv + 1);
    } else {
        for (run.seed = 1; run.seed <= seeds; run.seed++)
            explore();
        rc = print_sum(seeds);
    }
    table_close(&world.table);
    return rc;
}
