/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated kernel against the real one: the same random calls, accesses and madvises on both, and every outcome,
 * event and byte must be the same. What no call of ours may do (a write to a mapped page, a poison marker that is
 * overwritten) is done here, too. The cases that one can name are in test_kernels.c.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "check.h"
#include "kernel/probe.h"
#include "kernel/uapi.h"
#include "real_vm.h"
#include "sim_kernel.h"

#define PAGES 12
#define STEPS 2500
#define RUN_MAX 4

struct pair {
    struct real_vm real;
    struct sim_kernel sim;
    struct regions regions;
    uint64_t random, step;
    bool private_memory, poison;
    _Alignas(8) uint8_t bytes[RUN_MAX * PAGE_BYTES];
};

static bool poison_works; /* Linux 6.6 */

/* The simulation complains of what the engine must never do; here it is done on purpose. */
static void let_it_be(void *owner, uint64_t page, const char *text)
{
    (void)owner;
    (void)page;
    (void)text;
}

static bool begin(struct pair *pair, enum real_memory memory, uint64_t features)
{
    struct real_options options = {.memory = memory, .pages = PAGES, .features = features};
    struct region region = {.page_count = PAGES};
    bool started = real_start(&pair->real, &options);

    CHECK(started);
    region.address = pair->real.address;
    pair->private_memory = memory == REAL_PRIVATE;
    pair->poison = poison_works;
    pair->random = memory + 1;
    pair->step = 0;
    CHECK_EQ(regions_set(&pair->regions, &region, 1), 0);
    sim_open(&pair->sim, &pair->regions, pair->private_memory, 1);
    pair->sim.failed = let_it_be;
    return started;
}

static void end(struct pair *pair)
{
    real_end(&pair->real);
    sim_close(&pair->sim);
}

static void differs(const struct pair *pair, const char *what, uint64_t page, uint64_t count)
{
    printf("step %llu, %s memory: %s of page %llu + %llu differs\n", (unsigned long long)pair->step,
           pair->private_memory ? "private" : "shared", what, (unsigned long long)page, (unsigned long long)count);
    check_bad = 1;
}

/* ---------------------------------------------------------------------------------------------------------- calls */

static struct kernel_outcome call(const struct kernel_ops *ops, void *kernel, enum sim_call which,
                                  const struct kernel_span *span, const void *bytes)
{
    struct kernel_outcome outcome = {.result = KERNEL_REFUSED};

    switch (which) {
    case SIM_POPULATE:
        outcome = ops->populate(kernel, span, bytes);
        break;
    case SIM_MAP:
        outcome = ops->map(kernel, span);
        break;
    case SIM_COPY:
        outcome = ops->copy(kernel, span, bytes);
        break;
    case SIM_ZERO:
        outcome = ops->zero(kernel, span);
        break;
    case SIM_PUNCH:
        outcome = ops->punch(kernel, span);
        break;
    case SIM_POISON:
        outcome = ops->poison(kernel, span);
        break;
    default:
        outcome = ops->wake(kernel, span);
        break;
    }
    return outcome;
}

static const char *const call_names[SIM_CALL_COUNT] = {
    [SIM_POPULATE] = "populate", [SIM_MAP] = "map",       [SIM_COPY] = "copy", [SIM_ZERO] = "zero",
    [SIM_PUNCH] = "punch",       [SIM_POISON] = "poison", [SIM_WAKE] = "wake",
};

static enum kernel_result call_both(struct pair *pair, enum sim_call which, uint64_t page, uint64_t count)
{
    struct kernel_span span = real_span(&pair->real, page, count);
    struct kernel_outcome real, sim;

    for (uint64_t i = 0; i < count; i++)
        real_fill(pair->bytes + i * PAGE_BYTES, 1, pair->step << 8 | (page + i));
    real = call(&uffd_kernel_ops, &pair->real.uffd, which, &span, pair->bytes);
    sim = call(&sim_kernel_ops, &pair->sim, which, &span, pair->bytes);
    if (real.result != sim.result || real.done_bytes != sim.done_bytes) {
        differs(pair, call_names[which], page, count);
        printf("result %d after %llu bytes; simulated %d after %llu\n", real.result,
               (unsigned long long)real.done_bytes, sim.result, (unsigned long long)sim.done_bytes);
    }
    return real.result;
}

static enum sim_call pick_call(struct pair *pair)
{
    static const enum sim_call shared[] = {SIM_POPULATE, SIM_MAP, SIM_MAP, SIM_COPY, SIM_ZERO, SIM_PUNCH, SIM_WAKE};
    static const enum sim_call private[] = {SIM_COPY, SIM_ZERO, SIM_WAKE};

    if (pair->poison && sim_below(&pair->random, 8) == 0)
        return SIM_POISON;
    return pair->private_memory ? private[sim_below(&pair->random, 3)] : shared[sim_below(&pair->random, 7)];
}

/* -------------------------------------------------------------------------------------------------------- accesses */

/* An event on both: the same page, the same flavour. Then it is resolved, and the thread answers. */
static void resolve_both(struct pair *pair, uint64_t page, bool write)
{
    struct kernel_event real = {0}, sim[4] = {{0}};
    bool minor;

    CHECK(real_event(&pair->real, &real));
    pair->sim.random = 1; /* a whole batch */
    CHECK_EQ(sim_kernel_ops.read_events(&pair->sim, sim, 4), 1);
    if (real.kind != sim[0].kind || real.address != sim[0].address || real.flags != sim[0].flags)
        differs(pair, "the event", page, 1);
    minor = (real.flags & KERNEL_FAULT_MINOR) != 0;
    call_both(pair, minor ? SIM_MAP : SIM_COPY, page, 1);
    CHECK(!pair->sim.threads[0].sleeps);
    if (write)
        CHECK_EQ(real_answer(&pair->real), 0);
}

static void access_both(struct pair *pair, uint64_t page)
{
    bool write = sim_below(&pair->random, 3) == 0 && pair->sim.pages[page].pte != SIM_PTE_POISON;
    int64_t word = (int64_t)(pair->step << 8 | 0x80 | page), answer = 0;
    uint64_t token = 0;
    enum sim_access access = sim_touch(&pair->sim, 0, page, write, &token);

    real_begin(&pair->real, write ? REAL_WRITE : REAL_READ, page, 1, word);
    if (access == SIM_SLEEPS) {
        resolve_both(pair, page, write);
        token = pair->sim.pages[page].token;
    } else if (write) {
        CHECK_EQ(real_answer(&pair->real), 0);
    }
    if (write) {
        pair->sim.pages[page].token = (uint64_t)word;
    } else {
        answer = real_answer(&pair->real);
        if (access == SIM_SIGBUS ? answer != REAL_SIGBUS : (uint64_t)answer != token)
            differs(pair, "what is read", page, 1);
    }
}

static void zap_both(struct pair *pair, uint64_t page, uint64_t count)
{
    struct kernel_span span = real_span(&pair->real, page, count);

    CHECK_EQ(real_do(&pair->real, REAL_ADVISE, page, count, MADV_DONTNEED), 0);
    CHECK(sim_remove(&pair->sim, span.address, span.address + span.length_bytes, pair->private_memory));
    pair->sim.removals[0].stage = SIM_REMOVAL_COMPLETED; /* no events were asked for: nobody waits for a reader */
    CHECK(sim_removal_step(&pair->sim, 0) != NULL);
}

static void walk(enum real_memory memory)
{
    static struct pair pair;

    if (begin(&pair, memory, 0))
        for (pair.step = 1; pair.step <= STEPS && !check_bad; pair.step++) {
            uint64_t page = sim_below(&pair.random, PAGES), count = 1 + sim_below(&pair.random, RUN_MAX);
            uint64_t dice = sim_below(&pair.random, 20);
            if (count > PAGES - page)
                count = PAGES - page;
            if (dice < 12)
                call_both(&pair, pick_call(&pair), page, count);
            else if (dice < 17)
                access_both(&pair, page);
            else
                zap_both(&pair, page, count);
        }
    end(&pair);
}

static void both_do_the_same_on_memfd(void)
{
    walk(REAL_MEMFD);
}

static void both_do_the_same_on_tmpfs(void)
{
    walk(REAL_TMPFS);
}

static void both_do_the_same_on_private_memory(void)
{
    walk(REAL_PRIVATE);
}

/* -------------------------------------------------------------------------------------------------------- removals */

/* Until the event is read, whatever maps answers LATER, and nothing else does. Once the madvise has ended, nothing does;
 * and it is only then certain that the pages are gone. */
static void both_say_later_while_a_removal_waits(void)
{
    static const enum sim_call calls[] = {SIM_COPY, SIM_ZERO, SIM_MAP, SIM_POISON, SIM_POPULATE, SIM_WAKE};
    static struct pair pair;

    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct kernel_event real = {0}, sim[4] = {{0}};
        if (begin(&pair, memory, UFFD_FEATURE_EVENT_REMOVE)) {
            struct kernel_span span = real_span(&pair.real, 2, 3);
            pair.step = 1;
            CHECK_EQ(call_both(&pair, SIM_COPY, 0, 4), KERNEL_MAPPED);
            real_begin(&pair.real, REAL_ADVISE, 2, 3, MADV_DONTNEED);
            CHECK(real_event_waits(&pair.real));
            CHECK(sim_remove(&pair.sim, span.address, span.address + span.length_bytes, pair.private_memory));
            for (uint32_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
                enum sim_call which = calls[i];
                bool shared_only = which == SIM_MAP || which == SIM_POPULATE;
                bool maps = which != SIM_POPULATE && which != SIM_WAKE;
                if ((shared_only && pair.private_memory) || (which == SIM_POISON && !pair.poison))
                    continue;
                CHECK_EQ(call_both(&pair, which, 8, 2), maps ? KERNEL_LATER : KERNEL_MAPPED);
            }
            CHECK(real_event(&pair.real, &real));
            pair.sim.random = 1;
            CHECK_EQ(sim_kernel_ops.read_events(&pair.sim, sim, 4), 1);
            CHECK_EQ(real.kind, KERNEL_EVENT_REMOVE);
            CHECK(real.kind == sim[0].kind && real.start == sim[0].start && real.end == sim[0].end);
            CHECK_EQ(real_answer(&pair.real), 0);
            CHECK(sim_removal_step(&pair.sim, 0) == NULL);
            CHECK(sim_removal_step(&pair.sim, 0) != NULL);
            for (uint64_t page = 0; page < 5; page++)
                access_both(&pair, page);
        }
        end(&pair);
    }
}

int main(void)
{
    struct probe probe;

    probe_run(-1, true, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_GOOD) {
        SKIP(test_kernels_walk, "no userfaultfd right");
        return check_done();
    }
    poison_works = probe.facts[PROBE_POISON].verdict == PROBE_GOOD;
    RUN(both_do_the_same_on_memfd);
    RUN(both_do_the_same_on_tmpfs);
    RUN(both_do_the_same_on_private_memory);
    RUN(both_say_later_while_a_removal_waits);
    return check_done();
}
