/* SPDX-License-Identifier: Apache-2.0 */
/* Counters and histograms: names, sums, and buckets that hold what they say. */
#include "base/stats.h"

#include <stddef.h>
#include <string.h>

#include "check.h"

static void names_are_told_apart_and_end_as_they_must(void)
{
    uint32_t count = 0;

    for (; stats_counter_name(count) != NULL; count++) {
        CHECK(strlen(stats_counter_help(count)) > 0);
        for (uint32_t i = 0; i < count; i++)
            CHECK(strcmp(stats_counter_name(i), stats_counter_name(count)) != 0);
    }
    CHECK_EQ(count, STATS_COUNTER_COUNT);
    CHECK(stats_counter_help(count) == NULL);
    for (count = 0; stats_histogram_name(count) != NULL; count++)
        CHECK(strlen(stats_histogram_help(count)) > 0);
    CHECK_EQ(count, STATS_HISTOGRAM_COUNT);
    CHECK(stats_histogram_help(count) == NULL);
}

static void a_bucket_holds_what_its_limit_says(void)
{
    CHECK_EQ(stats_bucket(0), 0);
    CHECK_EQ(stats_bucket(7), 7);
    CHECK_EQ(stats_bucket_limit(7), 7);
    for (uint32_t bucket = 1; bucket < STATS_BUCKETS; bucket++) {
        uint64_t limit = stats_bucket_limit(bucket), before = stats_bucket_limit(bucket - 1);
        CHECK(limit > before);
        CHECK_EQ(stats_bucket(limit), bucket);
        CHECK_EQ(stats_bucket(before + 1), bucket);
        CHECK(bucket < 8 || (limit - before) * 8 <= before + 1); /* an eighth, at most */
    }
    CHECK_EQ(stats_bucket(UINT64_MAX), STATS_BUCKETS - 1);
    CHECK(stats_bucket_limit(STATS_BUCKETS - 1) > UINT64_C(4000) * 1000000000);
}

static void observations_are_counted_and_summed(void)
{
    static struct stats stats;
    uint64_t values[STATS_HISTOGRAM_VALUES];

    stats_observe(&stats, STATS_fault_fetch_ns, 44000);
    stats_observe(&stats, STATS_fault_fetch_ns, 44000);
    stats_observe(&stats, STATS_fault_fetch_ns, 3);
    CHECK_EQ(stats_copy_histogram(&stats, STATS_fault_fetch_ns, values, STATS_HISTOGRAM_VALUES),
             STATS_HISTOGRAM_VALUES);
    CHECK_EQ(values[stats_bucket(44000)], 2);
    CHECK_EQ(values[3], 1);
    CHECK_EQ(values[STATS_BUCKETS], 88003);
    CHECK_EQ(stats_copy_histogram(&stats, STATS_HISTOGRAM_COUNT, values, STATS_HISTOGRAM_VALUES), 0);
    values[1] = 77;
    CHECK_EQ(stats_copy_histogram(&stats, STATS_fault_local_ns, values, 1), STATS_HISTOGRAM_VALUES);
    CHECK_EQ(values[0], 0);
    CHECK_EQ(values[1], 77); /* not beyond what there is room for */
}

static void several_writers_add_up(void)
{
    static struct stats sum, one;

    stats_add(&one, STATS_faults_total, 3);
    stats_set(&one, STATS_asks_outstanding, 2);
    stats_observe(&one, STATS_ask_batch_pages, 16);
    stats_sum(&sum, &one);
    stats_sum(&sum, &one);
    CHECK_EQ(stats_get(&sum, STATS_faults_total), 6);
    CHECK_EQ(stats_get(&sum, STATS_asks_outstanding), 4);
    CHECK_EQ(atomic_load(&sum.histogram[STATS_ask_batch_pages][stats_bucket(16)]), 2);
    CHECK_EQ(atomic_load(&sum.histogram[STATS_ask_batch_pages][STATS_BUCKETS]), 32);
}

int main(void)
{
    RUN(names_are_told_apart_and_end_as_they_must);
    RUN(a_bucket_holds_what_its_limit_says);
    RUN(observations_are_counted_and_summed);
    RUN(several_writers_add_up);
    return check_done();
}
