/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a loop tells the owner of its handle: events, and pauses, which are conditions under which nothing moves.
 */
#ifndef PAGEFERRY_TELL_H
#define PAGEFERRY_TELL_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/ring.h"
#include "../pageferry.h"

/* Zeroed: it does not hold. */
struct tell_pause {
    uint64_t since_ns;
    uint64_t told_ns;       /* PAUSED was said, with this reason */
    uint64_t not_before_ns; /* it could not be said: try again then */
    bool said;              /* PAUSED was said at all: RESUMED is owed */
    uint32_t reason;
    char text[PAGEFERRY_TEXT_BYTES];
};

struct tell {
    struct ring events; /* struct pageferry_event */
};

int tell_open(struct tell *tell);
void tell_close(struct tell *tell);
/* `text` may be NULL. False: left out. That happens to events that repeat themselves, while the reader is far behind;
 * to the others never. */
bool tell(struct tell *tell, const struct pageferry_event *event, const char *text);
/* Rings as if there were something new: the reader looks again. */
void tell_ring(struct tell *tell);
/* The condition holds, for this reason; its beginning is kept. Nothing is said yet; another reason than the one that
 * was told will be told as well. */
void tell_pause_began(struct tell_pause *pause, uint32_t reason, const char *text, uint64_t now_ns);
/* Says PAUSED if it has held for so long and it was not said. */
void tell_pause_if_long(struct tell *tell, struct tell_pause *pause, uint64_t patience_ns, uint64_t now_ns);
/* When tell_pause_if_long will have something to say; UINT64_MAX: it will not. */
uint64_t tell_pause_next_ns(const struct tell_pause *pause, uint64_t patience_ns);
/* It does not hold any more: RESUMED, if PAUSED was said. */
void tell_pause_over(struct tell *tell, struct tell_pause *pause, uint64_t now_ns);

#endif
