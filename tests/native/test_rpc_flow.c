/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When messages are pulled: not before the one before has left, not without a window, not beyond the budget of a turn.
 * A stalled reader therefore costs one message, and a large answer does not stop a small one. And how messages are cut.
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc_pair.h"
#include "rpc_raw.h"

static const struct rpc_script client_scripts[] = {
    {.path = "/c.echo", .messages = 1, .message_bytes = 8},
    {.path = "/c.pages", .messages = 1, .message_bytes = 20},
    {.path = "/c.bulk", .messages = 1, .message_bytes = 20},
    {.path = "/c.hesitant", .messages = 5, .message_bytes = 20, .hesitations = 3},
    {.path = "/c.up", .messages = 50, .message_bytes = 50000},
    {.path = NULL},
};

static const struct rpc_script server_scripts[] = {
    {.path = "/s.echo", .echo = true},
    {.path = "/s.pages", .messages = 300, .message_bytes = 4096},
    {.path = "/s.bulk", .messages = 200, .message_bytes = 262144},
    {.path = "/s.hesitant", .echo = true, .hesitations = 3},
    {.path = "/s.up", .echo = true},
    {.path = NULL},
};

static struct rpc_pair pair;
static struct rpc_raw *raw;

static void begin_raw(const struct grpc_settings *settings)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    raw = calloc(1, sizeof(*raw));
    raw->fd = fds[0];
    rpc_open_server(&pair, fds[1], server_scripts, settings);
    rpc_raw_preface(raw);
}

/* Until nothing moves. */
static void turn_raw(void)
{
    size_t before;

    do {
        before = raw->got + raw->used;
        rpc_raw_flush(raw);
        rpc_turn_side(&pair.server, pair.budget_bytes);
        rpc_raw_collect(raw);
    } while (raw->got + raw->used != before);
}

static void end_raw(void)
{
    rpc_close(&pair);
    close(raw->fd);
    free(raw);
}

static void check_calls(uint32_t count, uint32_t got)
{
    for (uint32_t i = 0; i < count; i++) {
        CHECK_EQ(pair.client.calls[i].ended, 1);
        CHECK_EQ(pair.client.calls[i].status.code, GRPC_OK);
        CHECK_EQ(pair.client.calls[i].got, got);
        CHECK_EQ(pair.client.calls[i].wrong, 0);
    }
    CHECK_EQ(pair.client.result, 0);
    CHECK_EQ(pair.server.result, 0);
}

static void test_small_windows(void)
{
    static const uint32_t windows[] = {1, 5, 100, 4100, 65535};

    for (size_t i = 0; i < sizeof(windows) / sizeof(windows[0]); i++) {
        struct grpc_settings small = rpc_defaults;
        small.stream_window_bytes = windows[i];
        small.connection_window_bytes = 65535;
        rpc_open(&pair, client_scripts, server_scripts, &small, &small);
        rpc_start(&pair, windows[i] < 100 ? "/c.echo" : "/c.pages");
        rpc_pump(&pair);
        check_calls(1, windows[i] < 100 ? 1 : 300);
        rpc_close(&pair);
    }
}

static void test_both_ways_at_once(void)
{
    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    for (int i = 0; i < 4; i++)
        rpc_start(&pair, "/c.up");
    rpc_pump(&pair);
    check_calls(4, 50);
    rpc_close(&pair);
}

static void test_any_budget(void)
{
    static const size_t budgets[] = {1, 100, 20000, 1 << 20};

    for (size_t i = 0; i < sizeof(budgets) / sizeof(budgets[0]); i++) {
        pair.budget_bytes = budgets[i];
        rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
        for (int j = 0; j < 4; j++)
            rpc_start(&pair, "/c.pages");
        rpc_pump(&pair);
        check_calls(4, 300);
        rpc_close(&pair);
    }
}

/* The peer has opened no window: nothing is pulled, and there is nothing to write. */
static void test_no_window(void)
{
    begin_raw(NULL);
    rpc_raw_setting(raw, 4, 0);
    rpc_raw_request(raw, 1, "/s.pages", RAW_END_STREAM);
    turn_raw();
    CHECK_EQ(pair.server.calls[0].sent, 0);
    CHECK(!conn_wants_write(pair.server.conn));
    rpc_raw_number(raw, RAW_WINDOW, 1, 1);
    turn_raw();
    CHECK_EQ(pair.server.calls[0].sent, 1);
    rpc_raw_number(raw, RAW_WINDOW, 1, 4100);
    turn_raw();
    CHECK_EQ(pair.server.calls[0].sent, 1); /* it has left; the window is closed, the next is not pulled */
    rpc_raw_number(raw, RAW_WINDOW, 1, 4101 * 2 + 1);
    turn_raw();
    CHECK_EQ(pair.server.calls[0].sent, 4);
    end_raw();
}

static uint32_t pulled_by_server(uint32_t calls)
{
    uint32_t pulled = 0;

    for (uint32_t i = 0; i < calls; i++)
        pulled += pair.server.calls[i].sent;
    return pulled;
}

#define MANY_CALLS 100

/* Calls that have not begun to answer are pulled within the budget, and only while the connection has a window. */
static void test_no_connection_window(void)
{
    uint32_t pulled;

    begin_raw(NULL);
    rpc_raw_setting(raw, 4, 1 << 20);
    for (uint32_t i = 0; i < MANY_CALLS; i++)
        rpc_raw_request(raw, 2 * i + 1, "/s.pages", RAW_END_STREAM);
    CHECK(rpc_raw_flush(raw));
    conn_read(pair.server.conn);
    CHECK_EQ(pair.server.call_count, MANY_CALLS);
    CHECK_EQ(conn_write(pair.server.conn, 20000), 1);
    CHECK(pulled_by_server(MANY_CALLS) <= 20000 / 4096 + 2);
    turn_raw();
    pulled = pulled_by_server(MANY_CALLS); /* the window's 65535 bytes, and what was begun just before it closed */
    CHECK(pulled >= 65535 / 4101 && pulled <= 65535 / 4101 + 18);
    CHECK(!conn_wants_write(pair.server.conn));
    rpc_raw_number(raw, RAW_WINDOW, 0, 100 * 4101);
    turn_raw();
    CHECK(pulled_by_server(MANY_CALLS) >= pulled + 80);
    end_raw();
}

/* Nobody reads: what was pulled stays what the socket and one turn's buffer took. */
static void test_stalled_reader(void)
{
    struct grpc_settings wide = rpc_defaults;

    wide.stream_window_bytes = wide.connection_window_bytes = 1 << 30;
    rpc_open(&pair, client_scripts, server_scripts, &wide, NULL);
    rpc_pump(&pair);
    for (int i = 0; i < 4; i++)
        rpc_start(&pair, "/c.bulk");
    conn_write(pair.client.conn, pair.budget_bytes);
    for (int i = 0; i < 100; i++)
        rpc_turn_side(&pair.server, pair.budget_bytes);
    CHECK(pulled_by_server(4) >= 4 && pulled_by_server(4) <= 8);
    CHECK(conn_wants_write(pair.server.conn));
    rpc_pump(&pair);
    check_calls(4, 200);
    rpc_close(&pair);
}

/* A page asked while 50 MiB are under way comes within the turns that its own way takes. */
static void test_large_answer_does_not_stop_a_small_one(void)
{
    struct rpc_call *small;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_start(&pair, "/c.bulk");
    for (int i = 0; i < 20; i++)
        rpc_turn(&pair);
    CHECK(pair.client.calls[0].got > 0 && pair.client.calls[0].got < 100);
    small = rpc_start(&pair, "/c.echo");
    for (int i = 0; i < 4; i++)
        rpc_turn(&pair);
    CHECK_EQ(small->ended, 1);
    CHECK_EQ(pair.client.calls[0].ended, 0);
    rpc_pump(&pair);
    CHECK_EQ(pair.client.calls[0].got, 200);
    rpc_close(&pair);
}

/* Two large answers: their messages come in turns. */
static void test_turns_interleave(void)
{
    char *first_b;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_start(&pair, "/c.bulk");
    rpc_start(&pair, "/c.bulk");
    rpc_pump(&pair);
    check_calls(2, 200);
    first_b = memchr(pair.client.order, 'b', pair.client.order_count);
    CHECK(first_b != NULL && first_b - pair.client.order < 4);
    for (uint32_t i = 8; i < 392; i++) {
        uint32_t of_b = 0;
        for (uint32_t j = i - 8; j < i; j++)
            of_b += pair.client.order[j] == 'b';
        CHECK(of_b > 0 && of_b < 8);
    }
    rpc_close(&pair);
}

/* Who says "nothing now" and resumes from within that very pull is asked again, in another turn. */
static void test_resumed_within_pull(void)
{
    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_start(&pair, "/c.hesitant");
    for (int i = 0; i < 20; i++)
        rpc_turn(&pair); /* some of them move no byte */
    check_calls(1, 5);
    CHECK_EQ(pair.client.calls[0].hesitated, 3);
    CHECK_EQ(pair.server.calls[0].hesitated, 3);
    rpc_close(&pair);
}

static void test_budget_bounds_one_turn(void)
{
    struct conn_traffic before, after;
    uint32_t sent;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_start(&pair, "/c.pages");
    conn_write(pair.client.conn, pair.budget_bytes);
    conn_read(pair.server.conn);
    conn_traffic(pair.server.conn, &before);
    CHECK_EQ(conn_write(pair.server.conn, 20000), 1);
    conn_traffic(pair.server.conn, &after);
    sent = pair.server.calls[0].sent;
    CHECK_EQ(after.turns - before.turns, 1);
    CHECK(after.out_bytes - before.out_bytes >= 20000 && after.out_bytes - before.out_bytes < 20000 + 4200);
    CHECK_EQ(sent, 5);
    conn_traffic(pair.server.conn, &before);
    CHECK_EQ(conn_write(pair.server.conn, 100000), 1); /* more than is gathered at once: written in two */
    conn_traffic(pair.server.conn, &after);
    CHECK_EQ(after.turns - before.turns, 2);
    CHECK(after.out_bytes - before.out_bytes >= 100000);
    rpc_close(&pair);
}

/* The prefix and the message cut at every byte, over frames. */
static void test_cut_at_every_byte(void)
{
    uint8_t message[5 + 30] = {0, 0, 0, 0, 30};

    for (size_t i = 0; i < 30; i++)
        message[5 + i] = rpc_byte(0, i);
    for (size_t cut = 1; cut < sizeof(message); cut++) {
        begin_raw(NULL);
        rpc_raw_request(raw, 1, "/s.echo", 0);
        rpc_raw_frame(raw, RAW_DATA, 0, 1, message, cut);
        turn_raw();
        CHECK_EQ(pair.server.calls[0].got, 0);
        rpc_raw_frame(raw, RAW_DATA, RAW_END_STREAM, 1, message + cut, sizeof(message) - cut);
        turn_raw();
        CHECK_EQ(pair.server.calls[0].got, 1);
        CHECK_EQ(pair.server.calls[0].wrong, 0);
        CHECK_EQ(pair.server.calls[0].ended, 1);
        end_raw();
    }
}

/* All that a client sends, byte by byte through the socket; two messages in one frame. */
static void test_byte_by_byte(void)
{
    uint8_t messages[2 * 5 + 30] = {0, 0, 0, 0, 10, 0};
    size_t total;

    for (size_t i = 0; i < 10; i++)
        messages[5 + i] = rpc_byte(0, i);
    messages[15 + 4] = 20;
    for (size_t i = 0; i < 20; i++)
        messages[20 + i] = rpc_byte(1, i);
    begin_raw(NULL);
    rpc_raw_request(raw, 1, "/s.echo", 0);
    rpc_raw_frame(raw, RAW_DATA, RAW_END_STREAM, 1, messages, sizeof(messages));
    total = raw->used;
    for (size_t i = 0; i < total; i++) {
        send(raw->fd, raw->out + i, 1, MSG_NOSIGNAL);
        rpc_turn_side(&pair.server, pair.budget_bytes);
    }
    CHECK_EQ(pair.server.result, 0);
    CHECK_EQ(pair.server.calls[0].got, 2);
    CHECK_EQ(pair.server.calls[0].wrong, 0);
    CHECK_EQ(pair.server.calls[0].ended, 1);
    CHECK_EQ(pair.server.calls[0].status.code, GRPC_OK);
    end_raw();
}

static int option_of(int fd, int name)
{
    int value = 0;
    socklen_t length = sizeof(value);

    getsockopt(fd, IPPROTO_TCP, name, &value, &length);
    return value;
}

/* A socket of TCP that is still connecting; it gets the options that keep its queue short. */
static void test_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct pollfd ready = {.events = POLLIN};

    CHECK_EQ(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
    CHECK_EQ(listen(listener, 1), 0);
    CHECK_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
    connect(fd, (struct sockaddr *)&address, sizeof(address));
    rpc_open_client(&pair, fd, client_scripts, NULL);
    CHECK_EQ(conn_fd(pair.client.conn), fd);
    rpc_start(&pair, "/c.pages");
    rpc_turn(&pair);
    rpc_open_server(&pair, accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), server_scripts, NULL);
    for (int i = 0; i < 10000 && pair.client.ended_count == 0; i++) {
        rpc_turn(&pair);
        ready.fd = conn_fd(pair.client.conn);
        poll(&ready, 1, 1);
    }
    check_calls(1, 300);
    CHECK(option_of(fd, TCP_NODELAY) != 0);
    CHECK_EQ(option_of(fd, TCP_NOTSENT_LOWAT), PF_LIMIT_NOTSENT_LOWAT_BYTES);
    CHECK_EQ(option_of(fd, TCP_USER_TIMEOUT), PF_LIMIT_TCP_USER_TIMEOUT_MS);
    rpc_close(&pair);
    close(listener);
}

/* What is no socket stays the caller's. */
static void test_no_socket(void)
{
    struct conn *conn = NULL;
    int fds[2];

    CHECK_EQ(pipe(fds), 0);
    CHECK(conn_open(fds[0], GRPC_CLIENT, &rpc_defaults, NULL, NULL, &conn) < 0);
    CHECK(conn == NULL);
    CHECK_EQ(close(fds[0]), 0);
    CHECK_EQ(close(fds[1]), 0);
}

int main(void)
{
    RUN(test_small_windows);
    RUN(test_both_ways_at_once);
    RUN(test_any_budget);
    RUN(test_no_window);
    RUN(test_no_connection_window);
    RUN(test_stalled_reader);
    RUN(test_large_answer_does_not_stop_a_small_one);
    RUN(test_turns_interleave);
    RUN(test_resumed_within_pull);
    RUN(test_budget_bounds_one_turn);
    RUN(test_cut_at_every_byte);
    RUN(test_byte_by_byte);
    RUN(test_tcp);
    RUN(test_no_socket);
    return check_done();
}
