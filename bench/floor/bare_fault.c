/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bare_fault SOCKET: the least a fault on a current page can cost when another process resolves it. The
 * page is in the page cache already; the loop reads the fault and continues it. Three system calls a page:
 * epoll_wait, read, ioctl. No table, no check, no counters: whoever checks more is measured against this.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "handoff.h"

#define EVENTS_AT_ONCE 16

static void continue_page(int uffd, uint64_t address)
{
    struct uffdio_continue page = {.range = {.start = address, .len = FLOOR_PAGE_BYTES}};

    if (ioctl(uffd, UFFDIO_CONTINUE, &page) == 0)
        return;
    if (errno != EEXIST)
        fail("UFFDIO_CONTINUE");
    if (ioctl(uffd, UFFDIO_WAKE, &page.range) < 0)
        fail("UFFDIO_WAKE");
}

/* One read: what is left makes the next epoll_wait return at once. */
static void serve_faults(int uffd)
{
    struct uffd_msg events[EVENTS_AT_ONCE];
    ssize_t length = read(uffd, events, sizeof(events));

    if (length < 0 && errno != EAGAIN)
        fail("read of the uffd");
    for (ssize_t at = 0; at * (ssize_t)sizeof(events[0]) < length; at++)
        continue_page(uffd, events[at].arg.pagefault.address & ~(uint64_t)(FLOOR_PAGE_BYTES - 1));
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: bare_fault SOCKET\n");
        return 64;
    }
    struct handoff handoff = handoff_take(argv[1]);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event of_uffd = {.events = EPOLLIN, .data.fd = handoff.uffd};
    struct epoll_event of_socket = {.events = EPOLLIN, .data.fd = handoff.socket_fd};

    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, handoff.uffd, &of_uffd) < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, handoff.socket_fd, &of_socket) < 0)
        fail("epoll");
    for (bool running = true; running;) {
        struct epoll_event ready[2];
        int count = epoll_wait(epoll_fd, ready, 2, -1);
        if (count < 0 && errno != EINTR)
            fail("epoll_wait");
        for (int at = 0; at < count; at++) {
            if (ready[at].data.fd == handoff.uffd)
                serve_faults(handoff.uffd);
            else
                running = false; /* the faulting program has exited */
        }
    }
    return 0;
}
