/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's half of the hand-off: makes the userfaultfd of a mapping, gives it to the fault client, and later asks it
 * before memory is dropped. docs/handoff.md is the protocol.
 *
 * Whatever goes wrong before the client has accepted ends the process: a VMM whose memory nobody serves would run on
 * zeros.
 */
#ifndef PAGEFERRY_HANDOFF_H
#define PAGEFERRY_HANDOFF_H

#include <stdbool.h>
#include <stdint.h>

#include "../kernel/frames.h"

struct handoff_request {
    const char *socket_path;
    int timeout_ms;
    int device_fd; /* an open /dev/userfaultfd, or -1 */
    int ram_fd;
    uint64_t address;
    uint64_t length_bytes;
};

/* The conversation after the hand-off. One thread at a time: the caller holds a lock. */
struct handoff {
    int uffd;   /* kept for the VMM's life: a client that dies then leaves sleepers asleep, instead of reading zeros */
    int socket;
    struct frame_reader reader;
    uint64_t sequence;
    bool complete; /* every page is here: nothing has to be reported any more */
    bool lost;     /* the socket has ended before that */
};

/* Registers the mapping, hands it over, and returns when the client has accepted. Does not return otherwise. */
void handoff_make(struct handoff *handoff, const struct handoff_request *request);

/* Reports that [offset, offset + length) of the RAM is about to be dropped. 0: it may be. -EIO: the client cannot be
 * asked, and the pages must stay. */
int handoff_discard(struct handoff *handoff, uint64_t offset_bytes, uint64_t length_bytes);

/* Takes in what the client has said meanwhile, without waiting. */
void handoff_catch_up(struct handoff *handoff);

/* One line on stderr. */
__attribute__((format(printf, 1, 2))) void shim_say(const char *format, ...);
/* The same, and the end of the process. */
__attribute__((format(printf, 1, 2), noreturn)) void shim_die(const char *format, ...);

#endif
