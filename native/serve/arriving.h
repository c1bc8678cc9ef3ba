/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM that was handed on while its memory still arrives: which pages are here. What is read is the page table of the
 * fault client that brings them, in its memfd, for reading alone; docs/chain.md has the order of a page and its races.
 *
 * A hole in the RAM file means zeros only where the page has arrived: whoever asks both asks here first, for the word of
 * a page says that its bytes are whole, and never goes back. Any thread.
 */
#ifndef PAGEFERRY_ARRIVING_H
#define PAGEFERRY_ARRIVING_H

#include <stddef.h>
#include <stdint.h>

#include "../base/words.h"
#include "image.h"

struct arriving {
    const _Atomic uint64_t *words; /* NULL: every page is here */
    void *mapped;
    size_t mapped_bytes;
};

/* The fd stays the caller's. 0; -EPROTO: it is no table of so many pages, or may get shorter; or another -errno. */
int arriving_open(int fd, uint64_t page_count, struct arriving *arriving);
/* Harmless on one that was zeroed. */
void arriving_close(struct arriving *arriving);

/* How `page` is; *end comes down to where the pages end that are so. */
enum image_standing arriving_standing(const struct arriving *arriving, uint64_t page, uint64_t *end);

#endif
