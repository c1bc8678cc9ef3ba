/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last steps of a pager, in memory: what was done, to which page, when. Written by its one thread, read torn by
 * whoever prints it after a failure. Costs a few stores a step and is always on.
 */
#ifndef PAGEFERRY_TRACE_H
#define PAGEFERRY_TRACE_H

#include <stdint.h>

#define TRACE_STEPS 256

struct trace_step {
    uint64_t now_ns;
    uint64_t page;
    uint64_t version;
    uint8_t state;  /* before the step: numbers of pager/page.h, which this room does not know */
    uint8_t event;
    uint8_t action;
    uint8_t result; /* of the kernel call, if there was one */
    uint32_t page_count; /* of a step that was taken for several pages at once */
};

struct trace {
    uint64_t count; /* of all steps ever; the newest is at (count - 1) % TRACE_STEPS */
    struct trace_step steps[TRACE_STEPS];
};

static inline void trace_add(struct trace *trace, const struct trace_step *step)
{
    trace->steps[trace->count++ % TRACE_STEPS] = *step;
}

#endif
