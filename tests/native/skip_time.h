/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Time that a test need not sit out: the clock of this process leaps, and who sleeps until some time sleeps until that is
 * so by this clock, no shorter. For programs that are linked with --wrap=clock_gettime,--wrap=epoll_wait
 * (native/Makefile). Other processes, and the kernel, notice nothing.
 */
#ifndef SKIP_TIME_H
#define SKIP_TIME_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <time.h>

#include "client_vm.h"

#define SKIP_MS 10 /* a look: ten times as fast or so. Who answers in time by the real clock does so by this one, too */

static _Atomic uint64_t skipped_ns;

int __real_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __real_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    int rc = __real_clock_gettime(clock, now);
    uint64_t ns = (uint64_t)now->tv_nsec + atomic_load(&skipped_ns);

    if (rc == 0 && clock == CLOCK_MONOTONIC) {
        now->tv_sec += (time_t)(ns / 1000000000);
        now->tv_nsec = (long)(ns % 1000000000);
    }
    return rc;
}

static int64_t skip_clock_ms(void)
{
    struct timespec now;

    __wrap_clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int count, int timeout_ms)
{
    int64_t left = timeout_ms, end = skip_clock_ms() + timeout_ms;
    int rc;

    do {
        rc = __real_epoll_wait(fd, events, count, timeout_ms < 0 ? -1 : left < SKIP_MS ? (int)left : SKIP_MS);
        left = end - skip_clock_ms();
    } while (rc == 0 && left > 0);
    return rc;
}

/* Looks as CLIENT_UNTIL does, while time flies. */
#define SOON(condition) CLIENT_UNTIL((atomic_fetch_add(&skipped_ns, SKIP_MS * UINT64_C(1000000)), (condition)))

#endif
