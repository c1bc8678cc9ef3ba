/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a call, the same for all methods: opened, admitted, asked, answered, ended. A method says what
 * is its own in a table. Memory: a call object for each call, a batch's memory only while pages are on their
 * way, both kept for the next call; none is allocated for a page.
 */
#ifndef PAGEFERRY_CALLS_H
#define PAGEFERRY_CALLS_H

#include "serve.h"

struct method {
    const char *path;
    enum gate_wish wish; /* of PageService: the gate is asked, drain ends it */
    bool requests; /* a stream of requests; otherwise exactly one */
    /* A request. 0, or minus a reason that call_refuse returned. */
    int (*message)(struct call *call, struct grpc_bytes message);
    /* As grpc_owner's, until the call is finished. Calls of one request: once it is complete. */
    enum grpc_pulled (*pull)(struct call *call, struct grpc_bytes *message);
};

/* The one of this path in a table, or NULL; and in the table of each file that has methods. */
const struct method *method_of(const struct method *methods, size_t count, struct grpc_bytes path);
const struct method *methods_find(struct grpc_bytes path);
const struct method *standard_find(struct grpc_bytes path);
/* standard.c */
void standard_ended(struct call *call);
/* Health has changed: those who watch it shall be told. */
void standard_health_changed(struct call *call);

extern const struct grpc_owner calls_owner;

/* Ends the call with an error. Returns minus the reason. */
int call_refuse(struct call *call, uint32_t reason, const char *why);
/* Ends it with OK. */
enum grpc_pulled call_done(struct call *call);
/* Memory for an answer of so many pages and runs, until call_release. NULL: the machine has none. */
#define CALL_BATCH_PAGES (PF_LIMIT_BATCH_BYTES_MAX / PF_LIMIT_PAGE_BYTES)
#define CALL_BATCH_RUNS 256
uint8_t *call_batch(struct call *call);
size_t call_batch_bytes(void);
void call_release(struct call *call);

/* The service's flags, a session or an image have changed. */
void calls_look_up(struct connection *connection);
/* Of methods.c: there may be something that the peer of this call has to be told. */
void methods_look_up(struct call *call);
/* Ends calls whose deadline has passed; returns when the next one is due. */
uint64_t calls_expire(struct connection *connection, uint64_t now_ns);
/* The worker's own memory, for the calls that a client of ours has at once; later calls that find none left get more,
 * which is kept. 0 or -ENOMEM. */
int calls_open(struct worker *worker);
/* All of it, at its end. */
void calls_close(struct worker *worker);

#endif
