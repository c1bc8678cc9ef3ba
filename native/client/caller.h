/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who we say we are on every call for a VM: the metadata of pages.proto. Without a session nothing is said.
 */
#ifndef PAGEFERRY_CALLER_H
#define PAGEFERRY_CALLER_H

#include "../gen/contract.h"
#include "../pageferry.h"
#include "../rpc/grpc.h"

#define CALLER_TOKEN_CHARS ((PF_LIMIT_TOKEN_BYTES * 4 + 2) / 3) /* base64url, no padding */

struct caller {
    const struct grpc_headers *who; /* NULL: nobody in particular */
    struct grpc_headers headers;    /* point to the texts below: not to be copied */
    char authorization[sizeof("Bearer ") + CALLER_TOKEN_CHARS];
    char session[PF_LIMIT_SESSION_NAME_BYTES_MAX + 1];
    char target[17];
    char epoch[21];
};

/* Zeroed before. 0, or -PF_REASON_BAD_REQUEST with a sentence in options->error, which never holds the token. */
int caller_set(struct caller *caller, struct pageferry_vm_options *options);
/* Nothing of the token stays in memory. */
void caller_forget(struct caller *caller);

#endif
