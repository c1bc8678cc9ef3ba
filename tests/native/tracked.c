/* SPDX-License-Identifier: Apache-2.0 */
/* See tracked.h. The two share a page: orders and answers pass through it, by semaphores. */
#include "tracked.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/create.h"
#include "kernel/uapi.h"

#define HUGE_BYTES (UINT64_C(2) << 20)
#define FEATURES \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | \
     UFFD_FEATURE_WP_ASYNC)
#define ARRIVING_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID)
#define ARRIVING_MODES (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

struct tracked_box {
    sem_t asked, answered;
    enum tracked_order order;
    uint64_t page;
    uint8_t value;
    bool done;
    uint8_t *ram; /* there */
    int uffd;     /* there */
    atomic_bool scribbling;
    _Atomic uint64_t scribbled;
    char path[PATH_MAX]; /* what is loaded, or being loaded: */
    pthread_t loader;    /* there */
    int load_fd;         /* there */
    uint8_t *load_to;    /* there */
    ssize_t loaded;
};

/* ------------------------------------------------------------------------------------------------ in that process */

static uint8_t *map_aligned(int fd, uint64_t bytes)
{
    uint8_t *space = mmap(NULL, bytes + HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint8_t *at;

    if (space == MAP_FAILED)
        return NULL;
    at = (uint8_t *)(((uintptr_t)space + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
    at = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static bool make_huge(uint8_t *ram, uint64_t bytes)
{
    memset(ram, 1, bytes);
    return madvise(ram, bytes, MADV_COLLAPSE) == 0;
}

static bool begin(struct tracked *tracked, uint64_t registered, bool huge, bool arriving)
{
    struct tracked_box *box = tracked->box;
    uint64_t bytes = tracked->page_count * TRACKED_PAGE;
    struct uffdio_register arg = {.mode = UFFDIO_REGISTER_MODE_WP | (arriving ? ARRIVING_MODES : 0)};

    box->ram = map_aligned(tracked->ram_fd, bytes);
    if (box->ram == NULL || (huge && !make_huge(box->ram, bytes)))
        return false;
    if (!huge && madvise(box->ram, bytes, MADV_NOHUGEPAGE) != 0)
        return false;
    box->uffd = create_uffd(-1, FEATURES | (arriving ? ARRIVING_FEATURES : 0), NULL);
    if (box->uffd < 0)
        return false;
    arg.range.start = (uintptr_t)box->ram;
    arg.range.len = registered * TRACKED_PAGE;
    return registered == 0 || ioctl(box->uffd, UFFDIO_REGISTER, &arg) == 0;
}

/* Half of the pages often, a few of the rest now and then; a page is never written in one go. */
static void scribble(const struct tracked *tracked)
{
    struct tracked_box *box = tracked->box;
    uint64_t state = 88172645463325252u, number = 0;

    while (atomic_load(&box->scribbling)) {
        uint64_t page;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        page = state % (state >> 60 == 0 ? tracked->page_count : tracked->page_count / 2);
        number++;
        for (uint64_t i = 0; i < TRACKED_PAGE / sizeof(number); i++)
            ((volatile uint64_t *)(box->ram + page * TRACKED_PAGE))[i] = number;
        atomic_fetch_add(&box->scribbled, 1);
    }
}

static void *load(void *argument)
{
    struct tracked_box *box = argument;

    box->loaded = pread(box->load_fd, box->load_to, TRACKED_PAGE, 0);
    return NULL;
}

static bool begin_load(struct tracked_box *box, uint8_t *to)
{
    box->load_to = to;
    box->load_fd = open(box->path, O_RDONLY | O_CLOEXEC | (box->value != 0 ? O_DIRECT : 0));
    return box->load_fd >= 0 && pthread_create(&box->loader, NULL, load, box) == 0;
}

static bool end_load(struct tracked_box *box)
{
    return pthread_join(box->loader, NULL) == 0 && close(box->load_fd) == 0 && box->loaded == TRACKED_PAGE;
}

static bool obey(const struct tracked *tracked)
{
    struct tracked_box *box = tracked->box;
    uint8_t *at = box->ram + box->page * TRACKED_PAGE;
    struct uffdio_writeprotect off = {.range = {(uintptr_t)at, TRACKED_PAGE}};
    struct uffdio_range all = {(uintptr_t)box->ram, tracked->page_count * TRACKED_PAGE};
    off_t offset = (off_t)(box->page * TRACKED_PAGE);

    switch (box->order) {
    case TRACKED_WRITE:
        memset(at, box->value, TRACKED_PAGE);
        return true;
    case TRACKED_READ:
        box->value = *(volatile uint8_t *)at;
        return true;
    case TRACKED_RECEIVE:
        return getrandom(at, TRACKED_PAGE, 0) == TRACKED_PAGE;
    case TRACKED_PUNCH:
        return fallocate(tracked->ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, TRACKED_PAGE) == 0;
    case TRACKED_UNPROTECT:
        return ioctl(box->uffd, UFFDIO_WRITEPROTECT, &off) == 0;
    case TRACKED_DONTNEED:
        return madvise(at, TRACKED_PAGE, MADV_DONTNEED) == 0;
    case TRACKED_UNREGISTER:
        return ioctl(box->uffd, UFFDIO_UNREGISTER, &all) == 0;
    case TRACKED_MAP_AGAIN:
        return mmap(NULL, TRACKED_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, tracked->ram_fd, offset) != MAP_FAILED;
    case TRACKED_REPLACE:
        return mmap(at, TRACKED_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at;
    case TRACKED_SCRIBBLE:
        scribble(tracked);
        return true;
    case TRACKED_LOAD:
        return begin_load(box, at);
    case TRACKED_LOADED:
        return end_load(box);
    }
    return false;
}

static void serve(struct tracked *tracked)
{
    struct tracked_box *box = tracked->box;

    for (;;) {
        sem_post(&box->answered);
        while (sem_wait(&box->asked) != 0)
            ;
        box->done = obey(tracked);
    }
}

/* --------------------------------------------------------------------------------------------------- in the test's */

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) != 0)
        ;
}

static bool start(struct tracked *tracked, uint64_t page_count, uint64_t registered, bool huge, bool arriving)
{
    struct tracked_box *box = mmap(NULL, sizeof(*box), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    *tracked = (struct tracked){.pid = -1, .pidfd = -1, .ram_fd = -1, .uffd = -1, .page_count = page_count, .box = box};
    if (box == MAP_FAILED)
        return false;
    sem_init(&box->asked, 1, 0);
    sem_init(&box->answered, 1, 0);
    tracked->ram_fd = memfd_create("tracked", MFD_CLOEXEC);
    if (tracked->ram_fd < 0 || ftruncate(tracked->ram_fd, (off_t)(page_count * TRACKED_PAGE)) != 0)
        return false;
    tracked->pid = fork();
    if (tracked->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        box->done = begin(tracked, registered < page_count ? registered : page_count, huge, arriving);
        serve(tracked);
    }
    if (tracked->pid < 0)
        return false;
    wait_for(&box->answered);
    tracked->address = (uintptr_t)box->ram;
    tracked->pidfd = (int)syscall(SYS_pidfd_open, tracked->pid, 0);
    if (box->done)
        tracked->uffd = (int)syscall(SYS_pidfd_getfd, tracked->pidfd, box->uffd, 0);
    return tracked->uffd >= 0;
}

bool tracked_start(struct tracked *tracked, uint64_t page_count, uint64_t registered, bool huge)
{
    return start(tracked, page_count, registered, huge, false);
}

bool tracked_start_arriving(struct tracked *tracked, uint64_t page_count)
{
    return start(tracked, page_count, page_count, false, true);
}

void tracked_order(struct tracked *tracked, enum tracked_order order, uint64_t page, uint8_t value)
{
    struct tracked_box *box = tracked->box;

    box->order = order;
    box->page = page;
    box->value = value;
    sem_post(&box->asked);
}

bool tracked_done(struct tracked *tracked)
{
    wait_for(&tracked->box->answered);
    return tracked->box->done;
}

bool tracked_do(struct tracked *tracked, enum tracked_order order, uint64_t page, uint8_t value)
{
    tracked_order(tracked, order, page, value);
    return tracked_done(tracked);
}

void tracked_scribble(struct tracked *tracked, bool on)
{
    struct tracked_box *box = tracked->box;

    atomic_store(&box->scribbling, on);
    box->order = TRACKED_SCRIBBLE;
    if (on)
        sem_post(&box->asked);
    else
        wait_for(&box->answered);
}

bool tracked_load(struct tracked *tracked, uint64_t page, const char *path, bool direct)
{
    return (size_t)snprintf(tracked->box->path, sizeof(tracked->box->path), "%s", path) < sizeof(tracked->box->path) &&
           tracked_do(tracked, TRACKED_LOAD, page, direct);
}

uint64_t tracked_scribbled(const struct tracked *tracked)
{
    return atomic_load(&tracked->box->scribbled);
}

void tracked_kill(struct tracked *tracked)
{
    if (tracked->pid > 0) {
        kill(tracked->pid, SIGKILL);
        waitpid(tracked->pid, NULL, 0);
    }
    tracked->pid = -1;
}

void tracked_end(struct tracked *tracked)
{
    int fds[] = {tracked->pidfd, tracked->ram_fd, tracked->uffd};

    tracked_kill(tracked);
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (tracked->box != MAP_FAILED)
        munmap(tracked->box, sizeof(*tracked->box));
}

const char *tracked_absent(void)
{
    struct tracked tracked;
    bool able = tracked_start(&tracked, 1, 1, false);
    const char *absent = able ? NULL : "no userfaultfd right, or no asynchronous write protection (Linux 6.7)";

    tracked_end(&tracked);
    return absent;
}
