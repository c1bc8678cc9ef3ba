/* SPDX-License-Identifier: Apache-2.0 */
/* What the end of a call of ours means: whether it is any use to ask again. */
#ifndef PAGEFERRY_REASONS_H
#define PAGEFERRY_REASONS_H

#include "../gen/contract.h"
#include "../rpc/grpc.h"

/* A server that is busy, or going, or unheard of comes back; what has no reason came from a library or a proxy, and
 * says that it never will only where nobody knows the method. */
static inline bool reason_is_final(const struct grpc_status *status)
{
    uint32_t reason = status->reason;

    if (reason == 0)
        return status->code == GRPC_UNIMPLEMENTED;
    return reason != PF_REASON_GOING_AWAY && reason != PF_REASON_BUSY && reason != PF_REASON_TOO_SLOW &&
           reason != PF_REASON_NO_MEMORY && reason != PF_REASON_CANCELLED;
}

/* Of one that is final. */
static inline uint32_t reason_of_refusal(const struct grpc_status *status)
{
    return status->reason != 0 ? status->reason : PF_REASON_UNSUPPORTED;
}

#endif
