/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See listener.h. epoll is level-triggered, and is told only when what is wanted of a socket changes:
 * EPOLLOUT is on while conn_write has more to say than it was allowed to or the socket would take.
 */
#include "listener.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "calls.h"
#include "opening.h"

#define EVENTS_MAX 64
#define ACCEPTS_MAX 8                /* of one turn */
#define TIMER_STEP_NS (10 * MS_NS)   /* no timer is finer: a flood of tiny deadlines costs no walk each */
#define ACCEPT_PAUSE_NS (100 * MS_NS)
#define KEEPALIVE_S (PF_LIMIT_HEARTBEAT_TIMEOUT_MS / 1000)

uint64_t serve_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 * MS_NS + (uint64_t)now.tv_nsec;
}

void serve_ring_all(struct service *service)
{
    uint32_t count = atomic_load(&service->worker_count);

    for (uint32_t i = 0; i < count; i++)
        listener_ring(&service->workers[i]);
}

void serve_due(struct worker *worker, uint64_t due_ns)
{
    uint64_t soonest_ns = serve_now_ns() + TIMER_STEP_NS;
    struct itimerspec when = {0};

    due_ns = due_ns > soonest_ns ? due_ns : soonest_ns;
    if (due_ns >= worker->due_ns)
        return;
    when.it_value.tv_sec = (time_t)(due_ns / (1000 * MS_NS));
    when.it_value.tv_nsec = (long)(due_ns % (1000 * MS_NS));
    if (timerfd_settime(worker->timer.fd, TFD_TIMER_ABSTIME, &when, NULL) == 0)
        worker->due_ns = due_ns;
}

/* -------------------------------------------------------------------------------------------- connections */

static void count_traffic(struct connection *connection)
{
    struct stats *stats = &connection->worker->stats;
    struct conn_traffic now;

    conn_traffic(connection->conn, &now);
    stats_add(stats, STATS_wire_in_bytes_total, now.in_bytes - connection->counted.in_bytes);
    stats_add(stats, STATS_wire_out_bytes_total, now.out_bytes - connection->counted.out_bytes);
    connection->counted = now;
}

/* A call is over for those above when its last byte is with the kernel: then they may close the server. */
static void count_owing(struct connection *connection, bool unsent)
{
    uint32_t owing = connection->page_calls;

    if (owing == 0 && unsent && connection->served_pages)
        owing = 1;
    atomic_fetch_add(&connection->worker->owing, owing - connection->owing);
    connection->owing = owing;
}

static void close_connection(struct connection *connection)
{
    struct worker *worker = connection->worker;

    count_traffic(connection);
    conn_close(connection->conn); /* closes the socket, which leaves the epoll by that */
    count_owing(connection, false);
    LIST_REMOVE(connection, all);
    free(connection);
    stats_set(&worker->stats, STATS_connections_open, stats_get(&worker->stats, STATS_connections_open) - 1);
    atomic_fetch_sub(&worker->service->connections, 1);
}

static int watch(struct connection *connection, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = &connection->watched};
    int operation = connection->interest == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;

    if (interest == connection->interest)
        return 0;
    connection->interest = interest;
    return epoll_ctl(connection->worker->epoll_fd, operation, connection->watched.fd, &event);
}

/* Drained: whoever was served here hears that there will be no more. Others may still ask for health. */
static bool goodbye_is_due(const struct connection *connection)
{
    return atomic_load_explicit(&connection->worker->service->draining, memory_order_relaxed) != 0 &&
           connection->served_pages && connection->page_calls == 0 && !connection->said_goodbye;
}

/* A turn: read, then write. The connection may be gone when this returns. */
static void turn(struct connection *connection, uint32_t events)
{
    int rc = 0;

    if ((events & ~(uint32_t)EPOLLOUT) != 0)
        rc = conn_read(connection->conn);
    if (rc >= 0)
        rc = conn_write(connection->conn, PF_LIMIT_WRITE_BUDGET_BYTES);
    if (rc >= 0 && goodbye_is_due(connection)) {
        connection->said_goodbye = true;
        grpc_go_away(conn_session(connection->conn));
        rc = conn_write(connection->conn, PF_LIMIT_WRITE_BUDGET_BYTES);
    }
    count_traffic(connection);
    count_owing(connection, rc > 0);
    if (rc < 0 || watch(connection, rc > 0 ? EPOLLIN | EPOLLOUT : EPOLLIN) != 0)
        close_connection(connection);
}

/* A peer whose host has vanished is noticed even where nothing is owed to it. */
static void keep_alive(int fd, const struct sockaddr_storage *peer)
{
    int on = 1, idle_s = KEEPALIVE_S, interval_s = KEEPALIVE_S / 2;

    if (peer->ss_family != AF_INET && peer->ss_family != AF_INET6)
        return;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
}

static int open_connection(struct worker *worker, int fd)
{
    static const struct grpc_settings settings = {
        .message_bytes_max = PF_LIMIT_REQUEST_BYTES_MAX,
        .stream_window_bytes = 2 * PF_LIMIT_REQUEST_BYTES_MAX,
        .connection_window_bytes = PF_LIMIT_CONNECTION_WINDOW_BYTES,
        .streams_max = PF_LIMIT_STREAMS_MAX,
        .header_bytes_max = PF_LIMIT_METADATA_BYTES_MAX,
    };
    struct connection *connection = calloc(1, sizeof(*connection));

    if (connection == NULL)
        return -ENOMEM;
    connection->watched = (struct watched){.kind = WATCHED_CONNECTION, .fd = fd};
    connection->worker = worker;
    connection->first_due_ns = serve_now_ns() + PF_LIMIT_FIRST_REQUEST_MS * MS_NS;
    if (conn_open(fd, GRPC_SERVER, &settings, &calls_owner, connection, &connection->conn) != 0) {
        free(connection);
        return -ENOMEM;
    }
    LIST_INSERT_HEAD(&worker->connections, connection, all);
    stats_add(&worker->stats, STATS_connections_open, 1);
    stats_add(&worker->stats, STATS_connections_total, 1);
    serve_due(worker, connection->first_due_ns);
    turn(connection, 0); /* our SETTINGS leave at once, and epoll learns of it */
    return 0;
}

/* ---------------------------------------------------------------------------------------------- accepting */

/* EPOLLEXCLUSIVE: a new connection wakes one worker. What stopped half way may be repeated. */
static int watch_listeners(struct worker *worker, int operation)
{
    const int done_before = operation == EPOLL_CTL_ADD ? EEXIST : ENOENT;
    int rc = 0;

    for (uint32_t i = 0; i < worker->listener_count; i++) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE,
                                    .data.ptr = (void *)&worker->listeners[i]};
        if (epoll_ctl(worker->epoll_fd, operation, worker->listeners[i].fd, &event) != 0 && errno != done_before)
            rc = -1;
    }
    return rc;
}

/* No file descriptor, or no memory: what waits stays in the kernel, and epoll must not repeat it for ever. */
static void pause_accepting(struct worker *worker)
{
    if (worker->accept_due_ns != NEVER_NS || watch_listeners(worker, EPOLL_CTL_DEL) != 0)
        return;
    worker->accept_due_ns = serve_now_ns() + ACCEPT_PAUSE_NS;
    serve_due(worker, worker->accept_due_ns);
}

static bool take_place(struct service *service)
{
    if (atomic_fetch_add(&service->connections, 1) < PF_LIMIT_CONNECTIONS_MAX)
        return true;
    atomic_fetch_sub(&service->connections, 1);
    return false;
}

static void accept_some(struct worker *worker, int listen_fd)
{
    for (int i = 0; i < ACCEPTS_MAX; i++) {
        struct sockaddr_storage peer = {0};
        socklen_t length = sizeof(peer);
        int fd = accept4(listen_fd, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                pause_accepting(worker);
            return; /* taken by another worker, gone again, or the next turn tries it */
        }
        if (!take_place(worker->service)) {
            close(fd);
            stats_add(&worker->stats, STATS_connections_refused_total, 1);
            continue;
        }
        keep_alive(fd, &peer);
        if (open_connection(worker, fd) != 0) {
            close(fd);
            atomic_fetch_sub(&worker->service->connections, 1);
            stats_add(&worker->stats, STATS_connections_refused_total, 1);
        }
    }
}

/* ----------------------------------------------------------------------------------------- bell and timer */

static void silence(int fd)
{
    uint64_t count;

    if (read(fd, &count, sizeof(count)) != (ssize_t)sizeof(count))
        return; /* somebody was quicker than the bell */
}

static void look_up(struct worker *worker)
{
    silence(worker->bell.fd);
    for (struct connection *connection = LIST_FIRST(&worker->connections), *next; connection != NULL;
         connection = next) {
        next = LIST_NEXT(connection, all);
        calls_look_up(connection);
        turn(connection, 0);
    }
}

static void expire(struct worker *worker)
{
    uint64_t now_ns = serve_now_ns(), due_ns = NEVER_NS;

    silence(worker->timer.fd);
    worker->due_ns = NEVER_NS;
    if (worker->accept_due_ns <= now_ns && watch_listeners(worker, EPOLL_CTL_ADD) == 0)
        worker->accept_due_ns = NEVER_NS;
    due_ns = worker->accept_due_ns;
    for (struct connection *connection = LIST_FIRST(&worker->connections), *next; connection != NULL;
         connection = next) {
        next = LIST_NEXT(connection, all);
        if (connection->first_due_ns <= now_ns) {
            close_connection(connection);
        } else {
            uint64_t call_due_ns = calls_expire(connection, now_ns);
            due_ns = call_due_ns < due_ns ? call_due_ns : due_ns;
            due_ns = connection->first_due_ns < due_ns ? connection->first_due_ns : due_ns;
            if (conn_wants_write(connection->conn))
                turn(connection, 0);
        }
    }
    if (due_ns != NEVER_NS)
        serve_due(worker, due_ns);
}

/* ----------------------------------------------------------------------------------------------- the loop */

/* Bell and timer come last: they may close connections that have an event in the same lot. */
static void work(struct worker *worker, const struct epoll_event *events, int count)
{
    bool rung = false, late = false;

    for (int i = 0; i < count; i++) {
        struct watched *watched = events[i].data.ptr;
        switch (watched->kind) {
        case WATCHED_CONNECTION:
            turn((struct connection *)watched, events[i].events);
            break;
        case WATCHED_LISTENER:
            accept_some(worker, watched->fd);
            break;
        case WATCHED_BELL:
            rung = true;
            break;
        case WATCHED_TIMER:
            late = true;
            break;
        }
    }
    if (rung)
        look_up(worker);
    if (late)
        expire(worker);
}

static void *run(void *argument)
{
    struct worker *worker = argument;
    struct epoll_event events[EVENTS_MAX];
    struct connection *connection;

    while (atomic_load_explicit(&worker->service->stopping, memory_order_relaxed) == 0) {
        int wait_ms = TAILQ_EMPTY(&worker->openings) ? -1 : 0;
        int count = epoll_wait(worker->epoll_fd, events, EVENTS_MAX, wait_ms);
        if (count > 0)
            work(worker, events, count);
        connection = opening_step(worker);
        if (connection != NULL)
            turn(connection, 0);
    }
    while ((connection = LIST_FIRST(&worker->connections)) != NULL) {
        grpc_go_away(conn_session(connection->conn));
        conn_write(connection->conn, PF_LIMIT_WRITE_BUDGET_BYTES); /* a last word, if it can be said */
        close_connection(connection);
    }
    return NULL;
}

static int watch_always(struct worker *worker, struct watched *watched)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watched};

    return watched->fd < 0 ? -1 : epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, watched->fd, &event);
}

static void close_worker(struct worker *worker)
{
    const int fds[] = {worker->epoll_fd, worker->bell.fd, worker->timer.fd};

    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++) {
        if (fds[i] >= 0)
            close(fds[i]);
    }
    calls_close(worker);
    token_close(worker->hasher);
    free(worker->runs);
}

/* Signals are for the threads above. */
static int start_thread(struct worker *worker, uint32_t number)
{
    char name[16];
    sigset_t all, before;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    snprintf(name, sizeof(name), "pages-%u", number % 1000);
    if (rc == 0)
        pthread_setname_np(worker->thread, name);
    return rc;
}

int listener_start(struct worker *worker, const struct watched *listeners, uint32_t listener_count,
                   uint32_t number)
{
    int rc = -PF_REASON_NO_MEMORY;

    worker->listeners = listeners;
    worker->listener_count = listener_count;
    worker->due_ns = worker->accept_due_ns = NEVER_NS;
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->bell = (struct watched){WATCHED_BELL, eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    /* non-blocking: who sets it anew takes back that it has rung */
    worker->timer.kind = WATCHED_TIMER;
    worker->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    worker->runs = malloc(PF_LIMIT_RUNS_MAX * sizeof(*worker->runs));
    worker->hasher = token_open();
    TAILQ_INIT(&worker->openings);
    if (worker->epoll_fd < 0 || worker->runs == NULL || worker->hasher == NULL || calls_open(worker) != 0)
        goto out;
    if (watch_always(worker, &worker->bell) != 0 || watch_always(worker, &worker->timer) != 0)
        goto out;
    if (watch_listeners(worker, EPOLL_CTL_ADD) != 0) {
        rc = -PF_REASON_BAD_REQUEST; /* no socket */
        goto out;
    }
    rc = start_thread(worker, number) == 0 ? 0 : -PF_REASON_NO_MEMORY;
out:
    if (rc != 0)
        close_worker(worker);
    return rc;
}

void listener_ring(struct worker *worker)
{
    const uint64_t one = 1;

    if (write(worker->bell.fd, &one, sizeof(one)) != (ssize_t)sizeof(one))
        return; /* it rings already */
}

void listener_stop(struct worker *worker)
{
    listener_ring(worker);
    pthread_join(worker->thread, NULL);
}

void listener_close(struct worker *worker)
{
    close_worker(worker);
}
