/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bulk thread and its ports: see bulk.h. One thread, one epoll: each port brings its ring of ranges (the bell) and
 * its link. Joining and leaving go through a mutex that the page path never takes.
 */
#include "bulk.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../rpc/payload.h"

#define PORTS_MAX 64
#define SLICES_MAX 64 /* a power of two, more than slots and ranges together */
#define ASKS_MAX 32   /* a power of two, more than ranges in flight */
#define REQUEST_BYTES 256
#define ENCODINGS (UINT32_C(1) << PF_ENCODING_IDENTITY)
#define TAG_LINK UINT64_C(0x100000000)
#define TAG_STOP UINT64_C(0x200000000)

/* What one batch needs: the message as it came, and its runs. */
struct slot {
    struct run runs[PF_LIMIT_RUNS_MAX];
    uint8_t message[PF_LIMIT_BATCH_MESSAGE_BYTES_MAX];
};

/* One range on its way. */
struct flight {
    struct bulk_port *port;
    struct grpc_call *call; /* NULL: free */
    struct plan_range range;
    bool named;
    bool later;
    uint32_t gathering; /* slot that a message is gathered in */
    uint8_t request[REQUEST_BYTES];
};

struct bulk_port {
    struct bulk *bulk;
    uint32_t number;
    const struct address *address;
    const char *image;
    uint64_t page_count;
    uint32_t slot_count;
    struct slot *slots;
    struct ring asks;   /* loop -> thread: struct plan_range */
    struct ring slices; /* thread -> loop: struct bulk_slice */
    struct ring back;   /* loop -> thread: uint32_t slot */
    _Atomic uint64_t content_id;
    struct stats stats;
    /* The thread's own: */
    struct link link;
    bool linked;
    uint32_t free_count;
    uint32_t free_slots[SLICES_MAX];
    struct flight flights[PF_LIMIT_BULK_RANGES_IN_FLIGHT];
    char drop_why[64];
};

struct bulk {
    pthread_t thread;
    pthread_mutex_t mutex; /* guards ports, joined and left; never taken on a page's way */
    pthread_cond_t turned;
    struct bulk_port *ports[PORTS_MAX];
    struct bulk_port *leaving;
    bool stopping;
    int epoll_fd;
    int stop_fd;
    uint64_t now_ns;
};

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ------------------------------------------------------------------------------------------- slots and slices */

static void reclaim(struct bulk_port *port)
{
    uint32_t slot;

    while (ring_take(&port->back, &slot))
        port->free_slots[port->free_count++] = slot;
}

/* Waits for the loop to give one back, if it must: that is the back-pressure. A port that is leaving gets none. */
static uint32_t take_slot(struct bulk_port *port)
{
    struct pollfd bell = {.fd = port->back.bell_fd, .events = POLLIN};

    reclaim(port);
    while (port->free_count == 0) {
        pthread_mutex_lock(&port->bulk->mutex);
        bool leaving = port->bulk->leaving != NULL || port->bulk->stopping;
        pthread_mutex_unlock(&port->bulk->mutex);
        if (leaving)
            return BULK_NO_SLOT;
        ring_silence(&port->back);
        reclaim(port);
        if (port->free_count == 0)
            poll(&bell, 1, 100);
        reclaim(port);
    }
    return port->free_slots[--port->free_count];
}

static void put_slice(struct bulk_port *port, const struct bulk_slice *slice)
{
    /* There is always room: slices are bounded by slots and by ranges in flight. */
    if (!ring_put(&port->slices, slice))
        stats_add(&port->stats, STATS_alarms_total, 1);
}

static void end_range(struct flight *flight, uint32_t reason)
{
    struct bulk_slice end = {
        .slot = BULK_NO_SLOT,
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
    struct bulk_port *port = owner;
    struct flight *flight = grpc_user(call);
    uint32_t slot = length <= sizeof(port->slots->message) ? take_slot(port) : BULK_NO_SLOT;

    flight->gathering = slot;
    return slot == BULK_NO_SLOT ? NULL : port->slots[slot].message;
}

/* In the slot it was gathered in, or copied to one of its own. */
static uint32_t keep_message(struct bulk_port *port, struct flight *flight, struct grpc_bytes *message)
{
    uint32_t slot = flight->gathering;

    if (slot == BULK_NO_SLOT && message->length <= sizeof(port->slots->message)) {
        slot = take_slot(port);
        if (slot != BULK_NO_SLOT) {
            memcpy(port->slots[slot].message, message->data, message->length);
            message->data = port->slots[slot].message;
        }
    }
    flight->gathering = BULK_NO_SLOT;
    return slot;
}

static int check_batch(struct bulk_port *port, struct grpc_bytes message, struct run *runs, struct page_batch *batch)
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
    struct bulk_port *port = owner;
    struct flight *flight = grpc_user(call);
    struct bulk_slice slice = {.range_page = flight->range.first_page};
    struct page_batch batch;
    int rc = -PF_REASON_BUSY;

    slice.slot = keep_message(port, flight, &message);
    if (slice.slot == BULK_NO_SLOT)
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
    struct bulk_port *port = owner;
    struct flight *flight = grpc_user(call);
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
    struct bulk_port *port = owner;
    struct flight *flight = grpc_user(call);
    uint32_t reason = status->reason;

    if (status->code != GRPC_OK && reason == 0)
        reason = PF_REASON_GOING_AWAY;
    if (flight->gathering != BULK_NO_SLOT) {
        port->free_slots[port->free_count++] = flight->gathering;
        flight->gathering = BULK_NO_SLOT;
    }
    end_range(flight, reason);
    if (reason != 0 && reason != PF_REASON_MISMATCH)
        strcpy(port->drop_why, "a range has failed");
}

static const struct grpc_owner bulk_calls = {
    .gather = on_gather,
    .message = on_message,
    .pull = on_pull,
    .ended = on_ended,
};

/* ------------------------------------------------------------------------------------------------------- ports */

static void start_ranges(struct bulk_port *port)
{
    for (uint32_t i = 0; i < PF_LIMIT_BULK_RANGES_IN_FLIGHT && port->link.conn != NULL; i++) {
        struct flight *flight = &port->flights[i];
        if (flight->call != NULL)
            continue;
        if (!ring_take(&port->asks, &flight->range))
            break;
        flight->port = port;
        flight->named = false;
        flight->later = false;
        flight->gathering = BULK_NO_SLOT;
        flight->call = grpc_start(conn_session(port->link.conn), PF_PATH_STREAM_PAGES, flight);
        if (flight->call == NULL)
            end_range(flight, PF_REASON_GOING_AWAY);
    }
}

static void on_up(void *owner)
{
    struct bulk_port *port = owner;

    port->drop_why[0] = 0;
}

static void on_down(void *owner, const char *why)
{
    struct bulk_port *port = owner;

    (void)why; /* the urgent link tells its story; this one dials the same address */
    port->drop_why[0] = 0;
}

static const struct link_events bulk_link_events = {.up = on_up, .down = on_down};

static void port_turn(struct bulk_port *port)
{
    struct bulk *bulk = port->bulk;
    struct link_options options = {
        .address = port->address,
        .calls = &bulk_calls,
        .events = &bulk_link_events,
        .owner = port,
        .stream_window_bytes = PF_LIMIT_STREAM_WINDOW_BYTES,
        .connection_window_bytes = PF_LIMIT_STREAM_WINDOW_BYTES,
        .stats = &port->stats,
        .epoll_fd = bulk->epoll_fd,
        .epoll_tag = TAG_LINK | port->number,
    };

    if (atomic_load(&port->content_id) == 0)
        return;
    if (!port->linked) {
        link_start(&port->link, &options);
        port->linked = true;
    }
    if (port->drop_why[0] != 0)
        link_drop(&port->link, port->drop_why, bulk->now_ns);
    link_tick(&port->link, bulk->now_ns);
    start_ranges(port);
    link_flush(&port->link, bulk->now_ns);
}

int bulk_port_open(struct bulk *bulk, const struct bulk_port_options *options, struct bulk_port **out)
{
    struct bulk_port *port = calloc(1, sizeof(*port));
    struct epoll_event event = {.events = EPOLLIN};
    int rc = -ENOMEM;

    if (port == NULL)
        goto out;
    port->bulk = bulk;
    port->address = options->address;
    port->image = options->image;
    port->page_count = options->page_count;
    port->slot_count = options->slots == 0 ? PF_LIMIT_BULK_SLOTS : options->slots;
    if (port->slot_count > SLICES_MAX - PF_LIMIT_BULK_RANGES_IN_FLIGHT) {
        rc = -EINVAL;
        goto out;
    }
    port->slots = mmap(NULL, port->slot_count * sizeof(struct slot), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (port->slots == MAP_FAILED) {
        port->slots = NULL;
        goto out;
    }
    while (port->free_count < port->slot_count) {
        port->free_slots[port->free_count] = port->free_count;
        port->free_count++;
    }
    rc = ring_open(&port->asks, ASKS_MAX, sizeof(struct plan_range));
    if (rc == 0)
        rc = ring_open(&port->slices, SLICES_MAX, sizeof(struct bulk_slice));
    if (rc == 0)
        rc = ring_open(&port->back, SLICES_MAX, sizeof(uint32_t));
    if (rc != 0)
        goto out;
    pthread_mutex_lock(&bulk->mutex);
    while (port->number < PORTS_MAX && bulk->ports[port->number] != NULL)
        port->number++;
    rc = port->number == PORTS_MAX ? -EMFILE : 0;
    event.data.u64 = port->number;
    if (rc == 0 && epoll_ctl(bulk->epoll_fd, EPOLL_CTL_ADD, port->asks.bell_fd, &event) < 0)
        rc = -errno;
    if (rc == 0)
        bulk->ports[port->number] = port;
    pthread_mutex_unlock(&bulk->mutex);
out:
    if (rc != 0 && port != NULL) {
        ring_close(&port->asks);
        ring_close(&port->slices);
        ring_close(&port->back);
        if (port->slots != NULL)
            munmap(port->slots, port->slot_count * sizeof(struct slot));
        free(port);
        port = NULL;
    }
    *out = port;
    return rc;
}

void bulk_port_close(struct bulk_port *port)
{
    struct bulk *bulk = port->bulk;
    uint64_t one = 1;

    pthread_mutex_lock(&bulk->mutex);
    while (bulk->leaving != NULL) /* another port is on its way out */
        pthread_cond_wait(&bulk->turned, &bulk->mutex);
    bulk->leaving = port;
    while (write(bulk->stop_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        ;
    while (bulk->leaving == port)
        pthread_cond_wait(&bulk->turned, &bulk->mutex);
    pthread_mutex_unlock(&bulk->mutex);
    if (port->linked)
        link_close(&port->link);
    ring_close(&port->asks);
    ring_close(&port->slices);
    ring_close(&port->back);
    munmap(port->slots, port->slot_count * sizeof(struct slot));
    free(port);
}

void bulk_port_attach(struct bulk_port *port, uint64_t content_id)
{
    uint64_t one = 1;
    ssize_t rung;

    atomic_store(&port->content_id, content_id);
    rung = write(port->asks.bell_fd, &one, sizeof(one)); /* full: it rings already */
    (void)rung;
}

bool bulk_port_ask(struct bulk_port *port, const struct plan_range *range)
{
    return ring_put(&port->asks, range);
}

bool bulk_port_take(struct bulk_port *port, struct bulk_slice *slice)
{
    return ring_take(&port->slices, slice);
}

void bulk_port_give_back(struct bulk_port *port, uint32_t slot)
{
    ring_put(&port->back, &slot); /* as many places as slots */
}

int bulk_port_bell(const struct bulk_port *port)
{
    return port->slices.bell_fd;
}

void bulk_port_silence(struct bulk_port *port)
{
    ring_silence(&port->slices);
}

const struct stats *bulk_port_stats(const struct bulk_port *port)
{
    return &port->stats;
}

/* ------------------------------------------------------------------------------------------------------ thread */

/* Lets go of a port that is leaving. False: stop. */
static bool let_go(struct bulk *bulk)
{
    bool go_on;

    pthread_mutex_lock(&bulk->mutex);
    if (bulk->leaving != NULL) {
        bulk->ports[bulk->leaving->number] = NULL;
        epoll_ctl(bulk->epoll_fd, EPOLL_CTL_DEL, bulk->leaving->asks.bell_fd, NULL);
        bulk->leaving = NULL;
        pthread_cond_broadcast(&bulk->turned);
    }
    go_on = !bulk->stopping;
    pthread_mutex_unlock(&bulk->mutex);
    return go_on;
}

/* The port with this number, as it is now. */
static struct bulk_port *port_of(struct bulk *bulk, uint32_t number)
{
    struct bulk_port *port;

    pthread_mutex_lock(&bulk->mutex);
    port = bulk->ports[number];
    pthread_mutex_unlock(&bulk->mutex);
    return port;
}

static int timeout_ms(struct bulk *bulk)
{
    uint64_t next_ns = UINT64_MAX;

    for (uint32_t i = 0; i < PORTS_MAX; i++) {
        struct bulk_port *port = port_of(bulk, i);
        uint64_t one_ns = port != NULL && port->linked ? link_next_ns(&port->link) : UINT64_MAX;
        if (port != NULL && port->drop_why[0] != 0)
            one_ns = 0;
        next_ns = one_ns < next_ns ? one_ns : next_ns;
    }
    if (next_ns == UINT64_MAX)
        return -1;
    return next_ns <= bulk->now_ns ? 0 : (int)((next_ns - bulk->now_ns) / 1000000 + 1);
}

static void bulk_event(struct bulk *bulk, const struct epoll_event *event)
{
    struct bulk_port *port = port_of(bulk, (uint32_t)event->data.u64);

    if (event->data.u64 == TAG_STOP) {
        uint64_t count;
        ssize_t got = read(bulk->stop_fd, &count, sizeof(count));
        (void)got;
    } else if (port != NULL && (event->data.u64 & TAG_LINK) != 0) {
        if (port->linked)
            link_ready(&port->link, event->events, bulk->now_ns);
    } else if (port != NULL) {
        ring_silence(&port->asks);
    }
}

static void *bulk_run(void *argument)
{
    struct bulk *bulk = argument;
    struct epoll_event events[16];

    while (let_go(bulk)) {
        int count = epoll_wait(bulk->epoll_fd, events, 16, timeout_ms(bulk));
        bulk->now_ns = clock_ns();
        for (int i = 0; i < count; i++)
            bulk_event(bulk, &events[i]);
        for (uint32_t i = 0; i < PORTS_MAX; i++) {
            struct bulk_port *port = port_of(bulk, i);
            if (port != NULL)
                port_turn(port);
        }
    }
    return NULL;
}

int bulk_open(struct bulk **out)
{
    struct bulk *bulk = calloc(1, sizeof(*bulk));
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = TAG_STOP};
    int rc = 0;

    if (bulk == NULL)
        return -ENOMEM;
    pthread_mutex_init(&bulk->mutex, NULL);
    pthread_cond_init(&bulk->turned, NULL);
    bulk->now_ns = clock_ns();
    bulk->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bulk->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (bulk->stop_fd < 0 || bulk->epoll_fd < 0 ||
        epoll_ctl(bulk->epoll_fd, EPOLL_CTL_ADD, bulk->stop_fd, &event) < 0)
        rc = -errno;
    if (rc == 0)
        rc = -pthread_create(&bulk->thread, NULL, bulk_run, bulk);
    if (rc != 0) {
        if (bulk->stop_fd >= 0)
            close(bulk->stop_fd);
        if (bulk->epoll_fd >= 0)
            close(bulk->epoll_fd);
        free(bulk);
        bulk = NULL;
    }
    *out = bulk;
    return rc;
}

void bulk_close(struct bulk *bulk)
{
    uint64_t one = 1;
    ssize_t rung;

    pthread_mutex_lock(&bulk->mutex);
    bulk->stopping = true;
    pthread_mutex_unlock(&bulk->mutex);
    rung = write(bulk->stop_fd, &one, sizeof(one)); /* full: it rings already */
    (void)rung;
    pthread_join(bulk->thread, NULL);
    close(bulk->stop_fd);
    close(bulk->epoll_fd);
    pthread_mutex_destroy(&bulk->mutex);
    pthread_cond_destroy(&bulk->turned);
    free(bulk);
}
