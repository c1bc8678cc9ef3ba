/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server for tests of the client that does as it is told, right or wrong: rpc's server role, one thread, any
 * number of connections on loopback. What it is told may change at any time; it counts what it sees.
 *
 * Told that its image is live (server_live), it plays a source: a page has bytes that server_write changes at once, and
 * a version that only the next round raises.
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
    _Atomic uint32_t fetch_all;         /* the same: all pages of the image, as: */
    _Atomic uint32_t fetch_all_kind;
    _Atomic uint32_t fetch_unasked;     /* each answer brings the next page, too */
    _Atomic uint32_t stream_bad_digests;
    _Atomic uint32_t stream_pages;      /* a batch; 0: 64 */
    _Atomic uint32_t stream_mute;
    _Atomic uint32_t stream_nothing;    /* OK, without a page */
    _Atomic uint32_t stream_reason;
    _Atomic uint64_t later_page;        /* plus one; it cannot be read, so many times: */
    _Atomic uint32_t later_times;
    _Atomic uint64_t poison_page;       /* plus one */
    _Atomic uint8_t poisoned[SERVER_PAGES];
    _Atomic uint32_t round_reason;      /* a map is refused with this; with BUSY so many times: */
    _Atomic uint32_t round_times;
    _Atomic uint32_t map_runs;          /* in a message; 0: all that there are */
    _Atomic uint32_t map_cut;           /* so many maps to come end after their first message */
    _Atomic uint32_t map_bad_digests;
    _Atomic uint32_t map_garbage;       /* the same: what is no map: bytes in it, pages twice, no as_of */
    _Atomic uint32_t map_lags;          /* as_of is behind the versions: the guest writes on */
    _Atomic uint32_t phase;             /* told with each echo, and: */
    _Atomic uint32_t cancel;
    _Atomic uint32_t manifest;          /* 1: the digest of the versions, 2: another */
    _Atomic uint32_t frozen;            /* the whole thread does nothing; once it goes: by server_hold */
    _Atomic uint32_t cut;               /* all connections are closed, and it counts down to 0 */
};

struct server_seen {
    _Atomic uint64_t open;           /* connections, now */
    _Atomic uint64_t connections, describes, fetches, streams, asked, overlong;
    _Atomic uint64_t maps, since;    /* maps that were asked, and above which version the last was */
    _Atomic uint64_t rounds;         /* that were opened for one */
    _Atomic uint64_t strangers;      /* calls that did not say who makes them, as SERVER_SESSION has it */
    _Atomic uint32_t frozen;         /* `will.frozen`, as its thread has it */
};

#define SERVER_SESSION "move-1"
#define SERVER_TOKEN "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
#define SERVER_TARGET UINT64_C(0x00c0ffee00c0ffee)
#define SERVER_EPOCH 3

/* A page of a live image: the word all over it (0: nothing is there), its version, and whether it was written since. */
struct server_page {
    _Atomic uint64_t word, version;
    _Atomic uint32_t dirty;
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
    struct server_page pages[SERVER_PAGES]; /* of a live image; as_of is in `will` */
};

/* Listens, and does not serve yet: processes that play VMs are forked before there are threads. */
void server_start(struct server *server);
/* Serves, unless it does already or somebody else does. */
void server_go(struct server *server);
void server_stop(struct server *server);
/* Closes every connection; returns when that is done. */
void server_cut(struct server *server);
/* Does nothing from the return of this on: what comes then stays unread, until `will.frozen` is taken back. */
void server_hold(struct server *server);

/* From now on its image is live, and has had no round yet; before it goes. */
void server_live(struct server *server);
/* The guest writes a word all over a page; 0: gives it back. */
void server_write(struct server *server, uint64_t page, uint64_t word);
/* Settles a round: what was written since the last one is newer. By itself when a map is asked with open_round; by the
 * test at the end, when the guest stands still. */
void server_round(struct server *server);
/* Another server, which knows no more than that everything may be newer. */
void server_restarted(struct server *server);
/* The digest of the versions. */
void server_manifest(struct server *server, uint8_t digest[16]);

/* Whether a page of the image holds data: word page + 1 all over. */
bool server_holds(uint64_t page);

#endif
