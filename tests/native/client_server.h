/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server for tests of the client that does as it is told, right or wrong: rpc's server role, one thread, any
 * number of connections on loopback. What it is told may change at any time; it counts what it sees.
 */
#ifndef CLIENT_SERVER_H
#define CLIENT_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define SERVER_PAGES UINT64_C(512)
#define SERVER_NO_PAGE UINT64_MAX
#define SERVER_CONTENT_ID UINT64_C(0x1234567890abcdef)

/* What it is told; zero: to be good. */
struct server_will {
    _Atomic uint64_t content_id;
    _Atomic uint64_t page_count;
    _Atomic uint64_t as_of;
    _Atomic uint32_t wanted_pages_max;
    _Atomic uint32_t live;
    _Atomic uint32_t describe_mute;   /* no answer */
    _Atomic uint32_t describe_empty;  /* OK without an answer */
    _Atomic uint32_t describe_twice;
    _Atomic uint32_t describe_reason; /* refused, with this */
    _Atomic uint32_t fetch_reason;    /* FetchPages is refused */
    _Atomic uint32_t fetch_end_after; /* so many pages end the call, once */
    _Atomic uint32_t fetch_no_echo;
    _Atomic uint32_t fetch_mute;      /* asks are not answered, heartbeats are */
    _Atomic uint32_t fetch_bad_digests; /* so many batches to come */
    _Atomic uint32_t fetch_garbage;     /* the same: no batch at all */
    _Atomic uint32_t fetch_outside;     /* the same: a page past the image */
    _Atomic uint32_t fetch_unasked;     /* each answer brings the next page, too */
    _Atomic uint32_t stream_bad_digests;
    _Atomic uint32_t stream_pages;      /* a batch; 0: 64 */
    _Atomic uint32_t stream_mute;
    _Atomic uint32_t stream_nothing;    /* OK, without a page */
    _Atomic uint32_t stream_reason;
    _Atomic uint64_t later_page;        /* plus one; it cannot be read, so many times: */
    _Atomic uint32_t later_times;
    _Atomic uint64_t poison_page;       /* plus one */
    _Atomic uint32_t frozen;            /* the whole thread does nothing */
    _Atomic uint32_t cut;               /* all connections are closed, and it counts down to 0 */
};

struct server_seen {
    _Atomic uint64_t connections, describes, fetches, streams, asked, overlong;
};

struct server {
    uint16_t port;
    char address[64];
    int listen_fd;
    pthread_t thread;
    bool goes;      /* the thread runs */
    bool elsewhere; /* somebody else serves on listen_fd */
    _Atomic bool stop;
    struct server_will will;
    struct server_seen seen;
};

/* Listens, and does not serve yet: processes that play VMs are forked before there are threads. */
void server_start(struct server *server);
/* Serves, unless it does already or somebody else does. */
void server_go(struct server *server);
void server_stop(struct server *server);
/* Closes every connection; returns when that is done. */
void server_cut(struct server *server);

/* Whether a page of the image holds data: word page + 1 all over. */
bool server_holds(uint64_t page);

#endif
