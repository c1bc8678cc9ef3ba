/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds on the real kernel, of a process that writes meanwhile: whatever a client keeps under the rules of pages.proto
 * is in the end what the memory holds.
 *
 * test_every_order does in one round what threads would need luck for. Each page of it is a case: at which of six
 * points of its round a client loads its version, asks for holes, and reads it, and at which the process writes it.
 * The points lie between the four calls that rounds.c makes for a page; the linker has them pass through here
 * (native/Makefile). A round with its steps in another order loses some of these writes.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "serve/image_memory.h"
#include "map_client.h"
#include "tracked.h"

#define PAGES 40000 /* more than a step takes */
#define INCARNATION 3
#define BITS ((uint64_t)INCARNATION << 32)

static struct tracked vmm;
static struct image *image;

static struct map_client client;

static uint64_t read_map(void)
{
    return map_read(&client);
}

static void fetch_missing(void)
{
    CHECK(map_fetch_missing(&client));
}

/* The process stands still. */
static void all_is_there(void)
{
    CHECK_EQ(map_wrong(&client, vmm.ram_fd), 0);
}

/* ------------------------------------------------------------------------------------------------ what it runs on */

static void begin(uint64_t pages)
{
    struct image_memory_request request = {.name = "vm", .content_id = 9, .incarnation = INCARNATION, .versions_fd = -1,
                                           .arriving_fd = -1};
    struct pageferry_region regions[2];
    char error[256] = "";

    CHECK(tracked_start(&vmm, pages, pages, false));
    request.uffd = vmm.uffd;
    request.ram_fd = vmm.ram_fd;
    request.pid = vmm.pid;
    request.pidfd = vmm.pidfd;
    regions[0] = (struct pageferry_region){.address = vmm.address, .length_bytes = 10 * TRACKED_PAGE};
    regions[1] = (struct pageferry_region){vmm.address + 10 * TRACKED_PAGE, (pages - 10) * TRACKED_PAGE, 10 * TRACKED_PAGE};
    request.regions = regions;
    request.region_count = 2;
    CHECK_EQ(image_memory_open(&request, &image, error, sizeof(error)), 0);
    CHECK_EQ(error[0], 0);
    map_client_begin(&client, image);
}

static void end(void)
{
    image->ops->close(image);
    tracked_end(&vmm);
}

static int steps; /* of the last round */

static int do_round(void)
{
    uint32_t round;
    int rc = rounds_begin(image->rounds, &round);

    steps = 0;
    while (rc == 0) {
        rc = rounds_step(image->rounds, round);
        steps++;
    }
    return rc;
}

static void write_page(uint64_t page, uint8_t value)
{
    CHECK(tracked_do(&vmm, TRACKED_WRITE, page, value));
}

/* ------------------------------------------------------------------------------------------------- every order */

enum point { BEFORE_LOOK, BEFORE_RESET, BEFORE_HOLES, BEFORE_RAISE, AFTER_RAISE, AFTER_SETTLE, POINTS };

static struct plan {
    enum point version, holes, read, write;
    bool write_first; /* of what happens at the same point */
    struct map_fetch fetch;
} plans[PAGES]; /* one without a case does nothing at any point */
static bool planned[PAGES];

static void at_point(uint64_t page, enum point point)
{
    struct plan *plan = &plans[page];

    if (!planned[page])
        return;
    if (plan->write == point && plan->write_first)
        write_page(page, 2);
    if (plan->version == point)
        map_load_version(&client, &plan->fetch, page);
    if (plan->holes == point)
        map_ask_for_holes(&client, &plan->fetch, page);
    if (plan->read == point)
        CHECK(map_read_and_keep(&client, &plan->fetch, page));
    if (plan->write == point && !plan->write_first)
        write_page(page, 2);
}

static void at_all(uint64_t first_page, uint64_t past, enum point point)
{
    for (uint64_t page = first_page; page < past; page++)
        at_point(page, point);
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

void __real_holes_look(struct holes *holes, uint64_t first_page, uint64_t end);
void __wrap_holes_look(struct holes *holes, uint64_t first_page, uint64_t end);
void __real_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round);
void __wrap_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round);

static uint64_t looks, raises;

void __wrap_holes_look(struct holes *holes, uint64_t first_page, uint64_t past)
{
    looks++;
    __real_holes_look(holes, first_page, past);
}

void __wrap_versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round)
{
    raises++;
    at_all(first_page, first_page + page_count, BEFORE_RAISE);
    __real_versions_raise(versions, first_page, page_count, round);
    at_all(first_page, first_page + page_count, AFTER_RAISE);
}

/* Cases on every other page from 2 on; the number of pages used. */
static uint64_t make_plans(void)
{
    uint64_t page = 2;

    memset(planned, 0, sizeof(planned));
    for (int i = 0; i < POINTS * POINTS * POINTS * POINTS * 2; i++) {
        int points = i / 2;
        struct plan plan = {.version = (enum point)(points / POINTS / POINTS / POINTS), .write_first = i % 2 == 1,
                            .holes = (enum point)(points / POINTS / POINTS % POINTS),
                            .read = (enum point)(points / POINTS % POINTS), .write = (enum point)(points % POINTS)};
        if (plan.version > plan.holes || plan.holes > plan.read)
            continue;
        planned[page] = planned[page + 2] = true; /* once where there are bytes, once where there is a hole */
        plans[page] = plans[page + 2] = plan;
        page += 4;
    }
    return page;
}

static void test_every_order(void)
{
    struct scan_calls calls = {.dirty = scan_calls.dirty, .reset = reset_between};
    uint64_t used = make_plans(), cases = 0;

    begin(used);
    CHECK_EQ(do_round(), 1);
    read_map();
    for (uint64_t page = 2; page < used; page += 2) { /* dirty, each on its own */
        write_page(page, 1);
        if (page % 4 == 0)
            CHECK(tracked_do(&vmm, TRACKED_PUNCH, page, 0));
        cases += planned[page];
    }
    image->rounds->scan = &calls;
    looks = raises = 0;
    at_all(0, used, BEFORE_LOOK);
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(looks, cases);
    CHECK_EQ(raises, cases);
    image->rounds->scan = &scan_calls;
    at_all(0, used, AFTER_SETTLE);
    memset(planned, 0, sizeof(planned));
    read_map();
    fetch_missing();
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    read_map();
    fetch_missing();
    all_is_there();
    printf("cases: %llu orders of a client and a writer around the steps of a round\n", (unsigned long long)cases);
    end();
}

/* ------------------------------------------------------------------------------------------------ the flow of them */

static void test_the_first_round_names_every_page(void)
{
    begin(PAGES);
    CHECK_EQ(atomic_load(&image->as_of), BITS);
    CHECK_EQ(do_round(), 1);
    CHECK(steps > 2); /* others had their turns */
    CHECK_EQ(atomic_load(&image->as_of), BITS | 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), PAGES);
    CHECK_EQ(read_map(), PAGES);
    CHECK(!image->ops->may_hold_data(image, 12345)); /* a hole, known without a look at it */
    write_page(12345, 7);
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 1);
    CHECK_EQ(read_map(), 1);
    CHECK_EQ(client.floor[12345], BITS | 2);
    CHECK(image->ops->may_hold_data(image, 12345));
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 0);
    CHECK_EQ(atomic_load(&image->as_of), BITS | 3);
    end();
}

static void test_nothing_is_lost_of_a_process_that_scribbles(void)
{
    begin(4000);
    for (uint64_t page = 0; page < 1000; page++)
        write_page(page, 1);
    tracked_scribble(&vmm, true);
    for (int i = 0; i < 30; i++) {
        CHECK_EQ(do_round(), 1);
        read_map();
        fetch_missing();
        for (uint64_t before = tracked_scribbled(&vmm); tracked_scribbled(&vmm) < before + 100;)
            usleep(100);
    }
    tracked_scribble(&vmm, false);
    for (uint64_t page = 0; page < 100; page++)
        write_page(page * 40, (uint8_t)page); /* saving the state writes too */
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK(read_map() >= 100);
    fetch_missing();
    all_is_there();
    end();
}

static void test_postcopy_at_once_has_the_final_round_alone(void)
{
    begin(4000);
    write_page(17, 1);
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK_EQ(atomic_load(&image->as_of), BITS | 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 4000);
    CHECK_EQ(read_map(), 4000);
    fetch_missing();
    all_is_there();
    CHECK(!image->ops->may_hold_data(image, 18));
    end();
}

/* Without the shim nobody takes the protection off: only the file shows it. */
static void test_drops_that_nobody_tells(void)
{
    for (int told = 0; told <= 1; told++) {
        begin(4000);
        image->rounds->drops_untold = told == 0;
        for (uint64_t page = 0; page < 3000; page++)
            write_page(page, 1);
        CHECK_EQ(do_round(), 1);
        read_map();
        fetch_missing();
        for (uint64_t page = 100; page < 2999; page += 700)
            CHECK(tracked_do(&vmm, TRACKED_PUNCH, page, 0));
        CHECK(tracked_do(&vmm, TRACKED_PUNCH, 101, 0));
        write_page(800, 2);
        CHECK_EQ(rounds_freeze(image->rounds), 0);
        CHECK_EQ(read_map(), told == 0 ? 6 : 1); /* page 800 is there again */
        if (told == 0) {
            fetch_missing();
            all_is_there();
        }
        end();
    }
}

static void test_a_frozen_map_is_final_until_it_is_thawed(void)
{
    struct rounds_news news;
    manifest_sum sum;
    uint32_t round;

    begin(4000);
    CHECK_EQ(rounds_thaw(image->rounds), 0); /* nothing to thaw */
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    sum = image_memory_manifest(image);
    write_page(5, 1);
    CHECK_EQ(rounds_freeze(image->rounds), 0); /* the same answer */
    CHECK(image_memory_manifest(image) == sum);
    CHECK_EQ(rounds_begin(image->rounds, &round), -PF_REASON_WRONG_PHASE);
    rounds_news(image->rounds, &news);
    CHECK(news.frozen && news.as_of == (BITS | 2) && news.round_ns > 0);
    CHECK_EQ(rounds_thaw(image->rounds), 0);
    CHECK_EQ(atomic_load(&image->as_of), BITS + (UINT64_C(1) << 32));
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(rounds_settled_pages(image->rounds), 4000);
    CHECK_EQ(read_map(), 4000);
    fetch_missing();
    all_is_there();
    end();
}

/* ---------------------------------------------------------------------------------------------- one at a time */

static void test_one_round_at_a_time(void)
{
    uint32_t first, second;

    begin(PAGES);
    CHECK_EQ(rounds_begin(image->rounds, &first), 0);
    CHECK_EQ(rounds_begin(image->rounds, &second), -PF_REASON_BUSY);
    CHECK_EQ(rounds_step(image->rounds, first), 0);
    rounds_leave(image->rounds, first);
    rounds_leave(image->rounds, first + 1); /* another's: nothing */
    CHECK_EQ(rounds_begin(image->rounds, &second), 0);
    CHECK_EQ(second, first); /* goes on where it was left */
    while (rounds_step(image->rounds, second) == 0)
        ;
    CHECK_EQ(atomic_load(&image->as_of), BITS | first);
    CHECK_EQ(rounds_settled_pages(image->rounds), PAGES);
    CHECK_EQ(rounds_step(image->rounds, second), 1); /* it is settled */
    end();
}

static void test_the_freeze_takes_a_round_over(void)
{
    uint32_t round;

    begin(PAGES);
    CHECK_EQ(do_round(), 1);
    read_map();
    fetch_missing();
    for (uint64_t page = 0; page < PAGES; page += 100)
        write_page(page, 4);
    CHECK_EQ(rounds_begin(image->rounds, &round), 0);
    CHECK_EQ(rounds_step(image->rounds, round), 0); /* some have been reset, and raised */
    CHECK(map_fetch_page(&client, 100));
    write_page(100, 5); /* which this round would not see */
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK_EQ(rounds_step(image->rounds, round), 1);
    CHECK_EQ(read_map(), PAGES / 100);
    fetch_missing();
    all_is_there();
    end();
}

/* ------------------------------------------------------------------------------------------------------ failures */

static int fails_at;

static int reset_fails(int pagemap_fd, uint64_t start, uint64_t past)
{
    int rc = scan_calls.reset(pagemap_fd, start, past);

    return --fails_at == 0 ? -EPERM : rc;
}

/* It may have been reset before the call failed: then nobody but its version would tell. */
static void test_what_may_have_been_reset_is_raised(void)
{
    struct scan_calls calls = {.dirty = scan_calls.dirty, .reset = reset_fails};

    begin(4000);
    CHECK_EQ(do_round(), 1);
    read_map();
    fetch_missing();
    for (uint64_t page = 100; page < 110; page += 2)
        write_page(page, 4);
    image->rounds->scan = &calls;
    fails_at = 3;
    CHECK_EQ(do_round(), -PF_REASON_MISMATCH);
    CHECK_EQ(atomic_load(&image->as_of), BITS | 1); /* given up */
    image->rounds->scan = &scan_calls;
    CHECK_EQ(do_round(), 1);
    CHECK_EQ(atomic_load(&image->as_of), BITS | 3); /* its number is not used again */
    CHECK_EQ(read_map(), 5);
    CHECK_EQ(client.floor[104], BITS | 2);
    CHECK_EQ(client.floor[106], BITS | 3);
    fetch_missing();
    all_is_there();
    end();
}

static void test_the_vmm_ends(void)
{
    begin(4000);
    CHECK_EQ(do_round(), 1);
    tracked_kill(&vmm);
    CHECK_EQ(do_round(), -PF_REASON_NO_VMM);
    CHECK_EQ(rounds_freeze(image->rounds), -PF_REASON_NO_VMM);
    end();
}

static void test_tracking_ends(void)
{
    uint32_t round;

    begin(4000);
    CHECK(tracked_do(&vmm, TRACKED_UNREGISTER, 0, 0));
    CHECK_EQ(do_round(), -PF_REASON_MISMATCH);
    CHECK_EQ(rounds_freeze(image->rounds), -PF_REASON_MISMATCH);
    CHECK_EQ(rounds_begin(image->rounds, &round), 0); /* not held by the one that failed */
    CHECK_EQ(rounds_step(image->rounds, round), -PF_REASON_MISMATCH);
    end();
}

static void test_numbers_run_out(void)
{
    uint32_t round;

    begin(4000);
    image->rounds->versions->header->begun = UINT32_MAX;
    CHECK_EQ(rounds_begin(image->rounds, &round), -PF_REASON_BUG);
    CHECK_EQ(rounds_freeze(image->rounds), -PF_REASON_BUG);
    end();
}

int main(void)
{
    const char *absent = tracked_absent();

    if (absent != NULL) {
        SKIP(test_rounds, absent);
        return check_done();
    }
    RUN(test_every_order);
    RUN(test_the_first_round_names_every_page);
    RUN(test_nothing_is_lost_of_a_process_that_scribbles);
    RUN(test_postcopy_at_once_has_the_final_round_alone);
    RUN(test_drops_that_nobody_tells);
    RUN(test_a_frozen_map_is_final_until_it_is_thawed);
    RUN(test_one_round_at_a_time);
    RUN(test_the_freeze_takes_a_round_over);
    RUN(test_what_may_have_been_reset_is_raised);
    RUN(test_the_vmm_ends);
    RUN(test_tracking_ends);
    RUN(test_numbers_run_out);
    return check_done();
}
