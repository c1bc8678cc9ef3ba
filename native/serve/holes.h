/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of a live RAM file may hold data, a bit a page: the others are holes, read as zeros and are
 * sent without being read. Found by SEEK_DATA, never by touching a page: a touch would allocate it.
 *
 * A bit may be set without need, which costs the reading of a page of zeros. It must never be clear without
 * need for as long as the page keeps its version; how that is seen to is in rounds.h. A page that has not
 * arrived may hold data, whatever the file says: it may arrive under the version that it has (arriving.h). One
 * thread looks, any number ask.
 */
#ifndef PAGEFERRY_HOLES_H
#define PAGEFERRY_HOLES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct arriving;

struct holes {
    int fd; /* a description of its own: seeking moves nobody's position */
    uint64_t page_count;
    uint64_t extent_end; /* of a walk in order: data have been seen up to here */
    _Atomic uint64_t *may_hold;
    const struct arriving *arriving; /* set by the owner; NULL: all pages are here */
};

/* `fd` of the RAM file stays the caller's. Until they are looked at all pages may hold data. 0 or -errno. */
int holes_open(struct holes *holes, int fd, uint64_t page_count);
/* Harmless on one that was zeroed. */
void holes_close(struct holes *holes);

bool holes_may_hold_data(const struct holes *holes, uint64_t page);
/* Where the pages end that are alike in this respect from `page` on: looked for up to `end`. */
uint64_t holes_alike_end(const struct holes *holes, uint64_t page, uint64_t end);

/* From the first page again. */
void holes_begin_walk(struct holes *holes);
/* Looks at the next pages of a walk over all, in order. */
void holes_walk(struct holes *holes, uint64_t first_page, uint64_t end);
/* Looks at pages that have changed: quick where most hold data and did so before. */
void holes_look(struct holes *holes, uint64_t first_page, uint64_t end);

#endif
