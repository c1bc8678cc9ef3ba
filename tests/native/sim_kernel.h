/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A userfaultfd, the memory behind it and the threads that touch it, in a few arrays: the second kernel_ops. It obeys
 * facts/kernel.md: what COPY, CONTINUE, ZEROPAGE and POISON answer where something is or is not; which event an access
 * raises; that faults are read before events; that a DONTNEED is announced, waits until it is read, and takes effect
 * later, and that until then every call that maps answers LATER; that CONTINUE and COPY overwrite a poison marker.
 * test_kernels.c holds it against the real one.
 *
 * Where the regions have units of many pages it is memory in huge pages: all pages of a unit are present and mapped
 * together, what is allocated is zeros, a call that maps takes whole units, and a hole of less than one is zeros. Private
 * units gather what is populated in a staging file, which is the worker's and dies with it (sim_lose_staging).
 *
 * Content is a token, not bytes: a page handed to the engine carries its token in its first and its last eight bytes
 * (sim_stamp). Token 0 is a page of zeros. A write that was cut off leaves SIM_TORN.
 *
 * With a table set, each call of the engine is also audited against the word of its page: stale before a write to the
 * cache, whole before claimed, claimed before CONTINUE, never a write or a punch where the guest may have been.
 *
 * `before` and `after` run around every call, `middle` between two of its pages and in the middle of a write to the
 * cache; a test that wants to kill the worker there leaves by longjmp. A WAKE has no middle: the kernel does it whole.
 */
#ifndef PAGEFERRY_SIM_KERNEL_H
#define PAGEFERRY_SIM_KERNEL_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel/kernel_ops.h"
#include "pager/region.h"
#include "pager/table.h"

#define SIM_THREADS 8
#define SIM_REMOVALS 3
#define SIM_TORN UINT64_C(0xdeadbeefdeadbeef)

enum sim_call { SIM_READ, SIM_POPULATE, SIM_MAP, SIM_COPY, SIM_ZERO, SIM_PUNCH, SIM_POISON, SIM_WAKE, SIM_CALL_COUNT };

/* Where a call of the engine stands. */
enum sim_when { SIM_BEFORE, SIM_MIDDLE, SIM_AFTER };

enum sim_pte { SIM_PTE_NONE = 0, SIM_PTE_MAPPED, SIM_PTE_POISON };

enum sim_access { SIM_READS_TOKEN, SIM_SLEEPS, SIM_SIGBUS }; /* where nothing is mapped it is SIGSEGV */

/* What the VMM has done to its mapping of a page. CUT: its file ends before the page now. */
enum sim_mapping { SIM_REGISTERED = 0, SIM_UNREGISTERED, SIM_UNMAPPED, SIM_CUT };

struct sim_page {
    uint8_t pte;
    uint8_t mapping;
    bool present;     /* in the page cache; on private memory: there is a page */
    bool room;        /* zeros that nobody has placed: it was punched, and stays; or was reserved, or read elsewhere */
    bool ever_mapped; /* the guest may have been there since its content was last dropped */
    uint64_t token;
    bool staged;         /* private units: these bytes wait for the rest of their unit */
    uint64_t staged_token;
};

struct sim_thread {
    bool sleeps;
    bool event_read;
    bool write, minor; /* as it was when it faulted */
    uint64_t page;
    uint64_t fault; /* their order */
};

/* A madvise of the VMM under way. */
enum sim_removal_stage { SIM_REMOVAL_FREE = 0, SIM_REMOVAL_POSTED, SIM_REMOVAL_READ, SIM_REMOVAL_COMPLETED };

struct sim_removal {
    enum sim_removal_stage stage;
    bool drops_data; /* private DONTNEED, MADV_REMOVE; else only the mappings go */
    bool read_armed; /* the engine was armed when it read the event */
    uint64_t start, end;
};

/* The next `times` calls of one kind answer this, after `done_pages` pages that go their way. */
struct sim_force {
    uint32_t times;
    uint32_t result;
    uint64_t done_pages;
};

struct sim_kernel {
    const struct regions *regions;
    const struct table *table; /* NULL: no audit */
    bool private_memory;
    bool gone;
    bool full;
    bool without_poison; /* as a kernel before 6.6 */
    uint32_t later_permille; /* how often a call stops with LATER, or FULL, somewhere in its span */
    uint32_t full_permille;
    uint32_t clings_permille; /* how often a page that is punched stays, as zeros: one of a huge page that cannot be split */
    uint64_t random;
    struct sim_page *pages;
    struct sim_thread threads[SIM_THREADS];
    struct sim_removal removals[SIM_REMOVALS];
    struct sim_force force[SIM_CALL_COUNT];
    uint64_t calls[SIM_CALL_COUNT];
    uint64_t drop_first, drop_count; /* pages whose data is to go, by an order: they may be the guest's */
    uint64_t refused_page_plus_1; /* LATER for this page, by a removal that has not been read since; 0: none */
    uint64_t troubles;       /* LATER, FULL, GONE and REFUSED given so far */
    uint64_t faults;         /* raised so far */
    uint64_t events_read;    /* faults and others, and of them: */
    uint64_t faults_unarmed; /* faults that were read before arming */
    struct kernel_event newest_batch[TABLE_BATCH_EVENTS];
    int newest_batch_count;
    void *owner;
    void (*before)(void *owner, enum sim_call call);
    void (*middle)(void *owner, enum sim_call call);
    void (*after)(void *owner, enum sim_call call);
    void (*failed)(void *owner, uint64_t page, const char *text); /* NULL: abort */
};

extern const struct kernel_ops sim_kernel_ops;

/* Everything absent and quiet. Free with sim_close. */
void sim_open(struct sim_kernel *sim, const struct regions *regions, bool private_memory, uint64_t seed);
void sim_close(struct sim_kernel *sim);

uint64_t sim_random(uint64_t *state);
static inline uint64_t sim_below(uint64_t *state, uint64_t limit)
{
    return sim_random(state) % limit;
}

/* A page of bytes that carries a token; only its ends are written. */
void sim_stamp(uint8_t *page, uint64_t token);
/* Bytes that somebody else has left in the cache. */
void sim_foreign(struct sim_kernel *sim, uint64_t page, uint64_t token);
/* Where nothing is: another process reserves it, or reads it through a mapping of its own. */
void sim_make_room(struct sim_kernel *sim, uint64_t page);

/* The worker is dead, and its staging file with it. */
void sim_lose_staging(struct sim_kernel *sim);

/* A thread that does not sleep touches a page. SIM_READS_TOKEN: it is mapped, and this is what is there; the caller
 * may store a token. SIM_SLEEPS: an event was raised. */
enum sim_access sim_touch(struct sim_kernel *sim, uint32_t thread, uint64_t page, bool write, uint64_t *token);
/* Events that are unread: faults and removals. */
uint32_t sim_unread(const struct sim_kernel *sim);

/* The VMM calls madvise on addresses: announces it. False: too many under way. */
bool sim_remove(struct sim_kernel *sim, uint64_t start, uint64_t end, bool drops_data);
/* Lets one that was read go one step further; returns it when it is done with, else NULL. */
const struct sim_removal *sim_removal_step(struct sim_kernel *sim, uint32_t index);
/* PUNCH_HOLE: no event. Of a unit of many pages this one becomes zeros; sim_discard_unit drops all of it. */
void sim_discard(struct sim_kernel *sim, uint64_t page);
void sim_discard_unit(struct sim_kernel *sim, uint64_t page);
/* Swap, reclaim or collapse: a mapping goes, its data stays; no event. */
void sim_drop_mapping(struct sim_kernel *sim, uint64_t page);
/* MADV_COLLAPSE or another resolver: what is present is mapped, on private memory zeros where nothing is; who sleeps
 * sleeps on. Nothing happens while a removal is under way. */
void sim_map_silently(struct sim_kernel *sim, uint64_t page);

/* The VMM unregisters (who sleeps is woken, and no access waits any more), unmaps, or cuts its file short (who sleeps
 * sleeps on, until a call finds nothing there). */
void sim_change_mapping(struct sim_kernel *sim, uint64_t page, enum sim_mapping mapping);

#endif
