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
#define LIFT_NS (150 * MS_NS)      /* long enough for a window */

/* What may come at once after nothing was to be asked for a while. Below the link's rate it is what a queue would
 * hold: a few ranges. Below a cap it is what keeps a second's average right over the moments between two rounds. */
#define BURST_LINK_NS (2 * MS_NS)
#define BURST_CAP_NS (50 * MS_NS)
#define DEBT_NS S_NS              /* no more than what comes in so long is paid back */

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
        link->begun_ns = now_ns;
        link->begun_bytes = arrived_bytes;
    }
}

uint64_t pace_link_rate(const struct pace_link *link)
{
    return link->best > link->best_before ? link->best : link->best_before;
}

/* -------------------------------------------------------------------------------------------------- the bucket */

static bool is_lifted(const struct pace *pace, uint64_t now_ns)
{
    uint64_t since_ns = now_ns - pace->faults_ns;

    if (pace->faults_ns == 0)
        return false;
    return pace->link == 0 ? since_ns >= LIFT_FIRST_NS : since_ns % (LIFT_EVERY_NS + LIFT_NS) >= LIFT_EVERY_NS;
}

static uint64_t rate_now(const struct pace *pace)
{
    uint64_t below = pace->link / 100 * PF_LIMIT_PACE_PERCENT, rate = pace->cap;

    if (pace->faults_ns != 0 && below != 0 && !pace->lifted && (rate == 0 || below < rate))
        rate = below;
    return rate;
}

static uint64_t of_time(uint64_t rate, uint64_t time_ns)
{
    return (uint64_t)((double)rate * (double)time_ns / (double)S_NS);
}

/* At least two ranges of one page: the slowest link brings something. */
static uint64_t burst_bytes(const struct pace *pace)
{
    uint64_t bytes = of_time(pace->rate, pace->rate == pace->cap ? BURST_CAP_NS : BURST_LINK_NS);

    return bytes > 2 * PACE_PAGE_BYTES ? bytes : 2 * PACE_PAGE_BYTES;
}

/* By what the rate brings in the time since the last look. */
static void fill_up(struct pace *pace, uint64_t now_ns)
{
    uint64_t elapsed_ns = now_ns - pace->looked_ns;
    int64_t burst = (int64_t)burst_bytes(pace);
    unsigned __int128 parts;

    elapsed_ns = elapsed_ns < 2 * DEBT_NS ? elapsed_ns : 2 * DEBT_NS; /* it is full by then, whatever it was */
    parts = (unsigned __int128)pace->rate * elapsed_ns + pace->rest;
    pace->rest = (uint64_t)(parts % S_NS);
    pace->credit_bytes += (int64_t)(parts / S_NS);
    if (pace->credit_bytes > burst)
        pace->credit_bytes = burst;
}

/* Ranges were paid for as if they were all bytes, and about. What was paid for those that have landed is at most what
 * has arrived, and at least that without what those under way may have brought of it. */
static void settle(struct pace *pace, uint64_t bulk_bytes)
{
    if (pace->paid_bytes > bulk_bytes) {
        pace->credit_bytes += (int64_t)(pace->paid_bytes - bulk_bytes);
        pace->paid_bytes = bulk_bytes;
    } else if (pace->paid_bytes + pace->owed_bytes < bulk_bytes) {
        pace->credit_bytes -= (int64_t)(bulk_bytes - pace->owed_bytes - pace->paid_bytes);
        pace->paid_bytes = bulk_bytes - pace->owed_bytes;
    }
}

void pace_cap(struct pace *pace, uint64_t cap)
{
    pace->cap = cap < INT64_MAX / 64 ? cap : 0; /* beyond what there is: none */
}

void pace_look(struct pace *pace, uint64_t urgent_bytes, uint64_t bulk_bytes, uint64_t link_rate, bool faults_come,
               uint64_t now_ns)
{
    int64_t debt = -(int64_t)of_time(pace->rate, DEBT_NS);
    uint64_t rate;

    settle(pace, bulk_bytes);
    pace->credit_bytes -= (int64_t)(urgent_bytes - pace->urgent_bytes);
    if (pace->credit_bytes < debt)
        pace->credit_bytes = debt;
    if (pace->rate != 0)
        fill_up(pace, now_ns);
    else
        pace->credit_bytes = 0;
    pace->urgent_bytes = urgent_bytes;
    pace->looked_ns = now_ns;
    pace->link = link_rate;
    if (!faults_come)
        pace->faults_ns = 0;
    else if (pace->faults_ns == 0)
        pace->faults_ns = now_ns;
    pace->lifted = is_lifted(pace, now_ns);
    rate = rate_now(pace);
    if (pace->rate == 0 && rate != 0) /* what was asked without one is paid for before more is */
        pace->credit_bytes = -(int64_t)pace->owed_bytes;
    pace->rate = rate;
}

uint64_t pace_pages(const struct pace *pace, uint64_t pages_max)
{
    uint64_t pages = pace->rate == 0 ? pages_max : burst_bytes(pace) / 2 / PACE_PAGE_BYTES;

    return pages < pages_max ? pages : pages_max;
}

bool pace_allows(const struct pace *pace, uint64_t pages)
{
    return pace->rate == 0 || pace->credit_bytes >= (int64_t)(pages * PACE_PAGE_BYTES);
}

void pace_asked(struct pace *pace, uint64_t pages)
{
    pace->owed_bytes += pages * PACE_PAGE_BYTES;
    pace->credit_bytes -= (int64_t)(pages * PACE_PAGE_BYTES);
}

void pace_landed(struct pace *pace, uint64_t pages)
{
    pace->owed_bytes -= pages * PACE_PAGE_BYTES;
    pace->paid_bytes += pages * PACE_PAGE_BYTES;
}

uint64_t pace_next_ns(const struct pace *pace, uint64_t pages)
{
    int64_t lacking = (int64_t)(pages * PACE_PAGE_BYTES) - pace->credit_bytes;

    if (pace->rate == 0 || lacking <= 0)
        return pace->looked_ns;
    return pace->looked_ns + (uint64_t)((double)lacking * (double)S_NS / (double)pace->rate) + 1;
}
