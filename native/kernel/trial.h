/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One kind of memory on trial, on scratch pages of our own: what the kernel says it can do there, and whether it does.
 *
 * A kernel that lacks something says so in a way that is foreseen at that step, and the trial ends ABSENT. Whatever
 * else a call answers is FAILED: a machine with a fault, or without memory, must not look like one that is only old.
 * The errnos are read here, and not through kernel_ops, which does not tell the two apart.
 */
#ifndef PAGEFERRY_TRIAL_H
#define PAGEFERRY_TRIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "touch.h"

enum trial_kind {
    TRIAL_MEMFD = 0,
    TRIAL_TMPFS,    /* a file in /dev/shm */
    TRIAL_PRIVATE,  /* anonymous */
    TRIAL_HUGE_SHARED, /* 2 MiB pages of a pool, a memfd; takes one of them for the time of the trial */
    TRIAL_HUGE_PRIVATE,
    TRIAL_KIND_COUNT
};

enum trial_end {
    TRIAL_WORKS = 0,
    TRIAL_ABSENT,
    TRIAL_FAILED,
    TRIAL_UNTRIED /* there is nothing here to try it on: no page of the pool is free */
};

struct trial {
    enum trial_end end;
    const char *step; /* the one that ended it */
    int error;        /* what it answered: -errno. -ENOMSG: no event came; -EBADMSG: another one, or other bytes */
    uint64_t calls;   /* bits _UFFDIO_*: what REGISTER offers */
    bool told;        /* a fault that the kernel took for us was reported */
    enum trial_end poison; /* UFFDIO_POISON, and what a read in user mode then meets */
    int poison_error;
    struct touch_signal signal;
};

/* `device_fd` as in create.h. */
void trial_run(enum trial_kind kind, int device_fd, struct trial *trial);

/*
 * Does this userfaultfd of our own (before its handshake; stays the caller's) report faults that the kernel takes for
 * us? 0: yes. -EFAULT: no, it is for user mode alone, and a read by the kernel fails there. Or another -errno.
 */
int trial_kernel_fault(int uffd);

/* Are the writes of a page seen from outside, that page's and no other's? */
void trial_dirty(int device_fd, struct trial *trial);

/* "WAKE COPY ZEROPAGE": the calls by name. Cut where there is no room. */
void trial_call_names(uint64_t calls, char *text, size_t capacity);
/* The error in words. */
const char *trial_error_text(int error);

#endif
