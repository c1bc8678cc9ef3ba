/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See rounds.h, where the order of the four steps and its reasons are. A piece is what one look at the page
 * table brings, at most SCAN_RANGES_MAX dirty ranges; a step is one piece or a few.
 */
#include "rounds.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define PAGE_SHIFT_BITS 12

int rounds_open(struct rounds *rounds, const struct scan_calls *scan, int pagemap_fd,
                const struct rounds_region *regions, uint32_t region_count, struct versions *versions,
                struct holes *holes, _Atomic uint64_t *as_of)
{
    memset(rounds, 0, sizeof(*rounds));
    rounds->scan = scan;
    rounds->pagemap_fd = pagemap_fd;
    rounds->regions = regions;
    rounds->region_count = region_count;
    rounds->versions = versions;
    rounds->holes = holes;
    rounds->as_of = as_of;
    rounds->page_count = versions->page_count;
    atomic_store(as_of, versions_as_of(versions));
    return -pthread_mutex_init(&rounds->lock, NULL);
}

void rounds_close(struct rounds *rounds)
{
    pthread_mutex_destroy(&rounds->lock);
}

static int reason_of(int rc)
{
    int reason = PF_REASON_BUG;

    if (rc == -ESRCH)
        reason = PF_REASON_NO_VMM;
    else if (rc == -EPERM)
        reason = PF_REASON_MISMATCH;
    return -reason;
}

/* Nothing is settled in this incarnation: this round names every page. */
static bool names_all(const struct rounds *rounds)
{
    return (uint32_t)versions_as_of(rounds->versions) == 0;
}

/* ------------------------------------------------------------------------------------------------ a piece */

/* What one look covers: addresses of one region, and the page that the first of them is. */
struct piece {
    uint64_t start;
    uint64_t end;
    uint64_t first_page;
};

static uint64_t page_at(const struct piece *piece, uint64_t address)
{
    return piece->first_page + ((address - piece->start) >> PAGE_SHIFT_BITS);
}

/* The next pages, at most `pages_max`, as far as their region goes. */
static struct piece next_piece(const struct rounds *rounds, uint64_t pages_max)
{
    const struct rounds_region *region = &rounds->regions[rounds->region];
    uint64_t into = rounds->page - region->first_page;
    uint64_t pages = region->page_count - into < pages_max ? region->page_count - into : pages_max;
    uint64_t start = region->address + (into << PAGE_SHIFT_BITS);

    return (struct piece){start, start + (pages << PAGE_SHIFT_BITS), rounds->page};
}

static void raise_pages(struct rounds *rounds, uint64_t first_page, uint64_t end)
{
    versions_raise(rounds->versions, first_page, end - first_page, rounds->round);
    rounds->named_pages += end - first_page;
}

/* Whatever the kernel says of it: what may have been reset is raised. */
static int clear_and_raise(struct rounds *rounds, const struct piece *piece, uint32_t range_count, bool final)
{
    int rc = 0;

    for (uint32_t i = 0; rc == 0 && i < range_count; i++) {
        const struct scan_range *range = &rounds->found[i];
        uint64_t first_page = page_at(piece, range->start), end = page_at(piece, range->end);
        if (!final)
            rc = rounds->scan->reset(rounds->pagemap_fd, range->start, range->end);
        holes_look(rounds->holes, first_page, end);
        raise_pages(rounds, first_page, end);
    }
    return rc;
}

/* The same for every page of the piece, dirty or not. */
static int clear_and_raise_all(struct rounds *rounds, const struct piece *piece, bool final)
{
    uint64_t end = page_at(piece, piece->end);
    int rc = final ? 0 : rounds->scan->reset(rounds->pagemap_fd, piece->start, piece->end);

    holes_walk(rounds->holes, piece->first_page, end);
    raise_pages(rounds, piece->first_page, end);
    return rc;
}

/* Of pages that held data, those that are a hole by now: a drop of a page that was clean, which no look has seen. */
static void raise_dropped(struct rounds *rounds, uint64_t first_page, uint64_t end)
{
    uint64_t past, run_end;

    for (uint64_t page = first_page; page < end; page = past) {
        past = holes_alike_end(rounds->holes, page, end);
        if (!holes_may_hold_data(rounds->holes, page))
            continue;
        holes_walk(rounds->holes, page, past);
        for (uint64_t run = page; run < past; run = run_end) {
            run_end = holes_alike_end(rounds->holes, run, past);
            if (!holes_may_hold_data(rounds->holes, run))
                raise_pages(rounds, run, run_end);
        }
    }
}

/* Lost pages that no round has named yet; one that was raised just now has been. */
static void raise_lost(struct rounds *rounds, uint64_t first_page, uint64_t end)
{
    uint64_t page = first_page, alike;

    while (rounds->lost != NULL && (page = lost_take_unnamed(rounds->lost, page, end)) < end) {
        alike = page + 1;
        if ((uint32_t)versions_of(rounds->versions, page, &alike) != rounds->round)
            raise_pages(rounds, page, page + 1);
    }
}

/* Looks at the next pages and deals with them. The number of pages, or -errno. */
static int64_t do_piece(struct rounds *rounds, uint64_t pages_max, bool final)
{
    struct piece piece = next_piece(rounds, pages_max);
    uint64_t looked_end = piece.end;
    int rc = rounds->scan->dirty(rounds->pagemap_fd, piece.start, piece.end, rounds->found, &looked_end);

    if (rc < 0)
        return rc;
    piece.end = looked_end;
    rc = names_all(rounds) ? clear_and_raise_all(rounds, &piece, final)
                           : clear_and_raise(rounds, &piece, (uint32_t)rc, final);
    if (rc < 0)
        return rc;
    if (final && rounds->drops_untold)
        raise_dropped(rounds, piece.first_page, page_at(&piece, piece.end));
    raise_lost(rounds, piece.first_page, page_at(&piece, piece.end));
    rounds->page = page_at(&piece, piece.end);
    if (rounds->page == rounds->regions[rounds->region].first_page + rounds->regions[rounds->region].page_count)
        rounds->region++;
    return (int64_t)(rounds->page - piece.first_page);
}

/* ------------------------------------------------------------------------------------------------ a round */

static int start_round(struct rounds *rounds)
{
    rounds->round = versions_begin(rounds->versions);
    rounds->region = 0;
    rounds->page = 0;
    rounds->named_pages = 0;
    holes_begin_walk(rounds->holes);
    return rounds->round == 0 ? -PF_REASON_BUG : 0;
}

static void end_round(struct rounds *rounds)
{
    rounds->round = 0;
    rounds->held = false;
}

static void note_time(struct rounds *rounds)
{
    struct timespec now;
    uint64_t now_ns, before_ns = atomic_load(&rounds->settled_ns);

    clock_gettime(CLOCK_MONOTONIC, &now);
    now_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    atomic_store(&rounds->round_ns, before_ns == 0 ? 0 : now_ns - before_ns);
    atomic_store(&rounds->settled_ns, now_ns);
}

static void settle_round(struct rounds *rounds)
{
    versions_settle(rounds->versions, rounds->round);
    atomic_store(rounds->as_of, versions_as_of(rounds->versions));
    rounds->settled_pages = rounds->named_pages;
    note_time(rounds);
    end_round(rounds);
}

/* 1: every page has been looked at; 0: as many as were to be. */
static int do_pieces(struct rounds *rounds, uint64_t pages_max, bool final)
{
    uint64_t looked_pages = 0, before = rounds->named_pages;

    while (rounds->page < rounds->page_count && looked_pages < pages_max &&
           (final || looked_pages == 0 || rounds->named_pages - before < SCAN_RANGES_MAX)) {
        int64_t done = do_piece(rounds, pages_max - looked_pages, final);
        if (done < 0) {
            end_round(rounds);
            return reason_of((int)done);
        }
        looked_pages += (uint64_t)done;
    }
    return rounds->page == rounds->page_count;
}

int rounds_begin(struct rounds *rounds, uint32_t *round)
{
    int rc = 0;

    pthread_mutex_lock(&rounds->lock);
    if (versions_frozen(rounds->versions))
        rc = -PF_REASON_WRONG_PHASE;
    else if (rounds->held)
        rc = -PF_REASON_BUSY;
    else if (rounds->round == 0)
        rc = start_round(rounds);
    if (rc == 0)
        rounds->held = true;
    *round = rc == 0 ? rounds->round : 0;
    pthread_mutex_unlock(&rounds->lock);
    return rc;
}

int rounds_step(struct rounds *rounds, uint32_t round)
{
    int rc;

    pthread_mutex_lock(&rounds->lock);
    if ((uint32_t)versions_as_of(rounds->versions) >= round) {
        rc = 1;
    } else if (rounds->round != round) {
        rc = -PF_REASON_WRONG_PHASE; /* dropped: by a freeze that failed, or in an incarnation that is over */
    } else {
        rc = do_pieces(rounds, ROUNDS_STEP_PAGES, false);
        if (rc == 1)
            settle_round(rounds);
    }
    pthread_mutex_unlock(&rounds->lock);
    return rc;
}

void rounds_leave(struct rounds *rounds, uint32_t round)
{
    pthread_mutex_lock(&rounds->lock);
    if (rounds->round == round)
        rounds->held = false;
    pthread_mutex_unlock(&rounds->lock);
}

int rounds_freeze(struct rounds *rounds)
{
    int rc = 0;

    pthread_mutex_lock(&rounds->lock);
    if (!versions_frozen(rounds->versions)) {
        end_round(rounds);
        rc = start_round(rounds);
        if (rc == 0)
            rc = do_pieces(rounds, rounds->page_count, true);
        if (rc == 1) {
            settle_round(rounds);
            versions_freeze(rounds->versions);
            rc = 0;
        }
    }
    pthread_mutex_unlock(&rounds->lock);
    return rc;
}

int rounds_thaw(struct rounds *rounds)
{
    int rc = 0;

    pthread_mutex_lock(&rounds->lock);
    if (versions_frozen(rounds->versions)) {
        rc = versions_renew(rounds->versions) < 0 ? -PF_REASON_BUG : 0;
        atomic_store(rounds->as_of, versions_as_of(rounds->versions));
    }
    pthread_mutex_unlock(&rounds->lock);
    return rc;
}

int rounds_lose(struct rounds *rounds, uint64_t first_page, uint64_t page_count)
{
    int rc = 0;

    pthread_mutex_lock(&rounds->lock);
    if (versions_frozen(rounds->versions))
        rc = -PF_REASON_WRONG_PHASE;
    else
        lost_note(rounds->lost, first_page, page_count);
    pthread_mutex_unlock(&rounds->lock);
    return rc;
}

int rounds_protect_alone(struct rounds *rounds, int uffd)
{
    int rc = 0;

    pthread_mutex_lock(&rounds->lock);
    for (uint32_t i = 0; rc == 0 && i < rounds->region_count; i++) {
        const struct rounds_region *region = &rounds->regions[i];
        rc = scan_protect_alone(uffd, region->address, region->address + (region->page_count << PAGE_SHIFT_BITS));
    }
    pthread_mutex_unlock(&rounds->lock);
    return rc < 0 ? reason_of(rc) : 0;
}

uint64_t rounds_settled_pages(struct rounds *rounds)
{
    uint64_t pages;

    pthread_mutex_lock(&rounds->lock);
    pages = rounds->settled_pages;
    pthread_mutex_unlock(&rounds->lock);
    return pages;
}

void rounds_news(const struct rounds *rounds, struct rounds_news *news)
{
    news->as_of = versions_as_of(rounds->versions);
    news->settled_pages = atomic_load(&rounds->settled_pages);
    news->round_ns = atomic_load(&rounds->round_ns);
    news->frozen = versions_frozen(rounds->versions);
}
