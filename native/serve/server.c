/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry.h's server half. The handle belongs to the calling thread; workers see the service alone: flags,
 * and the tables of images and sessions.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../pageferry.h"
#include "listener.h"
#include "server.h"
#include "sparse.h"

static void explain(struct pageferry_server_options *options, const char *what, const char *why)
{
    snprintf(options->error, sizeof(options->error), "%s: %s", what, why);
}

/* Non-blocking is the socket's, not the descriptor's: the caller's copy changes with it. */
static int add_listener(struct pageferry_server *server, int listen_fd)
{
    int listening = 0, fd, flags;
    socklen_t length = sizeof(listening);

    if (getsockopt(listen_fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0)
        return -errno;
    if (!listening)
        return -EINVAL;
    fd = fcntl(listen_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    server->listeners[server->listener_count++] = (struct watched){WATCHED_LISTENER, fd};
    flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 ? 0 : -errno;
}

static int add_listeners(struct pageferry_server *server, struct pageferry_server_options *options)
{
    if (options->listen_fd_count == 0 || options->listen_fd_count > LISTENERS_MAX) {
        explain(options, "listening sockets", "1 to 16 are needed");
        return -PF_REASON_BAD_REQUEST;
    }
    for (uint32_t i = 0; i < options->listen_fd_count; i++) {
        int rc = add_listener(server, options->listen_fds[i]);
        if (rc != 0) {
            explain(options, "a listening socket cannot be used", strerror(-rc));
            return rc == -EMFILE ? -PF_REASON_NO_MEMORY : -PF_REASON_BAD_REQUEST;
        }
    }
    return 0;
}

static int start_workers(struct pageferry_server *server, struct pageferry_server_options *options)
{
    uint32_t threads = options->threads == 0 ? 1 : options->threads;
    struct service *service = &server->service;

    if (threads > PF_LIMIT_SERVER_THREADS_MAX) {
        explain(options, "threads", "more than make sense");
        return -PF_REASON_BAD_REQUEST;
    }
    service->workers = calloc(threads, sizeof(*service->workers));
    if (service->workers == NULL) {
        explain(options, "the workers", "no memory");
        return -PF_REASON_NO_MEMORY;
    }
    for (uint32_t i = 0; i < threads; i++) {
        int rc = 0;
        service->workers[i].service = service;
        rc = listener_start(&service->workers[i], server->listeners, server->listener_count, i);
        if (rc != 0) {
            explain(options, "a worker thread cannot be started",
                    "see the limits on memory, threads and files");
            return rc;
        }
        atomic_fetch_add(&service->worker_count, 1);
    }
    return 0;
}

int pageferry_server_open(struct pageferry_server_options *options, struct pageferry_server **out)
{
    struct pageferry_server *server = calloc(1, sizeof(*server));
    int rc = 0;

    options->error[0] = 0;
    *out = NULL;
    if (server == NULL || sessions_open(&server->service.sessions) != 0) {
        explain(options, "the server", "no memory, or no file descriptors");
        free(server);
        return -PF_REASON_NO_MEMORY;
    }
    rc = add_listeners(server, options);
    if (rc == 0)
        rc = start_workers(server, options);
    if (rc == 0)
        *out = server;
    else
        pageferry_server_close(server);
    return rc;
}

int server_add(struct pageferry_server *server, struct image *image, char *error, size_t error_bytes)
{
    int rc = images_add(&server->service.images, image);

    if (rc != 0) {
        sparse_explain(error, error_bytes, rc == -PF_REASON_ALREADY_ATTACHED ? "another image has the name %s"
                       : "one server serves at most 256 images: %s is one too many", image->name);
        image->ops->close(image);
    }
    return rc;
}

int pageferry_server_add_file(struct pageferry_server *server, const char *name, int fd,
                              const struct pageferry_image_facts *facts, const uint64_t *region_pages,
                              uint32_t region_count, const uint64_t *lost, uint32_t lost_count, char *error,
                              size_t error_bytes)
{
    struct image *image = NULL;
    int rc = image_file_open(name, fd, facts, region_pages, region_count, &image, error, error_bytes);

    for (uint32_t i = 0; rc == 0 && i < lost_count; i++)
        rc = image_lose(image, lost[2 * i], lost[2 * i + 1], error, error_bytes);
    if (rc != 0 && image != NULL)
        image->ops->close(image);
    return rc == 0 ? server_add(server, image, error, error_bytes) : rc;
}

void pageferry_server_health(struct pageferry_server *server, uint32_t serving)
{
    atomic_store(&server->service.serving, serving != 0);
    serve_ring_all(&server->service);
}

void pageferry_server_drain(struct pageferry_server *server)
{
    atomic_store(&server->service.draining, 1);
    serve_ring_all(&server->service);
}

uint32_t pageferry_server_open_calls(struct pageferry_server *server)
{
    uint32_t calls = 0;

    for (uint32_t i = 0; i < atomic_load(&server->service.worker_count); i++)
        calls += atomic_load(&server->service.workers[i].owing);
    return calls;
}

static const struct stats *sum_stats(struct pageferry_server *server)
{
    memset(&server->sum, 0, sizeof(server->sum));
    for (uint32_t i = 0; i < atomic_load(&server->service.worker_count); i++)
        stats_sum(&server->sum, &server->service.workers[i].stats);
    return &server->sum;
}

uint32_t pageferry_server_counters(struct pageferry_server *server, uint64_t *values, uint32_t capacity)
{
    const struct stats *sum = sum_stats(server);

    for (uint32_t i = 0; i < STATS_COUNTER_COUNT && i < capacity; i++)
        values[i] = stats_get(sum, (enum stats_counter)i);
    return STATS_COUNTER_COUNT;
}

uint32_t pageferry_server_histogram(struct pageferry_server *server, uint32_t index, uint64_t *values,
                                    uint32_t capacity)
{
    return stats_copy_histogram(sum_stats(server), index, values, capacity);
}

void pageferry_server_close(struct pageferry_server *server)
{
    struct service *service = server == NULL ? NULL : &server->service;

    if (server == NULL)
        return;
    atomic_store(&service->stopping, 1);
    serve_ring_all(service);
    for (uint32_t i = 0; i < atomic_load(&service->worker_count); i++)
        listener_stop(&service->workers[i]);
    for (uint32_t i = 0; i < atomic_load(&service->worker_count); i++)
        listener_close(&service->workers[i]); /* until all have stopped, one may ring another's bell */
    for (uint32_t i = 0; i < server->listener_count; i++)
        close(server->listeners[i].fd);
    images_close(&service->images);
    sessions_close(&service->sessions);
    free(service->workers);
    free(server);
}
