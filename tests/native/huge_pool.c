/* SPDX-License-Identifier: Apache-2.0 */
/* Huge pages for a test: see huge_pool.h. */
#include "huge_pool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
#define LOCKS "/tmp/pageferry-settings"
#define LOCK LOCKS "/sys-kernel-mm-hugepages-hugepages-2048kB-nr_hugepages"

static bool read_pool(int fd, int64_t *pages)
{
    char text[32] = "";

    if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
        return false;
    *pages = strtoll(text, NULL, 10);
    return true;
}

/* How many it has become more by; 0: nothing could be changed. */
static int64_t change(int64_t more)
{
    int64_t before = 0, after = 0;
    int lock, pool = open(POOL, O_RDWR | O_CLOEXEC);

    mkdir(LOCKS, 0777);
    lock = open(LOCK, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock >= 0)
        flock(lock, LOCK_EX);
    if (pool >= 0 && read_pool(pool, &before)) {
        after = before;
        if (dprintf(pool, "%" PRId64, before + more > 0 ? before + more : 0) > 0)
            read_pool(pool, &after);
    }
    if (pool >= 0)
        close(pool);
    if (lock >= 0)
        close(lock);
    return after - before;
}

/* Waits for the end of who holds the other end of the pipe. */
static _Noreturn void guard(int end, int64_t pages)
{
    static const int deaf[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};
    char byte;

    setsid();
    for (size_t i = 0; i < sizeof(deaf) / sizeof(deaf[0]); i++)
        signal(deaf[i], SIG_IGN);
    for (int fd = 0; fd <= STDERR_FILENO; fd++) /* who waits for the test's output is not to wait for this */
        close(fd);
    while (read(end, &byte, 1) < 0 && errno == EINTR)
        ;
    change(-pages);
    _exit(0);
}

bool huge_pool_add(uint64_t pages)
{
    int ends[2];
    int64_t got;

    if (pipe2(ends, O_CLOEXEC) < 0) /* ends[1] stays open for this process's life */
        return false;
    got = change((int64_t)pages);
    if (got > 0 && fork() == 0) {
        close(ends[1]);
        guard(ends[0], got);
    }
    close(ends[0]);
    return got >= (int64_t)pages;
}
