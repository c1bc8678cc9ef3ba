/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Poison, as it is spoken of: the log of the pager becomes events for the owner of the handle and frames for the VMM,
 * each entry once and in order. A reader that is behind gets them later.
 */
#ifndef PAGEFERRY_POISON_H
#define PAGEFERRY_POISON_H

#include "loop.h"

/* Tells what there is room for. */
void poison_look(struct loop *loop);
/* When to look again, though nothing happens: the owner is behind. UINT64_MAX: nothing waits for it. */
uint64_t poison_next_ns(const struct loop *loop);

#endif
