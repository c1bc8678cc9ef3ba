/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every counter and histogram of the data plane, once: name, help. Metrics, `status`, docs/metrics.md and the tests
 * read the names from here. One thread writes a struct stats, others copy it: values are relaxed atomics, each right
 * by itself, no two of the same instant.
 */
#ifndef PAGEFERRY_STATS_H
#define PAGEFERRY_STATS_H

#include <stdatomic.h>
#include <stdint.h>

#define STATS_COUNTERS(X) \
    X(faults_total, "fault events read from the kernel") \
    X(faults_minor_total, "of them, flagged minor by the kernel") \
    X(faults_early_total, "of them, read before arming and left for the wake of arming") \
    X(faults_again_total, "of them, on a page that was asked or parked already") \
    X(faults_resolved_total, "of them, resolved in the same turn: nothing had to be fetched") \
    X(faults_owned_total, "of them, on a page that was the guest's: its mapping had gone, or another thread was first") \
    X(faults_unheld_minor_total, "of them, flagged minor before the bytes had come: of a huge folio, or what was there before") \
    X(removes_total, "REMOVE events read from the kernel") \
    X(removed_pages_total, "pages that events or the shim's reports named as dropped; our own zaps are not among them") \
    X(discards_total, "reports of the shim that the VMM drops memory") \
    X(discards_kept_total, "of them, answered with: keep it; the VMM cleans up before it starts") \
    X(zapped_pages_total, "pages whose mappings were dropped, with their data or without, by our own zaps") \
    X(removed_missing_pages_total, "pages that were to read as zeros, and were MISSING by then") \
    X(removed_wanted_pages_total, "the same, WANTED") \
    X(removed_cached_pages_total, "the same, CACHED") \
    X(removed_zero_pages_total, "the same, ZERO") \
    X(removed_owned_pages_total, "the same, OWNED") \
    X(removed_poisoned_pages_total, "the same, POISONED: so they stay") \
    X(events_other_total, "events of kinds that nobody asked for") \
    X(asks_total, "pages asked urgently; each ask is counted once") \
    X(asks_again_total, "pages asked once more: link lost, answer dropped, LATER") \
    X(asks_outstanding, "pages asked and not answered now") \
    X(asks_outstanding_max, "the most there ever were") \
    X(urgent_pages_total, "pages placed for a waiting thread from the urgent connection") \
    X(bulk_pages_total, "pages of bytes taken from bulk") \
    X(zero_pages_total, "pages learnt to be all zeros") \
    X(poisoned_pages_total, "pages poisoned") \
    X(poison_cleared_pages_total, "pages whose poison was cleared: fresh memory") \
    X(poison_marks_total, "UFFDIO_POISON calls: a page that is touched again, after a zap, is marked again") \
    X(swept_pages_total, "pages mapped ahead of faults") \
    X(dropped_pages_total, "pages whose news was not wanted any more") \
    X(stale_dropped_pages_total, "pages refused for their version") \
    X(later_pages_total, "pages the server could not read for now") \
    X(digest_failures_total, "batches whose digest did not agree: nothing of them was used") \
    X(fetched_bytes_total, "bytes of pages received with the right digest, urgent and bulk, before encoding") \
    X(wire_in_bytes_total, "bytes read from sockets of the data plane") \
    X(wire_out_bytes_total, "bytes written to sockets of the data plane") \
    X(dials_total, "connections dialled") \
    X(links_lost_total, "connections lost") \
    X(copies_total, "UFFDIO_COPY calls") \
    X(continues_total, "UFFDIO_CONTINUE calls") \
    X(zeropages_total, "UFFDIO_ZEROPAGE calls") \
    X(wakes_total, "UFFDIO_WAKE calls") \
    X(populates_total, "writes to the page cache") \
    X(already_total, "calls that found something in place (EEXIST)") \
    X(already_copies_total, "of them, UFFDIO_COPY") \
    X(already_continues_total, "of them, UFFDIO_CONTINUE") \
    X(partial_total, "calls that did a part, and were made again for the rest (EAGAIN)") \
    X(absent_total, "CONTINUE calls that found a hole (EFAULT)") \
    X(absent_cached_total, "of them, on a page that was CACHED until then") \
    X(absent_owned_total, "of them, on a page that was the guest's already") \
    X(later_total, "calls that found events waiting unread (EAGAIN)") \
    X(full_total, "calls that found no memory") \
    X(alarms_total, "things that cannot be") \
    X(connections_total, "server: connections accepted") \
    X(connections_open, "server: connections open now") \
    X(connections_refused_total, "server: connections closed at once for a limit") \
    X(calls_total, "server: calls begun") \
    X(calls_open, "server: calls open now") \
    X(calls_failed_total, "server: calls ended with another status than OK") \
    X(sent_pages_total, "server: pages sent as bytes") \
    X(sent_zero_pages_total, "server: pages sent as zeros") \
    X(sent_poison_pages_total, "server: pages sent as lost") \
    X(sent_batches_total, "server: batches sent") \
    X(lost_pages_total, "server: pages that a read has found lost (EIO)") \
    X(asked_pages_total, "server: pages asked by FetchPages and GetPage")

#define STATS_HISTOGRAMS(X) \
    X(fault_fetch_ns, "from the reading of a fault to its page mapped, where the page had to be fetched") \
    X(fault_local_ns, "from the reading of a fault to its page mapped, where nothing had to be fetched") \
    X(ask_batch_pages, "pages asked in one request")

#define STATS_ENUM(name, help) STATS_##name,
enum stats_counter { STATS_COUNTERS(STATS_ENUM) STATS_COUNTER_COUNT };
enum stats_histogram { STATS_HISTOGRAMS(STATS_ENUM) STATS_HISTOGRAM_COUNT };
#undef STATS_ENUM

/* Log-linear: below 8 one bucket a value, above eight for each power of two, up to 2^42 (73 minutes in ns). */
#define STATS_BUCKETS 320
/* What a histogram is copied as: a count a bucket, then the sum of all values that were observed. */
#define STATS_HISTOGRAM_VALUES (STATS_BUCKETS + 1)

struct stats {
    _Atomic uint64_t counter[STATS_COUNTER_COUNT];
    _Atomic uint64_t histogram[STATS_HISTOGRAM_COUNT][STATS_HISTOGRAM_VALUES];
};

static inline void stats_add(struct stats *stats, enum stats_counter which, uint64_t amount)
{
    uint64_t now = atomic_load_explicit(&stats->counter[which], memory_order_relaxed);
    atomic_store_explicit(&stats->counter[which], now + amount, memory_order_relaxed);
}

static inline void stats_set(struct stats *stats, enum stats_counter which, uint64_t value)
{
    atomic_store_explicit(&stats->counter[which], value, memory_order_relaxed);
}

static inline uint64_t stats_get(const struct stats *stats, enum stats_counter which)
{
    return atomic_load_explicit(&stats->counter[which], memory_order_relaxed);
}

static inline uint32_t stats_bucket(uint64_t value)
{
    uint32_t bucket = (uint32_t)value;

    if (value >= 8) {
        uint32_t power = 63 - (uint32_t)__builtin_clzll(value);
        bucket = (power - 2) * 8 + (uint32_t)(value >> (power - 3) & 7);
    }
    return bucket < STATS_BUCKETS ? bucket : STATS_BUCKETS - 1;
}

/* The largest value of a bucket. */
static inline uint64_t stats_bucket_limit(uint32_t bucket)
{
    uint32_t power = bucket / 8 + 2;

    return bucket < 8 ? bucket : ((uint64_t)(8 + bucket % 8 + 1) << (power - 3)) - 1;
}

static inline void stats_observe(struct stats *stats, enum stats_histogram which, uint64_t value)
{
    _Atomic uint64_t *bucket = &stats->histogram[which][stats_bucket(value)];
    _Atomic uint64_t *sum = &stats->histogram[which][STATS_BUCKETS];

    atomic_store_explicit(bucket, atomic_load_explicit(bucket, memory_order_relaxed) + 1, memory_order_relaxed);
    atomic_store_explicit(sum, atomic_load_explicit(sum, memory_order_relaxed) + value, memory_order_relaxed);
}

/* stats.c: names for those who list them; NULL past the end. */
const char *stats_counter_name(uint32_t index);
const char *stats_counter_help(uint32_t index);
const char *stats_histogram_name(uint32_t index);
const char *stats_histogram_help(uint32_t index);
/* Adds what `from` has to `sum`: a process with several writers shows their sum. */
void stats_sum(struct stats *sum, const struct stats *from);
/* Copies at most `capacity` of the STATS_HISTOGRAM_VALUES values of one histogram; returns how many there are, 0 for
 * an index that is none. */
uint32_t stats_copy_histogram(const struct stats *stats, uint32_t index, uint64_t *values, uint32_t capacity);

#endif
