/* SPDX-License-Identifier: Apache-2.0 */
/*
 * handoff.h: how a floor program comes by the memory of the program that faults. One unix socket, one
 * connection, one message: JSON with one region, and two fds (uffd, memfd). Just enough to start; nothing
 * here is on a page's way.
 */
#ifndef FLOOR_HANDOFF_H
#define FLOOR_HANDOFF_H

#include <stdint.h>

#define FLOOR_PAGE_BYTES 4096u

struct handoff {
    int socket_fd; /* readable (end of file) when the faulting program has exited */
    int uffd;
    int memfd;
    uint64_t base; /* in the address space of the program that faults */
    uint64_t bytes;
};

/* Listens at `path`, takes one connection and its message; or exits with a sentence on stderr. */
struct handoff handoff_take(const char *path);

/* Prints "PROGRAM: what: why" and exits. */
_Noreturn void fail(const char *what);

#endif
