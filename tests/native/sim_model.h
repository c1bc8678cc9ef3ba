/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must become of a page, written down a second time and on purpose without a look at PAGE_STEPS: the simulation
 * holds the engine, and the table itself, against it. Where nothing stands in the way (no LATER, no FULL), a word is
 * exactly what is said here; but for what the poison log is owed, and, on private memory, whether the guest still has
 * the bytes of a poisoned page: those the simulation looks at in memory.
 */
#ifndef PAGEFERRY_SIM_MODEL_H
#define PAGEFERRY_SIM_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "pager/engine.h"

enum model_class {
    MODEL_TAKEN,   /* the news changes the page */
    MODEL_DROPPED, /* of no use to this page any more: counted */
    MODEL_STALE,   /* refused for its version: counted */
    MODEL_ALARM,   /* cannot be: reported */
    MODEL_NOTHING
};

struct model_world {
    bool armed;
    bool private_memory;
    bool without_poison;
    uint64_t frozen_version;
};

struct model_outcome {
    enum model_class class;
    uint64_t word;
    bool cell; /* the page machine was asked: state, event and armed name one of its cells */
};

struct model_outcome model_news(const struct model_world *world, uint64_t word, enum engine_kind kind,
                                uint64_t version);
uint64_t model_fault(const struct model_world *world, uint64_t word);
uint64_t model_removed(const struct model_world *world, uint64_t word);
/* By order, whatever its version. */
uint64_t model_lost(const struct model_world *world, uint64_t word);
uint64_t model_cleared(const struct model_world *world, uint64_t word);
uint64_t model_swept(const struct model_world *world, uint64_t word);

#endif
