/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Workers that die, on the real kernel: an engine whose every call of the kernel may be its last. The next worker
 * starts on the same page table and the same userfaultfd, while the VMM's threads sleep in faults and its balloon and
 * zaps go on. Each page that the VMM reads is checked. What only a successor meets happens here: pages that are in place
 * although no word says so.
 *
 *     deaths LOOKS SEED
 *
 * Closes with one line of JSON: looks, wrong, deaths, and all counters of the data plane that are not 0.
 */
#include <inttypes.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../native/real_vm.h"
#include "../support/guest_stamp.h"
#include "kernel/uapi.h"
#include "pager/engine.h"

#define PAGES 256u
#define ASKS_MAX 4096u
#define READS_AT_ONCE 8u
#define LOOKS_A_VM 4000u
#define CALLS_A_LIFE 60u /* at most */
#define VERSION UINT64_C(1)
#define SLEEPY_TURNS 200000u /* and nobody wakes: 4 s at least */

static struct {
    struct real_vm vm;
    bool private_memory;
    struct table table;
    struct regions regions;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    uint64_t asks[ASKS_MAX], ask_count;
    bool removed[PAGES];
    uint64_t random, now_ns;
    uint64_t looks, wrong, deaths;
    sigjmp_buf death;
    uint64_t calls_left; /* of this worker; UINT64_MAX: it lives on */
    bool dies_after;     /* the call, and not before it */
} soak;

static uint64_t dice(uint64_t sides)
{
    soak.random += UINT64_C(0x9e3779b97f4a7c15);
    return stamp_mix(soak.random) % sides;
}

static uint64_t word_of(uint64_t page)
{
    return page % 5 == 4 ? 0 : page * UINT64_C(0x0101010101010101) + 3;
}

/* ----------------------------------------------------------------------------------------- a kernel one may die in */

static bool is_last(void)
{
    return soak.calls_left != UINT64_MAX && soak.calls_left-- == 0;
}

static void die_here(void)
{
    siglongjmp(soak.death, 1);
}

#define MORTAL(call) \
    ({ \
        bool last_ = is_last(); \
        if (last_ && !soak.dies_after) \
            die_here(); \
        __typeof__(call) result_ = (call); \
        if (last_) \
            die_here(); \
        result_; \
    })

static int mortal_read(void *kernel, struct kernel_event *events, int capacity)
{
    return MORTAL(uffd_kernel_ops.read_events(kernel, events, capacity));
}

#define MORTAL_BYTES(name) \
    static struct kernel_outcome mortal_##name(void *kernel, const struct kernel_span *span, const void *bytes) \
    { \
        return MORTAL(uffd_kernel_ops.name(kernel, span, bytes)); \
    }
#define MORTAL_SPAN(name) \
    static struct kernel_outcome mortal_##name(void *kernel, const struct kernel_span *span) \
    { \
        return MORTAL(uffd_kernel_ops.name(kernel, span)); \
    }

MORTAL_BYTES(populate)
MORTAL_BYTES(copy)
MORTAL_SPAN(map)
MORTAL_SPAN(zero)
MORTAL_SPAN(punch)
MORTAL_SPAN(poison)
MORTAL_SPAN(wake)

static const struct kernel_ops mortal_ops = {
    .read_events = mortal_read, .populate = mortal_populate, .map = mortal_map,       .copy = mortal_copy,
    .zero = mortal_zero,        .punch = mortal_punch,       .poison = mortal_poison, .wake = mortal_wake,
};

/* --------------------------------------------------------------------------------------------------------- workers */

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    if (soak.ask_count < ASKS_MAX)
        soak.asks[soak.ask_count++] = page;
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner;
    (void)value;
    soak.wrong++;
    fprintf(stderr, "deaths: report %d of page %" PRIu64 ": %s\n", (int)report, page, text);
}

static void start_worker(void)
{
    struct engine_options options = {
        .table = &soak.table, .regions = &soak.regions, .ops = &mortal_ops, .kernel = &soak.vm.uffd,
        .out = {.ask = on_ask, .report = on_report}, .stats = &soak.stats, .trace = &soak.trace,
        .private_memory = soak.private_memory,
    };

    soak.ask_count = 0;
    soak.dies_after = dice(2) == 0;
    soak.calls_left = dice(CALLS_A_LIFE);
    engine_start(&soak.engine, &options, ++soak.now_ns);
    if (!soak.private_memory && atomic_load(&soak.table.header->armed) == 0 && dice(2) == 0)
        return; /* some pages come before arming */
    engine_arm(&soak.engine);
}

static void succeed(void)
{
    int fd = dup(soak.table.fd);

    soak.deaths++;
    table_close(&soak.table);
    if (fd < 0 || table_adopt(fd, PAGES, &soak.table) != 0)
        exit(71);
}

static void arrive(uint64_t page, uint64_t count)
{
    static _Alignas(4096) uint8_t bytes[PAGES * 4096];
    struct engine_news news = {.kind = word_of(page) == 0 ? ENGINE_ZEROS : ENGINE_DATA, .first_page = page,
                               .version = VERSION, .bytes = word_of(page) == 0 ? NULL : bytes};

    while (news.page_count < count && page + news.page_count < PAGES &&
           (word_of(page + news.page_count) == 0) == (word_of(page) == 0)) {
        real_fill(bytes + news.page_count * 4096, 1, word_of(page + news.page_count));
        news.page_count++;
    }
    engine_news(&soak.engine, &news, soak.now_ns);
}

/* One turn of a worker, as a loop makes it: events, what was asked, some of what was not. */
static void turn(void)
{
    soak.now_ns += 300000;
    engine_turn(&soak.engine, soak.now_ns);
    while (soak.ask_count > 0)
        arrive(soak.asks[--soak.ask_count], 1);
    if (dice(8) == 0)
        arrive(dice(PAGES), 1 + dice(16));
    if (dice(8) == 0)
        engine_sweep(&soak.engine, dice(PAGES), 32);
    engine_tick(&soak.engine, soak.now_ns);
    if (atomic_load(&soak.table.header->armed) == 0 && dice(20) == 0)
        engine_arm(&soak.engine);
}

static struct {
    uint64_t ticket, page;
} reading[READS_AT_ONCE];

/* Where everything stands: pages that somebody may wait for. */
static void tell_sleep(void)
{
    fprintf(stderr, "deaths: a thread of the VMM sleeps for ever (%s, %" PRIu64 " deaths, %" PRIu64 " asleep, %u "
            "parked, armed %u)\n", soak.private_memory ? "private" : "memfd", soak.deaths, real_asleep(&soak.vm),
            soak.engine.parked_count, atomic_load(&soak.table.header->armed));
    for (uint32_t i = 0; i < READS_AT_ONCE; i++)
        fprintf(stderr, "  page %" PRIu64 " word %#" PRIx64 "\n", reading[i].page,
                table_word(&soak.table, reading[i].page));
}

/* Workers, one after another, until so many steps of the VMM have ended; each of its answers to `took`. */
static void serve(uint32_t steps, void (*took)(uint64_t ticket, int64_t answer))
{
    const struct timespec moment = {.tv_nsec = 20000};
    volatile uint32_t left = steps;
    volatile uint64_t idle = 0;
    uint64_t ticket;
    int64_t answer;

    if (sigsetjmp(soak.death, 0) != 0) {
        succeed();
        start_worker();
    }
    while (left > 0) {
        turn();
        if (real_ended(&soak.vm, &ticket, &answer)) {
            took(ticket, answer);
            left--;
            idle = 0;
        } else if (idle++ > SLEEPY_TURNS) {
            tell_sleep();
            exit(1);
        } else {
            nanosleep(&moment, NULL);
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- looks */

static void took_read(uint64_t ticket, int64_t answer)
{
    for (uint32_t i = 0; i < READS_AT_ONCE; i++) {
        if (reading[i].ticket != ticket)
            continue;
        uint64_t page = reading[i].page;
        int64_t wanted = soak.removed[page] ? 0 : (int64_t)word_of(page);
        soak.looks++;
        if (answer != wanted) {
            soak.wrong++;
            fprintf(stderr, "deaths: page %" PRIu64 " reads %" PRId64 ", not %" PRId64 " (%s, after %" PRIu64
                    " deaths)\n", page, answer, wanted, soak.private_memory ? "private" : "memfd", soak.deaths);
        }
    }
}

static void took_nothing(uint64_t ticket, int64_t answer)
{
    if (answer != 0) {
        soak.wrong++;
        fprintf(stderr, "deaths: step %" PRIu64 " of the VMM answers %" PRId64 "\n", ticket, answer);
    }
}

static void some_reads(void)
{
    for (uint32_t i = 0; i < READS_AT_ONCE; i++) {
        reading[i].page = dice(PAGES);
        reading[i].ticket = real_begin(&soak.vm, REAL_READ, reading[i].page, 1, 0);
    }
    serve(READS_AT_ONCE, took_read);
}

/* The balloon takes private memory for ever; of shared memory this is a zap, and nothing is lost. */
static void drop_mappings(void)
{
    uint64_t first = dice(PAGES), count = 1 + dice(soak.private_memory ? 3 : 64);

    count = count < PAGES - first ? count : PAGES - first;
    real_begin(&soak.vm, REAL_ADVISE, first, count, MADV_DONTNEED);
    serve(1, took_nothing);
    for (uint64_t page = first; soak.private_memory && page < first + count; page++)
        soak.removed[page] = true;
}

/* ----------------------------------------------------------------------------------------------------------- a VM */

static bool begin_vm(bool private_memory)
{
    struct real_options options = {.memory = private_memory ? REAL_PRIVATE : REAL_MEMFD, .pages = PAGES,
                                   .features = UFFD_FEATURE_EVENT_REMOVE};
    struct region region = {.page_count = PAGES};

    soak.private_memory = private_memory;
    memset(soak.removed, 0, sizeof(soak.removed));
    if (!real_start(&soak.vm, &options))
        return false;
    region.address = soak.vm.address;
    return regions_set(&soak.regions, &region, 1) == 0 && table_create(PAGES, &soak.table) == 0;
}

static void life_of_a_vm(bool private_memory)
{
    uint64_t until = soak.looks + LOOKS_A_VM;

    if (!begin_vm(private_memory))
        exit(71);
    if (sigsetjmp(soak.death, 0) != 0)
        succeed();
    start_worker();
    while (soak.looks < until) {
        some_reads();
        if (dice(4) == 0)
            drop_mappings();
    }
    table_close(&soak.table);
    real_end(&soak.vm);
}

int main(int argc, char **argv)
{
    uint64_t looks = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;

    soak.random = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    while (soak.looks < looks)
        life_of_a_vm(soak.looks / LOOKS_A_VM % 2 != 0);
    printf("{\"looks\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"deaths\":%" PRIu64, soak.looks, soak.wrong, soak.deaths);
    for (uint32_t i = 0; i < STATS_COUNTER_COUNT; i++)
        if (stats_get(&soak.stats, (enum stats_counter)i) != 0)
            printf(",\"%s\":%" PRIu64, stats_counter_name(i), stats_get(&soak.stats, (enum stats_counter)i));
    printf("}\n");
    return soak.wrong != 0;
}
