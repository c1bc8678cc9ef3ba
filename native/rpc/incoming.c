/* SPDX-License-Identifier: Apache-2.0 */
/* Messages out of DATA: see incoming.h. */
#include "incoming.h"

#include <stdlib.h>
#include <string.h>

static size_t take(struct grpc_bytes *input, uint8_t *to, size_t wanted)
{
    size_t length = input->length < wanted ? input->length : wanted;

    memcpy(to, input->data, length);
    input->data += length;
    input->length -= length;
    return length;
}

static size_t prefix_length(const uint8_t *prefix)
{
    return (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | prefix[4];
}

static void begin_next(struct incoming *incoming)
{
    incoming->prefix_filled = 0;
    incoming->length = 0;
    incoming->filled = 0;
    incoming->to = NULL;
}

enum incoming_step incoming_next(struct incoming *incoming, struct grpc_bytes *input, size_t length_max,
                                 struct grpc_bytes *message)
{
    if (input->length == 0)
        return INCOMING_MORE;
    if (incoming->prefix_filled < GRPC_MESSAGE_PREFIX_BYTES) {
        incoming->prefix_filled += (uint8_t)take(input, incoming->prefix + incoming->prefix_filled,
                                                 GRPC_MESSAGE_PREFIX_BYTES - (size_t)incoming->prefix_filled);
        if (incoming->prefix_filled < GRPC_MESSAGE_PREFIX_BYTES)
            return INCOMING_MORE;
        incoming->length = prefix_length(incoming->prefix);
        if (incoming->length > length_max)
            return INCOMING_TOO_LONG;
        if (incoming->prefix[0] != 0)
            return INCOMING_COMPRESSED;
    }
    if (incoming->to == NULL && input->length >= incoming->length) {
        *message = (struct grpc_bytes){input->data, incoming->length};
        input->data += incoming->length;
        input->length -= incoming->length;
        begin_next(incoming);
        return INCOMING_MESSAGE;
    }
    if (incoming->to == NULL)
        return input->length == 0 ? INCOMING_MORE : INCOMING_GATHER;
    incoming->filled += take(input, incoming->to + incoming->filled, incoming->length - incoming->filled);
    if (incoming->filled < incoming->length)
        return INCOMING_MORE;
    *message = (struct grpc_bytes){incoming->to, incoming->length};
    begin_next(incoming);
    return INCOMING_MESSAGE;
}

void incoming_gather(struct incoming *incoming, uint8_t *to)
{
    incoming->to = to;
}

uint8_t *incoming_own(struct incoming *incoming)
{
    if (incoming->own_capacity < incoming->length) {
        free(incoming->own);
        incoming->own = malloc(incoming->length);
        incoming->own_capacity = incoming->own == NULL ? 0 : incoming->length;
    }
    return incoming->own;
}

bool incoming_is_partial(const struct incoming *incoming)
{
    return incoming->prefix_filled > 0;
}

void incoming_close(struct incoming *incoming)
{
    free(incoming->own);
    memset(incoming, 0, sizeof(*incoming));
}
