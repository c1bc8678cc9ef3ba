/* SPDX-License-Identifier: Apache-2.0 */
/* Ends that speak no HTTP/2, no gRPC, or only half of it: what our server and our client make of it. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc_pair.h"
#include "rpc_raw.h"

static const struct rpc_script server_scripts[] = {
    {.path = "/s.echo", .echo = true},
    {.path = "/s.held", .keep_open = true},
    {.path = NULL},
};

static const struct rpc_script client_scripts[] = {
    {.path = "/c.echo", .messages = 1, .message_bytes = 8},
    {.path = "/c.open", .keep_open = true},
    {.path = NULL},
};

static struct rpc_pair pair;
static struct rpc_raw *raw;

static void begin(bool server)
{
    struct grpc_settings short_messages = rpc_defaults;
    int fds[2];

    short_messages.message_bytes_max = 10000;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    raw = calloc(1, sizeof(*raw));
    raw->fd = fds[0];
    if (server) {
        rpc_open_server(&pair, fds[1], server_scripts, &short_messages);
        rpc_raw_preface(raw);
    } else {
        rpc_open_client(&pair, fds[1], client_scripts, &short_messages);
        rpc_raw_frame(raw, RAW_SETTINGS, 0, 0, NULL, 0);
    }
}

static void turn(void)
{
    for (int i = 0; i < 4; i++) {
        rpc_raw_flush(raw);
        rpc_turn_side(&pair.server, pair.budget_bytes);
        rpc_turn_side(&pair.client, pair.budget_bytes);
        rpc_raw_collect(raw);
    }
}

static void end(void)
{
    rpc_close(&pair);
    if (raw->fd >= 0)
        close(raw->fd);
    free(raw);
}

/* ----------------------------------------------------------------------------------------------------- our server */

static void test_garbage(void)
{
    begin(true);
    raw->used = 0;
    rpc_raw_bytes(raw, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 35);
    turn();
    CHECK_EQ(pair.server.result, -EPROTO);
    CHECK_EQ(pair.server.call_count, 0);
    end();
}

static void test_truncated_preface(void)
{
    for (size_t length = 0; length < 33; length += 4) {
        begin(true);
        raw->used = length;
        turn();
        CHECK_EQ(pair.server.result, 0);
        shutdown(raw->fd, SHUT_WR);
        turn();
        CHECK_EQ(pair.server.result, -EPIPE);
        end();
    }
}

/* Random frames after a good preface: the server may end the connection, nothing else. */
static void test_random_frames(void)
{
    uint32_t random = 12345;
    uint8_t payload[64];

    for (int round = 0; round < 300; round++) {
        begin(true);
        rpc_raw_request(raw, 1, "/s.held", 0);
        for (int i = 0; i < 20; i++) {
            for (size_t j = 0; j < sizeof(payload); j++) {
                random = random * 1103515245 + 12345;
                payload[j] = (uint8_t)(random >> 16);
            }
            rpc_raw_frame(raw, payload[0] % 12, payload[1], payload[2] % 4, payload + 4, payload[3] % 60);
        }
        turn();
        conn_close(pair.server.conn);
        pair.server.conn = NULL;
        CHECK_EQ(pair.server.call_count, pair.server.ended_count);
        end();
    }
}

static void test_peer_closes_within_a_message(void)
{
    begin(true);
    rpc_raw_request(raw, 1, "/s.echo", 0);
    rpc_raw_frame(raw, RAW_DATA, 0, 1, "\0\0\0\0\x10xyz", 8);
    turn();
    close(raw->fd);
    raw->fd = -1;
    rpc_turn_side(&pair.server, pair.budget_bytes);
    CHECK_EQ(pair.server.result, -EPIPE);
    conn_close(pair.server.conn);
    pair.server.conn = NULL;
    CHECK_EQ(pair.server.calls[0].got, 0);
    CHECK_EQ(pair.server.calls[0].ended, 1);
    CHECK_EQ(pair.server.calls[0].status.code, GRPC_CANCELLED);
    end();
}

/* DATA of one call, and the code that it ends with. */
static void check_request(const void *data, size_t length, uint32_t code)
{
    begin(true);
    rpc_raw_request(raw, 1, "/s.echo", 0);
    rpc_raw_frame(raw, RAW_DATA, RAW_END_STREAM, 1, data, length);
    turn();
    CHECK_EQ(pair.server.calls[0].ended, 1);
    CHECK_EQ(pair.server.calls[0].status.code, code);
    CHECK_EQ(pair.server.calls[0].got, 0);
    CHECK_EQ(pair.server.result, 0);
    end();
}

static void test_bad_messages(void)
{
    check_request("\0\0\0\0\x10xyz", 8, GRPC_INVALID_ARGUMENT);     /* ends within it */
    check_request("\0\0", 2, GRPC_INVALID_ARGUMENT);                 /* within the prefix */
    check_request("\1\0\0\0\x03xyz", 8, GRPC_UNIMPLEMENTED);         /* compressed */
    check_request("\0\xff\xff\xff\xffxyz", 8, GRPC_RESOURCE_EXHAUSTED); /* 4 GiB */
    check_request("\0\0\0\x27\x11xyz", 8, GRPC_RESOURCE_EXHAUSTED);  /* one byte too many: 10001 */
}

/* A request of other fields: the server's owner hears nothing, the client gets an HTTP status. */
static void check_no_grpc(const char *method, const char *path, const char *content_type, const char *http_status)
{
    struct rpc_raw_frame frame;
    uint8_t block[512];
    size_t offset = 0, used = rpc_raw_field(block, 0, ":method", method);

    used = rpc_raw_field(block, used, ":scheme", "http");
    used = rpc_raw_field(block, used, ":authority", "localhost");
    used = rpc_raw_field(block, used, ":path", path);
    used = rpc_raw_field(block, used, "content-type", content_type);
    begin(true);
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | RAW_END_STREAM, 1, block, used);
    turn();
    CHECK_EQ(pair.server.call_count, 0);
    CHECK_EQ(pair.server.result, 0);
    while (rpc_raw_next(raw, &offset, &frame) && frame.type != RAW_HEADERS)
        ;
    CHECK_EQ(frame.type, RAW_HEADERS);
    CHECK(frame.flags & RAW_END_STREAM);
    CHECK(memmem(frame.payload, frame.length, http_status, strlen(http_status)) != NULL);
    end();
}

static void test_no_grpc(void)
{
    check_no_grpc("GET", "/s.echo", "application/grpc", "\x03" "405");
    check_no_grpc("POST", "/s.echo", "application/json", "\x03" "415");
}

static void test_metadata(void)
{
    uint8_t block[1024];
    size_t used = rpc_raw_request_block(block, "/s.held");

    used = rpc_raw_field(block, used, "authorization", "Bearer abc");
    used = rpc_raw_field(block, used, "pageferry-session", "s1");
    used = rpc_raw_field(block, used, "pageferry-target", "0123456789abcdef");
    used = rpc_raw_field(block, used, "pageferry-epoch", "7");
    used = rpc_raw_field(block, used, "grpc-timeout", "250m");
    used = rpc_raw_field(block, used, "unknown", "x");
    begin(true);
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS, 1, block, used);
    turn();
    CHECK_EQ(pair.server.call_count, 1);
    CHECK(strcmp(pair.server.calls[0].authorization, "Bearer abc") == 0);
    CHECK(strcmp(pair.server.calls[0].session, "s1") == 0);
    CHECK(strcmp(pair.server.calls[0].target, "0123456789abcdef") == 0);
    CHECK(strcmp(pair.server.calls[0].epoch, "7") == 0);
    CHECK_EQ(pair.server.calls[0].timeout_ns, 250000000);
    end();
}

static void test_timeouts(void)
{
    static const struct {
        const char *text;
        uint64_t ns;
    } timeouts[] = {{"1H", UINT64_C(3600000000000)}, {"2M", UINT64_C(120000000000)}, {"3S", UINT64_C(3000000000)},
                    {"4m", 4000000}, {"5u", 5000}, {"6n", 6}, {"0S", 1}, {"99999999H", UINT64_MAX},
                    {"999999999S", 0}, {"S", 0}, {"5", 0}, {"5x", 0}, {"-5S", 0}, {"", 0}};

    for (size_t i = 0; i < sizeof(timeouts) / sizeof(timeouts[0]); i++) {
        uint8_t block[512];
        size_t used = rpc_raw_request_block(block, "/s.held");
        used = rpc_raw_field(block, used, "grpc-timeout", timeouts[i].text);
        begin(true);
        rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS, 1, block, used);
        turn();
        CHECK_EQ(pair.server.call_count, 1);
        CHECK_EQ(pair.server.calls[0].timeout_ns, timeouts[i].ns);
        end();
    }
}

/* ----------------------------------------------------------------------------------------------------- our client */

/* What a server might answer: fields, DATA, fields; NULL: not that. */
static struct rpc_call *answer(const char *path, const char *http_status, const char *content_type, const char *data,
                               size_t length, const char *grpc_status)
{
    struct rpc_call *call;
    uint8_t block[512];
    size_t used = rpc_raw_answer_block(block, http_status, content_type);

    begin(false);
    call = rpc_start(&pair, path);
    turn();
    if (data == NULL && grpc_status != NULL)
        used = rpc_raw_field(block, used, "grpc-status", grpc_status);
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | (data == NULL ? RAW_END_STREAM : 0), 1, block, used);
    if (data != NULL)
        rpc_raw_frame(raw, RAW_DATA, grpc_status == NULL ? RAW_END_STREAM : 0, 1, data, length);
    used = data != NULL && grpc_status != NULL ? rpc_raw_field(block, 0, "grpc-status", grpc_status) : 0;
    if (used > 0)
        rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | RAW_END_STREAM, 1, block, used);
    turn();
    CHECK_EQ(call->ended, 1);
    return call;
}

static void test_answers(void)
{
    static const struct {
        const char *http_status, *content_type, *data;
        size_t length;
        const char *grpc_status;
        uint32_t code, reason, got;
    } answers[] = {
        {"200", "application/grpc", "\0\0\0\0\0", 5, "0", GRPC_OK, 0, 1},
        {"200", "application/grpc+proto", NULL, 0, "5", GRPC_NOT_FOUND, 0, 0}, /* trailers-only */
        {"200", "application/grpc", NULL, 0, "4711", 4711, 0, 0},
        {"200", "application/grpc", NULL, 0, "x", GRPC_UNKNOWN, 0, 0},
        {"200", "application/grpc", "\0\0\0\0\0", 5, NULL, GRPC_INTERNAL, 0, 1}, /* no trailers */
        {"200", "application/grpc", "\0\0\0\0\3ab", 7, "0", GRPC_INTERNAL, PF_REASON_BUG, 0},
        {"200", "application/grpc", "\0\0\0\0\3ab", 7, "14", GRPC_UNAVAILABLE, 0, 0},
        {"200", "text/html", "<html>", 6, NULL, GRPC_UNKNOWN, 0, 0},
        {"404", "text/html", "<html>", 6, NULL, GRPC_UNIMPLEMENTED, 0, 0},
        {"503", "text/html", NULL, 0, NULL, GRPC_UNAVAILABLE, 0, 0},
        {"401", "text/html", NULL, 0, NULL, GRPC_UNAUTHENTICATED, 0, 0},
        {"403", "text/html", NULL, 0, NULL, GRPC_PERMISSION_DENIED, 0, 0},
        {"400", "text/html", NULL, 0, NULL, GRPC_INTERNAL, 0, 0},
        {"200", "application/grpc", "\1\0\0\0\3abc", 8, "0", GRPC_UNIMPLEMENTED, PF_REASON_UNSUPPORTED, 0},
        {"200", "application/grpc", "\0\0\0\x27\x11" "abc", 8, "0", GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY, 0},
    };

    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]); i++) {
        struct rpc_call *call = answer("/c.echo", answers[i].http_status, answers[i].content_type, answers[i].data,
                                       answers[i].length, answers[i].grpc_status);
        CHECK_EQ(call->status.code, answers[i].code);
        CHECK_EQ(call->got, answers[i].got);
        CHECK_EQ(call->status.reason, answers[i].reason);
        CHECK_EQ(pair.client.result, 0);
        end();
    }
}

/* The server's end reaches an open client, which then sends no more: a reset without an error. */
static void test_answer_before_half_close(void)
{
    struct rpc_call *call = answer("/c.open", "200", "application/grpc", NULL, 0, "0");
    struct rpc_raw_frame frame;
    size_t offset = 24; /* the magic of a client's preface */
    int resets = 0;

    CHECK_EQ(call->status.code, GRPC_OK);
    while (rpc_raw_next(raw, &offset, &frame))
        resets += frame.type == RAW_RST && frame.payload[3] == 0;
    CHECK_EQ(resets, 1);
    end();
}

static void test_resets(void)
{
    static const uint32_t codes[][2] = {{0, GRPC_INTERNAL},  {1, GRPC_INTERNAL},  {2, GRPC_INTERNAL},
                                        {7, GRPC_UNAVAILABLE}, {8, GRPC_CANCELLED}, {11, GRPC_RESOURCE_EXHAUSTED},
                                        {12, GRPC_PERMISSION_DENIED}};

    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        begin(false);
        rpc_start(&pair, "/c.echo");
        turn();
        rpc_raw_number(raw, RAW_RST, 1, codes[i][0]);
        turn();
        CHECK_EQ(pair.client.calls[0].ended, 1);
        CHECK_EQ(pair.client.calls[0].status.code, codes[i][1]);
        CHECK_EQ(pair.client.result, 0);
        end();
    }
}

/* Calls that the server has not looked at may be made again elsewhere; the others go on. */
static void test_go_away(void)
{
    begin(false);
    rpc_start(&pair, "/c.open");
    rpc_start(&pair, "/c.open");
    turn();
    rpc_raw_frame(raw, RAW_GOAWAY, 0, 0, "\0\0\0\1\0\0\0\0", 8);
    turn();
    CHECK(grpc_going_away(conn_session(pair.client.conn)));
    CHECK_EQ(pair.client.calls[0].ended, 0);
    CHECK_EQ(pair.client.calls[1].ended, 1);
    CHECK_EQ(pair.client.calls[1].status.code, GRPC_UNAVAILABLE);
    CHECK(rpc_start(&pair, "/c.echo")->call == NULL);
    end();
}

static void test_garbage_from_server(void)
{
    begin(false);
    raw->used = 0;
    rpc_start(&pair, "/c.echo");
    rpc_raw_bytes(raw, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", 47);
    turn();
    CHECK(pair.client.result < 0);
    CHECK(grpc_going_away(conn_session(pair.client.conn)));
    conn_close(pair.client.conn);
    pair.client.conn = NULL;
    CHECK_EQ(pair.client.calls[0].status.code, GRPC_UNAVAILABLE);
    end();
}

int main(void)
{
    RUN(test_garbage);
    RUN(test_truncated_preface);
    RUN(test_random_frames);
    RUN(test_peer_closes_within_a_message);
    RUN(test_bad_messages);
    RUN(test_no_grpc);
    RUN(test_metadata);
    RUN(test_timeouts);
    RUN(test_answers);
    RUN(test_answer_before_half_close);
    RUN(test_resets);
    RUN(test_go_away);
    RUN(test_garbage_from_server);
    return check_done();
}
