/* SPDX-License-Identifier: Apache-2.0 */
/* Names and sums of stats.h. */
#include "stats.h"

#include <stddef.h>

struct stats_words {
    const char *name;
    const char *help;
};

#define STATS_WORDS(name, help) {#name, help},
static const struct stats_words counter_words[] = {STATS_COUNTERS(STATS_WORDS)};
static const struct stats_words histogram_words[] = {STATS_HISTOGRAMS(STATS_WORDS)};

const char *stats_counter_name(uint32_t index)
{
    return index < STATS_COUNTER_COUNT ? counter_words[index].name : NULL;
}

const char *stats_counter_help(uint32_t index)
{
    return index < STATS_COUNTER_COUNT ? counter_words[index].help : NULL;
}

const char *stats_histogram_name(uint32_t index)
{
    return index < STATS_HISTOGRAM_COUNT ? histogram_words[index].name : NULL;
}

const char *stats_histogram_help(uint32_t index)
{
    return index < STATS_HISTOGRAM_COUNT ? histogram_words[index].help : NULL;
}

void stats_sum(struct stats *sum, const struct stats *from)
{
    for (int i = 0; i < STATS_COUNTER_COUNT; i++)
        stats_add(sum, (enum stats_counter)i, stats_get(from, (enum stats_counter)i));
    for (int i = 0; i < STATS_HISTOGRAM_COUNT; i++)
        for (uint32_t bucket = 0; bucket < STATS_HISTOGRAM_VALUES; bucket++) {
            uint64_t count = atomic_load_explicit(&from->histogram[i][bucket], memory_order_relaxed);
            uint64_t now = atomic_load_explicit(&sum->histogram[i][bucket], memory_order_relaxed);
            atomic_store_explicit(&sum->histogram[i][bucket], now + count, memory_order_relaxed);
        }
}

uint32_t stats_copy_histogram(const struct stats *stats, uint32_t index, uint64_t *values, uint32_t capacity)
{
    if (index >= STATS_HISTOGRAM_COUNT)
        return 0;
    for (uint32_t i = 0; i < STATS_HISTOGRAM_VALUES && i < capacity; i++)
        values[i] = atomic_load_explicit(&stats->histogram[index][i], memory_order_relaxed);
    return STATS_HISTOGRAM_VALUES;
}
