/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM that moves on while its memory still arrives, on the real kernel: this test is the pager that brings the pages,
 * the page table with them, and the client behind the page server (docs/chain.md).
 *
 * test_every_order: each page is a case. Around one round it arrives at one of seven points, its word says so then or
 * much later, the guest writes it at a later one or never, and the client loads its version, asks how it stands, asks
 * for holes and reads it at points of its own. Points lie between the calls that a round makes for a page; the linker
 * has them pass through here (native/Makefile). What is left arrives after the freeze.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "kernel/uffd.h"
#include "map_client.h"
#include "pager/table.h"
#include "serve/arriving.h"
#include "serve/image_memory.h"
#include "serve/reply.h"
#include "tracked.h"

#define INCARNATION 3
#define BITS ((uint64_t)INCARNATION << 32)

static struct tracked vmm;
static struct uffd pager;
static struct table table;
static struct image *image;
static struct map_client client;

static int table_fd_for_reading(void)
{
    char path[32];

    snprintf(path, sizeof(path), "/proc/self/fd/%d", table.fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

static int open_image(int arriving_fd, char error[256])
{
    struct pageferry_region region = {.address = vmm.address, .length_bytes = vmm.page_count * TRACKED_PAGE};
    struct image_memory_request request = {
        .name = "vm", .uffd = vmm.uffd, .ram_fd = vmm.ram_fd, .pid = vmm.pid, .pidfd = vmm.pidfd, .regions = &region,
        .region_count = 1, .content_id = 9, .incarnation = INCARNATION, .versions_fd = -1, .arriving_fd = arriving_fd,
    };

    return image_memory_open(&request, &image, error, 256);
}

static void begin(uint64_t pages)
{
    char error[256] = "";
    int fd;

    CHECK(tracked_start_arriving(&vmm, pages));
    pager = (struct uffd){.fd = vmm.uffd, .backing_fd = vmm.ram_fd};
    CHECK_EQ(table_create(pages, &table), 0);
    fd = table_fd_for_reading();
    CHECK_EQ(open_image(fd, error), 0);
    CHECK_EQ(error[0], 0);
    map_client_begin(&client, image);
    close(fd);
}

static void end(void)
{
    image->ops->close(image);
    image = NULL;
    table_close(&table);
    tracked_end(&vmm);
}

/* ------------------------------------------------------------------------------------------------- the pager */

enum way { BY_COPY, BY_CONTINUE, BY_ZEROPAGE, WAYS };

static struct kernel_span span_of(uint64_t page)
{
    return (struct kernel_span){vmm.address + page * TRACKED_PAGE, TRACKED_PAGE, page * TRACKED_PAGE};
}

static void say(uint64_t page, enum page_state state)
{
    table_set(&table, page, page_word(state, false, 77)); /* upstream's version: nobody's business here */
}

/* Up to the moment from which the guest may write the page. `at_once`: its word says so, too. */
static void arrive(uint64_t page, enum way way, bool at_once)
{
    struct kernel_span span = span_of(page);
    uint8_t bytes[TRACKED_PAGE];

    memset(bytes, (int)(page % 251) + 1, sizeof(bytes));
    if (way == BY_COPY) {
        CHECK_EQ(uffd_kernel_ops.copy(&pager, &span, bytes).result, KERNEL_MAPPED);
    } else if (way == BY_CONTINUE) { /* the cache was stale: written, claimed, mapped */
        table_set(&table, page, page_word(PAGE_MISSING, true, 77));
        CHECK_EQ(uffd_kernel_ops.populate(&pager, &span, bytes).result, KERNEL_MAPPED);
        say(page, PAGE_OWNED);
        CHECK_EQ(uffd_kernel_ops.map(&pager, &span).result, KERNEL_MAPPED);
    } else {
        say(page, PAGE_ZERO);
        CHECK_EQ(uffd_kernel_ops.zero(&pager, &span).result, KERNEL_MAPPED);
    }
    if (at_once)
        say(page, PAGE_OWNED);
}

static void fetch_missing(void)
{
    CHECK(map_fetch_missing(&client));
}

/* Nobody writes any more, and all has arrived. */
static void all_is_there(void)
{
    CHECK_EQ(map_wrong(&client, vmm.ram_fd), 0);
}

static int do_round(void)
{
    uint32_t round;
    int rc = rounds_begin(image->rounds, &round);

    while (rc == 0)
        rc = rounds_step(image->rounds, round);
    return rc;
}

/* ------------------------------------------------------------------------------------------------- every order */

enum point { BEFORE_RESET, BEFORE_HOLES, BEFORE_WORD, AFTER_WORD, BEFORE_RAISE, AFTER_RAISE, AFTER_SETTLE, POINTS };
#define NEVER POINTS

static struct plan {
    enum point version, standing, holes, read, arrive, write;
    enum way way;
    bool at_once; /* its word says that it is here; else after the freeze */
    int passed;   /* points that it has come through */
    struct map_fetch fetch;
} plans[MAP_CLIENT_PAGES_MAX];
static bool planned[MAP_CLIENT_PAGES_MAX], guest_runs;

static void do_point(uint64_t page, enum point point)
{
    struct plan *plan = &plans[page];

    if (plan->arrive == point)
        arrive(page, plan->way, plan->at_once);
    if (plan->write == point && guest_runs)
        CHECK(tracked_do(&vmm, TRACKED_WRITE, page, 200));
    if (plan->version == point)
        map_load_version(&client, &plan->fetch, page);
    if (plan->standing == point)
        map_ask_standing(&client, &plan->fetch, page);
    if (plan->holes == point)
        map_ask_for_holes(&client, &plan->fetch, page);
    if (plan->read == point)
        CHECK(map_read_and_keep(&client, &plan->fetch, page));
}

/* Up to this point, each of them once: some calls are made for many pages, and again for fewer. */
static void at_all(uint64_t first_page, uint64_t past, enum point point)
{
    for (uint64_t page = first_page; page < past; page++)
        for (; planned[page] && plans[page].passed <= (int)point; plans[page].passed++)
            do_point(page, (enum point)plans[page].passed);
}

static int reset_between(int pagemap_fd, uint64_t start, uint64_t past)
{
    uint64_t first_page = (start - vmm.address) / TRACKED_PAGE, end_page = (past - vmm.address) / TRACKED_PAGE;
    int rc;

    at_all(first_page, end_page, BEFORE_RESET);
    rc = scan_calls.reset(pagemap_fd, start, past);
    at_all(first_page, end_page, BEFORE_HOLES);
    return rc;
}

enum image_standing __real_arriving_standing(const struct arriving *arriving, uint64_t page, uint64_t *past);
enum image_standing __wrap_arriving_standing(const struct arriving *arriving, uint64_t page, uint64_t *past);
void __real_holes_walk(struct holes *holes, uint64_t first_page, uint64_t past);
void __wrap_holes_walk(struct holes *holes, uint64_t first_page, uint64_t past);
void __real_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round);
void __wrap_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round);

static bool in_holes;

/* Of a round: for the first page of those that it is asked for, so that each page has its own two points. */
enum image_standing __wrap_arriving_standing(const struct arriving *arriving, uint64_t page, uint64_t *past)
{
    enum image_standing standing;

    if (!in_holes)
        return __real_arriving_standing(arriving, page, past);
    in_holes = false; /* what a client asks meanwhile is its own */
    *past = page + 1;
    at_all(page, page + 1, BEFORE_WORD);
    standing = __real_arriving_standing(arriving, page, past);
    at_all(page, page + 1, AFTER_WORD);
    in_holes = true;
    return standing;
}

void __wrap_holes_walk(struct holes *holes, uint64_t first_page, uint64_t past)
{
    in_holes = true;
    __real_holes_walk(holes, first_page, past);
    in_holes = false;
}

void __wrap_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round)
{
    at_all(first_page, first_page + page_count, BEFORE_RAISE);
    __real_versions_raise(versions, first_page, page_count, round);
    at_all(first_page, first_page + page_count, AFTER_RAISE);
}

/* A client that reads in two goes (version and standing, then holes and bytes), beside all that may become of a page.
 * The number of pages used. */
static uint64_t make_plans(void)
{
    uint64_t page = 0;

    memset(plans, 0, sizeof(plans));
    memset(planned, 0, sizeof(planned));
    for (int i = 0; i < POINTS * POINTS * POINTS * POINTS * (POINTS + 1) * WAYS * 2; i++) {
        int rest = i;
        struct plan plan = {.at_once = rest % 2 == 0};
        plan.way = (enum way)((rest /= 2) % WAYS);
        plan.version = (enum point)((rest /= WAYS) % POINTS);
        plan.standing = (enum point)((rest /= POINTS) % POINTS);
        plan.read = (enum point)((rest /= POINTS) % POINTS);
        plan.arrive = (enum point)((rest /= POINTS) % POINTS);
        plan.write = (enum point)((rest /= POINTS) % (POINTS + 1));
        plan.holes = plan.standing;
        if (plan.version > plan.standing || plan.standing > plan.read || plan.write < plan.arrive)
            continue;
        if (plan.way == BY_CONTINUE && !plan.at_once) /* its word is said before it is mapped */
            continue;
        CHECK(page < MAP_CLIENT_PAGES_MAX);
        planned[page] = true;
        plans[page++] = plan;
    }
    return page;
}

/* Once everybody stands still: what has been mapped is claimed now at last. */
static void claim_all(uint64_t used)
{
    for (uint64_t page = 0; page < used; page++)
        say(page, PAGE_OWNED);
}

static void test_every_order(void)
{
    struct scan_calls calls = {.dirty = scan_calls.dirty, .reset = reset_between};
    uint64_t used = make_plans();

    begin(used);
    guest_runs = true;
    image->rounds->scan = &calls;
    CHECK_EQ(do_round(), 1);
    image->rounds->scan = &scan_calls;
    at_all(0, used, AFTER_SETTLE);
    memset(planned, 0, sizeof(planned));
    map_read(&client);
    fetch_missing();
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    map_read(&client);
    fetch_missing();
    claim_all(used);
    fetch_missing();
    all_is_there();
    printf("cases: %llu orders of a page's arrival, a writer and a client around a round\n", (unsigned long long)used);
    end();
}

/* The guest stands still from before the one round there is, and the pager goes on. */
static void test_every_order_of_a_freeze(void)
{
    uint64_t used = make_plans();

    begin(used);
    guest_runs = false;
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    at_all(0, used, AFTER_SETTLE);
    memset(planned, 0, sizeof(planned));
    map_read(&client);
    fetch_missing();
    claim_all(used);
    fetch_missing();
    all_is_there();
    end();
}

/* --------------------------------------------------------------------------------------------- what a batch says */

static struct run runs[64], got[64];
static uint32_t got_count;

static void batch(uint64_t page_count, bool versions_only)
{
    static uint8_t bytes[1 << 19];
    struct reply_order order = {.image = image, .as_of = atomic_load(&image->as_of), .versions_only = versions_only,
                                .pages_max = versions_only ? 1 : 64, .runs_max = 64};
    struct reply_space space = {.bytes = bytes, .capacity_bytes = sizeof(bytes), .runs = runs};
    struct page_batch read = {.runs = got};
    struct stats stats = {0};
    struct asks asks;
    struct reply reply;

    asks_open(&asks);
    CHECK(asks_add(&asks, 0, page_count));
    CHECK_EQ(reply_make(&order, &asks, &space, &stats, &reply), 0);
    CHECK_EQ(read_page_batch(reply.message, got, 64, &read), 0);
    got_count = read.run_count;
    asks_close(&asks);
}

static void is_run(uint32_t index, uint64_t first_page, uint64_t page_count, uint64_t kind, uint64_t version)
{
    CHECK(index < got_count);
    CHECK_EQ(got[index].first_page, first_page);
    CHECK_EQ(got[index].page_count, page_count);
    CHECK_EQ(got[index].kind, kind);
    CHECK_EQ(got[index].version, version);
}

static void test_what_has_not_arrived_is_later_and_never_zero(void)
{
    begin(16);
    CHECK_EQ(do_round(), 1);
    batch(16, true);
    CHECK_EQ(got_count, 1);
    is_run(0, 0, 16, PF_RUN_KIND_VERSION, BITS | 1);
    batch(16, false);
    CHECK_EQ(got_count, 1);
    is_run(0, 0, 16, PF_RUN_KIND_LATER, BITS | 1);
    arrive(3, BY_COPY, true);
    say(4, PAGE_WANTED);
    say(5, PAGE_ZERO);
    say(6, PAGE_POISONED);
    table_set(&table, 7, page_word(PAGE_ZERO, true, 77)); /* a punch has failed: something else is there still */
    table_set(&table, 8, page_word(PAGE_OWNED, false, 77) | PAGE_HELD);
    table_set(&table, 9, 7); /* no state at all */
    batch(16, false);
    CHECK_EQ(got_count, 6);
    is_run(0, 0, 3, PF_RUN_KIND_LATER, BITS | 1);
    is_run(1, 3, 1, PF_RUN_KIND_DATA, BITS | 1);
    is_run(2, 4, 1, PF_RUN_KIND_LATER, BITS | 1);
    is_run(3, 5, 1, PF_RUN_KIND_ZERO, BITS | 1);
    is_run(4, 6, 1, PF_RUN_KIND_POISON, BITS | 1);
    is_run(5, 7, 9, PF_RUN_KIND_LATER, BITS | 1);
    CHECK_EQ(do_round(), 1);
    batch(16, true);
    CHECK_EQ(got_count, 5);
    is_run(0, 0, 3, PF_RUN_KIND_VERSION, BITS | 1);
    is_run(1, 3, 1, PF_RUN_KIND_VERSION, BITS | 2); /* its arrival is news */
    is_run(2, 4, 2, PF_RUN_KIND_VERSION, BITS | 1); /* 5 is a hole since, which no round has looked at */
    is_run(3, 6, 1, PF_RUN_KIND_POISON, BITS | 1);
    is_run(4, 7, 9, PF_RUN_KIND_VERSION, BITS | 1);
    end();
}

static void test_a_page_that_arrives_after_the_freeze_keeps_its_version(void)
{
    begin(16);
    arrive(1, BY_COPY, true);
    say(2, PAGE_ZERO);
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    batch(16, true);
    is_run(0, 0, 2, PF_RUN_KIND_VERSION, BITS | 1);
    is_run(1, 2, 1, PF_RUN_KIND_ZERO, BITS | 1); /* it has arrived, and is one */
    is_run(2, 3, 13, PF_RUN_KIND_VERSION, BITS | 1);
    arrive(9, BY_CONTINUE, true);
    arrive(10, BY_COPY, true);
    batch(16, false);
    CHECK_EQ(got_count, 6);
    is_run(0, 0, 1, PF_RUN_KIND_LATER, BITS | 1);
    is_run(1, 1, 1, PF_RUN_KIND_DATA, BITS | 1);
    is_run(2, 2, 1, PF_RUN_KIND_ZERO, BITS | 1);
    is_run(3, 3, 6, PF_RUN_KIND_LATER, BITS | 1);
    is_run(4, 9, 2, PF_RUN_KIND_DATA, BITS | 1);
    is_run(5, 11, 5, PF_RUN_KIND_LATER, BITS | 1);
    end();
}

/* --------------------------------------------------------------------------------- lost while it is being answered */

static const struct image_ops *its_ops;

/* As the pager does it: its word first, and then its bytes go. */
static void lose(uint64_t page)
{
    struct kernel_span span = span_of(page);

    say(page, PAGE_POISONED);
    CHECK_EQ(uffd_kernel_ops.punch(&pager, &span).result, KERNEL_MAPPED);
}

/* Between the question how these pages stand and their bytes, 2 is lost and 3 held back. */
static int read_late(const struct image *of, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    if (page_state(table_word(&table, 2)) != PAGE_POISONED)
        lose(2);
    table_set(&table, 3, page_word(PAGE_OWNED, false, 77) | PAGE_HELD);
    return its_ops->read(of, first_page, page_count, bytes);
}

static int read_late_alone(const struct image *of, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    return page_count > 1 ? -PF_REASON_GOING_AWAY : read_late(of, first_page, page_count, bytes);
}

/* And here a round looks for holes, which has loaded the word before. */
static bool look_late(const struct image *of, uint64_t page)
{
    (void)of;
    lose(page);
    return false;
}

static void begin_late(struct image_ops *ops)
{
    begin(16);
    for (uint64_t page = 0; page < 5; page++)
        arrive(page, BY_COPY, true);
    CHECK_EQ(do_round(), 1);
    its_ops = image->ops;
    *ops = *its_ops;
    image->ops = ops;
}

/* The hole that a lost page leaves was sent as zeros, under the version of the bytes that the guest had there. */
static void test_a_page_that_is_lost_before_it_is_read_is_no_zeros(void)
{
    struct image_ops ops;

    for (int alone = 0; alone < 2; alone++) {
        begin_late(&ops);
        ops.read = alone ? read_late_alone : read_late;
        batch(5, false);
        CHECK_EQ(got_count, 4);
        is_run(0, 0, 2, PF_RUN_KIND_DATA, BITS | 1);
        is_run(1, 2, 1, PF_RUN_KIND_POISON, BITS | 1);
        is_run(2, 3, 1, PF_RUN_KIND_LATER, BITS | 1);
        is_run(3, 4, 1, PF_RUN_KIND_DATA, BITS | 1);
        end();
    }
}

static void test_the_hole_of_a_page_that_is_lost_is_no_zeros(void)
{
    struct image_ops ops;

    for (int versions_only = 0; versions_only < 2; versions_only++) {
        begin_late(&ops);
        ops.may_hold_data = look_late;
        batch(1, versions_only);
        CHECK_EQ(got_count, 1);
        is_run(0, 0, 1, PF_RUN_KIND_POISON, BITS | 1);
        end();
    }
}

/* ------------------------------------------------------------------------------------------------------ the end */

static void test_a_vm_that_has_arrived_is_tracked_alone(void)
{
    begin(16);
    CHECK_EQ(do_round(), 1);
    for (uint64_t page = 0; page < 15; page++)
        arrive(page, BY_COPY, true);
    CHECK_EQ(image_memory_arrived(image), -PF_REASON_WRONG_PHASE); /* 15 is missing: it would be zeros */
    say(15, PAGE_POISONED);
    CHECK_EQ(image_memory_arrived(image), -PF_REASON_WRONG_PHASE);
    say(15, PAGE_ZERO);
    CHECK_EQ(image_memory_arrived(image), 0);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 15, 3)); /* nobody is asked */
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 16);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 7, 3));
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 1);
    fetch_missing();
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    map_read(&client);
    fetch_missing();
    all_is_there();
    tracked_kill(&vmm);
    CHECK_EQ(image_memory_arrived(image), -PF_REASON_NO_VMM);
    end();
}

static void refuses(int fd, const char *why)
{
    char error[256] = "";

    CHECK_EQ(open_image(fd, error), -PF_REASON_MISMATCH);
    CHECK(strstr(error, why) != NULL);
    CHECK(image == NULL);
}

static void test_a_table_that_is_none_is_refused(void)
{
    struct table other;
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    CHECK(tracked_start_arriving(&vmm, 16));
    CHECK_EQ(table_create(16, &table), 0);
    CHECK_EQ(table_create(17, &other), 0);
    refuses(other.fd, "of another version");
    table_close(&other);
    CHECK_EQ(ftruncate(fd, (off_t)table.mapped_bytes), 0);
    CHECK_EQ(pwrite(fd, table.header, sizeof(*table.header), 0), sizeof(*table.header));
    refuses(fd, "of another version"); /* it might be made shorter under our eyes */
    CHECK_EQ(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    CHECK_EQ(pwrite(fd, "x", 1, 0), 1);
    refuses(fd, "of another version"); /* no magic */
    refuses(vmm.ram_fd, "of another version");
    close(fd);
    table.header->words_offset_bytes += 4096;
    refuses(table.fd, "of another version");
    table_close(&table);
    tracked_end(&vmm);
}

int main(void)
{
    const char *absent = tracked_absent();

    if (absent != NULL) {
        SKIP(test_arriving, absent);
        return check_done();
    }
    RUN(test_every_order);
    RUN(test_every_order_of_a_freeze);
    RUN(test_what_has_not_arrived_is_later_and_never_zero);
    RUN(test_a_page_that_arrives_after_the_freeze_keeps_its_version);
    RUN(test_a_page_that_is_lost_before_it_is_read_is_no_zeros);
    RUN(test_the_hole_of_a_page_that_is_lost_is_no_zeros);
    RUN(test_a_vm_that_has_arrived_is_tracked_alone);
    RUN(test_a_table_that_is_none_is_refused);
    return check_done();
}
