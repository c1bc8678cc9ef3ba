/* SPDX-License-Identifier: Apache-2.0 */
/* See opening.h. */
#include "opening.h"

#include "calls.h"
#include "rounds.h"

static const char *why_not(int rc)
{
    const char *why = "the kernel says what it should not of the VMM's memory";

    if (rc == -PF_REASON_BUSY)
        why = "another round of this image is being settled";
    else if (rc == -PF_REASON_WRONG_PHASE)
        why = "the map of this image is frozen: there are no more rounds";
    else if (rc == -PF_REASON_NO_VMM)
        why = "the VMM has ended";
    else if (rc == -PF_REASON_MISMATCH)
        why = "the VMM's memory is tracked no more: what it wrote is unknown";
    return why;
}

int opening_begin(struct call *call)
{
    struct worker *worker = call->connection->worker;
    const char *why = NULL;
    uint32_t reason;
    int rc;

    if (call->image->rounds == NULL)
        return call_refuse(call, PF_REASON_WRONG_PHASE, "an image that never changes has no rounds to open");
    reason = gate_look(worker->service, &call->pass, PAGEFERRY_RIGHT_ROUNDS, &why);
    if (reason != 0)
        return call_refuse(call, reason, why);
    rc = rounds_begin(call->image->rounds, &call->round);
    if (rc != 0)
        return call_refuse(call, (uint32_t)-rc, why_not(rc));
    TAILQ_INSERT_TAIL(&worker->openings, call, opening);
    return 0;
}

static void end(struct call *call)
{
    TAILQ_REMOVE(&call->connection->worker->openings, call, opening);
    call->round = 0;
}

static void settled(struct call *call)
{
    struct service *service = call->connection->worker->service;

    call->order.as_of = atomic_load(&call->image->as_of);
    gate_settled(service, &call->pass, call->order.as_of, rounds_settled_pages(call->image->rounds));
}

struct connection *opening_step(struct worker *worker)
{
    struct call *call = TAILQ_FIRST(&worker->openings);
    int rc;

    if (call != NULL && call->finished) { /* refused meanwhile: its rights, its deadline */
        opening_leave(call);
        call = NULL;
    }
    if (call == NULL)
        return NULL;
    rc = rounds_step(call->image->rounds, call->round);
    if (rc == 0) { /* the next step is another's */
        TAILQ_REMOVE(&worker->openings, call, opening);
        TAILQ_INSERT_TAIL(&worker->openings, call, opening);
        return NULL;
    }
    end(call);
    if (rc > 0)
        settled(call);
    else
        call_refuse(call, (uint32_t)-rc, why_not(rc));
    grpc_resume(call->grpc);
    return call->connection;
}

void opening_leave(struct call *call)
{
    if (call->round == 0)
        return;
    rounds_leave(call->image->rounds, call->round);
    end(call);
}
