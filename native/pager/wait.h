/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who waits, and for what: asks at the server, faults that cannot be resolved yet, and when each is tried again.
 * Inside the pager only. Every thread that sleeps on a page is accounted for in one of four ways: its page is WANTED
 * and asked, its fault is parked with a time, it is unread in the kernel, or the page is held back and reported.
 */
#ifndef PAGEFERRY_WAIT_H
#define PAGEFERRY_WAIT_H

#include "engine.h"
#include "place.h"

static inline bool wait_armed(const struct engine *engine)
{
    return atomic_load_explicit(&engine->table->header->armed, memory_order_relaxed) != 0;
}

/* A step goes into the trace: `word` is the first page's, before it. */
void wait_note(struct engine *engine, uint64_t page, uint64_t count, uint64_t word, enum page_event event,
               enum page_action action);
uint64_t wait_clock_ns(const struct engine *engine);
/* What cannot be, was; nothing is done. */
void wait_alarm(struct engine *engine, uint64_t page, uint64_t value, const char *text);

/* Asks for a page that has just become WANTED. */
void wait_ask(struct engine *engine, uint64_t page);
/* The same of one that shares its unit with it. */
void wait_ask_with(struct engine *engine, uint64_t page);
/* Once more, if it still is. */
void wait_ask_again(struct engine *engine, uint64_t page);
/* These pages are the guest's now: how long did those take that were asked? */
void wait_observe(struct engine *engine, uint64_t page, uint64_t count);

/* A thread waits for a page that has its content (CACHED, ZERO, OWNED, POISONED): brings it there now, or parks it.
 * True: now. Of a unit of many pages: all of it, once it is whole. */
bool wait_settle(struct engine *engine, uint64_t page);
/* The fault of this page is parked. */
bool wait_parked(const struct engine *engine, uint64_t page);
/* After LATER, outside a batch: reads and works on what is unread. True: judge anew and try again. */
bool wait_drain(struct engine *engine, int *tries);
/* No memory: when to try again. */
uint64_t wait_full_due_ns(const struct engine *engine);

#endif
