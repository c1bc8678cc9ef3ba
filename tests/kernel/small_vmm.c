/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of a VMM as the shim can see: maps a RAM file and does to it what VMMs do, in the order of its arguments.
 *
 *   small_vmm file PATH STEP...      small_vmm memfd NAME PAGES STEP...
 *
 * A step is NAME or NAME:PAGE. Each prints "NAME RESULT ERRNO"; `read` prints the page's first byte as RESULT.
 * `pause` waits for a line on stdin. `other:PATH` goes on with another RAM file, `back` with the first one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define HUGE (UINT64_C(2) << 20)
#define MADV_COLLAPSE_OF_6_1 25 /* newer than the distribution's headers */

static struct ram {
    int fd;
    size_t bytes;
    uint8_t *start;
} ram, first_ram;

/* Where huge pages of the file could be mapped; NULL for a small one. */
static void *place(size_t bytes)
{
    uintptr_t room;

    if (bytes < HUGE)
        return NULL;
    room = (uintptr_t)mmap(NULL, bytes + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap((void *)room, bytes + HUGE);
    return (void *)((room + HUGE - 1) / HUGE * HUGE);
}

static long map(int flags, size_t bytes)
{
    void *start = mmap(place(bytes), bytes, PROT_READ | PROT_WRITE, flags, ram.fd, 0);

    if (start == MAP_FAILED)
        return -1;
    ram.start = start;
    return 0;
}

/* 0 when a forked child does not have the RAM. */
static long absent_in_a_child(void)
{
    pid_t child = fork();
    int status = 0;

    if (child == 0)
        _exit(msync(ram.start, PAGE, MS_ASYNC) < 0 && errno == ENOMEM ? 0 : 1);
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return -1;
    return WEXITSTATUS(status);
}

/* By a call that other processes are advised by, too. The same answer as madvise. */
static long advise_oneself(int advice)
{
    struct iovec all = {.iov_base = ram.start, .iov_len = ram.bytes};
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    ssize_t done = process_madvise(self, &all, 1, advice, 0);

    close(self);
    return done == (ssize_t)ram.bytes ? 0 : -1;
}

static long step(const char *name, long page)
{
    uint8_t *at = ram.start + page * PAGE;

    if (strcmp(name, "map") == 0)
        return map(MAP_SHARED, ram.bytes);
    if (strcmp(name, "map-private") == 0)
        return map(MAP_PRIVATE, ram.bytes);
    if (strcmp(name, "map-populate") == 0)
        return map(MAP_SHARED | MAP_POPULATE, ram.bytes);
    if (strcmp(name, "map-locked") == 0)
        return map(MAP_SHARED | MAP_LOCKED, ram.bytes);
    if (strcmp(name, "map-half") == 0)
        return map(MAP_SHARED, ram.bytes / 2);
    if (strcmp(name, "read") == 0)
        return *(volatile uint8_t *)at;
    if (strcmp(name, "write") == 0) {
        *(volatile uint8_t *)at = 0xA5;
        return 0;
    }
    if (strcmp(name, "hugepage") == 0)
        return madvise(ram.start, ram.bytes, MADV_HUGEPAGE);
    if (strcmp(name, "nohugepage") == 0)
        return madvise(ram.start, ram.bytes, MADV_NOHUGEPAGE);
    if (strcmp(name, "process-hugepage") == 0)
        return advise_oneself(MADV_HUGEPAGE);
    if (strcmp(name, "collapse") == 0)
        return madvise(ram.start, ram.bytes, MADV_COLLAPSE_OF_6_1);
    if (strcmp(name, "dontfork") == 0)
        return madvise(ram.start, ram.bytes, MADV_DONTFORK);
    if (strcmp(name, "mergeable") == 0)
        return madvise(ram.start, ram.bytes, MADV_MERGEABLE);
    if (strcmp(name, "populate") == 0)
        return madvise(ram.start, ram.bytes, MADV_POPULATE_WRITE);
    if (strcmp(name, "dontneed") == 0)
        return madvise(at, PAGE, MADV_DONTNEED);
    if (strcmp(name, "remove") == 0)
        return madvise(at, PAGE, MADV_REMOVE);
    if (strcmp(name, "punch") == 0)
        return fallocate(ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE, PAGE);
    if (strcmp(name, "punch-odd") == 0) /* from the middle of a page to the middle of the next but one */
        return fallocate(ram.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page * PAGE + PAGE / 2, 2 * PAGE);
    if (strcmp(name, "mlock") == 0)
        return mlock(ram.start, ram.bytes);
    if (strcmp(name, "mlockall") == 0)
        return mlockall(MCL_CURRENT);
    if (strcmp(name, "fork") == 0)
        return absent_in_a_child();
    if (strcmp(name, "back") == 0) {
        ram = first_ram;
        return 0;
    }
    if (strcmp(name, "pause") == 0)
        return getchar() == EOF ? -1 : 0;
    fprintf(stderr, "small_vmm: no step %s\n", name);
    exit(64);
}

static long go_on_with(const char *path)
{
    struct stat file;

    first_ram = ram;
    ram = (struct ram){.fd = open(path, O_RDWR | O_CLOEXEC)};
    if (ram.fd < 0 || fstat(ram.fd, &file) < 0)
        return -1;
    ram.bytes = (size_t)file.st_size;
    return 0;
}

int main(int argc, char **argv)
{
    struct stat file;
    int first = 3;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 3)
        return 64;
    if (strcmp(argv[1], "memfd") == 0) {
        ram.fd = memfd_create(argv[2], MFD_CLOEXEC);
        first = 4;
        if (argc < 4 || ftruncate(ram.fd, atol(argv[3]) * PAGE) < 0)
            return 64;
    } else {
        ram.fd = open(argv[2], O_RDWR | O_CLOEXEC);
    }
    if (ram.fd < 0 || fstat(ram.fd, &file) < 0) {
        perror(argv[2]);
        return 66;
    }
    ram.bytes = (size_t)file.st_size;
    for (int i = first; i < argc; i++) {
        char *colon = strchr(argv[i], ':');
        long page = colon != NULL ? atol(colon + 1) : 0;
        long result;
        if (colon != NULL)
            *colon = '\0';
        errno = 0;
        result = strcmp(argv[i], "other") == 0 && colon != NULL ? go_on_with(colon + 1) : step(argv[i], page);
        printf("%s %ld %s\n", argv[i], result, result < 0 ? strerrorname_np(errno) : "0");
    }
    return 0;
}
