/* SPDX-License-Identifier: Apache-2.0 */
/* The link of link.h. Dials never block; delays double from 50 ms to 2 s with full jitter (RELIABILITY L4). */
#include "link.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "../gen/contract.h"

#define MS_NS UINT64_C(1000000)
#define WHY_BYTES 128
#define WIRE_LOOK_NS (MS_NS / 5)

/* False: epoll does not take it, so nobody would hear of this socket. */
static bool watch(struct link *link, int fd, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.u64 = link->epoll_tag};

    if (link->watched && interest == link->interest)
        return true;
    if (epoll_ctl(link->epoll_fd, link->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event) < 0)
        return false;
    link->watched = true;
    link->interest = interest;
    return true;
}

static uint64_t jitter(struct link *link, uint64_t limit_ns)
{
    link->random ^= link->random << 13; /* xorshift64 */
    link->random ^= link->random >> 7;
    link->random ^= link->random << 17;
    return limit_ns / 2 + link->random % (limit_ns / 2 + 1);
}

static void dial_later(struct link *link, uint64_t now_ns)
{
    link->dial_due_ns = now_ns + (link->delay_ns == 0 ? 0 : jitter(link, link->delay_ns));
    link->delay_ns = link->delay_ns == 0 ? PF_LIMIT_REDIAL_MIN_MS * MS_NS : link->delay_ns * 2;
    if (link->delay_ns > PF_LIMIT_REDIAL_MAX_MS * MS_NS)
        link->delay_ns = PF_LIMIT_REDIAL_MAX_MS * MS_NS;
}

static void count_traffic(struct link *link)
{
    struct conn_traffic now;

    conn_traffic(link->conn, &now);
    stats_add(link->stats, STATS_wire_in_bytes_total, now.in_bytes - link->counted.in_bytes);
    stats_add(link->stats, STATS_wire_out_bytes_total, now.out_bytes - link->counted.out_bytes);
    link->counted = now;
}

static void lost(struct link *link, const char *why, uint64_t now_ns)
{
    if (link->conn != NULL) {
        count_traffic(link);
        stats_add(link->stats, STATS_links_lost_total, 1);
        wire_over(&link->wire, conn_fd(link->conn), link->counted.in_bytes);
        conn_close(link->conn);
        link->conn = NULL;
    }
    if (link->dial_fd >= 0) {
        close(link->dial_fd);
        link->dial_fd = -1;
    }
    link->watched = false; /* closing took the socket out of epoll */
    link->interest = 0;
    link->held = false;
    dial_later(link, now_ns);
    link->events->down(link->owner, why);
}

static void lost_by(struct link *link, const char *what, int error, uint64_t now_ns)
{
    char why[WHY_BYTES];

    snprintf(why, sizeof(why), "%s: %s", what, strerror(error));
    lost(link, why, now_ns);
}

static void connected(struct link *link, uint64_t now_ns)
{
    int rc = conn_open(link->dial_fd, GRPC_CLIENT, &link->settings, link->calls, link->owner, &link->conn);

    if (rc < 0) {
        lost_by(link, "connection", -rc, now_ns);
    } else {
        memset(&link->counted, 0, sizeof(link->counted));
        link->dial_fd = -1;
        link->heard_ns = now_ns;
        link->events->up(link->owner);
        if (watch(link, conn_fd(link->conn), EPOLLIN))
            link_flush(link, now_ns);
        else
            lost_by(link, "epoll", errno, now_ns);
    }
}

static void dial(struct link *link, uint64_t now_ns)
{
    const struct address_entry *entry = &link->address->entries[link->next_entry++ % link->address->count];
    int fd = socket(entry->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = fd < 0 ? errno : 0;

    stats_add(link->stats, STATS_dials_total, 1);
    link->dial_fd = fd;
    link->dial_limit_ns = now_ns + PF_LIMIT_DIAL_TIMEOUT_MS * MS_NS;
    if (fd >= 0 && connect(fd, (const struct sockaddr *)&entry->storage, entry->length) < 0)
        error = errno;
    if (error == 0)
        connected(link, now_ns);
    else if (error == EINPROGRESS && !watch(link, fd, EPOLLOUT))
        lost_by(link, "epoll", errno, now_ns);
    else if (error != EINPROGRESS)
        lost_by(link, "dial", error, now_ns);
}

static void dial_ready(struct link *link, uint64_t now_ns)
{
    int error = 0;
    socklen_t length = sizeof(error);

    if (getsockopt(link->dial_fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        error = errno;
    if (error == 0)
        connected(link, now_ns);
    else
        lost_by(link, "dial", error, now_ns);
}

void link_start(struct link *link, const struct link_options *options)
{
    memset(link, 0, sizeof(*link));
    link->address = options->address;
    link->calls = options->calls;
    link->events = options->events;
    link->owner = options->owner;
    link->stats = options->stats;
    link->epoll_fd = options->epoll_fd;
    link->epoll_tag = options->epoll_tag;
    link->dial_fd = -1;
    link->random = (uint64_t)(uintptr_t)link * UINT64_C(0x9e3779b97f4a7c15) | 1;
    link->settings = (struct grpc_settings){
        .message_bytes_max = PF_LIMIT_BATCH_MESSAGE_BYTES_MAX,
        .stream_window_bytes = options->stream_window_bytes,
        .connection_window_bytes = options->connection_window_bytes,
        .streams_max = PF_LIMIT_STREAMS_MAX,
        .header_bytes_max = PF_LIMIT_METADATA_BYTES_MAX,
        .authority = options->address->authority,
    };
}

static void read_turn(struct link *link, uint64_t now_ns)
{
    uint64_t before_bytes = link->counted.in_bytes;
    int rc = conn_read(link->conn);

    count_traffic(link);
    if (link->counted.in_bytes != before_bytes)
        link->heard_ns = now_ns;
    if (rc < 0)
        lost_by(link, "read", rc == -EPIPE ? ECONNRESET : -rc, now_ns);
}

void link_ready(struct link *link, uint32_t events, uint64_t now_ns)
{
    if (link->conn == NULL) {
        if (link->dial_fd >= 0)
            dial_ready(link, now_ns);
    } else if (!link->held && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) != 0) {
        read_turn(link, now_ns);
    } else if ((events & (EPOLLERR | EPOLLHUP)) != 0) { /* epoll would say so again and again */
        lost(link, "lost while what it brought had to wait", now_ns);
    }
}

void link_flush(struct link *link, uint64_t now_ns)
{
    uint32_t in = link->held ? 0 : EPOLLIN;
    int rc;

    if (link->conn == NULL || (!conn_wants_write(link->conn) && (link->interest & EPOLLOUT) == 0))
        return;
    rc = conn_write(link->conn, PF_LIMIT_WRITE_BUDGET_BYTES);
    if (rc < 0)
        lost_by(link, "write", -rc, now_ns);
    else if (!watch(link, conn_fd(link->conn), rc > 0 ? in | EPOLLOUT : in))
        lost_by(link, "epoll", errno, now_ns);
}

void link_hold(struct link *link, bool held, uint64_t now_ns)
{
    if (link->conn == NULL || held == link->held)
        return;
    link->held = held;
    link->heard_ns = now_ns; /* who did not listen cannot complain of silence */
    if (!watch(link, conn_fd(link->conn), (link->interest & EPOLLOUT) | (held ? 0 : EPOLLIN)))
        lost_by(link, "epoll", errno, now_ns);
}

void link_tick(struct link *link, uint64_t now_ns)
{
    if (link->conn == NULL && link->dial_fd < 0) {
        if (now_ns >= link->dial_due_ns)
            dial(link, now_ns);
    } else if (link->dial_fd >= 0 && now_ns >= link->dial_limit_ns) {
        lost_by(link, "dial", ETIMEDOUT, now_ns);
    } else if (link->conn != NULL && grpc_going_away(conn_session(link->conn)) &&
               grpc_open_calls(conn_session(link->conn)) == 0) {
        lost(link, "the page server is going away", now_ns);
    }
}

uint64_t link_next_ns(const struct link *link)
{
    uint64_t next_ns = UINT64_MAX;

    if (link->conn == NULL)
        next_ns = link->dial_fd >= 0 ? link->dial_limit_ns : link->dial_due_ns;
    else if (grpc_going_away(conn_session(link->conn)) && grpc_open_calls(conn_session(link->conn)) == 0)
        next_ns = 0;
    return next_ns;
}

void link_drop(struct link *link, const char *why, uint64_t now_ns)
{
    if (link->conn != NULL || link->dial_fd >= 0)
        lost(link, why, now_ns);
}

void link_is_well(struct link *link)
{
    link->delay_ns = 0;
}

uint64_t link_arrived_bytes(struct link *link, uint64_t now_ns)
{
    if (link->conn != NULL && now_ns >= link->wire.looked_ns + WIRE_LOOK_NS)
        wire_look(&link->wire, conn_fd(link->conn), link->counted.in_bytes);
    return wire_bytes(&link->wire);
}

void link_close(struct link *link)
{
    if (link->conn != NULL)
        conn_close(link->conn);
    if (link->dial_fd >= 0)
        close(link->dial_fd);
    link->conn = NULL;
    link->dial_fd = -1;
    link->watched = false;
    link->interest = 0;
    link->held = false;
}
