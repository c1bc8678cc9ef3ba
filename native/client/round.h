/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round, seen from the target of a move: the version map of a live image (StreamPages{versions_only}) is read on the
 * urgent connection, and every run of it raises the floor of its pages. Which pages are to be fetched then, the table
 * says: those that are MISSING.
 *
 * `since` moves only when a whole map has been read; so a call that is lost, refused for a while or no good is made
 * once more from the same place, and says the same again. Pages come in order and once a call: its work has a bound. It
 * is done a slice a turn; a message that waits for its turn holds the connection (urgent.c).
 */
#ifndef PAGEFERRY_ROUND_H
#define PAGEFERRY_ROUND_H

#include <stdbool.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "../pager/engine.h"
#include "../rpc/messages.h"

#define ROUND_REQUEST_BYTES 256

enum round_outcome {
    ROUND_UNDECIDED = 0,
    ROUND_READ,   /* the table knows all up to `since` */
    ROUND_REFUSED /* reason, why: it is no use to ask again */
};

struct round_outcome_of {
    enum round_outcome outcome;
    bool frozen;          /* it was the map as it is, so the last there is */
    uint64_t as_of;
    uint64_t newer_pages; /* that were named newer than what was here */
    uint32_t reason;
    char why[GRPC_TEXT_BYTES];
};

struct round {
    struct engine *engine;
    const char *image;
    uint64_t since;       /* every version up to this one is in the table; 0: nothing has been read */
    bool wanted;          /* one was ordered, and nobody has been told how it ended */
    bool open_first;      /* the server settles a new round before it answers */
    struct round_outcome_of ended;
    struct grpc_call *call;
    bool named;           /* its request has left */
    bool complete;        /* it has ended well: what has come is all there is */
    bool rejected;        /* we have ended it: what it said cannot be used */
    uint32_t rejections;  /* in a row */
    uint64_t as_of;       /* as it says; 0: it has said nothing yet */
    uint64_t next_page;   /* its next run begins here or behind */
    uint64_t named_pages;
    uint64_t newer_pages;
    uint64_t heard_ns;
    uint64_t due_ns;      /* no call is made before */
    uint64_t delay_ns;
    struct run *runs;     /* of the message in work; memory from the first call on */
    uint32_t run_count, run_at;
    uint64_t run_pages;   /* of the run it has come to, that are done */
    uint8_t *gathered;    /* room for a message that comes in pieces; from the first call on */
    uint8_t request[ROUND_REQUEST_BYTES];
};

void round_start(struct round *round, struct engine *engine, const char *image);
void round_close(struct round *round);

/* `image` of whom: whether the server opens a new one first. None is wanted already. */
void round_order(struct round *round, bool open_first);
/* How the one that was ordered has ended, once. */
bool round_ended_as(struct round *round, struct round_outcome_of *ended);
/* It cannot be had, whatever a server says. */
void round_refuse(struct round *round, uint32_t reason, const char *why);

/* The connection is good for calls: makes one when it is time. `who` calls. */
void round_call(struct round *round, struct grpc_session *session, const struct grpc_headers *who, uint64_t now_ns);
/* A slice of the message in work. True: there is more. */
bool round_work(struct round *round, uint64_t now_ns);
bool round_is_working(const struct round *round);
/* When round_call or round_work has something to do; UINT64_MAX: nothing. */
uint64_t round_next_ns(const struct round *round);

/* Of its call, as grpc.h has them. */
enum grpc_pulled round_pull(struct round *round, struct grpc_bytes *message);
int round_message(struct round *round, struct grpc_bytes message, uint64_t content_id, struct stats *stats,
                  uint64_t now_ns);
/* True: it was no good twice in a row, and the connection should be given up. */
bool round_over(struct round *round, const struct grpc_status *status, uint64_t now_ns);

#endif
