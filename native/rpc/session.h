/* SPDX-License-Identifier: Apache-2.0 */
/* What conn.c needs of grpc.c, room-internal: a session takes bytes that came and gathers those that shall leave. */
#ifndef PAGEFERRY_SESSION_H
#define PAGEFERRY_SESSION_H

#include "grpc.h"
#include "h2.h"

/* 0 or -errno. */
int grpc_session_open(enum grpc_role role, const struct grpc_settings *settings, const struct grpc_owner *callbacks,
                      void *owner, struct grpc_session **session);
/* Ends every open call, then itself. Harmless with NULL. */
void grpc_session_close(struct grpc_session *session);
/* As h2_feed and h2_gather have it. */
int grpc_session_feed(struct grpc_session *session, const uint8_t *data, size_t length);
int grpc_session_gather(struct grpc_session *session, struct h2_out *out);
bool grpc_session_wants_write(struct grpc_session *session);
bool grpc_session_is_over(struct grpc_session *session);

#endif
