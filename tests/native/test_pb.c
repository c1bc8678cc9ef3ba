/* SPDX-License-Identifier: Apache-2.0 */
/* Varints and fields: what protobuf allows is read, everything else refused, never a byte past the end. */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "rpc/pb.h"

/* A copy of exactly that length, so that the sanitizer sees a read past its end. */
static struct grpc_bytes exact(const void *bytes, size_t length)
{
    uint8_t *copy = malloc(length + (length == 0));

    memcpy(copy, bytes, length);
    return (struct grpc_bytes){copy, length};
}

static void drop(struct grpc_bytes bytes)
{
    free((void *)(uintptr_t)bytes.data);
}

static void check_varint(const void *bytes, size_t length, bool good, uint64_t value)
{
    struct grpc_bytes input = exact(bytes, length);
    struct pb_reader reader = pb_reader_of(input);
    uint64_t got = 0;

    CHECK_EQ(pb_read_varint(&reader, &got), good);
    CHECK_EQ(got, good ? value : 0);
    drop(input);
}

static void test_varints(void)
{
    check_varint("\x00", 1, true, 0);
    check_varint("\x7f", 1, true, 127);
    check_varint("\x80\x01", 2, true, 128);
    check_varint("\xac\x02", 2, true, 300);
    check_varint("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 10, true, UINT64_MAX);
    check_varint("\x81\x80\x80\x00", 4, true, 1); /* overlong, but allowed */
    check_varint("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 10, true, 0);
}

static void test_bad_varints(void)
{
    check_varint("", 0, false, 0);
    check_varint("\x80", 1, false, 0);
    check_varint("\xff\xff\xff\xff\xff\xff\xff\xff\xff", 9, false, 0);
    check_varint("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 10, false, 0); /* 65 bits */
    check_varint("\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 11, false, 0);
}

static void test_varint_round_trip(void)
{
    for (unsigned shift = 0; shift < 64; shift++)
        for (int delta = -1; delta <= 1; delta++) {
            uint64_t value = (UINT64_C(1) << shift) + (uint64_t)(int64_t)delta;
            uint8_t bytes[PB_VARINT_BYTES_MAX];
            struct pb_writer writer = {.at = bytes, .end = bytes + sizeof(bytes)};
            pb_write_varint(&writer, value);
            CHECK_EQ(writer.at - bytes, pb_varint_bytes(value));
            check_varint(bytes, (size_t)(writer.at - bytes), true, value);
            /* one byte too few: nothing is written */
            writer = (struct pb_writer){.at = bytes, .end = bytes + pb_varint_bytes(value) - 1};
            pb_write_varint(&writer, value);
            CHECK(writer.full && writer.at == bytes);
        }
}

static int read_all(const void *bytes, size_t length, struct pb_field *last)
{
    struct grpc_bytes input = exact(bytes, length);
    struct pb_reader reader = pb_reader_of(input);
    int more, count = 0;

    while ((more = pb_read_field(&reader, last)) > 0)
        count++;
    drop(input);
    return more < 0 ? -1 : count;
}

static void test_fields(void)
{
    struct pb_field field;

    CHECK_EQ(read_all("", 0, &field), 0);
    CHECK_EQ(read_all("\x08\x07", 2, &field), 1);
    CHECK(field.number == 1 && field.type == PB_VARINT && field.value == 7);
    CHECK_EQ(read_all("\x09\x01\x02\x03\x04\x05\x06\x07\x08", 9, &field), 1);
    CHECK_EQ(field.value, 0x0807060504030201);
    CHECK_EQ(read_all("\x15\x01\x02\x03\x04", 5, &field), 1);
    CHECK(field.number == 2 && field.type == PB_FIXED32 && field.value == 0x04030201);
    CHECK_EQ(read_all("\x7a\x00", 2, &field), 1);
    CHECK(field.number == 15 && field.type == PB_BYTES && field.bytes.length == 0);
    CHECK_EQ(read_all("\xf8\xff\xff\xff\x0f\x01", 6, &field), 1);
    CHECK_EQ(field.number, PB_FIELD_MAX);
}

static void test_bad_fields(void)
{
    struct pb_field field;

    CHECK_EQ(read_all("\x00\x00", 2, &field), -1);                 /* number 0 */
    CHECK_EQ(read_all("\x80\x80\x80\x80\x10\x01", 6, &field), -1); /* number 2^29 */
    CHECK_EQ(read_all("\x08", 1, &field), -1);
    CHECK_EQ(read_all("\x09\x01\x02\x03\x04\x05\x06\x07", 8, &field), -1);
    CHECK_EQ(read_all("\x0d\x01\x02\x03", 4, &field), -1);
    CHECK_EQ(read_all("\x0a\x02\x01", 3, &field), -1);
    CHECK_EQ(read_all("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, &field), -1); /* 2^64 - 1 bytes */
    CHECK_EQ(read_all("\x0b\x0c", 2, &field), -1);                 /* groups */
    CHECK_EQ(read_all("\x0e\x00", 2, &field), -1);                 /* wire types that are none */
    CHECK_EQ(read_all("\x0f\x00", 2, &field), -1);
}

static void test_writer_stops_when_full(void)
{
    uint8_t bytes[8];
    struct pb_writer writer = {.at = bytes, .end = bytes + sizeof(bytes)};

    pb_write_fixed64(&writer, 1, 5);
    CHECK(writer.full);
    pb_write_number(&writer, 1, 5); /* would fit, but something is missing already */
    CHECK(writer.full && writer.at <= bytes + 1);
    writer = (struct pb_writer){.at = bytes, .end = bytes + sizeof(bytes)};
    pb_write_bytes(&writer, 1, (struct grpc_bytes){(const uint8_t *)"seven b", 7});
    CHECK(writer.full);
    writer = (struct pb_writer){.at = bytes, .end = bytes + sizeof(bytes)};
    pb_write_bytes(&writer, 1, (struct grpc_bytes){(const uint8_t *)"sixsix", 6});
    CHECK(!writer.full && writer.at == writer.end);
}

int main(void)
{
    RUN(test_varints);
    RUN(test_bad_varints);
    RUN(test_varint_round_trip);
    RUN(test_fields);
    RUN(test_bad_fields);
    RUN(test_writer_stops_when_full);
    return check_done();
}
