/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what on the data port. There are no sessions yet: a call that names one is refused as if its
 * token were wrong, one that names none may read any image that never changes. Whoever reaches the port is
 * let in, which is why it listens on loopback by default.
 */
#ifndef PAGEFERRY_GATE_H
#define PAGEFERRY_GATE_H

#include "serve.h"

/* By the headers alone, before a byte of a message is kept. 0, or a reason and *why. */
uint32_t gate_call(struct service *service, const struct grpc_headers *headers, const char **why);
/* The image of this name, for this call. 0, or a reason and *why. */
uint32_t gate_image(struct service *service, struct grpc_bytes name, const struct image **image,
                    const char **why);

#endif
