/* SPDX-License-Identifier: Apache-2.0 */
/* A VM's port at the bulk thread: see port.h. */
#include "port.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../rpc/payload.h"

#define ENCODINGS (UINT32_C(1) << PF_ENCODING_IDENTITY)
#define MS_NS UINT64_C(1000000)
#define SLOT_WAIT_MS 20 /* the longest that the bulk of other VMs may have to wait for this one's loop */

_Static_assert(PF_LIMIT_BULK_SLOTS <= PORT_SLOTS_MAX, "slices always have room");

/* ------------------------------------------------------------------------------------------- slots and slices */

static void reclaim(struct port *port)
{
    uint32_t slot;

    while (ring_take(&port->back, &slot))
        port->free_slots[port->free_count++] = slot;
}

/*
 * A slot, or PORT_NO_SLOT. Back-pressure is that a port without slots is not read from (port_turn); but one read may
 * bring more messages than there were slots, and for those the loop is given a moment, once. A message that finds none
 * ends its range, which is then asked again.
 */
static uint32_t take_slot(struct port *port)
{
    struct pollfd bell = {.fd = port->back.bell_fd, .events = POLLIN};

    reclaim(port);
    if (port->free_count == 0 && !port->starved && !atomic_load(&port->leaving)) {
        ring_silence(&port->back);
        reclaim(port);
        if (port->free_count == 0)
            poll(&bell, 1, SLOT_WAIT_MS);
        reclaim(port);
        port->starved = port->free_count == 0;
    }
    return port->free_count == 0 ? PORT_NO_SLOT : port->free_slots[--port->free_count];
}

static void put_slice(struct port *port, const struct port_slice *slice)
{
    /* There is always room: slices are bounded by slots and by ranges in flight. */
    if (!ring_put(&port->slices, slice))
        stats_add(&port->stats, STATS_alarms_total, 1);
}

static void end_range(struct port_flight *flight, uint32_t reason)
{
    struct port_slice end = {
        .slot = PORT_NO_SLOT,
        .range_page = flight->range.first_page,
        .reason = reason,
        .later = flight->later,
    };

    flight->call = NULL;
    put_slice(flight->port, &end);
}

/* ---------------------------------------------------------------------------------- calls, as grpc.h wants them */

static uint8_t *on_gather(void *owner, struct grpc_call *call, size_t length)
{
    struct port *port = owner;
    struct port_flight *flight = grpc_user(call);
    uint32_t slot = length <= sizeof(port->slots->message) ? take_slot(port) : PORT_NO_SLOT;

    flight->gathering = slot;
    return slot == PORT_NO_SLOT ? NULL : port->slots[slot].message;
}

/* In the slot it was gathered in, or copied to one of its own. */
static uint32_t keep_message(struct port *port, struct port_flight *flight, struct grpc_bytes *message)
{
    uint32_t slot = flight->gathering;

    if (slot == PORT_NO_SLOT && message->length <= sizeof(port->slots->message)) {
        slot = take_slot(port);
        if (slot != PORT_NO_SLOT) {
            memcpy(port->slots[slot].message, message->data, message->length);
            message->data = port->slots[slot].message;
        }
    }
    flight->gathering = PORT_NO_SLOT;
    return slot;
}

static int check_batch(struct port *port, struct grpc_bytes message, struct run *runs, struct page_batch *batch)
{
    uint64_t data_pages;
    int rc = read_page_batch(message, runs, PF_LIMIT_RUNS_MAX, batch);

    if (rc == 0 && batch->run_count > 0)
        rc = payload_check(atomic_load(&port->content_id), batch, &data_pages);
    if (rc == -PF_REASON_MISMATCH)
        stats_add(&port->stats, STATS_digest_failures_total, 1);
    if (rc == 0 && !runs_inside(batch->runs, batch->run_count, port->page_count))
        rc = -PF_REASON_OUT_OF_IMAGE;
    if (rc == 0 && batch->run_count > 0)
        stats_add(&port->stats, STATS_fetched_bytes_total, data_pages * PAGE_BYTES);
    return rc;
}

static int on_message(void *owner, struct grpc_call *call, struct grpc_bytes message)
{
    struct port *port = owner;
    struct port_flight *flight = grpc_user(call);
    struct port_slice slice = {.range_page = flight->range.first_page};
    struct page_batch batch;
    int rc = -PF_REASON_BUSY;

    slice.slot = keep_message(port, flight, &message);
    if (slice.slot == PORT_NO_SLOT)
        goto out;
    rc = check_batch(port, message, port->slots[slice.slot].runs, &batch);
    if (rc != 0) {
        port->free_slots[port->free_count++] = slice.slot;
        goto out;
    }
    link_is_well(&port->link);
    slice.runs = batch.runs;
    slice.run_count = batch.run_count;
    slice.data = batch.data.data;
    for (uint32_t i = 0; i < batch.run_count; i++)
        flight->later |= batch.runs[i].kind == PF_RUN_KIND_LATER;
    put_slice(port, &slice);
out:
    return rc;
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *call, struct grpc_bytes *message)
{
    struct port *port = owner;
    struct port_flight *flight = grpc_user(call);
    struct run run = {.first_page = flight->range.first_page, .page_count = flight->range.page_count};
    struct stream_request request = {
        .image = {(const uint8_t *)port->image, strlen(port->image)},
        .runs = &run,
        .run_count = 1,
        .encodings = ENCODINGS,
    };

    if (flight->named)
        return GRPC_PULLED_LAST;
    flight->named = true;
    message->data = flight->request;
    message->length = write_stream_request(&request, flight->request, sizeof(flight->request));
    return GRPC_PULLED_MESSAGE;
}

static void on_ended(void *owner, struct grpc_call *call, const struct grpc_status *status)
{
    struct port *port = owner;
    struct port_flight *flight = grpc_user(call);
    uint32_t reason = status->reason;

    if (status->code != GRPC_OK && reason == 0)
        reason = PF_REASON_GOING_AWAY;
    if (flight->gathering != PORT_NO_SLOT) {
        port->free_slots[port->free_count++] = flight->gathering;
        flight->gathering = PORT_NO_SLOT;
    }
    end_range(flight, reason);
    /* A wrong digest, or a limit (theirs, or our slots), says nothing about the connection. */
    if (reason != 0 && reason != PF_REASON_MISMATCH && reason != PF_REASON_BUSY)
        snprintf(port->drop_why, sizeof(port->drop_why), "a range has failed");
}

static const struct grpc_owner port_calls = {
    .gather = on_gather,
    .message = on_message,
    .pull = on_pull,
    .ended = on_ended,
};

/* ------------------------------------------------------------------------------------------ the thread's side */

static void start_ranges(struct port *port, uint64_t now_ns)
{
    bool open = port->link.conn != NULL && !port->link.held && !grpc_going_away(conn_session(port->link.conn));

    for (uint32_t i = 0; open && i < PF_LIMIT_BULK_RANGES_IN_FLIGHT && i < port->slot_count; i++) {
        struct port_flight *flight = &port->flights[i];
        if (flight->call != NULL)
            continue;
        if (!ring_take(&port->asks, &flight->range))
            break;
        flight->port = port;
        flight->named = false;
        flight->later = false;
        flight->gathering = PORT_NO_SLOT;
        flight->call = grpc_start_as(conn_session(port->link.conn), PF_PATH_STREAM_PAGES, port->who, flight);
        if (flight->call == NULL)
            end_range(flight, PF_REASON_GOING_AWAY);
        port->asked_ns = now_ns;
    }
}

static void on_up(void *owner)
{
    struct port *port = owner;

    port->drop_why[0] = 0;
}

static void on_down(void *owner, const char *why)
{
    struct port *port = owner;

    (void)why; /* the urgent link tells its story; this one dials the same address */
    port->drop_why[0] = 0;
}

static const struct link_events port_link_events = {.up = on_up, .down = on_down};

static bool is_gathering(const struct port *port)
{
    bool gathering = false;

    for (uint32_t i = 0; i < PF_LIMIT_BULK_RANGES_IN_FLIGHT; i++)
        gathering |= port->flights[i].call != NULL && port->flights[i].gathering != PORT_NO_SLOT;
    return gathering;
}

/* Without a slot nothing is read, unless it is to fill a slot that waits for the rest of its message;
 * and epoll tells when one comes back. */
static void hold(struct port *port, const struct port_watch *watch, uint64_t now_ns)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = watch->back_tag};
    bool lacking;

    reclaim(port);
    lacking = port->free_count == 0 && !is_gathering(port);
    port->starved = port->starved && port->free_count == 0;
    if (lacking && !port->watches_back)
        port->watches_back = epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, port->back.bell_fd, &event) == 0;
    else if (!lacking && port->watches_back)
        port->watches_back = epoll_ctl(watch->epoll_fd, EPOLL_CTL_DEL, port->back.bell_fd, NULL) != 0;
    link_hold(&port->link, lacking && port->watches_back, now_ns);
}

/* When the silence of ranges that are under way has become too long; UINT64_MAX: nothing is waited for. */
static uint64_t silent_ns(const struct port *port)
{
    uint64_t since_ns = port->link.heard_ns > port->asked_ns ? port->link.heard_ns : port->asked_ns;
    bool waits = port->link.conn != NULL && !port->link.held && grpc_open_calls(conn_session(port->link.conn)) > 0;

    return waits ? since_ns + PF_LIMIT_HEARTBEAT_TIMEOUT_MS * MS_NS : UINT64_MAX;
}

static void start_link(struct port *port, const struct port_watch *watch)
{
    struct link_options options = {
        .address = port->address,
        .calls = &port_calls,
        .events = &port_link_events,
        .owner = port,
        .stream_window_bytes = PF_LIMIT_STREAM_WINDOW_BYTES,
        .connection_window_bytes = PF_LIMIT_STREAM_WINDOW_BYTES, /* all ranges together: what can lie on the link */
        .stats = &port->stats,
        .epoll_fd = watch->epoll_fd,
        .epoll_tag = watch->link_tag,
    };

    link_start(&port->link, &options);
    port->linked = true;
}

/* What has come in, and what the link can bring: measured while ranges are under way and nobody holds them back. */
static void look_at_arrivals(struct port *port, uint64_t now_ns)
{
    bool busy = port->link.conn != NULL && !port->link.held && grpc_open_calls(conn_session(port->link.conn)) > 0 &&
                !atomic_exchange_explicit(&port->held_back, false, memory_order_relaxed);
    uint64_t before_ns = port->link.wire.looked_ns, bytes = link_arrived_bytes(&port->link, now_ns);

    atomic_store_explicit(&port->arrived_bytes, bytes, memory_order_relaxed);
    if (busy && port->link.wire.looked_ns == before_ns)
        return;
    bytes += atomic_load_explicit(&port->urgent_bytes, memory_order_relaxed);
    pace_link_look(&port->pace_link, busy, bytes, port->link.wire.looked_ns);
    atomic_store_explicit(&port->link_rate, pace_link_rate(&port->pace_link), memory_order_relaxed);
}

void port_turn(struct port *port, const struct port_watch *watch, uint64_t now_ns)
{
    if (atomic_load(&port->resting))
        port_stop(port, watch->epoll_fd);
    else if (!port->linked && atomic_load(&port->content_id) != 0)
        start_link(port, watch);
    if (!port->linked)
        return;
    if (port->drop_why[0] == 0 && now_ns >= silent_ns(port))
        snprintf(port->drop_why, sizeof(port->drop_why), "nothing was heard of ranges under way");
    if (port->drop_why[0] != 0)
        link_drop(&port->link, port->drop_why, now_ns);
    link_tick(&port->link, now_ns);
    hold(port, watch, now_ns);
    start_ranges(port, now_ns);
    look_at_arrivals(port, now_ns);
    link_flush(&port->link, now_ns);
}

void port_stop(struct port *port, int epoll_fd)
{
    if (port->watches_back)
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, port->back.bell_fd, NULL);
    port->watches_back = false;
    if (port->linked)
        link_close(&port->link);
    port->linked = false;
}

void port_ready(struct port *port, uint32_t events, uint64_t now_ns)
{
    if (port->linked)
        link_ready(&port->link, events, now_ns);
}

uint64_t port_next_ns(const struct port *port)
{
    uint64_t next_ns = UINT64_MAX;

    if (port->linked) {
        uint64_t link_ns = link_next_ns(&port->link);
        next_ns = silent_ns(port);
        next_ns = port->drop_why[0] != 0 ? 0 : link_ns < next_ns ? link_ns : next_ns;
    }
    return next_ns;
}

/* --------------------------------------------------------------------------------------------- the loop's side */

/* The thread looks at its ports. */
static void ring_bell(struct port *port)
{
    uint64_t one = 1;
    ssize_t rung = write(port->asks.bell_fd, &one, sizeof(one)); /* full: it rings already */

    (void)rung;
}

void port_attach(struct port *port, uint64_t content_id)
{
    atomic_store(&port->content_id, content_id);
    ring_bell(port);
}

void port_rest(struct port *port)
{
    atomic_store(&port->resting, true);
    ring_bell(port);
}

bool port_ask(struct port *port, const struct plan_range *range)
{
    return ring_put(&port->asks, range);
}

bool port_take(struct port *port, struct port_slice *slice)
{
    return ring_take(&port->slices, slice);
}

void port_give_back(struct port *port, uint32_t slot)
{
    ring_put(&port->back, &slot); /* as many places as slots */
}

static size_t slots_bytes(const struct port *port)
{
    return port->slot_count * sizeof(struct port_slot);
}

int port_open(struct port *port, const struct port_options *options)
{
    uint32_t slots = options->slots == 0 ? PF_LIMIT_BULK_SLOTS : options->slots;
    int rc;

    memset(port, 0, sizeof(*port));
    port->address = options->address;
    port->image = options->image;
    port->who = options->who;
    port->page_count = options->page_count;
    port->slot_count = slots < PORT_SLOTS_MAX ? slots : PORT_SLOTS_MAX;
    rc = ring_open(&port->asks, PORT_ASKS_MAX, sizeof(struct plan_range));
    if (rc == 0)
        rc = ring_open(&port->slices, PORT_SLICES_MAX, sizeof(struct port_slice));
    if (rc == 0)
        rc = ring_open(&port->back, PORT_SLICES_MAX, sizeof(uint32_t));
    if (rc == 0) {
        port->slots = mmap(NULL, slots_bytes(port), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (port->slots == MAP_FAILED) {
            port->slots = NULL;
            rc = -ENOMEM;
        }
    }
    while (rc == 0 && port->free_count < port->slot_count) {
        port->free_slots[port->free_count] = port->free_count;
        port->free_count++;
    }
    if (rc != 0)
        port_close(port);
    return rc;
}

void port_close(struct port *port)
{
    if (port->linked)
        link_close(&port->link);
    port->linked = false;
    ring_close(&port->asks);
    ring_close(&port->slices);
    ring_close(&port->back);
    if (port->slots != NULL)
        munmap(port->slots, slots_bytes(port));
    port->slots = NULL;
}
