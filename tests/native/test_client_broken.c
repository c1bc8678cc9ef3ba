/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client against servers and links that are not what they should be. Whatever they do: no wrong byte reaches the
 * guest, it goes on once they are good, and meanwhile neither side is flooded.
 */
#include <time.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "skip_time.h"

static struct server server;
static struct client_vm vm;

static void begin_with(uint64_t pages, bool background)
{
    server_start(&server);
    atomic_store(&server.will.page_count, pages);
    CHECK(client_prepare(&vm, REAL_MEMFD, pages, &server, false));
    vm.options.background = background;
}

static void begin(bool background)
{
    begin_with(SERVER_PAGES, background);
}

static void open_armed(void)
{
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
}

static void end(void)
{
    client_end(&vm);
    server_stop(&server);
}

static void reads(uint64_t page)
{
    CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), client_word(page));
}

static void pause_ms(long ms)
{
    struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

    nanosleep(&pause, NULL);
}

/* -------------------------------------------------------------------------------------------------------- links */

static void test_lost_links(void)
{
    begin(false);
    open_armed();
    atomic_store(&server.will.fetch_mute, 1);
    for (uint64_t page = 0; page < 6; page++)
        real_begin(&vm.real, REAL_READ, 75, 1, 0);
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.asked) == 1));
    for (int i = 0; i < 5; i++) {
        uint64_t before = atomic_load(&server.seen.asked);
        server_cut(&server);
        CHECK(CLIENT_UNTIL(atomic_load(&server.seen.asked) > before)); /* asked again, without a fault */
    }
    CHECK_EQ(client_state(&vm, 75), PAGE_WANTED);
    atomic_store(&server.will.fetch_mute, 0);
    server_cut(&server);
    for (uint64_t page = 0; page < 6; page++)
        CHECK_EQ(real_answer(&vm.real), 0);
    reads(5);
    end();
}

static void test_lost_in_the_middle_of_bulk(void)
{
    begin(true);
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    for (int i = 0; i < 20; i++) {
        server_cut(&server);
        pause_ms(2);
    }
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        reads(page);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    end();
}

static void test_nobody_there(void)
{
    uint64_t dials;

    begin(true);
    snprintf(vm.address, sizeof(vm.address), "127.0.0.1:1"); /* tcpmux: refused */
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED)); /* at once: the address may be wrong */
    CHECK_EQ(vm.event.reason, PF_REASON_GOING_AWAY);
    CHECK(!client_busy());
    dials = client_counter(&vm, STATS_dials_total);
    CHECK(dials < 20);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 1));
    CHECK(!client_busy());
    end();
}

static void test_fetch_call_ends(void)
{
    begin(false);
    open_armed();
    for (int i = 0; i < 5; i++) {
        atomic_store(&server.will.fetch_end_after, 2);
        reads((uint64_t)i * 3);
        reads((uint64_t)i * 3 + 1);
        reads((uint64_t)i * 3 + 2);
    }
    CHECK(atomic_load(&server.seen.fetches) >= 6);
    end();
}

/* The link is up and its peer's kernel lives, but nobody serves. */
static void test_silence(void)
{
    uint64_t connections;

    begin(false);
    open_armed();
    reads(1);
    connections = atomic_load(&server.seen.connections);
    atomic_store(&server.will.fetch_no_echo, 1);
    atomic_store(&server.will.fetch_mute, 1);
    real_begin(&vm.real, REAL_READ, 2, 1, 0);
    CHECK(SOON(atomic_load(&server.seen.connections) > connections));
    atomic_store(&server.will.fetch_no_echo, 0);
    atomic_store(&server.will.fetch_mute, 0);
    server_cut(&server);
    CHECK_EQ(real_answer(&vm.real), client_word(2));
    end();
}

static void test_frozen_server(void)
{
    begin(false);
    open_armed();
    reads(1);
    server_hold(&server);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    for (uint64_t page = 0; page < 60; page++)
        real_begin(&vm.real, REAL_READ, 450, 1, 0);
    CHECK(!client_busy());
    CHECK(SOON(client_counter(&vm, STATS_links_lost_total) > 0));
    CHECK(!client_busy());
    atomic_store(&server.will.frozen, 0);
    for (uint64_t page = 0; page < 60; page++)
        CHECK_EQ(real_answer(&vm.real), client_word(450));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

/* --------------------------------------------------------------------------------------------- describing an image */

static void fails(uint32_t reason)
{
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(vm.event.reason, reason);
    CHECK(vm.event.text[0] != 0);
    CHECK(!client_busy());
    end();
}

static void test_images_that_do_not_fit(void)
{
    begin(false);
    atomic_store(&server.will.live, 1);
    fails(PF_REASON_UNSUPPORTED);
    begin(false);
    atomic_store(&server.will.page_count, SERVER_PAGES - 1);
    fails(PF_REASON_MISMATCH);
    begin(false);
    atomic_store(&server.will.as_of, 0);
    fails(PF_REASON_MISMATCH);
    begin(false);
    atomic_store(&server.will.content_id, 0);
    fails(PF_REASON_MISMATCH);
    begin(false);
    atomic_store(&server.will.describe_reason, PF_REASON_NO_SUCH_IMAGE);
    fails(PF_REASON_NO_SUCH_IMAGE);
    begin(false);
    atomic_store(&server.will.fetch_reason, PF_REASON_NOT_ALLOWED);
    fails(PF_REASON_NOT_ALLOWED);
}

static void test_slow_and_odd_descriptions(void)
{
    begin(false);
    atomic_store(&server.will.describe_reason, PF_REASON_BUSY);
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED));
    CHECK(!client_busy());
    atomic_store(&server.will.describe_empty, 1);
    atomic_store(&server.will.describe_reason, 0);
    CHECK(!client_busy());
    CHECK(atomic_load(&server.seen.describes) < 30);
    atomic_store(&server.will.describe_empty, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_RESUMED));
    atomic_store(&server.will.describe_twice, 1);
    server_cut(&server);
    CHECK(!client_busy());
    atomic_store(&server.will.describe_twice, 0);
    CHECK(client_arm(&vm));
    reads(3);
    end();
}

static void test_description_that_never_comes(void)
{
    begin(false);
    atomic_store(&server.will.describe_mute, 1);
    CHECK_EQ(client_open(&vm), 0);
    CHECK(SOON((client_drain(&vm), vm.seen[PAGEFERRY_EVENT_PAUSED] > 0)));
    atomic_store(&server.will.describe_mute, 0);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 7));
    CHECK(SOON((client_drain(&vm), vm.seen[PAGEFERRY_EVENT_ARMED] > 0)));
    reads(3);
    end();
}

/* Once armed a wrong image pauses, and is told at once; nothing of it is taken. */
static void test_other_bytes_after_a_reconnect(void)
{
    begin(false);
    open_armed();
    reads(1);
    atomic_store(&server.will.content_id, SERVER_CONTENT_ID + 1);
    server_cut(&server);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED));
    CHECK_EQ(vm.event.reason, PF_REASON_MISMATCH);
    real_begin(&vm.real, REAL_READ, 2, 1, 0);
    CHECK(real_sleeps(&vm.real));
    CHECK(!client_busy());
    atomic_store(&server.will.content_id, SERVER_CONTENT_ID);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_RESUMED));
    CHECK_EQ(real_answer(&vm.real), client_word(2));
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_PAUSED], 1);
    end();
}

static void test_other_bytes_before_arming(void)
{
    begin(false);
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    atomic_store(&server.will.content_id, SERVER_CONTENT_ID + 1);
    server_cut(&server);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(vm.event.reason, PF_REASON_MISMATCH);
    CHECK(!client_busy());
    end();
}

/* The same, without the connection being lost: only the digests show it. */
static void test_other_bytes_on_the_same_connection(void)
{
    begin(true);
    atomic_store(&server.will.stream_mute, 1);
    open_armed();
    reads(1);
    atomic_store(&server.will.content_id, SERVER_CONTENT_ID + 1);
    atomic_store(&server.will.stream_mute, 0);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    real_begin(&vm.real, REAL_READ, 2, 1, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED));
    CHECK_EQ(vm.event.reason, PF_REASON_MISMATCH);
    CHECK(!client_busy());
    atomic_store(&server.will.content_id, SERVER_CONTENT_ID);
    CHECK_EQ(real_answer(&vm.real), client_word(2));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_RESUMED));
    end();
}

/* ----------------------------------------------------------------------------------------------------- urgent pages */

static void test_bad_digests(void)
{
    for (uint32_t times = 1; times < 8; times += 3) {
        begin(false);
        open_armed();
        atomic_store(&server.will.fetch_bad_digests, times);
        reads(3);
        CHECK_EQ(client_counter(&vm, STATS_digest_failures_total), times);
        CHECK(atomic_load(&server.seen.fetches) <= 1 + times / 2);
        end();
    }
}

/* For as long as it lasts it costs a few batches, not a storm. */
static void test_bad_digests_for_good(void)
{
    begin(false);
    open_armed();
    atomic_store(&server.will.fetch_bad_digests, UINT32_MAX);
    real_begin(&vm.real, REAL_READ, 3, 1, 0);
    pause_ms(500);
    CHECK(client_counter(&vm, STATS_digest_failures_total) >= 2);
    CHECK(client_counter(&vm, STATS_digest_failures_total) < 50);
    CHECK(real_sleeps(&vm.real));
    atomic_store(&server.will.fetch_bad_digests, 0);
    CHECK_EQ(real_answer(&vm.real), client_word(3));
    end();
}

static void test_answers_that_are_none(void)
{
    begin(false);
    open_armed();
    atomic_store(&server.will.fetch_garbage, 3);
    reads(3);
    atomic_store(&server.will.fetch_outside, 3);
    reads(4);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_FAILED] + vm.seen[PAGEFERRY_EVENT_PAUSED], 0);
    end();
}

static void test_later(void)
{
    uint64_t asked;

    begin(false);
    atomic_store(&server.will.later_page, 8);
    atomic_store(&server.will.later_times, UINT32_MAX);
    open_armed();
    real_begin(&vm.real, REAL_READ, 7, 1, 0);
    CHECK(CLIENT_UNTIL(client_counter(&vm, STATS_later_pages_total) > 0));
    for (uint64_t page = 10; page < 60; page++) { /* others do not wait for it */
        real_begin(&vm.real, REAL_READ, page, 1, 0);
        CHECK_EQ(real_answer(&vm.real), client_word(page));
    }
    asked = atomic_load(&server.seen.asked);
    pause_ms(600);
    CHECK(atomic_load(&server.seen.asked) - asked < 30); /* without growth: 60 */
    atomic_store(&server.will.later_times, 0);
    CHECK_EQ(real_answer(&vm.real), client_word(7));
    end();
}

static void test_pages_that_nobody_asked(void)
{
    begin(false);
    atomic_store(&server.will.fetch_unasked, 1);
    open_armed();
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        reads(page);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

/* What was not asked is not lost by an answer, nor asked again later; and more than can be asked is no answer. */
static void test_all_pages_that_nobody_asked(void)
{
    begin(false);
    open_armed();
    atomic_store(&server.will.fetch_all_kind, PF_RUN_KIND_LATER);
    atomic_store(&server.will.fetch_all, 1);
    reads(2);
    CHECK_EQ(client_counter(&vm, STATS_later_pages_total), 1);
    atomic_store(&server.will.fetch_all_kind, PF_RUN_KIND_POISON);
    atomic_store(&server.will.fetch_all, 1);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 3, 1, 0), REAL_SIGBUS);
    CHECK_EQ(client_counter(&vm, STATS_poisoned_pages_total), 1);
    for (uint64_t page = 4; page < 40; page++)
        reads(page);
    end();
    begin_with(2 * PF_LIMIT_WANTED_PAGES_MAX, false);
    open_armed();
    atomic_store(&server.will.fetch_all_kind, PF_RUN_KIND_POISON);
    atomic_store(&server.will.fetch_all, 3);
    reads(3);
    CHECK_EQ(client_counter(&vm, STATS_poisoned_pages_total), 0);
    end();
}

/* A server that allows two at a time is not asked for more; its answers repeat themselves, and the count holds. */
static void test_few_at_a_time(void)
{
    begin(false);
    atomic_store(&server.will.wanted_pages_max, 2);
    open_armed();
    for (int round = 0; round < 4; round++) {
        for (uint64_t page = 0; page < 40; page++)
            real_begin(&vm.real, REAL_READ, 10, 1, 0);
        for (uint64_t page = 0; page < 40; page++)
            CHECK_EQ(real_answer(&vm.real), client_word(10));
    }
    for (uint64_t page = 0; page < 40; page++)
        real_begin(&vm.real, REAL_READ, 100 + 7 * page, 1, 0);
    for (uint64_t page = 0; page < 40; page++)
        CHECK(real_answer(&vm.real) != REAL_NO_ANSWER);
    CHECK_EQ(atomic_load(&server.seen.overlong), 0);
    end();
}

/* ---------------------------------------------------------------------------------------------------------- bulk */

static void completes(void)
{
    open_armed();
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    for (uint64_t page = 0; page < SERVER_PAGES; page += 3)
        reads(page);
    end();
}

static void test_batches_of_every_size(void)
{
    static const uint32_t sizes[] = {1, 3, 64, 256};

    for (int i = 0; i < 4; i++) {
        begin(true);
        atomic_store(&server.will.stream_pages, sizes[i]);
        completes();
    }
}

static void test_bulk_bad_digests(void)
{
    begin(true);
    atomic_store(&server.will.stream_bad_digests, 6);
    completes();
}

static void test_bulk_later(void)
{
    begin(true);
    atomic_store(&server.will.later_page, 8);
    atomic_store(&server.will.later_times, 6);
    completes();
}

static void no_storm(void)
{
    uint64_t streams;

    open_armed();
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.streams) > 0));
    pause_ms(500);
    streams = atomic_load(&server.seen.streams);
    CHECK(streams < 150);
    reads(9);
    CHECK(!client_busy());
}

static void test_bulk_brings_nothing(void)
{
    begin(true);
    atomic_store(&server.will.stream_nothing, 1);
    no_storm();
    atomic_store(&server.will.stream_nothing, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

static void test_bulk_is_refused(void)
{
    static const uint32_t reasons[] = {PF_REASON_BUSY, PF_REASON_UNSUPPORTED, PF_REASON_GOING_AWAY};

    for (int i = 0; i < 3; i++) {
        begin(true);
        atomic_store(&server.will.stream_reason, reasons[i]);
        no_storm();
        atomic_store(&server.will.stream_reason, 0);
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
        end();
    }
}

static void test_bulk_has_bad_digests_for_good(void)
{
    begin(true);
    atomic_store(&server.will.stream_bad_digests, UINT32_MAX);
    no_storm();
    CHECK(client_counter(&vm, STATS_digest_failures_total) < 200);
    atomic_store(&server.will.stream_bad_digests, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

/* A bulk connection that has died without a word: ranges under way are given up and asked on another one. */
static void test_bulk_falls_silent(void)
{
    begin(true);
    atomic_store(&server.will.stream_mute, 1);
    open_armed();
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.streams) > 0));
    reads(400);
    CHECK(!client_busy());
    CHECK(SOON(client_counter(&vm, STATS_links_lost_total) > 0));
    atomic_store(&server.will.stream_mute, 0);
    server_cut(&server);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_lost_links);
    RUN(test_lost_in_the_middle_of_bulk);
    RUN(test_nobody_there);
    RUN(test_fetch_call_ends);
    RUN(test_silence);
    RUN(test_frozen_server);
    RUN(test_images_that_do_not_fit);
    RUN(test_slow_and_odd_descriptions);
    RUN(test_description_that_never_comes);
    RUN(test_other_bytes_after_a_reconnect);
    RUN(test_other_bytes_before_arming);
    RUN(test_other_bytes_on_the_same_connection);
    RUN(test_bad_digests);
    RUN(test_bad_digests_for_good);
    RUN(test_answers_that_are_none);
    RUN(test_later);
    RUN(test_pages_that_nobody_asked);
    RUN(test_all_pages_that_nobody_asked);
    RUN(test_few_at_a_time);
    RUN(test_batches_of_every_size);
    RUN(test_bulk_bad_digests);
    RUN(test_bulk_later);
    RUN(test_bulk_brings_nothing);
    RUN(test_bulk_is_refused);
    RUN(test_bulk_has_bad_digests_for_good);
    RUN(test_bulk_falls_silent);
    return check_done();
}
