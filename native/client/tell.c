/* SPDX-License-Identifier: Apache-2.0 */
/* Telling: see tell.h. */
#include "tell.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define EVENTS_MAX 256
#define EVENTS_RESERVED 64 /* kept free for the few events that may not be lost */
#define SAY_AGAIN_NS UINT64_C(100000000)

/* RESUMED does not: there is one for each PAUSED that was said, so the reserve has room for it. */
static bool repeats_itself(uint32_t kind)
{
    return kind == PAGEFERRY_EVENT_ALARM || kind == PAGEFERRY_EVENT_POISONED ||
           kind == PAGEFERRY_EVENT_POISON_CLEARED || kind == PAGEFERRY_EVENT_DONE || kind == PAGEFERRY_EVENT_PAUSED ||
           kind == PAGEFERRY_EVENT_EARLY_FAULT || kind == PAGEFERRY_EVENT_PHASE;
}

int tell_open(struct tell *tell)
{
    return ring_open(&tell->events, EVENTS_MAX, sizeof(struct pageferry_event));
}

void tell_close(struct tell *tell)
{
    ring_close(&tell->events);
}

bool tell(struct tell *tell, const struct pageferry_event *event, const char *text)
{
    struct pageferry_event said = *event;

    if (text != NULL)
        snprintf(said.text, sizeof(said.text), "%s", text);
    if (repeats_itself(said.kind) && ring_room(&tell->events) <= EVENTS_RESERVED)
        return false;
    return ring_put(&tell->events, &said);
}

void tell_ring(struct tell *tell)
{
    uint64_t one = 1;
    ssize_t rung = write(tell->events.bell_fd, &one, sizeof(one)); /* full: it rings already */

    (void)rung;
}

void tell_pause_began(struct tell_pause *pause, uint32_t reason, const char *text, uint64_t now_ns)
{
    if (pause->since_ns == 0)
        pause->since_ns = now_ns;
    if (pause->reason != reason)
        pause->told_ns = 0;
    pause->reason = reason;
    snprintf(pause->text, sizeof(pause->text), "%s", text);
}

void tell_pause_if_long(struct tell *teller, struct tell_pause *pause, uint64_t patience_ns, uint64_t now_ns)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_PAUSED, .reason = pause->reason};

    if (now_ns >= tell_pause_next_ns(pause, patience_ns)) {
        if (tell(teller, &event, pause->text)) {
            pause->told_ns = now_ns;
            pause->said = true;
        } else {
            pause->not_before_ns = now_ns + SAY_AGAIN_NS;
        }
    }
}

uint64_t tell_pause_next_ns(const struct tell_pause *pause, uint64_t patience_ns)
{
    uint64_t next_ns = UINT64_MAX;

    if (pause->since_ns != 0 && pause->told_ns == 0)
        next_ns = pause->since_ns + patience_ns;
    return next_ns < pause->not_before_ns ? pause->not_before_ns : next_ns;
}

void tell_pause_over(struct tell *teller, struct tell_pause *pause, uint64_t now_ns)
{
    struct pageferry_event event = {
        .kind = PAGEFERRY_EVENT_RESUMED,
        .reason = pause->reason,
        .value = now_ns - pause->since_ns,
    };

    if (pause->said)
        tell(teller, &event, NULL);
    memset(pause, 0, sizeof(*pause));
}
