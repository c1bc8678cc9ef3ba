/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions, and the life of their calls: see grpc.h for the rules and call.h for the inside. */
#include "grpc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../gen/contract.h"
#include "call.h"
#include "session.h"

#define CLIENT_CALLS_MAX 1024
#define FIRST_CALLS (2 * PF_LIMIT_BULK_RANGES_IN_FLIGHT) /* at once: those that begin, and those that just end */
#define USER_AGENT "pageferry/" PF_VERSION
#define REQUEST_FIELDS 8
#define METADATA_FIELDS 4

struct grpc_call *call_new(struct grpc_session *session)
{
    struct grpc_call *call = TAILQ_FIRST(&session->spare);

    if (call != NULL) {
        TAILQ_REMOVE(&session->spare, call, all);
        memset(call, 0, sizeof(*call));
    } else {
        call = calloc(1, sizeof(*call));
    }
    if (call != NULL) {
        call->session = session;
        TAILQ_INSERT_TAIL(&session->all, call, all);
        session->call_count++;
    }
    return call;
}

void call_set_ready(struct grpc_call *call)
{
    if (!call->is_ready) {
        call->is_ready = true;
        TAILQ_INSERT_TAIL(&call->session->ready, call, ready);
        call->session->ready_count++;
    }
}

void call_clear_ready(struct grpc_call *call)
{
    if (call->is_ready) {
        call->is_ready = false;
        TAILQ_REMOVE(&call->session->ready, call, ready);
        call->session->ready_count--;
    }
}

void call_drop(struct grpc_call *call)
{
    struct grpc_session *session = call->session;

    call_clear_ready(call);
    TAILQ_REMOVE(&session->all, call, all);
    session->call_count--;
    incoming_close(&call->incoming);
    TAILQ_INSERT_HEAD(&session->spare, call, all);
}

void call_end(struct grpc_call *call)
{
    struct grpc_session *session = call->session;

    if (!call->ended) {
        call->ended = true;
        session->open_count--;
        call->finished = true;
        call->sending = false;
        call_clear_ready(call);
        session->callbacks->ended(session->owner, call, &call->status);
    }
}

void call_set_status(struct grpc_call *call, uint32_t code, uint32_t reason, const char *message)
{
    memset(&call->status, 0, sizeof(call->status));
    call->status.code = code;
    call->status.reason = reason;
    snprintf(call->status.message, sizeof(call->status.message), "%s", message);
    fields_complete_status(&call->status);
}

void call_reset(struct grpc_call *call)
{
    call->finished = true;
    call->cancelled = true;
    call_clear_ready(call);
    h2_reset(call->session->h2, call->stream, H2_CANCEL);
}

/* We end it: a server by this status, a client by a reset whose cause its owner hears. */
void call_fail(struct grpc_call *call, uint32_t code, uint32_t reason, const char *message)
{
    struct grpc_status status = {.code = code, .reason = reason};

    if (call->finished)
        return;
    if (call->session->server) {
        snprintf(status.message, sizeof(status.message), "%s", message);
        grpc_finish(call, &status);
    } else {
        call_set_status(call, code, reason, message);
        call_reset(call);
    }
}

/* ----------------------------------------------------------------------------------------------- what owners say */

/* Who calls, as far as it is said; returns how many fields it takes. */
static size_t add_metadata(struct h2_field *fields, const struct grpc_headers *who)
{
    const struct h2_field metadata[METADATA_FIELDS] = {
        {"authorization", (const char *)who->authorization.data, who->authorization.length, true, true},
        {"pageferry-session", (const char *)who->session.data, who->session.length, true, false},
        {"pageferry-target", (const char *)who->target.data, who->target.length, true, false},
        {"pageferry-epoch", (const char *)who->epoch.data, who->epoch.length, true, false},
    };
    size_t count = 0;

    for (size_t i = 0; i < METADATA_FIELDS; i++)
        if (metadata[i].value_length > 0)
            fields[count++] = metadata[i];
    return count;
}

struct grpc_call *grpc_start_as(struct grpc_session *session, const char *path, const struct grpc_headers *who,
                                void *user)
{
    struct h2_field fields[REQUEST_FIELDS + METADATA_FIELDS] = {
        H2_CONSTANT(":method", "POST"),
        H2_CONSTANT(":scheme", "http"),
        {":path", path, strlen(path), false, false},
        {":authority", session->authority, strlen(session->authority), true, false},
        H2_CONSTANT("te", "trailers"),
        H2_CONSTANT("content-type", "application/grpc"),
        H2_CONSTANT("user-agent", USER_AGENT),
        H2_CONSTANT("grpc-accept-encoding", "identity"),
    };
    size_t count = REQUEST_FIELDS + (who == NULL ? 0 : add_metadata(fields + REQUEST_FIELDS, who));
    struct grpc_call *call = NULL;

    if (session->server || session->closing || h2_going_away(session->h2) || session->call_count >= CLIENT_CALLS_MAX)
        return NULL;
    call = call_new(session);
    if (call == NULL)
        return NULL;
    call->user = user;
    call->stream = h2_request(session->h2, fields, count, call);
    if (call->stream < 0) {
        call_drop(call);
        return NULL;
    }
    session->open_count++;
    return call;
}

struct grpc_call *grpc_start(struct grpc_session *session, const char *path, void *user)
{
    return grpc_start_as(session, path, NULL, user);
}

void grpc_resume(struct grpc_call *call)
{
    call->resumed = true;
    if (call->finished)
        return;
    if (call->session->server && !call->answering) {
        if (!call->pulling)
            call_set_ready(call);
    } else if (call->waiting) {
        call->waiting = false;
        h2_resume(call->session->h2, call->stream);
    }
}

void grpc_finish(struct grpc_call *call, const struct grpc_status *status)
{
    if (call->finished || !call->session->server)
        return;
    call->status = *status;
    call->status.message[sizeof(call->status.message) - 1] = 0;
    fields_complete_status(&call->status);
    call->finished = true;
    call_clear_ready(call);
    sending_finish(call);
}

void grpc_cancel(struct grpc_call *call)
{
    if (call->cancelled || call->ended)
        return;
    if (!call->finished)
        call_set_status(call, GRPC_CANCELLED, 0, "the call was cancelled here");
    call_reset(call);
}

void *grpc_user(const struct grpc_call *call)
{
    return call->user;
}

void grpc_set_user(struct grpc_call *call, void *user)
{
    call->user = user;
}

uint32_t grpc_open_calls(const struct grpc_session *session)
{
    return session->open_count;
}

void grpc_go_away(struct grpc_session *session)
{
    if (session->server && !h2_going_away(session->h2))
        h2_go_away(session->h2);
}

bool grpc_going_away(const struct grpc_session *session)
{
    return h2_going_away(session->h2);
}

/* -------------------------------------------------------------------------------------------------- the session */

static const struct h2_events events = {
    .begun = receiving_begun,
    .fields_begin = receiving_fields_begin,
    .field = receiving_field,
    .fields_end = receiving_fields_end,
    .data = receiving_data,
    .remote_end = receiving_remote_end,
    .body = sending_body,
    .copy = sending_copy,
    .closed = receiving_closed,
};

/* So that a range of bulk that begins, and the answer to it, allocate no call. */
static int make_spare(struct grpc_session *session)
{
    for (int i = 0; i < FIRST_CALLS; i++) {
        struct grpc_call *call = calloc(1, sizeof(*call));
        if (call == NULL)
            return -ENOMEM;
        TAILQ_INSERT_HEAD(&session->spare, call, all);
    }
    return 0;
}

int grpc_session_open(enum grpc_role role, const struct grpc_settings *settings, const struct grpc_owner *callbacks,
                      void *owner, struct grpc_session **session)
{
    const struct h2_settings h2_settings = {
        .server = role == GRPC_SERVER,
        .stream_window_bytes = settings->stream_window_bytes,
        .connection_window_bytes = settings->connection_window_bytes,
        .streams_max = settings->streams_max,
        .header_bytes_max = (uint32_t)settings->header_bytes_max,
    };
    struct grpc_session *new = calloc(1, sizeof(*new));
    int rc = -ENOMEM;

    if (new == NULL)
        goto out;
    TAILQ_INIT(&new->all);
    TAILQ_INIT(&new->ready);
    TAILQ_INIT(&new->spare);
    new->server = role == GRPC_SERVER;
    new->callbacks = callbacks;
    new->owner = owner;
    new->message_bytes_max = settings->message_bytes_max;
    new->authority = strdup(settings->authority == NULL ? "localhost" : settings->authority);
    new->block.bytes_max = settings->header_bytes_max;
    new->block.memory = malloc(settings->header_bytes_max);
    if (new->authority != NULL && new->block.memory != NULL)
        rc = make_spare(new);
    if (rc == 0)
        rc = h2_open(&h2_settings, &events, new, &new->h2);
out:
    if (rc == 0)
        *session = new;
    else
        grpc_session_close(new);
    return rc;
}

static void end_lost(struct grpc_call *call)
{
    if (call->session->server)
        call_set_status(call, GRPC_CANCELLED, 0, "the connection was lost");
    else if (!call->finished)
        call_set_status(call, GRPC_UNAVAILABLE, 0, "the connection was lost");
    call->cancelled = true;
    call_end(call);
    call_drop(call);
}

void grpc_session_close(struct grpc_session *session)
{
    struct grpc_call *call;

    if (session == NULL)
        return;
    session->closing = true;
    while ((call = TAILQ_FIRST(&session->all)) != NULL)
        end_lost(call);
    while ((call = TAILQ_FIRST(&session->spare)) != NULL) {
        TAILQ_REMOVE(&session->spare, call, all);
        free(call);
    }
    h2_close(session->h2);
    free(session->authority);
    free(session->block.memory);
    free(session);
}

int grpc_session_feed(struct grpc_session *session, const uint8_t *data, size_t length)
{
    return h2_feed(session->h2, data, length);
}

bool grpc_session_is_over(struct grpc_session *session)
{
    return h2_is_over(session->h2);
}
