/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map of this room: what all workers share, what one of them owns, a connection, a call. A worker is a
 * thread; each connection and its calls belong to one worker for life, so nothing below `service` is ever
 * locked; in it are the tables of images and of sessions, which change, and flags.
 *
 *   server.c      pageferry.h's server half: starts and stops the workers, adds images, sums their counters
 *   listener.c    the loop of a worker: accept, a read turn, a write turn, timers
 *   calls.c       the life of a call: opened, messages, pulled, ended; what all methods have alike
 *   methods.c     PageService's four        standard.c   health and reflection        opening.c  rounds, on a call
 *   gate.c        who may call              sessions.c   who has which token          token.c    its hash
 *   reply.c       asked runs -> one batch   asks.c       what is owed still
 *   images.c, inspect.c, sparse.c           what is served: image_file.c, image_memory.c
 *   rounds.c, versions.c, holes.c           what is new in live memory                accept.c   the shim's leave
 *   arriving.c                              which of its pages are here yet
 *   lost.c        which pages never are     poison.c     pageferry.h's words on them, and the news
 */
#ifndef PAGEFERRY_SERVE_H
#define PAGEFERRY_SERVE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "../base/stats.h"
#include "../rpc/conn.h"
#include "../rpc/messages.h"
#include "asks.h"
#include "gate.h"
#include "image.h"
#include "reply.h"
#include "sessions.h"

#define MS_NS UINT64_C(1000000)
#define NEVER_NS UINT64_MAX

struct call;
struct worker;

struct service {
    struct images images;
    struct sessions sessions;
    struct worker *workers;
    _Atomic uint32_t worker_count; /* those that run */
    _Atomic uint32_t serving;  /* what health answers */
    _Atomic uint32_t draining; /* PageService takes no new calls */
    _Atomic uint32_t stopping;
    _Atomic uint32_t connections;
};

/* What epoll gives back: first member of everything that it watches. */
enum watched_kind { WATCHED_BELL, WATCHED_TIMER, WATCHED_LISTENER, WATCHED_CONNECTION };
struct watched {
    enum watched_kind kind;
    int fd;
};

struct connection {
    struct watched watched;
    LIST_ENTRY(connection) all; /* of the worker */
    struct worker *worker;
    struct conn *conn;
    uint64_t first_due_ns; /* the first call must have been opened by then; NEVER_NS: it was */
    uint32_t interest;     /* what epoll watches for */
    struct conn_traffic counted;
    LIST_HEAD(, call) calls;
    uint32_t page_calls; /* of them, those of PageService */
    uint32_t owing;      /* of the worker's: page_calls, or one while bytes of the last wait for the socket */
    bool served_pages;   /* there was one once */
    bool said_goodbye;   /* GOAWAY, after a drain */
};

/* A call's own buffer holds any answer; only those of many pages borrow a larger one until they are sent. */
#define CALL_OWN_BYTES 5120
#define CALL_HEARTBEATS 16

struct method;    /* calls.h */
struct questions; /* standard.c */

struct call {
    LIST_ENTRY(call) all; /* of the connection, or of the worker's free ones */
    struct grpc_call *grpc;
    struct connection *connection;
    const struct method *method;
    uint64_t deadline_ns; /* NEVER_NS: none */
    bool asked;           /* a request has come */
    bool half_closed;     /* no more requests will come */
    bool begun;           /* a message was sent */
    bool finished;        /* its status is decided */
    /* PageService: */
    struct gate_pass pass;
    struct image *image; /* taken; NULL: not named yet */
    struct asks asks;
    struct reply_order order;
    uint64_t silent_due_ns;     /* FetchPages of a session: the peer must have said something by then; NEVER_NS */
    struct session_state told;  /* to the peer */
    bool news;                  /* there is more to tell */
    /* StreamPages with a round of its own: */
    uint32_t round;             /* under way; 0: none */
    TAILQ_ENTRY(call) opening;
    uint64_t heartbeats[CALL_HEARTBEATS]; /* not echoed yet, oldest first */
    uint32_t heartbeat_count;
    /* health: is the service one of ours, and the status that was sent last */
    bool known;
    uint32_t status_sent;
    /* reflection: questions not answered yet */
    struct questions *questions;
    uint8_t *batch; /* memory of an answer of many pages, from the worker; NULL: none now */
    uint8_t own[CALL_OWN_BYTES];
};

struct worker {
    struct service *service;
    pthread_t thread;
    struct stats stats;
    _Atomic uint32_t owing; /* calls of PageService whose last byte has not left; read from above */
    int epoll_fd;
    struct watched bell; /* rung from above: look at the service's flags */
    struct watched timer;
    uint64_t due_ns; /* when the timer is to ring; NEVER_NS: not at all */
    const struct watched *listeners;
    uint32_t listener_count;
    uint64_t accept_due_ns; /* accepting waits for file descriptors until then; NEVER_NS: it does not */
    LIST_HEAD(, connection) connections;
    TAILQ_HEAD(, call) openings; /* calls whose round is not settled yet: each gets its steps */
    struct token_hasher *hasher;
    struct run *runs; /* RUNS_MAX, for one request or one answer at a time */
    LIST_HEAD(, call) free_calls;
    uint32_t free_call_count;
    void *free_batches; /* memory of answers; the first word of each leads to the next */
    uint32_t free_batch_count;
};

/* listener.c */
uint64_t serve_now_ns(void);
/* The worker's timer rings at `due_ns`, or up to 10 ms later. */
void serve_due(struct worker *worker, uint64_t due_ns);
/* All workers look at their calls again. From any thread. */
void serve_ring_all(struct service *service);

#endif
