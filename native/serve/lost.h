/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which pages of an image are lost, a bit a page: from then on they travel as POISON, and their bytes never again.
 * Nothing ever takes a page out.
 *
 * What is lost is a page, by the word of an operator or of the kernel: EIO, a memory error or a bad sector. What cannot
 * be read now for any other reason is not lost.
 *
 * Of a live image the next round shall name each of them once more, so that a target that holds bytes of before drops
 * them: those that no round has named yet have a second bit. Whoever sees that one sees the first one, too.
 */
#ifndef PAGEFERRY_LOST_H
#define PAGEFERRY_LOST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct lost {
    uint64_t page_count;
    _Atomic uint64_t count; /* lost by now */
    _Atomic uint64_t *pages;
    _Atomic uint64_t *unnamed; /* of a live image; NULL: there are no rounds */
};

/* 0 or -ENOMEM. Memory is taken where bits are set. */
int lost_open(struct lost *lost, uint64_t page_count, bool live);
/* Harmless on one that was zeroed. */
void lost_close(struct lost *lost);

/* By any thread. Pages within the image; returns how many of them were not lost before. */
uint64_t lost_note(struct lost *lost, uint64_t first_page, uint64_t page_count);
/* Is `page` lost? *end comes down to where the pages end that are alike in this. */
bool lost_has(const struct lost *lost, uint64_t page, uint64_t *end);

/* By one thread at a time: the next page from `page` on, before `end`, that no round has named, and does from now on; `end`
 * if there is none. */
uint64_t lost_take_unnamed(struct lost *lost, uint64_t page, uint64_t end);

#endif
