/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw_tcp IMAGE [PORT]: the least a page server can be. A request is 8 bytes, the page's index; the answer
 * is its 4096 bytes and nothing else. One thread, one epoll, the image mapped and populated. Three system
 * calls a page: epoll_wait, read, writev. Answers keep the order of the requests; a reader that stalls
 * gets no more until it reads. Listens on 127.0.0.1 and prints the port.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "handoff.h"

#define REQUESTS_AT_ONCE 64
#define READY_AT_ONCE 16

struct image {
    const uint8_t *bytes;
    uint64_t pages;
};

struct connection {
    int fd;
    bool stalled;                         /* answers are left over: EPOLLOUT is watched, nothing is read */
    size_t have_bytes;                    /* of requests */
    uint64_t requests[REQUESTS_AT_ONCE];
    struct iovec answers[REQUESTS_AT_ONCE];
    int first_answer;                     /* [first_answer, answer_count) are still to be sent */
    int answer_count;
};

static struct image map_image(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat facts;

    if (fd < 0 || fstat(fd, &facts) < 0)
        fail(path);
    if (facts.st_size == 0 || facts.st_size % FLOOR_PAGE_BYTES != 0) {
        errno = EINVAL;
        fail(path);
    }
    void *bytes = mmap(NULL, (size_t)facts.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (bytes == MAP_FAILED)
        fail("mmap");
    close(fd);
    return (struct image){.bytes = bytes, .pages = (uint64_t)facts.st_size / FLOOR_PAGE_BYTES};
}

static int listen_on(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        fail("listen");
    printf("%u\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void watch(int epoll_fd, int operation, struct connection *connection, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = connection};

    if (epoll_ctl(epoll_fd, operation, connection->fd, &event) < 0)
        fail("epoll_ctl");
}

static void take_connection(int epoll_fd, int listener)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    int one = 1;

    if (connection == NULL)
        fail("calloc");
    connection->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection->fd < 0 || setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
        fail("accept");
    watch(epoll_fd, EPOLL_CTL_ADD, connection, EPOLLIN);
}

/* Sends what is queued. false: the peer is gone. */
static bool send_answers(int epoll_fd, struct connection *connection)
{
    while (connection->first_answer < connection->answer_count) {
        ssize_t sent = writev(connection->fd, connection->answers + connection->first_answer,
                              connection->answer_count - connection->first_answer);
        if (sent < 0 && errno != EAGAIN)
            return false;
        if (sent < 0) {
            if (!connection->stalled)
                watch(epoll_fd, EPOLL_CTL_MOD, connection, EPOLLOUT);
            connection->stalled = true;
            return true;
        }
        while (sent > 0) {
            struct iovec *answer = &connection->answers[connection->first_answer];
            size_t part = (size_t)sent < answer->iov_len ? (size_t)sent : answer->iov_len;
            answer->iov_base = (uint8_t *)answer->iov_base + part;
            answer->iov_len -= part;
            sent -= (ssize_t)part;
            connection->first_answer += answer->iov_len == 0;
        }
    }
    if (connection->stalled)
        watch(epoll_fd, EPOLL_CTL_MOD, connection, EPOLLIN);
    connection->stalled = false;
    return true;
}

/* Turns the whole requests that are here into answers. false: a page outside the image. */
static bool queue_answers(const struct image *image, struct connection *connection)
{
    size_t count = connection->have_bytes / sizeof(uint64_t);

    for (size_t at = 0; at < count; at++) {
        if (connection->requests[at] >= image->pages)
            return false;
        const uint8_t *page = image->bytes + connection->requests[at] * FLOOR_PAGE_BYTES;
        connection->answers[at] = (struct iovec){.iov_base = (void *)page, .iov_len = FLOOR_PAGE_BYTES};
    }
    connection->first_answer = 0;
    connection->answer_count = (int)count;
    connection->have_bytes -= count * sizeof(uint64_t);
    memmove(connection->requests, connection->requests + count, connection->have_bytes);
    return true;
}

/* One turn of a connection: one read and one writev when nothing stalls. false: it is over. */
static bool serve(int epoll_fd, const struct image *image, struct connection *connection)
{
    if (connection->stalled)
        return send_answers(epoll_fd, connection);
    ssize_t length = read(connection->fd, (uint8_t *)connection->requests + connection->have_bytes,
                          sizeof(connection->requests) - connection->have_bytes);
    if (length <= 0)
        return length < 0 && errno == EAGAIN;
    connection->have_bytes += (size_t)length;
    return queue_answers(image, connection) && send_answers(epoll_fd, connection);
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: raw_tcp IMAGE [PORT]\n");
        return 64;
    }
    struct image image = map_image(argv[1]);
    int listener = listen_on(argc == 3 ? (uint16_t)atoi(argv[2]) : 0);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event of_listener = {.events = EPOLLIN, .data.ptr = NULL};

    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &of_listener) < 0)
        fail("epoll");
    for (;;) {
        struct epoll_event ready[READY_AT_ONCE];
        int count = epoll_wait(epoll_fd, ready, READY_AT_ONCE, -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int at = 0; at < count; at++) {
            struct connection *connection = ready[at].data.ptr;
            if (connection == NULL) {
                take_connection(epoll_fd, listener);
            } else if (!serve(epoll_fd, &image, connection)) {
                close(connection->fd);
                free(connection);
            }
        }
    }
}
