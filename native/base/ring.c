/* SPDX-License-Identifier: Apache-2.0 */
/* The ring of ring.h. Indices run freely and wrap at 2^32; their difference is the number of entries. */
#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int ring_open(struct ring *ring, uint32_t capacity, size_t entry_bytes)
{
    int rc = 0;

    memset(ring, 0, sizeof(*ring));
    ring->bell_fd = -1;
    if (capacity == 0 || (capacity & (capacity - 1)) != 0 || entry_bytes == 0) {
        rc = -EINVAL;
        goto out;
    }
    ring->entries = calloc(capacity, entry_bytes);
    if (ring->entries == NULL) {
        rc = -ENOMEM;
        goto out;
    }
    ring->capacity = capacity;
    ring->entry_bytes = entry_bytes;
    ring->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ring->bell_fd < 0) {
        rc = -errno;
        free(ring->entries);
        ring->entries = NULL;
        ring->capacity = 0;
    }
out:
    return rc;
}

void ring_close(struct ring *ring)
{
    if (ring->entries != NULL)
        close(ring->bell_fd);
    free(ring->entries);
    memset(ring, 0, sizeof(*ring));
    ring->bell_fd = -1;
}

bool ring_put(struct ring *ring, const void *entry)
{
    uint32_t put = atomic_load_explicit(&ring->put, memory_order_relaxed);
    uint32_t taken = atomic_load_explicit(&ring->taken, memory_order_acquire);
    bool room = put - taken < ring->capacity;

    if (room) {
        memcpy(ring->entries + (size_t)(put & (ring->capacity - 1)) * ring->entry_bytes, entry, ring->entry_bytes);
        /* Sequentially consistent on purpose: the entry must be visible before we read whether the taker had emptied
         * the ring, or a bell could be left out between its last look and its sleep. */
        atomic_store(&ring->put, put + 1);
        if (atomic_load(&ring->taken) == put) {
            uint64_t one = 1;
            /* A full eventfd counter already means "rung". */
            ssize_t written = write(ring->bell_fd, &one, sizeof(one));
            (void)written;
        }
    }
    return room;
}

bool ring_take(struct ring *ring, void *entry)
{
    uint32_t taken = atomic_load_explicit(&ring->taken, memory_order_relaxed);
    bool any = taken != atomic_load(&ring->put);

    if (any) {
        memcpy(entry, ring->entries + (size_t)(taken & (ring->capacity - 1)) * ring->entry_bytes, ring->entry_bytes);
        atomic_store(&ring->taken, taken + 1);
    }
    return any;
}

void ring_silence(struct ring *ring)
{
    uint64_t count;
    ssize_t got = read(ring->bell_fd, &count, sizeof(count)); /* EAGAIN: it was silent */

    (void)got;
}

uint32_t ring_room(const struct ring *ring)
{
    return ring->capacity - (atomic_load_explicit(&ring->put, memory_order_relaxed) -
                             atomic_load_explicit(&ring->taken, memory_order_acquire));
}
