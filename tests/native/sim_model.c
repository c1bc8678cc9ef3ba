/* SPDX-License-Identifier: Apache-2.0 */
/* The reference of sim_model.h. */
#include "sim_model.h"

static struct model_outcome outcome(enum model_class class, uint64_t word, bool cell)
{
    return (struct model_outcome){.class = class, .word = word, .cell = cell};
}

/* Is this version of a page refused, whatever else is true of it? Armed, there is one that will do: the frozen map's,
 * which the floor names, or that of an image that never changes. */
static bool refused(const struct model_world *world, uint64_t had, uint64_t version, struct model_outcome *told)
{
    bool higher = world->armed && had != 0 && version > had;
    bool lower = version < had || (world->armed && had == 0 && version < world->frozen_version);

    told->class = higher ? MODEL_ALARM : MODEL_STALE;
    return higher || lower;
}

static struct model_outcome data(const struct model_world *world, uint64_t word, uint64_t version)
{
    uint64_t had = page_version(word);
    struct model_outcome told = outcome(MODEL_DROPPED, word, true), no = outcome(MODEL_STALE, word, false);

    switch (page_state(word)) {
    case PAGE_MISSING:
    case PAGE_WANTED:
        if (world->private_memory && !world->armed)
            told.cell = false; /* it could only be mapped */
        else if (refused(world, had, version, &no))
            told = no;
        else
            told = outcome(MODEL_TAKEN, page_word(world->armed ? PAGE_OWNED : PAGE_CACHED, false, version), true);
        break;
    case PAGE_CACHED:
    case PAGE_ZERO:
        if (!world->armed && world->private_memory)
            told.cell = false;
        else if (!world->armed && version < had)
            told = outcome(MODEL_STALE, word, false);
        else if (!world->armed && version == had)
            told.cell = false;
        else if (!world->armed)
            told = outcome(MODEL_TAKEN, page_word(PAGE_CACHED, false, version), true);
        break;
    default:
        break;
    }
    return told;
}

static struct model_outcome zeros(const struct model_world *world, uint64_t word, uint64_t version)
{
    uint64_t had = page_version(word);
    struct model_outcome told = outcome(MODEL_DROPPED, word, true), no = outcome(MODEL_STALE, word, false);

    switch (page_state(word)) {
    case PAGE_MISSING:
    case PAGE_WANTED:
        if (refused(world, had, version, &no))
            told = no;
        else
            told = outcome(MODEL_TAKEN,
                           page_word(page_state(word) == PAGE_WANTED ? PAGE_OWNED : PAGE_ZERO, false, version), true);
        break;
    case PAGE_CACHED:
    case PAGE_ZERO:
        if (!world->armed && version < had)
            told = outcome(MODEL_STALE, word, false);
        else if (!world->armed && version == had)
            told.cell = false;
        else if (!world->armed)
            told = outcome(MODEL_TAKEN, page_word(PAGE_ZERO, false, version), true);
        break;
    default:
        break;
    }
    return told;
}

static uint64_t poisoned(const struct model_world *world, uint64_t version)
{
    return page_word(PAGE_POISONED, false, version) | (world->without_poison ? PAGE_HELD : 0);
}

static struct model_outcome lost(const struct model_world *world, uint64_t word, uint64_t version)
{
    struct model_outcome told = outcome(MODEL_TAKEN, poisoned(world, version), true);
    struct model_outcome no = outcome(MODEL_STALE, word, false);
    bool lacking = page_state(word) == PAGE_MISSING || page_state(word) == PAGE_WANTED;

    if (page_state(word) == PAGE_POISONED)
        told = outcome(MODEL_NOTHING, word, false);
    else if (refused(world, page_version(word), version, &no))
        told = no;
    else if (!lacking && (world->armed || version == page_version(word)))
        told = outcome(MODEL_DROPPED, word, false);
    return told;
}

static struct model_outcome floor_raised(const struct model_world *world, uint64_t word, uint64_t version)
{
    bool newer = version > page_version(word);
    struct model_outcome told = outcome(MODEL_NOTHING, word, false);

    if (page_state(word) == PAGE_POISONED && world->armed)
        told.cell = false;
    else if (world->armed)
        told = outcome(MODEL_ALARM, word, true);
    else if (newer && page_fresh(word)) /* its version is counted, and nothing else */
        told = outcome(MODEL_TAKEN, page_word(PAGE_ZERO, page_stale(word), version) | (word & (PAGE_FRESH | PAGE_OWED)), false);
    else if (newer && page_state(word) == PAGE_POISONED)
        told = outcome(MODEL_TAKEN, page_word(PAGE_POISONED, page_stale(word), version) |
                                        (word & (PAGE_HELD | PAGE_OWED | PAGE_HAD)),
                       !page_held(word));
    else if (newer && (page_state(word) == PAGE_CACHED || (page_state(word) == PAGE_ZERO && !world->private_memory)))
        told = outcome(MODEL_TAKEN, page_word(PAGE_MISSING, true, version), true);
    else if (newer)
        told = outcome(MODEL_TAKEN, page_word(PAGE_MISSING, page_stale(word), version), true);
    return told;
}

struct model_outcome model_news(const struct model_world *world, uint64_t word, enum engine_kind kind,
                                uint64_t version)
{
    struct model_outcome told = outcome(MODEL_NOTHING, word, false);

    if (version == 0)
        told = outcome(MODEL_STALE, word, false);
    else if (world->frozen_version != 0 && version > world->frozen_version)
        told = outcome(MODEL_ALARM, word, false);
    else if (page_held(word) && page_state(word) != PAGE_POISONED && kind != ENGINE_POISON &&
             !(kind == ENGINE_FLOOR && world->armed))
        told = outcome(MODEL_DROPPED, word, false);
    else if (page_fresh(word) && kind != ENGINE_FLOOR)
        told = outcome(MODEL_DROPPED, word, false);
    else if (kind == ENGINE_DATA)
        told = data(world, word, version);
    else if (kind == ENGINE_ZEROS)
        told = zeros(world, word, version);
    else if (kind == ENGINE_POISON)
        told = lost(world, word, version);
    else
        told = floor_raised(world, word, version);
    return told;
}

uint64_t model_fault(const struct model_world *world, uint64_t word)
{
    uint64_t version = page_version(word);

    if (!world->armed || page_held(word))
        return word;
    switch (page_state(word)) {
    case PAGE_MISSING:
        return page_word(PAGE_WANTED, page_stale(word), version);
    case PAGE_CACHED:
    case PAGE_ZERO:
        return page_word(PAGE_OWNED, false, version) | (word & (PAGE_FRESH | PAGE_OWED));
    case PAGE_POISONED: /* and it was not known then that the kernel cannot mark it */
        return word | (world->without_poison ? PAGE_HELD : 0);
    default:
        return word;
    }
}

uint64_t model_lost(const struct model_world *world, uint64_t word)
{
    uint64_t version = page_version(word) != 0 ? page_version(word) : world->frozen_version;

    return page_state(word) == PAGE_POISONED ? word : poisoned(world, version);
}

uint64_t model_cleared(const struct model_world *world, uint64_t word)
{
    bool clings = world->private_memory && page_stale(word);

    if (page_state(word) != PAGE_POISONED || clings)
        return word;
    return page_word(world->armed ? PAGE_OWNED : PAGE_ZERO, false, page_version(word)) | PAGE_FRESH;
}

uint64_t model_removed(const struct model_world *world, uint64_t word)
{
    uint64_t version = page_version(word);

    if (!world->armed)
        return word;
    switch (page_state(word)) {
    case PAGE_MISSING:
    case PAGE_CACHED:
        return page_word(PAGE_ZERO, false, version);
    case PAGE_WANTED:
        return page_word(PAGE_OWNED, false, version);
    case PAGE_POISONED:
        return word | (world->without_poison ? PAGE_HELD : 0);
    default:
        return word;
    }
}

uint64_t model_swept(const struct model_world *world, uint64_t word)
{
    return world->armed && page_state(word) == PAGE_CACHED ? page_word(PAGE_OWNED, false, page_version(word)) : word;
}
