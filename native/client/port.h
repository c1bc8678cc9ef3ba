/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VM's port at the bulk thread: ranges go in, checked slices come back, both by rings. What is handed over lies in a
 * slot of the port's fixed pool until the VM's loop gives the slot back.
 *
 * The pacing is HTTP/2's: the connection's window bounds what can be under way, and a loop that takes its time lets the
 * slots run out, which stops the reading of this port's link alone. A server that meets a closed TCP window for
 * TCP_USER_TIMEOUT_MS ends the connection; then what was under way is simply asked again.
 */
#ifndef PAGEFERRY_PORT_H
#define PAGEFERRY_PORT_H

#include <stdbool.h>
#include <stdint.h>

#include "../base/ring.h"
#include "../base/stats.h"
#include "../gen/contract.h"
#include "../pager/plan.h"
#include "../rpc/messages.h"
#include "link.h"
#include "pace.h"

#define PORT_NO_SLOT UINT32_MAX
#define PORT_SLICES_MAX 64 /* a power of two, more than slots and ranges together */
#define PORT_SLOTS_MAX (PORT_SLICES_MAX - PF_LIMIT_BULK_RANGES_IN_FLIGHT) /* so that slices always have room */
#define PORT_ASKS_MAX 32   /* a power of two, more than ranges in flight */
#define PORT_REQUEST_BYTES 256
#define PORT_WHY_BYTES 64

/* One batch, checked, or the end of a range. */
struct port_slice {
    uint32_t slot;       /* PORT_NO_SLOT: the end of a range */
    uint32_t run_count;
    uint64_t range_page; /* first page of the range, as it was asked */
    uint32_t reason;     /* end of a range: 0, or why it ended early */
    uint32_t later;      /* some of its pages cannot be read now */
    const struct run *runs;
    const uint8_t *data; /* the pages of the DATA runs, in order */
};

/* What one batch needs: the message as it came, and its runs. */
struct port_slot {
    struct run runs[PF_LIMIT_RUNS_MAX];
    uint8_t message[PF_LIMIT_BATCH_MESSAGE_BYTES_MAX];
};

struct port;

/* One range on its way. */
struct port_flight {
    struct port *port;
    struct grpc_call *call; /* NULL: free */
    struct plan_range range;
    bool named;
    bool later;
    uint32_t gathering; /* slot that a message is gathered in */
    uint8_t request[PORT_REQUEST_BYTES];
};

struct port {
    const struct address *address;
    const char *image;
    const struct grpc_headers *who;
    uint64_t page_count;
    struct ring asks;   /* loop -> thread: struct plan_range */
    struct ring slices; /* thread -> loop: struct port_slice */
    struct ring back;   /* loop -> thread: uint32_t slot */
    _Atomic uint64_t content_id; /* 0: not described yet */
    _Atomic bool leaving;        /* no slot is waited for any more */
    _Atomic bool resting;        /* nothing will be asked any more: no link is needed */
    _Atomic bool held_back;      /* the loop asks for less than it could; since the last look */
    _Atomic uint64_t urgent_bytes;  /* the loop's own link has brought */
    _Atomic uint64_t arrived_bytes; /* this link has brought, as an interface counts it */
    _Atomic uint64_t link_rate;     /* bytes per second, of both together; 0: not known yet */
    struct port_slot *slots;
    uint32_t slot_count;
    /* The thread's own: */
    struct stats stats;
    struct link link;
    bool linked;
    bool starved;        /* a slot was waited for in vain, and none has come since */
    bool watches_back;   /* epoll tells when a slot comes back */
    uint64_t asked_ns;   /* the newest range was asked */
    struct pace_link pace_link;
    uint32_t free_count;
    uint32_t free_slots[PORT_SLICES_MAX];
    struct port_flight flights[PF_LIMIT_BULK_RANGES_IN_FLIGHT];
    char drop_why[PORT_WHY_BYTES]; /* the link is to be dropped once we are out of its callbacks */
};

struct port_options {
    const struct address *address; /* kept by pointer */
    const char *image;             /* kept by pointer */
    const struct grpc_headers *who; /* as urgent.h has it */
    uint64_t page_count;
    uint32_t slots; /* 0: the default; at most PORT_SLOTS_MAX */
};

/* 0 or -errno. */
int port_open(struct port *port, const struct port_options *options);
/* Harmless on one that was zeroed. The thread has let go of it. */
void port_close(struct port *port);

/* ---- for the VM's loop ---- */

/* The content id that digests are seeded with, once the server has described the image; starts the dialling. */
void port_attach(struct port *port, uint64_t content_id);
/* False: as many ranges are on their way as there may be. */
bool port_ask(struct port *port, const struct plan_range *range);
/* The oldest slice, if there is one. */
bool port_take(struct port *port, struct port_slice *slice);
/* The slice's bytes and runs are not needed any more. */
void port_give_back(struct port *port, uint32_t slot);
/* Nothing will be asked any more; what is under way ends. */
void port_rest(struct port *port);
/* More would be asked if the pace, or threads that wait, allowed it: what comes now does not show what the link can
 * bring. */
static inline void port_hold_back(struct port *port)
{
    atomic_store_explicit(&port->held_back, true, memory_order_relaxed);
}
/* The loop's own link has brought so much. */
static inline void port_tell_urgent(struct port *port, uint64_t bytes)
{
    atomic_store_explicit(&port->urgent_bytes, bytes, memory_order_relaxed);
}
/* This one has brought so much, as an interface counts it. */
static inline uint64_t port_arrived_bytes(const struct port *port)
{
    return atomic_load_explicit(&port->arrived_bytes, memory_order_relaxed);
}
/* Bytes per second that both can bring; 0: not known yet. */
static inline uint64_t port_link_rate(const struct port *port)
{
    return atomic_load_explicit(&port->link_rate, memory_order_relaxed);
}

/* ---- for the bulk thread ---- */

/* What its link's socket, and the bell of slots that come back, come back with in that epoll. */
struct port_watch {
    int epoll_fd;
    uint64_t link_tag;
    uint64_t back_tag;
};

/* Dials, starts ranges, writes. */
void port_turn(struct port *port, const struct port_watch *watch, uint64_t now_ns);
/* It leaves, or rests: no link any more, and nothing of it in epoll but the bell of its asks. */
void port_stop(struct port *port, int epoll_fd);
/* Its link's socket is ready. */
void port_ready(struct port *port, uint32_t events, uint64_t now_ns);
/* When port_turn has something to do; UINT64_MAX: nothing. */
uint64_t port_next_ns(const struct port *port);

#endif
