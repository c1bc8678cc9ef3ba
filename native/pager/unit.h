/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the kernel maps in units of many pages (region.h). Inside the pager only.
 *
 * A page stays what it is everywhere else: it is asked, versioned and judged by itself, and the words of a unit are its
 * bitmap. Only two things are different. Whoever waits for a page waits for its unit: all of it that is missing is
 * asked. And bytes that come are written where they can be mapped from, and are CACHED; a unit is mapped by one call, once
 * no page of it is MISSING, WANTED or held. So nothing of a unit is visible before the last of it has come, and it is
 * never written after that.
 *
 * On private memory the pages of a unit are gathered in a staging file (kernel/view.h), which dies with its worker: a
 * successor asks for what was CACHED once more. There the copy comes before the claims, as for a single page; claims that
 * are found unfinished say that the copy was made.
 *
 * A marker of poison cannot be smaller than a unit: one page that is lost takes its unit along.
 */
#ifndef PAGEFERRY_UNIT_H
#define PAGEFERRY_UNIT_H

#include "engine.h"
#include "place.h"

static inline bool unit_many(const struct engine *engine)
{
    return engine->regions->unit_pages > 1;
}

/* Armed: a thread waits for this page. True: resolved at once. */
bool unit_fault(struct engine *engine, uint64_t page);
/* No page of the unit lacks its content, or is held back. */
bool unit_whole(const struct engine *engine, uint64_t first_page);
/* Of a whole one: brings it where a thread that waits can have it. */
enum placing unit_resolve(struct engine *engine, uint64_t first_page);
/* PLACE, for pages of one unit. */
struct placed unit_place(struct engine *engine, uint64_t page, uint64_t count, const void *bytes, uint64_t version);
/* The unit of this page has got more of its content: mapped, if it is whole now and nothing but zeros it is not. */
void unit_arrived(struct engine *engine, uint64_t page);
/* Armed: the same for all units of a range. Returns pages that are mapped now. */
uint64_t unit_sweep(struct engine *engine, uint64_t first_page, uint64_t page_count);
/* At a successor's start. */
void unit_take_over(struct engine *engine);

#endif
