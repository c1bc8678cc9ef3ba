/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Poison on the real kernel, from the order, or the server's word, to the signal in the VM: in every state that a page
 * can be in, through every way in which a mapping goes, with what the owner and the VMM are told. What the guest gets is
 * said by its own threads; what lies in the memory, by the file behind it.
 *
 *   test_poison                  the cases, and a short life of random poison
 *   test_poison POISONS FAULTS   that life alone, so long
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "huge_pool.h"
#include "kernel/frames.h"
#include "kernel/uapi.h"

#define RANDOM_POISONS 1000
#define RANDOM_FAULTS 20000

static struct server server;
static struct client_vm vm;
static int ram_fd = -1, uffd = -1; /* our own, beside the pager's */

/* What the owner has been told by the poison log. */
static struct {
    uint64_t number;
    uint64_t lost[SERVER_PAGES], cleared[SERVER_PAGES]; /* how often */
    uint64_t flags; /* of the newest POISONED */
    uint64_t done_pages, failed_reason;
    bool done;
    char text[PAGEFERRY_TEXT_BYTES];
} told;

static bool prepare(enum real_memory memory, bool frames, bool background)
{
    server_start(&server);
    memset(&told, 0, sizeof(told));
    if (!client_prepare(&vm, memory, SERVER_PAGES, &server, frames))
        return false;
    ram_fd = vm.real.uffd.backing_fd < 0 ? -1 : dup(vm.real.uffd.backing_fd);
    uffd = dup(vm.real.uffd.fd);
    vm.options.background = background;
    vm.options.handed_on = 1; /* the registration outlives COMPLETE */
    return true;
}

static bool begin(enum real_memory memory, bool frames, bool background)
{
    return prepare(memory, frames, background) && client_open(&vm) == 0;
}

static void end(void)
{
    client_end(&vm);
    server_stop(&server);
    if (ram_fd >= 0)
        close(ram_fd);
    close(uffd);
    ram_fd = uffd = -1;
}

/* Takes what there is. Numbers without a gap; poisoned, cleared, poisoned: never one of them twice. */
static void hear(void)
{
    struct pageferry_event *event = &vm.event;

    while (pageferry_vm_event(vm.vm, event) == 1) {
        bool lost = event->kind == PAGEFERRY_EVENT_POISONED;
        vm.seen[event->kind]++;
        if (event->kind == PAGEFERRY_EVENT_DONE || event->kind == PAGEFERRY_EVENT_FAILED) {
            told.done = true;
            told.done_pages = event->page;
            told.failed_reason = event->kind == PAGEFERRY_EVENT_FAILED ? event->reason : 0;
            memcpy(told.text, event->text, sizeof(told.text));
        }
        if (event->kind == PAGEFERRY_EVENT_ALARM)
            printf("alarm: page %llu %s\n", (unsigned long long)event->page, event->text);
        if (!lost && event->kind != PAGEFERRY_EVENT_POISON_CLEARED)
            continue;
        CHECK_EQ(event->cookie, ++told.number);
        CHECK_EQ(lost, told.lost[event->page] == told.cleared[event->page]);
        told.lost[event->page] += lost;
        told.cleared[event->page] += !lost;
        told.flags = lost ? event->value : told.flags;
        if (!lost)
            CHECK_EQ(event->value, 1);
    }
}

#define HEAR_UNTIL(condition) CLIENT_UNTIL((hear(), (condition)))

static bool order(uint32_t kind, uint64_t page, uint64_t count)
{
    struct pageferry_order order = {.kind = kind, .value = page, .page_count = count, .cookie = 5};

    hear();
    told.done = false;
    return pageferry_vm_order(vm.vm, &order) == 0 && HEAR_UNTIL(told.done) && told.failed_reason == 0;
}

/* The pages that changed. */
static uint64_t poison(uint64_t page, uint64_t count)
{
    return order(PAGEFERRY_ORDER_POISON, page, count) ? told.done_pages : UINT64_MAX;
}

static uint64_t clear(uint64_t page, uint64_t count)
{
    return order(PAGEFERRY_ORDER_CLEAR_POISON, page, count) ? told.done_pages : UINT64_MAX;
}

static int64_t reads(uint64_t page)
{
    return real_do(&vm.real, REAL_READ, page, 1, 0);
}

/* Through the file: the lost bytes are nowhere. */
static bool cache_is_empty(uint64_t page)
{
    uint8_t bytes[REAL_PAGE];
    bool empty = pread(ram_fd, bytes, sizeof(bytes), (off_t)(page * REAL_PAGE)) == (ssize_t)sizeof(bytes);
    struct stat file;

    for (size_t i = 0; i < sizeof(bytes) && empty; i++)
        empty = bytes[i] == 0;
    if (fstat(ram_fd, &file) == 0 && (uint64_t)file.st_blksize == HUGE_POOL_PAGE) /* it knows nothing of holes */
        return empty && file.st_blocks == 0;
    return empty && lseek(ram_fd, (off_t)(page * REAL_PAGE), SEEK_DATA) != (off_t)(page * REAL_PAGE);
}

static bool armed(void)
{
    return client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 7) && HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_ARMED] > 0);
}

/* ------------------------------------------------------------------------------------------------- where the page is */

static void before_it_is_mapped(void)
{
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        bool shared = memory != REAL_PRIVATE;
        CHECK(begin((enum real_memory)memory, false, shared));
        if (shared)
            CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_POPULATED] > 0));
        CHECK_EQ(poison(3, 2), 2);
        CHECK_EQ(poison(2, 4), 2); /* those that were not */
        CHECK_EQ(client_state(&vm, 3), PAGE_POISONED);
        CHECK_EQ(told.flags, 0);
        if (shared)
            CHECK(cache_is_empty(3) && cache_is_empty(5));
        CHECK(armed());
        for (uint64_t page = 2; page < 6; page++)
            CHECK_EQ(reads(page), REAL_SIGBUS);
        CHECK_EQ(real_do(&vm.real, REAL_WRITE, 4, 1, 9), REAL_SIGBUS);
        CHECK_EQ(reads(6), client_word(6));
        CHECK_EQ(told.number, 4);
        CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
        end();
    }
}

static void after_it_was_mapped(void)
{
    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(armed());
    CHECK_EQ(reads(7), client_word(7));
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 8, 1, 4711), 0);
    CHECK_EQ(poison(7, 2), 2);
    CHECK_EQ(told.flags, PAGEFERRY_POISONED_WAS_MAPPED);
    CHECK_EQ(reads(7), REAL_SIGBUS);
    CHECK_EQ(reads(8), REAL_SIGBUS);
    CHECK(cache_is_empty(7) && cache_is_empty(8));
    CHECK_EQ(told.number, 2);
    end();
}

/* Nobody here can take a mapping of private memory away: it is said, and as soon as the VMM has done it, it is so. */
static void after_it_was_mapped_on_private_memory(void)
{
    CHECK(begin(REAL_PRIVATE, false, false));
    CHECK(armed());
    CHECK_EQ(reads(7), client_word(7));
    CHECK_EQ(poison(7, 2), 2);
    CHECK_EQ(told.lost[7] + told.lost[8], 2);
    CHECK_EQ(reads(8), REAL_SIGBUS);
    CHECK_EQ(reads(7), client_word(7));
    CHECK(!order(PAGEFERRY_ORDER_CLEAR_POISON, 7, 2)); /* old bytes would be back */
    CHECK_EQ(told.failed_reason, PF_REASON_UNSUPPORTED);
    CHECK(strstr(told.text, "MADV_DONTNEED") != NULL);
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 7, 1, MADV_DONTNEED), 0);
    CHECK_EQ(reads(7), REAL_SIGBUS);
    CHECK_EQ(clear(7, 2), 2);
    CHECK_EQ(reads(7), 0);
    CHECK_EQ(reads(8), 0);
    CHECK_EQ(told.number, 4);
    end();
}

/* A thread waits for a page that is lost meanwhile. */
static void while_it_is_wanted(void)
{
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        CHECK(begin((enum real_memory)memory, false, false));
        CHECK(armed());
        atomic_store(&server.will.fetch_mute, 1);
        real_begin(&vm.real, REAL_READ, 10, 1, 0);
        CHECK(CLIENT_UNTIL(client_state(&vm, 10) == PAGE_WANTED));
        CHECK_EQ(poison(10, 1), 1);
        CHECK_EQ(real_answer(&vm.real), REAL_SIGBUS);
        atomic_store(&server.will.fetch_mute, 0); /* its bytes come now */
        CHECK_EQ(reads(11), client_word(11));
        CHECK_EQ(reads(10), REAL_SIGBUS);
        end();
    }
}

/* ---------------------------------------------------------------------------------------------------- by the server */

/* Runs of every length, with lost pages between them: neither COPY nor CONTINUE goes over one. */
static void inside_a_batch(void)
{
    for (int populated = 0; populated < 2; populated++) {
        CHECK(prepare(REAL_MEMFD, false, true));
        for (uint64_t page = 3; page < SERVER_PAGES; page += 1 + page % 13)
            atomic_store(&server.will.poisoned[page], 1);
        CHECK_EQ(client_open(&vm), 0);
        if (populated)
            CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_POPULATED] > 0));
        CHECK(armed());
        CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
        for (uint64_t page = 0; page < SERVER_PAGES; page++) {
            bool lost = atomic_load(&server.will.poisoned[page]) != 0;
            CHECK_EQ(reads(page), lost ? REAL_SIGBUS : client_word(page));
            CHECK_EQ(told.lost[page], lost);
            if (lost)
                CHECK(cache_is_empty(page));
        }
        CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
        end();
    }
}

/* Bytes that are on their way when a page is lost are not taken for it. */
static void in_a_race_with_the_prefetch(void)
{
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        uint64_t random = 7;
        CHECK(begin((enum real_memory)memory, false, false));
        atomic_store(&server.will.stream_pages, 3);
        CHECK(armed());
        CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
        for (int i = 0; i < 60; i++) {
            random = random * UINT64_C(6364136223846793005) + 1442695040888963407u;
            CHECK(order(PAGEFERRY_ORDER_POISON, (random >> 33) % SERVER_PAGES, 1));
        }
        CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
        for (uint64_t page = 0; page < SERVER_PAGES; page++) {
            if (memory == REAL_PRIVATE && told.lost[page])
                real_do(&vm.real, REAL_ADVISE, page, 1, MADV_DONTNEED);
            CHECK_EQ(reads(page), told.lost[page] ? REAL_SIGBUS : client_word(page));
            if (memory != REAL_PRIVATE && told.lost[page])
                CHECK(cache_is_empty(page));
        }
        CHECK_EQ(client_counter(&vm, STATS_poisoned_pages_total), told.number);
        CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
        end();
    }
}

/* Links break and come back; a page that was lost meanwhile stays so, and what the server says of it is old news. */
static void across_a_reconnection(void)
{
    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(armed());
    atomic_store(&server.will.fetch_mute, 1);
    real_begin(&vm.real, REAL_READ, 20, 1, 0);
    real_begin(&vm.real, REAL_READ, 21, 1, 0);
    CHECK(CLIENT_UNTIL(client_state(&vm, 20) == PAGE_WANTED && client_state(&vm, 21) == PAGE_WANTED));
    server_cut(&server);
    CHECK_EQ(poison(20, 1), 1);
    CHECK_EQ(poison(30, 1), 1);
    CHECK_EQ(real_answer(&vm.real), REAL_SIGBUS);
    atomic_store(&server.will.poisoned[40], 1);
    atomic_store(&server.will.fetch_mute, 0);
    CHECK_EQ(real_answer(&vm.real), client_word(21)); /* asked again */
    CHECK_EQ(reads(40), REAL_SIGBUS);
    server_cut(&server);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
    CHECK_EQ(reads(20), REAL_SIGBUS);
    CHECK_EQ(reads(30), REAL_SIGBUS);
    CHECK_EQ(reads(40), REAL_SIGBUS);
    CHECK_EQ(told.number, 3);
    end();
}

/* ------------------------------------------------------------------------------------------- when its mapping goes */

static void marked_again_after_any_zap(void)
{
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        CHECK(begin((enum real_memory)memory, false, false));
        CHECK(armed());
        CHECK_EQ(poison(12, 3), 3);
        for (int i = 0; i < 20; i++) {
            CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 10, 8, MADV_DONTNEED), 0);
            CHECK_EQ(reads(12 + (uint64_t)i % 3), REAL_SIGBUS);
        }
        if (memory != REAL_PRIVATE) {
            CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 10, 8, MADV_REMOVE), 0);
            CHECK_EQ(reads(13), REAL_SIGBUS);
        }
        CHECK(client_counter(&vm, STATS_poison_marks_total) > 20);
        CHECK_EQ(told.number, 3); /* told once */
        end();
    }
}

/* The VMM maps its memory anew: a mapping without markers, registered with the same userfaultfd. */
static void marked_again_after_a_registration(void)
{
    struct uffdio_register arg = {.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR};

    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(armed());
    CHECK_EQ(reads(16), client_word(16));
    CHECK_EQ(poison(17, 1), 1);
    CHECK_EQ(real_do(&vm.real, REAL_MAP, 16, 4, 0), 0);
    arg.range.start = vm.region.address + 16 * REAL_PAGE;
    arg.range.len = 4 * REAL_PAGE;
    CHECK_EQ(ioctl(uffd, UFFDIO_REGISTER, &arg), 0);
    CHECK_EQ(reads(17), REAL_SIGBUS);
    CHECK_EQ(reads(16), client_word(16));
    CHECK_EQ(reads(18), client_word(18));
    CHECK_EQ(told.number, 1);
    end();
}

/* Removals that the VMM has reported by event: on shared memory they change no word, on private memory a lost page stays
 * lost. */
static void marked_again_after_a_removal(void)
{
    client_more.features = UFFD_FEATURE_EVENT_REMOVE;
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory += REAL_PRIVATE - REAL_MEMFD) {
        bool shared = memory != REAL_PRIVATE;
        CHECK(begin((enum real_memory)memory, false, false));
        CHECK(armed());
        CHECK_EQ(reads(50), client_word(50));
        CHECK_EQ(poison(50, 2), 2);
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 48, 6, shared ? MADV_REMOVE : MADV_DONTNEED), 0);
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 51, 1, MADV_DONTNEED), 0);
        CHECK_EQ(reads(50), REAL_SIGBUS);
        CHECK_EQ(reads(51), REAL_SIGBUS);
        CHECK_EQ(reads(48), shared ? client_word(48) : 0);
        CHECK(client_counter(&vm, STATS_removes_total) >= 2);
        CHECK_EQ(told.number, 2);
        end();
    }
    client_more.features = 0;
}

/* --------------------------------------------------------------------------------------------- cleared, and afterwards */

static void cleared_is_fresh_memory(void)
{
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        CHECK(begin((enum real_memory)memory, false, false));
        CHECK_EQ(poison(60, 4), 4);
        CHECK_EQ(clear(60, 1), 1); /* before arming */
        CHECK(armed());
        CHECK_EQ(reads(60), 0);
        CHECK_EQ(reads(61), REAL_SIGBUS);
        CHECK_EQ(clear(0, SERVER_PAGES), 3);
        CHECK_EQ(reads(61), 0); /* before anything is fetched */
        CHECK_EQ(real_do(&vm.real, REAL_WRITE, 61, 2, 77), 0);
        CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
        CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
        CHECK_EQ(reads(60), 0);
        CHECK_EQ(reads(61), 77);
        CHECK_EQ(reads(63), 0);
        CHECK_EQ(poison(62, 1), 1); /* lost once more, and late */
        if (memory != REAL_PRIVATE)
            CHECK_EQ(reads(62), REAL_SIGBUS);
        CHECK_EQ(told.number, 9);
        CHECK_EQ(client_counter(&vm, STATS_poison_cleared_pages_total), 4);
        end();
    }
}

/* As long as something is poisoned, or the VM is one that is handed on, its registration stands. */
static void late_poison(void)
{
    CHECK(prepare(REAL_MEMFD, false, true));
    vm.options.handed_on = 0;
    CHECK_EQ(client_open(&vm), 0);
    CHECK_EQ(poison(5, 1), 1);
    CHECK(armed());
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
    CHECK_EQ(poison(6, 1), 1);
    CHECK_EQ(reads(5), REAL_SIGBUS);
    CHECK_EQ(reads(6), REAL_SIGBUS);
    CHECK_EQ(clear(5, 2), 2); /* the last: it ends now */
    CHECK_EQ(reads(5), 0);
    CHECK_EQ(reads(6), 0);
    CHECK(!order(PAGEFERRY_ORDER_POISON, 7, 1));
    CHECK_EQ(told.failed_reason, PF_REASON_WRONG_PHASE);
    CHECK_EQ(clear(0, 9), 0);
    CHECK(!client_busy());
    end();
}

/* One that is handed on is as any other after LET_GO: the end of the last poison is that of the registration. */
static void late_poison_of_one_handed_on(void)
{
    CHECK(begin(REAL_MEMFD, false, true));
    CHECK(armed());
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
    CHECK_EQ(poison(5, 1), 1);
    CHECK_EQ(clear(5, 1), 1);
    CHECK_EQ(poison(6, 1), 1); /* it stands */
    CHECK(client_order(&vm, PAGEFERRY_ORDER_LET_GO, 0, 0));
    CHECK_EQ(poison(7, 1), 1);
    CHECK_EQ(clear(6, 2), 2);
    CHECK_EQ(reads(7), 0);
    CHECK(!order(PAGEFERRY_ORDER_POISON, 8, 1));
    CHECK_EQ(told.failed_reason, PF_REASON_WRONG_PHASE);
    end();
}

#ifndef __SANITIZE_THREAD__
/* In the VM's memory, too. */
static _Atomic int *map_is;
enum { MAP_FULL = 1, MAP_FREED };

#define ROOM_PAGES (UINT64_C(1) << 22) /* divided into more mappings than a process may have */

/* Has as many mappings as it may, until it is told otherwise. */
static int64_t fills_its_map(uint8_t *start, uint64_t pages, int64_t argument)
{
    uint64_t page = 0;
    uint8_t *room = mmap(NULL, ROOM_PAGES * REAL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    (void)start, (void)pages, (void)argument;
    while (page < ROOM_PAGES && mprotect(room + page * REAL_PAGE, REAL_PAGE, PROT_READ) == 0)
        page += 2;
    atomic_store(map_is, page < ROOM_PAGES ? MAP_FULL : MAP_FREED);
    while (atomic_load(map_is) == MAP_FULL)
        client_moment();
    return munmap(room, ROOM_PAGES * REAL_PAGE);
}

/* The registration of a part of a mapping ends by dividing it, for which there may be no room: then it stands, and ends as
 * soon as there is. */
static void no_room_to_let_go(void)
{
    map_is = mmap(NULL, sizeof(*map_is), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    client_more.own = fills_its_map;
    server_start(&server);
    memset(&told, 0, sizeof(told));
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES + 1, &server, false));
    vm.region.length_bytes = SERVER_PAGES * REAL_PAGE;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(armed());
    real_begin(&vm.real, REAL_OWN, 0, 0, 0);
    CHECK(CLIENT_UNTIL(atomic_load(map_is) == MAP_FULL));
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
    CHECK_EQ(poison(7, 1), 1);
    CHECK_EQ(clear(7, 1), 1);
    CHECK(!client_busy());
    CHECK_EQ(poison(7, 1), 1);
    CHECK_EQ(clear(7, 1), 1);
    atomic_store(map_is, MAP_FREED);
    CHECK_EQ(real_answer(&vm.real), 0);
    CHECK(CLIENT_UNTIL(poison(7, 1) != 1 || clear(7, 1) != 1));
    CHECK_EQ(told.failed_reason, PF_REASON_WRONG_PHASE);
    CHECK_EQ(reads(7), 0);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    end();
    client_more.own = NULL;
    munmap((void *)map_is, sizeof(*map_is));
}
#endif

static void orders_that_make_no_sense(void)
{
    struct pageferry_order flags = {.kind = PAGEFERRY_ORDER_POISON, .page_count = 1, .flags = 1};

    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(!order(PAGEFERRY_ORDER_POISON, SERVER_PAGES, 1));
    CHECK_EQ(told.failed_reason, PF_REASON_OUT_OF_IMAGE);
    CHECK(!order(PAGEFERRY_ORDER_POISON, 1, SERVER_PAGES));
    CHECK_EQ(told.failed_reason, PF_REASON_OUT_OF_IMAGE);
    CHECK(!order(PAGEFERRY_ORDER_CLEAR_POISON, 1, 0));
    CHECK_EQ(told.failed_reason, PF_REASON_BAD_REQUEST);
    told.done = false;
    CHECK_EQ(pageferry_vm_order(vm.vm, &flags), 0);
    CHECK(HEAR_UNTIL(told.done));
    CHECK_EQ(told.failed_reason, PF_REASON_BAD_REQUEST);
    CHECK_EQ(told.number, 0);
    real_kill(&vm.real);
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_VMM_GONE] > 0));
    CHECK(!order(PAGEFERRY_ORDER_POISON, 1, 1));
    CHECK_EQ(told.failed_reason, PF_REASON_NO_VMM);
    end();
}

/* A marker is as large as a huge page: the loss of one page is that of its 512, each of which is told. */
static void a_huge_page_is_lost_whole(void)
{
    for (int memory = REAL_HUGE; memory <= REAL_HUGE_PRIVATE; memory++) {
        bool shared = memory == REAL_HUGE;
        CHECK(begin((enum real_memory)memory, false, false));
        CHECK(armed());
        CHECK_EQ(reads(9), client_word(9));
        CHECK_EQ(poison(7, 1), SERVER_PAGES);
        CHECK_EQ(told.number, SERVER_PAGES);
        CHECK_EQ(client_state(&vm, 300), PAGE_POISONED);
        if (shared) {
            CHECK_EQ(reads(7), REAL_SIGBUS);
            CHECK(cache_is_empty(7) && cache_is_empty(300));
        } else { /* nobody here can take its mapping away */
            CHECK_EQ(told.flags, PAGEFERRY_POISONED_WAS_MAPPED | PAGEFERRY_POISONED_MAPPED);
            CHECK(!order(PAGEFERRY_ORDER_CLEAR_POISON, 7, 1));
        }
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 0, SERVER_PAGES, MADV_DONTNEED), 0);
        CHECK_EQ(reads(300), REAL_SIGBUS);
        if (shared) { /* which takes the marker along, where pages are huge */
            CHECK_EQ(fallocate(ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SERVER_PAGES * REAL_PAGE), 0);
            CHECK_EQ(reads(8), REAL_SIGBUS);
        }
        CHECK_EQ(clear(300, 1), SERVER_PAGES);
        CHECK_EQ(reads(300), 0);
        CHECK_EQ(reads(9), 0);
        CHECK_EQ(real_do(&vm.real, REAL_WRITE, 9, 1, 5), 0);
        CHECK_EQ(reads(9), 5);
        CHECK_EQ(told.number, 2 * SERVER_PAGES);
        CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
        end();
    }
}

/* ---------------------------------------------------------------------------------------------- a kernel without it */

static bool frame_comes(struct frame *frame)
{
    struct timeval patience = {.tv_sec = 20};

    setsockopt(vm.frames_end, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    return recv(vm.frames_end, frame, sizeof(*frame), MSG_WAITALL) == (ssize_t)sizeof(*frame) &&
           frame->magic == FRAME_MAGIC;
}

static bool hears(enum frame_kind kind, uint64_t sequence, uint64_t page, uint64_t count)
{
    struct frame frame = {0};
    bool right = frame_comes(&frame) && frame.kind == kind && frame.sequence == sequence &&
                 frame.offset_bytes == page * REAL_PAGE && frame.length_bytes == count * REAL_PAGE;

    if (!right)
        printf("frame kind %u sequence %llu offset %llu length %llu\n", frame.kind, (unsigned long long)frame.sequence,
               (unsigned long long)frame.offset_bytes, (unsigned long long)frame.length_bytes);
    return right;
}

static bool says_clear(uint64_t sequence, uint64_t page, uint64_t count)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_CLEAR, .sequence = sequence,
                          .offset_bytes = page * REAL_PAGE, .length_bytes = count * REAL_PAGE};

    return frame_send(vm.frames_end, &frame) == 0;
}

/* Whoever touches a lost page waits; the VMM is asked, and ends it. `denied`: the kernel itself says that it cannot. */
static int held_without_poison(bool denied)
{
    check_bad = 0;
    for (int memory = REAL_MEMFD; memory < REAL_MEMORY_COUNT; memory++) {
        CHECK(prepare((enum real_memory)memory, true, false));
        vm.options.without_poison = !denied;
        if (denied)
            CHECK(real_deny_ioctl(UFFDIO_POISON, EINVAL));
        CHECK_EQ(client_open(&vm), 0);
        CHECK_EQ(poison(9, 1), 1);
        CHECK_EQ(told.flags, PAGEFERRY_POISONED_HELD);
        CHECK(armed());
        CHECK(hears(FRAME_ACCEPTED, 0, 0, 0));
        CHECK(hears(FRAME_POISON_HELD, 1, 9, 1));
        real_begin(&vm.real, REAL_READ, 9, 1, 0);
        CHECK(real_sleeps(&vm.real));
        CHECK_EQ(poison(11, 2), 2);
        CHECK(hears(FRAME_POISON_HELD, 2, 11, 1));
        CHECK(hears(FRAME_POISON_HELD, 3, 12, 1));
        CHECK(says_clear(80, 8, 4)); /* two of them are lost */
        CHECK_EQ(real_answer(&vm.real), 0);
        CHECK(hears(FRAME_CLEARED, 80, 8, 2));
        CHECK_EQ(reads(11), 0);
        CHECK_EQ(reads(8), client_word(8));
        real_begin(&vm.real, REAL_READ, 12, 1, 0);
        CHECK(real_sleeps(&vm.real));
        CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
        CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0)); /* the source owes nothing */
        CHECK_EQ(clear(12, 1), 1);
        CHECK_EQ(real_answer(&vm.real), 0);
        CHECK_EQ(told.number, 6);
        CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
        CHECK_EQ(client_counter(&vm, STATS_poison_marks_total), 0);
        end();
    }
    return check_bad;
}

static void held_by_a_setting(void)
{
    check_bad |= held_without_poison(false);
}

static int held_where_it_is_denied(void)
{
    return held_without_poison(true);
}

static void held_on_an_old_kernel(void)
{
    CHECK(real_apart(held_where_it_is_denied));
}

/* Memory errors cannot be made here, so the kernel's answer to each is played. */
static int where_all_memory_is_broken(void)
{
    uint64_t lost = 0;

    check_bad = 0;
    CHECK(prepare(REAL_MEMFD, false, true));
    CHECK(real_deny_ioctl(UFFDIO_CONTINUE, EIO));
    CHECK_EQ(client_open(&vm), 0);
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_POPULATED] > 0));
    CHECK(armed());
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        CHECK_EQ(reads(page), server_holds(page) ? REAL_SIGBUS : 0);
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0));
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        lost += server_holds(page);
    CHECK(HEAR_UNTIL(told.number == lost));
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        CHECK_EQ(told.lost[page], server_holds(page) && cache_is_empty(page));
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    end();
    return check_bad;
}

static void memory_errors_here(void)
{
    CHECK(real_apart(where_all_memory_is_broken));
}

static void what_this_kernel_can(void)
{
    struct real_options options = {.memory = REAL_MEMFD, .pages = 1};
    struct real_vm own;

    CHECK(real_start(&own, &options));
    CHECK(uffd_can_poison(&own.uffd));
    CHECK_EQ(real_do(&own, REAL_WRITE, 0, 0, 0), 0);
    real_end(&own);
}

/* Takes one ZAP, does it in the VM, and says so; or says that it cannot. */
static bool lets_go(uint64_t page, uint64_t count, bool can)
{
    struct frame frame = {0};

    if (!frame_comes(&frame) || frame.kind != FRAME_ZAP || frame.offset_bytes != page * REAL_PAGE ||
        frame.length_bytes != count * REAL_PAGE)
        return false;
    if (can && real_do(&vm.real, REAL_ADVISE, page, count, MADV_DONTNEED) != 0)
        return false;
    frame.kind = FRAME_ZAPPED;
    frame.length_bytes = can ? frame.length_bytes : 0;
    frame.offset_bytes = can ? 1 : EOPNOTSUPP;
    return frame_send(vm.frames_end, &frame) == 0;
}

/* Private memory that is mapped: a VMM that speaks frames is asked to let go of it, and only then is it told. */
static void a_vmm_lets_go_of_private_memory(void)
{
    for (int held = 0; held < 2; held++) {
        uint64_t flags = held ? PAGEFERRY_POISONED_HELD : 0;
        CHECK(prepare(REAL_PRIVATE, true, false));
        vm.options.without_poison = (uint32_t)held;
        CHECK_EQ(client_open(&vm), 0);
        CHECK(armed());
        CHECK(hears(FRAME_ACCEPTED, 0, 0, 0));
        for (uint64_t page = 0; page < 8; page++)
            CHECK_EQ(reads(page), client_word(page));
        CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0));
        CHECK_EQ(pageferry_vm_order(vm.vm, &(struct pageferry_order){
                     .kind = PAGEFERRY_ORDER_POISON, .value = 3, .page_count = 2}), 0);
        CHECK(lets_go(3, 2, true)); /* at once, as far as it goes */
        CHECK(HEAR_UNTIL(told.done));
        CHECK_EQ(told.flags, PAGEFERRY_POISONED_WAS_MAPPED | flags);
        CHECK(hears(held ? FRAME_POISON_HELD : FRAME_POISONED, 1, 3, 1));
        CHECK(hears(held ? FRAME_POISON_HELD : FRAME_POISONED, 2, 4, 1));
        real_begin(&vm.real, REAL_READ, 3, 1, 0);
        if (held)
            CHECK(real_sleeps(&vm.real));
        else
            CHECK_EQ(real_answer(&vm.real), REAL_SIGBUS);
        CHECK_EQ(clear(3, 2), 2);
        if (held)
            CHECK_EQ(real_answer(&vm.real), 0);
        CHECK_EQ(reads(4), 0);
        CHECK(hears(FRAME_CLEARED, 0, 3, 1) && hears(FRAME_CLEARED, 0, 4, 1));
        told.done = false;
        CHECK_EQ(pageferry_vm_order(vm.vm, &(struct pageferry_order){
                     .kind = PAGEFERRY_ORDER_POISON, .value = 6, .page_count = 1}), 0);
        CHECK(lets_go(6, 1, false)); /* it could not */
        CHECK(HEAR_UNTIL(told.done));
        CHECK_EQ(told.flags, PAGEFERRY_POISONED_WAS_MAPPED | PAGEFERRY_POISONED_MAPPED | flags);
        CHECK(!order(PAGEFERRY_ORDER_CLEAR_POISON, 6, 1));
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 6, 1, MADV_DONTNEED), 0);
        real_begin(&vm.real, REAL_READ, 6, 1, 0); /* where the kernel cannot mark it, its fault says that it is gone */
        CHECK(held ? real_sleeps(&vm.real) : real_answer(&vm.real) == REAL_SIGBUS);
        CHECK_EQ(clear(6, 1), 1);
        if (held)
            CHECK_EQ(real_answer(&vm.real), 0);
        CHECK_EQ(told.number, 6);
        end();
    }
}

/* ---------------------------------------------------------------------------------------------------------- readers */

#define CYCLES 3
#define UNREAD 300 /* more than the owner's ring, or a socket, has room for */
#define ORDERS 64  /* that may wait */

/* The VMM reads until the answer to its CLEAR: how many pages were lost, and as many less `still` cleared, each in turn. */
static void reads_until_cleared(uint64_t sequence, uint64_t lost, uint64_t still, uint64_t pages)
{
    bool is_lost[SERVER_PAGES] = {false};
    struct frame frame = {0};
    uint64_t count = 0, cleared = 0;

    CHECK(frame_comes(&frame) && frame.kind == FRAME_ACCEPTED);
    while (frame_comes(&frame) && !(frame.kind == FRAME_CLEARED && frame.sequence == sequence)) {
        uint64_t page = frame.offset_bytes / REAL_PAGE;
        bool is = frame.kind == FRAME_POISONED;
        if (frame.kind == FRAME_COMPLETE) /* every page is settled */
            continue;
        CHECK(is || frame.kind == FRAME_CLEARED);
        CHECK_EQ(frame.length_bytes, REAL_PAGE);
        CHECK_EQ(frame.sequence, is ? ++count : 0);
        CHECK(page < SERVER_PAGES && is_lost[page] != is);
        is_lost[page % SERVER_PAGES] = is;
        cleared += !is;
    }
    CHECK_EQ(count, lost);
    CHECK_EQ(cleared, lost - still);
    CHECK_EQ(frame.length_bytes, pages * REAL_PAGE);
}

/* A VMM that does not read: the owner hears all there is, and the VMM gets it when it reads, each page once. */
static void a_vmm_that_does_not_read(void)
{
    struct frame frame;

    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(armed());
    for (int i = 0; i < CYCLES; i++) {
        CHECK_EQ(poison(0, SERVER_PAGES), SERVER_PAGES);
        if (i + 1 < CYCLES)
            CHECK_EQ(clear(0, SERVER_PAGES), SERVER_PAGES);
    }
    CHECK(HEAR_UNTIL(told.number == (2 * CYCLES - 1) * SERVER_PAGES));
    CHECK(!client_busy());
    CHECK(says_clear(5, 0, 100)); /* answered behind all that */
    reads_until_cleared(5, CYCLES * SERVER_PAGES, SERVER_PAGES, 100);
    CHECK_EQ(recv(vm.frames_end, &frame, sizeof(frame), MSG_DONTWAIT), -1);
    CHECK_EQ(reads(99), 0);
    CHECK_EQ(reads(100), REAL_SIGBUS);
    CHECK(!client_busy());
    end();
}

/* All that it has sent was taken. */
static bool is_heard(void)
{
    int unread = -1;

    return ioctl(vm.frames_end, SIOCOUTQ, &unread) == 0 && unread == 0;
}

/* It is told later that the owner has cleared a page, and has sent a CLEAR of that page meanwhile: that is no part of the
 * answer. What waits in front, when the owner's orders are done and its own turn has come, is the one or the other. */
static void a_vmm_that_clears_what_the_owner_has(void)
{
    struct pageferry_order many = {.kind = PAGEFERRY_ORDER_POISON, .page_count = UNREAD};

    for (uint64_t odd = 0; odd < 2; odd++) {
        CHECK(begin(REAL_MEMFD, true, false));
        CHECK(armed());
        for (uint64_t i = 0; i < odd; i++)
            CHECK_EQ(poison(4, 1), 1);
        for (uint64_t i = 0; i < UNREAD; i++)
            CHECK(poison(3, 1) == 1 && clear(3, 1) == 1);
        CHECK_EQ(pageferry_vm_order(vm.vm, &many), 0); /* not done before the owner reads */
        CHECK(CLIENT_UNTIL(client_state(&vm, UNREAD - 1) == PAGE_POISONED));
        CHECK(says_clear(5, 3, 1));
        CHECK(CLIENT_UNTIL(is_heard()));
        told.done = false;
        CHECK(HEAR_UNTIL(told.done));
        reads_until_cleared(5, 2 * UNREAD, UNREAD, 1);
        CHECK_EQ(reads(3), 0);
        end();
    }
}

/* The places of the owner's orders are not the VMM's. */
static void a_vmm_that_speaks_behind_many_orders(void)
{
    struct pageferry_order order = {.kind = PAGEFERRY_ORDER_POISON, .page_count = UNREAD};

    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(armed());
    for (int i = 0; i <= ORDERS; i++) { /* the first is not done before the owner reads, and one finds no room */
        CHECK(CLIENT_UNTIL(pageferry_vm_order(vm.vm, &order) == 0));
        order.page_count = 1;
    }
    CHECK(!client_busy());
    CHECK(says_clear(5, 7, 2));
    CHECK(says_clear(6, 7, 3));
    CHECK(CLIENT_UNTIL(is_heard()));
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_DONE] == ORDERS && vm.seen[PAGEFERRY_EVENT_FAILED] == 1));
    reads_until_cleared(5, UNREAD, UNREAD, 2);
    CHECK(hears(FRAME_CLEARED, 6, 7, 1));
    end();
}

/* The same for the owner: the answers of its orders wait behind what it has not read, and nothing is lost or doubled. */
static void an_owner_that_does_not_read(void)
{
    struct pageferry_order order = {.page_count = SERVER_PAGES};
    struct frame frame;

    CHECK(begin(REAL_MEMFD, true, false));
    CHECK(armed());
    for (int i = 0; i < CYCLES; i++) {
        order.kind = PAGEFERRY_ORDER_POISON;
        CHECK_EQ(pageferry_vm_order(vm.vm, &order), 0);
        order.kind = PAGEFERRY_ORDER_CLEAR_POISON;
        CHECK_EQ(pageferry_vm_order(vm.vm, &order), 0);
    }
    for (uint64_t i = 0; i < 1 + SERVER_PAGES; i++)
        CHECK(frame_comes(&frame)); /* the VMM hears of it all the same; the next order waits for the answer of this */
    CHECK_EQ(reads(5), REAL_SIGBUS);
    CHECK(!client_busy());
    CHECK(HEAR_UNTIL(vm.seen[PAGEFERRY_EVENT_DONE] == CYCLES * 2));
    CHECK_EQ(told.number, CYCLES * 2 * SERVER_PAGES);
    end();
}

/* ------------------------------------------------------------------------------------------------- a long random life */

/* Shared with the VM: what it may find there. */
struct shared_page {
    _Atomic uint32_t ordered; /* poison was ordered, and not cleared since */
    _Atomic uint32_t lost;    /* and that it is so was said */
};
static struct shared_page *shared;

enum { LIFE_FAULTS = 1024 };

/* Reads `argument` pages, most of which it has zapped before; how many of them were poisoned. Negative: what it may not
 * find, in page -1 - answer. */
static int64_t live(uint8_t *start, uint64_t pages, int64_t argument)
{
    uint64_t random = (uint64_t)argument * UINT64_C(0x9e3779b97f4a7c15);
    int64_t poisoned = 0;

    for (int i = 0; i < LIFE_FAULTS; i++) {
        uint64_t page, lost, ordered;
        int64_t found;
        random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        page = (random >> 33) % pages;
        lost = atomic_load(&shared[page].lost);
        ordered = atomic_load(&shared[page].ordered);
        madvise(start + page * REAL_PAGE, REAL_PAGE, MADV_DONTNEED);
        found = real_guest_read(start + page * REAL_PAGE);
        ordered |= atomic_load(&shared[page].ordered);
        poisoned += found == REAL_SIGBUS;
        if (found == REAL_SIGBUS ? !ordered : found != client_word(page) && found != 0)
            return -1 - (int64_t)page;
        if (lost && atomic_load(&shared[page].lost) && found != REAL_SIGBUS)
            return -1 - (int64_t)page;
    }
    return poisoned;
}

static uint64_t random_life(uint64_t poisons, uint64_t faults)
{
    uint64_t random = 99, made = 0, read = 0, met = 0, rounds = 0;
    const int threads = 3;

    client_more.own = live;
    shared = mmap(NULL, SERVER_PAGES * sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(begin(REAL_MEMFD, true, true));
    CHECK(armed());
    while ((made < poisons || read < faults) && !check_bad) {
        for (int i = 0; i < threads; i++)
            real_begin(&vm.real, REAL_OWN, 0, 0, (int64_t)(++rounds));
        for (uint64_t i = 0; i < 1 + poisons * LIFE_FAULTS * threads / faults; i++) {
            uint64_t page;
            random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            page = (random >> 33) % SERVER_PAGES;
            if (atomic_load(&shared[page].ordered)) {
                atomic_store(&shared[page].lost, 0);
                CHECK_EQ(clear(page, 1), 1);
                atomic_store(&shared[page].ordered, 0);
            } else {
                atomic_store(&shared[page].ordered, 1);
                CHECK_EQ(poison(page, 1), 1);
                atomic_store(&shared[page].lost, 1);
                CHECK(cache_is_empty(page));
                made++;
            }
        }
        for (int i = 0; i < threads; i++) {
            int64_t poisoned = real_answer(&vm.real);
            CHECK(poisoned >= 0);
            if (poisoned < 0)
                printf("page %lld is not what it must be\n", (long long)(-1 - poisoned));
            read += LIFE_FAULTS;
            met += poisoned > 0 ? (uint64_t)poisoned : 0;
        }
        while (recv(vm.frames_end, &(struct frame){0}, sizeof(struct frame), MSG_DONTWAIT) > 0)
            ;
    }
    hear();
    CHECK_EQ(client_counter(&vm, STATS_poisoned_pages_total), made);
    CHECK_EQ(told.number, made + client_counter(&vm, STATS_poison_cleared_pages_total));
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK(met > 0);
    printf("%llu poisons in %llu faults, %llu of them into poison; %llu told\n", (unsigned long long)made,
           (unsigned long long)client_counter(&vm, STATS_faults_total), (unsigned long long)met,
           (unsigned long long)told.number);
    end();
    munmap(shared, SERVER_PAGES * sizeof(*shared));
    client_more.own = NULL;
    return met;
}

static uint64_t life_poisons = RANDOM_POISONS, life_faults = RANDOM_FAULTS;

static void random_poison_while_the_guest_reads(void)
{
    random_life(life_poisons, life_faults);
}

int main(int argc, char **argv)
{
    bool have_huge_pages;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    if (argc == 3) {
        life_poisons = strtoull(argv[1], NULL, 10);
        life_faults = strtoull(argv[2], NULL, 10);
        RUN(random_poison_while_the_guest_reads);
        return check_done();
    }
    have_huge_pages = huge_pool_add(2); /* one in the VM's memory, one in flight */
    RUN(before_it_is_mapped);
    RUN(after_it_was_mapped);
    RUN(after_it_was_mapped_on_private_memory);
    RUN(while_it_is_wanted);
    RUN(inside_a_batch);
    RUN(in_a_race_with_the_prefetch);
    RUN(across_a_reconnection);
    RUN(marked_again_after_any_zap);
    RUN(marked_again_after_a_registration);
    RUN(marked_again_after_a_removal);
    RUN(cleared_is_fresh_memory);
    RUN(late_poison);
    RUN(late_poison_of_one_handed_on);
#ifdef __SANITIZE_THREAD__ /* which needs mappings of its own, and ends a process that has none left */
    SKIP(no_room_to_let_go, "ThreadSanitizer leaves no room for it");
#else
    RUN(no_room_to_let_go);
#endif
    if (have_huge_pages)
        RUN(a_huge_page_is_lost_whole);
    else
        SKIP(a_huge_page_is_lost_whole, "no huge pages: raise vm.nr_hugepages by 2");
    RUN(orders_that_make_no_sense);
    RUN(what_this_kernel_can);
    RUN(memory_errors_here);
    RUN(held_by_a_setting);
    RUN(held_on_an_old_kernel);
    RUN(a_vmm_lets_go_of_private_memory);
    RUN(a_vmm_that_does_not_read);
    RUN(a_vmm_that_clears_what_the_owner_has);
    RUN(a_vmm_that_speaks_behind_many_orders);
    RUN(an_owner_that_does_not_read);
    RUN(random_poison_while_the_guest_reads);
    return check_done();
}
