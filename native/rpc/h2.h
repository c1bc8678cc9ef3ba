/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One HTTP/2 session of either role, on nghttp2, which nobody else sees: streams, header fields, windows, floods. Room-
 * internal: grpc.c is above it, the out buffer comes from conn.c.
 *
 * DATA is never handed over in advance: when a frame can leave, `body` says how long it is and `copy` writes it
 * straight to the out buffer. Callbacks run inside h2_feed and h2_gather and may call anything here but those two and
 * h2_close.
 */
#ifndef PAGEFERRY_H2_H
#define PAGEFERRY_H2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define H2_FRAME_HEAD_BYTES 9

/* RFC 9113, section 7. */
enum h2_error {
    H2_NO_ERROR = 0,
    H2_PROTOCOL_ERROR = 1,
    H2_INTERNAL_ERROR = 2,
    H2_REFUSED_STREAM = 7,
    H2_CANCEL = 8,
    H2_ENHANCE_YOUR_CALM = 11,
    H2_INADEQUATE_SECURITY = 12
};

enum h2_body {
    H2_BODY_MORE = 0,   /* a frame of the length that was returned; others may follow */
    H2_BODY_WAIT,       /* nothing now: h2_resume */
    H2_BODY_END,        /* this frame ends our side of the stream; length 0 will do */
    H2_BODY_TRAILERS,   /* the last DATA (length 0: none); h2_trailers has been called */
};

struct h2;

struct h2_field {
    const char *name; /* a constant: kept by pointer */
    const char *value;
    size_t value_length;
    bool constant; /* the value too is kept by pointer */
    bool secret;   /* HPACK never indexes it: no length of a later block tells anything of it */
};
#define H2_CONSTANT(name, value) ((struct h2_field){name, value, sizeof(value) - 1, true, false})

/* Bytes that wait for the socket. A frame is begun only while `used` is below `budget` and the frame has room. */
struct h2_out {
    uint8_t *data;
    size_t used;
    size_t capacity;
    size_t budget;
};

struct h2_settings {
    bool server;
    uint32_t stream_window_bytes;
    uint32_t connection_window_bytes;
    uint32_t streams_max;
    uint32_t header_bytes_max;
};

struct h2_events {
    /* Server: a request begins. The call to keep with the stream; NULL: no memory, the stream is reset. */
    void *(*begun)(void *owner, int32_t stream);
    /* A header block begins, for this call; its fields; its end. Blocks never interleave. Not 0: end the connection. */
    void (*fields_begin)(void *owner, void *call);
    int (*field)(void *owner, void *call, const char *name, size_t name_length, const char *value, size_t value_length);
    void (*fields_end)(void *owner, void *call, bool end_stream);
    void (*data)(void *owner, void *call, const uint8_t *data, size_t length);
    /* The peer ends its side. Comes after fields_end or data. */
    void (*remote_end)(void *owner, void *call);
    size_t (*body)(void *owner, void *call, size_t room, enum h2_body *what);
    void (*copy)(void *owner, void *call, uint8_t *to, size_t length);
    /* The stream is no more; nothing follows. `error`: enum h2_error. */
    void (*closed)(void *owner, void *call, uint32_t error);
};

/* 0 or -errno. */
int h2_open(const struct h2_settings *settings, const struct h2_events *events, void *owner, struct h2 **h2);
/* Calls nothing back: the owner ends what is open. Harmless with NULL. */
void h2_close(struct h2 *h2);

/* 0, or -errno: of no more use, but h2_gather may have a last word (GOAWAY) to say. */
int h2_feed(struct h2 *h2, const uint8_t *data, size_t length);
/* 1: stopped for budget or room, more is waiting; 0: all is gathered; -errno. */
int h2_gather(struct h2 *h2, struct h2_out *out);
/* Something is ready to be gathered. */
bool h2_wants_write(struct h2 *h2);
/* Over: neither side will say any more. */
bool h2_is_over(struct h2 *h2);

/* Client. The stream, or -errno. The body is asked for by `body`. */
int32_t h2_request(struct h2 *h2, const struct h2_field *fields, size_t field_count, void *call);
/* Server. Without a body this is the whole answer. 0 or -errno. */
int h2_respond(struct h2 *h2, int32_t stream, const struct h2_field *fields, size_t field_count, bool body, void *call);
int h2_trailers(struct h2 *h2, int32_t stream, const struct h2_field *fields, size_t field_count);
void h2_resume(struct h2 *h2, int32_t stream);
void h2_reset(struct h2 *h2, int32_t stream, enum h2_error error);
/* The peer would take bytes now: on some stream; on this one. */
bool h2_connection_window_open(struct h2 *h2);
bool h2_stream_window_open(struct h2 *h2, int32_t stream);
/* Server: GOAWAY; open streams go on. */
void h2_go_away(struct h2 *h2);
bool h2_going_away(const struct h2 *h2);

#endif
