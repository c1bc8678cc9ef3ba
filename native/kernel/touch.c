/* SPDX-License-Identifier: Apache-2.0 */
/* Two ways to read a page without trusting it: see touch.h. */
#include "touch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_STACK_BYTES 65536
#define CHILD_PATIENCE_US 200000
/* An exit status has eight bits: three of the code, five of the lsb. */
#define LSB_BITS 5
#define LSB_MASK 31
#ifndef SA_RESTORER
#define SA_RESTORER 0x04000000
#endif

/* ----------------------------------------------------------------------------------- by the kernel, on a thread */

static void *read_by_pipe(void *argument)
{
    struct touch *touch = argument;
    ssize_t rc = write(touch->pipe_fds[1], touch->address, TOUCH_BYTES);

    touch->error = rc == TOUCH_BYTES ? 0 : rc < 0 ? errno : EFAULT;
    close(touch->pipe_fds[1]);
    return NULL;
}

/* The thread takes no signal: those of the process are for its own threads. */
int touch_begin(struct touch *touch, const void *address)
{
    sigset_t all, before;
    int rc;

    memset(touch, 0, sizeof(*touch));
    touch->address = address;
    if (pipe2(touch->pipe_fds, O_CLOEXEC) < 0)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&touch->thread, NULL, read_by_pipe, touch);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc < 0) {
        close(touch->pipe_fds[0]);
        close(touch->pipe_fds[1]);
    }
    return rc;
}

int touch_end(struct touch *touch)
{
    int rc;

    pthread_join(touch->thread, NULL);
    rc = -touch->error;
    if (rc == 0 && read(touch->pipe_fds[0], touch->bytes, TOUCH_BYTES) != TOUCH_BYTES)
        rc = -EIO;
    close(touch->pipe_fds[0]);
    return rc;
}

/* ---------------------------------------------------------------------------------------- in user mode, in a child */

static void leave(int status)
{
    syscall(SYS_exit_group, status);
}

static void tell_signal(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    leave((info->si_code & 7) << LSB_BITS | (info->si_code == BUS_MCEERR_AR ? info->si_addr_lsb & LSB_MASK : 0));
}

/* As rt_sigaction(2) has it: a libc, or a sanitizer, would note the parent's disposition as changed. */
struct disposition {
    void (*action)(int number, siginfo_t *info, void *context);
    unsigned long flags;
    void (*restorer)(int status);
    uint64_t mask;
};

static void dispose(int number, const struct disposition *disposition)
{
    syscall(SYS_rt_sigaction, number, disposition, NULL, sizeof(disposition->mask));
}

/* The memory is the parent's, which stands still meanwhile; the dispositions and the timer are its own. Nothing has its
 * address taken on this stack: ASan would mark it, nobody would take the mark away, and the next mapping there had it. */
static int read_in_child(void *argument)
{
    static const struct disposition on_bus = {tell_signal, SA_SIGINFO | SA_RESTORER, leave, 0}, by_default = {0};
    static const uint64_t taken = UINT64_C(1) << (SIGBUS - 1) | UINT64_C(1) << (SIGALRM - 1);
    static const struct itimerval patience = {.it_value = {.tv_usec = CHILD_PATIENCE_US}};

    dispose(SIGBUS, &on_bus);
    dispose(SIGALRM, &by_default);
    syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &taken, NULL, sizeof(taken));
    setitimer(ITIMER_REAL, &patience, NULL);
    (void)*(const volatile uint8_t *)argument;
    leave(0);
    return 0;
}

static int told_by(int status, struct touch_signal *met)
{
    if (!WIFEXITED(status))
        return -ETIMEDOUT;
    met->code = WEXITSTATUS(status) >> LSB_BITS;
    met->lsb = (unsigned)WEXITSTATUS(status) & LSB_MASK;
    return 0;
}

/* No signal at its exit, and so no waitpid of somebody else's finds it. */
int touch_for_signal(const void *address, struct touch_signal *met)
{
    uint8_t *stack = mmap(NULL, CHILD_STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigset_t all, before;
    pid_t child, ended;
    int status = 0, rc;

    memset(met, 0, sizeof(*met));
    if (stack == MAP_FAILED)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    child = clone(read_in_child, stack + CHILD_STACK_BYTES, CLONE_VM | CLONE_VFORK, (void *)(uintptr_t)address);
    rc = child < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) {
        do {
            ended = waitpid(child, &status, __WCLONE);
        } while (ended < 0 && errno == EINTR);
        rc = ended < 0 ? -errno : told_by(status, met);
    }
    munmap(stack, CHILD_STACK_BYTES);
    return rc;
}
