/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call and its session from the inside, room-internal: what grpc.c (life), sending.c and receiving.c share. A call
 * lives until its stream is closed; `ended` comes once, at the latest then. After it the owner's memory is not touched
 * any more, whatever the stream still does.
 */
#ifndef PAGEFERRY_CALL_H
#define PAGEFERRY_CALL_H

#include <sys/queue.h>

#include "fields.h"
#include "grpc.h"
#include "h2.h"
#include "incoming.h"

struct grpc_call {
    TAILQ_ENTRY(grpc_call) all;
    TAILQ_ENTRY(grpc_call) ready;
    struct grpc_session *session;
    void *user;
    int32_t stream;
    bool is_ready;     /* on the list of that name */
    bool requested;    /* server: the fields of the request have come */
    bool answering;    /* server: the fields of the answer have been given to HTTP/2 */
    bool pulling;      /* inside the owner's pull */
    bool resumed;      /* since that began */
    bool waiting;      /* HTTP/2 will not ask for DATA before h2_resume */
    bool local_end;    /* our last frame has been given to HTTP/2 */
    bool is_grpc;      /* client: the answer is gRPC; else its body is not looked at */
    bool finished;     /* `status` is final; nothing but ended goes up any more */
    bool cancelled;    /* reset by us: nothing is sent any more */
    bool ended;        /* the owner has been told */
    bool sending;      /* `outgoing` has been pulled; `sent` bytes of its prefix and of it have left */
    uint32_t http_status;
    struct grpc_bytes outgoing;
    size_t sent;
    struct incoming incoming;
    struct grpc_status status;
};

TAILQ_HEAD(call_list, grpc_call);

struct grpc_session {
    struct h2 *h2;
    bool server;
    bool closing;
    const struct grpc_owner *callbacks;
    void *owner;
    size_t message_bytes_max;
    char *authority;
    struct call_list all;
    struct call_list ready;
    struct call_list spare; /* for reuse; linked by `all` */
    uint32_t call_count; /* in `all` */
    uint32_t open_count; /* of them, those whose owner awaits the end */
    uint32_t ready_count;
    struct field_block block; /* the one that is being read */
};

/* grpc.c: a new call, or NULL; the end for its owner, once; its memory goes back. */
struct grpc_call *call_new(struct grpc_session *session);
void call_end(struct grpc_call *call);
void call_drop(struct grpc_call *call);
void call_set_ready(struct grpc_call *call);
void call_clear_ready(struct grpc_call *call);
void call_set_status(struct grpc_call *call, uint32_t code, uint32_t reason, const char *message);
/* We end it: a server by this status, a client by a reset whose cause its owner hears. Nothing if it is finished. */
void call_fail(struct grpc_call *call, uint32_t code, uint32_t reason, const char *message);
/* Resets the stream: nothing is sent any more, nothing but ended goes up. */
void call_reset(struct grpc_call *call);

/* sending.c: the callbacks `body` and `copy` of h2.h. */
size_t sending_body(void *owner, void *call, size_t room, enum h2_body *what);
void sending_copy(void *owner, void *call, uint8_t *to, size_t length);
/* A server's call has finished: its status leaves as soon as it can. */
void sending_finish(struct grpc_call *call);

/* receiving.c: the other callbacks of h2.h. */
void *receiving_begun(void *owner, int32_t stream);
void receiving_fields_begin(void *owner, void *call);
int receiving_field(void *owner, void *call, const char *name, size_t name_length, const char *value,
                    size_t value_length);
void receiving_fields_end(void *owner, void *call, bool end_stream);
void receiving_data(void *owner, void *call, const uint8_t *bytes, size_t length);
void receiving_remote_end(void *owner, void *call);
void receiving_closed(void *owner, void *call, uint32_t error);

#endif
