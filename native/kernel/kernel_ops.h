/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The seam between the pager and Linux: everything the engine may do to a VM's memory, and the few things that can
 * come of it. kernel/uffd.c is Linux; tests/native/sim_kernel.c is a page cache in memory that obeys the same rules,
 * crashes on request and knows every byte. The engine cannot tell them apart.
 *
 * An errno is born and dies below this line. What the engine learns is one of eight results, and how far the call
 * came before it stopped.
 */
#ifndef PAGEFERRY_KERNEL_OPS_H
#define PAGEFERRY_KERNEL_OPS_H

#include <stddef.h>
#include <stdint.h>

enum kernel_result {
    KERNEL_MAPPED = 0, /* done, all of it (for populate, punch, wake: simply done) */
    KERNEL_ALREADY,    /* map: a page is mapped there. copy, zero: something is there; on shared memory perhaps only
                          in the page cache (DESIGN 3.6) */
    KERNEL_ABSENT,     /* map: nothing in the page cache (EFAULT). Or the mapping itself went away (ENOENT), or the
                          file behind it was cut short; who slept there has been woken and meets the kernel's answer */
    KERNEL_LATER,      /* events are waiting unread: read them, then try again */
    KERNEL_FULL,       /* no memory: tmpfs, cgroup or machine; try again after a while */
    KERNEL_GONE,       /* the VMM's address space is gone */
    KERNEL_BROKEN,     /* map, populate: the page at done_bytes lies in memory with an error; its bytes are gone */
    KERNEL_REFUSED     /* the kernel will not do this, now or later: a hand-off that lied, a kernel without
                          UFFDIO_POISON, or a bug of ours. Nothing was done to the page at done_bytes: hold it back and
                          say so; its threads sleep on, which is safe */
};

struct kernel_outcome {
    enum kernel_result result;
    uint64_t done_bytes; /* what the call completed from the start of the span before `result`; all of it if MAPPED */
    uint32_t parts;      /* so often the kernel stopped with a part done, and was asked for the rest */
};

/* A piece of one region: whole pages, never crossing into another region. */
struct kernel_span {
    uint64_t address;      /* in the VMM's address space */
    uint64_t length_bytes;
    uint64_t file_offset;  /* in the backing file, or in what stands in for one on private memory (view.h) */
};

enum kernel_event_kind {
    KERNEL_EVENT_FAULT = 0x12,
    KERNEL_EVENT_FORK = 0x13,  /* not asked for; the child's userfaultfd has been closed */
    KERNEL_EVENT_REMAP = 0x14,  /* not asked for */
    KERNEL_EVENT_REMOVE = 0x15,
    KERNEL_EVENT_UNMAP = 0x16
};

enum kernel_fault_flags {
    KERNEL_FAULT_WRITE = 1,
    KERNEL_FAULT_WP = 2,
    KERNEL_FAULT_MINOR = 4 /* a hint, never a verdict (DESIGN 3.3) */
};

/*
 * Byte for byte the message that read(2) of a userfaultfd writes: so the kernel itself puts events into the shared page
 * table, where a successor finds them, whenever their reader dies. No pointers.
 */
struct kernel_event {
    uint8_t kind; /* 0: no event */
    uint8_t reserved[7];
    union {
        struct { /* FAULT */
            uint64_t flags;
            uint64_t address; /* somewhere in the page */
            uint32_t thread;  /* its id, or 0 */
            uint32_t unused;
        };
        struct { /* REMOVE, UNMAP */
            uint64_t start;
            uint64_t end;
        };
    };
};

/*
 * `kernel` is the implementation's own state. Calls never block for longer than the work they name.
 *
 *   read_events  up to `capacity` events straight into `events`, in the kernel's order; their number, 0 when there is
 *                none. What has been read lies there at once: its reader may die in the very next instruction
 *   populate     write whole pages to the page cache through our own view of the file; maps nothing (shared memory, and
 *                private units of many pages, where a staging file stands in for the cache)
 *   map          UFFDIO_CONTINUE, wakes. Private units: UFFDIO_COPY of what was populated
 *   copy         UFFDIO_COPY, wakes: fills and maps in one call, refuses where anything is
 *   zero         UFFDIO_ZEROPAGE, wakes
 *   punch        drops page-cache bytes, in every mapping (as populate); part of a unit is zeroed instead
 *   poison       UFFDIO_POISON, wakes; MAPPED when the markers are set, ALREADY where something is mapped.
 *                map and copy replace a marker without a word, on shared memory zero does too: leave those pages out
 *                (map, copy, zero, poison: of units of many pages, whole ones)
 *   wake         wakes the threads that sleep in the span; they fault again
 */
struct kernel_ops {
    int (*read_events)(void *kernel, struct kernel_event *events, int capacity);
    struct kernel_outcome (*populate)(void *kernel, const struct kernel_span *span, const void *bytes);
    struct kernel_outcome (*map)(void *kernel, const struct kernel_span *span);
    struct kernel_outcome (*copy)(void *kernel, const struct kernel_span *span, const void *bytes);
    struct kernel_outcome (*zero)(void *kernel, const struct kernel_span *span);
    struct kernel_outcome (*punch)(void *kernel, const struct kernel_span *span);
    struct kernel_outcome (*poison)(void *kernel, const struct kernel_span *span);
    struct kernel_outcome (*wake)(void *kernel, const struct kernel_span *span);
};

#endif
