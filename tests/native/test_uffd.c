/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each call of the real kernel_ops comes to, on the kernel that runs, on memfd, tmpfs and private memory, resolved
 * from another process than the one that faults. native/kernel/uffd.c names these tests beside what they prove.
 * test_uffd_ends.c has what cannot be done, test_uffd_events.c the events and the sleepers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "kernel/probe.h"
#include "kernel/scan.h"
#include "kernel/uapi.h"
#include "real_vm.h"

#define PAGES 16
#define OPS (&uffd_kernel_ops)

static bool poison_works; /* Linux 6.6 */

static bool start(struct real_vm *vm, enum real_memory memory)
{
    struct real_options options = {.memory = memory, .pages = PAGES};
    bool started = real_start(vm, &options);

    CHECK(started);
    return started;
}

/* -------------------------------------------------------------------------------------------------- what they do */

static void test_copy_fills_and_wakes(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            real_begin(&vm, REAL_READ, 3, 1, 0);
            CHECK(real_faults(&vm, 3, 0));
            CHECK_OUTCOME(real_copy(&vm, 3, 1, 0x33), KERNEL_MAPPED, 1);
            CHECK_EQ(real_answer(&vm), 0x33);
            CHECK_OUTCOME(real_copy(&vm, 8, 8, 0x88), KERNEL_MAPPED, 8);
            CHECK_EQ(real_do(&vm, REAL_READ, 15, 1, 0), 0x88);
        }
        real_end(&vm);
    }
}

static void test_zero_fills_and_wakes(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            real_begin(&vm, REAL_READ, 5, 1, 0);
            CHECK(real_faults(&vm, 5, 0));
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 4, 3), KERNEL_MAPPED, 3);
            CHECK_EQ(real_answer(&vm), 0);
            CHECK_EQ(real_do(&vm, REAL_WRITE, 5, 1, 0x55), 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 5, 1, 0), 0x55);
        }
        real_end(&vm);
    }
}

/* A write fault is flagged, a page in the cache makes it minor: hints, both. CONTINUE maps it for writing as well. */
static void test_populate_then_map(void)
{
    for (enum real_memory memory = REAL_MEMFD; memory <= REAL_TMPFS; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_populate(&vm, 2, 4, 0x22), KERNEL_MAPPED, 4);
            real_begin(&vm, REAL_READ, 2, 1, 0);
            CHECK(real_faults(&vm, 2, KERNEL_FAULT_MINOR));
            CHECK_OUTCOME(real_call(OPS->map, &vm, 2, 4), KERNEL_MAPPED, 4);
            CHECK_EQ(real_answer(&vm), 0x22);
            CHECK_EQ(real_do(&vm, REAL_WRITE, 3, 1, 0x33), 0);
            real_begin(&vm, REAL_WRITE, 9, 1, 0x99);
            CHECK(real_faults(&vm, 9, KERNEL_FAULT_WRITE));
            CHECK_OUTCOME(real_populate(&vm, 9, 1, 0x11), KERNEL_MAPPED, 1);
            CHECK_OUTCOME(real_call(OPS->map, &vm, 9, 1), KERNEL_MAPPED, 1);
            CHECK_EQ(real_answer(&vm), 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 9, 1, 0), 0x99);
        }
        real_end(&vm);
    }
}

/* A punch drops bytes and mapping, and no event says so: the next access is a missing fault. */
static void test_punch(void)
{
    for (enum real_memory memory = REAL_MEMFD; memory <= REAL_TMPFS; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_copy(&vm, 0, PAGES, 0x44), KERNEL_MAPPED, PAGES);
            CHECK_OUTCOME(real_call(OPS->punch, &vm, 6, 2), KERNEL_MAPPED, 2);
            real_begin(&vm, REAL_READ, 6, 1, 0);
            CHECK(real_faults(&vm, 6, 0));
            CHECK_OUTCOME(real_call(OPS->map, &vm, 6, 1), KERNEL_ABSENT, 0);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 6, 1), KERNEL_MAPPED, 1);
            CHECK_EQ(real_answer(&vm), 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 5, 1, 0), 0x44);
            CHECK_OUTCOME(real_call(OPS->punch, &vm, 6, 2), KERNEL_MAPPED, 2); /* of what is a hole in part */
        }
        real_end(&vm);
    }
}

static void test_poison(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            real_begin(&vm, REAL_READ, 1, 1, 0);
            CHECK(real_faults(&vm, 1, 0));
            CHECK_OUTCOME(real_call(OPS->poison, &vm, 1, 2), KERNEL_MAPPED, 2);
            CHECK_EQ(real_answer(&vm), REAL_SIGBUS);
            CHECK_EQ(real_do(&vm, REAL_READ, 2, 1, 0), REAL_SIGBUS);
            CHECK_OUTCOME(real_call(OPS->poison, &vm, 1, 1), KERNEL_ALREADY, 0);
            CHECK_OUTCOME(real_copy(&vm, 3, 1, 0x33), KERNEL_MAPPED, 1);
            CHECK_OUTCOME(real_call(OPS->poison, &vm, 3, 1), KERNEL_ALREADY, 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 3, 1, 0), 0x33);
        }
        real_end(&vm);
    }
}

/* Of memory whose writes are tracked a page that is clean has a marker of its own, also where it is absent or punched. It
 * is poisoned all the same, and counts as written: a round tells the next target. */
static void test_poison_where_writes_are_tracked(void)
{
    struct real_options options = {
        .memory = REAL_MEMFD, .pages = PAGES, .features = UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC,
        .modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP};
    struct scan_range range;
    uint64_t looked_end;
    struct real_vm vm;
    int pagemap_fd;

    CHECK(real_start(&vm, &options));
    pagemap_fd = scan_open(vm.pid, -1);
    CHECK(pagemap_fd >= 0);
    CHECK_OUTCOME(real_copy(&vm, 2, 4, 0x22), KERNEL_MAPPED, 4);
    CHECK_EQ(scan_calls.reset(pagemap_fd, vm.address, vm.address + PAGES * REAL_PAGE), 0);
    CHECK_EQ(scan_calls.dirty(pagemap_fd, vm.address, vm.address + PAGES * REAL_PAGE, &range, &looked_end), 0);
    CHECK_OUTCOME(real_call(OPS->punch, &vm, 3, 2), KERNEL_MAPPED, 2);
    real_begin(&vm, REAL_READ, 4, 1, 0);
    CHECK(real_faults(&vm, 4, 0));
    CHECK_OUTCOME(real_call(OPS->poison, &vm, 3, 2), KERNEL_MAPPED, 2);
    CHECK_EQ(real_answer(&vm), REAL_SIGBUS);
    CHECK_OUTCOME(real_call(OPS->poison, &vm, 10, 3), KERNEL_MAPPED, 3);
    CHECK_EQ(real_do(&vm, REAL_READ, 12, 1, 0), REAL_SIGBUS);
    CHECK_OUTCOME(real_call(OPS->poison, &vm, 10, 1), KERNEL_ALREADY, 0);
    CHECK_OUTCOME(real_call(OPS->poison, &vm, 2, 1), KERNEL_ALREADY, 0); /* mapped */
    CHECK_EQ(real_do(&vm, REAL_READ, 5, 1, 0), 0x22);
    CHECK_EQ(scan_calls.dirty(pagemap_fd, vm.address + 3 * REAL_PAGE, vm.address + 5 * REAL_PAGE, &range, &looked_end), 1);
    CHECK_EQ(range.end - range.start, 2 * REAL_PAGE);
    close(pagemap_fd);
    real_end(&vm);
}

/* The kernel lets every filling call replace a poison marker, save ZEROPAGE on private memory: whoever calls them must
 * leave poisoned pages out. */
static void test_poison_is_overwritten(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_call(OPS->poison, &vm, 1, 3), KERNEL_MAPPED, 3);
            CHECK_OUTCOME(real_copy(&vm, 1, 1, 0x11), KERNEL_MAPPED, 1);
            CHECK_EQ(real_do(&vm, REAL_READ, 1, 1, 0), 0x11);
            if (memory == REAL_PRIVATE) {
                CHECK_OUTCOME(real_call(OPS->zero, &vm, 3, 1), KERNEL_ALREADY, 0);
                CHECK_EQ(real_do(&vm, REAL_READ, 3, 1, 0), REAL_SIGBUS);
            } else {
                CHECK_OUTCOME(real_populate(&vm, 2, 1, 0x22), KERNEL_MAPPED, 1);
                CHECK_OUTCOME(real_call(OPS->map, &vm, 2, 1), KERNEL_MAPPED, 1);
                CHECK_EQ(real_do(&vm, REAL_READ, 2, 1, 0), 0x22);
                CHECK_OUTCOME(real_call(OPS->zero, &vm, 3, 1), KERNEL_MAPPED, 1);
                CHECK_EQ(real_do(&vm, REAL_READ, 3, 1, 0), 0);
            }
        }
        real_end(&vm);
    }
}

/* ------------------------------------------------------------------------------------------------ ALREADY, ABSENT */

static void test_already_mapped(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_copy(&vm, 7, 1, 0x77), KERNEL_MAPPED, 1);
            CHECK_OUTCOME(real_copy(&vm, 7, 1, 0x11), KERNEL_ALREADY, 0);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 7, 1), KERNEL_ALREADY, 0);
            if (memory != REAL_PRIVATE)
                CHECK_OUTCOME(real_call(OPS->map, &vm, 7, 1), KERNEL_ALREADY, 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 7, 1, 0), 0x77);
        }
        real_end(&vm);
    }
}

/* Nothing is mapped, but the cache holds something: COPY and ZEROPAGE refuse it and leave it as it is. */
static void test_already_in_the_cache(void)
{
    for (enum real_memory memory = REAL_MEMFD; memory <= REAL_TMPFS; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_populate(&vm, 7, 1, 0x77), KERNEL_MAPPED, 1);
            CHECK_OUTCOME(real_copy(&vm, 7, 1, 0x11), KERNEL_ALREADY, 0);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 7, 1), KERNEL_ALREADY, 0);
            real_begin(&vm, REAL_READ, 7, 1, 0);
            CHECK(real_faults(&vm, 7, KERNEL_FAULT_MINOR));
            CHECK_OUTCOME(real_call(OPS->map, &vm, 7, 1), KERNEL_MAPPED, 1);
            CHECK_EQ(real_answer(&vm), 0x77);
        }
        real_end(&vm);
    }
}

/* The sleeper of a hole sleeps on: it is the caller's to fill. */
static void test_map_of_a_hole(void)
{
    for (enum real_memory memory = REAL_MEMFD; memory <= REAL_TMPFS; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            real_begin(&vm, REAL_READ, 4, 1, 0);
            CHECK(real_faults(&vm, 4, 0));
            CHECK_OUTCOME(real_call(OPS->map, &vm, 4, 1), KERNEL_ABSENT, 0);
            CHECK(real_sleeps(&vm));
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 4, 1), KERNEL_MAPPED, 1);
            CHECK_EQ(real_answer(&vm), 0);
        }
        real_end(&vm);
    }
}

/* The threads that sleep on what was done are awake, whatever stopped the call behind it. */
static void test_partial_copy_and_zero(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_OUTCOME(real_copy(&vm, 5, 1, 0x55), KERNEL_MAPPED, 1);
            CHECK_OUTCOME(real_copy(&vm, 13, 1, 0xdd), KERNEL_MAPPED, 1);
            real_begin(&vm, REAL_READ, 3, 1, 0);
            CHECK(real_faults(&vm, 3, 0));
            CHECK_OUTCOME(real_copy(&vm, 2, 6, 0x22), KERNEL_ALREADY, 3);
            CHECK_EQ(real_answer(&vm), 0x22);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 8, 8), KERNEL_ALREADY, 5);
            if (poison_works)
                CHECK_OUTCOME(real_call(OPS->poison, &vm, 6, 4), KERNEL_ALREADY, 2);
            CHECK_EQ(real_do(&vm, REAL_READ, 13, 1, 0), 0xdd);
            CHECK_EQ(real_do(&vm, REAL_READ, 12, 1, 0), 0);
        }
        real_end(&vm);
    }
}

static void test_partial_map(void)
{
    struct kernel_outcome outcome;
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD)) {
        CHECK_OUTCOME(real_populate(&vm, 0, 6, 0x11), KERNEL_MAPPED, 6);
        CHECK_EQ(real_call(OPS->map, &vm, 3, 1).parts, 0);
        outcome = real_call(OPS->map, &vm, 0, 8);
        CHECK_OUTCOME(outcome, KERNEL_ALREADY, 3);
        CHECK_EQ(outcome.parts, 1);
        CHECK_OUTCOME(real_call(OPS->map, &vm, 4, 8), KERNEL_ABSENT, 2);
        for (uint64_t page = 0; page < 6; page++)
            CHECK_EQ(real_do(&vm, REAL_READ, page, 1, 0), 0x11);
    }
    real_end(&vm);
}

/* The mapping under a sleeping thread goes away. Nobody but us would ever wake it. */
static void test_absent_after_unmap(void)
{
    real_op *const ops[] = {OPS->zero, OPS->map, poison_works ? OPS->poison : OPS->zero};

    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        for (int which = 0; which < 4; which++) {
            struct real_vm vm;
            if (start(&vm, memory)) {
                real_begin(&vm, REAL_READ, 5, 1, 0);
                CHECK(real_faults(&vm, 5, 0));
                CHECK_EQ(real_do(&vm, REAL_UNMAP, 4, 4, 0), 0);
                CHECK(real_sleeps(&vm));
                CHECK_OUTCOME(which < 3 ? real_call(ops[which], &vm, 5, 1) : real_copy(&vm, 5, 1, 0x55),
                              KERNEL_ABSENT, 0);
                CHECK_EQ(real_answer(&vm), REAL_SIGSEGV);
            }
            real_end(&vm);
        }
    }
}

/* A VMM that changes a part of its mapping splits it, and a call that crosses the seam does nothing at all: ENOENT. It
 * must not look as if there were no memory. */
static void test_call_across_a_split_mapping(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory)) {
            CHECK_EQ(real_do(&vm, REAL_PROTECT, 3, 2, PROT_READ), 0);
            CHECK_EQ(real_do(&vm, REAL_ADVISE, 9, 1, MADV_DONTDUMP), 0);
            CHECK_OUTCOME(real_copy(&vm, 0, 7, 0x11), KERNEL_MAPPED, 7);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 7, 3), KERNEL_MAPPED, 3);
            CHECK_EQ(real_do(&vm, REAL_UNMAP, 13, 1, 0), 0);
            CHECK_OUTCOME(real_copy(&vm, 10, 6, 0x22), KERNEL_ABSENT, 3);
            CHECK_EQ(real_do(&vm, REAL_READ, 4, 1, 0), 0x11);
            CHECK_EQ(real_do(&vm, REAL_READ, 9, 1, 0), 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 12, 1, 0), 0x22);
        }
        real_end(&vm);
    }
}

/* The VMM cuts its RAM file while a thread sleeps on what was behind the cut: it gets any other reader's SIGBUS. */
static void test_file_cut_short(void)
{
    for (int which = 0; which < 3; which++) {
        struct real_vm vm;
        if (start(&vm, REAL_MEMFD)) {
            real_begin(&vm, REAL_READ, 12, 1, 0);
            CHECK(real_faults(&vm, 12, 0));
            CHECK_OUTCOME(real_populate(&vm, 0, 4, 0x11), KERNEL_MAPPED, 4);
            CHECK(ftruncate(vm.uffd.backing_fd, 8 * 4096) == 0);
            if (which == 0)
                CHECK_OUTCOME(real_copy(&vm, 12, 1, 0x55), KERNEL_ABSENT, 0);
            else
                CHECK_OUTCOME(real_call(which == 1 ? OPS->zero : OPS->map, &vm, 12, 1), KERNEL_ABSENT, 0);
            CHECK_EQ(real_answer(&vm), REAL_SIGBUS);
            CHECK_OUTCOME(real_copy(&vm, 6, 4, 0x66), KERNEL_ABSENT, 2);
            CHECK_OUTCOME(real_call(OPS->map, &vm, 0, 4), KERNEL_MAPPED, 4);
        }
        real_end(&vm);
    }
}

int main(void)
{
    struct probe probe;

    probe_run(-1, true, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_GOOD) {
        SKIP(test_uffd, "no userfaultfd right");
        return check_done();
    }
    poison_works = probe.facts[PROBE_POISON].verdict == PROBE_GOOD;
    RUN(test_copy_fills_and_wakes);
    RUN(test_zero_fills_and_wakes);
    RUN(test_populate_then_map);
    RUN(test_punch);
    if (poison_works) {
        RUN(test_poison);
        RUN(test_poison_is_overwritten);
    } else {
        SKIP(test_poison, "no UFFDIO_POISON: Linux 6.6");
    }
    if (probe.facts[PROBE_DIRTY_TRACKING].verdict == PROBE_GOOD)
        RUN(test_poison_where_writes_are_tracked);
    else
        SKIP(test_poison_where_writes_are_tracked, "no tracking of writes: Linux 6.7");
    RUN(test_already_mapped);
    RUN(test_already_in_the_cache);
    RUN(test_map_of_a_hole);
    RUN(test_partial_copy_and_zero);
    RUN(test_partial_map);
    RUN(test_absent_after_unmap);
    RUN(test_call_across_a_split_mapping);
    RUN(test_file_cut_short);
    return check_done();
}
