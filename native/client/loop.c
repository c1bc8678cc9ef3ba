/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of loop.h. Read loop_run first: it is the whole story. */
#include "loop.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "../kernel/mapping.h"

#define MS_NS UINT64_C(1000000)
#define ORDERS_MAX 64
#define EVENTS_MAX 256
#define EVENTS_RESERVED 64 /* kept free for the few events that may not be lost */
#define WAIT_EVENTS 8

enum source { SOURCE_UFFD = 1, SOURCE_URGENT, SOURCE_VMM, SOURCE_PIDFD, SOURCE_ORDERS, SOURCE_BULK };

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------------ saying */

static bool may_be_lost(uint32_t kind)
{
    return kind == PAGEFERRY_EVENT_ALARM || kind == PAGEFERRY_EVENT_POISONED || kind == PAGEFERRY_EVENT_PAUSED ||
           kind == PAGEFERRY_EVENT_RESUMED || kind == PAGEFERRY_EVENT_EARLY_FAULT;
}

static void say(struct loop *loop, struct pageferry_event *event, const char *text)
{
    if (text != NULL)
        snprintf(event->text, sizeof(event->text), "%s", text);
    if (!may_be_lost(event->kind) || ring_room(&loop->events) > EVENTS_RESERVED)
        ring_put(&loop->events, event);
}

static void fail(struct loop *loop, uint32_t reason, const char *text)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_FAILED, .reason = reason};

    if (loop->stage < LOOP_ENDED) {
        loop->stage = LOOP_ENDED;
        say(loop, &event, text);
    }
}

static void pause_began(struct loop *loop, struct loop_pause *pause, uint32_t reason, const char *text)
{
    if (pause->since_ns == 0)
        pause->since_ns = loop->now_ns;
    pause->reason = reason;
    snprintf(pause->text, sizeof(pause->text), "%s", text);
}

static void pause_tell(struct loop *loop, struct loop_pause *pause, uint64_t patience_ns)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_PAUSED, .reason = pause->reason};

    if (pause->since_ns != 0 && pause->told_ns == 0 && loop->now_ns - pause->since_ns >= patience_ns) {
        pause->told_ns = loop->now_ns;
        say(loop, &event, pause->text);
    }
}

static void pause_over(struct loop *loop, struct loop_pause *pause)
{
    struct pageferry_event event = {
        .kind = PAGEFERRY_EVENT_RESUMED,
        .reason = pause->reason,
        .value = loop->now_ns - pause->since_ns,
    };

    if (pause->told_ns != 0)
        say(loop, &event, NULL);
    memset(pause, 0, sizeof(*pause));
}

/* Before the first attach nobody knows whether the address is right: say at once what is wrong. */
static uint64_t link_patience_ns(const struct loop *loop)
{
    return loop->stage == LOOP_OPEN ? 0 : PF_LIMIT_LINK_PAUSE_MS * MS_NS;
}

/* ------------------------------------------------------------------------------- what engine and urgent tell us */

static void on_ask(void *owner, uint64_t page)
{
    struct loop *loop = owner;

    fill_hint(&loop->fill, page, loop->now_ns);
    urgent_ask(&loop->urgent, page);
}

static void vmm_is_gone(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_VMM_GONE, .reason = PF_REASON_NO_VMM};

    if (loop->stage < LOOP_ENDED) {
        loop->stage = LOOP_ENDED;
        say(loop, &event, "the VMM has exited");
    }
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    struct loop *loop = owner;
    struct pageferry_event event = {.page = page, .value = value};

    switch (report) {
    case ENGINE_REPORT_ALARM:
        event.kind = PAGEFERRY_EVENT_ALARM;
        event.reason = PF_REASON_BUG;
        say(loop, &event, text);
        break;
    case ENGINE_REPORT_POISONED:
        event.kind = PAGEFERRY_EVENT_POISONED;
        say(loop, &event, text);
        break;
    case ENGINE_REPORT_FULL:
        pause_began(loop, &loop->memory_pause, PF_REASON_NO_MEMORY,
                    "no memory for a page: make room in the tmpfs that holds the RAM file, or raise the memory limit");
        pause_tell(loop, &loop->memory_pause, 0);
        break;
    case ENGINE_REPORT_FULL_OVER:
        pause_over(loop, &loop->memory_pause);
        break;
    case ENGINE_REPORT_GONE:
        vmm_is_gone(loop);
        break;
    }
}

static void on_attached(void *owner)
{
    struct loop *loop = owner;
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_ATTACHED, .value = loop->urgent.content_id};

    if (loop->stage == LOOP_OPEN) {
        loop->stage = LOOP_ATTACHED;
        loop->engine.frozen_version = loop->urgent.as_of; /* the image never changes */
        loop->table.header->content_id = loop->urgent.content_id;
        bulk_port_attach(loop->port, loop->urgent.content_id);
        say(loop, &event, NULL);
    }
    pause_over(loop, &loop->link_pause);
}

static void on_unreachable(void *owner, uint32_t reason, const char *why)
{
    struct loop *loop = owner;
    char text[GRPC_TEXT_BYTES];

    if (loop->link_pause.since_ns != 0 && loop->link_pause.reason != PF_REASON_GOING_AWAY)
        return; /* it was refused: that is why the link went down, and the better text */
    snprintf(text, sizeof(text), "page server %.64s: %.100s", loop->urgent.link.address->text, why);
    pause_began(loop, &loop->link_pause, reason, text);
}

static void on_refused(void *owner, uint32_t reason, const char *why)
{
    struct loop *loop = owner;

    if (loop->stage < LOOP_ARMED)
        fail(loop, reason, why);
    else
        pause_began(loop, &loop->link_pause, reason, why);
}

static const struct urgent_events loop_urgent_events = {
    .attached = on_attached,
    .unreachable = on_unreachable,
    .refused = on_refused,
};

/* ------------------------------------------------------------------------------------------------------ orders */

/* Nothing may be mapped before the first fault is served (DESIGN 3.4). Where we may not look, the hand-off's own
 * check stands. */
static bool nothing_present(struct loop *loop, char *text, size_t text_bytes)
{
    struct mapping_facts facts;
    bool fine = true;

    for (uint32_t i = 0; fine && loop->vmm_pid > 0 && i < loop->regions.count; i++) {
        const struct region *region = &loop->regions.by_page[i];
        if (mapping_look(loop->vmm_pid, region->address, region->page_count * PAGE_BYTES, &facts) == 0 &&
            facts.present_pages != 0) {
            snprintf(text, text_bytes, "%llu pages of the VM are mapped already: something has touched its memory "
                     "around the userfaultfd (prealloc? another mapper?)", (unsigned long long)facts.present_pages);
            fine = false;
        }
    }
    return fine;
}

static void arm(struct loop *loop, uint64_t cookie)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_ARMED, .cookie = cookie};
    char text[PAGEFERRY_TEXT_BYTES];

    if (loop->stage >= LOOP_ARMED) {
        say(loop, &event, NULL);
    } else if (loop->stage == LOOP_OPEN) {
        fail(loop, PF_REASON_WRONG_PHASE, "armed before the page server had described the image");
    } else if (!nothing_present(loop, text, sizeof(text))) {
        fail(loop, PF_REASON_MISMATCH, text);
    } else {
        loop->stage = LOOP_ARMED;
        engine_arm(&loop->engine);
        vmm_accept(&loop->vmm);
        say(loop, &event, NULL);
    }
}

/* False: stop. */
static bool take_orders(struct loop *loop)
{
    struct pageferry_order order;
    bool go_on = true;

    ring_silence(&loop->orders);
    while (go_on && ring_take(&loop->orders, &order)) {
        switch (order.kind) {
        case LOOP_ORDER_STOP:
            go_on = false;
            break;
        case PAGEFERRY_ORDER_ARM:
            arm(loop, order.cookie);
            break;
        case PAGEFERRY_ORDER_BACKGROUND:
            loop->background = order.value != 0;
            break;
        }
    }
    return go_on;
}

static void take_vmm(struct loop *loop)
{
    struct vmm_discard discard;
    enum vmm_said said = vmm_ready(&loop->vmm, &discard, loop->now_ns);
    uint64_t first, end;

    if (said == VMM_DISCARD) {
        /* Only whole pages are dropped; a report that goes beyond the image ends there. */
        first = discard.offset_bytes / PAGE_BYTES + (discard.offset_bytes % PAGE_BYTES != 0);
        end = discard.offset_bytes > UINT64_MAX - discard.length_bytes
                  ? loop->regions.page_count
                  : (discard.offset_bytes + discard.length_bytes) / PAGE_BYTES;
        if (end > loop->regions.page_count)
            end = loop->regions.page_count;
        if (first < end)
            engine_removed(&loop->engine, first, end - first);
        vmm_discarded(&loop->vmm, discard.sequence);
    } else if (said == VMM_GONE) {
        vmm_is_gone(loop);
    }
}

/* ---------------------------------------------------------------------------------------------------- progress */

/* Everything is the guest's: nothing needs us any more. Poisoned pages stay intercepted, so then nothing is let go. */
static void complete(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_COMPLETE, .value = loop->engine.counts[PAGE_POISONED]};
    struct kernel_span span;

    loop->stage = LOOP_COMPLETE;
    for (uint32_t i = 0; i < loop->regions.count && loop->engine.counts[PAGE_POISONED] == 0; i++) {
        const struct region *region = &loop->regions.by_page[i];
        regions_span(&loop->regions, region->first_page, region->page_count, &span);
        if (uffd_unregister(&loop->uffd, &span) < 0)
            stats_add(&loop->stats, STATS_alarms_total, 1);
        loop->engine.ops->wake(loop->engine.kernel, &span);
    }
    vmm_complete(&loop->vmm);
    say(loop, &event, NULL);
}

static void look_at_progress(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_POPULATED};

    if (loop->stage == LOOP_ATTACHED && loop->background && engine_settled(&loop->engine)) {
        loop->stage = LOOP_POPULATED;
        say(loop, &event, NULL);
    } else if (loop->stage == LOOP_ARMED && engine_settled(&loop->engine)) {
        complete(loop);
    }
    pause_tell(loop, &loop->link_pause, link_patience_ns(loop));
    if (!loop->early_told && loop->engine.first_early_ns != 0 && loop->stage < LOOP_ARMED &&
        loop->now_ns - loop->engine.first_early_ns >= PF_LIMIT_EARLY_FAULT_MS * MS_NS) {
        event.kind = PAGEFERRY_EVENT_EARLY_FAULT;
        event.page = loop->engine.early_page;
        loop->early_told = true;
        say(loop, &event, "a thread of the VMM has waited over a second for a page before arming");
    }
}

/* -------------------------------------------------------------------------------------------------------- turn */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int timeout_ms(const struct loop *loop, bool more)
{
    uint64_t next_ns = UINT64_MAX;
    int timeout = -1;

    if (loop->stage < LOOP_COMPLETE) {
        next_ns = least(urgent_next_ns(&loop->urgent), engine_next_ns(&loop->engine));
        if (loop->link_pause.since_ns != 0 && loop->link_pause.told_ns == 0)
            next_ns = least(next_ns, loop->link_pause.since_ns + link_patience_ns(loop));
        if (loop->engine.first_early_ns != 0 && !loop->early_told && loop->stage < LOOP_ARMED)
            next_ns = least(next_ns, loop->engine.first_early_ns + PF_LIMIT_EARLY_FAULT_MS * MS_NS);
        if (loop->background)
            next_ns = least(next_ns, fill_next_ns(&loop->fill, loop->now_ns));
    } else if (loop->stage == LOOP_COMPLETE) {
        next_ns = engine_next_ns(&loop->engine);
    }
    if (more || next_ns <= loop->now_ns || loop->now_ns - loop->active_ns < (uint64_t)loop->spin_us * 1000)
        timeout = 0;
    else if (next_ns != UINT64_MAX)
        timeout = (int)least((next_ns - loop->now_ns) / MS_NS + 1, 60000);
    return timeout;
}

static bool take(struct loop *loop, const struct epoll_event *event)
{
    bool go_on = true;

    switch (event->data.u64) {
    case SOURCE_URGENT:
        if (loop->stage < LOOP_COMPLETE)
            urgent_ready(&loop->urgent, event->events);
        break;
    case SOURCE_VMM:
        take_vmm(loop);
        break;
    case SOURCE_PIDFD:
        vmm_is_gone(loop);
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->vmm.pidfd, NULL);
        break;
    case SOURCE_ORDERS:
        go_on = take_orders(loop);
        break;
    case SOURCE_BULK:
        bulk_port_silence(loop->port);
        break;
    }
    return go_on;
}

/* The kernel's events before anything else that is ready. */
static void take_faults(struct loop *loop, const struct epoll_event *ready, int count)
{
    for (int i = 0; i < count; i++)
        if (ready[i].data.u64 == SOURCE_UFFD && loop->stage < LOOP_ENDED)
            while (engine_turn(&loop->engine, loop->now_ns) == TABLE_BATCH_EVENTS)
                ;
}

/* Bulk and sweep. True: there is more to do at once. What bulk has brought is taken at every stage, or its thread
 * would wait for our slots while other VMs wait for it. */
static bool fill(struct loop *loop)
{
    bool more = fill_take(&loop->fill, loop->now_ns);

    if (loop->background && loop->stage >= LOOP_ATTACHED && loop->stage < LOOP_COMPLETE)
        more |= fill_plan(&loop->fill, loop->now_ns);
    if (loop->background && loop->stage == LOOP_ARMED)
        more |= fill_sweep(&loop->fill);
    return more;
}

/* Complete, or at an end: nothing is asked any more. What nobody reads is not watched either. */
static void settle_down(struct loop *loop)
{
    urgent_close(&loop->urgent);
    if (loop->stage == LOOP_ENDED)
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->uffd.fd, NULL);
    loop->settled_stage = loop->stage;
}

static void *loop_run(void *argument)
{
    struct loop *loop = argument;
    struct epoll_event ready[WAIT_EVENTS];
    bool go_on = true, more = false;

    while (go_on) {
        int count = epoll_wait(loop->epoll_fd, ready, WAIT_EVENTS, timeout_ms(loop, more));
        loop->now_ns = clock_ns();
        if (count > 0)
            loop->active_ns = loop->now_ns;
        take_faults(loop, ready, count);
        for (int i = 0; i < count; i++)
            go_on &= take(loop, &ready[i]);
        engine_tick(&loop->engine, loop->now_ns);
        if (loop->stage < LOOP_COMPLETE)
            urgent_turn(&loop->urgent); /* asks leave before bulk is worked on */
        more = fill(loop);
        if (loop->stage < LOOP_COMPLETE)
            look_at_progress(loop);
        if (loop->stage >= LOOP_COMPLETE && loop->settled_stage != loop->stage)
            settle_down(loop);
    }
    return NULL;
}

/* ------------------------------------------------------------------------------------------------ open and close */

static int watch(struct loop *loop, int fd, enum source source)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = source};

    return fd >= 0 && epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

/* What the RAM file holds already is not known to be right. */
static void mark_stale(struct loop *loop)
{
    off_t length = (off_t)(loop->regions.page_count * PAGE_BYTES), data = 0, hole;

    while (loop->uffd.backing_fd >= 0 && data < length) {
        data = lseek(loop->uffd.backing_fd, data, SEEK_DATA);
        if (data < 0 || data >= length)
            break;
        hole = lseek(loop->uffd.backing_fd, data, SEEK_HOLE);
        if (hole < 0 || hole > length)
            hole = length;
        engine_mark_stale(&loop->engine, (uint64_t)data / PAGE_BYTES,
                          ((uint64_t)hole + PAGE_BYTES - 1) / PAGE_BYTES - (uint64_t)data / PAGE_BYTES);
        data = hole;
    }
}

static void start_parts(struct loop *loop, const struct loop_options *options)
{
    struct engine_options engine = {
        .table = &loop->table,
        .regions = &loop->regions,
        .ops = &uffd_kernel_ops,
        .kernel = &loop->uffd,
        .out = {.owner = loop, .ask = on_ask, .report = on_report},
        .stats = &loop->stats,
        .trace = &loop->trace,
        .private_memory = options->vm->memory == PAGEFERRY_MEMORY_PRIVATE,
    };
    struct urgent_options urgent = {
        .address = options->address,
        .image = options->image,
        .engine = &loop->engine,
        .regions = &loop->regions,
        .events = &loop_urgent_events,
        .owner = loop,
        .now_ns = &loop->now_ns,
        .stats = &loop->stats,
        .epoll_fd = loop->epoll_fd,
        .epoll_tag = SOURCE_URGENT,
    };

    loop->background = options->vm->background != 0;
    loop->spin_us = options->vm->spin_us;
    loop->vmm_pid = options->vm->vmm_pid;
    vmm_start(&loop->vmm, options->vm->vmm_fd, options->vm->vmm_pidfd, options->vm->frames != 0, loop->now_ns);
    engine_start(&loop->engine, &engine, loop->now_ns);
    mark_stale(loop);
    fill_start(&loop->fill, &loop->engine, &loop->stats, loop->port);
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
    struct bulk_port_options port = {.address = options->address, .image = options->image};
    int rc;

    memset(loop, 0, sizeof(*loop));
    loop->now_ns = clock_ns();
    loop->epoll_fd = -1;
    loop->table.fd = -1;
    loop->uffd = (struct uffd){.fd = options->vm->uffd, .backing_fd = options->vm->backing_fd};
    rc = regions_set(&loop->regions, options->regions, options->vm->region_count);
    if (rc == 0)
        rc = table_create(loop->regions.page_count, &loop->table);
    if (rc == 0)
        rc = ring_open(&loop->orders, ORDERS_MAX, sizeof(struct pageferry_order));
    if (rc == 0)
        rc = ring_open(&loop->events, EVENTS_MAX, sizeof(struct pageferry_event));
    if (rc < 0)
        goto out;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        rc = -errno;
        goto out;
    }
    port.page_count = loop->regions.page_count;
    rc = bulk_port_open(options->bulk, &port, &loop->port);
    if (rc < 0)
        goto out;
    start_parts(loop, options);
    rc = watch(loop, loop->uffd.fd, SOURCE_UFFD);
    if (rc == 0)
        rc = watch(loop, loop->vmm.fd, SOURCE_VMM);
    if (rc == 0)
        rc = watch(loop, loop->vmm.pidfd, SOURCE_PIDFD);
    if (rc == 0)
        rc = watch(loop, loop->orders.bell_fd, SOURCE_ORDERS);
    if (rc == 0)
        rc = watch(loop, bulk_port_bell(loop->port), SOURCE_BULK);
    if (rc == 0)
        rc = start_thread(loop);
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
        urgent_close(&loop->urgent);
    }
    if (loop->port != NULL)
        bulk_port_close(loop->port);
    ring_close(&loop->orders);
    ring_close(&loop->events);
    if (loop->table.fd >= 0)
        table_close(&loop->table);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    vmm_close(&loop->vmm);
    if (loop->uffd.fd >= 0)
        close(loop->uffd.fd);
    if (loop->uffd.backing_fd >= 0)
        close(loop->uffd.backing_fd);
}
