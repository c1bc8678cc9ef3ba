/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire format of protobuf, as little of it as pages.proto needs. A reader never goes past its end; a writer that
 * has no room notes it and writes nothing more, so only its end has to be looked at.
 */
#ifndef PAGEFERRY_PB_H
#define PAGEFERRY_PB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "grpc.h"

#define PB_VARINT_BYTES_MAX 10
#define PB_FIELD_MAX UINT32_C(0x1fffffff)

enum pb_type { PB_VARINT = 0, PB_FIXED64 = 1, PB_BYTES = 2, PB_GROUP_BEGIN = 3, PB_GROUP_END = 4, PB_FIXED32 = 5 };

struct pb_reader {
    const uint8_t *at;
    const uint8_t *end;
};

/* One field, whatever its type: number and bytes; a field that is passed over has been checked for its length. */
struct pb_field {
    uint32_t number;
    enum pb_type type;
    uint64_t value;          /* of a varint or a fixed one */
    struct grpc_bytes bytes; /* PB_BYTES */
};

static inline struct pb_reader pb_reader_of(struct grpc_bytes bytes)
{
    /* No arithmetic on a null pointer. */
    static const uint8_t nothing[1];
    const uint8_t *at = bytes.length == 0 ? nothing : bytes.data;

    return (struct pb_reader){at, at + bytes.length};
}

/* 64 bits; longer ones, or such that do not end, are none. Overlong zeros are allowed, as everywhere. */
static inline bool pb_read_varint(struct pb_reader *reader, uint64_t *value)
{
    uint64_t sum = 0;

    for (unsigned shift = 0; shift < 7 * PB_VARINT_BYTES_MAX && reader->at < reader->end; shift += 7) {
        uint8_t one = *reader->at++;
        if (shift == 63 && one > 1)
            return false;
        sum |= (uint64_t)(one & 0x7f) << shift;
        if (one < 0x80) {
            *value = sum;
            return true;
        }
    }
    return false;
}

static inline bool pb_read_fixed(struct pb_reader *reader, size_t length, uint64_t *value)
{
    if ((size_t)(reader->end - reader->at) < length)
        return false;
    *value = 0;
    for (size_t i = 0; i < length; i++)
        *value |= (uint64_t)reader->at[i] << (8 * i);
    reader->at += length;
    return true;
}

static inline bool pb_read_bytes(struct pb_reader *reader, struct grpc_bytes *bytes)
{
    uint64_t length;

    if (!pb_read_varint(reader, &length) || length > (uint64_t)(reader->end - reader->at))
        return false;
    *bytes = (struct grpc_bytes){reader->at, (size_t)length};
    reader->at += length;
    return true;
}

/* 1: *field is filled; 0: there is no more; -1: this is no message. Groups are none either: nobody sends them. */
static inline int pb_read_field(struct pb_reader *reader, struct pb_field *field)
{
    uint64_t tag;
    bool good = false;

    if (reader->at == reader->end)
        return 0;
    if (!pb_read_varint(reader, &tag) || tag >> 3 == 0 || tag >> 3 > PB_FIELD_MAX)
        return -1;
    field->number = (uint32_t)(tag >> 3);
    field->type = (enum pb_type)(tag & 7);
    if (field->type == PB_VARINT)
        good = pb_read_varint(reader, &field->value);
    else if (field->type == PB_FIXED64)
        good = pb_read_fixed(reader, 8, &field->value);
    else if (field->type == PB_FIXED32)
        good = pb_read_fixed(reader, 4, &field->value);
    else if (field->type == PB_BYTES)
        good = pb_read_bytes(reader, &field->bytes);
    return good ? 1 : -1;
}

struct pb_writer {
    uint8_t *at;
    uint8_t *end;
    bool full;
};

static inline size_t pb_varint_bytes(uint64_t value)
{
    return (size_t)(70 - __builtin_clzll(value | 1)) / 7;
}

static inline bool pb_has_room(struct pb_writer *writer, size_t length)
{
    writer->full = writer->full || (size_t)(writer->end - writer->at) < length;
    return !writer->full;
}

static inline void pb_write_varint(struct pb_writer *writer, uint64_t value)
{
    if (!pb_has_room(writer, pb_varint_bytes(value)))
        return;
    for (; value >= 0x80; value >>= 7)
        *writer->at++ = (uint8_t)(value | 0x80);
    *writer->at++ = (uint8_t)value;
}

static inline void pb_write_tag(struct pb_writer *writer, uint32_t number, enum pb_type type)
{
    pb_write_varint(writer, (uint64_t)number << 3 | type);
}

/* The next three: a zero, or no bytes, is not written, as proto3 has it. */
static inline void pb_write_number(struct pb_writer *writer, uint32_t number, uint64_t value)
{
    if (value != 0) {
        pb_write_tag(writer, number, PB_VARINT);
        pb_write_varint(writer, value);
    }
}

static inline void pb_write_fixed64(struct pb_writer *writer, uint32_t number, uint64_t value)
{
    if (value == 0)
        return;
    pb_write_tag(writer, number, PB_FIXED64);
    if (pb_has_room(writer, 8))
        for (int i = 0; i < 8; i++)
            *writer->at++ = (uint8_t)(value >> (8 * i));
}

static inline void pb_write_bytes(struct pb_writer *writer, uint32_t number, struct grpc_bytes bytes)
{
    if (bytes.length == 0)
        return;
    pb_write_tag(writer, number, PB_BYTES);
    pb_write_varint(writer, bytes.length);
    if (pb_has_room(writer, bytes.length)) {
        memcpy(writer->at, bytes.data, bytes.length);
        writer->at += bytes.length;
    }
}

#endif
