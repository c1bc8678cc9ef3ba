/* SPDX-License-Identifier: Apache-2.0 */
/* Events and pauses as the owner of a handle hears them, also one that has stopped listening for a while. */
#include <poll.h>
#include <string.h>

#include "check.h"
#include "client/tell.h"
#include "gen/contract.h"

#define S_NS UINT64_C(1000000000)

static struct tell teller;
static struct pageferry_event event;

static bool say(uint32_t kind, const char *text)
{
    struct pageferry_event said = {.kind = kind};

    return tell(&teller, &said, text);
}

static bool hear(uint32_t kind)
{
    return ring_take(&teller.events, &event) && event.kind == kind;
}

static bool rings(void)
{
    struct pollfd bell = {.fd = teller.events.bell_fd, .events = POLLIN};

    return poll(&bell, 1, 0) == 1;
}

static void test_texts(void)
{
    char text[1000];

    CHECK_EQ(tell_open(&teller), 0);
    memset(text, 't', sizeof(text));
    text[sizeof(text) - 1] = 0;
    CHECK(!rings());
    CHECK(say(PAGEFERRY_EVENT_FAILED, text));
    CHECK(rings());
    CHECK(say(PAGEFERRY_EVENT_ARMED, NULL));
    CHECK(hear(PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(strlen(event.text), PAGEFERRY_TEXT_BYTES - 1);
    CHECK(hear(PAGEFERRY_EVENT_ARMED));
    CHECK_EQ(event.text[0], 0);
    ring_silence(&teller.events);
    tell_ring(&teller);
    CHECK(rings());
    tell_close(&teller);
}

/* A flood of alarms leaves room for what may not be lost. */
static void test_a_reader_far_behind(void)
{
    int told = 0;

    CHECK_EQ(tell_open(&teller), 0);
    for (int i = 0; i < 10000; i++)
        told += say(PAGEFERRY_EVENT_ALARM, "again");
    CHECK(told >= 100 && told < 256);
    CHECK(!say(PAGEFERRY_EVENT_POISONED, NULL));
    CHECK(say(PAGEFERRY_EVENT_COMPLETE, NULL));
    CHECK(say(PAGEFERRY_EVENT_VMM_GONE, NULL));
    for (int i = 0; i < told; i++)
        CHECK(hear(PAGEFERRY_EVENT_ALARM));
    CHECK(hear(PAGEFERRY_EVENT_COMPLETE));
    CHECK(hear(PAGEFERRY_EVENT_VMM_GONE));
    CHECK(!ring_take(&teller.events, &event));
    tell_close(&teller);
}

static void test_pause_needs_patience(void)
{
    struct tell_pause pause = {0};

    CHECK_EQ(tell_open(&teller), 0);
    CHECK(tell_pause_next_ns(&pause, S_NS) == UINT64_MAX);
    tell_pause_began(&pause, PF_REASON_GOING_AWAY, "first", 5 * S_NS);
    tell_pause_began(&pause, PF_REASON_GOING_AWAY, "second", 6 * S_NS); /* since the first, by the last text */
    CHECK_EQ(tell_pause_next_ns(&pause, 3 * S_NS), 8 * S_NS);
    tell_pause_if_long(&teller, &pause, 3 * S_NS, 8 * S_NS - 1);
    CHECK(!ring_take(&teller.events, &event));
    tell_pause_if_long(&teller, &pause, 3 * S_NS, 8 * S_NS);
    CHECK(hear(PAGEFERRY_EVENT_PAUSED));
    CHECK_EQ(event.reason, PF_REASON_GOING_AWAY);
    CHECK(strcmp(event.text, "second") == 0);
    CHECK(tell_pause_next_ns(&pause, 3 * S_NS) == UINT64_MAX);
    tell_pause_if_long(&teller, &pause, 3 * S_NS, 20 * S_NS);
    CHECK(!ring_take(&teller.events, &event)); /* once */
    tell_pause_over(&teller, &pause, 25 * S_NS);
    CHECK(hear(PAGEFERRY_EVENT_RESUMED));
    CHECK_EQ(event.value, 20 * S_NS);
    tell_pause_over(&teller, &pause, 26 * S_NS);
    tell_pause_began(&pause, PF_REASON_GOING_AWAY, "short", 30 * S_NS);
    tell_pause_over(&teller, &pause, 31 * S_NS); /* never said: no RESUMED */
    CHECK(!ring_take(&teller.events, &event));
    tell_close(&teller);
}

static void test_another_reason_is_told(void)
{
    struct tell_pause pause = {0};

    CHECK_EQ(tell_open(&teller), 0);
    tell_pause_began(&pause, PF_REASON_GOING_AWAY, "gone", S_NS);
    tell_pause_if_long(&teller, &pause, 0, S_NS);
    CHECK(hear(PAGEFERRY_EVENT_PAUSED));
    tell_pause_began(&pause, PF_REASON_MISMATCH, "other bytes", 3 * S_NS);
    tell_pause_if_long(&teller, &pause, 0, 3 * S_NS);
    CHECK(hear(PAGEFERRY_EVENT_PAUSED));
    CHECK_EQ(event.reason, PF_REASON_MISMATCH);
    tell_pause_over(&teller, &pause, 5 * S_NS);
    CHECK(hear(PAGEFERRY_EVENT_RESUMED));
    CHECK_EQ(event.value, 4 * S_NS); /* of the whole pause */
    CHECK(!ring_take(&teller.events, &event));
    tell_close(&teller);
}

/* PAUSED that had no room is said later, not never, and not in each turn; RESUMED always finds some. */
static void test_pause_while_the_reader_is_behind(void)
{
    struct tell_pause pause = {0};

    CHECK_EQ(tell_open(&teller), 0);
    while (say(PAGEFERRY_EVENT_ALARM, "again"))
        ;
    tell_pause_began(&pause, PF_REASON_NO_MEMORY, "full", S_NS);
    tell_pause_if_long(&teller, &pause, 0, S_NS);
    CHECK(tell_pause_next_ns(&pause, 0) > S_NS);
    CHECK(tell_pause_next_ns(&pause, 0) < 2 * S_NS);
    while (ring_take(&teller.events, &event))
        CHECK_EQ(event.kind, PAGEFERRY_EVENT_ALARM);
    tell_pause_if_long(&teller, &pause, 0, 2 * S_NS);
    CHECK(hear(PAGEFERRY_EVENT_PAUSED));
    while (say(PAGEFERRY_EVENT_ALARM, "again"))
        ;
    tell_pause_over(&teller, &pause, 3 * S_NS);
    while (ring_take(&teller.events, &event) && event.kind == PAGEFERRY_EVENT_ALARM)
        ;
    CHECK_EQ(event.kind, PAGEFERRY_EVENT_RESUMED);
    tell_close(&teller);
}

int main(void)
{
    RUN(test_texts);
    RUN(test_a_reader_far_behind);
    RUN(test_pause_needs_patience);
    RUN(test_another_reason_is_told);
    RUN(test_pause_while_the_reader_is_behind);
    return check_done();
}
