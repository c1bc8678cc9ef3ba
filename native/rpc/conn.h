/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection of the data plane: socket, later TLS, and the gRPC session on it. The only file that reads or writes
 * a socket of the wire. A read turn and a write turn are bounded, so that one connection cannot hold its thread.
 */
#ifndef PAGEFERRY_CONN_H
#define PAGEFERRY_CONN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "grpc.h"

struct conn;

struct conn_traffic {
    uint64_t in_bytes;
    uint64_t out_bytes;
    uint64_t turns; /* reads and writes made */
};

/*
 * Takes over a connected (or, for a client, connecting), non-blocking socket, TCP or unix. Sets TCP_NODELAY,
 * TCP_NOTSENT_LOWAT and TCP_USER_TIMEOUT where they apply. `owner` and `settings` are copied; the table of callbacks is
 * kept by pointer. 0 or -errno; the fd stays the caller's on failure.
 */
int conn_open(int fd, enum grpc_role role, const struct grpc_settings *settings, const struct grpc_owner *callbacks,
              void *owner, struct conn **conn);
/* Every open call ends (ended: UNAVAILABLE / CANCELLED) before it returns. Not from inside a callback. */
void conn_close(struct conn *conn);
int conn_fd(const struct conn *conn);
struct grpc_session *conn_session(struct conn *conn);

/*
 * One read turn: at most one read(2), whatever it brought goes through the callbacks. 1: it filled the buffer, there
 * may be more; 0: that was all; -EPIPE: the peer has closed; else -errno: the connection is of no more use.
 */
int conn_read(struct conn *conn);
/*
 * One write turn: pulls and writes at most `budget_bytes` (about), until the socket is full or nothing is left.
 * 1: more is waiting (watch for EPOLLOUT); 0: nothing is left; -errno: of no more use.
 */
int conn_write(struct conn *conn, size_t budget_bytes);
/* There is something to write, as far as is known without pulling. */
bool conn_wants_write(const struct conn *conn);
void conn_traffic(const struct conn *conn, struct conn_traffic *traffic);

#endif
