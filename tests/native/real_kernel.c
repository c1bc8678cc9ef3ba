/* SPDX-License-Identifier: Apache-2.0 */
/* Linux with less than it has, for tests: a small tmpfs, a call that it lacks, a process apart. See real_vm.h. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "real_vm.h"

static int file_on(const char *kind, const char *size, const char *option, const char *value)
{
    int context = fsopen(kind, FSOPEN_CLOEXEC);
    int mount = -1, file = -1;

    if (context < 0)
        return -errno;
    if (fsconfig(context, FSCONFIG_SET_STRING, "size", size, 0) == 0 &&
        (option == NULL || fsconfig(context, FSCONFIG_SET_STRING, option, value, 0) == 0) &&
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mount = fsmount(context, FSMOUNT_CLOEXEC, 0);
    if (mount >= 0)
        file = openat(mount, "ram", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0)
        file = -errno;
    if (mount >= 0)
        close(mount);
    close(context);
    return file;
}

int real_tmpfs_file(const char *size, const char *option, const char *value)
{
    return file_on("tmpfs", size, option, value);
}

int real_hugetlbfs_file(const char *size)
{
    return file_on("hugetlbfs", size, "pagesize", "2M");
}

/* The system call of this number, where its argument of that index has this value. */
static bool deny(unsigned number, unsigned index, unsigned value, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, /* its low half: little endian */
                 (unsigned)(offsetof(struct seccomp_data, args) + index * sizeof(uint64_t))),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(code) / sizeof(code[0]), .filter = code};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

bool real_deny_ioctl(unsigned request, int error)
{
    return deny(SYS_ioctl, 1, request, error);
}

bool real_deny_advice(int advice, int error)
{
    return deny(SYS_madvise, 2, (unsigned)advice, error);
}

bool real_apart(int (*check)(void))
{
    int status = -1;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        status = check();
        fflush(stdout);
        _exit(status);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}
