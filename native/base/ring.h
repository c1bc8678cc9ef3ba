/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ring between two threads: one puts, one takes, entries of a fixed size are copied. An eventfd is the bell: it is
 * rung when an entry is put into an empty ring, so that a sleeping taker wakes; the taker silences it before it looks.
 */
#ifndef PAGEFERRY_RING_H
#define PAGEFERRY_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    uint32_t capacity; /* a power of two */
    size_t entry_bytes;
    uint8_t *entries;
    int bell_fd;
    _Alignas(64) _Atomic uint32_t put;
    _Alignas(64) _Atomic uint32_t taken;
};

/* capacity: a power of two. 0 or -errno. */
int ring_open(struct ring *ring, uint32_t capacity, size_t entry_bytes);
/* Harmless on a ring that was zeroed or has been closed. */
void ring_close(struct ring *ring);
/* False when it is full. Rings the bell if the taker may be asleep. */
bool ring_put(struct ring *ring, const void *entry);
/* False when it is empty. */
bool ring_take(struct ring *ring, void *entry);
/* By the taker, before a last look and a sleep. */
void ring_silence(struct ring *ring);
/* Places that are free, as the putter sees it. */
uint32_t ring_room(const struct ring *ring);

#endif
