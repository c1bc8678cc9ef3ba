/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See holes.h. SEEK_HOLE on tmpfs walks the whole extent (60 ns a page), so a walk over all pages asks it
 * once an extent: what it has called data stays so, at worst without need; what is called a hole was just now
 * looked at.
 */
#include "holes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "arriving.h"

#define HOLE_PAGE_BYTES UINT64_C(4096)
#define SHORT_RUN_PAGES 8 /* to read so many pages of zeros costs less than to look at every run */

int holes_open(struct holes *holes, int fd, uint64_t page_count)
{
    uint64_t words = page_count / 64 + 1;
    char path[32];

    memset(holes, 0, sizeof(*holes));
    holes->page_count = page_count;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    holes->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (holes->fd < 0) /* its mode may not let us: then the position is the VMM's too, which has no use for it */
        holes->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (holes->fd < 0)
        return -errno;
    holes->may_hold = malloc(words * sizeof(*holes->may_hold));
    if (holes->may_hold == NULL) {
        close(holes->fd);
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < words; i++)
        atomic_init(&holes->may_hold[i], UINT64_MAX);
    return 0;
}

void holes_close(struct holes *holes)
{
    if (holes->may_hold != NULL)
        close(holes->fd);
    free(holes->may_hold);
    memset(holes, 0, sizeof(*holes));
}

/* --------------------------------------------------------------------------------------------------- bits */

static uint64_t word_of(const struct holes *holes, uint64_t page)
{
    return atomic_load_explicit(&holes->may_hold[page / 64], memory_order_relaxed);
}

bool holes_may_hold_data(const struct holes *holes, uint64_t page)
{
    return (word_of(holes, page) >> (page % 64) & 1) != 0;
}

uint64_t holes_alike_end(const struct holes *holes, uint64_t page, uint64_t end)
{
    uint64_t alike = holes_may_hold_data(holes, page) ? UINT64_MAX : 0;
    uint64_t at = page;

    while (at < end) {
        uint64_t others = (word_of(holes, at) ^ alike) >> (at % 64);
        if (others != 0) {
            at += (uint64_t)__builtin_ctzll(others);
            break;
        }
        at = (at / 64 + 1) * 64;
    }
    at = at > page ? at : page + 1; /* the bit may have changed since */
    return at < end ? at : end;
}

static void set_bits(struct holes *holes, uint64_t first_page, uint64_t end, bool may_hold)
{
    for (uint64_t at = first_page; at < end;) {
        uint64_t past = (at / 64 + 1) * 64 < end ? (at / 64 + 1) * 64 : end;
        uint64_t bits = (past - at == 64 ? UINT64_MAX : (UINT64_C(1) << (past - at)) - 1) << (at % 64);
        uint64_t word = word_of(holes, at);
        atomic_store_explicit(&holes->may_hold[at / 64], may_hold ? word | bits : word & ~bits,
                              memory_order_relaxed);
        at = past;
    }
}

/* ------------------------------------------------------------------------------------------------ looking */

/* The page of what lseek finds from `page` on, rounded down for data and up for a hole; page_count at the end
 * of the file. Where it cannot tell, everything may hold data. */
static uint64_t seek(const struct holes *holes, uint64_t page, int what)
{
    off_t at = lseek(holes->fd, (off_t)(page * HOLE_PAGE_BYTES), what);
    uint64_t found = holes->page_count;

    if (at >= 0)
        found = ((uint64_t)at + (what == SEEK_HOLE ? HOLE_PAGE_BYTES - 1 : 0)) / HOLE_PAGE_BYTES;
    else if (errno != ENXIO)
        found = what == SEEK_HOLE ? page + 1 : page;
    return found > page || what == SEEK_DATA ? found : page + 1;
}

void holes_begin_walk(struct holes *holes)
{
    holes->extent_end = 0;
}

/* Are the pages from `page` on to be left as such that may hold data? *end: how far. Their words are loaded before the
 * file is looked at: what arrives in between is data to us, and not a hole. */
static bool not_here(const struct holes *holes, uint64_t page, uint64_t *end)
{
    return holes->arriving != NULL && arriving_standing(holes->arriving, page, end) != IMAGE_HERE;
}

static void walk(struct holes *holes, uint64_t first_page, uint64_t end)
{
    uint64_t page = first_page;

    while (page < end) {
        if (page >= holes->extent_end) {
            uint64_t data = seek(holes, page, SEEK_DATA);
            set_bits(holes, page, data < end ? data : end, false);
            page = data < end ? data : end;
            if (page < end)
                holes->extent_end = seek(holes, page, SEEK_HOLE);
        } else {
            uint64_t past = holes->extent_end < end ? holes->extent_end : end;
            set_bits(holes, page, past, true);
            page = past;
        }
    }
}

/* A page that was known to hold data is passed over, unless a longer run begins with it: a run that is given
 * back as a whole is then seen as the hole that it is. */
static void look(struct holes *holes, uint64_t first_page, uint64_t end)
{
    uint64_t page = first_page;

    if (end - page < SHORT_RUN_PAGES && holes_may_hold_data(holes, page))
        page = holes_alike_end(holes, page, end);
    while (page < end) {
        uint64_t data = seek(holes, page, SEEK_DATA);
        set_bits(holes, page, data < end ? data : end, false);
        page = data;
        if (page < end) {
            set_bits(holes, page, page + 1, true);
            if (++page < end && holes_may_hold_data(holes, page))
                page = holes_alike_end(holes, page, end);
        }
    }
}

static void each_standing(struct holes *holes, uint64_t first_page, uint64_t end,
                          void (*if_here)(struct holes *holes, uint64_t first_page, uint64_t end))
{
    uint64_t past;

    for (uint64_t page = first_page; page < end; page = past) {
        past = end;
        if (not_here(holes, page, &past))
            set_bits(holes, page, past, true);
        else
            if_here(holes, page, past);
    }
}

void holes_walk(struct holes *holes, uint64_t first_page, uint64_t end)
{
    each_standing(holes, first_page, end, walk);
}

void holes_look(struct holes *holes, uint64_t first_page, uint64_t end)
{
    each_standing(holes, first_page, end, look);
}
