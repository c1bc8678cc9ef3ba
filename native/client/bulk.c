/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bulk thread: see bulk.h. One epoll: each port brings the bell of its asks and its link. Joining and leaving go
 * through a mutex that no page's way takes for long.
 */
#include "bulk.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define PORTS_MAX 64
#define TAG_LINK UINT64_C(0x100000000)
#define TAG_BELL UINT64_C(0x200000000)
#define TAG_BACK UINT64_C(0x400000000)
#define WAIT_EVENTS 16
#define MS_NS UINT64_C(1000000)

struct bulk {
    pthread_t thread;
    pthread_mutex_t mutex; /* guards ports and stopping */
    pthread_cond_t turned; /* a leaving port has been let go */
    struct port *ports[PORTS_MAX];
    bool stopping;
    int epoll_fd;
    int bell_fd; /* somebody joins, leaves or stops */
};

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void ring_bell(struct bulk *bulk)
{
    uint64_t one = 1;
    ssize_t rung = write(bulk->bell_fd, &one, sizeof(one)); /* full: it rings already */

    (void)rung;
}

/* Lets go of the ports that are leaving, and copies the others, so that a turn works without the mutex. False: stop. */
static bool present_ports(struct bulk *bulk, struct port *ports[PORTS_MAX])
{
    bool go_on;

    pthread_mutex_lock(&bulk->mutex);
    for (int i = 0; i < PORTS_MAX; i++) {
        if (bulk->ports[i] != NULL && atomic_load(&bulk->ports[i]->leaving)) {
            port_stop(bulk->ports[i], bulk->epoll_fd); /* here: a link belongs to this thread */
            epoll_ctl(bulk->epoll_fd, EPOLL_CTL_DEL, bulk->ports[i]->asks.bell_fd, NULL);
            bulk->ports[i] = NULL;
            pthread_cond_broadcast(&bulk->turned);
        }
        ports[i] = bulk->ports[i];
    }
    go_on = !bulk->stopping;
    pthread_mutex_unlock(&bulk->mutex);
    return go_on;
}

static int timeout_ms(struct port *const ports[PORTS_MAX], uint64_t now_ns)
{
    uint64_t next_ns = UINT64_MAX;

    for (int i = 0; i < PORTS_MAX; i++) {
        uint64_t one_ns = ports[i] == NULL ? UINT64_MAX : port_next_ns(ports[i]);
        next_ns = one_ns < next_ns ? one_ns : next_ns;
    }
    if (next_ns == UINT64_MAX)
        return -1;
    return next_ns <= now_ns ? 0 : (int)((next_ns - now_ns) / MS_NS + 1);
}

static void take(struct bulk *bulk, struct port *const ports[PORTS_MAX], const struct epoll_event *event,
                 uint64_t now_ns)
{
    uint32_t number = (uint32_t)event->data.u64;

    if ((event->data.u64 & TAG_BELL) != 0) {
        uint64_t count;
        ssize_t got = read(bulk->bell_fd, &count, sizeof(count));
        (void)got;
    } else if (ports[number] != NULL && (event->data.u64 & TAG_LINK) != 0) {
        port_ready(ports[number], event->events, now_ns);
    } else if (ports[number] != NULL && (event->data.u64 & TAG_BACK) != 0) {
        ring_silence(&ports[number]->back);
    } else if (ports[number] != NULL) {
        ring_silence(&ports[number]->asks);
    }
}

static void *bulk_run(void *argument)
{
    struct bulk *bulk = argument;
    struct port *ports[PORTS_MAX]; /* of this turn */
    struct epoll_event events[WAIT_EVENTS];

    while (present_ports(bulk, ports)) {
        int count = epoll_wait(bulk->epoll_fd, events, WAIT_EVENTS, timeout_ms(ports, clock_ns()));
        uint64_t now_ns = clock_ns();
        for (int i = 0; i < count; i++)
            take(bulk, ports, &events[i], now_ns);
        for (uint32_t i = 0; i < PORTS_MAX; i++) {
            struct port_watch watch = {bulk->epoll_fd, TAG_LINK | i, TAG_BACK | i};
            if (ports[i] != NULL)
                port_turn(ports[i], &watch, now_ns);
        }
    }
    return NULL;
}

int bulk_join(struct bulk *bulk, struct port *port)
{
    struct epoll_event event = {.events = EPOLLIN};
    uint32_t number = 0;
    int rc = 0;

    pthread_mutex_lock(&bulk->mutex);
    while (number < PORTS_MAX && bulk->ports[number] != NULL)
        number++;
    event.data.u64 = number;
    if (number == PORTS_MAX)
        rc = -EMFILE;
    else if (epoll_ctl(bulk->epoll_fd, EPOLL_CTL_ADD, port->asks.bell_fd, &event) < 0)
        rc = -errno;
    else
        bulk->ports[number] = port;
    pthread_mutex_unlock(&bulk->mutex);
    ring_bell(bulk);
    return rc;
}

static bool is_here(const struct bulk *bulk, const struct port *port)
{
    bool here = false;

    for (int i = 0; i < PORTS_MAX; i++)
        here |= bulk->ports[i] == port;
    return here;
}

void bulk_leave(struct bulk *bulk, struct port *port)
{
    atomic_store(&port->leaving, true);
    ring_bell(bulk);
    pthread_mutex_lock(&bulk->mutex);
    while (is_here(bulk, port))
        pthread_cond_wait(&bulk->turned, &bulk->mutex);
    pthread_mutex_unlock(&bulk->mutex);
}

static int start(struct bulk *bulk)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = TAG_BELL};
    sigset_t all, before;
    int rc;

    bulk->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    bulk->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (bulk->bell_fd < 0 || bulk->epoll_fd < 0 ||
        epoll_ctl(bulk->epoll_fd, EPOLL_CTL_ADD, bulk->bell_fd, &event) < 0)
        return -errno;
    sigfillset(&all); /* signals are the embedding program's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&bulk->thread, NULL, bulk_run, bulk);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

static void free_bulk(struct bulk *bulk)
{
    if (bulk->bell_fd >= 0)
        close(bulk->bell_fd);
    if (bulk->epoll_fd >= 0)
        close(bulk->epoll_fd);
    pthread_mutex_destroy(&bulk->mutex);
    pthread_cond_destroy(&bulk->turned);
    free(bulk);
}

int bulk_open(struct bulk **out)
{
    struct bulk *bulk = calloc(1, sizeof(*bulk));
    int rc = -ENOMEM;

    if (bulk != NULL) {
        pthread_mutex_init(&bulk->mutex, NULL);
        pthread_cond_init(&bulk->turned, NULL);
        rc = start(bulk);
        if (rc != 0) {
            free_bulk(bulk);
            bulk = NULL;
        }
    }
    *out = bulk;
    return rc;
}

void bulk_close(struct bulk *bulk)
{
    pthread_mutex_lock(&bulk->mutex);
    bulk->stopping = true;
    pthread_mutex_unlock(&bulk->mutex);
    ring_bell(bulk);
    pthread_join(bulk->thread, NULL);
    free_bulk(bulk);
}
