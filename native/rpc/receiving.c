/* SPDX-License-Identifier: Apache-2.0 */
/* What calls receive: requests, answers, messages, ends. Everything here is called by h2.c. */
#include <string.h>

#include "../gen/contract.h"
#include "call.h"

void *receiving_begun(void *owner, int32_t stream)
{
    struct grpc_call *call = call_new(owner);

    if (call != NULL) {
        call->stream = stream;
        call->ended = true; /* its owner has not heard of it yet */
    }
    return call;
}

void receiving_fields_begin(void *owner, void *call)
{
    (void)call;
    field_block_begin(&((struct grpc_session *)owner)->block);
}

int receiving_field(void *owner, void *call, const char *name, size_t name_length, const char *value,
                    size_t value_length)
{
    (void)call;
    return field_block_add(&((struct grpc_session *)owner)->block, name, name_length, value, value_length);
}

/* What is no gRPC request gets an HTTP status that says so, too. */
static void take_request(struct grpc_session *session, struct grpc_call *call)
{
    const struct field_block *block = &session->block;

    call->requested = true;
    if (block->too_long) {
        call_fail(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BAD_REQUEST, "the header fields are too long");
        return;
    }
    if (!block->is_post)
        call->http_status = 405;
    else if (!block->is_grpc)
        call->http_status = 415;
    if (call->http_status != 0) {
        call_fail(call, GRPC_INTERNAL, PF_REASON_BAD_REQUEST, "this is no gRPC request");
    } else {
        call->ended = false;
        session->open_count++;
        if (session->callbacks->opened(session->owner, call, &block->request) != 0)
            call_fail(call, 0, PF_REASON_BUG, ""); /* unless it was finished, as it should be */
        if (!call->finished)
            call_set_ready(call);
    }
}

static void take_answer(struct grpc_session *session, struct grpc_call *call, bool end_stream)
{
    const struct field_block *block = &session->block;

    if (call->finished || (block->http_status / 100 == 1 && !end_stream))
        return;
    if (block->too_long) {
        call_fail(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY, "the header fields of the answer are too long");
        return;
    }
    if (block->http_status != 0) {
        call->http_status = block->http_status;
        call->is_grpc = block->http_status == 200 && block->is_grpc;
    }
    if (end_stream && block->has_status) {
        call->status = block->status;
        call->finished = true;
        if (call->status.code == GRPC_OK && incoming_is_partial(&call->incoming))
            call_set_status(call, GRPC_INTERNAL, PF_REASON_BUG, "the answer has ended within a message");
    }
}

void receiving_fields_end(void *owner, void *data, bool end_stream)
{
    struct grpc_session *session = owner;
    struct grpc_call *call = data;

    if (!session->server)
        take_answer(session, call, end_stream);
    else if (!call->requested)
        take_request(session, call);
}

static uint8_t *memory_for(struct grpc_session *session, struct grpc_call *call)
{
    if (session->callbacks->gather != NULL)
        return session->callbacks->gather(session->owner, call, call->incoming.length);
    return incoming_own(&call->incoming);
}

void receiving_data(void *owner, void *data, const uint8_t *bytes, size_t length)
{
    struct grpc_session *session = owner;
    struct grpc_call *call = data;
    struct grpc_bytes input = {bytes, length}, message;
    enum incoming_step step = INCOMING_MESSAGE;
    uint8_t *memory;
    int rc;

    while (step != INCOMING_MORE && !call->finished && (session->server || call->is_grpc)) {
        step = incoming_next(&call->incoming, &input, session->message_bytes_max, &message);
        if (step == INCOMING_MESSAGE) {
            rc = session->callbacks->message(session->owner, call, message);
            if (rc != 0)
                call_fail(call, 0, (uint32_t)-rc, "");
        } else if (step == INCOMING_GATHER) {
            memory = memory_for(session, call);
            if (memory == NULL)
                call_fail(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY, "there is no room for this message");
            incoming_gather(&call->incoming, memory);
        } else if (step == INCOMING_TOO_LONG) {
            call_fail(call, GRPC_RESOURCE_EXHAUSTED, PF_REASON_BUSY, "this message is too long");
        } else if (step == INCOMING_COMPRESSED) {
            call_fail(call, GRPC_UNIMPLEMENTED, PF_REASON_UNSUPPORTED, "messages must not be compressed");
        }
    }
}

void receiving_remote_end(void *owner, void *data)
{
    struct grpc_session *session = owner;
    struct grpc_call *call = data;

    if (session->server) {
        if (!call->finished && incoming_is_partial(&call->incoming))
            call_fail(call, GRPC_INVALID_ARGUMENT, PF_REASON_BAD_REQUEST, "the request ended within a message");
        if (!call->finished && session->callbacks->half_closed != NULL)
            session->callbacks->half_closed(session->owner, call);
        return;
    }
    if (!call->finished && call->is_grpc)
        call_set_status(call, GRPC_INTERNAL, 0, "the answer has ended without a status");
    else if (!call->finished)
        call_set_status(call, fields_code_of_http(call->http_status), 0, "the answer is not gRPC");
    if (!call->local_end && !call->cancelled) /* what we would still send is not wanted */
        h2_reset(session->h2, call->stream, H2_NO_ERROR);
    call_end(call);
}

void receiving_closed(void *owner, void *data, uint32_t error)
{
    struct grpc_session *session = owner;
    struct grpc_call *call = data;

    if (session->server && !(call->finished && call->local_end && error == H2_NO_ERROR))
        call_set_status(call, GRPC_CANCELLED, 0, "the client has ended the call");
    else if (!session->server && !call->finished)
        call_set_status(call, fields_code_of_reset(error), 0, "the server has reset the call");
    call_end(call);
    call_drop(call);
}
