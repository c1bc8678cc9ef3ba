/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sessions that this server knows, as they were told from above, who is attached to each, and the news of them
 * that somebody above shall hear. A table of fixed size under one lock, which is held for a moment: when a call is
 * opened, once a heartbeat, and when something changes.
 *
 * A session keeps one piece of news a kind, the newest, in the order in which they came up: so their number is bounded
 * by the table and none is ever lost.
 */
#ifndef PAGEFERRY_SESSIONS_H
#define PAGEFERRY_SESSIONS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "../pageferry.h"
#include "../rpc/grpc.h"
#include "token.h"

#define SESSIONS_PEER_BYTES 80
#define SESSIONS_NEWS_KINDS PAGEFERRY_SERVER_EVENT_SILENT /* the kinds after it are of no session */

/* What a target is told. */
struct session_state {
    uint32_t phase;
    bool cancel_requested;
    bool frozen;
    uint8_t manifest_digest[16];
};

struct session_news {
    uint64_t number; /* 0: there is none */
    uint64_t epoch;
    uint64_t value;
    uint64_t page_count;
};

struct session {
    uint64_t serial; /* of no other session ever; 0: this place is free */
    char name[PF_LIMIT_SESSION_NAME_BYTES_MAX + 1];
    char image[PF_LIMIT_IMAGE_NAME_BYTES_MAX + 1];
    uint8_t token_sha256[TOKEN_HASH_BYTES];
    uint32_t rights;
    struct session_state state;
    uint64_t target; /* to whom it is bound for ever; 0: nobody yet */
    uint64_t epoch;  /* the highest that came */
    /* FetchPages calls that stand, by the numbers they got when they were opened; the oldest first. */
    uint64_t urgent[PF_LIMIT_URGENT_CALLS_MAX];
    uint32_t urgent_count;
    uint64_t urgent_last;
    char peer[SESSIONS_PEER_BYTES]; /* of the newest of them */
    struct session_news news[SESSIONS_NEWS_KINDS];
};

struct sessions {
    pthread_mutex_t lock;
    int event_fd;
    uint64_t last_serial;
    uint64_t last_news;
    struct session all[PF_LIMIT_SESSIONS_MAX];
};

/* The table is zeroed. 0 or minus a reason. */
int sessions_open(struct sessions *sessions);
void sessions_close(struct sessions *sessions);

/* As pageferry.h has them. */
int sessions_set(struct sessions *sessions, const struct pageferry_session *told, char *error, size_t error_bytes);
int sessions_drop(struct sessions *sessions, const char *name);
int sessions_event(struct sessions *sessions, struct pageferry_server_event *event);

/* There is news that is of no session. By any thread. */
void sessions_ring(struct sessions *sessions);

/* With the lock held by the caller: */

/* NULL: there is none of this name. */
struct session *sessions_find(struct sessions *sessions, struct grpc_bytes name);
/* News of this kind (enum pageferry_server_event_kind), in place of older news of it. */
void sessions_note(struct sessions *sessions, struct session *session, uint32_t kind, uint64_t value,
                   uint64_t page_count);

#endif
