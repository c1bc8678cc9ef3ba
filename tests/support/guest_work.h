/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stand-in VMM's vCPUs: threads that look at pages, judge every line of them, write some anew and remember what
 * they wrote, for ever.
 *
 * A note a page says what it must hold. Looks take no lock: a look counts only if the note was the same, and nobody
 * at work on the page, before and after. So a page can be given away while threads wait for it.
 */
#ifndef GUEST_WORK_H
#define GUEST_WORK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "guest_ram.h"
#include "guest_stamp.h"

#define WORK_THREADS_MAX 64u
#define WORK_LIST_PAGES 8192u

/* n << 8 and these. n grows with each change of the page, so no note comes twice. */
#define NOTE_WRITING 1u
#define NOTE_LEAVING 2u /* being given away: until that is done, old bytes and zeros are both right */
#define NOTE_ZERO 4u
#define NOTE_REMOVED 8u /* zero because it was given away */
#define NOTE_OWN 16u    /* the guest's own bytes */
#define NOTE_LOSING 32u /* being poisoned, or its poison being cleared: SIGBUS, what it was, and zeros are all right */
#define NOTE_LOST 64u   /* poisoned: SIGBUS is right, and nothing else */

enum job_kind {
    JOB_NONE,
    JOB_LIST,  /* each page of the list once, whichever thread comes first */
    JOB_STORM, /* each thread looks at each page of the list, all at the same time */
    JOB_ALL,   /* each page of the RAM once, in no order */
    JOB_RUN    /* pages at random, one look in eight writes the page anew */
};

struct job {
    enum job_kind kind;
    uint64_t steps;               /* JOB_RUN: looks, all threads together */
    uint64_t list[WORK_LIST_PAGES];
    uint64_t list_pages;
};

struct counts {
    _Atomic uint64_t looks, inconclusive, rewrites, distinct, given_away, bus; /* bus: SIGBUS of a page that is lost */
    _Atomic uint64_t verdict[STAMP_VERDICT_COUNT];
};

struct work {
    struct ram *ram;
    struct image_shape shape;
    _Atomic uint64_t *notes;
    _Atomic uint8_t *seen;
    struct counts counts;
    atomic_int told; /* wrong pages told on stderr */

    uint32_t thread_count;
    pthread_t threads[WORK_THREADS_MAX];
    pthread_barrier_t together; /* JOB_STORM */
    pthread_mutex_t lock;       /* the four below */
    pthread_cond_t changed;
    uint64_t job_number;
    uint32_t at_work;
    uint32_t next_thread;
    bool ended;
    struct job job; /* changes only while nobody is at work */
    _Atomic uint64_t cursor;
    atomic_bool stop;
};

/* Notes as the image has it; the threads start. */
int work_start(struct work *work, struct ram *ram, const struct image_shape *shape, uint32_t threads);
/* False: one is under way. Fill in work->job before. */
bool work_busy(struct work *work);
void work_begin(struct work *work);
void work_wait(struct work *work);

/* One look at a page, by the caller's thread; `rewrite`: and then other bytes. */
void work_look(struct work *work, uint64_t page, bool rewrite);
/* Pages are about to be poisoned, or to be cleared of it; they are poisoned; they are fresh memory, zeros. */
void work_losing(struct work *work, uint64_t first, uint64_t count);
void work_lost(struct work *work, uint64_t first, uint64_t count);
void work_cleared(struct work *work, uint64_t first, uint64_t count);
/* Pages leave for ever: they must read as zeros from then on. `punch`: by a hole in the file. 0 or -1 and errno. */
int work_remove(struct work *work, uint64_t first, uint64_t count, bool punch);

#endif
