/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages that are lost, of files and of live memory. The linker has pread pass through here (native/Makefile): a memory
 * error needs a machine that has one, and a bad sector a disk; tests/e2e/test_poison.py has the kernel say EIO.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/manifest.h"
#include "check.h"
#include "rpc/payload.h"
#include "serve/image_memory.h"
#include "serve/reply.h"
#include "serve/server.h"
#include "tracked.h"

#define PAGES 200
#define INCARNATION 3
#define BITS ((uint64_t)INCARNATION << 32)
#define FOUND 4

static char error[PAGEFERRY_TEXT_BYTES];
static int fails[PAGES];            /* errno of a read that touches this page; 0: none */
static unsigned reads_of[PAGES];

ssize_t __real_pread(int fd, void *bytes, size_t length, off_t offset);
ssize_t __wrap_pread(int fd, void *bytes, size_t length, off_t offset);
/* As the kernel has it: what comes before the first bad page is read. */
ssize_t __wrap_pread(int fd, void *bytes, size_t length, off_t offset)
{
    uint64_t first = (uint64_t)offset / IMAGE_PAGE_BYTES, count = length / IMAGE_PAGE_BYTES;

    for (uint64_t i = 0; i < count && first + i < PAGES; i++) {
        reads_of[first + i]++;
        if (fails[first + i] == 0)
            continue;
        if (i == 0) {
            errno = fails[first + i];
            return -1;
        }
        return __real_pread(fd, bytes, i * IMAGE_PAGE_BYTES, offset);
    }
    return __real_pread(fd, bytes, length, offset);
}

static void begin(void)
{
    memset(fails, 0, sizeof(fails));
    memset(reads_of, 0, sizeof(reads_of));
}

/* All of it data: no two pages alike. */
static int full_file(void)
{
    uint8_t bytes[IMAGE_PAGE_BYTES];
    int fd = memfd_create("image", MFD_CLOEXEC);

    for (int page = 0; page < PAGES; page++) {
        memset(bytes, page + 1, sizeof(bytes));
        CHECK(pwrite(fd, bytes, sizeof(bytes), (off_t)page * (off_t)sizeof(bytes)) == (ssize_t)sizeof(bytes));
    }
    return fd;
}

static struct image *open_image(int fd)
{
    struct pageferry_image_facts facts;
    struct image *image = NULL;

    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, error, sizeof(error)), 0);
    CHECK_EQ(image_file_open("vm", fd, &facts, &facts.page_count, 1, &image, error, sizeof(error)), 0);
    return image;
}

/* -------------------------------------------------------------------------------------------- what a batch says */

static struct run runs[256], got[256];
static uint32_t got_count, got_lost;
static struct stats stats;

static void batch(struct image *image, uint64_t first_page, uint64_t page_count, uint64_t since, bool versions_only)
{
    static uint8_t bytes[1 << 19];
    struct reply_order order = {.image = image, .as_of = atomic_load(&image->as_of), .since_version = since,
                                .versions_only = versions_only, .pages_max = versions_only ? 1 : 64, .runs_max = 256};
    struct reply_space space = {.bytes = bytes, .capacity_bytes = sizeof(bytes), .runs = runs};
    struct page_batch read = {.runs = got};
    uint64_t data_pages = 0;
    struct asks asks;
    struct reply reply;

    asks_open(&asks);
    CHECK(asks_add(&asks, first_page, page_count));
    CHECK_EQ(reply_make(&order, &asks, &space, &stats, &reply), 0);
    CHECK_EQ(read_page_batch(reply.message, got, 256, &read), 0);
    if (read.run_count > 0)
        CHECK_EQ(payload_check(image->content_id, &read, &data_pages), 0);
    got_count = read.run_count;
    got_lost = reply.lost_pages;
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

/* ------------------------------------------------------------------------------------------------------- a file */

#define ONE PF_LIMIT_IMMUTABLE_VERSION

static void test_a_read_that_fails_loses_that_page_alone(void)
{
    int fd = full_file();
    struct image *image = open_image(fd);

    begin();
    fails[5] = EIO;
    memset(&stats, 0, sizeof(stats));
    batch(image, 0, 64, 0, false);
    CHECK_EQ(got_count, 3);
    is_run(0, 0, 5, PF_RUN_KIND_DATA, ONE);
    is_run(1, 5, 1, PF_RUN_KIND_POISON, ONE);
    is_run(2, 6, 58, PF_RUN_KIND_DATA, ONE);
    CHECK_EQ(got_lost, 1);
    CHECK_EQ(stats_get(&stats, STATS_lost_pages_total), 1);
    CHECK_EQ(stats_get(&stats, STATS_sent_poison_pages_total), 1);
    begin(); /* the disk reads it again: too late */
    batch(image, 0, 64, 0, false);
    CHECK_EQ(got_count, 3);
    is_run(1, 5, 1, PF_RUN_KIND_POISON, ONE);
    CHECK_EQ(got_lost, 0);
    CHECK_EQ(reads_of[5], 0);
    fails[7] = EIO;
    batch(image, 7, 1, 0, false); /* asked for alone */
    CHECK_EQ(got_count, 1);
    is_run(0, 7, 1, PF_RUN_KIND_POISON, ONE);
    batch(image, 0, PAGES, 0, true);
    CHECK_EQ(got_count, 5);
    is_run(1, 5, 1, PF_RUN_KIND_POISON, ONE);
    is_run(2, 6, 1, PF_RUN_KIND_VERSION, ONE);
    is_run(3, 7, 1, PF_RUN_KIND_POISON, ONE);
    image->ops->close(image);
    close(fd);
}

static void test_what_cannot_be_read_now_is_not_lost(void)
{
    static const int now[] = {ENOMEM, EAGAIN, ETIMEDOUT, ESTALE, EACCES};
    int fd = full_file();
    struct image *image;

    begin();
    image = open_image(fd);
    for (size_t i = 0; i < sizeof(now) / sizeof(now[0]); i++) {
        begin();
        fails[9] = now[i];
        batch(image, 8, 3, 0, false);
        CHECK_EQ(got_count, 3);
        is_run(1, 9, 1, PF_RUN_KIND_LATER, ONE);
        CHECK_EQ(got_lost, 0);
        begin();
        batch(image, 8, 3, 0, false);
        CHECK_EQ(got_count, 1);
        is_run(0, 8, 3, PF_RUN_KIND_DATA, ONE);
    }
    image->ops->close(image);
    close(fd);
}

static uint64_t inspect(int fd, struct pageferry_left_out *left_out, uint64_t data_pages)
{
    struct pageferry_image_facts facts;

    error[0] = 0;
    CHECK_EQ(pageferry_image_inspect(fd, NULL, left_out, &facts, error, sizeof(error)), 0);
    CHECK_EQ(facts.data_pages, data_pages);
    return facts.content_id;
}

static void test_inspect_leaves_lost_pages_out(void)
{
    int fd = full_file();
    struct pageferry_image_facts facts;
    uint64_t found[2 * FOUND], known[] = {5, 1, 70, 2, PAGES - 1, 1}, whole, rest;
    struct pageferry_left_out left_out = {.found = found, .found_capacity = FOUND};

    begin();
    whole = inspect(fd, &left_out, PAGES);
    CHECK_EQ(left_out.found_count, 0);
    fails[5] = fails[70] = fails[71] = fails[PAGES - 1] = EIO;
    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    CHECK(strstr(error, "Input/output error") != NULL);
    rest = inspect(fd, &left_out, PAGES - 4);
    CHECK_EQ(left_out.found_count, 3);
    CHECK(memcmp(found, known, sizeof(known)) == 0);
    CHECK(rest != whole);
    /* The disk reads them again: whoever remembers which they were finds the same id. */
    begin();
    left_out.known = known;
    left_out.known_count = 3;
    CHECK(inspect(fd, &left_out, PAGES - 4) == rest);
    CHECK_EQ(left_out.found_count, 0);
    CHECK_EQ(reads_of[5] + reads_of[70] + reads_of[71] + reads_of[PAGES - 1], 0);
    left_out.known_count = 0;
    CHECK(inspect(fd, &left_out, PAGES) == whole);
    /* A disk that is dead is none with some bad sectors. */
    for (int page = 0; page < 2 * (FOUND + 1); page += 2)
        fails[page] = EIO;
    CHECK_EQ(pageferry_image_inspect(fd, NULL, &left_out, &facts, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(left_out.found_count, FOUND);
    /* Nor is one that says something else. */
    begin();
    fails[5] = ENOMEM;
    CHECK_EQ(pageferry_image_inspect(fd, NULL, &left_out, &facts, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    close(fd);
}

/* -------------------------------------------------------------------------------------------- an operator's word */

static struct pageferry_server *new_server(void)
{
    struct pageferry_server *server = calloc(1, sizeof(*server)); /* without a thread or a port */

    CHECK_EQ(sessions_open(&server->service.sessions), 0);
    return server;
}

static void end_server(struct pageferry_server *server)
{
    images_close(&server->service.images);
    sessions_close(&server->service.sessions);
    free(server);
}

static int add(struct pageferry_server *server, int fd, const uint64_t *lost, uint32_t lost_count)
{
    struct pageferry_image_facts facts;

    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, error, sizeof(error)), 0);
    return pageferry_server_add_file(server, "vm", fd, &facts, &facts.page_count, 1, lost, lost_count, error, sizeof(error));
}

static void test_what_is_lost_is_told(void)
{
    struct pageferry_server *server = new_server();
    const uint64_t before[] = {3, 2, PAGES - 1, 1}, outside[] = {3, 2, PAGES - 1, 2};
    struct pageferry_server_event event;
    struct image *served;
    uint64_t told[64], first = 0;
    int fd = full_file();

    begin();
    CHECK_EQ(add(server, fd, outside, 2), -PF_REASON_OUT_OF_IMAGE);
    CHECK_EQ(add(server, fd, before, 2), 0);
    CHECK_EQ(pageferry_server_poison(server, "vm", 100, 64, error, sizeof(error)), 0);
    CHECK_EQ(pageferry_server_poison(server, "vm", 120, 10, error, sizeof(error)), 0); /* again: the same */
    CHECK_EQ(pageferry_server_poison(server, "vm", 5, 1, error, sizeof(error)), 0);
    CHECK_EQ(pageferry_server_poisoned(server, "vm", &first, told, 32), 3);
    CHECK(memcmp(told, (uint64_t[]){3, 3, 100, 64, PAGES - 1, 1}, 6 * sizeof(told[0])) == 0);
    CHECK_EQ(pageferry_server_poisoned(server, "vm", &first, told, 32), 0);
    first = 0;
    CHECK_EQ(pageferry_server_poisoned(server, "vm", &first, told, 1), 1);
    CHECK_EQ(first, 6);
    CHECK_EQ(pageferry_server_poisoned(server, "vm", &first, told, 1), 1);
    CHECK_EQ(told[0], 100);
    CHECK_EQ(pageferry_server_event(server, &event), 0); /* who has said so knows it */
    served = images_take(&server->service.images, (struct grpc_bytes){(const uint8_t *)"vm", 2});
    atomic_store(&served->lost_news, true);
    images_release(served);
    CHECK_EQ(pageferry_server_event(server, &event), 1);
    CHECK_EQ(event.kind, PAGEFERRY_SERVER_EVENT_LOST);
    CHECK_EQ(event.page_count, 68);
    CHECK(strcmp(event.text, "vm") == 0 && event.session[0] == 0);
    CHECK_EQ(pageferry_server_event(server, &event), 0);
    error[0] = 0;
    CHECK_EQ(pageferry_server_poison(server, "vm", PAGES, 1, error, sizeof(error)), -PF_REASON_OUT_OF_IMAGE);
    CHECK(strstr(error, "200 of vm") != NULL);
    CHECK_EQ(pageferry_server_poison(server, "vm", 0, PAGES + 1, error, sizeof(error)), -PF_REASON_OUT_OF_IMAGE);
    CHECK_EQ(pageferry_server_poison(server, "vm", 1, UINT64_MAX, error, sizeof(error)), -PF_REASON_OUT_OF_IMAGE);
    CHECK_EQ(pageferry_server_poison(server, "vm", 1, 0, error, sizeof(error)), -PF_REASON_OUT_OF_IMAGE);
    CHECK_EQ(pageferry_server_poison(server, "other", 0, 1, error, sizeof(error)), -PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(pageferry_server_poisoned(server, "other", &first, told, 1), -PF_REASON_NO_SUCH_IMAGE);
    end_server(server);
    close(fd);
}

/* Threads lose the same pages, and each is counted once. */
static void *lose_all(void *lost)
{
    for (uint64_t page = 0; page < PAGES; page++)
        lost_note(lost, page, 1 + page % 3 < PAGES - page ? 1 + page % 3 : 1);
    return NULL;
}

static void test_each_is_counted_once(void)
{
    struct lost lost;
    pthread_t threads[4];
    uint64_t end = PAGES;

    CHECK_EQ(lost_open(&lost, PAGES, true), 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, lose_all, &lost), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(atomic_load(&lost.count), PAGES);
    CHECK(lost_has(&lost, 0, &end));
    CHECK_EQ(end, PAGES);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(lost_take_unnamed(&lost, 0, PAGES), page);
    CHECK_EQ(lost_take_unnamed(&lost, 0, PAGES), PAGES);
    lost_close(&lost);
}

/* -------------------------------------------------------------------------------------------------- live memory */

static struct tracked vmm;
static struct image *image;

static void begin_live(void)
{
    struct image_memory_request request = {.name = "vm", .content_id = 9, .incarnation = INCARNATION, .versions_fd = -1,
                                           .arriving_fd = -1};
    struct pageferry_region region;

    begin();
    CHECK(tracked_start(&vmm, PAGES, PAGES, false));
    region = (struct pageferry_region){.address = vmm.address, .length_bytes = PAGES * TRACKED_PAGE};
    request.uffd = vmm.uffd;
    request.ram_fd = vmm.ram_fd;
    request.pid = vmm.pid;
    request.pidfd = vmm.pidfd;
    request.regions = &region;
    request.region_count = 1;
    CHECK_EQ(image_memory_open(&request, &image, error, sizeof(error)), 0);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK(tracked_do(&vmm, TRACKED_WRITE, page, 1));
}

static void end_live(void)
{
    image->ops->close(image);
    tracked_end(&vmm);
}

static void do_round(void)
{
    uint32_t round;
    int rc = rounds_begin(image->rounds, &round);

    while (rc == 0)
        rc = rounds_step(image->rounds, round);
    CHECK_EQ(rc, 1);
}

static int lose(uint64_t first_page, uint64_t page_count)
{
    return image_lose(image, first_page, page_count, error, sizeof(error));
}

static void test_the_next_round_names_them_once(void)
{
    begin_live();
    do_round();
    CHECK_EQ(lose(7, 2), 0);
    CHECK_EQ(lose(PAGES - 1, 1), 0);
    CHECK_EQ(lose(8, 1), 0);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 8, 2)); /* written too: it is one page of the round, not two */
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 20, 2));
    batch(image, 7, 1, 0, false); /* before any round says so */
    is_run(0, 7, 1, PF_RUN_KIND_POISON, BITS | 1);
    do_round();
    CHECK_EQ(rounds_settled_pages(image->rounds), 4);
    batch(image, 0, PAGES, BITS | 1, true);
    CHECK_EQ(got_count, 3);
    is_run(0, 7, 2, PF_RUN_KIND_POISON, BITS | 2);
    is_run(1, 20, 1, PF_RUN_KIND_VERSION, BITS | 2);
    is_run(2, PAGES - 1, 1, PF_RUN_KIND_POISON, BITS | 2);
    do_round();
    CHECK_EQ(rounds_settled_pages(image->rounds), 0);
    CHECK_EQ(lose(7, 2), 0); /* it is known: no news */
    do_round();
    CHECK_EQ(rounds_settled_pages(image->rounds), 0);
    end_live();
}

/* A target has its bytes already, then a read finds it lost: the next round tells the target. */
static void test_what_a_read_finds_is_named_by_the_next_round(void)
{
    begin_live();
    do_round();
    fails[30] = EIO;
    batch(image, 0, 64, 0, false);
    CHECK_EQ(got_count, 3);
    is_run(1, 30, 1, PF_RUN_KIND_POISON, BITS | 1);
    begin();
    do_round();
    batch(image, 0, PAGES, BITS | 1, true);
    CHECK_EQ(got_count, 1);
    is_run(0, 30, 1, PF_RUN_KIND_POISON, BITS | 2);
    end_live();
}

/* By the contract's words: what both ends sum does not know of poison. */
static manifest_sum sum_of_map(void)
{
    manifest_sum sum = 0;

    batch(image, 0, PAGES, 0, true);
    for (uint32_t i = 0; i < got_count; i++)
        for (uint64_t j = 0; j < got[i].page_count; j++)
            sum += manifest_of(got[i].first_page + j, got[i].version);
    return sum;
}

static void test_the_freeze_is_the_last_that_names_them(void)
{
    begin_live();
    do_round();
    CHECK_EQ(lose(40, 3), 0);
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    batch(image, 0, PAGES, BITS | 1, true);
    CHECK_EQ(got_count, 1);
    is_run(0, 40, 3, PF_RUN_KIND_POISON, BITS | 2);
    error[0] = 0;
    CHECK_EQ(lose(50, 1), -PF_REASON_WRONG_PHASE);
    CHECK(strstr(error, "its target has to poison") != NULL);
    fails[60] = EIO; /* what the kernel says cannot be refused: under the version that the page has */
    batch(image, 60, 1, 0, false);
    is_run(0, 60, 1, PF_RUN_KIND_POISON, BITS | 1);
    CHECK(sum_of_map() == image_memory_manifest(image));
    batch(image, 50, 1, 0, false);
    is_run(0, 50, 1, PF_RUN_KIND_DATA, BITS | 1);
    /* The target will never run: the guest goes on, and the first round names all again, each once. */
    CHECK_EQ(rounds_thaw(image->rounds), 0);
    do_round();
    CHECK_EQ(rounds_settled_pages(image->rounds), PAGES);
    batch(image, 60, 1, 0, true);
    is_run(0, 60, 1, PF_RUN_KIND_POISON, (uint64_t)(INCARNATION + 1) << 32 | 1);
    CHECK_EQ(lose(50, 1), 0);
    do_round();
    CHECK_EQ(rounds_settled_pages(image->rounds), 1);
    end_live();
}

int main(void)
{
    const char *absent = tracked_absent();

    RUN(test_a_read_that_fails_loses_that_page_alone);
    RUN(test_what_cannot_be_read_now_is_not_lost);
    RUN(test_inspect_leaves_lost_pages_out);
    RUN(test_what_is_lost_is_told);
    RUN(test_each_is_counted_once);
    if (absent != NULL) {
        SKIP(test_live, absent);
        return check_done();
    }
    RUN(test_the_next_round_names_them_once);
    RUN(test_what_a_read_finds_is_named_by_the_next_round);
    RUN(test_the_freeze_is_the_last_that_names_them);
    return check_done();
}
