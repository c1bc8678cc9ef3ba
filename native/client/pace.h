/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much bulk may ask for, and when: pure arithmetic on a clock and on a count of what has come in, urgent pages and
 * the maps of rounds included (wire.h).
 *
 * A bucket of bytes. It fills at a rate; what urgent pages and maps take is taken out of it when it has arrived, and
 * bulk asks for a range only if there is enough in it, and pays at once. What a range costs is known
 * but about, and less if it holds zeros: so what is paid is kept in step with what bulk's link has brought. Urgent pages
 * are never held up: they may take the bucket below nothing, and bulk waits until it has filled again. So faults come
 * first, and all together keep the rate.
 *
 * There may be two, and then both must allow it. The operator's cap, always. And a share of the link's own rate
 * (PACE_PERCENT), while threads wait for pages: what bulk puts on the way beyond the link's rate lies in a queue
 * somewhere, and an urgent page would have to wait behind it. While nobody waits, only the windows of the connection
 * hold bulk back.
 *
 * The link's rate is what it was seen to bring while something was under way all along, and nobody held bulk back: the
 * best of at least two windows of time, for one may meet a busy server, but none brings more than the link can. The
 * first moments of a busy time do not count: token buckets on the way let those through at any speed. As a paced link
 * never shows what it could bring, pacing is lifted for a moment every few seconds of faults; but not below a cap.
 */
#ifndef PAGEFERRY_PACE_H
#define PAGEFERRY_PACE_H

#include <stdbool.h>
#include <stdint.h>

/* What a page of bytes costs on the wire, about. */
#define PACE_PAGE_BYTES UINT64_C(4300)

/* ---- the link's rate ---- */

struct pace_link {
    uint64_t busy_ns;                  /* since when something was under way all along; 0: nothing is */
    uint64_t begun_ns, begun_bytes;    /* of the window, once the first moments are over; 0: it has not begun */
    uint64_t best, best_before;        /* bytes per second: in the time that runs, and in the one before it */
    uint32_t windows;                  /* that have been seen */
    uint64_t turned_ns;                /* when that began */
};

/* Something is under way, or nothing; and that much has arrived, ever. */
void pace_link_look(struct pace_link *link, bool busy, uint64_t arrived_bytes, uint64_t now_ns);
/* Bytes per second; 0: not known yet. */
uint64_t pace_link_rate(const struct pace_link *link);

/* ---- the bucket ---- */

struct pace_bucket {
    uint64_t rate;        /* bytes per second; 0: no bucket */
    int64_t credit_bytes; /* below 0: urgent pages were served on credit */
    uint64_t rest;        /* of a byte, in 1/1e9 */
};

struct pace {
    struct pace_bucket cap;
    struct pace_bucket link; /* below its rate; only while threads wait */
    uint64_t faults_ns;      /* since when they do; 0: nobody does */
    bool lifted;             /* they do, and yet bulk may ask for more than is good for them */
    uint64_t looked_ns;
    uint64_t urgent_bytes;   /* that had arrived then, ever */
    uint64_t owed_bytes;     /* paid for ranges that are under way */
    uint64_t paid_bytes;     /* for those that are not any more: what bulk has brought, less at most what is owed */
};

/* Bytes per second; 0: none. */
void pace_cap(struct pace *pace, uint64_t cap);
/* How things stand now: what the two links have brought, ever; the rate of what they share; whether threads wait. */
void pace_look(struct pace *pace, uint64_t urgent_bytes, uint64_t bulk_bytes, uint64_t link_rate, bool faults_come,
               uint64_t now_ns);

/* May several ranges be under way while threads wait? Where there is a rate, and where it is to be measured. */
static inline bool pace_knows(const struct pace *pace)
{
    return pace->cap.rate != 0 || pace->link.rate != 0 || pace->lifted;
}

/* The longest range that suits the rate, of at most so many pages. */
uint64_t pace_pages(const struct pace *pace, uint64_t pages_max);
/* May a range of so many pages be asked now? */
bool pace_allows(const struct pace *pace, uint64_t pages);
void pace_asked(struct pace *pace, uint64_t pages);
/* A range of so many pages is not under way any more, whatever it has brought. */
void pace_landed(struct pace *pace, uint64_t pages);
/* When that range will be allowed, if nothing urgent comes meanwhile. */
uint64_t pace_next_ns(const struct pace *pace, uint64_t pages);

#endif
