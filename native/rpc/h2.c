/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only file that sees nghttp2. Two of its ways need care:
 *
 * nghttp2_session_mem_send writes DATA frames in a loop of its own (NO_COPY) and returns 0 both when all is said and
 * when it was told to pause; so the pause is remembered here, and nobody takes 0 for "drained".
 *
 * Debian's 1.52 bounds CONTINUATION frames and unsent acknowledgements, but few other floods; so frames that cost the
 * sender nothing are counted here, in a bucket that refills with time, and whoever empties it is told to calm down and
 * disconnected. A PING is free if we have sent DATA or HEADERS since the last one: clients measure bandwidth that way.
 */
#include "h2.h"

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>

#include "../gen/contract.h"
#include "flood.h"

#define FIELDS_MAX 12
#define UNSENT_FRAMES_MAX 4096 /* a peer that makes us answer and does not read */

struct h2 {
    nghttp2_session *session;
    const struct h2_events *events;
    void *owner;
    struct h2_out *out; /* during h2_gather */
    bool server;
    bool paused;
    bool going_away;
    bool flooded;
    bool ping_is_paid;
    struct flood flood;
};

/* ------------------------------------------------------------------------------------------------------ floods */

/* What a callback returns: 0, or the end of the connection. */
static int charge(struct h2 *h2)
{
    if (!flood_take(&h2->flood))
        h2->flooded = true;
    return h2->flooded ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
}

static bool is_for_nothing(struct h2 *h2, const nghttp2_frame *frame)
{
    bool answered = (frame->hd.flags & NGHTTP2_FLAG_ACK) != 0, nothing = false;

    switch (frame->hd.type) {
    case NGHTTP2_RST_STREAM:
        nothing = h2->server; /* a server can end no more calls than we begin */
        break;
    case NGHTTP2_PRIORITY:
        nothing = true;
        break;
    case NGHTTP2_SETTINGS:
        nothing = !answered;
        break;
    case NGHTTP2_PING:
        nothing = !answered && !h2->ping_is_paid;
        h2->ping_is_paid = h2->ping_is_paid && answered;
        break;
    case NGHTTP2_DATA:
        nothing = frame->hd.length == 0 && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0;
        break;
    default:
        break;
    }
    return nothing;
}

/* --------------------------------------------------------------------------------------------------- receiving */

static void *call_of(nghttp2_session *session, int32_t stream)
{
    return nghttp2_session_get_stream_user_data(session, stream);
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *data)
{
    struct h2 *h2 = data;
    int32_t stream = frame->hd.stream_id;
    void *call;

    if (frame->hd.type != NGHTTP2_HEADERS)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
        call = h2->events->begun(h2->owner, stream);
        if (call == NULL)
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
        nghttp2_session_set_stream_user_data(session, stream, call);
    }
    call = call_of(session, stream);
    if (call != NULL)
        h2->events->fields_begin(h2->owner, call);
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_length,
                     const uint8_t *value, size_t value_length, uint8_t flags, void *data)
{
    struct h2 *h2 = data;
    void *call = call_of(session, frame->hd.stream_id);

    (void)flags;
    if (call != NULL && h2->events->field(h2->owner, call, (const char *)name, name_length, (const char *)value,
                                          value_length) != 0) {
        h2->flooded = true;
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return 0;
}

static int on_data_chunk(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *bytes, size_t length,
                         void *data)
{
    struct h2 *h2 = data;
    void *call = call_of(session, stream);

    (void)flags;
    if (call != NULL)
        h2->events->data(h2->owner, call, bytes, length);
    return 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *data)
{
    struct h2 *h2 = data;
    bool end_stream = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
    void *call;

    if (is_for_nothing(h2, frame) && charge(h2) != 0)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    if (frame->hd.type == NGHTTP2_GOAWAY)
        h2->going_away = true;
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
        return 0;
    call = call_of(session, frame->hd.stream_id);
    if (call != NULL && frame->hd.type == NGHTTP2_HEADERS)
        h2->events->fields_end(h2->owner, call, end_stream);
    if (call != NULL && end_stream)
        h2->events->remote_end(h2->owner, call);
    return 0;
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int error, void *data)
{
    (void)session, (void)frame, (void)error;
    return charge(data);
}

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t error, void *data)
{
    struct h2 *h2 = data;
    void *call = call_of(session, stream);

    if (call != NULL)
        h2->events->closed(h2->owner, call, error);
    return 0;
}

int h2_feed(struct h2 *h2, const uint8_t *data, size_t length)
{
    ssize_t taken = nghttp2_session_mem_recv(h2->session, data, length);
    uint32_t error = NGHTTP2_INTERNAL_ERROR;
    int rc = 0;

    if (taken == NGHTTP2_ERR_FLOODED || nghttp2_session_get_outbound_queue_size(h2->session) > UNSENT_FRAMES_MAX)
        h2->flooded = true;
    if (taken == NGHTTP2_ERR_NOMEM)
        rc = -ENOMEM;
    else if (taken < 0 || h2->flooded)
        rc = -EPROTO;
    if (h2->flooded)
        error = NGHTTP2_ENHANCE_YOUR_CALM;
    if (rc != 0) {
        h2->going_away = true;
        nghttp2_session_terminate_session(h2->session, error); /* unless it has found an error of its own */
    }
    return rc;
}

/* ----------------------------------------------------------------------------------------------------- sending */

static bool has_room(const struct h2_out *out)
{
    return out->capacity - out->used >= H2_FRAME_HEAD_BYTES + 1 + PF_LIMIT_FRAME_BYTES_MAX;
}

static ssize_t on_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t length, uint32_t *flags,
                       nghttp2_data_source *source, void *data)
{
    struct h2 *h2 = data;
    enum h2_body what = H2_BODY_MORE;
    size_t body_length;

    (void)session, (void)stream, (void)buffer;
    if (h2->out->used >= h2->out->budget || !has_room(h2->out)) {
        h2->paused = true;
        return NGHTTP2_ERR_PAUSE;
    }
    body_length = h2->events->body(h2->owner, source->ptr, length, &what);
    if (what == H2_BODY_WAIT)
        return NGHTTP2_ERR_DEFERRED;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (what == H2_BODY_END)
        *flags |= NGHTTP2_DATA_FLAG_EOF;
    if (what == H2_BODY_TRAILERS)
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
    return (ssize_t)body_length;
}

static int on_send_data(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *head, size_t length,
                        nghttp2_data_source *source, void *data)
{
    struct h2 *h2 = data;
    struct h2_out *out = h2->out;

    (void)session, (void)frame;
    memcpy(out->data + out->used, head, H2_FRAME_HEAD_BYTES);
    out->used += H2_FRAME_HEAD_BYTES;
    if (length > 0)
        h2->events->copy(h2->owner, source->ptr, out->data + out->used, length);
    out->used += length;
    h2->ping_is_paid = true;
    return 0;
}

/* An answer has ended; a client that has not ended its request is told that the rest is not wanted. */
static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *data)
{
    struct h2 *h2 = data;

    if (frame->hd.type == NGHTTP2_GOAWAY)
        h2->going_away = true;
    if (frame->hd.type == NGHTTP2_HEADERS) {
        h2->ping_is_paid = true;
        if (h2->server && (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0 &&
            nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
            nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    }
    return 0;
}

int h2_gather(struct h2 *h2, struct h2_out *out)
{
    const uint8_t *data;
    ssize_t length = 1;

    h2->out = out;
    h2->paused = false;
    while (length > 0 && has_room(out)) {
        length = nghttp2_session_mem_send(h2->session, &data);
        if (length > 0 && (size_t)length > out->capacity - out->used) {
            length = NGHTTP2_ERR_BUFFER_ERROR; /* cannot be: room for a whole frame was there */
        } else if (length > 0) {
            memcpy(out->data + out->used, data, (size_t)length);
            out->used += (size_t)length;
        }
    }
    h2->out = NULL;
    if (length < 0)
        return length == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
    return length > 0 || h2->paused;
}

bool h2_wants_write(struct h2 *h2)
{
    return nghttp2_session_want_write(h2->session) != 0;
}

bool h2_is_over(struct h2 *h2)
{
    return nghttp2_session_want_read(h2->session) == 0 && nghttp2_session_want_write(h2->session) == 0;
}

/* ------------------------------------------------------------------------------------------------ what is said */

static size_t to_nv(const struct h2_field *fields, size_t field_count, nghttp2_nv *nv)
{
    size_t count = field_count < FIELDS_MAX ? field_count : FIELDS_MAX;

    for (size_t i = 0; i < count; i++) {
        nv[i].name = (uint8_t *)(uintptr_t)fields[i].name;
        nv[i].namelen = strlen(fields[i].name);
        nv[i].value = (uint8_t *)(uintptr_t)fields[i].value;
        nv[i].valuelen = fields[i].value_length;
        nv[i].flags = NGHTTP2_NV_FLAG_NO_COPY_NAME;
        if (fields[i].constant)
            nv[i].flags |= NGHTTP2_NV_FLAG_NO_COPY_VALUE;
        if (fields[i].secret)
            nv[i].flags |= NGHTTP2_NV_FLAG_NO_INDEX;
    }
    return count;
}

static int to_errno(int error)
{
    return error == 0 ? 0 : error == NGHTTP2_ERR_NOMEM ? -ENOMEM : -EPROTO;
}

int32_t h2_request(struct h2 *h2, const struct h2_field *fields, size_t field_count, void *call)
{
    nghttp2_data_provider body = {.source.ptr = call, .read_callback = on_body};
    nghttp2_nv nv[FIELDS_MAX];
    size_t count = to_nv(fields, field_count, nv);
    int32_t stream = nghttp2_submit_request(h2->session, NULL, nv, count, &body, call);

    return stream < 0 ? to_errno(stream) : stream;
}

int h2_respond(struct h2 *h2, int32_t stream, const struct h2_field *fields, size_t field_count, bool body, void *call)
{
    nghttp2_data_provider provider = {.source.ptr = call, .read_callback = on_body};
    nghttp2_nv nv[FIELDS_MAX];
    size_t count = to_nv(fields, field_count, nv);

    return to_errno(nghttp2_submit_response(h2->session, stream, nv, count, body ? &provider : NULL));
}

int h2_trailers(struct h2 *h2, int32_t stream, const struct h2_field *fields, size_t field_count)
{
    nghttp2_nv nv[FIELDS_MAX];
    size_t count = to_nv(fields, field_count, nv);

    return to_errno(nghttp2_submit_trailer(h2->session, stream, nv, count));
}

void h2_resume(struct h2 *h2, int32_t stream)
{
    nghttp2_session_resume_data(h2->session, stream); /* not deferred: nothing to do */
}

void h2_reset(struct h2 *h2, int32_t stream, enum h2_error error)
{
    nghttp2_submit_rst_stream(h2->session, NGHTTP2_FLAG_NONE, stream, (uint32_t)error);
}

bool h2_connection_window_open(struct h2 *h2)
{
    return nghttp2_session_get_remote_window_size(h2->session) > 0;
}

bool h2_stream_window_open(struct h2 *h2, int32_t stream)
{
    return nghttp2_session_get_stream_remote_window_size(h2->session, stream) > 0;
}

void h2_go_away(struct h2 *h2)
{
    h2->going_away = true;
    nghttp2_submit_goaway(h2->session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(h2->session),
                          NGHTTP2_NO_ERROR, NULL, 0);
}

bool h2_going_away(const struct h2 *h2)
{
    return h2->going_away;
}

/* ------------------------------------------------------------------------------------------------ open and close */

static int make_session(struct h2 *h2)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    int error = nghttp2_session_callbacks_new(&callbacks);

    if (error == 0)
        error = nghttp2_option_new(&option);
    if (error != 0)
        goto out;
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_max_reserved_remote_streams(option, 0);
    nghttp2_option_set_max_send_header_block_length(option, PF_LIMIT_METADATA_BYTES_MAX);
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data_chunk);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame_recv);
    nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, on_invalid_frame);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_frame_send);
    nghttp2_session_callbacks_set_send_data_callback(callbacks, on_send_data);
    if (h2->server)
        error = nghttp2_session_server_new2(&h2->session, callbacks, h2, option);
    else
        error = nghttp2_session_client_new2(&h2->session, callbacks, h2, option);
out:
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_option_del(option);
    return to_errno(error);
}

/* Windows by SETTINGS: a change of one stream's window before the peer's acknowledgement would be overwritten by it. */
static int introduce(struct h2 *h2, const struct h2_settings *settings)
{
    nghttp2_settings_entry entries[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, settings->stream_window_bytes},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, settings->header_bytes_max},
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, settings->server ? settings->streams_max : 0},
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}, /* a server must not send it */
    };
    size_t count = sizeof(entries) / sizeof(entries[0]) - (settings->server ? 1 : 0);
    int error = nghttp2_submit_settings(h2->session, NGHTTP2_FLAG_NONE, entries, count);

    if (error == 0)
        error = nghttp2_session_set_local_window_size(h2->session, NGHTTP2_FLAG_NONE, 0,
                                                      (int32_t)settings->connection_window_bytes);
    return to_errno(error);
}

int h2_open(const struct h2_settings *settings, const struct h2_events *events, void *owner, struct h2 **h2)
{
    struct h2 *new = calloc(1, sizeof(*new));
    int rc = new == NULL ? -ENOMEM : 0;

    if (rc == 0) {
        new->events = events;
        new->owner = owner;
        new->server = settings->server;
        rc = make_session(new);
    }
    if (rc == 0)
        rc = introduce(new, settings);
    if (rc == 0) {
        *h2 = new;
    } else {
        h2_close(new);
    }
    return rc;
}

void h2_close(struct h2 *h2)
{
    if (h2 != NULL) {
        nghttp2_session_del(h2->session);
        free(h2);
    }
}
