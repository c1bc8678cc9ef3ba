/* SPDX-License-Identifier: Apache-2.0 */
/* The mutator of h2_mutator.h. */
#include "h2_mutator.h"

#include <stdbool.h>
#include <string.h>

#define FRAMES_MAX 256
#define PREFIX_BYTES 5
#define LONG_BYTES 256  /* a message longer than this has pages in it */
#define FRONT_BYTES 48  /* and they come behind this */
#define GROWTH_BYTES 64 /* by one change */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t size_max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned int seed);

size_t h2_frames(const uint8_t *data, size_t size, size_t at, struct h2_frame *frames, size_t frames_max)
{
    size_t count = 0;

    while (count < frames_max && at < size && size - at >= H2_HEAD_BYTES) {
        size_t length = (size_t)data[at] << 16 | (size_t)data[at + 1] << 8 | data[at + 2];
        if (size - at - H2_HEAD_BYTES < length)
            break;
        frames[count++] = (struct h2_frame){.at = at, .payload_bytes = length, .type = data[at + 3]};
        at += H2_HEAD_BYTES + length;
    }
    return count;
}

/* ------------------------------------------------------------------------------------------------- one small change */

struct change {
    uint8_t *data;
    size_t size, size_max;
    uint64_t random;
    struct h2_frame frames[FRAMES_MAX];
    size_t count;
};

static size_t below(struct change *change, size_t limit)
{
    change->random ^= change->random << 13;
    change->random ^= change->random >> 7;
    change->random ^= change->random << 17;
    return (size_t)((change->random >> 11) % limit);
}

static void set_length(uint8_t *head, size_t length)
{
    head[0] = (uint8_t)(length >> 16);
    head[1] = (uint8_t)(length >> 8);
    head[2] = (uint8_t)length;
}

/* Puts `length` bytes in the place of `old` bytes at `at`; false: no room. */
static bool splice(struct change *change, size_t at, size_t old, const uint8_t *bytes, size_t length)
{
    if (change->size - old + length > change->size_max)
        return false;
    memmove(change->data + at + length, change->data + at + old, change->size - at - old);
    if (length > 0)
        memcpy(change->data + at, bytes, length);
    change->size = change->size - old + length;
    return true;
}

/* The payload, or the message in it, or of a long one what comes before the bytes of its pages, by libFuzzer's own
 * means; lengths follow. */
static void change_payload(struct change *change, const struct h2_frame *frame)
{
    static uint8_t part[1 << 16];
    bool in_message = frame->type == H2_DATA && frame->payload_bytes > PREFIX_BYTES && below(change, 4) != 0;
    size_t skip = in_message ? PREFIX_BYTES : 0, all = frame->payload_bytes - skip;
    size_t old = all > LONG_BYTES && below(change, 3) != 0 ? FRONT_BYTES : all, length;
    uint8_t *head = change->data + frame->at;

    if (old + GROWTH_BYTES > sizeof(part))
        return;
    memcpy(part, head + H2_HEAD_BYTES + skip, old);
    length = LLVMFuzzerMutate(part, old, old + GROWTH_BYTES);
    if (!splice(change, frame->at + H2_HEAD_BYTES + skip, old, part, length))
        return;
    length += all - old;
    set_length(head, skip + length);
    if (skip > 0)
        for (int i = 0; i < 4; i++)
            head[H2_HEAD_BYTES + 1 + i] = (uint8_t)(length >> (24 - 8 * i));
}

static void change_head(struct change *change, const struct h2_frame *frame)
{
    uint8_t *head = change->data + frame->at;

    switch (below(change, 3)) {
    case 0:
        head[3] = (uint8_t)below(change, 11);
        break;
    case 1:
        head[4] ^= (uint8_t)(1 << below(change, 6));
        break;
    default:
        head[8] = (uint8_t)(below(change, 8) * 2 + below(change, 8) / 7);
        break;
    }
}

/* Another frame of the input, or one of those that regulate, behind this one. */
static void add_frame(struct change *change, const struct h2_frame *frame)
{
    static const uint8_t canned[][H2_HEAD_BYTES + 8] = {
        {0, 0, 0, H2_SETTINGS, 1, 0, 0, 0, 0},
        {0, 0, 4, H2_WINDOW, 0, 0, 0, 0, 0, 0, 1, 0, 0},
        {0, 0, 4, H2_WINDOW, 0, 0, 0, 0, 1, 0, 1, 0, 0},
        {0, 0, 4, H2_RST, 0, 0, 0, 0, 1, 0, 0, 0, 8},
        {0, 0, 8, H2_PING, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8},
        {0, 0, 8, H2_GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0},
        {0, 0, 0, H2_DATA, 1, 0, 0, 0, 1},
        {0, 0, 6, H2_SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 9},
    };
    static uint8_t copy[1 << 16];
    size_t at = frame->at + H2_HEAD_BYTES + frame->payload_bytes, length;

    if (below(change, 2) == 0) {
        const uint8_t *bytes = canned[below(change, sizeof(canned) / sizeof(canned[0]))];
        splice(change, at, 0, bytes, H2_HEAD_BYTES + bytes[2]);
    } else {
        const struct h2_frame *other = &change->frames[below(change, change->count)];
        length = H2_HEAD_BYTES + other->payload_bytes;
        if (length <= sizeof(copy)) {
            memcpy(copy, change->data + other->at, length);
            splice(change, at, 0, copy, length);
        }
    }
}

/* A call more: the last two frames again, on the next stream. */
static void add_call(struct change *change)
{
    uint8_t highest = 0;
    size_t end = change->size;

    for (size_t i = 0; i < change->count; i++)
        if (change->data[change->frames[i].at + 8] > highest)
            highest = change->data[change->frames[i].at + 8];
    for (size_t i = change->count > 2 ? change->count - 2 : 0; i < change->count; i++) {
        const struct h2_frame *frame = &change->frames[i];
        static uint8_t copy[1 << 16];
        size_t length = H2_HEAD_BYTES + frame->payload_bytes;
        if (length > sizeof(copy))
            break;
        memcpy(copy, change->data + frame->at, length);
        copy[8] = (uint8_t)(highest + 2);
        if (!splice(change, end, 0, copy, length))
            break;
        end += length;
    }
}

/* Whole messages in one frame: what only a checksum would keep out is let in. */
static void mend(struct change *change)
{
    change->count = h2_frames(change->data, change->size, h2_own_bytes + h2_introduction_bytes, change->frames, FRAMES_MAX);
    for (size_t i = 0; i < change->count; i++) {
        const struct h2_frame *frame = &change->frames[i];
        uint8_t *payload = change->data + frame->at + H2_HEAD_BYTES;
        size_t length = frame->payload_bytes - PREFIX_BYTES;
        if (frame->type != H2_DATA || frame->payload_bytes < PREFIX_BYTES || payload[0] != 0)
            continue;
        if (((size_t)payload[1] << 24 | (size_t)payload[2] << 16 | (size_t)payload[3] << 8 | payload[4]) == length)
            h2_mend_message(payload + PREFIX_BYTES, length);
    }
}

/* Any frame, one with a message rather than another. */
static const struct h2_frame *pick(struct change *change)
{
    const struct h2_frame *frame = &change->frames[below(change, change->count)];

    for (int i = 0; i < 2 && (frame->type != H2_DATA || frame->payload_bytes == 0); i++)
        frame = &change->frames[below(change, change->count)];
    return frame;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t size_max, unsigned int seed)
{
    struct change change = {.data = data, .size = size, .size_max = size_max, .random = seed * UINT64_C(0x9e3779b9) + 1};
    const struct h2_frame *frame;

    if (size > h2_own_bytes + h2_introduction_bytes)
        change.count = h2_frames(data, size, h2_own_bytes + h2_introduction_bytes, change.frames, FRAMES_MAX);
    if (change.count == 0 || below(&change, 12) == 0)
        return LLVMFuzzerMutate(data, size, size_max);
    frame = pick(&change);
    switch (below(&change, 10)) {
    case 0:
        data[below(&change, h2_own_bytes)] = (uint8_t)below(&change, 256);
        break;
    case 1:
        change_head(&change, frame);
        break;
    case 2:
        splice(&change, frame->at, H2_HEAD_BYTES + frame->payload_bytes, NULL, 0);
        break;
    case 3:
        add_frame(&change, frame);
        break;
    case 4:
        add_call(&change);
        break;
    default:
        change_payload(&change, frame);
        break;
    }
    if (below(&change, 4) != 0)
        mend(&change);
    return change.size;
}
