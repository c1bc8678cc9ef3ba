/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A link that comes and goes: dialled, refused, hung, lost, held, dropped. Time is the test's; what the sockets do is
 * waited for with a limit (20 s).
 */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "client/link.h"
#include "client_server.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "serve_client.h"

#define MS UINT64_C(1000000)
#define START_NS (UINT64_C(1000) * 1000 * MS)

static struct link link_;
static struct address address;
static struct stats stats;
static int epoll_fd;
static uint64_t now_ns;
static uint32_t ups, downs, ended;
static char last_why[256];

static void on_up(void *owner)
{
    (void)owner;
    ups++;
}

static void on_down(void *owner, const char *why)
{
    (void)owner;
    downs++;
    snprintf(last_why, sizeof(last_why), "%s", why);
}

static int on_message(void *owner, struct grpc_call *call, struct grpc_bytes message)
{
    (void)owner, (void)call, (void)message;
    return 0;
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *call, struct grpc_bytes *message)
{
    (void)owner, (void)call, (void)message;
    return GRPC_PULLED_NOTHING;
}

static void on_ended(void *owner, struct grpc_call *call, const struct grpc_status *status)
{
    (void)owner, (void)call, (void)status;
    ended++;
}

static const struct grpc_owner calls = {.message = on_message, .pull = on_pull, .ended = on_ended};
static const struct link_events events = {.up = on_up, .down = on_down};

static void begin_at(const char *where, const char *second)
{
    struct link_options options = {.address = &address, .calls = &calls, .events = &events,
                                   .stream_window_bytes = 65535, .connection_window_bytes = 65535, .stats = &stats,
                                   .epoll_tag = 7};
    struct address other;
    char error[256];

    memset(&stats, 0, sizeof(stats));
    CHECK_EQ(address_resolve(where, &address, error, sizeof(error)), 0);
    if (second != NULL) {
        CHECK_EQ(address_resolve(second, &other, error, sizeof(error)), 0);
        address.entries[address.count++] = other.entries[0];
    }
    ups = downs = ended = 0;
    now_ns = START_NS;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    options.epoll_fd = epoll_fd;
    link_start(&link_, &options);
}

static void end(void)
{
    link_close(&link_);
    close(epoll_fd);
}

/* One turn of an owner; true if epoll had something. */
static bool turn(int wait_ms)
{
    struct epoll_event event;
    int count;

    link_tick(&link_, now_ns);
    link_flush(&link_, now_ns);
    count = epoll_wait(epoll_fd, &event, 1, wait_ms);
    if (count == 1) {
        CHECK_EQ(event.data.u64, 7);
        link_ready(&link_, event.events, now_ns);
        link_flush(&link_, now_ns);
    }
    return count == 1;
}

#define TURNS_UNTIL(condition) CLIENT_UNTIL((turn(1), condition))

/* Nothing to do, and epoll does not say so again and again. */
static bool rests(void)
{
    int said = 0;

    for (int i = 0; i < 50; i++)
        said += turn(1);
    return said < 25;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void test_up_and_lost(void)
{
    struct server server;

    server_start(&server);
    server_go(&server);
    begin_at(server.address, NULL);
    CHECK_EQ(link_next_ns(&link_), 0); /* dials at once */
    CHECK(TURNS_UNTIL(ups == 1));
    CHECK(link_next_ns(&link_) == UINT64_MAX);
    CHECK(rests());
    CHECK(grpc_start(conn_session(link_.conn), PF_PATH_FETCH_PAGES, NULL) != NULL);
    CHECK(rests());
    link_is_well(&link_);
    server_cut(&server);
    CHECK(TURNS_UNTIL(downs == 1));
    CHECK_EQ(ended, 1);
    CHECK_EQ(stats_get(&stats, STATS_links_lost_total), 1);
    CHECK(link_next_ns(&link_) <= now_ns); /* it was well: at once */
    CHECK(TURNS_UNTIL(ups == 2));
    CHECK(stats_get(&stats, STATS_wire_in_bytes_total) > 0);
    CHECK(stats_get(&stats, STATS_wire_out_bytes_total) > 0);
    end();
    server_stop(&server);
}

/* The delay doubles from the least to the most, with jitter, and its half at least is waited for. */
static void test_refused(void)
{
    uint64_t limit_ns = PF_LIMIT_REDIAL_MIN_MS * MS, waited_ns;

    begin_at("unix:/nonexistent/socket", NULL);
    turn(0);
    CHECK_EQ(downs, 1);
    CHECK(strstr(last_why, "dial") != NULL);
    CHECK_EQ(link_next_ns(&link_), now_ns); /* the first time it is tried again at once */
    for (uint32_t tries = 2; tries < 14; tries++) {
        turn(0);
        CHECK_EQ(downs, tries);
        waited_ns = link_next_ns(&link_) - now_ns;
        CHECK(waited_ns >= limit_ns / 2 && waited_ns <= limit_ns);
        now_ns += waited_ns - 1;
        turn(0);
        CHECK_EQ(downs, tries); /* not before */
        now_ns += 1;
        limit_ns = 2 * limit_ns < PF_LIMIT_REDIAL_MAX_MS * MS ? 2 * limit_ns : PF_LIMIT_REDIAL_MAX_MS * MS;
    }
    CHECK_EQ(ups, 0);
    CHECK_EQ(stats_get(&stats, STATS_links_lost_total), 0); /* there was none */
    end();
}

static void test_several_addresses(void)
{
    struct server server;

    server_start(&server);
    server_go(&server);
    begin_at("unix:/nonexistent/socket", server.address);
    CHECK(TURNS_UNTIL(ups == 1));
    CHECK_EQ(downs, 1);
    end();
    server_stop(&server);
}

/* A listener whose queue is full leaves the dialler hanging. */
static void test_a_dial_that_hangs(void)
{
    char where[64], error[256];
    uint16_t port;
    int listener = serve_listen(&port), fill[8];

    CHECK_EQ(listen(listener, 0), 0);
    snprintf(where, sizeof(where), "127.0.0.1:%u", port);
    CHECK_EQ(address_resolve(where, &address, error, sizeof(error)), 0);
    for (int i = 0; i < 8; i++) {
        fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        CHECK(connect(fill[i], (struct sockaddr *)&address.entries[0].storage, address.entries[0].length) == 0 ||
              errno == EINPROGRESS);
    }
    for (int i = 0; i < 50; i++)
        client_moment();
    begin_at(where, NULL);
    for (int i = 0; i < 20; i++)
        turn(1);
    CHECK_EQ(ups, 0);
    CHECK_EQ(downs, 0);
    CHECK_EQ(link_next_ns(&link_), START_NS + PF_LIMIT_DIAL_TIMEOUT_MS * MS);
    CHECK(rests());
    now_ns = link_next_ns(&link_);
    turn(0);
    CHECK_EQ(downs, 1);
    end();
    for (int i = 0; i < 8; i++)
        close(fill[i]);
    close(listener);
}

static void test_held(void)
{
    struct linger reset = {.l_onoff = 1};
    uint16_t port;
    int listener, peer;
    char where[64], bytes[9] = {0, 0, 0, 4}; /* an empty SETTINGS */

    listener = serve_listen(&port);
    snprintf(where, sizeof(where), "127.0.0.1:%u", port);
    begin_at(where, NULL);
    CHECK(TURNS_UNTIL(ups == 1));
    peer = accept(listener, NULL, NULL);
    CHECK_EQ(send(peer, bytes, sizeof(bytes), 0), sizeof(bytes));
    CHECK(TURNS_UNTIL(stats_get(&stats, STATS_wire_in_bytes_total) == 9));
    link_hold(&link_, true, now_ns);
    CHECK_EQ(send(peer, bytes, sizeof(bytes), 0), sizeof(bytes));
    CHECK(rests());
    CHECK_EQ(stats_get(&stats, STATS_wire_in_bytes_total), 9);
    link_hold(&link_, false, now_ns);
    CHECK(TURNS_UNTIL(stats_get(&stats, STATS_wire_in_bytes_total) == 18));
    link_hold(&link_, true, now_ns);
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    close(peer); /* a reset is heard, held or not, and not again and again */
    CHECK(TURNS_UNTIL(downs == 1));
    CHECK(!link_.held);
    end();
    close(listener);
}

static void test_dropped(void)
{
    struct server server;

    server_start(&server);
    server_go(&server);
    begin_at(server.address, NULL);
    link_drop(&link_, "there is nothing to drop", now_ns);
    CHECK_EQ(downs, 0);
    CHECK(TURNS_UNTIL(ups == 1));
    CHECK(grpc_start(conn_session(link_.conn), PF_PATH_FETCH_PAGES, NULL) != NULL);
    link_drop(&link_, "no faith", now_ns);
    CHECK_EQ(downs, 1);
    CHECK_EQ(ended, 1);
    CHECK(strcmp(last_why, "no faith") == 0);
    CHECK(TURNS_UNTIL(ups == 2));
    link_drop(&link_, "none", now_ns); /* never well: the delay grows */
    CHECK(link_next_ns(&link_) > now_ns);
    end();
    server_stop(&server);
}

/* What answers is no HTTP/2. */
static void test_not_our_protocol(void)
{
    uint16_t port;
    int listener = serve_listen(&port), peer;
    char where[64];
    static const char words[] = "HTTP/1.1 400 Bad Request\r\n\r\nthis is not what you are looking for at all";

    snprintf(where, sizeof(where), "127.0.0.1:%u", port);
    begin_at(where, NULL);
    CHECK(TURNS_UNTIL(ups == 1));
    peer = accept(listener, NULL, NULL);
    CHECK_EQ(send(peer, words, sizeof(words) - 1, 0), sizeof(words) - 1);
    CHECK(TURNS_UNTIL(downs == 1));
    end();
    close(peer);
    close(listener);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(test_up_and_lost);
    RUN(test_refused);
    RUN(test_several_addresses);
    RUN(test_a_dial_that_hangs);
    RUN(test_held);
    RUN(test_dropped);
    RUN(test_not_our_protocol);
    return check_done();
}
