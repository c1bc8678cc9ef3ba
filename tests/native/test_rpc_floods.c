/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile or broken client at our server, frame by frame. Each flood must end the connection with ENHANCE_YOUR_CALM
 * after a bounded number of frames, and cost bounded memory. (Stories: CVE-2023-44487 rapid reset, CVE-2024-28182
 * CONTINUATION, CVE-2025-8671 resets that the server is made to send, HPACK bombs.)
 */
#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "rpc_pair.h"
#include "rpc_raw.h"

#define CALM 11
#define INTERNAL 2
#define FRAMES_MAX 20000 /* far beyond the limit */
#define HELD_BYTES_MAX (8 << 20)

static const struct rpc_script scripts[] = {
    {.path = "/s.echo", .echo = true},
    {.path = "/s.held", .keep_open = true},
    {.path = NULL},
};

static struct rpc_pair pair;
static struct rpc_raw *raw;
static size_t held_before;

static size_t held_bytes(void)
{
    return mallinfo2().uordblks; /* 0 under a sanitizer, which looks for other things */
}

static void begin(void)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    raw = calloc(1, sizeof(*raw));
    raw->fd = fds[0];
    rpc_open_server(&pair, fds[1], scripts, NULL);
    rpc_raw_preface(raw);
    held_before = held_bytes();
}

static void turn(void)
{
    rpc_raw_flush(raw);
    rpc_turn_side(&pair.server, pair.budget_bytes);
}

/* `reads`: it takes what the server says, too. */
static void flood(void (*frame)(uint32_t number), bool reads)
{
    uint32_t sent = 0;

    while (sent < FRAMES_MAX && pair.server.result == 0) {
        while (raw->used < 1000 && sent < FRAMES_MAX)
            frame(sent++);
        turn();
        if (reads) {
            raw->got = 0;
            rpc_raw_collect(raw);
        }
    }
    CHECK(sent < FRAMES_MAX);
    CHECK(pair.server.result < 0);
    CHECK(held_bytes() < held_before + HELD_BYTES_MAX);
}

static void end(void)
{
    rpc_raw_collect(raw);
    conn_close(pair.server.conn);
    pair.server.conn = NULL;
    rpc_close(&pair);
    close(raw->fd);
    free(raw);
}

static void frame_reset(uint32_t number)
{
    rpc_raw_request(raw, number * 2 + 1, "/s.held", 0);
    rpc_raw_number(raw, RAW_RST, number * 2 + 1, 8);
}

/* nghttp2 with the security updates of 2023 has a limit of its own, as high as ours, which says INTERNAL_ERROR: the
 * clock decides which of the two is reached first. */
static void test_rapid_reset(void)
{
    int error;

    begin();
    flood(frame_reset, true);
    error = rpc_raw_goaway(raw);
    CHECK(error == CALM || error == INTERNAL);
    CHECK(pair.server.call_count <= PF_LIMIT_FLOOD_FRAMES_MAX + 64);
    conn_close(pair.server.conn);
    pair.server.conn = NULL;
    CHECK_EQ(pair.server.call_count, pair.server.ended_count);
    end();
}

static void frame_ping(uint32_t number)
{
    (void)number;
    rpc_raw_frame(raw, RAW_PING, 0, 0, "12345678", 8);
}

static void test_ping_flood(void)
{
    begin();
    flood(frame_ping, true);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

static void test_ping_flood_unread(void)
{
    begin();
    flood(frame_ping, false);
    end();
}

static void frame_settings(uint32_t number)
{
    rpc_raw_setting(raw, 4, 65535 + number % 2);
}

static void test_settings_flood(void)
{
    begin();
    flood(frame_settings, true);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

static void frame_priority(uint32_t number)
{
    rpc_raw_frame(raw, RAW_PRIORITY, 0, number * 2 + 1, "\0\0\0\0\x10", 5);
}

static void test_priority_flood(void)
{
    begin();
    flood(frame_priority, true);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

static void frame_empty_data(uint32_t number)
{
    if (number == 0)
        rpc_raw_request(raw, 1, "/s.held", 0);
    rpc_raw_frame(raw, RAW_DATA, 0, 1, NULL, 0);
}

static void test_empty_data_flood(void)
{
    begin();
    flood(frame_empty_data, true);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

/* A window beyond 2^31 makes the server reset the stream. */
static void frame_made_reset(uint32_t number)
{
    rpc_raw_request(raw, number * 2 + 1, "/s.held", 0);
    rpc_raw_number(raw, RAW_WINDOW, number * 2 + 1, 0x7fffffff);
}

static void test_made_reset_flood(void)
{
    begin();
    flood(frame_made_reset, true);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

static void test_made_reset_flood_unread(void)
{
    begin();
    flood(frame_made_reset, false);
    end();
}

/* Refused calls: each gets an answer that nobody reads. */
static void frame_refused(uint32_t number)
{
    rpc_raw_request(raw, number * 2 + 1, "/s.unknown", RAW_END_STREAM);
}

static void test_answers_unread(void)
{
    uint32_t sent = 0;

    begin();
    for (; sent < FRAMES_MAX && pair.server.result == 0; sent++) {
        frame_refused(sent);
        turn();
        if (raw->used > 100000)
            break; /* the server does not read either: that is one way to bound it */
    }
    CHECK(held_bytes() < held_before + HELD_BYTES_MAX);
    end();
}

static void frame_continuation(uint32_t number)
{
    uint8_t block[256];
    size_t length = rpc_raw_request_block(block, "/s.echo");

    if (number == 0)
        rpc_raw_frame(raw, RAW_HEADERS, 0, 1, block, length);
    length = rpc_raw_field(block, 0, "x", "y");
    rpc_raw_frame(raw, RAW_CONTINUATION, 0, 1, block, length);
}

static void test_continuation_flood(void)
{
    begin();
    flood(frame_continuation, true);
    CHECK(rpc_raw_goaway(raw) > 0);
    CHECK_EQ(pair.server.call_count, 0);
    end();
}

/* `count` fields of about a KiB in one block of at most 8 frames. */
static void send_long_fields(uint32_t stream, uint32_t count)
{
    static uint8_t block[1 << 17];
    char value[1000];
    size_t length = rpc_raw_request_block(block, "/s.echo"), offset = 0, part;

    memset(value, 'v', sizeof(value));
    value[sizeof(value) - 1] = 0;
    while (count-- > 0)
        length = rpc_raw_field(block, length, "x-long", value);
    while (offset < length) {
        part = length - offset < 16384 ? length - offset : 16384;
        rpc_raw_frame(raw, offset == 0 ? RAW_HEADERS : RAW_CONTINUATION, offset + part == length ? RAW_END_HEADERS : 0,
                      stream, block + offset, part);
        offset += part;
    }
    while (raw->used > 0 && pair.server.result == 0)
        turn();
    turn();
    rpc_raw_collect(raw);
}

/* A little too long: a status. Much too long: the end of the connection. */
static void test_long_fields(void)
{
    begin();
    send_long_fields(1, 14);
    CHECK_EQ(pair.server.call_count, 1);
    send_long_fields(3, 17);
    CHECK_EQ(pair.server.call_count, 1);
    CHECK_EQ(pair.server.result, 0);
    send_long_fields(5, 70);
    CHECK_EQ(pair.server.call_count, 1);
    CHECK(pair.server.result < 0);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

/* One long field in the table, named again by one byte each: 16 KiB that unfold to 60 MiB. */
static void test_hpack_bomb(void)
{
    static uint8_t block[16384];
    char value[3900];
    size_t length = rpc_raw_request_block(block, "/s.echo"), named;

    memset(value, 'v', sizeof(value));
    value[sizeof(value) - 1] = 0;
    named = length;
    length = rpc_raw_field(block, length, "x-bomb", value);
    block[named] = 0x40; /* literal, to be indexed */
    memset(block + length, 0x80 | 62, sizeof(block) - length);
    begin();
    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS, 1, block, sizeof(block));
    turn();
    turn();
    CHECK(pair.server.result < 0);
    CHECK_EQ(pair.server.call_count, 0);
    rpc_raw_collect(raw);
    CHECK_EQ(rpc_raw_goaway(raw), CALM);
    end();
}

/* Pings that follow what the server sends are how clients measure: they are no flood. */
static void test_pings_between_answers(void)
{
    struct rpc_raw_frame frame;
    size_t offset = 0;
    uint32_t pongs = 0;

    begin();
    rpc_raw_request(raw, 1, "/s.echo", 0);
    for (uint32_t i = 0; i < 3000; i++) {
        rpc_raw_message(raw, 1, i, 8, 0);
        frame_ping(i);
        turn();
        offset = raw->got = 0;
        rpc_raw_collect(raw);
        while (rpc_raw_next(raw, &offset, &frame))
            pongs += frame.type == RAW_PING;
        if (i % 500 == 0)
            rpc_raw_number(raw, RAW_WINDOW, 0, 30000), rpc_raw_number(raw, RAW_WINDOW, 1, 30000);
    }
    CHECK_EQ(pair.server.result, 0);
    CHECK_EQ(pongs, 3000);
    CHECK_EQ(pair.server.calls[0].got, 3000);
    end();
}

int main(void)
{
    RUN(test_rapid_reset);
    RUN(test_ping_flood);
    RUN(test_ping_flood_unread);
    RUN(test_settings_flood);
    RUN(test_priority_flood);
    RUN(test_empty_data_flood);
    RUN(test_made_reset_flood);
    RUN(test_made_reset_flood_unread);
    RUN(test_answers_unread);
    RUN(test_continuation_flood);
    RUN(test_long_fields);
    RUN(test_hpack_bomb);
    RUN(test_pings_between_answers);
    return check_done();
}
