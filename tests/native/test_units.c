/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages on the real kernel, beyond what kernel_cases.c compares: the views of a RAM file (kernel/view.h), what an
 * empty pool says, and the engine over them, of which no thread of the VM may see a part of a huge page.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "huge_pool.h"
#include "kernel/mapping.h"
#include "kernel/probe.h"
#include "kernel/uapi.h"
#include "pager/engine.h"
#include "pager/log.h"
#include "real_vm.h"

#define OPS (&uffd_kernel_ops)
#define UNITS 3
#define PAGES (UNITS * REAL_HUGE_PAGES)
#define VERSION 9

static uint64_t blocks_of(int fd)
{
    struct stat facts;

    return fstat(fd, &facts) == 0 ? (uint64_t)facts.st_blocks : UINT64_MAX;
}

/* ------------------------------------------------------------------------------------------------------------- views */

static struct kernel_outcome write_page(const struct view *view, int file, uint64_t page)
{
    static _Alignas(4096) uint8_t bytes[REAL_PAGE];
    struct kernel_span span = {.length_bytes = REAL_PAGE, .file_offset = page * REAL_PAGE};

    real_fill(bytes, 1, 0x55);
    return view_populate(view, file, &span, bytes);
}

/* The tmpfs has huge pages always: pwrite of one page brings 512, and through the alias comes one. */
static void an_alias_brings_only_the_page_it_writes(void)
{
    int plain = real_tmpfs_file("16m", "huge", "always"), file = real_tmpfs_file("16m", "huge", "always");
    struct file_pages pages;
    struct view view, small;

    CHECK(plain >= 0 && file >= 0 && ftruncate(plain, 4 << 20) == 0 && ftruncate(file, 4 << 20) == 0);
    CHECK_EQ(mapping_file_pages(file, &pages), 0);
    CHECK(pages.brings_more);
    CHECK_EQ(view_open(&small, plain, 4 << 20, REAL_PAGE, false), 0);
    CHECK_EQ(view_open(&view, file, 4 << 20, pages.unit_bytes, pages.brings_more), 0);
    CHECK_EQ(small.kind, VIEW_FILE);
    CHECK_EQ(view.kind, VIEW_ALIAS);
    CHECK_OUTCOME(write_page(&small, plain, 700), KERNEL_MAPPED, 1);
    CHECK_EQ(blocks_of(plain), REAL_HUGE_BYTES / 512);
    for (uint64_t page = 600; page < 610; page++)
        CHECK_OUTCOME(write_page(&view, file, page), KERNEL_MAPPED, 1);
    CHECK_EQ(blocks_of(file), 10 * REAL_PAGE / 512);
    view_close(&view);
    view_close(&small);
    close(plain);
    close(file);
}

/* A VMM may cut its file at any time: who writes there is told so, and lives on. */
static void a_cut_file_ends_nobody(void)
{
    int files[] = {real_tmpfs_file("16m", "huge", "always"), real_hugetlbfs_file("8m")};
    static const enum view_kind kinds[] = {VIEW_ALIAS, VIEW_POOL};

    for (int i = 0; i < 2; i++) {
        struct view view;
        CHECK(files[i] >= 0 && ftruncate(files[i], 4 << 20) == 0);
        CHECK_EQ(view_open(&view, files[i], 4 << 20, i == 0 ? REAL_PAGE : REAL_HUGE_BYTES, i == 0), 0);
        CHECK_EQ(view.kind, kinds[i]);
        CHECK_OUTCOME(write_page(&view, files[i], 1000), KERNEL_MAPPED, 1);
        CHECK_EQ(ftruncate(files[i], 2 << 20), 0);
        CHECK_OUTCOME(write_page(&view, files[i], 1000), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(write_page(&view, files[i], 5000), KERNEL_REFUSED, 0); /* behind the memory, too */
        CHECK_OUTCOME(write_page(&view, files[i], 5), KERNEL_MAPPED, 1);
        view_close(&view);
        close(files[i]);
    }
}

static void an_alias_in_a_full_tmpfs_is_full(void)
{
    int file = real_tmpfs_file("64k", "huge", "always");
    struct view view;

    CHECK(file >= 0 && ftruncate(file, 4 << 20) == 0);
    CHECK_EQ(view_open(&view, file, 4 << 20, REAL_PAGE, true), 0);
    for (uint64_t page = 0; page < 16; page++)
        CHECK_OUTCOME(write_page(&view, file, page), KERNEL_MAPPED, 1);
    CHECK_OUTCOME(write_page(&view, file, 16), KERNEL_FULL, 0);
    view_close(&view);
    close(file);
}

/* ------------------------------------------------------------------------------------------------------ an empty pool */

/* Linux 6.18 answers EEXIST to a COPY that finds the pool empty. The answer is played: nobody has to empty the pool. Of
 * `known` the VMM's page table can be looked at. */
static int full_pool_says_eexist(bool known)
{
    struct real_options options = {.memory = REAL_HUGE_PRIVATE, .pages = PAGES};
    struct real_vm vm;

    if (!real_start(&vm, &options))
        return 1;
    CHECK_OUTCOME(real_populate(&vm, 0, REAL_HUGE_PAGES, 0x11), KERNEL_MAPPED, REAL_HUGE_PAGES);
    CHECK_OUTCOME(real_populate(&vm, REAL_HUGE_PAGES, REAL_HUGE_PAGES, 0x22), KERNEL_MAPPED, REAL_HUGE_PAGES);
    CHECK_OUTCOME(real_call(OPS->map, &vm, 0, REAL_HUGE_PAGES), KERNEL_MAPPED, REAL_HUGE_PAGES);
    CHECK(real_deny_ioctl(UFFDIO_COPY, EEXIST));
    vm.uffd.vmm_pid = known ? vm.uffd.vmm_pid : 0;
    if (known)
        CHECK_OUTCOME(real_call(OPS->map, &vm, 0, REAL_HUGE_PAGES), KERNEL_ALREADY, 0);
    CHECK_OUTCOME(real_call(OPS->zero, &vm, 0, REAL_HUGE_PAGES), KERNEL_ALREADY, 0);
    CHECK_OUTCOME(real_call(OPS->map, &vm, REAL_HUGE_PAGES, REAL_HUGE_PAGES), KERNEL_FULL, 0);
    if (known)
        CHECK_OUTCOME(real_call(OPS->zero, &vm, REAL_HUGE_PAGES, REAL_HUGE_PAGES), KERNEL_FULL, 0);
    CHECK(blocks_of(vm.uffd.view.staging_fd) >= REAL_HUGE_BYTES / 512); /* what was staged is wanted still */
    real_end(&vm);
    return check_bad;
}

static int where_one_may_look(void)
{
    return full_pool_says_eexist(true);
}

static int where_one_may_not(void)
{
    return full_pool_says_eexist(false);
}

static void test_full_pool_says_eexist(void)
{
    CHECK(real_apart(where_one_may_look));
    CHECK(real_apart(where_one_may_not));
}

/* ------------------------------------------------------------------------------------------------------------ engine */

static struct {
    struct real_vm vm;
    struct regions regions;
    struct table table;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    uint64_t asks;
    uint64_t now_ns;
    uint8_t bytes[REAL_HUGE_BYTES];
} bed;

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    (void)page;
    bed.asks++;
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner;
    printf("report %u page %llu value %llu: %s\n", report, (unsigned long long)page, (unsigned long long)value, text);
}

static bool begin(enum real_memory memory)
{
    struct real_options vm = {.memory = memory, .pages = PAGES, .features = UFFD_FEATURE_EVENT_REMOVE};
    struct engine_options options = {
        .table = &bed.table,
        .regions = &bed.regions,
        .ops = OPS,
        .kernel = &bed.vm.uffd,
        .out = {.ask = on_ask, .report = on_report},
        .stats = &bed.stats,
        .trace = &bed.trace,
        .private_memory = memory == REAL_HUGE_PRIVATE,
    };
    struct region region = {.page_count = PAGES, .unit_pages = REAL_HUGE_PAGES};

    memset(&bed.stats, 0, sizeof(bed.stats));
    bed.asks = 0;
    if (!real_start(&bed.vm, &vm) || table_create(PAGES, &bed.table) < 0)
        return false;
    region.address = bed.vm.address;
    if (regions_set(&bed.regions, &region, 1) < 0)
        return false;
    engine_start(&bed.engine, &options, bed.now_ns);
    bed.engine.frozen_version = VERSION;
    engine_arm(&bed.engine);
    return true;
}

static void end(void)
{
    real_end(&bed.vm);
    table_close(&bed.table);
}

static void turn(void)
{
    bed.now_ns += 1000000;
    if (real_event_waits(&bed.vm))
        engine_turn(&bed.engine, bed.now_ns);
}

/* Each page is full of its own number. */
static uint64_t data(uint64_t page, uint64_t count)
{
    struct engine_news news = {
        .kind = ENGINE_DATA, .first_page = page, .page_count = count, .version = VERSION, .bytes = bed.bytes};

    for (uint64_t i = 0; i < count; i++)
        real_fill(bed.bytes + i * REAL_PAGE, 1, 0x1000 + page + i);
    return engine_news(&bed.engine, &news, bed.now_ns);
}

static uint64_t zeros(uint64_t page, uint64_t count)
{
    struct engine_news news = {
        .kind = ENGINE_ZEROS, .first_page = page, .page_count = count, .version = VERSION};

    return engine_news(&bed.engine, &news, bed.now_ns);
}

static const enum real_memory kinds[] = {REAL_HUGE, REAL_HUGE_PRIVATE};

/* The first half has come. A thread that touches the second waits, and so does one that touches the first. */
static void no_part_is_seen_before_the_last_has_come(void)
{
    const uint64_t first = REAL_HUGE_PAGES, half = REAL_HUGE_PAGES / 2;

    for (int i = 0; i < 2; i++) {
        CHECK(begin(kinds[i]));
        CHECK_EQ(data(first, half), half);
        real_begin(&bed.vm, REAL_READ, first + half + 7, 1, 0);
        turn();
        CHECK_EQ(bed.asks, half);
        real_begin(&bed.vm, REAL_READ, first, 1, 0);
        turn();
        CHECK_EQ(real_asleep(&bed.vm), 2);
        CHECK_EQ(data(first + half, half - 1), half - 1);
        CHECK(real_sleeps(&bed.vm));
        CHECK_EQ(mapping_page_present(bed.vm.pid, bed.vm.address + first * REAL_PAGE), 0);
        CHECK_EQ(zeros(first + REAL_HUGE_PAGES - 1, 1), 1);
        int64_t one = real_answer(&bed.vm), other = real_answer(&bed.vm);
        CHECK_EQ(one + other, (int64_t)(2 * (0x1000 + first) + half + 7));
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + REAL_HUGE_PAGES - 1, 1, 0), 0);
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + REAL_HUGE_PAGES - 2, 1, 0),
                 0x1000 + first + REAL_HUGE_PAGES - 2);
        CHECK_EQ(bed.asks, half); /* a page was asked once */
        end();
    }
}

/* Private memory is dropped in whole huge pages: one that was half here, and one that was the guest's. */
static void what_was_removed_reads_zero_for_ever(void)
{
    CHECK(begin(REAL_HUGE_PRIVATE));
    CHECK_EQ(data(0, REAL_HUGE_PAGES), REAL_HUGE_PAGES);
    CHECK_EQ(data(REAL_HUGE_PAGES, 100), 100);
    CHECK(blocks_of(bed.vm.uffd.view.staging_fd) > 0);
    real_begin(&bed.vm, REAL_ADVISE, 0, 2 * REAL_HUGE_PAGES, MADV_DONTNEED);
    turn();
    CHECK_EQ(real_answer(&bed.vm), 0);
    CHECK_EQ(blocks_of(bed.vm.uffd.view.staging_fd), 0);
    CHECK_EQ(data(REAL_HUGE_PAGES, REAL_HUGE_PAGES), 0); /* too late */
    for (uint64_t page = 0; page < 2 * REAL_HUGE_PAGES; page += 301) {
        real_begin(&bed.vm, REAL_READ, page, 1, 0);
        if (page < 301 || page / REAL_HUGE_PAGES != (page - 301) / REAL_HUGE_PAGES)
            turn(); /* the first touch of each */
        CHECK_EQ(real_answer(&bed.vm), 0);
    }
    CHECK_EQ(bed.asks, 0);
    end();
}

static uint64_t told(enum log_kind kind)
{
    struct table_log_entry entry;
    uint64_t number, count = 0;

    while (log_next(&bed.table, TABLE_LOG_OWNER, &entry, &number)) {
        count += entry.kind == kind;
        log_taken(&bed.table, TABLE_LOG_OWNER);
    }
    return count;
}

/* One page of it is lost: so is the huge page, each page of it is told, and its memory goes back to the pool. */
static void poison_takes_the_huge_page_along(void)
{
    const uint64_t first = 2 * REAL_HUGE_PAGES;
    uint64_t cleared = 0;

    for (int i = 0; i < 2; i++) {
        CHECK(begin(kinds[i]));
        if (i == 0)
            data(first, REAL_HUGE_PAGES); /* of private memory only the VMM could take the mapping away */
        else
            data(first, 100);
        CHECK_EQ(engine_lost(&bed.engine, first + 77, 1), REAL_HUGE_PAGES);
        CHECK_EQ(told(LOG_POISONED), REAL_HUGE_PAGES);
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + 77, 1, 0), REAL_SIGBUS);
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + 500, 1, 0), REAL_SIGBUS);
        CHECK_EQ(blocks_of(i == 0 ? bed.vm.uffd.backing_fd : bed.vm.uffd.view.staging_fd), 0);
        CHECK_EQ(data(first, REAL_HUGE_PAGES), 0);
        CHECK_EQ(engine_cleared(&bed.engine, first + 3, 1, &cleared), 1);
        CHECK_EQ(cleared, REAL_HUGE_PAGES * (uint64_t)(i + 1));
        CHECK_EQ(told(LOG_CLEARED), REAL_HUGE_PAGES);
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + 77, 1, 0), 0);
        CHECK_EQ(real_do(&bed.vm, REAL_WRITE, first + 500, 1, 5), 0);
        CHECK_EQ(real_do(&bed.vm, REAL_READ, first + 500, 1, 0), 5);
        end();
    }
}

int main(void)
{
    struct probe probe;
    bool pool = huge_pool_add(UNITS + 2);

    probe_run(-1, false, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_GOOD) {
        SKIP(test_units, "no userfaultfd right");
        return check_done();
    }
    if (geteuid() != 0 || !pool) {
        SKIP(test_units, "needs root, and huge pages of 2 MiB to be had");
        return check_done();
    }
    RUN(an_alias_brings_only_the_page_it_writes);
    RUN(a_cut_file_ends_nobody);
    RUN(an_alias_in_a_full_tmpfs_is_full);
    RUN(test_full_pool_says_eexist);
    RUN(no_part_is_seen_before_the_last_has_come);
    RUN(what_was_removed_reads_zero_for_ever);
    if (probe.facts[PROBE_POISON].verdict == PROBE_GOOD)
        RUN(poison_takes_the_huge_page_along);
    else
        SKIP(poison_takes_the_huge_page_along, "no UFFDIO_POISON: Linux 6.6");
    return check_done();
}
