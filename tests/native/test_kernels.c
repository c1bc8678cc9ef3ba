/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated kernel agrees with Linux: each case of kernel_cases.c is done on both, and every result, every
 * progress, who wakes and what he reads, every event and every byte of the cache must be the same. What the engine
 * learns in the simulation is then true of Linux. test_kernels_walk.c takes random steps on both.
 *
 *   test_kernels                every case, and each plant of kernel_plants.c, which some case must find
 *   test_kernels --plant NAME   the cases in which the simulation with this plant differs; exit status 1 if any does
 *   test_kernels --case NAME    what is seen of each step of a case, on Linux and in the simulation
 */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "huge_pool.h"
#include "kernel/probe.h"
#include "kernel_cases.h"
#include "kernel_plants.h"

static bool poison_works; /* Linux 6.6 */
static bool pool_is_there;
static struct kernel_case cases[CASES_MAX];
static struct record said[CASES_MAX]; /* by Linux */
static uint32_t case_count;

static const char *memory_name(enum real_memory memory)
{
    static const char *const names[] = {[REAL_MEMFD] = "memfd", [REAL_TMPFS] = "tmpfs", [REAL_PRIVATE] = "private",
                                        [REAL_HUGE] = "pool", [REAL_HUGE_PRIVATE] = "pool-private"};

    return names[memory];
}

/* Why a case cannot be had here, or NULL. */
static const char *lacking(const struct kernel_case *one)
{
    if (strstr(one->steps, "poison") != NULL && !poison_works)
        return "no UFFDIO_POISON: Linux 6.6";
    if (one->small && geteuid() != 0)
        return "needs root: to make a small tmpfs";
    if (real_is_huge(one->memory) && !pool_is_there)
        return "no huge pages of 2 MiB to be had";
    return NULL;
}

static void ask_linux(void)
{
    case_count = kernel_cases(cases);
    for (uint32_t i = 0; i < case_count; i++)
        if (lacking(&cases[i]) == NULL)
            script_run(&cases[i], &side_real, NULL, &said[i]);
}

static bool agrees(uint32_t i, const struct plant *plant, char what[WRONG_TEXT])
{
    static struct record sim;

    script_run(&cases[i], &side_simulated, plant, &sim);
    return script_agree(&said[i], &sim, what);
}

static void both_agree_in_every_case(void)
{
    char what[WRONG_TEXT];
    uint32_t agree = 0, tried = 0;

    for (uint32_t i = 0; i < case_count; i++) {
        const char *lacks = lacking(&cases[i]);
        bool same;
        if (lacks != NULL) {
            printf("SKIP case %s %s: %s\n", memory_name(cases[i].memory), cases[i].name, lacks);
            check_skipped++;
            continue;
        }
        same = agrees(i, NULL, what);
        printf("case %-7s %s  %s%s\n", memory_name(cases[i].memory), cases[i].name,
               same ? "agree" : "DISAGREE: ", what);
        tried++;
        agree += same;
    }
    printf("cases %u, agree %u\n", tried, agree);
    CHECK_EQ(agree, tried);
    CHECK(tried >= 60);
}

/* How many cases disagree with the plant in place, and the first of them. */
static uint32_t disagreements(const struct plant *plant, bool print, const struct kernel_case **first)
{
    char what[WRONG_TEXT];
    uint32_t count = 0;

    for (uint32_t i = 0; i < case_count; i++) {
        if (lacking(&cases[i]) != NULL || real_is_huge(cases[i].memory) || agrees(i, plant, what))
            continue;
        if (count++ == 0)
            *first = &cases[i];
        if (print)
            printf("case %-7s %s  DISAGREE: %s\n", memory_name(cases[i].memory), cases[i].name, what);
    }
    return count;
}

static void each_plant_is_found(void)
{
    for (uint32_t i = 0; i < plant_count; i++) {
        const struct kernel_case *first = NULL;
        uint32_t count = disagreements(&plants[i], false, &first);
        CHECK(count > 0);
        printf("plant %s  %u cases disagree, first %s\n", plants[i].name, count, first == NULL ? "none" : first->name);
    }
}

/* 1 when the plant is found, as a test that fails; 2 when there is none of that name. */
static int run_plant(const char *name)
{
    const struct kernel_case *first = NULL;

    for (uint32_t i = 0; i < plant_count; i++)
        if (strcmp(plants[i].name, name) == 0)
            return disagreements(&plants[i], true, &first) != 0;
    printf("no plant %s; there are:\n", name);
    for (uint32_t i = 0; i < plant_count; i++)
        printf("  %s\n", plants[i].name);
    return 2;
}

/* Both records of a case, side by side. */
static int show_case(const char *name)
{
    static struct record sim;

    for (uint32_t i = 0; i < case_count; i++) {
        if (strcmp(cases[i].name, name) != 0)
            continue;
        script_run(&cases[i], &side_simulated, NULL, &sim);
        printf("%s memory\n", memory_name(cases[i].memory));
        for (uint32_t line = 0; line < said[i].count; line++)
            printf("  %-60s %s %s\n", said[i].lines[line],
                   strcmp(said[i].lines[line], sim.lines[line]) == 0 ? "=" : "!", sim.lines[line]);
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct probe probe;

    probe_run(-1, true, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_GOOD) {
        SKIP(test_kernels, "no userfaultfd right");
        return check_done();
    }
    poison_works = probe.facts[PROBE_POISON].verdict == PROBE_GOOD;
    pool_is_there = huge_pool_add(2 * SIDE_PAGES);
    ask_linux();
    if (argc == 3 && strcmp(argv[1], "--plant") == 0)
        return run_plant(argv[2]);
    if (argc == 3 && strcmp(argv[1], "--case") == 0)
        return show_case(argv[2]);
    RUN(both_agree_in_every_case);
    RUN(each_plant_is_found);
    return check_done();
}
