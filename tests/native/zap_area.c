/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of every kind: see zap_area.h. */
#include "zap_area.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "huge_pool.h"
#include "kernel/create.h"
#include "kernel/uapi.h"

#define PAGE UINT64_C(4096)
#define DATA 0xDA
#define OF_THE_FILE 0xF1
#define PATIENCE_MS 20000

const char *area_name(enum area_kind kind)
{
    static const char *const names[AREA_KIND_COUNT] = {
        [AREA_MEMFD] = "memfd, shared",
        [AREA_TMPFS] = "file on tmpfs, shared",
        [AREA_LOCKED] = "memfd, shared, locked",
        [AREA_SHMEM_PRIVATE] = "memfd, private",
        [AREA_ANON] = "anonymous, private",
        [AREA_HUGETLB_SHARED] = "huge pages (hugetlbfs), shared",
        [AREA_HUGETLB_PRIVATE] = "huge pages (hugetlbfs), anonymous, private",
    };

    return names[kind];
}

bool area_of_huge_pages(enum area_kind kind)
{
    return kind == AREA_HUGETLB_SHARED || kind == AREA_HUGETLB_PRIVATE;
}

static bool shared(const struct area *area)
{
    return area->fd >= 0 && area->kind != AREA_SHMEM_PRIVATE;
}

static int open_file(const struct area *area)
{
    int fd = -1;

    if (area->kind == AREA_TMPFS)
        fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    else if (area->kind == AREA_HUGETLB_SHARED)
        fd = memfd_create("zap", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB);
    else if (area->kind != AREA_ANON && area->kind != AREA_HUGETLB_PRIVATE)
        fd = memfd_create("zap", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, (off_t)area->bytes) < 0)
        perror("ftruncate");
    return fd;
}

/* What lies in the file behind a private mapping is another thing than what was written to the mapping. */
static bool fill(struct area *area)
{
    uint8_t page[PAGE];

    memset(page, OF_THE_FILE, sizeof(page));
    for (uint64_t at = 0; area->kind == AREA_SHMEM_PRIVATE && at < area->bytes; at += PAGE)
        if (pwrite(area->fd, page, PAGE, (off_t)at) != (ssize_t)PAGE)
            return false;
    if (madvise(area->start, area->bytes, MADV_NOHUGEPAGE) < 0 && !area_of_huge_pages(area->kind))
        return false;
    memset(area->start, DATA, area->bytes);
    /* sanitizers make the function do nothing */
    return area->kind != AREA_LOCKED || syscall(SYS_mlock, area->start, area->bytes) == 0;
}

bool area_register(struct area *area)
{
    struct uffdio_register arg = {.range = {(uintptr_t)area->start, area->bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};

    if (area->fd >= 0)
        arg.mode |= UFFDIO_REGISTER_MODE_MINOR;
    if (ioctl(area->uffd, UFFDIO_REGISTER, &arg) == 0)
        return true;
    perror("UFFDIO_REGISTER");
    return false;
}

bool area_make(struct area *area, enum area_kind kind, uint64_t features)
{
    uint64_t unit_bytes = area_of_huge_pages(kind) ? HUGE_POOL_PAGE : PAGE;
    int flags = kind == AREA_HUGETLB_PRIVATE ? MAP_HUGETLB | MAP_HUGE_2MB : 0;

    *area = (struct area){.kind = kind, .unit_bytes = unit_bytes, .bytes = AREA_UNITS * unit_bytes};
    area->fd = open_file(area);
    area->uffd = create_uffd(-1, features, NULL);
    flags |= shared(area) ? MAP_SHARED : MAP_PRIVATE | (area->fd < 0 ? MAP_ANONYMOUS : 0);
    area->start = mmap(NULL, area->bytes, PROT_READ | PROT_WRITE, flags, area->fd, 0);
    if (area->uffd >= 0 && area->start != MAP_FAILED && fill(area) && area_register(area))
        return true;
    perror(area_name(kind));
    return false;
}

void area_end(struct area *area)
{
    if (area->start != MAP_FAILED)
        munmap(area->start, area->bytes);
    if (area->uffd >= 0)
        close(area->uffd);
    if (area->fd >= 0)
        close(area->fd);
}

/* ------------------------------------------------------------------------------------------------------------ touch */

struct touch {
    const volatile uint8_t *at;
    int done; /* the end of a pipe */
};

static void *touch_thread(void *argument)
{
    struct touch *touch = argument;
    uint8_t byte = *touch->at;

    if (write(touch->done, &byte, 1) != 1)
        abort();
    return NULL;
}

static bool resolve(struct area *area, struct area_next *next)
{
    static uint8_t zeros[HUGE_POOL_PAGE];
    struct uffd_msg event;
    uint64_t start;
    int rc = -1;

    if (read(area->uffd, &event, sizeof(event)) != (ssize_t)sizeof(event) || event.event != UFFD_EVENT_PAGEFAULT)
        return false;
    start = event.arg.pagefault.address & ~(area->unit_bytes - 1);
    if ((event.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) {
        struct uffdio_continue arg = {.range = {start, area->unit_bytes}};
        next->fault = FAULT_MINOR;
        rc = ioctl(area->uffd, UFFDIO_CONTINUE, &arg);
    } else {
        struct uffdio_copy arg = {.dst = start, .src = (uintptr_t)zeros, .len = area->unit_bytes};
        next->fault = FAULT_MISSING;
        rc = ioctl(area->uffd, UFFDIO_COPY, &arg);
    }
    return rc == 0;
}

bool area_touch(struct area *area, uint64_t at_bytes, struct area_next *next)
{
    struct touch touch = {.at = area->start + at_bytes};
    struct pollfd ready[2] = {{.fd = area->uffd, .events = POLLIN}, {.events = POLLIN}};
    bool good = true;
    pthread_t thread;
    uint8_t byte = 0;
    int ends[2];

    *next = (struct area_next){.fault = FAULT_NONE, .data = DATA_ELSE};
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    touch.done = ends[1];
    ready[1].fd = ends[0];
    if (pthread_create(&thread, NULL, touch_thread, &touch) != 0)
        return false;
    while (good && (ready[1].revents & POLLIN) == 0) {
        good = poll(ready, 2, PATIENCE_MS) > 0;
        if (good && (ready[0].revents & POLLIN) != 0)
            good = resolve(area, next);
    }
    if (good)
        pthread_join(thread, NULL);
    good = good && read(ends[0], &byte, 1) == 1;
    close(ends[0]);
    close(ends[1]);
    next->data = byte == DATA ? DATA_KEPT : byte == 0 ? DATA_ZEROS : byte == OF_THE_FILE ? DATA_OF_THE_FILE : DATA_ELSE;
    return good;
}
