/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages of pages.proto: see messages.h. Each reader is one loop over the fields that came; a field of a known
 * number and another wire type is passed over like an unknown one, as protobuf has it.
 */
#include "messages.h"

#include <string.h>

#include "../gen/contract.h"
#include "pb.h"
#include "runs.h"

#define FIELD(name) PF_FIELD_##name

/* --------------------------------------------------------------------------------------------------------- readers */

static void set_number(const struct pb_field *field, uint64_t *to)
{
    if (field->type == PB_VARINT)
        *to = field->value;
}

/* A uint32 takes the low half of what came, as protobuf has it. */
static void set_number32(const struct pb_field *field, uint32_t *to)
{
    if (field->type == PB_VARINT)
        *to = (uint32_t)field->value;
}

static void set_bool(const struct pb_field *field, bool *to)
{
    if (field->type == PB_VARINT)
        *to = field->value != 0;
}

static void set_fixed64(const struct pb_field *field, uint64_t *to)
{
    if (field->type == PB_FIXED64)
        *to = field->value;
}

static void set_bytes(const struct pb_field *field, struct grpc_bytes *to)
{
    if (field->type == PB_BYTES)
        *to = field->bytes;
}

/* What a loop over fields returns in the end: `more` is pb_read_field's last word. */
static int ended_well(int more, bool good)
{
    return more == 0 && good ? 0 : -PF_REASON_BAD_REQUEST;
}

int read_describe_request(struct grpc_bytes message, struct describe_request *out)
{
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    int more;

    memset(out, 0, sizeof(*out));
    while ((more = pb_read_field(&reader, &field)) > 0)
        if (field.number == FIELD(DESCRIBE_IMAGE_REQUEST_IMAGE))
            set_bytes(&field, &out->image);
    return ended_well(more, true);
}

static bool add_region(struct describe_response *out, uint64_t pages)
{
    if (out->region_count == sizeof(out->region_pages) / sizeof(out->region_pages[0]))
        return false;
    out->region_pages[out->region_count++] = pages;
    return true;
}

static bool add_regions(struct describe_response *out, const struct pb_field *field)
{
    struct pb_reader reader;
    uint64_t pages;

    if (field->type != PB_BYTES)
        return field->type != PB_VARINT || add_region(out, field->value);
    reader = pb_reader_of(field->bytes);
    while (reader.at < reader.end)
        if (!pb_read_varint(&reader, &pages) || !add_region(out, pages))
            return false;
    return true;
}

static bool take_description(struct describe_response *out, const struct pb_field *field)
{
    switch (field->number) {
    case FIELD(DESCRIBE_IMAGE_RESPONSE_CONTENT_ID):
        set_fixed64(field, &out->content_id);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_PAGE_COUNT):
        set_number(field, &out->page_count);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_PAGE_BYTES):
        set_number32(field, &out->page_bytes);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_UNIT_PAGES):
        set_number32(field, &out->unit_pages);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_REGION_PAGES):
        return add_regions(out, field);
    case FIELD(DESCRIBE_IMAGE_RESPONSE_LIVE):
        set_bool(field, &out->live);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_AS_OF):
        set_number(field, &out->as_of);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_BATCH_BYTES_MAX):
        set_number32(field, &out->batch_bytes_max);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_RUNS_MAX):
        set_number32(field, &out->runs_max);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_WANTED_PAGES_MAX):
        set_number32(field, &out->wanted_pages_max);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_URGENT_CALLS_MAX):
        set_number32(field, &out->urgent_calls_max);
        break;
    case FIELD(DESCRIBE_IMAGE_RESPONSE_ENCODINGS):
        set_number32(field, &out->encodings);
        break;
    default:
        break;
    }
    return true;
}

int read_describe_response(struct grpc_bytes message, struct describe_response *out)
{
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    bool good = true;
    int more = 1;

    memset(out, 0, sizeof(*out));
    while (good && (more = pb_read_field(&reader, &field)) > 0)
        good = take_description(out, &field);
    return ended_well(more, good);
}

int read_get_page_request(struct grpc_bytes message, struct get_page_request *out)
{
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    int more;

    memset(out, 0, sizeof(*out));
    while ((more = pb_read_field(&reader, &field)) > 0) {
        if (field.number == FIELD(GET_PAGE_REQUEST_IMAGE))
            set_bytes(&field, &out->image);
        else if (field.number == FIELD(GET_PAGE_REQUEST_PAGE))
            set_number(&field, &out->page);
    }
    return ended_well(more, true);
}

int read_fetch_request(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct fetch_request *out)
{
    struct run_list list = {.runs = runs, .runs_max = runs_max, .run_numbers = RUN_PAIR};
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    bool good = true;
    int more = 1;

    memset(out, 0, sizeof(*out));
    out->runs = runs;
    while (good && (more = pb_read_field(&reader, &field)) > 0) {
        if (field.number == FIELD(FETCH_PAGES_REQUEST_IMAGE))
            set_bytes(&field, &out->image);
        else if (field.number == FIELD(FETCH_PAGES_REQUEST_ENCODINGS))
            set_number32(&field, &out->encodings);
        else if (field.number == FIELD(FETCH_PAGES_REQUEST_RUNS))
            good = run_list_add(&list, &field);
        else if (field.number == FIELD(FETCH_PAGES_REQUEST_HEARTBEAT))
            set_number(&field, &out->heartbeat);
    }
    return ended_well(more, good && run_list_end(&list, &out->run_count) == 0);
}

int read_stream_request(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct stream_request *out)
{
    struct run_list list = {.runs = runs, .runs_max = runs_max, .run_numbers = RUN_PAIR};
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    bool good = true;
    int more = 1;

    memset(out, 0, sizeof(*out));
    out->runs = runs;
    while (good && (more = pb_read_field(&reader, &field)) > 0) {
        if (field.number == FIELD(STREAM_PAGES_REQUEST_IMAGE))
            set_bytes(&field, &out->image);
        else if (field.number == FIELD(STREAM_PAGES_REQUEST_SINCE_VERSION))
            set_number(&field, &out->since_version);
        else if (field.number == FIELD(STREAM_PAGES_REQUEST_RUNS))
            good = run_list_add(&list, &field);
        else if (field.number == FIELD(STREAM_PAGES_REQUEST_VERSIONS_ONLY))
            set_bool(&field, &out->versions_only);
        else if (field.number == FIELD(STREAM_PAGES_REQUEST_OPEN_ROUND))
            set_bool(&field, &out->open_round);
        else if (field.number == FIELD(STREAM_PAGES_REQUEST_ENCODINGS))
            set_number32(&field, &out->encodings);
    }
    return ended_well(more, good && run_list_end(&list, &out->run_count) == 0);
}

static bool take_batch_field(struct page_batch *out, struct run_list *list, const struct pb_field *field)
{
    switch (field->number) {
    case FIELD(PAGE_BATCH_AS_OF):
        set_number(field, &out->as_of);
        break;
    case FIELD(PAGE_BATCH_RUNS):
        return run_list_add(list, field);
    case FIELD(PAGE_BATCH_ENCODING):
        set_number32(field, &out->encoding);
        break;
    case FIELD(PAGE_BATCH_DIGEST):
        set_fixed64(field, &out->digest);
        break;
    case FIELD(PAGE_BATCH_HEARTBEAT):
        set_number(field, &out->heartbeat);
        break;
    case FIELD(PAGE_BATCH_PHASE):
        set_number32(field, &out->phase);
        break;
    case FIELD(PAGE_BATCH_CANCEL_REQUESTED):
        set_bool(field, &out->cancel_requested);
        break;
    case FIELD(PAGE_BATCH_MANIFEST_DIGEST):
        set_bytes(field, &out->manifest_digest);
        break;
    case FIELD(PAGE_BATCH_DATA):
        set_bytes(field, &out->data);
        break;
    default:
        break;
    }
    return true;
}

int read_page_batch(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct page_batch *out)
{
    struct run_list list = {.runs = runs, .runs_max = runs_max, .run_numbers = RUN_FOUR};
    struct pb_reader reader = pb_reader_of(message);
    struct pb_field field;
    bool good = true;
    int more = 1;

    memset(out, 0, sizeof(*out));
    out->runs = runs;
    out->data.data = message.data; /* none: still a pointer that 0 can be added to */
    while (good && (more = pb_read_field(&reader, &field)) > 0)
        good = take_batch_field(out, &list, &field);
    return ended_well(more, good && run_list_end(&list, &out->run_count) == 0);
}

/* --------------------------------------------------------------------------------------------------------- writers */

static struct pb_writer writer_of(uint8_t *out, size_t capacity)
{
    return (struct pb_writer){.at = out, .end = out + capacity};
}

static size_t written(const struct pb_writer *writer, const uint8_t *out)
{
    return writer->full ? 0 : (size_t)(writer->at - out);
}

size_t write_describe_request(const struct describe_request *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);

    pb_write_bytes(&writer, FIELD(DESCRIBE_IMAGE_REQUEST_IMAGE), in->image);
    return written(&writer, out);
}

size_t write_describe_response(const struct describe_response *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);
    uint64_t regions_length = 0;

    pb_write_fixed64(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_CONTENT_ID), in->content_id);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_PAGE_COUNT), in->page_count);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_PAGE_BYTES), in->page_bytes);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_UNIT_PAGES), in->unit_pages);
    for (uint32_t i = 0; i < in->region_count; i++)
        regions_length += pb_varint_bytes(in->region_pages[i]);
    if (regions_length > 0) {
        pb_write_tag(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_REGION_PAGES), PB_BYTES);
        pb_write_varint(&writer, regions_length);
        for (uint32_t i = 0; i < in->region_count; i++)
            pb_write_varint(&writer, in->region_pages[i]);
    }
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_LIVE), in->live);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_AS_OF), in->as_of);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_BATCH_BYTES_MAX), in->batch_bytes_max);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_RUNS_MAX), in->runs_max);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_WANTED_PAGES_MAX), in->wanted_pages_max);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_URGENT_CALLS_MAX), in->urgent_calls_max);
    pb_write_number(&writer, FIELD(DESCRIBE_IMAGE_RESPONSE_ENCODINGS), in->encodings);
    return written(&writer, out);
}

size_t write_get_page_request(const struct get_page_request *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);

    pb_write_bytes(&writer, FIELD(GET_PAGE_REQUEST_IMAGE), in->image);
    pb_write_number(&writer, FIELD(GET_PAGE_REQUEST_PAGE), in->page);
    return written(&writer, out);
}

size_t write_fetch_request(const struct fetch_request *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);

    pb_write_bytes(&writer, FIELD(FETCH_PAGES_REQUEST_IMAGE), in->image);
    pb_write_number(&writer, FIELD(FETCH_PAGES_REQUEST_ENCODINGS), in->encodings);
    run_list_write(&writer, FIELD(FETCH_PAGES_REQUEST_RUNS), in->runs, in->run_count, RUN_PAIR);
    pb_write_number(&writer, FIELD(FETCH_PAGES_REQUEST_HEARTBEAT), in->heartbeat);
    return written(&writer, out);
}

size_t write_stream_request(const struct stream_request *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);

    pb_write_bytes(&writer, FIELD(STREAM_PAGES_REQUEST_IMAGE), in->image);
    pb_write_number(&writer, FIELD(STREAM_PAGES_REQUEST_SINCE_VERSION), in->since_version);
    run_list_write(&writer, FIELD(STREAM_PAGES_REQUEST_RUNS), in->runs, in->run_count, RUN_PAIR);
    pb_write_number(&writer, FIELD(STREAM_PAGES_REQUEST_VERSIONS_ONLY), in->versions_only);
    pb_write_number(&writer, FIELD(STREAM_PAGES_REQUEST_OPEN_ROUND), in->open_round);
    pb_write_number(&writer, FIELD(STREAM_PAGES_REQUEST_ENCODINGS), in->encodings);
    return written(&writer, out);
}

size_t write_page_batch_head(const struct page_batch *in, uint8_t *out, size_t capacity)
{
    struct pb_writer writer = writer_of(out, capacity);

    pb_write_number(&writer, FIELD(PAGE_BATCH_AS_OF), in->as_of);
    run_list_write(&writer, FIELD(PAGE_BATCH_RUNS), in->runs, in->run_count, RUN_FOUR);
    pb_write_number(&writer, FIELD(PAGE_BATCH_ENCODING), in->encoding);
    pb_write_fixed64(&writer, FIELD(PAGE_BATCH_DIGEST), in->digest);
    pb_write_number(&writer, FIELD(PAGE_BATCH_HEARTBEAT), in->heartbeat);
    pb_write_number(&writer, FIELD(PAGE_BATCH_PHASE), in->phase);
    pb_write_number(&writer, FIELD(PAGE_BATCH_CANCEL_REQUESTED), in->cancel_requested);
    pb_write_bytes(&writer, FIELD(PAGE_BATCH_MANIFEST_DIGEST), in->manifest_digest);
    if (in->data.length > 0) {
        pb_write_tag(&writer, FIELD(PAGE_BATCH_DATA), PB_BYTES);
        pb_write_varint(&writer, in->data.length);
    }
    return written(&writer, out);
}

size_t page_batch_head_max(uint32_t run_count)
{
    /* as_of, length of runs, encoding, digest, heartbeat, phase, cancel, manifest of 64 bytes, length of data */
    const size_t fixed = 11 + 11 + 11 + 9 + 11 + 11 + 2 + 66 + 11;

    return fixed + (size_t)run_count * RUN_FOUR * PB_VARINT_BYTES_MAX;
}
