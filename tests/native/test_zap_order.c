/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ORDER_ZAP through pageferry.h, on the real kernel: the test plays the VMM's end of the socket, and the VM's process
 * drops its mappings as the test is told to. While a zap is out faults are served.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "kernel/frames.h"
#include "kernel/zap.h"
#include "skip_time.h"

#define PATIENCE_MS 20000

static struct server server;
static struct client_vm vm;
static struct frame_reader reader;

static void begin(enum real_memory memory, bool frames, bool background)
{
    server_start(&server);
    CHECK(client_prepare(&vm, memory, SERVER_PAGES, &server, frames));
    memset(&reader, 0, sizeof(reader));
    vm.options.background = background;
    CHECK_EQ(client_open(&vm), 0);
}

static void end(void)
{
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    client_end(&vm);
    server_stop(&server);
}

static bool zap(uint64_t first, uint64_t count, uint32_t flags, uint64_t cookie)
{
    struct pageferry_order order = {.kind = PAGEFERRY_ORDER_ZAP, .flags = flags, .value = first, .page_count = count,
                                    .cookie = cookie};

    return pageferry_vm_order(vm.vm, &order) == 0;
}

/* The next frame that the VMM hears. */
static bool hears_any(struct frame *frame)
{
    struct pollfd readable = {.fd = vm.frames_end, .events = POLLIN};
    int rc = 0;

    frame->kind = 0;
    while (rc == 0 && poll(&readable, 1, PATIENCE_MS) == 1)
        rc = frame_receive(vm.frames_end, &reader, frame);
    return rc == 1;
}

static bool hears(enum frame_kind kind, struct frame *frame)
{
    if (hears_any(frame) && frame->kind == kind)
        return true;
    printf("a frame of kind %u\n", frame->kind);
    return false;
}

static void answer(const struct frame *told, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_ZAPPED, .sequence = told->sequence,
                          .offset_bytes = offset_bytes, .length_bytes = length_bytes};

    CHECK_EQ(frame_send(vm.frames_end, &frame), 0);
}

/* As the shim does: these pages, and no others. */
static void obey(uint64_t first, uint64_t count)
{
    struct frame frame;

    CHECK(hears(FRAME_ZAP, &frame));
    CHECK_EQ(frame.offset_bytes, first * REAL_PAGE);
    CHECK_EQ(frame.length_bytes, count * REAL_PAGE);
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, first, count, MADV_DONTNEED), 0);
    answer(&frame, ZAP_METHOD_DONTNEED, frame.length_bytes);
}

static void done(uint64_t cookie, uint64_t pages, uint64_t method)
{
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_DONE));
    CHECK_EQ(vm.event.cookie, cookie);
    CHECK_EQ(vm.event.page, pages);
    CHECK_EQ(vm.event.value, method);
}

/* As client_wait; when the pager has lost its patience. */
static bool soon(uint32_t kind)
{
    return SOON(pageferry_vm_event(vm.vm, &vm.event) == 1 && vm.event.kind == kind);
}

static void was_refused(uint64_t cookie, uint32_t reason, const char *fragment)
{
    CHECK_EQ(vm.event.cookie, cookie);
    CHECK_EQ(vm.event.reason, reason);
    CHECK_EQ(vm.event.page, 1);
    if (strstr(vm.event.text, fragment) == NULL)
        printf("\"%s\" has no \"%s\"\n", vm.event.text, fragment);
    CHECK(strstr(vm.event.text, fragment) != NULL);
}

static void refused(uint64_t cookie, uint32_t reason, const char *fragment)
{
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    was_refused(cookie, reason, fragment);
}

static void arm(void)
{
    struct frame frame;

    CHECK(client_arm(&vm));
    if (vm.frames_end >= 0)
        CHECK(hears(FRAME_ACCEPTED, &frame));
}

static int64_t reads(uint64_t page)
{
    return real_do(&vm.real, REAL_READ, page, 1, 0);
}

/* ------------------------------------------------------------------------------------------------------- data is kept */

/* Every kind of page at once: cached, and the guest's, read or written. */
static void test_no_word_changes(void)
{
    uint64_t minor, ticket;
    uint8_t before[SERVER_PAGES], after[SERVER_PAGES];

    begin(REAL_MEMFD, true, true);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0)); /* or the sweep maps all of it */
    arm();
    for (uint64_t page = 0; page < SERVER_PAGES; page += 3)
        CHECK_EQ(reads(page), client_word(page));
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 3, 1, 4711), 0);
    CHECK_EQ(pageferry_vm_states(vm.vm, 0, SERVER_PAGES, before), SERVER_PAGES);
    CHECK(zap(0, SERVER_PAGES, 0, 21));
    obey(0, SERVER_PAGES);
    done(21, SERVER_PAGES, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(pageferry_vm_states(vm.vm, 0, SERVER_PAGES, after), SERVER_PAGES);
    CHECK_EQ(memcmp(before, after, sizeof(after)), 0);
    CHECK_EQ(client_counter(&vm, STATS_zapped_pages_total), SERVER_PAGES);
    minor = client_counter(&vm, STATS_faults_minor_total);
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        CHECK_EQ(reads(page), page == 3 ? 4711 : client_word(page));
    CHECK(client_counter(&vm, STATS_faults_minor_total) - minor > SERVER_PAGES / 4);
    ticket = real_begin(&vm.real, REAL_READ, 1, 1, 0);
    CHECK(ticket != 0 && real_answer(&vm.real) == client_word(1));
    end();
}

static void test_wanted_and_missing_pages(void)
{
    begin(REAL_MEMFD, true, false);
    arm();
    atomic_store(&server.will.fetch_mute, 1);
    real_begin(&vm.real, REAL_READ, 9, 1, 0);
    CHECK(CLIENT_UNTIL(client_state(&vm, 9) == PAGE_WANTED));
    CHECK(zap(0, 20, 0, 5));
    obey(0, 20);
    done(5, 20, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(client_state(&vm, 9), PAGE_WANTED);
    CHECK_EQ(client_state(&vm, 8), PAGE_MISSING);
    atomic_store(&server.will.fetch_mute, 0);
    CHECK_EQ(real_answer(&vm.real), client_word(9));
    CHECK_EQ(reads(8), client_word(8));
    end();
}

/* One piece is out at a time, and the pager waits for nobody: faults are served between a ZAP and its answer. */
static void test_the_pager_does_not_wait(void)
{
    struct frame frame;

    begin(REAL_TMPFS, true, false);
    arm();
    CHECK_EQ(reads(1), client_word(1));
    CHECK(zap(0, 10, 0, 1));
    CHECK(zap(300, 10, 0, 2));
    CHECK(hears(FRAME_ZAP, &frame));
    for (uint64_t page = 2; page < 60; page++)
        CHECK_EQ(reads(page), client_word(page));
    CHECK_EQ(frame_receive(vm.frames_end, &reader, &frame), 0);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_DONE], 0);
    answer(&frame, ZAP_METHOD_DONTNEED_LOCKED, 4 * REAL_PAGE); /* as far as it came */
    obey(4, 6);
    done(1, 10, PAGEFERRY_ZAPPED_BY_DONTNEED_LOCKED);
    obey(300, 10);
    done(2, 10, PAGEFERRY_ZAPPED_BY_DONTNEED);
    end();
}

static void test_after_complete(void)
{
    struct frame frame;

    begin(REAL_MEMFD, true, true);
    arm();
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK(hears(FRAME_COMPLETE, &frame));
    CHECK(zap(0, SERVER_PAGES, 0, 3));
    obey(0, SERVER_PAGES);
    done(3, SERVER_PAGES, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK(zap(10, 5, PAGEFERRY_ZAP_DROP, 4));
    done(4, 5, PAGEFERRY_ZAPPED_BY_PUNCH);
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        CHECK_EQ(reads(page), page >= 10 && page < 15 ? 0 : client_word(page));
    end();
}

/* ------------------------------------------------------------------------------------------------------ data is dropped */

/* No frame is needed: what lies in a file can be dropped from here. */
static void test_drop_on_shared_memory(void)
{
    begin(REAL_MEMFD, false, false);
    arm();
    atomic_store(&server.will.fetch_mute, 1);
    real_begin(&vm.real, REAL_READ, 190, 1, 0);
    CHECK(CLIENT_UNTIL(client_state(&vm, 190) == PAGE_WANTED));
    CHECK(zap(150, 100, PAGEFERRY_ZAP_DROP, 8));
    done(8, 100, PAGEFERRY_ZAPPED_BY_PUNCH);
    CHECK_EQ(real_answer(&vm.real), 0); /* who waited waits no more */
    atomic_store(&server.will.fetch_mute, 0);
    for (uint64_t page = 140; page < 260; page++)
        CHECK_EQ(reads(page), page >= 150 && page < 250 ? 0 : client_word(page));
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 155, 1, 99), 0);
    CHECK(zap(155, 1, PAGEFERRY_ZAP_DROP, 9)); /* the guest's own, too */
    done(9, 1, PAGEFERRY_ZAPPED_BY_PUNCH);
    CHECK_EQ(reads(155), 0);
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 155, 1, 100), 0);
    CHECK_EQ(reads(155), 100);
    end();
}

static void test_private_memory(void)
{
    begin(REAL_PRIVATE, true, false);
    arm();
    for (uint64_t page = 0; page < 20; page++)
        CHECK_EQ(reads(page), client_word(page));
    CHECK(zap(0, 10, 0, 1));
    refused(1, PF_REASON_UNSUPPORTED, "would lose it");
    CHECK(zap(15, 10, PAGEFERRY_ZAP_DROP, 2));
    obey(15, 10);
    done(2, 10, PAGEFERRY_ZAPPED_BY_DONTNEED);
    for (uint64_t page = 0; page < 30; page++)
        CHECK_EQ(reads(page), page >= 15 && page < 25 ? 0 : client_word(page));
    end();
}

/* --------------------------------------------------------------------------------------------------- lost, and mapped */

/* On private memory the VMM alone can take a page from the guest: it is told to, then the page is marked, then told. */
static void test_a_lost_page_is_taken_from_the_guest(void)
{
    struct pageferry_order poison = {.kind = PAGEFERRY_ORDER_POISON, .value = 5, .page_count = 3, .cookie = 1};
    struct pageferry_order clear = {.kind = PAGEFERRY_ORDER_CLEAR_POISON, .value = 5, .page_count = 3, .cookie = 2};
    uint64_t page = 5;
    struct frame frame;

    begin(REAL_PRIVATE, true, false);
    arm();
    for (uint64_t i = 0; i < 10; i++)
        CHECK_EQ(reads(i), client_word(i));
    CHECK_EQ(pageferry_vm_order(vm.vm, &poison), 0);
    while (page < 8 && hears_any(&frame)) {
        if (frame.kind != FRAME_ZAP)
            continue;
        CHECK_EQ(frame.offset_bytes, page * REAL_PAGE);
        CHECK_EQ(real_do(&vm.real, REAL_ADVISE, page, frame.length_bytes / REAL_PAGE, MADV_DONTNEED), 0);
        answer(&frame, ZAP_METHOD_DONTNEED, frame.length_bytes);
        page += frame.length_bytes / REAL_PAGE;
    }
    CHECK_EQ(page, 8);
    for (uint64_t i = 5; i < 8; i++) {
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_POISONED));
        CHECK_EQ(vm.event.page, i);
        CHECK_EQ(vm.event.value, PAGEFERRY_POISONED_WAS_MAPPED);
    }
    done(1, 3, 0); /* only then is it told */
    for (uint64_t i = 0; i < 10; i++)
        CHECK_EQ(reads(i), i >= 5 && i < 8 ? REAL_SIGBUS : client_word(i));
    CHECK_EQ(pageferry_vm_order(vm.vm, &clear), 0);
    done(2, 3, 0);
    for (uint64_t i = 0; i < 10; i++)
        CHECK_EQ(reads(i), i >= 5 && i < 8 ? 0 : client_word(i));
    end();
}

static void says_clear(uint64_t sequence, uint64_t page)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_CLEAR, .sequence = sequence,
                          .offset_bytes = page * REAL_PAGE, .length_bytes = REAL_PAGE};

    CHECK_EQ(frame_send(vm.frames_end, &frame), 0);
}

static void poison(uint64_t first, uint64_t count)
{
    struct pageferry_order order = {.kind = PAGEFERRY_ORDER_POISON, .value = first, .page_count = count};

    CHECK_EQ(pageferry_vm_order(vm.vm, &order), 0);
}

/* As the shim does, whatever it is told. */
static void obey_any(const struct frame *zap)
{
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, zap->offset_bytes / REAL_PAGE, zap->length_bytes / REAL_PAGE, MADV_DONTNEED),
             0);
    answer(zap, ZAP_METHOD_DONTNEED, zap->length_bytes);
}

/* The VMM drops a lost page by itself, before its turn has come; by then its poison is cleared, and what the guest has
 * written to it is the guest's. */
static void test_what_was_dropped_already_is_not_asked_for(void)
{
    struct frame frame;

    begin(REAL_PRIVATE, true, false);
    arm();
    CHECK_EQ(reads(5), client_word(5));
    CHECK_EQ(reads(9), client_word(9));
    poison(5, 5);
    while (hears_any(&frame) && frame.kind != FRAME_ZAP)
        CHECK_EQ(frame.kind, FRAME_POISONED); /* what was not mapped */
    CHECK_EQ(frame.offset_bytes, 5 * REAL_PAGE);
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 9, 1, MADV_DONTNEED), 0);
    CHECK_EQ(reads(9), REAL_SIGBUS);
    says_clear(70, 9);
    obey_any(&frame);
    while (hears_any(&frame) && frame.kind != FRAME_CLEARED)
        CHECK(frame.kind != FRAME_ZAP);
    CHECK_EQ(frame.sequence, 70);
    CHECK_EQ(frame.length_bytes, REAL_PAGE);
    done(0, 5, 0);
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 9, 1, 77), 0);
    CHECK(zap(20, 1, PAGEFERRY_ZAP_DROP, 8)); /* behind all that */
    do {
        CHECK(hears_any(&frame));
        if (frame.kind == FRAME_ZAP)
            obey_any(&frame);
    } while (frame.kind != 0 && frame.offset_bytes != 20 * REAL_PAGE);
    done(8, 1, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(reads(9), 77);
    CHECK_EQ(reads(5), REAL_SIGBUS);
    end();
}

/* The same while the VMM works on it: it may drop the page once more until it has answered. */
static void test_what_is_being_dropped_is_not_cleared(void)
{
    struct frame frame, late;

    begin(REAL_PRIVATE, true, false);
    arm();
    CHECK_EQ(reads(5), client_word(5));
    poison(5, 1);
    CHECK(hears(FRAME_ZAP, &late));
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 5, 1, MADV_DONTNEED), 0);
    CHECK_EQ(reads(5), REAL_SIGBUS);
    says_clear(71, 5);
    CHECK(!client_busy()); /* and there was time for it */
    CHECK_EQ(frame_receive(vm.frames_end, &reader, &frame), 0);
    CHECK_EQ(reads(5), REAL_SIGBUS);
    obey_any(&late);
    while (hears_any(&frame) && frame.kind != FRAME_CLEARED)
        CHECK_EQ(frame.kind, FRAME_POISONED);
    CHECK_EQ(frame.sequence, 71);
    CHECK_EQ(frame.length_bytes, REAL_PAGE);
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 5, 1, 78), 0);
    CHECK_EQ(reads(5), 78);
    end();
}

/* It is answered behind what the VMM has been told before; and that answer is read, though the next word waits. */
static void test_cleared_behind_an_ordered_drop(void)
{
    struct frame told, frame;

    begin(REAL_PRIVATE, true, false);
    arm();
    poison(30, 1);
    CHECK(hears(FRAME_POISONED, &frame));
    done(0, 1, 0);
    CHECK(zap(28, 4, PAGEFERRY_ZAP_DROP, 9));
    CHECK(hears(FRAME_ZAP, &told));
    says_clear(72, 30);
    CHECK(!client_busy());
    CHECK_EQ(frame_receive(vm.frames_end, &reader, &frame), 0);
    obey_any(&told);
    done(9, 4, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK(hears(FRAME_CLEARED, &frame));
    CHECK_EQ(frame.sequence, 72);
    CHECK_EQ(frame.length_bytes, REAL_PAGE);
    CHECK_EQ(reads(30), 0);
    end();
}

/* ------------------------------------------------------------------------------------------------------ what is refused */

static void test_refusals(void)
{
    struct frame frame;

    begin(REAL_MEMFD, true, false);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    CHECK(zap(0, 1, 0, 1));
    refused(1, PF_REASON_WRONG_PHASE, "before arming");
    arm();
    CHECK(zap(0, 0, 0, 2));
    refused(2, PF_REASON_BAD_REQUEST, "in the image");
    CHECK(zap(SERVER_PAGES, 1, 0, 3));
    refused(3, PF_REASON_BAD_REQUEST, "in the image");
    CHECK(zap(1, UINT64_MAX, 0, 4));
    refused(4, PF_REASON_BAD_REQUEST, "in the image");
    CHECK(zap(0, 1, 6, 5));
    refused(5, PF_REASON_BAD_REQUEST, "flag");
    for (uint64_t i = 0; i < 33; i++)
        CHECK(zap(i, 1, 0, 100 + i));
    refused(132, PF_REASON_BUSY, "next DONE");
    CHECK(hears(FRAME_ZAP, &frame));
    answer(&frame, EBUSY, 0);
    refused(100, PF_REASON_BUG, "busy");
    obey(1, 1);
    done(101, 1, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK(hears(FRAME_ZAP, &frame));
    frame.sequence++; /* not what was asked, and ignored */
    answer(&frame, ZAP_METHOD_DONTNEED, REAL_PAGE);
    frame.sequence--;
    answer(&frame, ZAP_METHOD_DONTNEED, 7 * REAL_PAGE); /* more than was asked */
    done(102, 1, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK(hears(FRAME_ZAP, &frame));
    close(vm.frames_end);
    vm.frames_end = -1;
    refused(103, PF_REASON_UNSUPPORTED, "has not answered");
    refused(104, PF_REASON_UNSUPPORTED, "speaks no frames");
    CHECK_EQ(reads(5), client_word(5));
    end();
}

static void test_a_vmm_without_frames(void)
{
    begin(REAL_MEMFD, false, false);
    CHECK(zap(0, 1, 0, 1)); /* waits until the image is described */
    refused(1, PF_REASON_WRONG_PHASE, "before arming");
    arm();
    CHECK(zap(0, 1, 0, 2));
    refused(2, PF_REASON_UNSUPPORTED, "under the shim");
    end();
}

/* One that knows no ZAP ignores it: the order is given up, the next one too, and nothing else suffers. */
static void test_a_vmm_that_does_not_answer(void)
{
    struct frame frame;

    begin(REAL_MEMFD, true, false);
    arm();
    CHECK(zap(0, 9, 0, 6));
    CHECK(hears(FRAME_ZAP, &frame));
    CHECK_EQ(reads(5), client_word(5));
    CHECK(soon(PAGEFERRY_EVENT_FAILED));
    was_refused(6, PF_REASON_UNSUPPORTED, "has not answered");
    answer(&frame, ZAP_METHOD_DONTNEED, 9 * REAL_PAGE); /* too late */
    CHECK(zap(5, 1, 0, 7));
    obey(5, 1);
    done(7, 1, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(reads(5), client_word(5));
    end();
}

/* What it was told it may do yet: until it has, nothing is put in the place of a lost page, and it is told no more. */
static void test_private_memory_of_a_vmm_that_does_not_answer(void)
{
    struct pageferry_order clear = {.kind = PAGEFERRY_ORDER_CLEAR_POISON, .value = 5, .page_count = 1, .cookie = 3};
    struct frame late;

    begin(REAL_PRIVATE, true, false);
    arm();
    CHECK_EQ(reads(5), client_word(5));
    poison(5, 1);
    CHECK(hears(FRAME_ZAP, &late));
    CHECK(soon(PAGEFERRY_EVENT_POISONED));
    CHECK_EQ(vm.event.value, PAGEFERRY_POISONED_WAS_MAPPED | PAGEFERRY_POISONED_MAPPED);
    done(0, 1, 0);
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 5, 1, MADV_DONTNEED), 0);
    CHECK_EQ(reads(5), REAL_SIGBUS);
    CHECK_EQ(pageferry_vm_order(vm.vm, &clear), 0);
    refused(3, PF_REASON_UNSUPPORTED, "drop it");
    CHECK(zap(20, 1, PAGEFERRY_ZAP_DROP, 4));
    refused(4, PF_REASON_UNSUPPORTED, "has not answered");
    obey_any(&late);
    CHECK(zap(20, 1, PAGEFERRY_ZAP_DROP, 5));
    CHECK(hears(FRAME_POISONED, &late));
    obey(20, 1);
    done(5, 1, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(pageferry_vm_order(vm.vm, &clear), 0);
    done(3, 1, 0);
    CHECK_EQ(real_do(&vm.real, REAL_WRITE, 5, 1, 79), 0);
    CHECK_EQ(reads(5), 79);
    end();
}

int main(void)
{
    if (!client_may()) {
        SKIP(test_zap_order, "no userfaultfd right");
        return check_done();
    }
    RUN(test_no_word_changes);
    RUN(test_wanted_and_missing_pages);
    RUN(test_the_pager_does_not_wait);
    RUN(test_after_complete);
    RUN(test_drop_on_shared_memory);
    RUN(test_private_memory);
    RUN(test_a_lost_page_is_taken_from_the_guest);
    RUN(test_what_was_dropped_already_is_not_asked_for);
    RUN(test_what_is_being_dropped_is_not_cleared);
    RUN(test_cleared_behind_an_ordered_drop);
    RUN(test_refusals);
    RUN(test_a_vmm_without_frames);
    RUN(test_a_vmm_that_does_not_answer);
    RUN(test_private_memory_of_a_vmm_that_does_not_answer);
    return check_done();
}
