/* SPDX-License-Identifier: Apache-2.0 */
/* See calls.h. */
#include "calls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "opening.h"

#define FIRST_CALLS 16 /* a connection's ranges, those that end just then, and its urgent calls */
#define FREE_CALLS_MAX 256
#define FREE_BATCHES_MAX 16
/* From an error to the reset of a call whose peer does not even read that. */
#define GRACE_NS (1000 * MS_NS)

/* ------------------------------------------------------------------------------------------------- memory */

static struct call *take_call(struct worker *worker)
{
    struct call *call = LIST_FIRST(&worker->free_calls);

    if (call == NULL) {
        call = malloc(sizeof(*call));
    } else {
        LIST_REMOVE(call, all);
        worker->free_call_count--;
    }
    if (call != NULL)
        memset(call, 0, offsetof(struct call, own));
    return call;
}

static void give_call(struct worker *worker, struct call *call)
{
    if (worker->free_call_count == FREE_CALLS_MAX) {
        free(call);
    } else {
        LIST_INSERT_HEAD(&worker->free_calls, call, all);
        worker->free_call_count++;
    }
}

size_t call_batch_bytes(void)
{
    return reply_bytes_max(CALL_BATCH_PAGES, CALL_BATCH_RUNS);
}

uint8_t *call_batch(struct call *call)
{
    struct worker *worker = call->connection->worker;

    if (call->batch == NULL && worker->free_batches != NULL) {
        call->batch = worker->free_batches;
        memcpy(&worker->free_batches, call->batch, sizeof(worker->free_batches));
        worker->free_batch_count--;
    } else if (call->batch == NULL) {
        call->batch = malloc(call_batch_bytes());
    }
    return call->batch;
}

static void give_batch(struct worker *worker, void *batch)
{
    if (worker->free_batch_count == FREE_BATCHES_MAX) {
        free(batch);
    } else {
        memcpy(batch, &worker->free_batches, sizeof(worker->free_batches));
        worker->free_batches = batch;
        worker->free_batch_count++;
    }
}

void call_release(struct call *call)
{
    if (call->batch != NULL)
        give_batch(call->connection->worker, call->batch);
    call->batch = NULL;
}

int calls_open(struct worker *worker)
{
    int rc = 0;

    for (int i = 0; rc == 0 && i < FIRST_CALLS; i++) {
        struct call *call = malloc(sizeof(*call));
        void *batch = malloc(call_batch_bytes());
        if (call != NULL)
            give_call(worker, call);
        if (batch != NULL)
            give_batch(worker, batch);
        rc = call == NULL || batch == NULL ? -ENOMEM : 0;
    }
    return rc;
}

void calls_close(struct worker *worker)
{
    struct call *call;

    while ((call = LIST_FIRST(&worker->free_calls)) != NULL) {
        LIST_REMOVE(call, all);
        free(call);
    }
    while (worker->free_batches != NULL) {
        void *batch = worker->free_batches;
        memcpy(&worker->free_batches, batch, sizeof(worker->free_batches));
        free(batch);
    }
    worker->free_call_count = worker->free_batch_count = 0;
}

/* ------------------------------------------------------------------------------------------------ endings */

static void finish(struct grpc_call *grpc, uint32_t reason, const char *why)
{
    struct grpc_status status = {
        .reason = reason,
        .retry_after_ms = reason == PF_REASON_BUSY ? PF_LIMIT_BUSY_RETRY_MS : 0,
    };

    snprintf(status.message, sizeof(status.message), "%s", why);
    grpc_finish(grpc, &status);
}

int call_refuse(struct call *call, uint32_t reason, const char *why)
{
    if (!call->finished) {
        call->finished = true;
        finish(call->grpc, reason, why);
    }
    return -(int)reason;
}

enum grpc_pulled call_done(struct call *call)
{
    if (!call->finished) {
        call->finished = true;
        finish(call->grpc, 0, "");
    }
    return GRPC_PULLED_LAST;
}

/* ------------------------------------------------------------------------------------------ the callbacks */

const struct method *method_of(const struct method *methods, size_t count, struct grpc_bytes path)
{
    const struct method *found = NULL;

    for (size_t i = 0; i < count && found == NULL; i++)
        if (grpc_is_text(path, methods[i].path))
            found = &methods[i];
    return found;
}

static void begin(struct connection *connection, struct call *call, const struct method *method,
                  const struct grpc_headers *headers)
{
    struct worker *worker = connection->worker;

    uint64_t now_ns = serve_now_ns();

    call->connection = connection;
    call->method = method;
    asks_open(&call->asks);
    call->deadline_ns = call->silent_due_ns = NEVER_NS;
    if (headers->timeout_ns != 0) {
        call->deadline_ns = headers->timeout_ns < NEVER_NS - now_ns ? now_ns + headers->timeout_ns : NEVER_NS;
        serve_due(worker, call->deadline_ns);
    }
    if (call->pass.urgent != 0) {
        call->silent_due_ns = now_ns + PF_LIMIT_HEARTBEAT_TIMEOUT_MS * MS_NS;
        serve_due(worker, call->silent_due_ns);
    }
    LIST_INSERT_HEAD(&connection->calls, call, all);
    stats_add(&worker->stats, STATS_calls_open, 1);
    if (method->wish != GATE_NOTHING) {
        connection->served_pages = true;
        connection->page_calls++;
        connection->owing++; /* at once; that it owes no more is known when the turn is over: listener.c */
        atomic_fetch_add(&worker->owing, 1);
    }
}

/* A call for this method, let in; or NULL, *reason and *why. */
static struct call *admit(struct connection *connection, const struct method *method,
                          const struct grpc_headers *headers, uint32_t *reason, const char **why)
{
    struct worker *worker = connection->worker;
    struct call *call = take_call(worker);

    if (call == NULL) {
        *reason = PF_REASON_NO_MEMORY;
        *why = "the server has no memory for another call";
        return NULL;
    }
    if (method->wish != GATE_NOTHING)
        *reason = gate_call(worker, headers, method->wish, connection->watched.fd, &call->pass, why);
    if (*reason != 0) {
        give_call(worker, call);
        call = NULL;
    }
    return call;
}

static int on_opened(void *owner, struct grpc_call *grpc, const struct grpc_headers *headers)
{
    struct connection *connection = owner;
    const struct method *method = methods_find(headers->path);
    const char *why = "this port knows no such method";
    uint32_t reason = 0;
    struct call *call = NULL;

    connection->first_due_ns = NEVER_NS;
    stats_add(&connection->worker->stats, STATS_calls_total, 1);
    if (method == NULL)
        method = standard_find(headers->path);
    if (method == NULL)
        reason = PF_REASON_UNSUPPORTED;
    else
        call = admit(connection, method, headers, &reason, &why);
    grpc_set_user(grpc, call);
    if (call == NULL) {
        finish(grpc, reason, why);
        return -1;
    }
    call->grpc = grpc;
    begin(connection, call, method, headers);
    return 0;
}

/* Errors were told by call_refuse already; what comes after one is passed over. */
static int on_message(void *owner, struct grpc_call *grpc, struct grpc_bytes message)
{
    struct call *call = grpc_user(grpc);

    (void)owner;
    if (call->finished)
        return 0;
    if (call->asked && !call->method->requests) {
        call_refuse(call, PF_REASON_BAD_REQUEST, "a second request on a call that takes one");
        return 0;
    }
    call->asked = true;
    if (call->silent_due_ns != NEVER_NS)
        call->silent_due_ns = serve_now_ns() + PF_LIMIT_HEARTBEAT_TIMEOUT_MS * MS_NS;
    call->method->message(call, message);
    return 0;
}

static void on_half_closed(void *owner, struct grpc_call *grpc)
{
    struct call *call = grpc_user(grpc);

    (void)owner;
    call->half_closed = true;
    call->silent_due_ns = NEVER_NS; /* it has said that it says no more */
    if (!call->asked && !call->method->requests)
        call_refuse(call, PF_REASON_BAD_REQUEST, "the request is missing");
    grpc_resume(grpc);
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct call *call = grpc_user(grpc);

    (void)owner;
    if (call->finished)
        return GRPC_PULLED_LAST;
    if (!call->method->requests && !call->half_closed)
        return GRPC_PULLED_NOTHING;
    return call->method->pull(call, message);
}

static void on_ended(void *owner, struct grpc_call *grpc, const struct grpc_status *status)
{
    struct connection *connection = owner;
    struct worker *worker = connection->worker;
    struct call *call = grpc_user(grpc);

    if (status->code != GRPC_OK)
        stats_add(&worker->stats, STATS_calls_failed_total, 1);
    if (call == NULL) /* it was refused when it was opened */
        return;
    LIST_REMOVE(call, all);
    stats_set(&worker->stats, STATS_calls_open, stats_get(&worker->stats, STATS_calls_open) - 1);
    if (call->method->wish != GATE_NOTHING) {
        connection->page_calls--;
        opening_leave(call);
        gate_leave(worker->service, &call->pass);
    } else {
        standard_ended(call);
    }
    if (call->image != NULL)
        images_release(call->image);
    asks_close(&call->asks);
    call_release(call);
    give_call(worker, call);
}

const struct grpc_owner calls_owner = {
    .opened = on_opened,
    .message = on_message,
    .half_closed = on_half_closed,
    .pull = on_pull,
    .ended = on_ended,
};

/* ------------------------------------------------------------------------------ what comes from elsewhere */

static bool owes(const struct call *call)
{
    if (!call->method->requests)
        return call->asked && call->half_closed;
    return call->asks.count > 0 || call->heartbeat_count > 0 || (call->asked && !call->begun);
}

/* Has the call lost what it was let in with? 0, or a reason and *why. */
static uint32_t lost(struct call *call, const char **why)
{
    struct service *service = call->connection->worker->service;
    uint32_t rounds = call->round != 0 ? PAGEFERRY_RIGHT_ROUNDS : 0;
    uint32_t reason = gate_look(service, &call->pass, PAGEFERRY_RIGHT_PAGES | rounds, why);

    if (reason == 0 && call->image != NULL && image_is_removed(call->image)) {
        reason = PF_REASON_NO_SUCH_IMAGE;
        *why = "the image is not served any more";
    }
    return reason;
}

/* Whatever it owes. One whose peer does not read the error either is reset. */
static void cut_off(struct call *call, uint32_t reason, const char *why)
{
    uint64_t grace_ns = serve_now_ns() + GRACE_NS;

    call_refuse(call, reason, why);
    if (call->deadline_ns > grace_ns)
        call->deadline_ns = grace_ns;
    serve_due(call->connection->worker, call->deadline_ns);
}

static void look_up(struct call *call, bool draining)
{
    const char *why = "";
    uint32_t reason = lost(call, &why);

    if (reason != 0)
        cut_off(call, reason, why);
    else if (draining && !owes(call)) /* the others end when they have answered */
        call_refuse(call, PF_REASON_GOING_AWAY, "the server drains");
    else
        methods_look_up(call);
}

void calls_look_up(struct connection *connection)
{
    bool draining = atomic_load(&connection->worker->service->draining) != 0;

    for (struct call *call = LIST_FIRST(&connection->calls), *next; call != NULL; call = next) {
        next = LIST_NEXT(call, all);
        if (call->method->wish == GATE_NOTHING)
            standard_health_changed(call);
        else if (!call->finished)
            look_up(call, draining);
    }
}

uint64_t calls_expire(struct connection *connection, uint64_t now_ns)
{
    uint64_t due_ns = NEVER_NS;

    for (struct call *call = LIST_FIRST(&connection->calls), *next; call != NULL; call = next) {
        next = LIST_NEXT(call, all);
        if (call->deadline_ns <= now_ns && call->finished) {
            grpc_cancel(call->grpc); /* may free it */
        } else {
            if (call->deadline_ns <= now_ns) {
                call_refuse(call, PF_REASON_TOO_SLOW, "the call's deadline has passed");
                call->deadline_ns = now_ns + GRACE_NS;
            }
            if (call->silent_due_ns <= now_ns && !call->finished)
                cut_off(call, PF_REASON_TOO_SLOW, "no heartbeat has come on this call for 10 s");
            due_ns = call->deadline_ns < due_ns ? call->deadline_ns : due_ns;
            if (!call->finished && call->silent_due_ns < due_ns)
                due_ns = call->silent_due_ns;
        }
    }
    return due_ns;
}
