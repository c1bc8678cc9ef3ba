/* SPDX-License-Identifier: Apache-2.0 */
/*
 * remote_fault SOCKET HOST PORT [copy|continue]: the least a fault on a page of another host can cost: a
 * bare uffd loop and raw TCP in one program and one thread. Read the fault, write 8 bytes (the page's
 * index), read 4096, place them. Six system calls a page with copy (epoll_wait, read, write, epoll_wait,
 * read, ioctl), one more with continue (pwrite to the memfd, then UFFDIO_CONTINUE). The server is raw_tcp;
 * it answers in the order of the requests, so what is outstanding is a queue, and any number of threads
 * may fault.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "handoff.h"

#define EVENTS_AT_ONCE 16
#define QUEUE_PAGES 1024u /* a power of two; more threads than this cannot fault */

struct fetcher {
    struct handoff handoff;
    int server_fd;
    bool by_copy;
    uint64_t queue[QUEUE_PAGES]; /* pages asked, oldest first: [taken, asked) */
    uint64_t asked;
    uint64_t taken;
    size_t have_bytes;           /* of the page at the head of the queue */
    uint8_t page[FLOOR_PAGE_BYTES] __attribute__((aligned(FLOOR_PAGE_BYTES)));
};

static int dial(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        errno = EINVAL;
        fail(host);
    }
    if (fd < 0 || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        fail("connect");
    return fd;
}

/* Several threads may have faulted on one page: each message is a request then, which is harmless. */
static void ask_for_faults(struct fetcher *fetcher)
{
    struct uffd_msg events[EVENTS_AT_ONCE];
    uint64_t wanted[EVENTS_AT_ONCE];
    ssize_t length = read(fetcher->handoff.uffd, events, sizeof(events));

    if (length < 0 && errno != EAGAIN)
        fail("read of the uffd");
    if (length <= 0)
        return;
    size_t count = (size_t)length / sizeof(events[0]);
    for (size_t at = 0; at < count; at++) {
        wanted[at] = (events[at].arg.pagefault.address - fetcher->handoff.base) / FLOOR_PAGE_BYTES;
        if (fetcher->asked - fetcher->taken == QUEUE_PAGES) {
            errno = ENOBUFS;
            fail("too many faults at once");
        }
        fetcher->queue[fetcher->asked++ % QUEUE_PAGES] = wanted[at];
    }
    if (write(fetcher->server_fd, wanted, count * sizeof(wanted[0])) != (ssize_t)(count * sizeof(wanted[0])))
        fail("write of a request");
}

static int place_by_copy(struct fetcher *fetcher, uint64_t address)
{
    struct uffdio_copy copy = {
        .dst = address, .src = (uint64_t)(uintptr_t)fetcher->page, .len = FLOOR_PAGE_BYTES};

    return ioctl(fetcher->handoff.uffd, UFFDIO_COPY, &copy);
}

static int place_by_continue(struct fetcher *fetcher, uint64_t address)
{
    struct uffdio_continue page = {.range = {.start = address, .len = FLOOR_PAGE_BYTES}};
    off_t offset = (off_t)(address - fetcher->handoff.base);

    if (pwrite(fetcher->handoff.memfd, fetcher->page, FLOOR_PAGE_BYTES, offset) != FLOOR_PAGE_BYTES)
        fail("pwrite to the memfd");
    return ioctl(fetcher->handoff.uffd, UFFDIO_CONTINUE, &page);
}

static void place(struct fetcher *fetcher)
{
    uint64_t page = fetcher->queue[fetcher->taken++ % QUEUE_PAGES];
    uint64_t address = fetcher->handoff.base + page * FLOOR_PAGE_BYTES;
    int placed = fetcher->by_copy ? place_by_copy(fetcher, address) : place_by_continue(fetcher, address);
    struct uffdio_range range = {.start = address, .len = FLOOR_PAGE_BYTES};

    if (placed < 0 && errno != EEXIST)
        fail(fetcher->by_copy ? "UFFDIO_COPY" : "UFFDIO_CONTINUE");
    if (placed < 0 && ioctl(fetcher->handoff.uffd, UFFDIO_WAKE, &range) < 0)
        fail("UFFDIO_WAKE");
}

/* One read a turn: an answer that came in parts is finished by the next turn. */
static void take_answer(struct fetcher *fetcher)
{
    ssize_t length = read(fetcher->server_fd, fetcher->page + fetcher->have_bytes,
                          FLOOR_PAGE_BYTES - fetcher->have_bytes);

    if (length <= 0 || fetcher->taken == fetcher->asked) {
        errno = length < 0 ? errno : EPIPE;
        fail("read of an answer");
    }
    fetcher->have_bytes += (size_t)length;
    if (fetcher->have_bytes == FLOOR_PAGE_BYTES) {
        fetcher->have_bytes = 0;
        place(fetcher);
    }
}

static void watch(int epoll_fd, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
}

int main(int argc, char **argv)
{
    static struct fetcher fetcher;
    bool by_continue = argc == 5 && strcmp(argv[4], "continue") == 0;

    if (argc != 4 && !by_continue && (argc != 5 || strcmp(argv[4], "copy") != 0)) {
        fprintf(stderr, "usage: remote_fault SOCKET HOST PORT [copy|continue]\n");
        return 64;
    }
    fetcher.by_copy = !by_continue;
    fetcher.server_fd = dial(argv[2], argv[3]);
    fetcher.handoff = handoff_take(argv[1]);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        fail("epoll_create1");
    watch(epoll_fd, fetcher.handoff.uffd);
    watch(epoll_fd, fetcher.server_fd);
    watch(epoll_fd, fetcher.handoff.socket_fd);
    for (bool running = true; running;) {
        struct epoll_event ready[3];
        int count = epoll_wait(epoll_fd, ready, 3, -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int at = 0; at < count; at++) {
            if (ready[at].data.fd == fetcher.handoff.uffd)
                ask_for_faults(&fetcher);
            else if (ready[at].data.fd == fetcher.server_fd)
                take_answer(&fetcher);
            else
                running = false; /* the faulting program has exited */
        }
    }
    return 0;
}
