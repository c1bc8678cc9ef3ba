/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gRPC on one HTTP/2 connection, either role: calls, messages, statuses. No sockets: conn.h feeds bytes in and takes
 * bytes out. nghttp2 is seen by h2.c alone, frames and prefixes by nobody above this header.
 *
 * Sending is pulled, never pushed: when the connection can take more and a call's window is open, its owner is asked
 * for the next message (`pull`). So a page is read when it can leave, not earlier, requests that gather while the
 * socket is busy leave as one, and a stalled peer costs the one message that is half sent.
 *
 * Callbacks run inside conn_read and conn_write, on the thread that called those. They may start, resume, finish and
 * cancel calls. A call's pointer is good until `ended` returns.
 */
#ifndef PAGEFERRY_GRPC_H
#define PAGEFERRY_GRPC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum grpc_role { GRPC_CLIENT = 1, GRPC_SERVER = 2 };

/* Numbers of the gRPC specification. */
enum grpc_code {
    GRPC_OK = 0,
    GRPC_CANCELLED = 1,
    GRPC_UNKNOWN = 2,
    GRPC_INVALID_ARGUMENT = 3,
    GRPC_DEADLINE_EXCEEDED = 4,
    GRPC_NOT_FOUND = 5,
    GRPC_ALREADY_EXISTS = 6,
    GRPC_PERMISSION_DENIED = 7,
    GRPC_RESOURCE_EXHAUSTED = 8,
    GRPC_FAILED_PRECONDITION = 9,
    GRPC_ABORTED = 10,
    GRPC_OUT_OF_RANGE = 11,
    GRPC_UNIMPLEMENTED = 12,
    GRPC_INTERNAL = 13,
    GRPC_UNAVAILABLE = 14,
    GRPC_UNAUTHENTICATED = 16
};

#define GRPC_TEXT_BYTES 200
#define GRPC_MESSAGE_PREFIX_BYTES 5

struct grpc_call;
struct grpc_session;

struct grpc_bytes {
    const uint8_t *data;
    size_t length;
};

static inline bool grpc_is_text(struct grpc_bytes bytes, const char *text)
{
    return bytes.length == strlen(text) && memcmp(bytes.data, text, bytes.length) == 0;
}

struct grpc_status {
    uint32_t code;           /* enum grpc_code; whatever came, if it came from a peer */
    uint32_t reason;         /* enum pf_reason from the trailer pageferry-reason; 0: there was none, or not ours */
    uint32_t retry_after_ms; /* trailer pageferry-retry-after-ms; 0: none */
    char message[GRPC_TEXT_BYTES];
};

/* What the headers of a request said. Pointers are good during `opened` only; absent: length 0. */
struct grpc_headers {
    struct grpc_bytes path;          /* "/package.Service/Method" */
    struct grpc_bytes authorization; /* of the data port's metadata, see pages.proto */
    struct grpc_bytes session;
    struct grpc_bytes target;
    struct grpc_bytes epoch;
    uint64_t timeout_ns; /* grpc-timeout; 0: none */
};

enum grpc_pulled {
    GRPC_PULLED_MESSAGE = 1, /* *message is filled and stays untouched until the next pull of this call, or ended */
    GRPC_PULLED_NOTHING,     /* nothing now; grpc_resume when there is */
    GRPC_PULLED_LAST         /* nothing ever again. Server: grpc_finish was called. Client: half-close */
};

struct grpc_owner {
    /* Server only: a call has begun. 0 to take it (then `user` may be set); anything else: it was finished already
     * with grpc_finish in here, no other callback but ended follows. */
    int (*opened)(void *owner, struct grpc_call *call, const struct grpc_headers *headers);
    /* Where a message of `length` bytes that does not come in one piece is to be gathered (at least that long, kept
     * until `message` returns). NULL as function: the session gathers by itself, in memory it keeps for the call.
     * NULL as answer: the call is ended with RESOURCE_EXHAUSTED. */
    uint8_t *(*gather)(void *owner, struct grpc_call *call, size_t length);
    /* One whole message; the bytes are good during the call only (unless they lie in gather's memory). 0, or minus a
     * reason (enum pf_reason): server: the call ends with it; client: the call is cancelled, ended tells the reason. */
    int (*message)(void *owner, struct grpc_call *call, struct grpc_bytes message);
    /* Server only: the peer will send no more messages. */
    void (*half_closed)(void *owner, struct grpc_call *call);
    enum grpc_pulled (*pull)(void *owner, struct grpc_call *call, struct grpc_bytes *message);
    /* The call is over, however it ended. Client: the server's status (UNAVAILABLE if the connection was lost).
     * Server: what was sent, or CANCELLED when the peer reset it or went away. */
    void (*ended)(void *owner, struct grpc_call *call, const struct grpc_status *status);
};

struct grpc_settings {
    size_t message_bytes_max;         /* incoming; a longer prefix ends the call with RESOURCE_EXHAUSTED */
    uint32_t stream_window_bytes;     /* incoming, announced as SETTINGS_INITIAL_WINDOW_SIZE */
    uint32_t connection_window_bytes; /* incoming */
    uint32_t streams_max;             /* server: concurrent calls of one connection */
    size_t header_bytes_max;          /* of one call's headers, both ways */
    const char *authority;            /* client: copied */
};

/* Client: begins a call; `user` is kept with it. NULL: no stream left, or the session is going away. */
struct grpc_call *grpc_start(struct grpc_session *session, const char *path, void *user);
/* The same, saying who calls, unless it is NULL: those of the four fields of metadata that are there. Their bytes are not
 * copied: they stay as they are while the session is open. The authorization is never indexed by HPACK. */
struct grpc_call *grpc_start_as(struct grpc_session *session, const char *path, const struct grpc_headers *who,
                                void *user);
/* More to pull. Cheap; may be called at any time before ended. */
void grpc_resume(struct grpc_call *call);
/* Server: ends the call with a status as soon as what was pulled has left. code 0 with reason 0: OK. May be called
 * inside callbacks; only the first counts. Fills the code from the reason when code is 0 and the reason is not. */
void grpc_finish(struct grpc_call *call, const struct grpc_status *status);
/* Resets the stream: `ended` follows from a later conn_read or conn_write, or from inside this. */
void grpc_cancel(struct grpc_call *call);
void *grpc_user(const struct grpc_call *call);
void grpc_set_user(struct grpc_call *call, void *user);
/* Calls that are open. */
uint32_t grpc_open_calls(const struct grpc_session *session);
/* Server: GOAWAY; no new calls are taken, open ones go on. */
void grpc_go_away(struct grpc_session *session);
/* Either side has sent GOAWAY, a protocol error included: no new calls. */
bool grpc_going_away(const struct grpc_session *session);

#endif
