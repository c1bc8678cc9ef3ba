/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads memory that may be missing, or poisoned, so that neither a page that never comes nor a SIGBUS can hurt the
 * process that looks: for the probe, which must get away whatever the kernel answers.
 */
#ifndef PAGEFERRY_TOUCH_H
#define PAGEFERRY_TOUCH_H

#include <pthread.h>
#include <stdint.h>

#define TOUCH_BYTES 2

/*
 * A read on a thread of its own, as a device model's: by the kernel, which copies the bytes to a pipe. A fault waits
 * there for whoever resolves it; where nothing can be had write(2) answers EFAULT, and no signal comes.
 */
struct touch {
    pthread_t thread;
    const void *address;
    int pipe_fds[2]; /* the reading end is readable once the read is over */
    int error;
    uint8_t bytes[TOUCH_BYTES];
};

/* 0, or -errno: then there is nothing to end. */
int touch_begin(struct touch *touch, const void *address);
/* Waits for the read, whose fault must be resolved by now, or its registration ended. 0 and the bytes, or -errno:
 * -EFAULT: the kernel could not read them. */
int touch_end(struct touch *touch);

/* What a read in user mode met. */
struct touch_signal {
    int code;         /* si_code of the SIGBUS: BUS_ADRERR or BUS_MCEERR_AR; 0: there was none */
    unsigned int lsb; /* si_addr_lsb, of BUS_MCEERR_AR */
};

/*
 * Reads a byte in user mode, in a child that shares this address space and has signal dispositions of its own: this
 * process's stay as they are, and so do its other threads. For a page that is there, or poisoned; one that is missing
 * ends the child after a while. 0, or -errno: -ETIMEDOUT: it was neither.
 */
int touch_for_signal(const void *address, struct touch_signal *met);

#endif
