/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shim's process_madvise: since Linux 6.13 a process may give itself any advice by it, so it must not be a way
 * around the shim's madvise. Advice to other processes goes to the kernel as it is.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
/* Descriptors that mean the caller itself, on newer kernels: PIDFD_SELF_THREAD, PIDFD_SELF_THREAD_GROUP. */
#define SELF_THREAD (-10000)
#define SELF_PROCESS (-10001)

static bool means_us(int pidfd)
{
    char path[64], text[512], ours[32];
    ssize_t length = 0;
    int fd;

    if (pidfd == SELF_THREAD || pidfd == SELF_PROCESS)
        return true;
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
    snprintf(ours, sizeof(ours), "Pid:\t%d\n", (int)getpid());
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        length = read(fd, text, sizeof(text) - 1);
        close(fd);
    }
    text[length > 0 ? length : 0] = '\0';
    return strstr(text, ours) != NULL;
}

/* Piece by piece; what was done before one failed counts, as the kernel has it. */
static ssize_t advise_ourselves(const struct iovec *pieces, size_t count, int advice)
{
    ssize_t done_bytes = 0;

    for (size_t i = 0; i < count; i++) {
        if (madvise(pieces[i].iov_base, pieces[i].iov_len, advice) < 0)
            return done_bytes > 0 ? done_bytes : -1;
        done_bytes += (ssize_t)pieces[i].iov_len;
    }
    return done_bytes;
}

EXPORT ssize_t process_madvise(int pidfd, const struct iovec *pieces, size_t count, int advice, unsigned flags)
{
    if (flags == 0 && means_us(pidfd))
        return advise_ourselves(pieces, count, advice);
    return syscall(SYS_process_madvise, pidfd, pieces, count, advice, flags);
}
