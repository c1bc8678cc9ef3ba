/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A move seen from its target, through pageferry.h and on the real kernel: rounds of a live image, what is fetched
 * between them, the frozen map, arming, and what comes then. The source is client_server.h's; its guest writes as the
 * tests say. What a page must read as is the source's word for it when the map was frozen.
 */
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"

#define FAILED_ORDER 1 /* FAILED's page: only the order was refused */

static struct server server;
static struct client_vm vm;

static void prepare(void)
{
    server_start(&server);
    server_live(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    vm.options.background = 1;
    vm.options.session = SERVER_SESSION;
    vm.options.token = SERVER_TOKEN;
    vm.options.target = SERVER_TARGET;
    vm.options.epoch = SERVER_EPOCH;
}

static void begin(void)
{
    prepare();
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
}

static void end(void)
{
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    client_end(&vm);
    server_stop(&server);
}

static uint64_t word_of(uint64_t page)
{
    return atomic_load(&server.pages[page].word);
}

/* A round, and its answer: how many pages it named newer. */
static uint64_t a_round(bool open_new)
{
    static uint64_t cookie;

    CHECK(client_order(&vm, PAGEFERRY_ORDER_ROUND, open_new, ++cookie));
    if (!client_wait(&vm, PAGEFERRY_EVENT_ROUND))
        return UINT64_MAX;
    CHECK_EQ(vm.event.cookie, cookie);
    CHECK_EQ(vm.event.value, atomic_load(&server.will.as_of));
    return vm.event.page;
}

static bool digest_agrees(void)
{
    uint8_t theirs[16];

    server_manifest(&server, theirs);
    return memcmp(theirs, vm.event.digest, sizeof(theirs)) == 0;
}

/* The guest stands still at the source, and its map is read to the end. */
static void freeze(void)
{
    server_round(&server);
    atomic_store(&server.will.manifest, 1);
    a_round(false);
    CHECK(digest_agrees());
}

static void check_memory(uint64_t step)
{
    for (uint64_t page = 0; page < SERVER_PAGES; page += step)
        CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), (int64_t)word_of(page));
}

static void check_manifest(void)
{
    uint8_t ours[16], theirs[16];

    server_manifest(&server, theirs);
    CHECK_EQ(pageferry_vm_manifest(vm.vm, ours), 0);
    CHECK(memcmp(ours, theirs, sizeof(ours)) == 0);
}

static bool order_fails(uint32_t kind, uint64_t value, uint32_t reason)
{
    return client_order(&vm, kind, value, 77) && client_wait(&vm, PAGEFERRY_EVENT_FAILED) && vm.event.cookie == 77 &&
           vm.event.page == FAILED_ORDER && vm.event.reason == reason && vm.event.text[0] != 0;
}

/* ------------------------------------------------------------------------------------------------------ whole moves */

static void test_a_move(void)
{
    begin();
    for (int i = 0; i < 20; i++)
        client_moment();
    CHECK_EQ(atomic_load(&server.seen.streams), 0); /* which pages there are is not known yet */
    CHECK_EQ(a_round(true), SERVER_PAGES);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(client_state(&vm, 3), PAGE_CACHED);
    CHECK_EQ(client_state(&vm, 70), PAGE_ZERO);
    server_write(&server, 3, 9001);
    server_write(&server, 70, 9002); /* a hole before */
    server_write(&server, 200, 0);   /* given back */
    CHECK_EQ(a_round(true), 3);
    CHECK_EQ(atomic_load(&server.seen.since), UINT64_C(1) << 32 | 1);
    CHECK_EQ(client_state(&vm, 200), PAGE_ZERO);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(client_state(&vm, 70), PAGE_CACHED);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0)); /* what changes last comes by faults */
    server_write(&server, 3, 9003);
    server_write(&server, 4, 9004);
    server_write(&server, 71, 9005);
    freeze();
    CHECK_EQ(client_state(&vm, 3), PAGE_MISSING);
    CHECK_EQ(client_state(&vm, 5), PAGE_CACHED);
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 3, 1, 0), 9003);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), (int64_t)word_of(5));
    CHECK_EQ(client_counter(&vm, STATS_asks_total), 1);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    check_manifest();
    CHECK_EQ(atomic_load(&server.seen.strangers), 0);
    CHECK_EQ(atomic_load(&server.seen.rounds), 2);
    end();
}

static void test_at_once(void)
{
    begin();
    freeze();
    CHECK(client_arm(&vm));
    check_memory(5);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    check_manifest();
    end();
}

/* The guest writes all the time, also pages that are just being read; at the end nothing of it is stale. */
static void test_a_guest_that_writes_on(void)
{
    uint64_t random = 1, word = 10000;

    begin();
    for (int round = 0; round < 20; round++) {
        CHECK(a_round(true) > 0);
        for (int i = 0; i < 200; i++) {
            random = random * UINT64_C(6364136223846793005) + 1;
            server_write(&server, (random >> 33) % SERVER_PAGES, i % 7 == 0 ? 0 : ++word);
            if (i % 40 == 0)
                client_moment();
        }
    }
    freeze();
    CHECK(client_arm(&vm));
    check_memory(1);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    check_manifest();
    end();
}

/* Postcopy forbidden: all is fetched while the guest stands still. */
static void test_populated_before_arming(void)
{
    begin();
    a_round(true);
    server_write(&server, 9, 555);
    freeze();
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(client_state(&vm, 9), PAGE_CACHED);
    CHECK(client_arm(&vm));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(client_counter(&vm, STATS_asks_total), 0);
    check_memory(1);
    end();
}

static void test_a_round_that_brings_nothing(void)
{
    begin();
    a_round(true);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    CHECK_EQ(a_round(true), 0);
    client_drain(&vm);
    for (int i = 0; i < 50; i++)
        client_moment();
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_POPULATED], 1);
    CHECK(!client_busy());
    end();
}

/* Lost at the source: it is lost here, and the versions agree all the same. */
static void test_poison_in_the_map(void)
{
    begin();
    a_round(true);
    atomic_store(&server.will.poison_page, 6 + 1);
    server_write(&server, 6, 1);
    a_round(true);
    CHECK_EQ(client_state(&vm, 6), PAGE_POISONED);
    server_write(&server, 6, 2);
    freeze();
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 6, 1, 0), REAL_SIGBUS);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(vm.event.value, 1);
    end();
}

/* ------------------------------------------------------------------------------------------------- what is not done */

static void test_orders_that_are_refused(void)
{
    begin();
    CHECK(order_fails(PAGEFERRY_ORDER_ARM, 0, PF_REASON_WRONG_PHASE));
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 0, PF_REASON_WRONG_PHASE)); /* there has been none */
    a_round(true);
    CHECK(order_fails(PAGEFERRY_ORDER_ARM, 0, PF_REASON_WRONG_PHASE)); /* the guest still writes */
    server_hold(&server);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ROUND, 1, 1));
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 1, PF_REASON_BUSY));
    CHECK(order_fails(PAGEFERRY_ORDER_ARM, 0, PF_REASON_WRONG_PHASE));
    atomic_store(&server.will.frozen, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ROUND));
    atomic_store(&server.will.round_reason, PF_REASON_WRONG_PHASE);
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 1, PF_REASON_WRONG_PHASE));
    atomic_store(&server.will.round_reason, 0);
    freeze();
    a_round(true); /* it runs on at the source: what was frozen is not any more */
    CHECK(order_fails(PAGEFERRY_ORDER_ARM, 0, PF_REASON_WRONG_PHASE));
    freeze();
    CHECK(client_arm(&vm));
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 1, PF_REASON_WRONG_PHASE));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    end();
}

static void test_a_map_that_is_not_frozen(void)
{
    begin();
    a_round(true);
    server_write(&server, 8, 8);
    server_round(&server);
    atomic_store(&server.will.map_lags, 1);
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 0, PF_REASON_WRONG_PHASE));
    end();
}

static void test_another_manifest(void)
{
    begin();
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0));
    freeze();
    atomic_store(&server.will.manifest, 2);
    server_cut(&server); /* the next connection tells it */
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.fetches) >= 2));
    for (int i = 0; i < 20; i++)
        client_moment();
    CHECK(order_fails(PAGEFERRY_ORDER_ARM, 0, PF_REASON_MISMATCH));
    atomic_store(&server.will.manifest, 1);
    server_cut(&server);
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.fetches) >= 3));
    for (int i = 0; i < 20; i++)
        client_moment();
    CHECK(client_arm(&vm));
    atomic_store(&server.will.manifest, 2); /* and once the guest runs, nothing of such a server is used */
    server_cut(&server);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED) && vm.event.reason == PF_REASON_MISMATCH);
    atomic_store(&server.will.manifest, 1);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    end();
}

static void test_a_server_that_has_moved_on(void)
{
    begin();
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 0, 0));
    freeze();
    CHECK(client_arm(&vm));
    atomic_fetch_add(&server.will.as_of, 1);
    server_cut(&server);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED) && vm.event.reason == PF_REASON_MISMATCH);
    end();
}

static void test_without_a_session(void)
{
    prepare();
    vm.options.session = NULL;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(vm.event.reason, PF_REASON_UNSUPPORTED);
    CHECK(vm.event.page != FAILED_ORDER);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ROUND, 1, 5) && client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(vm.event.cookie, 5);
    end();
}

static void test_callers_that_are_none(void)
{
    static const char *const sessions[] = {"", "Move", "a_b", "0123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const tokens[] = {NULL, "", SERVER_TOKEN "A", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+"};

    prepare();
    for (size_t i = 0; i < sizeof(sessions) / sizeof(sessions[0]); i++) {
        vm.options.session = sessions[i];
        CHECK_EQ(client_open(&vm), -PF_REASON_BAD_REQUEST);
    }
    vm.options.session = SERVER_SESSION;
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        vm.options.token = tokens[i];
        CHECK_EQ(client_open(&vm), -PF_REASON_BAD_REQUEST);
        CHECK(tokens[i] == NULL || tokens[i][0] == 0 || strstr(vm.options.error, tokens[i]) == NULL);
    }
    vm.options.token = SERVER_TOKEN;
    vm.options.target = 0;
    CHECK_EQ(client_open(&vm), -PF_REASON_BAD_REQUEST);
    vm.options.target = SERVER_TARGET;
    vm.options.epoch = 0;
    CHECK_EQ(client_open(&vm), -PF_REASON_BAD_REQUEST);
    client_end(&vm);
    server_stop(&server);
}

static void test_an_image_that_never_changes(void)
{
    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    CHECK_EQ(client_open(&vm), 0);
    CHECK(order_fails(PAGEFERRY_ORDER_ROUND, 1, PF_REASON_WRONG_PHASE));
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 1, 1, 0), client_word(1));
    end();
}

/* --------------------------------------------------------------------------------------------- links, servers, troubles */

static void test_a_busy_server(void)
{
    begin();
    atomic_store(&server.will.round_times, 3);
    atomic_store(&server.will.round_reason, PF_REASON_BUSY);
    CHECK_EQ(a_round(true), SERVER_PAGES);
    CHECK_EQ(atomic_load(&server.seen.maps), 4);
    CHECK_EQ(atomic_load(&server.seen.rounds), 1);
    end();
}

/* Every kind of end in the middle of a map: it is read once more, from where the last whole one was. */
static void test_a_map_that_breaks_off(void)
{
    begin();
    a_round(true);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    for (uint64_t page = 0; page < SERVER_PAGES; page += 2)
        server_write(&server, page, 7000 + page);
    atomic_store(&server.will.map_runs, 10);
    atomic_store(&server.will.map_cut, 2);
    CHECK_EQ(a_round(true), SERVER_PAGES / 2);
    CHECK_EQ(atomic_load(&server.seen.maps), 4);
    CHECK_EQ(atomic_load(&server.seen.since), UINT64_C(1) << 32 | 1);
    CHECK_EQ(client_counter(&vm, STATS_links_lost_total), 0);
    atomic_store(&server.will.map_runs, 0);
    for (uint32_t garbage = 1; garbage <= 3; garbage++) {
        server_write(&server, 1, garbage);
        atomic_store(&server.will.map_garbage, garbage);
        a_round(true);
    }
    CHECK(CLIENT_UNTIL(client_state(&vm, 1) == PAGE_CACHED)); /* or bulk brings it as new as the next round has it */
    atomic_store(&server.will.map_bad_digests, 2); /* twice in a row: whom are we talking to? */
    server_write(&server, 1, 5);
    CHECK_EQ(a_round(true), 1);
    CHECK(client_counter(&vm, STATS_links_lost_total) > 0);
    CHECK(client_counter(&vm, STATS_digest_failures_total) >= 2);
    freeze();
    CHECK(client_arm(&vm));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    end();
}

static void test_a_link_lost_between(void)
{
    begin();
    a_round(true);
    server_hold(&server);
    server_write(&server, 11, 4);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ROUND, 1, 9));
    client_moment();
    atomic_store(&server.will.cut, 1);
    atomic_store(&server.will.frozen, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ROUND));
    CHECK_EQ(vm.event.cookie, 9);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    server_cut(&server);
    freeze();
    CHECK(client_arm(&vm));
    server_cut(&server);
    check_memory(7);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    end();
}

/* Nobody knows what has been written meanwhile: all is named again, and old bytes do not survive. */
static void test_a_server_that_was_restarted(void)
{
    begin();
    a_round(true);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    atomic_store(&server.pages[12].word, 4242); /* unseen */
    server_restarted(&server);
    server_cut(&server);
    CHECK_EQ(a_round(true), SERVER_PAGES);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    freeze();
    CHECK(client_arm(&vm));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 12, 1, 0), 4242);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    check_memory(1);
    end();
}

static void test_phases_of_the_source(void)
{
    begin();
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PHASE));
    CHECK_EQ(vm.event.value, PF_PHASE_PRECOPY);
    CHECK_EQ(vm.event.page, 0);
    atomic_store(&server.will.cancel, 1);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PHASE)); /* with the next echo */
    CHECK_EQ(vm.event.page, 1);
    end();
}

static void test_vmm_gone_in_a_round(void)
{
    begin();
    server_hold(&server);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ROUND, 1, 31));
    client_moment();
    real_kill(&vm.real);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_VMM_GONE));
    if (vm.event.cookie != 31) /* it went before the order was seen */
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED) && vm.event.cookie == 31);
    atomic_store(&server.will.frozen, 0);
    end();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_a_move);
    RUN(test_at_once);
    RUN(test_a_guest_that_writes_on);
    RUN(test_populated_before_arming);
    RUN(test_a_round_that_brings_nothing);
    RUN(test_poison_in_the_map);
    RUN(test_orders_that_are_refused);
    RUN(test_a_map_that_is_not_frozen);
    RUN(test_another_manifest);
    RUN(test_a_server_that_has_moved_on);
    RUN(test_without_a_session);
    RUN(test_callers_that_are_none);
    RUN(test_an_image_that_never_changes);
    RUN(test_a_busy_server);
    RUN(test_a_map_that_breaks_off);
    RUN(test_a_link_lost_between);
    RUN(test_a_server_that_was_restarted);
    RUN(test_phases_of_the_source);
    RUN(test_vmm_gone_in_a_round);
    return check_done();
}
