/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/2 by hand: see rpc_raw.h. */
#include "rpc_raw.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "rpc_pair.h"

#define HEAD_BYTES 9

void rpc_raw_bytes(struct rpc_raw *raw, const void *bytes, size_t length)
{
    if (length > sizeof(raw->out) - raw->used)
        abort();
    if (length > 0)
        memcpy(raw->out + raw->used, bytes, length);
    raw->used += length;
}

void rpc_raw_frame(struct rpc_raw *raw, uint8_t type, uint8_t flags, uint32_t stream, const void *payload,
                   size_t length)
{
    const uint8_t head[HEAD_BYTES] = {
        (uint8_t)(length >> 16), (uint8_t)(length >> 8),  (uint8_t)length,        type,           flags,
        (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream};

    rpc_raw_bytes(raw, head, sizeof(head));
    rpc_raw_bytes(raw, payload, length);
}

void rpc_raw_number(struct rpc_raw *raw, uint8_t type, uint32_t stream, uint32_t number)
{
    const uint8_t payload[4] = {(uint8_t)(number >> 24), (uint8_t)(number >> 16), (uint8_t)(number >> 8),
                                (uint8_t)number};

    rpc_raw_frame(raw, type, 0, stream, payload, sizeof(payload));
}

void rpc_raw_setting(struct rpc_raw *raw, uint16_t id, uint32_t value)
{
    const uint8_t payload[6] = {(uint8_t)(id >> 8),     (uint8_t)id,           (uint8_t)(value >> 24),
                                (uint8_t)(value >> 16), (uint8_t)(value >> 8), (uint8_t)value};

    rpc_raw_frame(raw, RAW_SETTINGS, 0, 0, payload, sizeof(payload));
}

void rpc_raw_preface(struct rpc_raw *raw)
{
    static const char magic[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    rpc_raw_bytes(raw, magic, sizeof(magic) - 1);
    rpc_raw_frame(raw, RAW_SETTINGS, 0, 0, NULL, 0);
}

/* An HPACK integer with a prefix of 7 bits. */
static size_t put_length(uint8_t *block, size_t used, size_t length)
{
    if (length < 127) {
        block[used++] = (uint8_t)length;
    } else {
        block[used++] = 127;
        for (length -= 127; length >= 128; length >>= 7)
            block[used++] = (uint8_t)(length | 0x80);
        block[used++] = (uint8_t)length;
    }
    return used;
}

static size_t put_text(uint8_t *block, size_t used, const char *text)
{
    size_t length = strlen(text);

    used = put_length(block, used, length);
    memcpy(block + used, text, length);
    return used + length;
}

size_t rpc_raw_field(uint8_t *block, size_t used, const char *name, const char *value)
{
    block[used++] = 0x10;
    return put_text(block, put_text(block, used, name), value);
}

size_t rpc_raw_request_block(uint8_t *block, const char *path)
{
    size_t used = rpc_raw_field(block, 0, ":method", "POST");

    used = rpc_raw_field(block, used, ":scheme", "http");
    used = rpc_raw_field(block, used, ":path", path);
    used = rpc_raw_field(block, used, ":authority", "localhost");
    used = rpc_raw_field(block, used, "te", "trailers");
    return rpc_raw_field(block, used, "content-type", "application/grpc+proto");
}

size_t rpc_raw_answer_block(uint8_t *block, const char *http_status, const char *content_type)
{
    size_t used = rpc_raw_field(block, 0, ":status", http_status);

    return rpc_raw_field(block, used, "content-type", content_type);
}

void rpc_raw_request(struct rpc_raw *raw, uint32_t stream, const char *path, uint8_t flags)
{
    uint8_t block[1024];
    size_t length = rpc_raw_request_block(block, path);

    rpc_raw_frame(raw, RAW_HEADERS, RAW_END_HEADERS | flags, stream, block, length);
}

void rpc_raw_message(struct rpc_raw *raw, uint32_t stream, uint32_t number, size_t length, uint8_t flags)
{
    uint8_t message[16384] = {0, 0, 0, (uint8_t)(length >> 8), (uint8_t)length};

    for (size_t i = 0; i < length; i++)
        message[5 + i] = rpc_byte(number, i);
    rpc_raw_frame(raw, RAW_DATA, flags, stream, message, 5 + length);
}

bool rpc_raw_flush(struct rpc_raw *raw)
{
    ssize_t length = send(raw->fd, raw->out, raw->used, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (length > 0) {
        memmove(raw->out, raw->out + length, raw->used - (size_t)length);
        raw->used -= (size_t)length;
    }
    return raw->used == 0;
}

void rpc_raw_collect(struct rpc_raw *raw)
{
    ssize_t length = 1;

    while (length > 0 && raw->got < sizeof(raw->in)) {
        length = recv(raw->fd, raw->in + raw->got, sizeof(raw->in) - raw->got, MSG_DONTWAIT);
        raw->got += length > 0 ? (size_t)length : 0;
    }
}

bool rpc_raw_next(const struct rpc_raw *raw, size_t *offset, struct rpc_raw_frame *frame)
{
    const uint8_t *head = raw->in + *offset;

    if (raw->got - *offset < HEAD_BYTES)
        return false;
    frame->length = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
    frame->type = head[3];
    frame->flags = head[4];
    frame->stream = (uint32_t)head[5] << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8];
    frame->payload = head + HEAD_BYTES;
    if (raw->got - *offset - HEAD_BYTES < frame->length)
        return false;
    *offset += HEAD_BYTES + frame->length;
    return true;
}

int rpc_raw_goaway(const struct rpc_raw *raw)
{
    struct rpc_raw_frame frame;
    size_t offset = 0;
    int error = -1;

    while (rpc_raw_next(raw, &offset, &frame))
        if (frame.type == RAW_GOAWAY && frame.length >= 8)
            error = frame.payload[7];
    return error;
}
