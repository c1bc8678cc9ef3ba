/* SPDX-License-Identifier: Apache-2.0 */
/* Opening and closing a VM's loop: see loop.h. Everything is in place before the thread starts. */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bulk.h"
#include "loop.h"

#define ORDERS_MAX 64

static int watch(struct loop *loop, int fd, enum loop_source source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = source};

    return fd >= 0 && epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* What the RAM file holds already is not known to be right. SEEK_DATA passes over pages that were reserved and never
 * written: where the file has more than it finds, that may be anywhere. On a pool it finds all, or the file is empty. */
static void mark_stale(struct loop *loop)
{
    off_t length = (off_t)(loop->regions.page_count * PAGE_BYTES), data = 0, hole;
    uint64_t found_bytes = 0;
    int file = loop->uffd.backing_fd;
    struct stat facts;

    if (file < 0 || (loop->uffd.view.kind == VIEW_POOL && view_is_empty(file)))
        return;
    while ((data = lseek(file, data, SEEK_DATA)) >= 0 && data < length) {
        uint64_t first = (uint64_t)data / PAGE_BYTES, pages;
        hole = lseek(file, data, SEEK_HOLE);
        if (hole < 0 || hole > length)
            hole = length;
        pages = ((uint64_t)hole + PAGE_BYTES - 1) / PAGE_BYTES - first;
        engine_mark_stale(&loop->engine, first, pages);
        found_bytes += pages * PAGE_BYTES;
        data = hole;
    }
    if (fstat(file, &facts) < 0 || (uint64_t)facts.st_blocks * 512 > found_bytes)
        engine_mark_stale(&loop->engine, 0, loop->regions.page_count);
}

static void start_parts(struct loop *loop, const struct loop_options *options)
{
    struct engine_options engine = {
        .table = &loop->table,
        .regions = &loop->regions,
        .ops = &uffd_kernel_ops,
        .kernel = &loop->uffd,
        .out = loop_engine_out,
        .stats = &loop->stats,
        .trace = &loop->trace,
        .private_memory = options->vm->memory == PAGEFERRY_MEMORY_PRIVATE,
        .without_poison = options->vm->without_poison != 0 || !uffd_can_poison(&loop->uffd),
    };
    struct urgent_options urgent = {
        .address = options->address,
        .image = options->image,
        .who = options->who,
        .engine = &loop->engine,
        .regions = &loop->regions,
        .events = &loop_urgent_events,
        .owner = loop,
        .now_ns = &loop->now_ns,
        .stats = &loop->stats,
        .epoll_fd = loop->epoll_fd,
        .epoll_tag = LOOP_SOURCE_URGENT,
    };

    engine.out.owner = loop;
    loop->vmm_watched = EPOLLIN;
    loop->background = options->vm->background != 0;
    loop->handed_on = options->vm->handed_on != 0;
    loop->spin_us = options->vm->spin_us;
    loop->vmm_pid = options->vm->vmm_pid;
    vmm_start(&loop->vmm, options->vm->vmm_fd, options->vm->vmm_pidfd, options->vm->frames != 0, loop->now_ns);
    loop->vmm.huge_pages = options->vm->huge_pages != 0;
    engine_start(&loop->engine, &engine, loop->now_ns);
    mark_stale(loop);
    fill_start(&loop->fill, &loop->engine, &loop->stats, &loop->port);
    pace_cap(&loop->fill.pace, options->vm->bandwidth_bytes_per_s);
    urgent_start(&loop->urgent, &urgent);
}

static int start_thread(struct loop *loop)
{
    sigset_t all, before;
    int rc;

    sigfillset(&all); /* signals are the embedding program's */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = -pthread_create(&loop->thread, NULL, loop_run, loop);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    loop->thread_runs = rc == 0;
    return rc;
}

int loop_open(struct loop *loop, const struct loop_options *options)
{
    struct port_options port = {
        .address = options->address,
        .image = options->image,
        .who = options->who,
        .slots = options->bulk_slots,
    };
    int rc;

    memset(loop, 0, sizeof(*loop));
    loop->now_ns = loop_clock_ns();
    loop->epoll_fd = -1;
    loop->table.fd = -1;
    loop->uffd = (struct uffd){.fd = options->vm->uffd, .backing_fd = options->vm->backing_fd,
                                .vmm_pid = options->vm->vmm_pid};
    rc = regions_set(&loop->regions, options->regions, options->vm->region_count);
    if (rc == 0)
        rc = view_open(&loop->uffd.view, loop->uffd.backing_fd, loop->regions.page_count * PAGE_BYTES,
                       options->pages.unit_bytes, options->pages.brings_more);
    if (rc == 0)
        rc = table_create(loop->regions.page_count, &loop->table);
    if (rc == 0)
        rc = ring_open(&loop->orders, ORDERS_MAX, sizeof(struct pageferry_order));
    if (rc == 0)
        rc = tell_open(&loop->tell);
    port.page_count = loop->regions.page_count;
    if (rc == 0)
        rc = port_open(&loop->port, &port);
    if (rc < 0)
        goto out;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        rc = -errno;
        goto out;
    }
    start_parts(loop, options);
    rc = watch(loop, loop->uffd.fd, LOOP_SOURCE_UFFD);
    if (rc == 0)
        rc = watch(loop, loop->vmm.fd, LOOP_SOURCE_VMM);
    if (rc == 0)
        rc = watch(loop, loop->vmm.pidfd, LOOP_SOURCE_PIDFD);
    if (rc == 0)
        rc = watch(loop, loop->orders.bell_fd, LOOP_SOURCE_ORDERS);
    if (rc == 0)
        rc = watch(loop, loop->port.slices.bell_fd, LOOP_SOURCE_BULK);
    if (rc == 0)
        rc = bulk_join(options->bulk, &loop->port);
    if (rc == 0) {
        loop->bulk = options->bulk;
        rc = start_thread(loop);
    }
out:
    if (rc < 0) { /* the fds stay the caller's */
        loop->uffd.fd = -1;
        loop->uffd.backing_fd = -1;
        loop->vmm.fd = -1;
        loop->vmm.pidfd = -1;
        loop_close(loop);
    }
    return rc;
}

void loop_close(struct loop *loop)
{
    struct pageferry_order stop = {.kind = LOOP_ORDER_STOP};

    if (loop->thread_runs) {
        while (!ring_put(&loop->orders, &stop)) /* the thread empties it */
            usleep(1000);
        pthread_join(loop->thread, NULL);
        while (loop->let_go && engine_turn(&loop->engine, loop->now_ns) > 0)
            ; /* the last removals that were announced before their memory was let go of */
        urgent_close(&loop->urgent);
    }
    if (loop->bulk != NULL)
        bulk_leave(loop->bulk, &loop->port);
    port_close(&loop->port);
    ring_close(&loop->orders);
    tell_close(&loop->tell);
    if (loop->table.fd >= 0)
        table_close(&loop->table);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    vmm_close(&loop->vmm);
    view_close(&loop->uffd.view);
    if (loop->uffd.fd >= 0)
        close(loop->uffd.fd);
    if (loop->uffd.backing_fd >= 0)
        close(loop->uffd.backing_fd);
}
