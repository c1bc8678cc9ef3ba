/* SPDX-License-Identifier: Apache-2.0 */
/* See inject.h. Which stops there are, and in what order they come: ptrace(2). */
#include "inject.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAIT_STEP_US 50
#define WAIT_STEPS_MAX (2 * 1000 * 1000 / WAIT_STEP_US)
#define SYSCALL_STOP (SIGTRAP | 0x80) /* PTRACE_O_TRACESYSGOOD */
#define VDSO_BYTES_MAX 16384
#define USER_CODE_64_BIT 0x33 /* cs */

#if defined(__x86_64__)

static int done(long rc)
{
    return rc < 0 ? -errno : 0;
}

/* Until it stops. */
static int wait_stopped(pid_t pid, int *status)
{
    for (int step = 0; step < WAIT_STEPS_MAX; step++) {
        pid_t found = waitpid(pid, status, __WALL | WNOHANG);
        if (found < 0 && errno != EINTR)
            return -errno;
        if (found == pid)
            return WIFSTOPPED(*status) ? 0 : -ESRCH;
        usleep(WAIT_STEP_US);
    }
    return -ETIMEDOUT;
}

/* A signal that is on its way is delivered first. */
static int interrupted(pid_t pid)
{
    int status, rc = done(ptrace(PTRACE_INTERRUPT, pid, 0, 0));

    while (rc == 0 && (rc = wait_stopped(pid, &status)) == 0 && status >> 16 != PTRACE_EVENT_STOP)
        rc = done(ptrace(PTRACE_CONT, pid, 0, (long)WSTOPSIG(status)));
    if (rc == 0 && WSTOPSIG(status) != SIGTRAP)
        rc = -EBUSY; /* a group stop: it was stopped before */
    return rc;
}

/* --------------------------------------------------------------------------------------------- where it calls from */

static uint64_t vdso_of(pid_t pid)
{
    char path[64], line[512];
    unsigned long start, found = 0;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    maps = fopen(path, "re");
    if (maps == NULL)
        return 0;
    while (found == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "[vdso]") != NULL && sscanf(line, "%lx-", &start) == 1)
            found = start;
    fclose(maps);
    return found;
}

static int find_instruction(struct inject *inject)
{
    static const uint8_t instruction[] = {0x0f, 0x05};
    uint8_t code[VDSO_BYTES_MAX];
    uint64_t start = vdso_of(inject->pid);
    size_t length = 0;
    const uint8_t *found;

    while (start != 0 && length < sizeof(code) && inject_read(inject, start + length, code + length, 4096) == 0)
        length += 4096;
    found = memmem(code, length, instruction, sizeof(instruction));
    if (found == NULL)
        return -ENOSYS;
    inject->instruction = start + (uint64_t)(found - code);
    return 0;
}

/* ------------------------------------------------------------------------------------------------ registers, signals */

/* A call that the stop has interrupted is begun again, as the kernel would have done. */
static void begin_call_again(struct user_regs_struct *registers)
{
    int64_t result = (int64_t)registers->rax;

    if ((int64_t)registers->orig_rax < 0)
        return;
    if (result == -512 || result == -513 || result == -514) { /* ERESTARTSYS, NOINTR, NOHAND: inside the kernel only */
        registers->rax = registers->orig_rax;
        registers->rip -= 2;
    } else if (result == -516) { /* ERESTART_RESTARTBLOCK: it remembers how long it has waited */
        registers->rax = SYS_restart_syscall;
        registers->rip -= 2;
    }
    registers->orig_rax = (unsigned long long)-1;
}

static int take_state(struct inject *inject)
{
    uint64_t all = ~UINT64_C(0);
    int rc = done(ptrace(PTRACE_GETREGS, inject->pid, 0, &inject->before));

    if (rc == 0 && inject->before.cs != USER_CODE_64_BIT)
        rc = -ENOSYS;
    if (rc == 0)
        rc = done(ptrace(PTRACE_GETSIGMASK, inject->pid, sizeof(all), &inject->signals_before));
    if (rc == 0)
        rc = done(ptrace(PTRACE_SETSIGMASK, inject->pid, sizeof(all), &all));
    begin_call_again(&inject->before);
    return rc;
}

int inject_begin(struct inject *inject, pid_t pid)
{
    int rc;

    memset(inject, 0, sizeof(*inject));
    inject->pid = pid;
    rc = done(ptrace(PTRACE_SEIZE, pid, 0, (long)PTRACE_O_TRACESYSGOOD));
    if (rc < 0)
        return rc;
    rc = interrupted(pid);
    if (rc == 0)
        rc = find_instruction(inject);
    if (rc == 0)
        rc = take_state(inject);
    if (rc < 0)
        ptrace(PTRACE_DETACH, pid, 0, 0);
    return rc;
}

int inject_end(struct inject *inject)
{
    int rc = done(ptrace(PTRACE_SETREGS, inject->pid, 0, &inject->before));

    if (rc == 0)
        rc = done(ptrace(PTRACE_SETSIGMASK, inject->pid, sizeof(inject->signals_before), &inject->signals_before));
    if (rc == 0)
        rc = done(ptrace(PTRACE_DETACH, inject->pid, 0, 0));
    return rc;
}

/* ------------------------------------------------------------------------------------------------------------ a call */

/* On to the next edge of a system call. A stop that somebody wants of the whole process waits until we are gone. */
static int to_edge(pid_t pid)
{
    int status = 0, rc;

    do {
        rc = done(ptrace(PTRACE_SYSCALL, pid, 0, 0));
        if (rc == 0)
            rc = wait_stopped(pid, &status);
    } while (rc == 0 && WSTOPSIG(status) != SYSCALL_STOP);
    return rc;
}

int64_t inject_call(struct inject *inject, long number, const uint64_t arguments[6])
{
    struct user_regs_struct registers = inject->before;
    int rc;

    registers.rip = inject->instruction;
    registers.rax = (unsigned long long)number;
    registers.orig_rax = (unsigned long long)-1;
    registers.rdi = arguments[0];
    registers.rsi = arguments[1];
    registers.rdx = arguments[2];
    registers.r10 = arguments[3];
    registers.r8 = arguments[4];
    registers.r9 = arguments[5];
    rc = done(ptrace(PTRACE_SETREGS, inject->pid, 0, &registers));
    if (rc == 0)
        rc = to_edge(inject->pid);
    if (rc == 0)
        rc = to_edge(inject->pid);
    if (rc == 0)
        rc = done(ptrace(PTRACE_GETREGS, inject->pid, 0, &registers));
    return rc < 0 ? rc : (int64_t)registers.rax;
}

#else

int inject_begin(struct inject *inject, pid_t pid)
{
    (void)inject;
    (void)pid;
    return -ENOSYS;
}

int inject_end(struct inject *inject)
{
    (void)inject;
    return -ENOSYS;
}

int64_t inject_call(struct inject *inject, long number, const uint64_t arguments[6])
{
    (void)inject;
    (void)number;
    (void)arguments;
    return -ENOSYS;
}

#endif

int inject_write(const struct inject *inject, uint64_t address, const void *bytes, size_t length_bytes)
{
    struct iovec here = {(void *)(uintptr_t)bytes, length_bytes}, there = {(void *)(uintptr_t)address, length_bytes};

    return process_vm_writev(inject->pid, &here, 1, &there, 1, 0) == (ssize_t)length_bytes ? 0 : -EFAULT;
}

int inject_read(const struct inject *inject, uint64_t address, void *bytes, size_t length_bytes)
{
    struct iovec here = {bytes, length_bytes}, there = {(void *)(uintptr_t)address, length_bytes};

    return process_vm_readv(inject->pid, &here, 1, &there, 1, 0) == (ssize_t)length_bytes ? 0 : -EFAULT;
}
