/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of a move for fuzz_server.c: a live image "live" that no VMM stands behind, in a file of 700 pages, half
 * of it holes, some pages not here yet and one lost; its rounds, versions and holes are the real ones, what the kernel
 * would say of dirty pages comes from dice. And the session "move" of it, as those above tell it to the server.
 */
#ifndef LIVE_SOURCE_H
#define LIVE_SOURCE_H

#include "serve/serve.h"

#define LIVE_PAGES 700
#define LIVE_IMAGE "live"
#define LIVE_SESSION "move"

/* What those above do in the middle of it all. */
enum live_story {
    LIVE_NOTHING,
    LIVE_NO_RIGHTS,
    LIVE_NO_ROUNDS,
    LIVE_PHASE,         /* another, and a wish to cancel */
    LIVE_FROZEN,        /* the guest stands still: the map, and its digest is told */
    LIVE_FROZEN_ANEW,   /* another digest is told than before */
    LIVE_THAWED,
    LIVE_REMOVED,       /* the image */
    LIVE_DROPPED,       /* the session */
    LIVE_DROPPED_ANEW,  /* and there is another of its name */
    LIVE_STORIES
};
/* Beside the story, in the same byte: */
#define LIVE_STORY_MASK 15
#define LIVE_SCAN_FAILS 16  /* from the middle on: the VMM ends, or its memory is tracked no more */
#define LIVE_ROUND_FIRST 32 /* one is settled before the client says anything */
#define LIVE_BUSY 64        /* somebody else has a round open */
#define LIVE_NO_SESSION 128 /* there is none yet */

void live_begin(struct service *service, uint8_t story);
void live_happen(struct service *service, uint8_t story);
/* Nobody is connected any more: all that calls have taken is given back, and the news make sense. */
void live_end(struct service *service);

#endif
