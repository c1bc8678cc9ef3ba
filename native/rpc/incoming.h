/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages out of DATA, room-internal: five bytes of prefix, then the message, cut anywhere. One that comes whole in
 * one piece is pointed at where it lies; any other is gathered.
 */
#ifndef PAGEFERRY_INCOMING_H
#define PAGEFERRY_INCOMING_H

#include "grpc.h"

struct incoming {
    uint8_t prefix[GRPC_MESSAGE_PREFIX_BYTES];
    uint8_t prefix_filled;
    size_t length; /* of the message, once the prefix is whole */
    size_t filled; /* gathered of it */
    uint8_t *to;   /* where; NULL: not asked yet */
    uint8_t *own;  /* for who has no memory of his own to gather in */
    size_t own_capacity;
};

enum incoming_step {
    INCOMING_MORE = 1,  /* all input is used up */
    INCOMING_MESSAGE,   /* *message */
    INCOMING_GATHER,    /* incoming_gather must say where, then go on */
    INCOMING_TOO_LONG,  /* longer than length_max */
    INCOMING_COMPRESSED /* or some other flag */
};

/* Takes from the front of *input. */
enum incoming_step incoming_next(struct incoming *incoming, struct grpc_bytes *input, size_t length_max,
                                 struct grpc_bytes *message);
void incoming_gather(struct incoming *incoming, uint8_t *to);
/* Memory of its own, `length` bytes; NULL: there is none. */
uint8_t *incoming_own(struct incoming *incoming);
/* A message has begun and is not whole. */
bool incoming_is_partial(const struct incoming *incoming);
void incoming_close(struct incoming *incoming);

#endif
