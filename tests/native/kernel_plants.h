/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planted disagreements: the simulated kernel, made wrong in one thing. They prove that the comparison of the two
 * kernels can fail, and that it sees each sort of difference: results, progress, errno's meaning, who wakes, what is
 * read, what the cache holds, which events come.
 */
#ifndef PAGEFERRY_KERNEL_PLANTS_H
#define PAGEFERRY_KERNEL_PLANTS_H

#include "kernel_side.h"

/* One call of the simulated kernel and what it did, for a plant to spoil. */
struct shot {
    struct sim_kernel *sim;
    enum sim_call call;
    uint64_t first, count; /* pages; those of the memory */
    struct kernel_outcome *outcome;
    struct kernel_event *events;
    int event_count;
    struct sim_page pages_before[SIDE_PAGES];
    struct sim_thread threads_before[SIM_THREADS];
};

struct plant {
    const char *name;
    void (*spoil)(struct shot *shot);
    bool deaf; /* calls do not see that a removal waits */
};

extern const struct plant plants[];
extern const uint32_t plant_count;

/* Calls of the simulated kernel of a side, spoilt by its plant if it has one: `kernel` is the side. */
extern const struct kernel_ops planted_ops;

#endif
