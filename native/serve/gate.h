/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what on the data port: the METADATA rules of pages.proto. Decided from a session's bits; what the bits are
 * for, and which phase has which, is known above alone.
 *
 * A call is looked at when its headers are there (gate_call), when it names its image (gate_image), and whenever
 * something has changed (gate_look). Without a session any image that never changes may be read by whoever reaches the
 * port, which is why it listens on loopback by default; a live one can be described, and no more.
 *
 * In this order, so that who has not the token learns nothing:
 *   NOT_ALLOWED        no such session, or not with this token: one sentence for all
 *   BAD_REQUEST        target or epoch are missing or malformed
 *   ALREADY_ATTACHED   the session has another target, for ever
 *   SUPERSEDED         this target has a newer worker
 *   WRONG_PHASE        the session has not the right, or nobody has attached yet
 */
#ifndef PAGEFERRY_GATE_H
#define PAGEFERRY_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "../rpc/grpc.h"
#include "image.h"
#include "sessions.h"

struct service;
struct worker;

/* What a method wants of its session. */
enum gate_wish {
    GATE_NOTHING = 0, /* it is none of PageService */
    GATE_LOOK,        /* to describe: needs none */
    GATE_PAGES,       /* to read what an attached target may read */
    GATE_ATTACH       /* to attach */
};

/* What a call has been let in with; zero: without a session. */
struct gate_pass {
    struct session *session;
    uint64_t serial; /* that this is still the same session */
    uint64_t target;
    uint64_t epoch;
    uint64_t urgent; /* its number among the FetchPages calls of the session; 0: it is none */
    enum gate_wish wish;
};

/* By the headers alone, before a byte of a message is kept. `fd`: the peer's socket. 0, or a reason and *why. */
uint32_t gate_call(struct worker *worker, const struct grpc_headers *headers, enum gate_wish wish, int fd,
                   struct gate_pass *pass, const char **why);
/* The image of this name, for this call, until images_release. 0, or a reason and *why. */
uint32_t gate_image(struct service *service, const struct gate_pass *pass, struct grpc_bytes name,
                    struct image **image, const char **why);
/* Is the call still allowed? `rights`: bits that it needs now. 0, or a reason and *why. */
uint32_t gate_look(struct service *service, const struct gate_pass *pass, uint32_t rights, const char **why);
/* What the target is to be told now. False: the call has no session, or it is gone. */
bool gate_state(struct service *service, const struct gate_pass *pass, struct session_state *state);
/* A round that this call has opened is settled. */
void gate_settled(struct service *service, const struct gate_pass *pass, uint64_t as_of, uint64_t page_count);
/* The call has ended. */
void gate_leave(struct service *service, struct gate_pass *pass);

#endif
