/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process apart whose memory is tracked, as a VMM's under the shim is: a memfd that it has mapped and registered for
 * asynchronous write protection. It does what it is told, one order at a time, or scribbles all over it meanwhile.
 *
 * One whose memory arrives has registered for its faults as well, as in the shim's role `both`: an order that touches an
 * absent page is done once somebody has put the page there.
 */
#ifndef TRACKED_H
#define TRACKED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define TRACKED_PAGE 4096

enum tracked_order {
    TRACKED_WRITE,      /* through its mapping; the whole page, all bytes alike */
    TRACKED_READ,       /* it touches the page and no more */
    TRACKED_RECEIVE,    /* the kernel writes the page on its behalf, a system call's result */
    TRACKED_PUNCH,      /* a hole */
    TRACKED_UNPROTECT,  /* what the shim does after a punch */
    TRACKED_DONTNEED,   /* drops the mapping of the page */
    TRACKED_UNREGISTER, /* tracking ends */
    TRACKED_MAP_AGAIN,  /* a second mapping of the file */
    TRACKED_REPLACE,    /* something else is mapped over the page */
    TRACKED_SCRIBBLE,   /* tracked_scribble's */
    TRACKED_LOAD,       /* tracked_load's, which begins it */
    TRACKED_LOADED      /* and waits for its end: whether the whole page came */
};

struct tracked {
    pid_t pid;
    int pidfd;
    int ram_fd;
    int uffd;
    uint64_t address; /* in that process */
    uint64_t page_count;
    struct tracked_box *box;
};

/* `huge`: 2 MiB at a time are mapped as one page. `registered` pages of it, all if it is that many. False: this
 * kernel or user cannot; errno. */
bool tracked_start(struct tracked *tracked, uint64_t page_count, uint64_t registered, bool huge);
/* All of it is absent, and arrives. */
bool tracked_start_arriving(struct tracked *tracked, uint64_t page_count);
/* Gives an order and does not wait; its end. */
void tracked_order(struct tracked *tracked, enum tracked_order order, uint64_t page, uint8_t value);
bool tracked_done(struct tracked *tracked);
/* Both. Whether it could be done. */
bool tracked_do(struct tracked *tracked, enum tracked_order order, uint64_t page, uint8_t value);
/* Writes pages at random, some of them never, until it is told off; then it stands still when this returns. */
void tracked_scribble(struct tracked *tracked, bool on);
/* How many pages it has scribbled on. */
uint64_t tracked_scribbled(const struct tracked *tracked);
/* A disk's work: begins to read the first page of the file of this path to a page, by a thread of its own. `direct`:
 * past the page cache. TRACKED_LOADED tells how it ended. */
bool tracked_load(struct tracked *tracked, uint64_t page, const char *path, bool direct);
/* It dies, and is gone when this returns. */
void tracked_kill(struct tracked *tracked);
void tracked_end(struct tracked *tracked);

/* NULL, or what is absent here. */
const char *tracked_absent(void);

#endif
