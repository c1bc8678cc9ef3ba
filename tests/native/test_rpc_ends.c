/* SPDX-License-Identifier: Apache-2.0 */
/* Ends at odd moments: while waiting, from within callbacks, twice, after the other end has gone on. */
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc_pair.h"
#include "rpc_raw.h"

static const struct rpc_script client_scripts[] = {
    {.path = "/c.echo", .messages = 1, .message_bytes = 8, .restarts = 50},
    {.path = "/c.open", .messages = 2, .message_bytes = 8, .keep_open = true},
    {.path = "/c.pullcancel", .messages = 5, .message_bytes = 8, .cancel_in_pull = true},
    {.path = "/c.serverpull", .messages = 1, .message_bytes = 8},
    {.path = "/c.bulk", .messages = 1, .message_bytes = 8},
    {.path = NULL},
};

static const struct rpc_script server_scripts[] = {
    {.path = "/s.echo", .echo = true},
    {.path = "/s.open", .echo = true, .keep_open = true},
    {.path = "/s.pullcancel", .echo = true},
    {.path = "/s.serverpull", .messages = 5, .message_bytes = 8, .cancel_in_pull = true},
    {.path = "/s.bulk", .messages = 50, .message_bytes = 200000},
    {.path = NULL},
};

static struct rpc_pair pair;
static struct rpc_raw *raw;

static void check_end(const struct rpc_call *call, uint32_t code, uint32_t reason)
{
    CHECK_EQ(call->ended, 1);
    CHECK_EQ(call->status.code, code);
    CHECK_EQ(call->status.reason, reason);
    CHECK_EQ(call->wrong, 0);
}

/* An answer that has begun and has nothing to say now is ended from outside; the first status counts. */
static void test_finish_while_waiting(void)
{
    struct grpc_status first = {.reason = PF_REASON_GOING_AWAY}, second = {.reason = PF_REASON_BUG};
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.open");
    rpc_pump(&pair);
    CHECK_EQ(call->got, 2);
    CHECK_EQ(call->ended, 0);
    grpc_finish(pair.server.calls[0].call, &first);
    grpc_finish(pair.server.calls[0].call, &second);
    grpc_resume(pair.server.calls[0].call);
    rpc_pump(&pair);
    check_end(call, GRPC_UNAVAILABLE, PF_REASON_GOING_AWAY);
    check_end(&pair.server.calls[0], GRPC_UNAVAILABLE, PF_REASON_GOING_AWAY);
    rpc_close(&pair);
}

/* Ended in the middle of a message: the rest of that leaves, and then the status. */
static void test_finish_within_a_message(void)
{
    struct grpc_status status = {.reason = PF_REASON_SUPERSEDED};
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.bulk");
    conn_write(pair.client.conn, pair.budget_bytes);
    rpc_turn_side(&pair.server, 50000);
    CHECK_EQ(pair.server.calls[0].sent, 1);
    grpc_finish(pair.server.calls[0].call, &status);
    rpc_pump(&pair);
    check_end(call, GRPC_ABORTED, PF_REASON_SUPERSEDED);
    CHECK_EQ(call->got, 1);
    CHECK_EQ(call->got_bytes, 200000);
    rpc_close(&pair);
}

/* Cancelled with a message in hand: that one is not sent. */
static void test_cancel_in_clients_pull(void)
{
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.pullcancel");
    rpc_pump(&pair);
    check_end(call, GRPC_CANCELLED, 0);
    CHECK(pair.server.calls[0].got <= 1);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    CHECK_EQ(pair.client.result, 0);
    CHECK_EQ(pair.server.result, 0);
    rpc_close(&pair);
}

static void test_cancel_in_servers_pull(void)
{
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.serverpull");
    rpc_pump(&pair);
    check_end(call, GRPC_CANCELLED, 0);
    CHECK(call->got <= 1);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_close(&pair);
}

static void test_cancel_within_a_message(void)
{
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.bulk");
    rpc_turn(&pair);
    rpc_turn(&pair);
    CHECK_EQ(call->ended, 0);
    grpc_cancel(call->call);
    rpc_pump(&pair);
    check_end(call, GRPC_CANCELLED, 0);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_close(&pair);
}

/* A new call from within the end of the last, 50 times; and none while the connection is being closed. */
static void test_start_from_within_ended(void)
{
    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_start(&pair, "/c.echo");
    rpc_pump(&pair);
    CHECK_EQ(pair.client.ended_count, 51);
    for (uint32_t i = 0; i < 51; i++)
        check_end(&pair.client.calls[i], GRPC_OK, 0);
    pair.client.restarted = 0;
    rpc_start(&pair, "/c.echo");
    rpc_start(&pair, "/c.echo");
    conn_close(pair.client.conn);
    pair.client.conn = NULL;
    CHECK_EQ(pair.client.ended_count, 53);
    CHECK_EQ(pair.client.calls[51].status.code, GRPC_UNAVAILABLE);
    CHECK(pair.client.calls[53].call == NULL);
    rpc_close(&pair);
}

static void test_clients_calls_have_a_limit(void)
{
    uint32_t begun = 0;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    while (begun < 2000 && rpc_start(&pair, "/c.open")->call != NULL)
        begun++;
    CHECK_EQ(begun, 1024);
    rpc_close(&pair);
}

/* ------------------------------------------------------------------------------------------ a server made by hand */

static struct rpc_call *begin(const char *path)
{
    struct grpc_settings short_fields = rpc_defaults;
    struct rpc_call *call;
    int fds[2];

    short_fields.header_bytes_max = 1000;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    raw = calloc(1, sizeof(*raw));
    raw->fd = fds[0];
    rpc_open_client(&pair, fds[1], client_scripts, &short_fields);
    rpc_raw_frame(raw, RAW_SETTINGS, 0, 0, NULL, 0);
    call = rpc_start(&pair, path);
    return call;
}

static void turn(void)
{
    for (int i = 0; i < 4; i++) {
        rpc_raw_flush(raw);
        rpc_turn_side(&pair.client, pair.budget_bytes);
        rpc_raw_collect(raw);
    }
}

static void end(void)
{
    rpc_close(&pair);
    close(raw->fd);
    free(raw);
}

/* The end comes when the client has cancelled already and its reset is under way. */
static void test_answer_after_cancel(void)
{
    struct rpc_call *call = begin("/c.open");
    uint8_t block[256];
    size_t used = rpc_raw_answer_block(block, "200", "application/grpc");

    turn();
    used = rpc_raw_field(block, used, "grpc-status", "0");
    grpc_cancel(call->call);
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | RAW_END_STREAM, 1, block, used);
    turn();
    check_end(call, GRPC_CANCELLED, 0);
    CHECK_EQ(pair.client.result, 0);
    end();
}

static void test_long_fields_of_an_answer(void)
{
    struct rpc_call *call = begin("/c.open");
    char value[1000];
    uint8_t block[2000];
    size_t used = rpc_raw_answer_block(block, "200", "application/grpc");

    memset(value, 'v', sizeof(value));
    value[sizeof(value) - 1] = 0;
    used = rpc_raw_field(block, used, "x-long", value);
    turn();
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS, 1, block, used);
    turn();
    check_end(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY);
    CHECK_EQ(pair.client.result, 0);
    end();
}

/* Text and reasons of strangers. */
static void test_status_of_a_stranger(void)
{
    struct rpc_call *call = begin("/c.open");
    char text[600];
    uint8_t block[2000];
    size_t used = rpc_raw_answer_block(block, "200", "application/grpc");

    memset(text, 'x', sizeof(text));
    memcpy(text, "%c3%A9%zz%0%", 12);
    text[sizeof(text) - 1] = 0;
    used = rpc_raw_field(block, used, "grpc-status", "8");
    used = rpc_raw_field(block, used, "grpc-message", text);
    used = rpc_raw_field(block, used, "pageferry-reason", "TOO_TIRED");
    used = rpc_raw_field(block, used, "pageferry-retry-after-ms", "-1");
    turn();
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | RAW_END_STREAM, 1, block, used);
    turn();
    check_end(call, GRPC_RESOURCE_EXHAUSTED, 0);
    CHECK_EQ(call->status.retry_after_ms, 0);
    CHECK(strncmp(call->status.message, "\xc3\xa9%zz%0%xxx", 11) == 0);
    CHECK_EQ(strlen(call->status.message), GRPC_TEXT_BYTES - 1);
    end();
}

/* "100 Continue" and its like come before the answer and are none. */
static void test_informational_answer(void)
{
    struct rpc_call *call = begin("/c.open");
    uint8_t block[256];
    size_t used = rpc_raw_field(block, 0, ":status", "103");

    turn();
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS, 1, block, used);
    used = rpc_raw_answer_block(block, "200", "application/grpc");
    used = rpc_raw_field(block, used, "grpc-status", "0");
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | RAW_END_STREAM, 1, block, used);
    turn();
    check_end(call, GRPC_OK, 0);
    end();
}

/* Nobody asked for it: the connection ends. */
static void test_pushed_stream(void)
{
    uint8_t block[256] = {0, 0, 0, 2};
    struct rpc_call *call = begin("/c.open");
    size_t used = 4 + rpc_raw_request_block(block + 4, "/s.echo");

    turn();
    rpc_raw_frame(raw, RAW_SETTINGS, RAW_ACK, 0, NULL, 0); /* ENABLE_PUSH 0 holds from here on */
    rpc_raw_frame(raw, RAW_PUSH, RAW_END_HEADERS, 1, block, used);
    turn();
    CHECK(pair.client.result < 0);
    CHECK_EQ(call->ended, 0);
    end();
}

int main(void)
{
    RUN(test_finish_while_waiting);
    RUN(test_finish_within_a_message);
    RUN(test_cancel_in_clients_pull);
    RUN(test_cancel_in_servers_pull);
    RUN(test_cancel_within_a_message);
    RUN(test_start_from_within_ended);
    RUN(test_clients_calls_have_a_limit);
    RUN(test_answer_after_cancel);
    RUN(test_long_fields_of_an_answer);
    RUN(test_status_of_a_stranger);
    RUN(test_informational_answer);
    RUN(test_pushed_stream);
    return check_done();
}
