/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this machine can do for a VM's memory, a second time: nothing of ours is linked or included, and each thing is
 * tried in another way than the probe tries it (faults are taken in user mode, poison is met in this very process,
 * dirty pages are protected page by page). One line a fact, "name answer ...", for tests/kernel/test_doctor.py.
 *
 *     verdicts [FD of an open /dev/userfaultfd]
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define HUGE_BYTES (2 << 20)
#define NEW_FROM_DEVICE 0xaa00
#define FEATURE_WP_UNPOPULATED (1 << 13)
#define FEATURE_WP_ASYNC (1 << 15)
#define POISON_CALL 0xc020aa08
#define PAGEMAP_SCAN_CALL 0xc0606610
#define ADVICE_DONTNEED_LOCKED 24
#define ADVICE_PAGEOUT 21

struct poison {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};

struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned;
};

static int device_fd = -1;

static const char *word(int error)
{
    return error == 0 ? "yes" : strerrorname_np(error);
}

static int userfaultfd(int flags)
{
    flags |= O_CLOEXEC | O_NONBLOCK;
    return device_fd >= 0 ? ioctl(device_fd, NEW_FROM_DEVICE, flags) : (int)syscall(SYS_userfaultfd, flags);
}

static int ready_userfaultfd(uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    int fd = userfaultfd(0);

    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* -------------------------------------------------------------------------------------------------- userfaultfd */

static void say_handshake(void)
{
    struct uffdio_api learnt = {.api = UFFD_API}, unknown = {.api = UFFD_API, .features = UINT64_C(1) << 62};
    int first = userfaultfd(0), second = userfaultfd(0);
    int rc = ioctl(first, UFFDIO_API, &learnt), rc_unknown = ioctl(second, UFFDIO_API, &unknown);

    printf("handshake %s 0x%llx %s\n", word(rc < 0 ? errno : 0), (unsigned long long)learnt.features,
           rc_unknown < 0 ? "refuses" : "takes");
    close(first);
    close(second);
}

/* A read of an absent page by write(2): EFAULT at once, if the userfaultfd is blind to it; else it waits for us, and
 * passes when the last descriptor is closed. */
static int read_pipe[2];

static void *writes(void *argument)
{
    return (void *)(uintptr_t)(write(read_pipe[1], argument, 1) < 0 ? errno : 0);
}

static void say_kernel_faults(void)
{
    struct uffdio_api api = {.api = UFFD_API};
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register registered = {.range = {(uintptr_t)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    struct pollfd ready = {.events = POLLIN};
    int fd = userfaultfd(0), told;
    pthread_t thread;
    void *error;

    if (fd < 0)
        fd = (int)syscall(SYS_userfaultfd, O_NONBLOCK | UFFD_USER_MODE_ONLY);
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0 || ioctl(fd, UFFDIO_REGISTER, &registered) < 0 ||
        pipe(read_pipe) < 0 || pthread_create(&thread, NULL, writes, page) != 0) {
        printf("kernel_faults untried\n");
        return;
    }
    ready.fd = fd;
    told = poll(&ready, 1, 300);
    close(fd);
    pthread_join(thread, &error);
    printf("kernel_faults %s %s\n", told == 1 ? "told" : "untold", word((int)(uintptr_t)error));
    munmap(page, PAGE);
}

/* ---------------------------------------------------------------------------------------------- kinds of memory */

struct memory {
    const char *name;
    size_t unit;
    bool shared;
    int fd;
    uint8_t *start;
    uint8_t *alias;
    int uffd;
    uint64_t calls;
};

static bool map_memory(struct memory *memory)
{
    bool huge = memory->unit != PAGE;
    int flags = memory->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB | 21 << 26 : 0);
    char path[64];

    memory->fd = -1;
    if (memory->shared && strcmp(memory->name, "tmpfs_memory") == 0) {
        snprintf(path, sizeof(path), "/dev/shm/pageferry-verdicts-%d", getpid());
        memory->fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0600);
        unlink(path);
    } else if (memory->shared) {
        memory->fd = memfd_create("verdicts", huge ? MFD_HUGETLB | 21u << 26 : 0);
    }
    if (memory->shared && (memory->fd < 0 || ftruncate(memory->fd, (off_t)memory->unit) < 0))
        return false;
    memory->start = mmap(NULL, memory->unit, PROT_READ | PROT_WRITE, flags, memory->fd, 0);
    if (memory->start == MAP_FAILED)
        return false;
    memory->alias = memory->shared ? mmap(NULL, memory->unit, PROT_READ | PROT_WRITE, flags, memory->fd, 0) : NULL;
    return memory->alias != MAP_FAILED;
}

static bool register_memory(struct memory *memory)
{
    struct uffdio_register arg = {
        .range = {(uintptr_t)memory->start, memory->unit},
        .mode = UFFDIO_REGISTER_MODE_MISSING | (memory->shared ? UFFDIO_REGISTER_MODE_MINOR : 0),
    };
    bool good;

    memory->uffd = ready_userfaultfd(0);
    good = memory->uffd >= 0 && ioctl(memory->uffd, UFFDIO_REGISTER, &arg) == 0;
    memory->calls = good ? arg.ioctls : 0;
    return good;
}

static void *reads(void *argument)
{
    return (void *)(uintptr_t) * (volatile uint8_t *)argument;
}

/* A thread reads the page in user mode. The kind of event that stops it, or '-'. */
static char event_of(struct memory *memory, pthread_t *thread)
{
    struct pollfd ready = {.fd = memory->uffd, .events = POLLIN};
    struct uffd_msg message;

    if (pthread_create(thread, NULL, reads, memory->start) != 0 || poll(&ready, 1, 2000) != 1 ||
        read(memory->uffd, &message, sizeof(message)) != sizeof(message))
        return '-';
    return (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0 ? 'm' : 'M';
}

static int has_read(pthread_t thread)
{
    void *byte;

    pthread_join(thread, &byte);
    return (int)(uintptr_t)byte;
}

static int continued(struct memory *memory)
{
    struct uffdio_continue arg = {.range = {(uintptr_t)memory->start, memory->unit}};

    return ioctl(memory->uffd, UFFDIO_CONTINUE, &arg) < 0 ? errno : 0;
}

/* Shared: through the file, then CONTINUE. Private: COPY. */
static int filled(struct memory *memory, uint8_t byte)
{
    uint8_t *source;
    struct uffdio_copy arg = {.dst = (uintptr_t)memory->start, .len = memory->unit};
    int rc;

    if (memory->shared) {
        if (fallocate(memory->fd, 0, 0, (off_t)memory->unit) < 0)
            return errno;
        memory->alias[0] = byte;
        return continued(memory);
    }
    source = malloc(memory->unit);
    memset(source, byte, memory->unit);
    arg.src = (uintptr_t)source;
    rc = ioctl(memory->uffd, UFFDIO_COPY, &arg) < 0 ? errno : 0;
    free(source);
    return rc;
}

static sigjmp_buf back;
static volatile sig_atomic_t code, lsb;

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    code = info->si_code;
    lsb = info->si_code == BUS_MCEERR_AR ? info->si_addr_lsb : 0;
    siglongjmp(back, 1);
}

/* "BUS_ADRERR/0", or the errno of the call, or "readable". */
static void poisoned(struct memory *memory, char *text, size_t capacity)
{
    struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO}, before;
    struct poison arg = {.range = {(uintptr_t)memory->start, memory->unit}};

    madvise(memory->start, memory->unit, MADV_DONTNEED);
    if (ioctl(memory->uffd, POISON_CALL, &arg) < 0) {
        snprintf(text, capacity, "%s", strerrorname_np(errno));
        return;
    }
    code = 0;
    sigaction(SIGBUS, &bus, &before);
    if (sigsetjmp(back, 1) == 0)
        reads(memory->start);
    sigaction(SIGBUS, &before, NULL);
    snprintf(text, capacity, "%s/%d",
             code == BUS_ADRERR ? "BUS_ADRERR" : code == BUS_MCEERR_AR ? "BUS_MCEERR_AR" : "readable", (int)lsb);
}

/* "name works CALLS POISON" or "name step errno": the events in turn are those that a pager lives by. */
static void say_memory(const char *name, size_t unit, bool shared)
{
    struct memory memory = {.name = name, .unit = unit, .shared = shared};
    char first, second, text[64];
    pthread_t thread;
    int rc;

    errno = 0;
    if (!map_memory(&memory) || !register_memory(&memory)) {
        printf("%s absent %s\n", name, word(errno));
        return;
    }
    first = event_of(&memory, &thread);
    rc = first == '-' ? ETIMEDOUT : filled(&memory, 7);
    if (rc != 0) {
        printf("%s filling %s\n", name, word(rc));
        exit(0); /* the thread waits there for ever, and nothing of the rest can be said */
    }
    rc = has_read(thread) == 7 ? 0 : EBADMSG;
    madvise(memory.start, unit, MADV_DONTNEED);
    second = event_of(&memory, &thread);
    if (second == '-' || (rc = shared ? continued(&memory) : filled(&memory, 7)) != 0 || has_read(thread) != 7) {
        printf("%s zapping %c %s\n", name, second, word(rc));
        exit(0);
    }
    poisoned(&memory, text, sizeof(text));
    printf("%s works %c%c 0x%" PRIx64 " %s\n", name, first, second, memory.calls, text);
    munmap(memory.start, unit);
    if (memory.alias != NULL)
        munmap(memory.alias, unit);
    close(memory.uffd);
    close(memory.fd);
}

/* -------------------------------------------------------------------------------------------------- page tables */

static int scanned(uint64_t start, uint64_t end, uint64_t mask, uint64_t found[3])
{
    int fd = open("/proc/self/pagemap", O_RDONLY);
    struct scan scan = {.size = sizeof(scan), .start = start, .end = end, .vec = (uintptr_t)found, .vec_len = 1};
    int rc;

    if (fd < 0)
        return -errno;
    scan.mask = scan.returned = mask;
    rc = ioctl(fd, PAGEMAP_SCAN_CALL, &scan);
    rc = rc < 0 ? -errno : rc;
    close(fd);
    return rc;
}

static void say_pagemap_scan(void)
{
    uint8_t *pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t found[3] = {0};
    int rc;

    pages[PAGE] = pages[2 * PAGE] = 1;
    rc = scanned((uintptr_t)pages, (uintptr_t)pages + 4 * PAGE, 1 << 3, found);
    if (rc < 0)
        printf("pagemap_scan %s\n", word(-rc));
    else
        printf("pagemap_scan %s\n", rc == 1 && found[0] == (uintptr_t)pages + PAGE && found[1] - found[0] == 2 * PAGE
                                        ? "yes" : "wrong");
}

/* Two of four pages are there and protected; one of them is written in user mode. */
static void say_dirty_tracking(void)
{
    uint64_t features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
    int fd = memfd_create("verdicts", 0), uffd = ready_userfaultfd(features), rc;
    bool sized = ftruncate(fd, 4 * PAGE) == 0;
    uint8_t *pages = sized ? mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    struct uffdio_register registered = {.range = {(uintptr_t)pages, 4 * PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect protect = {.range = registered.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    uint64_t found[3] = {0};

    if (uffd < 0 || pages == MAP_FAILED || ioctl(uffd, UFFDIO_REGISTER, &registered) < 0) {
        printf("dirty_tracking %s\n", word(errno));
        return;
    }
    pages[0] = pages[2 * PAGE] = 1;
    if (ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) < 0) {
        printf("dirty_tracking %s\n", word(errno));
        return;
    }
    pages[2 * PAGE] = 2;
    rc = scanned((uintptr_t)pages, (uintptr_t)pages + 4 * PAGE, 1 << 1, found);
    if (rc < 0)
        printf("dirty_tracking %s\n", word(-rc));
    else
        printf("dirty_tracking %s 0x%llx\n",
               rc == 1 && found[0] == (uintptr_t)pages + 2 * PAGE && found[1] - found[0] == PAGE ? "yes" : "wrong",
               (unsigned long long)registered.ioctls);
}

/* --------------------------------------------------------------------------------------- huge pages, swap, locks */

/* How many pages one byte brings into a file of 4 MiB. */
static void say_thp_shared(void)
{
    int fd = memfd_create("verdicts", 0);
    struct stat file = {0};

    if (fd < 0 || ftruncate(fd, 2 * HUGE_BYTES) < 0 || pwrite(fd, "x", 1, HUGE_BYTES) != 1 || fstat(fd, &file) < 0)
        printf("thp_shared %s\n", word(errno));
    else
        printf("thp_shared %lld\n", (long long)file.st_blocks * 512 / PAGE);
    close(fd);
}

/* And into private memory: unasked, and asked for. */
static int brought(bool asked)
{
    uint8_t *pages = mmap(NULL, 4 * HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *aligned = (uint8_t *)(((uintptr_t)pages + HUGE_BYTES - 1) & -(uintptr_t)HUGE_BYTES);
    unsigned char here[HUGE_BYTES / PAGE] = {0};
    int count = 0;

    if (asked)
        madvise(pages, 4 * HUGE_BYTES, MADV_HUGEPAGE);
    aligned[0] = 1;
    mincore(aligned, HUGE_BYTES, here);
    for (size_t i = 0; i < sizeof(here); i++)
        count += here[i] & 1;
    munmap(pages, 4 * HUGE_BYTES);
    return count;
}

static void say_locked(void)
{
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    page[0] = 1;
    if (mlock(page, PAGE) < 0)
        printf("locked_memory none\n");
    else if (madvise(page, PAGE, MADV_DONTNEED) == 0)
        printf("locked_memory wrong\n");
    else if (madvise(page, PAGE, ADVICE_DONTNEED_LOCKED) < 0)
        printf("locked_memory %s\n", word(errno));
    else
        printf("locked_memory %s\n", page[0] == 0 ? "yes" : "wrong");
}

/* Is a private page taken out of memory, where that is asked for? Without swap there is nowhere to take it. */
static void say_swap(void)
{
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char here = 0;

    page[0] = 1;
    madvise(page, PAGE, ADVICE_PAGEOUT);
    mincore(page, PAGE, &here);
    printf("swap %s\n", (here & 1) != 0 ? "stays" : "goes");
}

int main(int argc, char **argv)
{
    int fd;

    setvbuf(stdout, NULL, _IONBF, 0);
    device_fd = argc > 1 ? atoi(argv[1]) : -1;
    say_pagemap_scan();
    say_thp_shared();
    printf("thp_private %d %d\n", brought(false), brought(true));
    say_locked();
    say_swap();
    fd = userfaultfd(0);
    printf("userfaultfd %s\n", word(fd < 0 ? errno : 0));
    say_kernel_faults();
    if (fd < 0)
        return 0;
    close(fd);
    say_handshake();
    say_dirty_tracking();
    say_memory("shared_memory", PAGE, true);
    say_memory("tmpfs_memory", PAGE, true);
    say_memory("private_memory", PAGE, false);
    say_memory("huge_shared_memory", HUGE_BYTES, true);
    say_memory("huge_private_memory", HUGE_BYTES, false);
    return 0;
}
