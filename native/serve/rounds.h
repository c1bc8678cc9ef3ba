/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of a live image: what has the guest written since the last one? "Clear, then copy", piece by piece:
 *
 *   1. look      which pages are dirty: no effect on anybody                              (kernel/scan)
 *   2. reset     exactly those: a write from here on makes a page dirty again             (kernel/scan)
 *   3. holes     of those that were reset: is there anything in the file?                 (holes)
 *   4. raise     their versions to this round                                             (versions)
 *
 * and, when all pages have been looked at, the round is settled. The first round names every page.
 *
 * Why no client ever keeps a stale page. A client keeps bytes that it has read under version V of their page,
 * and drops them when a settled round names the page above V; readers load the version before the bytes. Take
 * a write W to a page, and the first reset R of that page that comes after W.
 *   - Bytes that were read before R may lack W. Their version was loaded before R, so before the raise that
 *     follows R: it is lower, and R's round drops them. (Raise before reset: a reader that comes between the
 *     two keeps bytes without W under the very number that was to drop them.)
 *   - Bytes that were read after R have W. A write after R makes the page dirty again, so it has an R of
 *     its own.
 *   - No R comes: then the page is dirty still, and the next round resets it. The last round looks while
 *     the writers stand still, and is all there will ever be.
 * A page half way through a write is dirty again by the same write: torn bytes never survive.
 *
 * Why no page is taken for a hole that is none. A reader loads the version before it asks for holes, and a
 * hole found in 3 is sent under the version that 4 gives. A page that is written after its reset is dirty
 * again. (Holes before the reset: a write between the two is forgotten. Holes after the raise: a reader
 * between the two sends an old verdict under the new version.)
 *
 * A step may fail half way: whatever was or may have been reset is raised all the same, the round is given
 * up, and its number is not used again, for pages may be known under it.
 *
 * The final round, with the writers stopped, resets nothing: there is no round after it. Thawing opens the
 * next incarnation, in which every page is named again.
 *
 * A page that is lost is named by the next round, written or not: whoever holds bytes of it from before drops them. After
 * the freeze there is no such round, and an operator's word comes too late; what a read finds lost then is POISON under
 * the version that it has.
 *
 * Any thread may call any of this; a lock is held for a step at most.
 */
#ifndef PAGEFERRY_ROUNDS_H
#define PAGEFERRY_ROUNDS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "../kernel/scan.h"
#include "holes.h"
#include "lost.h"
#include "versions.h"

/* What one step may take; more only if a single look brings it. */
#define ROUNDS_STEP_PAGES UINT64_C(16384)

struct rounds_region {
    uint64_t address; /* in the VMM */
    uint64_t first_page;
    uint64_t page_count;
};

struct rounds {
    pthread_mutex_t lock;
    const struct scan_calls *scan;
    int pagemap_fd;
    struct versions *versions;
    struct holes *holes;
    _Atomic uint64_t *as_of; /* told here too: where readers look */
    uint64_t page_count;
    bool drops_untold; /* set by the owner: the VMM may drop pages and say nothing, so the final round looks for new
                          holes everywhere. Before it nobody relies on the bytes of such a page */
    struct lost *lost; /* set by the owner; NULL: no page ever is */
    const struct rounds_region *regions; /* in the order of the image, without a gap */
    uint32_t region_count;
    uint32_t round;          /* under way; 0: none */
    bool held;               /* by a call that steps it */
    uint32_t region;         /* where it is: this region, */
    uint64_t page;           /* and this page of the image */
    uint64_t named_pages;    /* by it, so far */
    _Atomic uint64_t settled_pages; /* named by the newest settled one */
    _Atomic uint64_t settled_ns;    /* when that was; 0: there is none */
    _Atomic uint64_t round_ns;      /* since the one before it; 0: there was none */
    struct scan_range found[SCAN_RANGES_MAX];
};

/* What it points to outlives it. `scan`: the kernel's, unless a test has another. 0 or -errno. */
int rounds_open(struct rounds *rounds, const struct scan_calls *scan, int pagemap_fd,
                const struct rounds_region *regions, uint32_t region_count, struct versions *versions,
                struct holes *holes, _Atomic uint64_t *as_of);
void rounds_close(struct rounds *rounds);

/*
 * The rest returns 0 or 1, or minus a reason:
 *   BUSY          a call of somebody else has a round open
 *   WRONG_PHASE   the map is frozen
 *   NO_VMM        the VMM has ended
 *   MISMATCH      the memory is tracked no more: what was written is unknown, this image has to be given up
 *   BUG           the kernel says what it should not; numbers have run out
 */

/* A new round, or one that was left: what it has looked at already is as good. *round: its number. */
int rounds_begin(struct rounds *rounds, uint32_t *round);
/* At most ROUNDS_STEP_PAGES of it, a moment's work. 1: settled, or a newer one is; 0: go on. A failure ends
 * the round. */
int rounds_step(struct rounds *rounds, uint32_t round);
/* The call that began it will not go on with it. */
void rounds_leave(struct rounds *rounds, uint32_t round);

/*
 * The final round, all at once, and no other ever after. From before this call on nobody writes to the
 * memory: the vCPUs stand still, block I/O is drained, the device state has been saved. Whatever round is
 * under way is dropped. 0, also if it is frozen already.
 */
int rounds_freeze(struct rounds *rounds);
/* After a freeze whose target will never run: the guest may run on here. No call of that target may be open
 * any more. 0, also if it is not frozen. */
int rounds_thaw(struct rounds *rounds);

/* These pages are lost from now on: the next round names those that were not before. 0 or WRONG_PHASE. */
int rounds_lose(struct rounds *rounds, uint64_t first_page, uint64_t page_count);

/* The memory is registered for write protection alone from now on (kernel/scan.h), between two looks. `uffd`: it is
 * registered with. 0, NO_VMM or BUG. */
int rounds_protect_alone(struct rounds *rounds, int uffd);

/* Pages that the newest settled round has named. */
uint64_t rounds_settled_pages(struct rounds *rounds);

/* The newest settled round, for people: waits for nobody, so its numbers may be of two rounds. */
struct rounds_news {
    uint64_t as_of;
    uint64_t settled_pages;
    uint64_t round_ns; /* between the two newest; 0: there is only one */
    bool frozen;
};
void rounds_news(const struct rounds *rounds, struct rounds_news *news);

#endif
