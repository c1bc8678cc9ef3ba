/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client through pageferry.h, on the real kernel, against a server that is good: every stage of a restore. How it
 * ends: test_client_ends.c; a server that is not good: test_client_broken.c.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "kernel/frames.h"

static struct server server;
static struct client_vm vm;

static bool begin(enum real_memory memory, bool frames, bool background)
{
    server_start(&server);
    if (!client_prepare(&vm, memory, SERVER_PAGES, &server, frames))
        return false;
    vm.options.background = background;
    return client_open(&vm) == 0;
}

static void end(void)
{
    client_end(&vm);
    server_stop(&server);
}

static void read_all(uint64_t step)
{
    for (uint64_t page = 0; page < SERVER_PAGES; page += step)
        CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), client_word(page));
}

/* ----------------------------------------------------------------------------------------------------- restores */

static void test_faults_alone(void)
{
    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    CHECK_EQ(vm.event.value, SERVER_CONTENT_ID);
    CHECK(client_arm(&vm));
    read_all(7);
    CHECK_EQ(client_counter(&vm, STATS_asks_total), (SERVER_PAGES + 6) / 7);
    CHECK_EQ(client_counter(&vm, STATS_asks_again_total), 0);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK_EQ(client_counter(&vm, STATS_bulk_pages_total), 0);
    CHECK_EQ(atomic_load(&server.seen.asked), (SERVER_PAGES + 6) / 7);
    CHECK_EQ(client_state(&vm, 7), PAGE_OWNED);
    CHECK_EQ(client_state(&vm, 8), PAGE_MISSING);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_PAUSED], 0);
    end();
}

static void whole(enum real_memory memory, bool arm_first)
{
    CHECK(begin(memory, false, true));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    if (!arm_first)
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 300, 1, 0), client_word(300));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(vm.event.value, 0);
    CHECK(!client_busy());
    read_all(1);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK_EQ(client_counter(&vm, STATS_digest_failures_total), 0);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_PAUSED], 0);
    end();
}

static void test_whole_memfd(void)
{
    whole(REAL_MEMFD, true);
}

static void test_whole_memfd_populated_first(void)
{
    whole(REAL_MEMFD, false);
}

static void test_whole_tmpfs(void)
{
    whole(REAL_TMPFS, false);
}

static void test_whole_private(void)
{
    whole(REAL_PRIVATE, true);
}

/* Faults are never held up by a cap, and background is until the cap is another. */
static void test_a_cap(void)
{
    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    vm.options.background = 1;
    vm.options.bandwidth_bytes_per_s = 1;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    read_all(5);
    CHECK_EQ(client_counter(&vm, STATS_bulk_pages_total), 0);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BANDWIDTH, 0, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK(client_counter(&vm, STATS_bulk_pages_total) > 0);
    read_all(1);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_PAUSED], 0);
    end();
}

static void test_spinning(void)
{
    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    vm.options.spin_us = 200;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    read_all(5);
    CHECK(!client_busy());
    end();
}

/* Our own server, through pageferry.h as well. */
static void test_our_own_server(void)
{
    struct pageferry_server_options options = {.listen_fd_count = 1};
    struct pageferry_server *own = NULL;
    struct pageferry_image_facts facts;
    uint8_t bytes[4096];
    char error[PAGEFERRY_TEXT_BYTES];
    int image = memfd_create("image", MFD_CLOEXEC);

    server_start(&server);
    CHECK_EQ(ftruncate(image, SERVER_PAGES * 4096), 0);
    for (uint64_t page = 0; page < SERVER_PAGES; page++) {
        real_fill(bytes, 1, page + 1);
        if (server_holds(page))
            CHECK_EQ(pwrite(image, bytes, sizeof(bytes), (off_t)(page * 4096)), sizeof(bytes));
    }
    server.elsewhere = true;
    options.listen_fds = &server.listen_fd;
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    vm.options.background = 1;
    CHECK_EQ(pageferry_server_open(&options, &own), 0);
    CHECK_EQ(pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)), 0);
    CHECK_EQ(pageferry_server_add_file(own, CLIENT_IMAGE, image, &facts, &facts.page_count, 1, NULL, 0, error,
                                       sizeof(error)),
             0);
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    read_all(11);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    read_all(1);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    client_end(&vm);
    pageferry_server_close(own);
    close(image);
    server_stop(&server);
}

/* --------------------------------------------------------------------------------------------- before it is armed */

static void test_armed_before_it_is_attached(void)
{
    server_start(&server);
    atomic_store(&server.will.frozen, 1);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 9));
    real_begin(&vm.real, REAL_READ, 42, 1, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_EARLY_FAULT));
    CHECK_EQ(vm.event.page, 42);
    CHECK(!client_busy());
    CHECK_EQ(client_state(&vm, 42), PAGE_MISSING);
    atomic_store(&server.will.frozen, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ARMED));
    CHECK_EQ(vm.event.cookie, 9);
    CHECK_EQ(real_answer(&vm.real), client_word(42));
    end();
}

static void test_stale_bytes_are_replaced(void)
{
    uint8_t bytes[4096];

    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    real_fill(bytes, 1, 4711);
    CHECK_EQ(pwrite(vm.real.uffd.backing_fd, bytes, sizeof(bytes), 5 * 4096), sizeof(bytes));
    CHECK_EQ(pwrite(vm.real.uffd.backing_fd, bytes, sizeof(bytes), 80 * 4096), sizeof(bytes));
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), client_word(5));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 80, 1, 0), 0);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    end();
}

static void test_background_by_order(void)
{
    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(client_arm(&vm));
    CHECK(!client_busy());
    CHECK_EQ(atomic_load(&server.seen.streams), 0);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

/* ----------------------------------------------------------------------------------------------------------- frames */

static bool hears_frame(int fd, struct frame *frame)
{
    struct timeval patience = {.tv_sec = 20};

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return recv(fd, frame, sizeof(*frame), MSG_WAITALL) == sizeof(*frame) && frame->magic == FRAME_MAGIC;
}

static bool hears(int fd, enum frame_kind kind, uint64_t sequence)
{
    struct frame frame = {0};

    return hears_frame(fd, &frame) && frame.kind == kind && frame.sequence == sequence;
}

/* How many pages are to be kept, of those that the VMM is about to drop; -1: no answer. */
static int64_t kept_of(uint64_t page, uint64_t count, uint64_t sequence)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD, .sequence = sequence,
                          .offset_bytes = page * 4096, .length_bytes = count * 4096};

    if (frame_send(vm.frames_end, &frame) < 0 || !hears_frame(vm.frames_end, &frame) ||
        frame.kind != FRAME_DISCARDED || frame.sequence != sequence)
        return -1;
    return (int64_t)(frame.length_bytes / 4096);
}

static bool discard(uint64_t page, uint64_t count, uint64_t sequence)
{
    return kept_of(page, count, sequence) == 0;
}

static void test_discards(void)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD, .sequence = 9, .offset_bytes = UINT64_MAX - 100,
                          .length_bytes = 4096};

    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    CHECK_EQ(kept_of(1, 1, 1), 1); /* before arming the guest has nothing to drop */
    CHECK(client_arm(&vm));
    CHECK(hears(vm.frames_end, FRAME_ACCEPTED, 0));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 1, 1, 0), client_word(1));
    CHECK(discard(2, 3, 2)); /* missing */
    for (uint64_t page = 2; page < 5; page++)
        CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), 0);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), client_word(5));
    atomic_store(&server.will.fetch_mute, 1); /* wanted */
    real_begin(&vm.real, REAL_READ, 10, 1, 0);
    CHECK(CLIENT_UNTIL(client_state(&vm, 10) == PAGE_WANTED));
    CHECK(discard(10, 1, 3));
    CHECK_EQ(real_answer(&vm.real), 0);
    CHECK(discard(5, 1, 4)); /* the guest's: the drop itself does it */
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 5, 1, MADV_REMOVE), 0);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), 0);
    CHECK_EQ(frame_send(vm.frames_end, &frame), 0); /* beyond everything: answered all the same */
    CHECK(hears(vm.frames_end, FRAME_DISCARDED, 9));
    CHECK(discard(SERVER_PAGES - 1, 100, 5));
    CHECK_EQ(real_do(&vm.real, REAL_READ, SERVER_PAGES - 1, 1, 0), 0);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    end();
}

static void test_discards_of_cached_pages_and_complete(void)
{
    CHECK(begin(REAL_MEMFD, true, true));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(client_state(&vm, 3), PAGE_CACHED);
    CHECK_EQ(client_state(&vm, 70), PAGE_ZERO);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0)); /* no sweep: they stay cached */
    CHECK(client_arm(&vm));
    CHECK(hears(vm.frames_end, FRAME_ACCEPTED, 0));
    CHECK(discard(3, 1, 1));
    CHECK(discard(70, 1, 2));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 3, 1, 0), 0);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 70, 1, 0), 0);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 4, 1, 0), client_word(4));
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK(hears(vm.frames_end, FRAME_COMPLETE, 0));
    CHECK(discard(8, 1, 3)); /* one that crossed it on the way */
    CHECK_EQ(real_do(&vm.real, REAL_READ, 8, 1, 0), client_word(8));
    shutdown(vm.frames_end, SHUT_RDWR); /* the shim may go now; that is no exit */
    CHECK(!client_busy());
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_VMM_GONE], 0);
    end();
}

/* What a device of the VMM does to its RAM file when it is made, before any guest runs, is no discard: nothing is dropped,
 * and every page comes. What is dropped later is. */
static void test_a_vmm_that_empties_its_ram_file_first(void)
{
    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(client_arm(&vm));
    CHECK(hears(vm.frames_end, FRAME_ACCEPTED, 0));
    CHECK_EQ(kept_of(0, SERVER_PAGES, 1), SERVER_PAGES);
    CHECK_EQ(kept_of(0, SERVER_PAGES, 2), SERVER_PAGES); /* twice, why not */
    CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), client_word(5));
    CHECK_EQ(kept_of(0, SERVER_PAGES, 3), 0); /* a guest has come that far */
    CHECK_EQ(client_counter(&vm, STATS_discards_total), 3);
    CHECK_EQ(client_counter(&vm, STATS_discards_kept_total), 2);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 6, 1, 0), 0);
    end();
    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(client_arm(&vm));
    CHECK(hears(vm.frames_end, FRAME_ACCEPTED, 0));
    CHECK_EQ(kept_of(4, 1, 1), 0); /* a part of it: a guest's, or of what is not plugged in, which is zeros anyway */
    CHECK_EQ(kept_of(0, SERVER_PAGES, 2), 0);
    end();
}

/* The answer before arming is worth its name: what the cache holds by then is there afterwards. */
static void test_a_discard_before_arming_keeps_what_is_cached(void)
{
    CHECK(begin(REAL_MEMFD, true, true));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(client_state(&vm, 3), PAGE_CACHED);
    if (kept_of(3, 1, 1) == 0) /* what the shim does then */
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 3, 1, MADV_REMOVE), 0);
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 3, 1, 0), client_word(3));
    end();
}

/* One that does not read its answers: its socket fills, and the pager goes on. */
static void test_vmm_that_does_not_read(void)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD, .offset_bytes = 4096, .length_bytes = 4096};
    struct timeval patience = {.tv_sec = 1};
    int sent = 0;

    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(client_arm(&vm));
    setsockopt(vm.frames_end, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    while (sent < 20000 && send(vm.frames_end, &frame, sizeof(frame), MSG_NOSIGNAL) == sizeof(frame))
        sent++;
    CHECK(sent < 20000);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 9, 1, 0), client_word(9));
    CHECK(!client_busy());
    end();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_faults_alone);
    RUN(test_whole_memfd);
    RUN(test_whole_memfd_populated_first);
    RUN(test_whole_tmpfs);
    RUN(test_whole_private);
    RUN(test_a_cap);
    RUN(test_spinning);
    RUN(test_our_own_server);
    RUN(test_armed_before_it_is_attached);
    RUN(test_stale_bytes_are_replaced);
    RUN(test_background_by_order);
    RUN(test_discards);
    RUN(test_discards_of_cached_pages_and_complete);
    RUN(test_a_vmm_that_empties_its_ram_file_first);
    RUN(test_a_discard_before_arming_keeps_what_is_cached);
    RUN(test_vmm_that_does_not_read);
    return check_done();
}
