/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The urgent connection of one VM: DescribeImage, then one long FetchPages call, and beside it the maps of rounds
 * (round.h). Pages that threads wait for are asked here and answers go straight to the engine, on the pager's own
 * thread.
 *
 * Nothing is remembered about an ask but a count: the page table is the ledger. When the link is lost, a batch was no
 * good, or the server seems to have forgotten what it owes, the engine names again whatever is still WANTED.
 */
#ifndef PAGEFERRY_URGENT_H
#define PAGEFERRY_URGENT_H

#include <stdbool.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "../pager/engine.h"
#include "../rpc/messages.h"
#include "link.h"
#include "round.h"

#define URGENT_ASKS_MAX 4096 /* a power of two */
#define URGENT_REQUEST_RUNS_MAX 64
#define URGENT_REQUEST_BYTES 4096
#define URGENT_LATERS 256 /* a power of two */

struct urgent_events {
    /* The server has described the image and FetchPages is open. First time: content_id and as_of are new. */
    void (*attached)(void *owner);
    /* The server is not there, or not willing for now; goes on by itself. */
    void (*unreachable)(void *owner, uint32_t reason, const char *why);
    /* The ends do not fit, or the server refuses for good: asking again would change nothing. */
    void (*refused)(void *owner, uint32_t reason, const char *why);
};

/* How long a page waits that was answered LATER once more: doubled each time. Two pages may share a place. */
struct urgent_later {
    uint64_t page_plus_1;
    uint64_t delay_ns;
};

struct urgent {
    struct link link;
    struct engine *engine;
    const struct regions *regions;
    const char *image;
    const struct grpc_headers *who;
    const struct urgent_events *events;
    void *owner;
    const uint64_t *now_ns;
    struct stats *stats;
    struct round round;
    struct grpc_call *describe;
    struct grpc_call *fetch;
    bool describe_sent, named; /* the first message of a call has left */
    bool attached;
    bool overflowed;           /* asks were dropped for want of room: the table has them */
    bool batch_rejected;       /* the last batch was no good */
    uint64_t content_id;       /* 0: never described */
    bool live;                 /* as described first */
    uint64_t as_of;            /* as described first; of a live image any */
    uint64_t final_as_of;      /* of a live image whose pages are being resolved: its map is frozen, and this one */
    uint32_t phase;            /* the source's, as told last; 0: never */
    bool cancel_requested;
    bool manifest_known;       /* the source's map is frozen, and has this digest */
    uint8_t manifest[MANIFEST_BYTES];
    uint32_t wanted_pages_max;
    uint64_t in_flight;        /* pages asked on this call and not answered, about */
    uint64_t heartbeat_due_ns;
    uint64_t heartbeat_sent;   /* number of the newest */
    uint64_t waiting_ns;       /* since when an answer or an echo is owed; 0: none is */
    uint64_t answered_ns;      /* the last page was answered, or everything was asked anew */
    uint64_t again_ns;         /* everything WANTED is asked again then; 0: no */
    uint64_t again_delay_ns;
    char drop_why[GRPC_TEXT_BYTES]; /* the link is to be dropped once we are out of its callbacks */
    uint32_t ask_put, ask_taken;
    uint64_t asks[URGENT_ASKS_MAX];
    struct urgent_later laters[URGENT_LATERS];
    struct run runs[PF_LIMIT_RUNS_MAX];
    uint8_t request[URGENT_REQUEST_BYTES];
    uint8_t *gathered; /* room for a message that comes in pieces; from the first connection on */
};

struct urgent_options {
    const struct address *address;
    const char *image;              /* kept by pointer */
    const struct grpc_headers *who; /* calls, in a session; kept by pointer. NULL: nobody in particular */
    struct engine *engine;
    const struct regions *regions;
    const struct urgent_events *events;
    void *owner;
    const uint64_t *now_ns; /* the owner's clock, as of its turn */
    struct stats *stats;
    int epoll_fd;
    uint64_t epoll_tag;
};

void urgent_start(struct urgent *urgent, const struct urgent_options *options);
/* The engine's out.ask. */
void urgent_ask(struct urgent *urgent, uint64_t page);
void urgent_ready(struct urgent *urgent, uint32_t events);
/* The end of the owner's turn: what was asked leaves as one message; dials; heartbeats. */
void urgent_turn(struct urgent *urgent);
/* Before arming: does our table agree with what the server has told of its frozen map? Unless it has told nothing. */
bool urgent_agrees(const struct urgent *urgent);
/* The ends do not fit: said, and the link is dropped once we are out of its callbacks. */
void urgent_refuse(struct urgent *urgent, uint32_t reason, const char *why);
/* Others see that what this server sends does not fit: it is dialled anew and asked what it serves. */
void urgent_doubt(struct urgent *urgent, const char *why);
/* The link is dropped once we are out of its callbacks; the first reason counts. */
void urgent_drop_soon(struct urgent *urgent, const char *why);
uint64_t urgent_next_ns(const struct urgent *urgent);
void urgent_close(struct urgent *urgent);

#endif
