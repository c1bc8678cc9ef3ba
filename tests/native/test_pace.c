/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pace of bulk, with a clock, a link and guests that are the test's: a cap holds over everything that comes, faults
 * come first, and the link's rate is found, and kept below, whatever else there is on the way. Then what TCP tells of
 * real sockets.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "client/pace.h"
#include "client/wire.h"
#include "gen/contract.h"

#define MS UINT64_C(1000000)
#define SECOND (1000 * MS)
#define STEP (MS / 10)
#define RANGES_MAX 8
#define DATA_BYTES UINT64_C(4180) /* that a page really costs; more, where packets are small */
#define PERCENT(value, of) ((double)(value) * 100 / (double)(of))

/*
 * A link that brings what was asked in order, at its rate; what it did not need while it had nothing to bring it makes
 * up for, up to `burst`, as a token bucket does. Zeros cost nothing.
 */
static struct world {
    uint64_t now_ns;
    uint64_t link_rate, burst_bytes;
    double tokens;
    uint64_t urgent_rate; /* that faults take, whatever we do */
    double urgent, bulk;  /* that have arrived */
    struct {
        uint64_t pages;
        double left;
    } ranges[RANGES_MAX];
    uint32_t range_count;
    uint32_t ranges_max;
    uint64_t zeros_in_100; /* ranges that hold nothing */
    uint64_t page_bytes;
    uint64_t asked;
    bool held;
    struct pace pace;
    struct pace_link found;
} world;

static void begin(uint64_t link_rate)
{
    memset(&world, 0, sizeof(world));
    world.now_ns = 1000 * SECOND;
    world.link_rate = link_rate;
    world.ranges_max = RANGES_MAX;
    world.page_bytes = DATA_BYTES;
}

static void take_range(uint32_t at)
{
    pace_landed(&world.pace, world.ranges[at].pages);
    world.range_count--;
    for (uint32_t i = at; i < world.range_count; i++)
        world.ranges[i] = world.ranges[i + 1];
}

static void link_brings(void)
{
    double share, most = (double)world.burst_bytes + (double)world.link_rate * STEP / 1e9;

    world.tokens += ((double)world.link_rate - (double)world.urgent_rate) * STEP / 1e9;
    world.urgent += (double)world.urgent_rate * STEP / 1e9;
    world.tokens = world.tokens < most ? world.tokens : most;
    while (world.range_count > 0 && (world.tokens > 0 || world.ranges[0].left == 0)) {
        share = world.ranges[0].left < world.tokens ? world.ranges[0].left : world.tokens;
        world.ranges[0].left -= share;
        world.tokens -= share;
        world.bulk += share;
        if (world.ranges[0].left > 0)
            break;
        take_range(0);
    }
}

static void ask(uint64_t pages)
{
    bool zeros = world.asked++ * 37 % 100 < world.zeros_in_100;

    pace_asked(&world.pace, pages);
    world.ranges[world.range_count].pages = pages;
    world.ranges[world.range_count++].left = zeros ? 0 : (double)(pages * world.page_bytes);
}

/* What the loop does in a turn, and the bulk thread. */
static void step(bool faults, uint64_t pages_max)
{
    struct pace *pace = &world.pace;
    uint64_t pages;

    world.now_ns += STEP;
    link_brings();
    pace_link_look(&world.found, world.range_count > 0 && !world.held, (uint64_t)(world.bulk + world.urgent),
                   world.now_ns);
    pace_look(pace, (uint64_t)world.urgent, (uint64_t)world.bulk, pace_link_rate(&world.found), faults, world.now_ns);
    pages = pace_pages(pace, pages_max);
    world.held = false;
    while (world.range_count < world.ranges_max && !world.held) {
        world.held = !pace_allows(pace, pages);
        if (!world.held)
            ask(pages);
    }
}

static uint64_t arrived(void)
{
    return (uint64_t)(world.bulk + world.urgent);
}

static void go(uint64_t time_ns, bool faults, uint64_t pages_max)
{
    for (uint64_t end_ns = world.now_ns + time_ns; world.now_ns < end_ns;)
        step(faults, pages_max);
}

/* In percent of a rate, what comes in so long. */
static double brought(uint64_t time_ns, bool faults, uint64_t rate)
{
    uint64_t before = arrived(), before_ns = world.now_ns;

    go(time_ns, faults, faults ? 16 : 64);
    return PERCENT(arrived() - before, (double)rate * (double)(world.now_ns - before_ns) / 1e9);
}

#define CHECK_BETWEEN(low, value, high) \
    do { \
        double is = (value); \
        CHECK(is >= (low)); \
        CHECK(is <= (high)); \
    } while (0)

/* -------------------------------------------------------------------------------------------------------- the cap */

static void test_without_a_rate(void)
{
    begin(125000000);
    CHECK(pace_allows(&world.pace, 1000000));
    CHECK_EQ(pace_pages(&world.pace, 64), 64);
    CHECK_BETWEEN(99.9, brought(SECOND, false, 125000000), 100.1);
}

static void test_a_cap_holds(void)
{
    static const uint64_t caps[] = {50000, 1000000, 10000000, 50000000};

    for (int i = 0; i < 4; i++) {
        begin(125000000);
        pace_cap(&world.pace, caps[i]);
        CHECK_BETWEEN(99, brought(10 * SECOND, false, caps[i]), 101);
        CHECK_BETWEEN(99, brought(10 * SECOND, true, caps[i]), 101);
    }
}

/* In every single second, too. */
static void test_a_cap_holds_at_any_time(void)
{
    begin(125000000);
    pace_cap(&world.pace, 20000000);
    go(SECOND, false, 64);
    for (int i = 0; i < 10; i++)
        CHECK_BETWEEN(97, brought(SECOND, i % 2 == 0, 20000000), 103);
}

/* A moment without asks is made up for, and no more than a moment. */
static void test_moments_without_asks(void)
{
    uint64_t bytes, from_ns;

    begin(125000000);
    pace_cap(&world.pace, 20000000);
    go(SECOND, false, 64);
    bytes = arrived();
    from_ns = world.now_ns;
    for (int i = 0; i < 20; i++) {
        world.now_ns += 200 * MS;
        go(300 * MS, false, 64);
    }
    CHECK_BETWEEN(98, PERCENT(arrived() - bytes, 20000000 * (double)(world.now_ns - from_ns) / 1e9), 101);
    world.now_ns += 5 * SECOND;
    bytes = arrived();
    go(10 * SECOND, false, 64);
    CHECK_BETWEEN(99, PERCENT(arrived() - bytes, 200000000), 103);
}

static void test_a_cap_counts_urgent_pages(void)
{
    begin(125000000);
    pace_cap(&world.pace, 20000000);
    world.urgent_rate = 15000000;
    CHECK_BETWEEN(99, brought(10 * SECOND, true, 20000000), 101);
    CHECK_BETWEEN(74, PERCENT(world.urgent, arrived()), 76);
}

/* Faults are never held up, so they may break a cap: then bulk stands still until the average is right again. */
static void test_faults_beyond_a_cap(void)
{
    uint64_t from_ns, bytes;
    double before;

    begin(125000000);
    pace_cap(&world.pace, 10000000);
    go(SECOND, true, 16);
    from_ns = world.now_ns;
    bytes = arrived();
    world.urgent_rate = 30000000;
    before = world.bulk;
    go(2 * SECOND, true, 16);
    world.urgent_rate = 0;
    go(3900 * MS, true, 16);
    CHECK(world.bulk - before < 2000000);
    go(4 * SECOND, false, 64);
    CHECK_BETWEEN(99, PERCENT(arrived() - bytes, 10000000 * (double)(world.now_ns - from_ns) / 1e9), 101);
}

/* But not for ever. */
static void test_a_debt_has_an_end(void)
{
    begin(125000000);
    pace_cap(&world.pace, 10000000);
    go(SECOND, true, 16);
    world.urgent_rate = 110000000;
    go(10 * SECOND, true, 16);
    world.urgent_rate = 0;
    go(10 * SECOND + 100 * MS, false, 64);
    CHECK_BETWEEN(99, brought(5 * SECOND, false, 10000000), 101);
}

/* Below the link's rate there is no queue any more as soon as faults come more slowly. */
static void test_nothing_is_owed_to_a_link(void)
{
    begin(125000000);
    go(SECOND, false, 64);
    world.urgent_rate = 124000000;
    go(3 * SECOND, true, 16);
    world.urgent_rate = 5000000;
    go(50 * MS, true, 16);
    CHECK_BETWEEN(PF_LIMIT_PACE_PERCENT - 1, brought(SECOND, true, 125000000), PF_LIMIT_PACE_PERCENT + 1);
}

static void test_zeros_are_not_paid(void)
{
    begin(125000000);
    pace_cap(&world.pace, 10000000);
    world.zeros_in_100 = 60;
    CHECK_BETWEEN(99, brought(10 * SECOND, false, 10000000), 101);
    CHECK(world.asked * 64 * DATA_BYTES > 200000000);
}

static void test_what_costs_more_is_paid(void)
{
    begin(125000000);
    pace_cap(&world.pace, 10000000);
    world.page_bytes = 5500;
    CHECK_BETWEEN(99, brought(10 * SECOND, false, 10000000), 102);
}

static void test_a_cap_changes(void)
{
    begin(125000000);
    pace_cap(&world.pace, 10000000);
    go(SECOND, false, 64);
    pace_cap(&world.pace, 40000000);
    CHECK_BETWEEN(98, brought(5 * SECOND, false, 40000000), 102);
    pace_cap(&world.pace, 0);
    CHECK_BETWEEN(99, brought(SECOND, false, 125000000), 101);
    pace_cap(&world.pace, 10000000); /* what is under way is paid first */
    CHECK_BETWEEN(98, brought(5 * SECOND, false, 10000000), 102);
    pace_cap(&world.pace, UINT64_MAX); /* no cap at all */
    CHECK_BETWEEN(98, brought(5 * SECOND, false, 125000000), 101);
}

/* A cap that the link does not reach is none, and yet below the link while threads wait. */
static void test_a_cap_beyond_the_link(void)
{
    begin(125000000);
    pace_cap(&world.pace, 200000000);
    CHECK_BETWEEN(99, brought(SECOND, false, 125000000), 101);
    CHECK_BETWEEN(93, brought(4 * SECOND, true, 125000000), 97);
}

static void test_nothing_for_a_long_time(void)
{
    begin(125000000);
    pace_cap(&world.pace, 10000000);
    go(SECOND, false, 64);
    go(SECOND, false, 0); /* ranges of nothing: nobody asks */
    world.now_ns += 3600 * SECOND;
    CHECK_BETWEEN(99, brought(10 * SECOND, false, 10000000), 103);
}

static void test_when_to_look_again(void)
{
    struct pace pace = {0};

    pace_cap(&pace, 10000000);
    pace_look(&pace, 0, 0, 0, false, SECOND);
    CHECK(!pace_allows(&pace, 16));
    for (uint64_t now_ns = pace_next_ns(&pace, 16); !pace_allows(&pace, 16); now_ns = pace_next_ns(&pace, 16)) {
        CHECK(now_ns > pace.looked_ns);
        CHECK(now_ns < SECOND + 10 * MS);
        pace_look(&pace, 0, 0, 0, false, now_ns);
    }
    CHECK_EQ(pace_next_ns(&pace, 16), pace.looked_ns);
    pace_asked(&pace, 16);
    CHECK(pace_next_ns(&pace, 16) > pace.looked_ns + 6 * MS);
}

/* ------------------------------------------------------------------------------------------------- the link's rate */

static void test_below_the_link(void)
{
    begin(125000000);
    world.burst_bytes = 262144;
    go(SECOND, false, 64);
    CHECK_BETWEEN(99, PERCENT(pace_link_rate(&world.found), 125000000), 103);
    world.urgent_rate = 5000000;
    world.ranges_max = PF_LIMIT_BULK_RANGES_PACED_MAX;
    CHECK_BETWEEN(PF_LIMIT_PACE_PERCENT - 1, brought(3 * SECOND, true, 125000000), PF_LIMIT_PACE_PERCENT + 3);
}

/* Nobody has measured it when the first faults come. */
static void test_a_rate_that_is_not_known(void)
{
    begin(125000000);
    world.burst_bytes = 262144;
    world.ranges_max = 1;
    step(true, 16);
    CHECK(!pace_knows(&world.pace));
    while (!pace_knows(&world.pace))
        step(true, 16);
    CHECK_EQ((world.now_ns - world.pace.faults_ns) / MS, 200);
    world.ranges_max = PF_LIMIT_BULK_RANGES_PACED_MAX;
    go(SECOND, true, 16);
    CHECK_BETWEEN(99, PERCENT(pace_link_rate(&world.found), 125000000), 103);
    CHECK_BETWEEN(PF_LIMIT_PACE_PERCENT - 1, brought(SECOND, true, 125000000), PF_LIMIT_PACE_PERCENT + 3);
}

/* While faults go on and on: found within seconds, in both directions. */
static void test_another_link(void)
{
    begin(125000000);
    go(SECOND, false, 64);
    world.ranges_max = PF_LIMIT_BULK_RANGES_PACED_MAX;
    go(SECOND, true, 16);
    world.link_rate = 500000000;
    go(6 * SECOND, true, 16);
    CHECK_BETWEEN(PF_LIMIT_PACE_PERCENT - 1, brought(SECOND, true, 500000000), PF_LIMIT_PACE_PERCENT + 1);
    world.link_rate = 50000000;
    go(16 * SECOND, true, 16);
    CHECK_BETWEEN(PF_LIMIT_PACE_PERCENT - 1, brought(SECOND, true, 50000000), PF_LIMIT_PACE_PERCENT + 1);
}

/* One window may have met a server that was busy with something else. */
static void test_one_window_says_nothing(void)
{
    struct pace_link link = {0};
    uint64_t bytes = 0, at;

    for (at = 1; at < 200; at++)
        pace_link_look(&link, true, bytes += at < 100 ? 1000 : 50000, at * MS);
    CHECK_EQ(pace_link_rate(&link), 0);
    for (; at < 400; at++)
        pace_link_look(&link, true, bytes += 50000, at * MS);
    CHECK_EQ(pace_link_rate(&link) / 1000, 50000);
}

/* Of a link that is not kept busy, nothing can be said. */
static void test_idle_times_do_not_count(void)
{
    struct pace_link link = {0};
    uint64_t bytes = 0;

    for (uint64_t at = 1; at < 1000; at++) {
        bytes += 10000;
        pace_link_look(&link, at % 50 != 0, bytes, at * MS);
    }
    CHECK_EQ(pace_link_rate(&link), 0);
    for (uint64_t at = 1000; at < 1300; at++) {
        bytes += 10000;
        pace_link_look(&link, true, bytes, at * MS);
    }
    CHECK_EQ(pace_link_rate(&link) / 1000, 10000);
}

/* ------------------------------------------------------------------------------------------------------ real bytes */

static void connected(int domain, int fds[2])
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int listener;

    if (domain == AF_UNIX) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
        return;
    }
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(connect(fds[0], (struct sockaddr *)&address, sizeof(address)), 0);
    fds[1] = accept(listener, NULL, NULL);
    CHECK(fds[1] >= 0);
    close(listener);
}

static void send_bytes(int fds[2], size_t bytes)
{
    static char data[1000];
    size_t left = bytes;

    CHECK_EQ(send(fds[0], data, bytes, 0), (ssize_t)bytes);
    while (left > 0)
        left -= (size_t)recv(fds[1], data, sizeof(data), 0);
}

static void test_tcp_has_headers(void)
{
    struct wire wire = {0};
    uint64_t before;
    int fds[2];

    connected(AF_INET, fds);
    wire_look(&wire, fds[1], 0);
    before = wire_bytes(&wire);
    CHECK(before >= 2 * 54); /* what it takes to connect */
    CHECK(before <= 3 * 74);
    send_bytes(fds, 1000);
    send_bytes(fds, 1000);
    wire_look(&wire, fds[1], 2000);
    CHECK(wire.header_bytes == 54 || wire.header_bytes == 66);
    CHECK_EQ(wire_bytes(&wire) - before, 2000 + 2 * wire.header_bytes);
    before = wire_bytes(&wire);
    send_bytes(fds, 500); /* that nobody has looked at when the connection goes */
    wire_over(&wire, fds[1], 2500);
    CHECK(wire_bytes(&wire) - before == 554 || wire_bytes(&wire) - before == 566);
    close(fds[0]);
    close(fds[1]);
    before = wire_bytes(&wire);
    connected(AF_INET, fds);
    wire_look(&wire, fds[1], 0);
    CHECK(wire_bytes(&wire) > before);
    CHECK(wire_bytes(&wire) < before + 300);
    close(fds[0]);
    close(fds[1]);
}

static void test_a_unix_socket_has_none(void)
{
    struct wire wire = {0};
    int fds[2];

    connected(AF_UNIX, fds);
    send_bytes(fds, 900);
    wire_look(&wire, fds[1], 900);
    CHECK_EQ(wire_bytes(&wire), 900);
    wire_over(&wire, fds[1], 900);
    wire_look(&wire, fds[1], 50);
    CHECK_EQ(wire_bytes(&wire), 950);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    RUN(test_without_a_rate);
    RUN(test_a_cap_holds);
    RUN(test_a_cap_holds_at_any_time);
    RUN(test_moments_without_asks);
    RUN(test_a_cap_counts_urgent_pages);
    RUN(test_faults_beyond_a_cap);
    RUN(test_a_debt_has_an_end);
    RUN(test_nothing_is_owed_to_a_link);
    RUN(test_zeros_are_not_paid);
    RUN(test_what_costs_more_is_paid);
    RUN(test_a_cap_changes);
    RUN(test_a_cap_beyond_the_link);
    RUN(test_nothing_for_a_long_time);
    RUN(test_when_to_look_again);
    RUN(test_below_the_link);
    RUN(test_a_rate_that_is_not_known);
    RUN(test_another_link);
    RUN(test_one_window_says_nothing);
    RUN(test_idle_times_do_not_count);
    RUN(test_tcp_has_headers);
    RUN(test_a_unix_socket_has_none);
    return check_done();
}
