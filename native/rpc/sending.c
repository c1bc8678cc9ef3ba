/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What calls send. Messages are pulled when HTTP/2 asks for DATA, that is when they can leave at once. Only a server's
 * answer has not begun to ask: it begins when its first message or its end is known, so that an early end is one block
 * of fields (trailers-only). Until then such calls wait in `ready`.
 */
#include <stdio.h>
#include <string.h>

#include "../gen/contract.h"
#include "call.h"
#include "session.h"

static enum grpc_pulled pull(struct grpc_call *call)
{
    struct grpc_session *session = call->session;
    struct grpc_bytes message = {NULL, 0};
    enum grpc_pulled pulled;

    call->resumed = false;
    call->pulling = true;
    pulled = session->callbacks->pull(session->owner, call, &message);
    call->pulling = false;
    if (pulled == GRPC_PULLED_MESSAGE && !call->cancelled) {
        call->sending = true;
        call->sent = 0;
        call->outgoing = message;
    } else if (pulled == GRPC_PULLED_LAST && session->server) {
        call_fail(call, 0, PF_REASON_BUG, ""); /* unless it was finished, as it should be */
    }
    return pulled;
}

static void give_trailers(struct grpc_call *call)
{
    struct h2_field fields[FIELDS_STATUS_MAX];
    struct field_text text;
    size_t count = fields_of_status(&call->status, &text, fields);

    call->local_end = true;
    if (h2_trailers(call->session->h2, call->stream, fields, count) != 0)
        call_reset(call);
}

/* The fields of an answer: with a body to come, or with the status and nothing else. */
static void give_answer(struct grpc_call *call, bool body)
{
    struct h2_field fields[3 + FIELDS_STATUS_MAX];
    struct field_text text;
    char http_status[12];
    size_t count = 0;

    snprintf(http_status, sizeof(http_status), "%u", call->http_status == 0 ? 200 : call->http_status);
    fields[count++] = (struct h2_field){":status", http_status, 3, false, false};
    fields[count++] = H2_CONSTANT("content-type", "application/grpc");
    fields[count++] = H2_CONSTANT("grpc-accept-encoding", "identity");
    if (!body)
        count += fields_of_status(&call->status, &text, fields + count);
    call->answering = true;
    call->local_end = !body;
    if (h2_respond(call->session->h2, call->stream, fields, count, body, call) != 0)
        call_reset(call);
}

/* A server's call that has not answered yet may have something to say. The bytes that it will send. */
static size_t begin_answer(struct grpc_call *call)
{
    bool open = h2_stream_window_open(call->session->h2, call->stream);

    if (open)
        pull(call);
    if (call->cancelled || call->answering)
        return 0;
    if (!open || call->sending)
        give_answer(call, true);
    else if (call->finished)
        give_answer(call, false);
    else if (call->resumed)
        call_set_ready(call);
    return call->sending ? call->outgoing.length + GRPC_MESSAGE_PREFIX_BYTES : 0;
}

void sending_finish(struct grpc_call *call)
{
    if (call->pulling || call->local_end)
        return; /* whoever pulls goes on with it */
    if (!call->answering) {
        give_answer(call, false);
    } else if (call->waiting) {
        call->waiting = false;
        h2_resume(call->session->h2, call->stream);
    }
}

/* Each call that is ready now, once; what becomes ready meanwhile has its turn in the next gather. */
static void run_ready(struct grpc_session *session, const struct h2_out *out)
{
    size_t promised = 0;

    for (uint32_t count = session->ready_count; count > 0 && session->ready_count > 0; count--) {
        struct grpc_call *call = TAILQ_FIRST(&session->ready);
        if (out->used + promised >= out->budget || !h2_connection_window_open(session->h2))
            break;
        call_clear_ready(call);
        if (session->server && !call->answering) {
            promised += begin_answer(call);
        } else if (call->waiting) {
            call->waiting = false;
            h2_resume(session->h2, call->stream);
        }
    }
}

/* No message is on its way: how it goes on. */
static enum h2_body next_body(struct grpc_call *call)
{
    enum grpc_pulled pulled = call->finished ? GRPC_PULLED_LAST : pull(call);
    enum h2_body what = H2_BODY_MORE;

    if (call->cancelled) {
        what = H2_BODY_WAIT;
    } else if (!call->sending && call->session->server && call->finished) {
        give_trailers(call);
        what = call->cancelled ? H2_BODY_WAIT : H2_BODY_TRAILERS;
    } else if (pulled == GRPC_PULLED_LAST) {
        call->local_end = true;
        what = H2_BODY_END;
    } else if (!call->sending) {
        what = H2_BODY_WAIT;
        call->waiting = true;
        if (call->resumed)
            call_set_ready(call);
    }
    return what;
}

size_t sending_body(void *owner, void *data, size_t room, enum h2_body *what)
{
    struct grpc_call *call = data;
    bool server = call->session->server;
    size_t left, length = 0;

    (void)owner;
    *what = H2_BODY_MORE;
    if (call->cancelled || call->ended || (!server && call->finished))
        *what = H2_BODY_WAIT;
    else if (!call->sending)
        *what = next_body(call);
    if (*what == H2_BODY_MORE) {
        left = GRPC_MESSAGE_PREFIX_BYTES + call->outgoing.length - call->sent;
        length = left < room ? left : room;
        if (server && call->finished && length == left) {
            give_trailers(call);
            *what = H2_BODY_TRAILERS;
        }
    }
    return length;
}

void sending_copy(void *owner, void *data, uint8_t *to, size_t length)
{
    struct grpc_call *call = data;
    size_t total = call->outgoing.length;
    uint8_t prefix[GRPC_MESSAGE_PREFIX_BYTES] = {0, (uint8_t)(total >> 24), (uint8_t)(total >> 16),
                                                 (uint8_t)(total >> 8), (uint8_t)total};

    (void)owner;
    for (; call->sent < sizeof(prefix) && length > 0; length--)
        *to++ = prefix[call->sent++];
    if (length > 0)
        memcpy(to, call->outgoing.data + (call->sent - sizeof(prefix)), length);
    call->sent += length;
    if (call->sent == total + sizeof(prefix))
        call->sending = false;
}

int grpc_session_gather(struct grpc_session *session, struct h2_out *out)
{
    run_ready(session, out);
    return h2_gather(session->h2, out);
}

bool grpc_session_wants_write(struct grpc_session *session)
{
    return (session->ready_count > 0 && h2_connection_window_open(session->h2)) || h2_wants_write(session->h2);
}
