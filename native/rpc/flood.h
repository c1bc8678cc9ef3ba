/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bucket of frames that a peer may send for nothing, room-internal: PF_LIMIT_FLOOD_FRAMES_MAX at once, regained by
 * PF_LIMIT_FLOOD_FRAMES_PER_S. It looks at the clock only when such a frame comes.
 */
#ifndef PAGEFERRY_FLOOD_H
#define PAGEFERRY_FLOOD_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "../gen/contract.h"

#define FLOOD_FRAME_NS (UINT64_C(1000000000) / PF_LIMIT_FLOOD_FRAMES_PER_S)

struct flood {
    uint32_t left;
    uint64_t filled_ns; /* up to when regained frames are counted in `left` */
};

static inline void flood_refill(struct flood *flood, uint64_t now_ns)
{
    uint64_t regained = (now_ns - flood->filled_ns) / FLOOD_FRAME_NS;

    if (regained >= PF_LIMIT_FLOOD_FRAMES_MAX - flood->left) {
        flood->left = PF_LIMIT_FLOOD_FRAMES_MAX;
        flood->filled_ns = now_ns;
    } else {
        flood->left += (uint32_t)regained;
        flood->filled_ns += regained * FLOOD_FRAME_NS;
    }
}

/* Takes one frame out; false: there was none. */
static inline bool flood_take(struct flood *flood)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    flood_refill(flood, (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec);
    if (flood->left == 0)
        return false;
    flood->left--;
    return true;
}

#endif
