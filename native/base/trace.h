/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last steps of a pager, in memory: what was done, to which page, when. Written by its one thread, read by whoever
 * prints it: each field is whole, a step that is just being overwritten may be a mixture of two. Costs a few stores a
 * step and is always on.
 */
#ifndef PAGEFERRY_TRACE_H
#define PAGEFERRY_TRACE_H

#include <stdatomic.h>
#include <stdint.h>

#define TRACE_STEPS 256

struct trace_step {
    _Atomic uint64_t now_ns;
    _Atomic uint64_t page;
    _Atomic uint64_t version;
    _Atomic uint8_t state;  /* before the step: numbers of pager/page.h, which this room does not know */
    _Atomic uint8_t event;
    _Atomic uint8_t action;
    _Atomic uint8_t result; /* of the kernel call, if there was one */
    _Atomic uint32_t page_count; /* of a step that was taken for several pages at once */
};

struct trace {
    _Atomic uint64_t count; /* of all steps ever; the newest is at (count - 1) % TRACE_STEPS */
    struct trace_step steps[TRACE_STEPS];
};

#define trace_copy(field) \
    atomic_store_explicit(&to->field, atomic_load_explicit(&step->field, memory_order_relaxed), memory_order_relaxed)

static inline void trace_add(struct trace *trace, const struct trace_step *step)
{
    uint64_t count = atomic_load_explicit(&trace->count, memory_order_relaxed);
    struct trace_step *to = &trace->steps[count % TRACE_STEPS];

    trace_copy(now_ns);
    trace_copy(page);
    trace_copy(version);
    trace_copy(state);
    trace_copy(event);
    trace_copy(action);
    trace_copy(result);
    trace_copy(page_count);
    atomic_store_explicit(&trace->count, count + 1, memory_order_release);
}

#undef trace_copy

#endif
