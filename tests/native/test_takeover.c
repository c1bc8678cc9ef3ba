/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A balloon on the real kernel, and a worker that dies with a removal in its hands: the event was read, so the kernel
 * will not give it again, and the VMM has gone on to drop the pages. The successor finds it in the table, or the image's
 * bytes would come back into memory that the guest has given away. At each instruction of the simulated kernel that is
 * test_crashes.c's; here it is the real one's events, calls and mappings.
 */
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "kernel/uapi.h"
#include "pager/engine.h"
#include "real_vm.h"

#define PAGES 32
#define GONE 8        /* the first page that the balloon takes */
#define GONE_PAGES 6
#define VERSION UINT64_C(1)

/* Where the worker dies, on its way from the read to the end of its turn. */
enum death {
    AT_THE_READ,  /* the kernel has filled the batch, and nobody has said how many */
    AFTER_IT,
    HALF_WAY,     /* one of the pages was claimed */
    AT_ITS_END,   /* all were; only the batch is not empty yet */
    DEATH_COUNT
};

static struct {
    struct real_vm vm;
    struct table table;
    struct regions regions;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    uint64_t asks;
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
    (void)page;
    (void)value;
    CHECK_EQ(report, 0); /* nothing here is one */
    CHECK(text == NULL);
}

static uint64_t word_of(uint64_t page)
{
    return page * UINT64_C(0x0101010101010101) + 3;
}

static void start_worker(void)
{
    struct engine_options options = {
        .table = &bed.table, .regions = &bed.regions, .ops = &uffd_kernel_ops, .kernel = &bed.vm.uffd,
        .out = {.ask = on_ask, .report = on_report}, .stats = &bed.stats, .trace = &bed.trace,
        .private_memory = true,
    };

    engine_start(&bed.engine, &options, 1);
}

static bool begin(void)
{
    struct real_options options = {.memory = REAL_PRIVATE, .pages = PAGES, .features = UFFD_FEATURE_EVENT_REMOVE};
    struct region region = {.page_count = PAGES};

    memset(&bed, 0, sizeof(bed));
    if (!real_start(&bed.vm, &options))
        return false;
    region.address = bed.vm.address;
    CHECK_EQ(regions_set(&bed.regions, &region, 1), 0);
    CHECK_EQ(table_create(PAGES, &bed.table), 0);
    start_worker();
    engine_arm(&bed.engine);
    return true;
}

static void end(void)
{
    table_close(&bed.table);
    real_end(&bed.vm);
}

/* The image's bytes arrive, wanted or not. */
static void arrive(uint64_t page)
{
    static _Alignas(4096) uint8_t bytes[4096];
    struct engine_news news = {.kind = ENGINE_DATA, .first_page = page, .page_count = 1, .version = VERSION,
                               .bytes = bytes};

    real_fill(bytes, 1, word_of(page));
    engine_news(&bed.engine, &news, 2);
}

/* As engine_turn begins. */
static void read_and_die(enum death death)
{
    struct table_header *header = bed.table.header;
    int count;

    CHECK(real_event_waits(&bed.vm));
    atomic_store(&header->batch_count, TABLE_BATCH_EVENTS);
    count = uffd_kernel_ops.read_events(&bed.vm.uffd, header->batch, TABLE_BATCH_EVENTS);
    CHECK(count >= 1);
    if (death != AT_THE_READ)
        atomic_store(&header->batch_count, (uint32_t)count);
    for (uint64_t i = 0; i < (death == HALF_WAY ? 1 : death == AT_ITS_END ? GONE_PAGES : 0); i++)
        table_set(&bed.table, GONE + i, page_word(PAGE_ZERO, false, 0));
}

static void succeed(void)
{
    int fd = dup(bed.table.fd);

    table_close(&bed.table);
    CHECK_EQ(table_adopt(fd, PAGES, &bed.table), 0);
    start_worker();
}

/* Turns until a step of the VMM has ended. */
static int64_t serve(void)
{
    uint64_t ticket;
    int64_t answer = REAL_NO_ANSWER;

    for (uint64_t now = 3; now < 20000 && !real_ended(&bed.vm, &ticket, &answer); now++) {
        engine_turn(&bed.engine, now * 1000000);
        engine_tick(&bed.engine, now * 1000000);
        usleep(500);
    }
    return answer;
}

static int64_t read_page(uint64_t page)
{
    real_begin(&bed.vm, REAL_READ, page, 1, 0);
    return serve();
}

/* `present` of the pages had arrived, and the guest has them mapped, when the balloon comes. */
static void removal_survives(enum death death, uint64_t present)
{
    if (!begin()) {
        CHECK(false);
        return;
    }
    for (uint64_t page = GONE - 1; page < GONE + present; page++)
        arrive(page);
    real_begin(&bed.vm, REAL_ADVISE, GONE, GONE_PAGES, MADV_DONTNEED);
    read_and_die(death);
    succeed();
    CHECK_EQ(atomic_load(&bed.table.header->batch_count), 0);
    CHECK_EQ(serve(), 0); /* the VMM goes on */
    for (uint64_t page = 0; page < PAGES; page++)
        arrive(page);
    for (uint64_t page = GONE - 1; page < GONE + GONE_PAGES + 1; page++) {
        bool gone = page >= GONE && page < GONE + GONE_PAGES;
        CHECK_EQ(read_page(page), gone ? 0 : (int64_t)word_of(page));
    }
    CHECK_EQ(real_do(&bed.vm, REAL_WRITE, GONE + 1, 1, 77), 0); /* the guest has taken one back, and uses it */
    arrive(GONE + 1);
    CHECK_EQ(read_page(GONE + 1), 77);
    CHECK_EQ(stats_get(&bed.stats, STATS_alarms_total), 0);
    end();
}

static void test_a_removal_of_absent_pages(void)
{
    for (enum death death = 0; death < DEATH_COUNT; death++)
        removal_survives(death, 0);
}

static void test_a_removal_of_pages_in_use(void)
{
    for (enum death death = 0; death < DEATH_COUNT; death++)
        if (death == AT_THE_READ || death == AFTER_IT) /* words of pages in use are not changed by it */
            removal_survives(death, GONE_PAGES);
}

/* A thread that waits for one of the pages is in the same batch: it gets zeros. */
static void test_a_fault_in_the_same_batch(void)
{
    if (!begin()) {
        CHECK(false);
        return;
    }
    real_begin(&bed.vm, REAL_READ, GONE + 2, 1, 0);
    CHECK(real_event_waits(&bed.vm));
    real_begin(&bed.vm, REAL_ADVISE, GONE, GONE_PAGES, MADV_DONTNEED);
    CHECK(real_sleeps(&bed.vm));
    read_and_die(AFTER_IT);
    succeed();
    CHECK_EQ(serve(), 0);
    CHECK_EQ(serve(), 0);
    CHECK_EQ(bed.asks, 0);
    arrive(GONE + 2);
    CHECK_EQ(read_page(GONE + 2), 0);
    end();
}

int main(void)
{
    if (!begin()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    end();
    RUN(test_a_removal_of_absent_pages);
    RUN(test_a_removal_of_pages_in_use);
    RUN(test_a_fault_in_the_same_batch);
    return check_done();
}
