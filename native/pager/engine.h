/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine: (fault | order | news) x page -> calls of kernel_ops, asks and reports. It owns the words of one VM's
 * page table. Pure: no I/O but through kernel_ops, no clock (the caller tells the time), no allocation after start.
 *
 * The caller is one thread. Its turn: engine_turn (kernel events), then answers of the server by engine_news, orders,
 * and engine_tick when the time that engine_next_ns names has come.
 *
 * Rules it carries (DESIGN 3): nothing is mapped before arming; a page that may be mapped is never written; bytes are
 * whole before they are claimed, claimed before a CONTINUE, and claimed after a COPY; EEXIST means what 3.6 says;
 * the flavour of a fault decides nothing; after any doubt, WAKE.
 */
#ifndef PAGEFERRY_ENGINE_H
#define PAGEFERRY_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/manifest.h"
#include "../base/stats.h"
#include "../base/trace.h"
#include "../kernel/kernel_ops.h"
#include "counts.h"
#include "region.h"
#include "table.h"

#define ENGINE_PARKED_MAX 1024
#define ENGINE_RECENT_ASKS 1024                     /* a power of two */
#define ENGINE_LATER_NS UINT64_C(500000)            /* a call that found events unread is tried again after this */
#define ENGINE_ASK_AGAIN_NS UINT64_C(10000000)      /* an answer that was no use is asked again after this */
#define ENGINE_FULL_WAIT_MIN_NS UINT64_C(10000000)  /* no memory: tried again after this, doubling */
#define ENGINE_FULL_WAIT_MAX_NS UINT64_C(1000000000)

enum engine_report {
    ENGINE_REPORT_ALARM = 1,   /* page, text: what cannot be, was; as a rule the page is held back */
    ENGINE_REPORT_FULL,        /* no memory for a page: no progress until there is */
    ENGINE_REPORT_FULL_OVER,   /* there is again */
    ENGINE_REPORT_GONE         /* the VMM's address space is gone */
}; /* what becomes of poison is told by its log: log.h */

/* What the engine tells its owner, on the owner's thread, from inside the calls below. */
struct engine_out {
    void *owner;
    /* The time now, for the histograms alone; NULL: the time that the caller told is taken. */
    uint64_t (*clock_ns)(void *owner);
    /* Ask the server for this page, urgently. Called once a page until the ask is lost (engine_asks_lost). */
    void (*ask)(void *owner, uint64_t page);
    /* Private memory: these pages are lost, and only the VMM can let go of them. True: it is asked to, or will be; until it
     * has (engine_dropped) they are not told, and this is called again now and then. False, or NULL: it cannot be asked. */
    bool (*drop)(void *owner, uint64_t first_page, uint64_t page_count);
    void (*report)(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text);
};

enum engine_kind { ENGINE_DATA = 1, ENGINE_ZEROS, ENGINE_POISON, ENGINE_FLOOR };

/* News about a run of pages, as it came over the wire and with its digest already checked. */
struct engine_news {
    enum engine_kind kind;
    uint64_t first_page;
    uint64_t page_count;
    uint64_t version;
    const uint8_t *bytes; /* page_count pages for DATA, resident and ours; else NULL */
};

/* What cannot be done yet, and when to try again: a fault that was read, or an ask. */
struct engine_parked {
    uint64_t page;
    uint64_t due_ns;
    bool ask;
};

/* When a page was asked first, for the histogram: a page that shares its place with a newer one is not observed. */
struct engine_recent_ask {
    uint64_t page_plus_1; /* 0: a free place */
    uint64_t read_ns;     /* of its fault */
};

struct engine {
    struct table *table;
    struct regions *regions;
    const struct kernel_ops *ops;
    void *kernel;
    struct engine_out out;
    struct stats *stats;
    struct trace *trace;
    bool private_memory;
    bool without_poison;     /* the kernel has no marker for lost pages: who touches one waits until it is cleared */
    bool gone;               /* the VMM is gone: every call returns at once */
    bool full;               /* the last populate, copy or zero found no memory */
    bool full_of_staging;    /* of memory for what is gathered, not of the guest's */
    bool in_turn;            /* a batch is being worked on: no other may be read before it is done */
    bool rescan_wanted;      /* asks were lost beyond what can be parked: every WANTED page is asked again */
    uint64_t rescan_due_ns;
    uint64_t frozen_version; /* 0, or the highest version there is: an immutable image's, or the frozen map's; for
                                pages without a floor the only one that will do, once armed */
    manifest_sum sum;        /* over the versions of all words */
    uint64_t first_early_ns; /* when the oldest early fault was read that waits for arming; 0: none */
    uint64_t early_page;
    uint64_t now_ns;         /* as the caller told it last */
    uint64_t read_ns;        /* when the batch in work was read */
    uint64_t full_wait_ns;
    uint64_t full_until_ns;  /* full: nothing parked is tried before */
    uint64_t unclean_count;  /* words that say ZERO or POISONED and stale: a punch failed, and is tried again */
    uint64_t unclean_due_ns;
    uint64_t held_count;     /* words that are held back, and not poisoned */
    uint64_t owed_count;     /* words of which the poison log owes an entry */
    uint64_t clearing_count; /* of them, those whose poison was cleared: room is kept for these */
    uint64_t owed_due_ns;
    uint64_t owed_page;      /* where the next look for them begins */
    uint64_t zap_first;      /* our own zap under way: pages whose mappings the VMM was told to drop */
    uint64_t zap_count;
    uint32_t last_result;    /* of the newest kernel call, for the trace */
    uint32_t parked_count;
    struct counts counts;    /* other threads may read these, and nothing else here */
    struct engine_parked parked[ENGINE_PARKED_MAX];
    struct engine_recent_ask recent_asks[ENGINE_RECENT_ASKS];
};

struct engine_options {
    struct table *table;
    struct regions *regions;
    const struct kernel_ops *ops;
    void *kernel;
    struct engine_out out;
    struct stats *stats;
    struct trace *trace;
    bool private_memory;
    bool without_poison;
};

/* Counts the table's words. On a table that was taken over: replays the last batch, asks every WANTED page again and
 * wakes every region. */
void engine_start(struct engine *engine, const struct engine_options *options, uint64_t now_ns);

/* At attach, shared memory only: what the cache holds in these pages is not known to be right (SEEK_DATA found it).
 * A successor says it again: it counts as long as no worker has placed anything. */
void engine_mark_stale(struct engine *engine, uint64_t first_page, uint64_t page_count);

/* Reads one batch of kernel events and works on it: removals first, then faults. Returns how many events there were;
 * a full batch (TABLE_BATCH_EVENTS) means that more may wait. */
int engine_turn(struct engine *engine, uint64_t now_ns);

/* Applies news. Returns the number of pages it took. On private memory bytes are not taken before arming: they could
 * only be mapped. */
uint64_t engine_news(struct engine *engine, const struct engine_news *news, uint64_t now_ns);

/* A page that was asked cannot be had now (run kind LATER, bad digest): still WANTED, ask again at due_ns. */
void engine_ask_later(struct engine *engine, uint64_t page, uint64_t due_ns);

/* The link was lost: everything WANTED is asked again through out.ask, now. Looks at words until it has found all. */
void engine_asks_lost(struct engine *engine);

/* Faults are resolved from now on. Wakes every region, so that faults which came early come again. Idempotent. */
void engine_arm(struct engine *engine);

/* The VMM drops these pages, by the shim's word: armed, they read as zeros for ever. Returns when that is so. */
void engine_removed(struct engine *engine, uint64_t first_page, uint64_t page_count);

/*
 * These pages are lost from now on, whatever their version: no guest reads their bytes any more. Returns how many were
 * not. The cost of a call is that of a few kernel calls a page.
 */
uint64_t engine_lost(struct engine *engine, uint64_t first_page, uint64_t page_count);
/* Those of them that are lost are fresh memory from now on; counts them in `changed`. Returns how many pages it has
 * looked at: less than all when the log is full or bytes cannot be dropped now. Those that cling are passed over. */
uint64_t engine_cleared(struct engine *engine, uint64_t first_page, uint64_t page_count, uint64_t *changed);
/* Private memory: nothing of these pages is mapped any more. */
void engine_dropped(struct engine *engine, uint64_t first_page, uint64_t page_count);
/* Private memory, where only the VMM can end that: lost, and the guest may have its bytes mapped still; or our own zap of it
 * is under way, and would take with it what was put in its place. */
bool engine_clings(const struct engine *engine, uint64_t page);
/* So does a page of its unit. */
bool engine_unit_clings(const struct engine *engine, uint64_t page);
/* Something was not done yet of what engine_lost or engine_cleared have claimed, or it has not been told to the log. */
bool engine_owes(const struct engine *engine, uint64_t first_page, uint64_t page_count);
/* drop.c: the VMM will be told to drop the mappings of these pages; no others then are. page_count 0: it has, or never will. */
void engine_zaps(struct engine *engine, uint64_t first_page, uint64_t page_count);
/* It has: those of them that are lost are marked anew, for a marker goes with the mapping. */
void engine_zapped(struct engine *engine, uint64_t first_page, uint64_t page_count);
/* Armed, shared memory, by an order: removed, and their bytes punched in every mapping, the guest's own too. Returns how
 * many of the pages, from the first on; where it stops the kernel has refused. */
uint64_t engine_drop(struct engine *engine, uint64_t first_page, uint64_t page_count);

/* Armed: map what is cached, from `first_page` on, at most `page_count` pages looked at. Returns pages mapped. */
uint64_t engine_sweep(struct engine *engine, uint64_t first_page, uint64_t page_count);

/* Retries what is parked and due. */
void engine_tick(struct engine *engine, uint64_t now_ns);
/* When engine_tick has something to do; UINT64_MAX: nothing is parked. */
uint64_t engine_next_ns(const struct engine *engine);

/* Armed: every word is OWNED, ZERO or POISONED, and the cache holds nothing else. Not armed: none is MISSING or
 * WANTED. A page that is held back settles never. */
bool engine_settled(const struct engine *engine);

#endif
