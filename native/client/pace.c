/* SPDX-License-Identifier: Apache-2.0 */
/* The bucket, and the link's rate: see pace.h. */
#include "pace.h"

#include "../gen/contract.h"

#define MS_NS UINT64_C(1000000)
#define S_NS UINT64_C(1000000000)

/* A token bucket of 256 KiB on a link of 1 Gbit/s is empty after 2 ms; if it has filled again by then, because a server
 * was busy, it does a window 2 % good. */
#define WINDOW_SKIP_NS (10 * MS_NS)
#define WINDOW_NS (100 * MS_NS)
#define BEST_NS (5 * S_NS)         /* the best of between one and two such times */
#define LIFT_FIRST_NS (S_NS / 5)   /* after the first fault, where the rate is not known: the first heartbeat is over */
#define LIFT_EVERY_NS (5 * S_NS)   /* of faults, where it is; less than what the best is kept */
#define LIFT_NS (250 * MS_NS)      /* long enough for two windows */
#define WINDOWS_MIN 2

/* What may come at once after nothing was asked for a while. Below the link's rate it is what a queue would hold: a few
 * ranges. Below a cap it makes up for the moments between two rounds, or of a busy machine: an average of ten seconds
 * is no more than 2.5 % above. */
#define BURST_LINK_NS (2 * MS_NS)
#define BURST_CAP_NS (250 * MS_NS)
/* What a single range may take. */
#define RANGE_LINK_NS (1 * MS_NS)
#define RANGE_CAP_NS (25 * MS_NS)
/* And what urgent pages have taken on credit is paid back, up to this: below the link's rate it is over with the queue,
 * below a cap it is the average of so long that counts. */
#define DEBT_LINK_NS BURST_LINK_NS
#define DEBT_CAP_NS (10 * S_NS)

/* --------------------------------------------------------------------------------------------- the link's rate */

static void turn(struct pace_link *link, uint64_t now_ns)
{
    if (now_ns - link->turned_ns >= BEST_NS) {
        link->best_before = now_ns - link->turned_ns < 2 * BEST_NS ? link->best : 0;
        link->best = 0;
        link->turned_ns = now_ns;
    }
}

void pace_link_look(struct pace_link *link, bool busy, uint64_t arrived_bytes, uint64_t now_ns)
{
    uint64_t rate;

    if (!busy) {
        link->busy_ns = link->begun_ns = 0;
    } else if (link->busy_ns == 0) {
        link->busy_ns = now_ns;
    } else if (link->begun_ns == 0) {
        if (now_ns - link->busy_ns >= WINDOW_SKIP_NS) {
            link->begun_ns = now_ns;
            link->begun_bytes = arrived_bytes;
        }
    } else if (now_ns - link->begun_ns >= WINDOW_NS) {
        turn(link, now_ns);
        rate = (uint64_t)((double)(arrived_bytes - link->begun_bytes) * (double)S_NS /
                          (double)(now_ns - link->begun_ns));
        link->best = rate > link->best ? rate : link->best;
        link->windows += link->windows < WINDOWS_MIN;
        link->begun_ns = now_ns;
        link->begun_bytes = arrived_bytes;
    }
}

uint64_t pace_link_rate(const struct pace_link *link)
{
    if (link->windows < WINDOWS_MIN)
        return 0;
    return link->best > link->best_before ? link->best : link->best_before;
}

/* -------------------------------------------------------------------------------------------------- the buckets */

static uint64_t of_time(uint64_t rate, uint64_t time_ns)
{
    return (uint64_t)((double)rate * (double)time_ns / (double)S_NS);
}

/* At least two ranges of one page: the slowest link brings something. */
static uint64_t burst_bytes(const struct pace_bucket *bucket, uint64_t burst_ns)
{
    uint64_t bytes = of_time(bucket->rate, burst_ns);

    return bytes > 2 * PACE_PAGE_BYTES ? bytes : 2 * PACE_PAGE_BYTES;
}

static void fill_up(struct pace_bucket *bucket, uint64_t elapsed_ns, uint64_t burst_ns, uint64_t debt_ns)
{
    int64_t burst = (int64_t)burst_bytes(bucket, burst_ns), debt = -(int64_t)of_time(bucket->rate, debt_ns);
    unsigned __int128 parts = (unsigned __int128)bucket->rate * elapsed_ns + bucket->rest;

    if (bucket->credit_bytes < debt)
        bucket->credit_bytes = debt;
    bucket->rest = (uint64_t)(parts % S_NS);
    bucket->credit_bytes += (int64_t)(parts / S_NS);
    if (bucket->credit_bytes > burst)
        bucket->credit_bytes = burst;
}

/* The rate from now on. What was asked while there was none is paid for before more is. */
static void set_rate(struct pace_bucket *bucket, uint64_t rate, uint64_t owed_bytes)
{
    if (bucket->rate == 0 && rate != 0)
        bucket->credit_bytes = -(int64_t)owed_bytes;
    bucket->rate = rate;
}

static bool has(const struct pace_bucket *bucket, uint64_t bytes)
{
    return bucket->rate == 0 || bucket->credit_bytes >= (int64_t)bytes;
}

static uint64_t until_it_has(const struct pace_bucket *bucket, uint64_t bytes)
{
    return has(bucket, bytes) ? 0
                              : (uint64_t)((double)((int64_t)bytes - bucket->credit_bytes) * (double)S_NS /
                                           (double)bucket->rate) + 1;
}

/* ----------------------------------------------------------------------------------------------------- the pace */

static void pay(struct pace *pace, int64_t bytes)
{
    pace->cap.credit_bytes -= bytes;
    pace->link.credit_bytes -= bytes;
}

/* Ranges were paid for as if they were all bytes, and about. What was paid for those that have landed is at most what
 * has arrived, and at least that without what those under way may have brought of it. */
static void settle(struct pace *pace, uint64_t bulk_bytes)
{
    if (pace->paid_bytes > bulk_bytes) {
        pay(pace, -(int64_t)(pace->paid_bytes - bulk_bytes));
        pace->paid_bytes = bulk_bytes;
    } else if (pace->paid_bytes + pace->owed_bytes < bulk_bytes) {
        pay(pace, (int64_t)(bulk_bytes - pace->owed_bytes - pace->paid_bytes));
        pace->paid_bytes = bulk_bytes - pace->owed_bytes;
    }
}

static bool is_lifted(const struct pace *pace, bool rate_known, uint64_t now_ns)
{
    uint64_t since_ns = now_ns - pace->faults_ns;

    if (pace->faults_ns == 0 || pace->cap.rate != 0)
        return false;
    return rate_known ? since_ns % (LIFT_EVERY_NS + LIFT_NS) >= LIFT_EVERY_NS : since_ns >= LIFT_FIRST_NS;
}

void pace_cap(struct pace *pace, uint64_t cap)
{
    set_rate(&pace->cap, cap < INT64_MAX / 64 ? cap : 0, pace->owed_bytes); /* beyond what there is: none */
}

void pace_look(struct pace *pace, uint64_t urgent_bytes, uint64_t bulk_bytes, uint64_t link_rate, bool faults_come,
               uint64_t now_ns)
{
    uint64_t elapsed_ns = pace->looked_ns == 0 ? 0 : now_ns - pace->looked_ns;

    elapsed_ns = elapsed_ns < 2 * DEBT_CAP_NS ? elapsed_ns : 2 * DEBT_CAP_NS; /* full by then, whatever it was */
    settle(pace, bulk_bytes);
    pay(pace, (int64_t)(urgent_bytes - pace->urgent_bytes));
    fill_up(&pace->cap, elapsed_ns, BURST_CAP_NS, DEBT_CAP_NS);
    fill_up(&pace->link, elapsed_ns, BURST_LINK_NS, DEBT_LINK_NS);
    pace->urgent_bytes = urgent_bytes;
    pace->looked_ns = now_ns;
    if (!faults_come)
        pace->faults_ns = 0;
    else if (pace->faults_ns == 0)
        pace->faults_ns = now_ns;
    pace->lifted = is_lifted(pace, link_rate != 0, now_ns);
    set_rate(&pace->link, faults_come && !pace->lifted ? link_rate / 100 * PF_LIMIT_PACE_PERCENT : 0,
             pace->owed_bytes);
}

uint64_t pace_pages(const struct pace *pace, uint64_t pages_max)
{
    uint64_t cap_pages = of_time(pace->cap.rate, RANGE_CAP_NS) / PACE_PAGE_BYTES;
    uint64_t link_pages = of_time(pace->link.rate, RANGE_LINK_NS) / PACE_PAGE_BYTES;
    uint64_t pages = pages_max;

    if (pace->cap.rate != 0 && cap_pages < pages)
        pages = cap_pages;
    if (pace->link.rate != 0 && link_pages < pages)
        pages = link_pages;
    return pages == 0 && pages_max > 0 ? 1 : pages;
}

bool pace_allows(const struct pace *pace, uint64_t pages)
{
    return has(&pace->cap, pages * PACE_PAGE_BYTES) && has(&pace->link, pages * PACE_PAGE_BYTES);
}

void pace_asked(struct pace *pace, uint64_t pages)
{
    pace->owed_bytes += pages * PACE_PAGE_BYTES;
    pay(pace, (int64_t)(pages * PACE_PAGE_BYTES));
}

void pace_landed(struct pace *pace, uint64_t pages)
{
    pace->owed_bytes -= pages * PACE_PAGE_BYTES;
    pace->paid_bytes += pages * PACE_PAGE_BYTES;
}

uint64_t pace_next_ns(const struct pace *pace, uint64_t pages)
{
    uint64_t cap_ns = until_it_has(&pace->cap, pages * PACE_PAGE_BYTES);
    uint64_t link_ns = until_it_has(&pace->link, pages * PACE_PAGE_BYTES);

    return pace->looked_ns + (cap_ns > link_ns ? cap_ns : link_ns);
}
