/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection to the page server, seen as something that comes and goes: dialled, lost, dialled again with a
 * growing delay, for ever. What is said on it is its owner's (urgent.c, bulk.c). It lives in its owner's epoll.
 */
#ifndef PAGEFERRY_LINK_H
#define PAGEFERRY_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/stats.h"
#include "../rpc/conn.h"
#include "address.h"
#include "wire.h"

struct link_events {
    /* Connected: calls can be started on conn_session(link->conn). */
    void (*up)(void *owner);
    /* Lost, or a dial has failed; the calls have ended already. `why` is for people. */
    void (*down)(void *owner, const char *why);
};

struct link {
    const struct address *address;
    const struct grpc_owner *calls;
    const struct link_events *events;
    void *owner;
    struct grpc_settings settings;
    struct stats *stats;
    int epoll_fd;
    uint64_t epoll_tag;      /* comes back in epoll_event.data.u64 */
    uint32_t next_entry;     /* of the address: each dial tries the next */
    int dial_fd;             /* connecting; -1: not */
    struct conn *conn;       /* NULL: not up */
    bool watched;            /* the socket is in epoll */
    uint32_t interest;       /* what for */
    bool held;               /* nothing is read for now */
    uint64_t heard_ns;       /* bytes came, or it came up */
    uint64_t dial_due_ns;    /* when not up and not connecting */
    uint64_t dial_limit_ns;  /* when connecting */
    uint64_t delay_ns;       /* before the next dial */
    uint64_t random;         /* state of the jitter */
    struct conn_traffic counted;
    struct wire wire;        /* what has come in, as an interface counts it */
};

struct link_options {
    const struct address *address;
    const struct grpc_owner *calls;
    const struct link_events *events;
    void *owner;
    uint32_t stream_window_bytes;
    uint32_t connection_window_bytes;
    struct stats *stats;
    int epoll_fd;
    uint64_t epoll_tag;
};

/* Dials at the next link_tick. */
void link_start(struct link *link, const struct link_options *options);
/* Its socket is ready. `events` as epoll gave them. */
void link_ready(struct link *link, uint32_t events, uint64_t now_ns);
/* Writes what there is to write, within the budget. Cheap when there is nothing. */
void link_flush(struct link *link, uint64_t now_ns);
/* Dials, or gives a dial up, when it is time. */
void link_tick(struct link *link, uint64_t now_ns);
/* When link_tick has something to do; UINT64_MAX: nothing. */
uint64_t link_next_ns(const struct link *link);
/* Reads nothing for now, or goes on: what the owner cannot take stays in the kernel, and then at the peer. */
void link_hold(struct link *link, bool held, uint64_t now_ns);
/* Its owner has lost faith: as if the peer had closed. Not from inside a callback of `calls`. */
void link_drop(struct link *link, const char *why, uint64_t now_ns);
/* The other end has shown that it is well: the next dial, should it be needed, comes at once. */
void link_is_well(struct link *link);
/* What has come in, ever; looked at anew, but not every time. */
uint64_t link_arrived_bytes(struct link *link, uint64_t now_ns);
void link_close(struct link *link);

#endif
