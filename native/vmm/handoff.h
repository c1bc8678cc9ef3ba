/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's half of the hand-off: makes the userfaultfd of a mapping, gives it to the one it is meant for (handoff.c),
 * and later asks before memory is dropped that may not have arrived, and drops mappings when it is told to (talk.c).
 * docs/handoff.md is the protocol.
 *
 *   restore   to the fault client, which puts pages there when they are touched
 *   track     to the page server, which sees from outside which pages are written
 *   both      to the fault client, of a VM that is to move on from there
 *
 * Whatever goes wrong before it is accepted ends the process: a VMM whose memory nobody serves would run on zeros, and
 * one that nobody tracks could not be moved.
 */
#ifndef PAGEFERRY_HANDOFF_H
#define PAGEFERRY_HANDOFF_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../kernel/frames.h"

enum handoff_role {
    HANDOFF_RESTORE = 1,
    HANDOFF_TRACK = 2,
    HANDOFF_BOTH = HANDOFF_RESTORE | HANDOFF_TRACK
};

struct handoff_request {
    enum handoff_role role;
    const char *socket_path;
    int timeout_ms;
    int device_fd; /* an open /dev/userfaultfd, or -1 */
    int ram_fd;
    uint64_t address;
    uint64_t length_bytes;
};

struct handoff {
    enum handoff_role role; /* this and the next six never change */
    int uffd;   /* kept for the VMM's life: a client that dies then leaves sleepers asleep, instead of reading zeros;
                   and tracking ends with the last holder */
    int socket;
    int ram_fd; /* our own */
    uint64_t address;
    uint64_t length_bytes;
    pid_t pid;  /* of the process that made it */
    pthread_mutex_t lock;   /* over what follows, and over what is written to the socket */
    pthread_cond_t changed; /* something was heard */
    struct frame_reader reader;
    uint64_t sequence; /* of the newest DISCARD */
    uint64_t answered; /* of the newest DISCARDED, and what it says: */
    bool keep;
    bool complete; /* every page is here: nothing has to be reported any more */
    bool lost;     /* the socket has ended before that */
    int huge_advice; /* MADV_HUGEPAGE or MADV_NOHUGEPAGE, whichever the VMM has said last; 0: neither */
};

/* The role of this name; 0: there is none. */
enum handoff_role handoff_role_named(const char *name);

/* Registers the mapping, hands it over, and returns when it has been accepted. Does not return otherwise. */
void handoff_make(struct handoff *handoff, const struct handoff_request *request);

/* After it, once: starts the thread that listens to the other end, and drops mappings when it is told to. It ends with
 * the socket. Does not return where there can be no thread. */
void handoff_listen(struct handoff *handoff);

enum handoff_heard { HANDOFF_HEARD_ALL, HANDOFF_HEARD_ZAP, HANDOFF_HEARD_END };

/* The listener's step, without waiting: takes in all that has come; a ZAP is given back at once, what follows it is for
 * the next step. END: nothing will ever come. */
enum handoff_heard handoff_hear(struct handoff *handoff, struct frame *zap);

/* What follows may be called by any thread, beside the listener. */

/* Reports that [offset, offset + length) of the RAM is about to be dropped, and waits for the answer; one at a time. 0: it
 * may be. HANDOFF_KEEP: the client keeps all of it, for the VMM only cleans up before it starts; nothing is dropped.
 * -EIO: the client cannot be asked, and the pages must stay. */
#define HANDOFF_KEEP 1
int handoff_discard(struct handoff *handoff, uint64_t offset_bytes, uint64_t length_bytes);

/* By what the other end has said up to now. True: pages may be absent still. */
bool handoff_arriving(struct handoff *handoff);

/* The VMM says MADV_HUGEPAGE or MADV_NOHUGEPAGE. True: while pages may be absent that is kept for later, and there is
 * nothing else to do. */
bool handoff_huge_pages(struct handoff *handoff, int advice);

/* [address, address + length) of the RAM has been dropped in the file: if writes are tracked, those pages count as
 * written from now on. No other drop of a page that was clean would ever be seen. */
void handoff_dropped(const struct handoff *handoff, uint64_t address, uint64_t length_bytes);

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void shim_say(const char *format, ...);
/* The same, and the end of the process. */
__attribute__((format(printf, 1, 2), noreturn)) void shim_die(const char *format, ...);

#endif
