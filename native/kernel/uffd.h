/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real kernel_ops: one userfaultfd of a VMM and, for shared memory, the file behind it. The meaning of every
 * errno of every uffd call is decided in uffd.c and nowhere else; those of the page cache are view.c's.
 */
#ifndef PAGEFERRY_UFFD_H
#define PAGEFERRY_UFFD_H

#include <stdbool.h>
#include <sys/types.h>

#include "kernel_ops.h"
#include "view.h"

struct uffd {
    int fd;
    int backing_fd;   /* -1: private memory */
    pid_t vmm_pid;    /* private units: to look whether one is mapped; 0: nobody may */
    struct view view; /* view_open: where it is not all zeros, which is small pages and pwrite */
};

extern const struct kernel_ops uffd_kernel_ops; /* `kernel` is a struct uffd */

/* Whether this kernel has UFFDIO_POISON (Linux 6.6). Touches nothing. */
bool uffd_can_poison(const struct uffd *uffd);

/* Ends the registration of a span and wakes who sleeps there. 0 or -errno; a VMM that is gone is 0. */
int uffd_unregister(struct uffd *uffd, const struct kernel_span *span);

#endif
