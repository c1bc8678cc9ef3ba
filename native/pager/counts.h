/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many words are in each state. One thread writes, as it changes a word; any other may read all of them as they were
 * at one instant, at no cost that grows with the VM: whoever counts words itself reads 128 MiB for 64 GiB of guest.
 */
#ifndef PAGEFERRY_COUNTS_H
#define PAGEFERRY_COUNTS_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "page.h"

struct counts {
    _Atomic uint64_t changes; /* odd: one is under way */
    _Atomic uint64_t of[PAGE_STATE_COUNT];
};

/* For the writer. */
static inline uint64_t counts_of(const struct counts *counts, enum page_state state)
{
    return atomic_load_explicit(&counts->of[state], memory_order_relaxed);
}

static inline void counts_begin(struct counts *counts)
{
    uint64_t changes = atomic_load_explicit(&counts->changes, memory_order_relaxed);

    atomic_store_explicit(&counts->changes, changes + 1, memory_order_relaxed);
}

/* Released, so that whoever sees it sees that a change is under way. */
static inline void counts_store(struct counts *counts, enum page_state state, uint64_t pages)
{
    atomic_store_explicit(&counts->of[state], pages, memory_order_release);
}

static inline void counts_end(struct counts *counts)
{
    uint64_t changes = atomic_load_explicit(&counts->changes, memory_order_relaxed);

    atomic_store_explicit(&counts->changes, changes + 1, memory_order_release);
}

/* One page is in another state now. */
static inline void counts_move(struct counts *counts, enum page_state from, enum page_state to)
{
    counts_begin(counts);
    counts_store(counts, from, counts_of(counts, from) - 1);
    counts_store(counts, to, counts_of(counts, to) + 1);
    counts_end(counts);
}

static inline void counts_set(struct counts *counts, const uint64_t pages[PAGE_STATE_COUNT])
{
    counts_begin(counts);
    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        counts_store(counts, (enum page_state)state, pages[state]);
    counts_end(counts);
}

/* For any thread. A writer is between two stores for some nanoseconds, if it runs. */
static inline void counts_read(const struct counts *counts, uint64_t pages[PAGE_STATE_COUNT])
{
    uint64_t before, after;

    for (;;) {
        before = atomic_load_explicit(&counts->changes, memory_order_acquire);
        for (int state = 0; state < PAGE_STATE_COUNT; state++)
            pages[state] = atomic_load_explicit(&counts->of[state], memory_order_acquire);
        after = atomic_load_explicit(&counts->changes, memory_order_relaxed);
        if (before == after && before % 2 == 0)
            break;
        sched_yield(); /* it may be waiting for our processor */
    }
}

#endif
