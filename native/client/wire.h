/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has come in on a link, as an interface counts it: payload, and the headers of every segment. TCP keeps both
 * counts for us (TCP_INFO), segments that brought nothing and segments that were merged on their way up included. What
 * an interface counts and no socket knows of, ARP and what others use the host for, is left out; on a unix socket
 * nothing has headers.
 */
#ifndef PAGEFERRY_WIRE_H
#define PAGEFERRY_WIRE_H

#include <stdint.h>

struct wire {
    uint64_t past_bytes;    /* of connections that are gone */
    uint64_t bytes;         /* of the one there is, when it was looked at last */
    uint64_t looked_ns;     /* CLOCK_MONOTONIC, as near to that look as can be: rates are made of it */
    uint64_t segments;      /* counted on, where the kernel's 32 bits wrap */
    uint32_t segments_told; /* by the kernel, then */
    uint32_t header_bytes;  /* of each segment; 0: not known yet */
};

/* The connection of this socket has brought `payload_bytes` by what we have read; TCP may know more. */
void wire_look(struct wire *wire, int fd, uint64_t payload_bytes);
/* It is about to be closed. */
void wire_over(struct wire *wire, int fd, uint64_t payload_bytes);

static inline uint64_t wire_bytes(const struct wire *wire)
{
    return wire->past_bytes + wire->bytes;
}

#endif
