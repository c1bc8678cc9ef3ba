/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page machine. One table says what happens to a page: names, steps, docs/page-machine.md and the simulation's
 * coverage all come from it.
 *
 * A page is one 64-bit word: base/words.h.
 */
#ifndef PAGEFERRY_PAGE_H
#define PAGEFERRY_PAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/words.h"

#define PAGE_BYTES 4096u
#define PAGE_SHIFT 12

#define PAGE_EVENTS(X) \
    X(FAULT, "a thread waits for the page") \
    X(DATA, "acceptable bytes have come") \
    X(ZEROS, "the news that the page is all zeros has come, acceptable") \
    X(FLOOR, "the source has newer bytes than what is held") \
    X(SWEEP, "armed: map what is cached, ahead of faults") \
    X(REMOVED, "the VMM has dropped the page: a REMOVE on private memory, or the shim's word") \
    X(LOST, "the page is poisoned from now on") \
    X(CLEARED, "the poison of the page ends, by order or by the VMM's word")

#define PAGE_ACTIONS(X) \
    X(NOTHING, "no step") \
    X(PARK, "nothing is mapped before arming; the wake of arming brings the fault again") \
    X(ASK, "ask the server, once") \
    X(POPULATE, "stale bit, write to the page cache, claim") \
    X(PLACE, "not stale: COPY, claim. Stale: write, claim, CONTINUE. Private: COPY, claim") \
    X(CLEAR, "punch what a stale cache holds, claim as zeros") \
    X(RAISE, "raise the floor; a poisoned page stays poisoned, at that version; what was zeros is stale now") \
    X(FORGET, "raise the floor; what the cache holds is stale now") \
    X(MAP, "claim, CONTINUE; a hole means discarded: ZEROPAGE; already mapped: WAKE") \
    X(MAP_ZERO, "ZEROPAGE, claim; something in the cache: punch it, once more") \
    X(DROP, "not wanted any more: count it") \
    X(POISON, "claim, punch the bytes, UFFDIO_POISON, WAKE; a kernel without: hold back") \
    X(FRESH, "claim as zeros that the source has no word in; armed: replace the marker by a page of zeros") \
    X(ILLEGAL, "cannot happen: alarm")

/* state, event, armed?, action, next state. A cell that is not named is NOTHING. ANY names both columns. */
#define PAGE_STEPS(X) \
    X(MISSING, FAULT, UNARMED, PARK, MISSING) \
    X(MISSING, FAULT, ARMED, ASK, WANTED) \
    X(MISSING, DATA, UNARMED, POPULATE, CACHED) \
    X(MISSING, DATA, ARMED, PLACE, OWNED) \
    X(MISSING, ZEROS, ANY, CLEAR, ZERO) \
    X(MISSING, FLOOR, UNARMED, RAISE, MISSING) \
    X(MISSING, FLOOR, ARMED, ILLEGAL, MISSING) \
    X(MISSING, REMOVED, UNARMED, NOTHING, MISSING) \
    X(MISSING, REMOVED, ARMED, CLEAR, ZERO) \
    X(MISSING, LOST, ANY, POISON, POISONED) \
    X(WANTED, FAULT, ARMED, NOTHING, WANTED) \
    X(WANTED, DATA, ARMED, PLACE, OWNED) \
    X(WANTED, ZEROS, ARMED, MAP_ZERO, OWNED) \
    X(WANTED, FLOOR, ARMED, ILLEGAL, WANTED) \
    X(WANTED, REMOVED, ARMED, MAP_ZERO, OWNED) \
    X(WANTED, LOST, ARMED, POISON, POISONED) \
    X(CACHED, FAULT, UNARMED, PARK, CACHED) \
    X(CACHED, FAULT, ARMED, MAP, OWNED) \
    X(CACHED, DATA, UNARMED, POPULATE, CACHED) \
    X(CACHED, DATA, ARMED, DROP, CACHED) \
    X(CACHED, ZEROS, UNARMED, CLEAR, ZERO) \
    X(CACHED, ZEROS, ARMED, DROP, CACHED) \
    X(CACHED, FLOOR, UNARMED, FORGET, MISSING) \
    X(CACHED, FLOOR, ARMED, ILLEGAL, CACHED) \
    X(CACHED, SWEEP, ARMED, MAP, OWNED) \
    X(CACHED, REMOVED, UNARMED, NOTHING, CACHED) \
    X(CACHED, REMOVED, ARMED, CLEAR, ZERO) \
    X(CACHED, LOST, ANY, POISON, POISONED) \
    X(ZERO, FAULT, UNARMED, PARK, ZERO) \
    X(ZERO, FAULT, ARMED, MAP_ZERO, OWNED) \
    X(ZERO, DATA, UNARMED, POPULATE, CACHED) \
    X(ZERO, DATA, ARMED, DROP, ZERO) \
    X(ZERO, ZEROS, UNARMED, CLEAR, ZERO) \
    X(ZERO, ZEROS, ARMED, DROP, ZERO) \
    X(ZERO, FLOOR, UNARMED, RAISE, MISSING) \
    X(ZERO, FLOOR, ARMED, ILLEGAL, ZERO) \
    X(ZERO, LOST, ANY, POISON, POISONED) \
    X(OWNED, FAULT, ARMED, MAP, OWNED) \
    X(OWNED, DATA, ARMED, DROP, OWNED) \
    X(OWNED, ZEROS, ARMED, DROP, OWNED) \
    X(OWNED, FLOOR, ARMED, ILLEGAL, OWNED) \
    X(OWNED, LOST, ARMED, POISON, POISONED) \
    X(POISONED, FAULT, UNARMED, PARK, POISONED) \
    X(POISONED, FAULT, ARMED, POISON, POISONED) \
    X(POISONED, DATA, ANY, DROP, POISONED) \
    X(POISONED, ZEROS, ANY, DROP, POISONED) \
    X(POISONED, FLOOR, UNARMED, RAISE, POISONED) \
    X(POISONED, REMOVED, ARMED, POISON, POISONED) \
    X(POISONED, CLEARED, UNARMED, FRESH, ZERO) \
    X(POISONED, CLEARED, ARMED, FRESH, OWNED)

#define PAGE_NAME(name, help) PAGE_EVENT_##name,
enum page_event { PAGE_EVENTS(PAGE_NAME) PAGE_EVENT_COUNT };
#undef PAGE_NAME
#define PAGE_NAME(name, help) PAGE_ACTION_##name,
enum page_action { PAGE_ACTIONS(PAGE_NAME) PAGE_ACTION_COUNT };
#undef PAGE_NAME

struct page_step {
    uint8_t action; /* enum page_action */
    uint8_t next;   /* enum page_state */
    bool legal;     /* the table names this cell, and not as ILLEGAL */
};

/* page.c; the three may not be out of range. */
struct page_step page_step(enum page_state state, enum page_event event, bool armed);
const char *page_state_name(enum page_state state); /* NULL when out of range; the two below too */
const char *page_event_name(enum page_event event);
const char *page_action_name(enum page_action action);

#endif
