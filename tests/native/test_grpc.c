/* SPDX-License-Identifier: Apache-2.0 */
/* Calls of our client with our server: every way that they go and end. Floods and broken bytes: test_rpc_floods.c. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc_pair.h"

static const struct rpc_script client_scripts[] = {
    {.path = "/c.echo", .messages = 1, .message_bytes = 8},
    {.path = "/c.many", .messages = 500, .message_bytes = 1000},
    {.path = "/c.empty", .messages = 3, .message_bytes = 0},
    {.path = "/c.large", .messages = 3, .message_bytes = 1 << 20},
    {.path = "/c.pages", .messages = 1, .message_bytes = 20},
    {.path = "/c.refused", .messages = 1, .message_bytes = 20},
    {.path = "/c.late", .messages = 1, .message_bytes = 20},
    {.path = "/c.early", .messages = 1, .message_bytes = 20},
    {.path = "/c.dislikes", .messages = 1, .message_bytes = 20},
    {.path = "/c.nothing", .messages = 1, .message_bytes = 20},
    {.path = "/c.held", .messages = 1, .message_bytes = 20, .keep_open = true},
    {.path = "/c.open", .keep_open = true},
    {.path = "/c.cancels", .messages = 1, .message_bytes = 20, .cancel = true},
    {.path = "/c.bad", .messages = 1, .message_bytes = 20, .message_result = -PF_REASON_MISMATCH},
    {.path = "/c.servercancels", .messages = 1, .message_bytes = 20},
    {.path = "/c.full", .messages = 1, .message_bytes = 20, .no_memory = true},
    {.path = NULL},
};

static const struct rpc_script server_scripts[] = {
    {.path = "/s.echo", .echo = true},
    {.path = "/s.many", .echo = true},
    {.path = "/s.empty", .echo = true},
    {.path = "/s.large", .echo = true},
    {.path = "/s.pages", .messages = 300, .message_bytes = 4096},
    {.path = "/s.refused", .refuse_opened = true, .finish = {.reason = PF_REASON_NO_SUCH_IMAGE}},
    {.path = "/s.late",
     .messages = 2,
     .message_bytes = 4096,
     .finish = {GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY, .retry_after_ms = 100, .message = "100% \t\xc3\xa9"}},
    {.path = "/s.early", .messages = 2, .message_bytes = 4096, .finish_early = true},
    {.path = "/s.dislikes", .messages = 1, .message_bytes = 5, .message_result = -PF_REASON_OUT_OF_IMAGE},
    {.path = "/s.held", .keep_open = true},
    {.path = "/s.open", .finish = {.reason = PF_REASON_SUPERSEDED}},
    {.path = "/s.cancels", .messages = 100, .message_bytes = 50000},
    {.path = "/s.bad", .messages = 100, .message_bytes = 50000},
    {.path = "/s.servercancels", .keep_open = true, .cancel = true},
    {.path = "/s.full", .messages = 1, .message_bytes = 1 << 20},
    {.path = NULL},
};

static struct rpc_pair pair;

/* One call from its beginning to its end. */
static struct rpc_call *one_call(const char *path)
{
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, path);
    CHECK(call->call != NULL);
    rpc_pump(&pair);
    CHECK_EQ(pair.client.result, 0);
    CHECK_EQ(pair.server.result, 0);
    return call;
}

static void check_end(const struct rpc_call *call, uint32_t code, uint32_t reason)
{
    CHECK_EQ(call->ended, 1);
    CHECK_EQ(call->status.code, code);
    CHECK_EQ(call->status.reason, reason);
    CHECK_EQ(call->wrong, 0);
}

static void test_unary(void)
{
    struct rpc_call *call = one_call("/c.echo");

    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 1);
    CHECK_EQ(call->got_bytes, 8);
    check_end(&pair.server.calls[0], GRPC_OK, 0);
    CHECK(pair.server.calls[0].half_closed);
    CHECK_EQ(grpc_open_calls(conn_session(pair.client.conn)), 0);
    CHECK_EQ(grpc_open_calls(conn_session(pair.server.conn)), 0);
    rpc_close(&pair);
}

/* Fields, message and half-close of a call leave in one write, and so does the whole answer. */
static void test_unary_is_two_writes(void)
{
    struct conn_traffic before, after;

    one_call("/c.echo");
    conn_traffic(pair.client.conn, &before);
    rpc_start(&pair, "/c.echo");
    CHECK_EQ(conn_write(pair.client.conn, pair.budget_bytes), 0);
    CHECK_EQ(conn_read(pair.server.conn), 0);
    CHECK_EQ(conn_write(pair.server.conn, pair.budget_bytes), 0);
    CHECK_EQ(conn_read(pair.client.conn), 0);
    conn_traffic(pair.client.conn, &after);
    CHECK_EQ(after.turns - before.turns, 2);
    CHECK_EQ(pair.client.ended_count, 2);
    rpc_close(&pair);
}

static void test_bidi(void)
{
    struct rpc_call *call = one_call("/c.many");

    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 500);
    CHECK_EQ(call->got_bytes, 500 * 1000);
    rpc_close(&pair);
}

static void test_empty_messages(void)
{
    struct rpc_call *call = one_call("/c.empty");

    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 3);
    CHECK_EQ(call->got_bytes, 0);
    rpc_close(&pair);
}

/* 1 MiB is more than a frame, than the stream's window, than the budget of a turn and than the socket takes. */
static void test_large_messages(void)
{
    struct rpc_call *call = one_call("/c.large");

    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 3);
    CHECK_EQ(call->got_bytes, 3 << 20);
    rpc_close(&pair);
}

static void test_gathered_in_callers_memory(void)
{
    struct rpc_call *call;

    pair.client.memory = malloc(2 << 20);
    call = one_call("/c.large");
    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 3);
    CHECK_EQ(call->gathered, 3);
    rpc_close(&pair);
}

/* What comes whole in one piece is not copied: a page is seldom gathered. */
static void test_small_messages_are_not_gathered(void)
{
    struct rpc_call *call;

    pair.client.memory = malloc(2 << 20);
    call = one_call("/c.pages");
    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 300);
    CHECK_EQ(call->gathered, 0);
    rpc_close(&pair);
}

static void test_no_memory_to_gather(void)
{
    struct rpc_call *call;

    pair.client.memory = malloc(1);
    call = one_call("/c.full");
    check_end(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY);
    CHECK_EQ(call->got, 0);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_close(&pair);
}

static void test_refused_when_opened(void)
{
    struct rpc_call *call = one_call("/c.refused");

    check_end(call, GRPC_NOT_FOUND, PF_REASON_NO_SUCH_IMAGE);
    CHECK(strcmp(call->status.message, "there is no image or session of this name") == 0);
    check_end(&pair.server.calls[0], GRPC_NOT_FOUND, PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(pair.server.calls[0].got, 0);
    rpc_close(&pair);
}

static void test_unknown_method(void)
{
    struct rpc_call *call = one_call("/c.nothing");

    check_end(call, GRPC_UNIMPLEMENTED, PF_REASON_UNSUPPORTED);
    rpc_close(&pair);
}

static void test_status_after_messages(void)
{
    struct rpc_call *call = one_call("/c.late");

    check_end(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY);
    CHECK_EQ(call->got, 2);
    CHECK_EQ(call->status.retry_after_ms, 100);
    CHECK(strcmp(call->status.message, "100% \t\xc3\xa9") == 0);
    rpc_close(&pair);
}

/* Finished while a message is handed over: that one leaves, no other. */
static void test_finish_with_the_first_message(void)
{
    struct rpc_call *call = one_call("/c.early");

    check_end(call, GRPC_OK, 0);
    CHECK_EQ(call->got, 1);
    rpc_close(&pair);
}

static void test_server_dislikes_a_message(void)
{
    struct rpc_call *call = one_call("/c.dislikes");

    check_end(call, GRPC_OUT_OF_RANGE, PF_REASON_OUT_OF_IMAGE);
    check_end(&pair.server.calls[0], GRPC_OUT_OF_RANGE, PF_REASON_OUT_OF_IMAGE);
    rpc_close(&pair);
}

static void test_client_dislikes_a_message(void)
{
    struct rpc_call *call = one_call("/c.bad");

    check_end(call, GRPC_FAILED_PRECONDITION, PF_REASON_MISMATCH);
    CHECK_EQ(call->got, 1);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_close(&pair);
}

/* A status may come while the client is still open; it then sends no more. */
static void test_server_ends_first(void)
{
    struct rpc_call *call = one_call("/c.open");

    check_end(call, GRPC_ABORTED, PF_REASON_SUPERSEDED);
    check_end(&pair.server.calls[0], GRPC_ABORTED, PF_REASON_SUPERSEDED);
    CHECK(!pair.server.calls[0].half_closed);
    rpc_close(&pair);
}

static void test_half_close_order(void)
{
    struct rpc_call *call = one_call("/c.held");
    struct rpc_call *served = &pair.server.calls[0];
    struct grpc_status good = {0};

    CHECK_EQ(call->ended, 0);
    CHECK_EQ(served->got, 1);
    CHECK(!served->half_closed);
    grpc_finish(served->call, &good);
    rpc_pump(&pair);
    check_end(call, GRPC_OK, 0);
    check_end(served, GRPC_OK, 0);
    rpc_close(&pair);
}

static void test_cancel_by_client(void)
{
    struct rpc_call *call = one_call("/c.cancels");

    check_end(call, GRPC_CANCELLED, 0);
    CHECK_EQ(call->got, 1);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    CHECK(pair.server.calls[0].sent < 100);
    rpc_close(&pair);
}

static void test_cancel_before_it_was_sent(void)
{
    struct rpc_call *call;

    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    call = rpc_start(&pair, "/c.echo");
    grpc_cancel(call->call);
    grpc_cancel(call->call);
    rpc_pump(&pair);
    check_end(call, GRPC_CANCELLED, 0);
    CHECK_EQ(call->sent, 0);
    rpc_close(&pair);
}

static void test_cancel_by_server(void)
{
    struct rpc_call *call = one_call("/c.servercancels");

    check_end(call, GRPC_CANCELLED, 0);
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_close(&pair);
}

static void test_1000_calls(void)
{
    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    for (uint32_t i = 0; i < 1000; i++) {
        struct rpc_call *call = rpc_start(&pair, i % 3 == 0 ? "/c.refused" : "/c.echo");
        rpc_pump(&pair);
        check_end(call, i % 3 == 0 ? GRPC_NOT_FOUND : GRPC_OK, i % 3 == 0 ? PF_REASON_NO_SUCH_IMAGE : 0);
    }
    CHECK_EQ(pair.server.ended_count, 1000);
    CHECK_EQ(pair.server.result, 0);
    rpc_close(&pair);
}

static void test_128_calls_at_once(void)
{
    rpc_open(&pair, client_scripts, server_scripts, NULL, NULL);
    rpc_pump(&pair); /* the server's SETTINGS have come */
    for (uint32_t i = 0; i < PF_LIMIT_STREAMS_MAX; i++)
        CHECK(rpc_start(&pair, i % 2 == 0 ? "/c.many" : "/c.pages")->call != NULL);
    CHECK_EQ(grpc_open_calls(conn_session(pair.client.conn)), PF_LIMIT_STREAMS_MAX);
    rpc_pump(&pair);
    for (uint32_t i = 0; i < PF_LIMIT_STREAMS_MAX; i++) {
        check_end(&pair.client.calls[i], GRPC_OK, 0);
        CHECK_EQ(pair.client.calls[i].got, i % 2 == 0 ? 500 : 300);
    }
    rpc_close(&pair);
}

/* Known limits are waited for, unknown ones are run into. */
static void test_streams_max(void)
{
    struct grpc_settings few = rpc_defaults;
    uint32_t refused = 0;

    few.streams_max = 2;
    rpc_open(&pair, client_scripts, server_scripts, NULL, &few);
    for (uint32_t i = 0; i < 5; i++)
        rpc_start(&pair, "/c.held");
    rpc_pump(&pair);
    for (uint32_t i = 0; i < 5; i++)
        refused += pair.client.calls[i].status.code == GRPC_UNAVAILABLE;
    CHECK_EQ(refused, 3);
    CHECK_EQ(grpc_open_calls(conn_session(pair.server.conn)), 2);
    for (uint32_t i = 5; i < 8; i++)
        rpc_start(&pair, "/c.echo");
    rpc_pump(&pair);
    CHECK_EQ(grpc_open_calls(conn_session(pair.client.conn)), 5);
    grpc_cancel(pair.client.calls[0].call);
    grpc_cancel(pair.client.calls[7].call);
    rpc_pump(&pair);
    check_end(&pair.client.calls[5], GRPC_OK, 0);
    check_end(&pair.client.calls[6], GRPC_OK, 0);
    check_end(&pair.client.calls[7], GRPC_CANCELLED, 0);
    CHECK_EQ(pair.client.result, 0);
    rpc_close(&pair);
}

static void test_go_away(void)
{
    struct rpc_call *held = one_call("/c.held");
    struct grpc_status good = {0};

    grpc_go_away(conn_session(pair.server.conn));
    rpc_pump(&pair);
    CHECK(grpc_going_away(conn_session(pair.client.conn)));
    CHECK(grpc_going_away(conn_session(pair.server.conn)));
    CHECK(rpc_start(&pair, "/c.echo")->call == NULL);
    CHECK_EQ(held->ended, 0);
    grpc_finish(pair.server.calls[0].call, &good);
    rpc_pump(&pair);
    check_end(held, GRPC_OK, 0);
    CHECK(pair.server.result < 0); /* nothing more will ever be said */
    rpc_close(&pair);
}

static void test_connection_lost(void)
{
    struct rpc_call *held = one_call("/c.held");

    conn_close(pair.server.conn);
    pair.server.conn = NULL;
    check_end(&pair.server.calls[0], GRPC_CANCELLED, 0);
    rpc_pump(&pair);
    CHECK_EQ(pair.client.result, -EPIPE);
    CHECK_EQ(held->ended, 0);
    conn_close(pair.client.conn);
    pair.client.conn = NULL;
    check_end(held, GRPC_UNAVAILABLE, 0);
    rpc_close(&pair);
}

int main(void)
{
    RUN(test_unary);
    RUN(test_unary_is_two_writes);
    RUN(test_bidi);
    RUN(test_empty_messages);
    RUN(test_large_messages);
    RUN(test_gathered_in_callers_memory);
    RUN(test_small_messages_are_not_gathered);
    RUN(test_no_memory_to_gather);
    RUN(test_refused_when_opened);
    RUN(test_unknown_method);
    RUN(test_status_after_messages);
    RUN(test_finish_with_the_first_message);
    RUN(test_server_dislikes_a_message);
    RUN(test_client_dislikes_a_message);
    RUN(test_server_ends_first);
    RUN(test_half_close_order);
    RUN(test_cancel_by_client);
    RUN(test_cancel_before_it_was_sent);
    RUN(test_cancel_by_server);
    RUN(test_1000_calls);
    RUN(test_128_calls_at_once);
    RUN(test_streams_max);
    RUN(test_go_away);
    RUN(test_connection_lost);
    return check_done();
}
