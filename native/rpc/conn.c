/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only file that touches a socket of the wire. A read turn is one recv; a write turn gathers what has been said up
 * to its budget and hands it over in one send: fields, messages and trailers of many calls leave together.
 */
#include "conn.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../gen/contract.h"
#include "session.h"

/* What is gathered at once, and a frame that was begun just below that. */
#define OUT_BYTES (PF_LIMIT_WRITE_BUDGET_BYTES + PF_LIMIT_FRAME_BYTES_MAX + 4096)

struct conn {
    int fd;
    int error; /* -errno once the session is broken: there is only its last word to write */
    struct grpc_session *session;
    struct conn_traffic traffic;
    size_t sent; /* of out.used */
    struct h2_out out;
    uint8_t *in;
};

static int set_option(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof(value)) < 0 ? -errno : 0;
}

/* Whatever is no TCP has none of these. */
static int tune(int fd)
{
    int protocol = 0, rc = 0;
    socklen_t length = sizeof(protocol);

    if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) < 0)
        return -errno;
    if (protocol == IPPROTO_TCP) {
        rc = set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (rc == 0)
            rc = set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, PF_LIMIT_NOTSENT_LOWAT_BYTES);
        if (rc == 0)
            rc = set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, PF_LIMIT_TCP_USER_TIMEOUT_MS);
    }
    return rc;
}

int conn_open(int fd, enum grpc_role role, const struct grpc_settings *settings, const struct grpc_owner *callbacks,
              void *owner, struct conn **conn)
{
    struct conn *new = calloc(1, sizeof(*new));
    int rc = -ENOMEM;

    if (new == NULL)
        goto out;
    new->fd = -1;
    new->in = malloc(PF_LIMIT_READ_BYTES_MAX);
    new->out.data = malloc(OUT_BYTES);
    new->out.capacity = OUT_BYTES;
    if (new->in == NULL || new->out.data == NULL)
        goto out;
    rc = tune(fd);
    if (rc == 0)
        rc = grpc_session_open(role, settings, callbacks, owner, &new->session);
out:
    if (rc == 0) {
        new->fd = fd;
        *conn = new;
    } else {
        conn_close(new);
    }
    return rc;
}

void conn_close(struct conn *conn)
{
    if (conn == NULL)
        return;
    grpc_session_close(conn->session);
    if (conn->fd >= 0)
        close(conn->fd);
    free(conn->in);
    free(conn->out.data);
    free(conn);
}

int conn_fd(const struct conn *conn)
{
    return conn->fd;
}

struct grpc_session *conn_session(struct conn *conn)
{
    return conn->session;
}

void conn_traffic(const struct conn *conn, struct conn_traffic *traffic)
{
    *traffic = conn->traffic;
}

/* Sends what has been gathered. 1: the socket is full; 0: all has left. */
static int send_out(struct conn *conn)
{
    ssize_t length = send(conn->fd, conn->out.data + conn->sent, conn->out.used - conn->sent, MSG_NOSIGNAL);

    conn->traffic.turns++;
    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 1 : -errno;
    conn->traffic.out_bytes += (uint64_t)length;
    conn->sent += (size_t)length;
    if (conn->sent < conn->out.used)
        return 1;
    conn->sent = 0;
    conn->out.used = 0;
    return 0;
}

/* A session that has broken may say why (GOAWAY), once, if the socket takes it. */
static int fail(struct conn *conn, int error)
{
    if (conn->error == 0) {
        conn->error = error;
        conn->out.budget = 0;
        if (grpc_session_gather(conn->session, &conn->out) >= 0 && conn->out.used > conn->sent)
            send_out(conn);
    }
    return conn->error;
}

int conn_read(struct conn *conn)
{
    ssize_t length;
    int rc;

    if (conn->error != 0)
        return conn->error;
    length = recv(conn->fd, conn->in, PF_LIMIT_READ_BYTES_MAX, 0);
    conn->traffic.turns++;
    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    if (length == 0)
        return -EPIPE;
    conn->traffic.in_bytes += (uint64_t)length;
    rc = grpc_session_feed(conn->session, conn->in, (size_t)length);
    if (rc < 0)
        return fail(conn, rc);
    return length == PF_LIMIT_READ_BYTES_MAX;
}

/* Whatever lies in front of what is gathered has left: the room is needed. */
static void move_up(struct conn *conn)
{
    if (conn->sent > 0) {
        memmove(conn->out.data, conn->out.data + conn->sent, conn->out.used - conn->sent);
        conn->out.used -= conn->sent;
        conn->sent = 0;
    }
}

int conn_write(struct conn *conn, size_t budget_bytes)
{
    size_t left = budget_bytes;
    int rc = conn->error, more = 1;

    while (rc == 0 && more > 0 && left > 0) {
        uint64_t before = conn->traffic.out_bytes;
        move_up(conn);
        conn->out.budget = left < PF_LIMIT_WRITE_BUDGET_BYTES ? left : PF_LIMIT_WRITE_BUDGET_BYTES;
        more = grpc_session_gather(conn->session, &conn->out);
        if (more < 0)
            return fail(conn, more);
        if (conn->out.used > 0)
            rc = send_out(conn);
        left -= conn->traffic.out_bytes - before < left ? conn->traffic.out_bytes - before : left;
    }
    if (rc == 0 && more == 0 && grpc_session_is_over(conn->session))
        rc = -ESHUTDOWN;
    if (rc == 0 && conn_wants_write(conn))
        rc = 1;
    return rc;
}

bool conn_wants_write(const struct conn *conn)
{
    return conn->out.used > 0 || grpc_session_wants_write(conn->session);
}
