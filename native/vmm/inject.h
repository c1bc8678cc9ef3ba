/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls of another process, made for it: its main thread is stopped by ptrace, makes them on its own memory and
 * descriptors, and goes on where it was as if nothing had been; the few calls that end with EINTR after SIGSTOP and
 * SIGCONT (signal(7): epoll_wait, sigwaitinfo) do so here too. Other threads run meanwhile.
 *
 * x86-64. All calls on one injection come from the thread that has begun it: ptrace belongs to a thread, and should
 * that thread end, the kernel lets the process go by itself.
 */
#ifndef PAGEFERRY_INJECT_H
#define PAGEFERRY_INJECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

struct inject {
    pid_t pid;
    struct user_regs_struct before; /* with which it goes on */
    uint64_t signals_before;        /* blocked, bit N - 1 for signal N */
    uint64_t instruction;           /* a `syscall` in its vdso */
};

/*
 * Stops it. 0, and then inject_end() is owed; or -EPERM (no right to trace it), -ESRCH (gone), -EBUSY (it is stopped,
 * or traced by somebody), -ETIMEDOUT (it is in a call that nothing interrupts: end this thread, which lets it go),
 * -ENOSYS (no x86-64 process), or another -errno.
 */
int inject_begin(struct inject *inject, pid_t pid);

/* What the call has returned there: a result, or -errno of the call. -ESRCH: the process has ended. */
int64_t inject_call(struct inject *inject, long number, const uint64_t arguments[6]);

/* Into, and out of, its memory. 0 or -errno. */
int inject_write(const struct inject *inject, uint64_t address, const void *bytes, size_t length_bytes);
int inject_read(const struct inject *inject, uint64_t address, void *bytes, size_t length_bytes);

/* Lets it go on. 0, or -ESRCH. */
int inject_end(struct inject *inject);

#endif
