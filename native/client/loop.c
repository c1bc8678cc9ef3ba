/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of loop.h. Read loop_run first: it is the whole story. */
#include "loop.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "orders.h"

#define MS_NS UINT64_C(1000000)
#define WAIT_SHORT_NS (10 * MS_NS)
#define WAIT_EVENTS 8
#define BATCHES_A_TURN 16 /* of kernel events: then answers have their turn, however many threads fault */
#define MEMORY_PATIENCE_NS (PF_LIMIT_FULL_RETRY_MS * MS_NS)
#define LET_GO_AGAIN_NS (100 * MS_NS)

uint64_t loop_clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* ------------------------------------------------------------------------------- what engine and urgent tell us */

void loop_end(struct loop *loop, uint32_t kind, uint32_t reason, const char *text)
{
    struct pageferry_event event = {.kind = kind, .reason = reason, .cookie = loop->arm_cookie};

    if (loop->urgent.round.wanted && !loop->arm_wanted)
        event.cookie = loop->round_cookie;
    if (loop->stage < LOOP_ENDED) {
        loop->stage = LOOP_ENDED;
        snprintf(event.text, sizeof(event.text), "%s", text);
        loop->end = event;
        tell(&loop->tell, &event, NULL);
    }
}

/* Before the first attach nobody knows whether the address is right: say at once what is wrong. */
static uint64_t link_patience_ns(const struct loop *loop)
{
    return loop->stage == LOOP_OPEN ? 0 : PF_LIMIT_LINK_PAUSE_MS * MS_NS;
}

static void on_ask(void *owner, uint64_t page)
{
    struct loop *loop = owner;

    if (loop->stage >= LOOP_COMPLETE)
        return;
    fill_hint(&loop->fill, page, loop->now_ns);
    urgent_ask(&loop->urgent, page);
}

static void vmm_is_gone(struct loop *loop)
{
    loop_end(loop, PAGEFERRY_EVENT_VMM_GONE, PF_REASON_NO_VMM, "the VMM has exited");
}

static const char *what_is_full(const struct loop *loop)
{
    if (loop->regions.unit_pages == 1)
        return "no memory for a page: make room in the tmpfs that holds the RAM file, or raise the memory limit";
    return "the huge page pool has no page left: free some, or raise nr_hugepages of that size (and the limit of the "
           "hugetlb cgroup)";
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    struct loop *loop = owner;
    struct pageferry_event event = {.page = page, .value = value};

    switch (report) {
    case ENGINE_REPORT_ALARM:
        event.kind = PAGEFERRY_EVENT_ALARM;
        event.reason = PF_REASON_BUG;
        tell(&loop->tell, &event, text);
        break;
    case ENGINE_REPORT_FULL:
        tell_pause_began(&loop->memory_pause, PF_REASON_NO_MEMORY, what_is_full(loop), loop->now_ns);
        break;
    case ENGINE_REPORT_FULL_OVER:
        tell_pause_over(&loop->tell, &loop->memory_pause, loop->now_ns);
        break;
    case ENGINE_REPORT_GONE:
        vmm_is_gone(loop);
        break;
    }
}

/* For the histograms: what the time is in the middle of a turn. */
static uint64_t on_clock(void *owner)
{
    (void)owner;
    return loop_clock_ns();
}

static bool on_drop(void *owner, uint64_t first_page, uint64_t page_count)
{
    return zapper_drop(owner, first_page, page_count);
}

const struct engine_out loop_engine_out = {
    .ask = on_ask, .drop = on_drop, .report = on_report, .clock_ns = on_clock};

static void on_attached(void *owner)
{
    struct loop *loop = owner;
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_ATTACHED, .value = loop->urgent.content_id};

    if (loop->stage == LOOP_OPEN) {
        loop->stage = LOOP_ATTACHED;
        loop->engine.frozen_version = loop->urgent.live ? 0 : loop->urgent.as_of; /* 0: it still changes */
        loop->table.header->content_id = loop->urgent.content_id;
        port_attach(&loop->port, loop->urgent.content_id);
        tell(&loop->tell, &event, NULL);
    }
    tell_pause_over(&loop->tell, &loop->link_pause, loop->now_ns);
}

static void on_unreachable(void *owner, uint32_t reason, const char *why)
{
    struct loop *loop = owner;
    char text[GRPC_TEXT_BYTES];

    if (loop->stage == LOOP_OPEN && loop->urgent.link.next_entry < loop->urgent.link.address->count)
        return; /* a name may have several addresses, of which not all have to work */
    if (loop->link_pause.since_ns != 0 && loop->link_pause.reason != PF_REASON_GOING_AWAY)
        return; /* it was refused: that is why the link went down, and the better text */
    snprintf(text, sizeof(text), "page server %.64s: %.100s", loop->urgent.link.address->text, why);
    tell_pause_began(&loop->link_pause, reason, text, loop->now_ns);
}

static void on_refused(void *owner, uint32_t reason, const char *why)
{
    struct loop *loop = owner;

    if (loop->stage < LOOP_ARMED) {
        loop_end(loop, PAGEFERRY_EVENT_FAILED, reason, why);
    } else { /* told at once: it will not pass by itself */
        tell_pause_began(&loop->link_pause, reason, why, loop->now_ns);
        tell_pause_if_long(&loop->tell, &loop->link_pause, 0, loop->now_ns);
    }
}

const struct urgent_events loop_urgent_events = {
    .attached = on_attached,
    .unreachable = on_unreachable,
    .refused = on_refused,
};

/* ---------------------------------------------------------------------------------------------- what the VMM says */

/* The VMM cleans up, and it is not the guest that gives memory away: before arming no guest runs at all; and a device of
 * QEMU's (virtio-mem, before 8.1) empties its whole RAM file when it is made, before the state is loaded that would say
 * what is plugged in. That is the first that is heard of the file, and nobody has touched it yet. */
static bool is_kept(const struct loop *loop, uint64_t first, uint64_t end)
{
    bool whole = first == 0 && end == loop->regions.page_count;

    return loop->stage < LOOP_ARMED ||
           (whole && !loop->vmm.discarded && stats_get(&loop->stats, STATS_faults_total) == 0);
}

static void take_discard(struct loop *loop, const struct vmm_span *discard)
{
    /* Only whole pages are dropped; a report that goes beyond the image ends there. */
    uint64_t first = discard->offset_bytes / PAGE_BYTES + (discard->offset_bytes % PAGE_BYTES != 0);
    uint64_t end = discard->offset_bytes > UINT64_MAX - discard->length_bytes
                       ? loop->regions.page_count
                       : (discard->offset_bytes + discard->length_bytes) / PAGE_BYTES;
    bool kept;

    if (end > loop->regions.page_count)
        end = loop->regions.page_count;
    kept = first < end && is_kept(loop, first, end);
    stats_add(&loop->stats, STATS_discards_total, 1);
    stats_add(&loop->stats, STATS_discards_kept_total, kept);
    if (first < end && !kept)
        engine_removed(&loop->engine, first, end - first);
    vmm_discarded(&loop->vmm, discard, kept);
}

static void take_vmm(struct loop *loop)
{
    struct vmm_span span;
    enum vmm_said said = vmm_ready(&loop->vmm, &span, loop->now_ns);

    if (said == VMM_DISCARD) {
        take_discard(loop, &span);
    } else if (said == VMM_CLEAR) {
        poison_clear(loop, &span);
    } else if (said == VMM_ZAPPED) {
        zapper_answered(loop, &span);
    } else if (said == VMM_GONE) {
        vmm_is_gone(loop);
    }
}

/* ---------------------------------------------------------------------------------------------------- progress */

/* Poisoned pages stay intercepted. */
static bool needs_us(const struct loop *loop)
{
    return loop->handed_on || counts_of(&loop->engine.counts, PAGE_POISONED) > 0 || !engine_settled(&loop->engine);
}

void loop_let_go_perhaps(struct loop *loop)
{
    struct kernel_span span;

    if (loop->stage != LOOP_COMPLETE || loop->let_go || loop->now_ns < loop->let_go_ns || needs_us(loop))
        return;
    loop->let_go = true;
    for (uint32_t i = 0; i < loop->regions.count; i++) {
        const struct region *region = &loop->regions.by_page[i];
        int rc;
        regions_span(&loop->regions, region->first_page, region->page_count, &span);
        rc = uffd_unregister(&loop->uffd, &span);
        if (rc == -ENOMEM)
            loop->let_go = false;
        else if (rc < 0)
            stats_add(&loop->stats, STATS_alarms_total, 1);
        loop->engine.ops->wake(loop->engine.kernel, &span);
    }
    loop->let_go_ns = loop->now_ns + LET_GO_AGAIN_NS;
}

/* Everything is the guest's. */
static void complete(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_COMPLETE,
                                    .value = counts_of(&loop->engine.counts, PAGE_POISONED)};

    loop->stage = LOOP_COMPLETE;
    loop_let_go_perhaps(loop);
    atomic_store(&loop->may_collapse, !loop->handed_on);
    vmm_complete(&loop->vmm);
    tell_pause_over(&loop->tell, &loop->link_pause, loop->now_ns);
    tell_pause_over(&loop->tell, &loop->memory_pause, loop->now_ns);
    tell(&loop->tell, &event, NULL);
}

/* The source's phase, if it is another. A reader that is far behind hears of the newest later. */
static void look_at_phase(struct loop *loop)
{
    struct pageferry_event event = {
        .kind = PAGEFERRY_EVENT_PHASE,
        .value = loop->urgent.phase,
        .page = loop->urgent.cancel_requested,
    };

    if ((loop->urgent.phase != loop->phase_told || loop->urgent.cancel_requested != loop->cancel_told) &&
        tell(&loop->tell, &event, NULL)) {
        loop->phase_told = loop->urgent.phase;
        loop->cancel_told = loop->urgent.cancel_requested;
    }
}

static void look_at_progress(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_POPULATED};

    look_at_phase(loop);
    orders_look(loop);
    if (loop->stage == LOOP_ATTACHED && loop->background && !loop->populated && !loop->urgent.round.wanted &&
        loop_knows_pages(loop) && engine_settled(&loop->engine)) {
        loop->populated = true;
        tell(&loop->tell, &event, NULL);
    } else if (loop->stage == LOOP_ARMED && engine_settled(&loop->engine)) {
        complete(loop);
    }
    tell_pause_if_long(&loop->tell, &loop->link_pause, link_patience_ns(loop), loop->now_ns);
    tell_pause_if_long(&loop->tell, &loop->memory_pause, MEMORY_PATIENCE_NS, loop->now_ns);
    if (!loop->early_told && loop->engine.first_early_ns != 0 && loop->stage < LOOP_ARMED &&
        loop->now_ns - loop->engine.first_early_ns >= PF_LIMIT_EARLY_FAULT_MS * MS_NS) {
        event.kind = PAGEFERRY_EVENT_EARLY_FAULT;
        event.page = loop->engine.early_page;
        loop->early_told = true;
        tell(&loop->tell, &event, "a thread of the VMM has waited over a second for a page before arming");
    }
}

/* -------------------------------------------------------------------------------------------------------- turn */

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* For how long there is nothing to do; UINT64_MAX: until something happens. */
static uint64_t idle_ns(const struct loop *loop, bool more)
{
    uint64_t next_ns = poison_next_ns(loop);

    if (loop->stage < LOOP_COMPLETE) {
        next_ns = least(next_ns, least(urgent_next_ns(&loop->urgent), engine_next_ns(&loop->engine)));
        next_ns = least(next_ns, tell_pause_next_ns(&loop->link_pause, link_patience_ns(loop)));
        next_ns = least(next_ns, tell_pause_next_ns(&loop->memory_pause, MEMORY_PATIENCE_NS));
        if (loop->engine.first_early_ns != 0 && !loop->early_told && loop->stage < LOOP_ARMED)
            next_ns = least(next_ns, loop->engine.first_early_ns + PF_LIMIT_EARLY_FAULT_MS * MS_NS);
        if (loop->background)
            next_ns = least(next_ns, fill_next_ns(&loop->fill, loop->now_ns));
    } else if (loop->stage == LOOP_COMPLETE && !loop->let_go) {
        next_ns = least(next_ns, engine_next_ns(&loop->engine));
        if (loop->let_go_ns > loop->now_ns)
            next_ns = least(next_ns, loop->let_go_ns);
    }
    next_ns = least(next_ns, zapper_next_ns(loop));
    if (more || next_ns <= loop->now_ns || loop->now_ns - loop->active_ns < (uint64_t)loop->spin_us * 1000)
        return 0;
    return next_ns == UINT64_MAX ? UINT64_MAX : next_ns - loop->now_ns;
}

/* A pace is kept in fractions of a millisecond; where a filter of system calls does not know the newer call, as well as
 * the older one can. */
static int await(const struct loop *loop, bool more, struct epoll_event *ready)
{
    uint64_t wait_ns = idle_ns(loop, more);
    int wait_ms = wait_ns == UINT64_MAX ? -1 : (int)least(wait_ns / MS_NS + (wait_ns % MS_NS != 0), 60000), count = -1;
    struct timespec wait = {.tv_nsec = (long)wait_ns};

    if (wait_ns > 0 && wait_ns < WAIT_SHORT_NS)
        count = epoll_pwait2(loop->epoll_fd, ready, WAIT_EVENTS, &wait, NULL);
    if (count < 0)
        count = epoll_wait(loop->epoll_fd, ready, WAIT_EVENTS, wait_ms);
    return count;
}

static bool take(struct loop *loop, const struct epoll_event *event)
{
    bool go_on = true;

    switch (event->data.u64) {
    case LOOP_SOURCE_URGENT:
        if (loop->stage < LOOP_COMPLETE)
            urgent_ready(&loop->urgent, event->events);
        break;
    case LOOP_SOURCE_VMM:
        if ((event->events & EPOLLOUT) != 0)
            vmm_flush(&loop->vmm);
        if ((event->events & ~(uint32_t)EPOLLOUT) != 0)
            take_vmm(loop);
        break;
    case LOOP_SOURCE_PIDFD:
        vmm_is_gone(loop);
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->vmm.pidfd, NULL);
        break;
    case LOOP_SOURCE_ORDERS:
        go_on = orders_take(loop);
        break;
    case LOOP_SOURCE_BULK:
        ring_silence(&loop->port.slices);
        break;
    }
    return go_on;
}

/* The kernel's events before anything else that is ready. */
static void take_faults(struct loop *loop, const struct epoll_event *ready, int count)
{
    for (int i = 0; i < count; i++)
        if (ready[i].data.u64 == LOOP_SOURCE_UFFD && loop->stage < LOOP_ENDED)
            for (int batches = 1; engine_turn(&loop->engine, loop->now_ns) == TABLE_BATCH_EVENTS &&
                                  batches < BATCHES_A_TURN; batches++)
                ;
}

/* Bulk and sweep. True: there is more to do at once. What bulk has brought is taken at every stage, or its thread
 * would wait for our slots while other VMs wait for it. */
static bool fill(struct loop *loop)
{
    bool more = fill_take(&loop->fill, loop->now_ns);
    /* Private memory has no page cache: bytes could only be mapped, and that waits for arming. */
    enum loop_stage first = loop->engine.private_memory ? LOOP_ARMED : LOOP_ATTACHED;

    if (loop->fill.doubtful) {
        urgent_doubt(&loop->urgent, "bulk has wrong digests");
        loop->fill.doubtful = false;
    }
    if (loop->background && loop->stage >= first && loop->stage < LOOP_COMPLETE && loop_knows_pages(loop) &&
        counts_of(&loop->engine.counts, PAGE_MISSING) > 0) {
        loop->fill.urgent_bytes = link_arrived_bytes(&loop->urgent.link, loop->now_ns);
        more |= fill_plan(&loop->fill, loop->now_ns);
    }
    if (loop->background && loop->stage == LOOP_ARMED)
        more |= fill_sweep(&loop->fill);
    return more;
}

/* Complete, or at an end: nothing is asked any more. At an end the kernel's events are not read either. After COMPLETE they
 * are: a removal may have been announced while its memory was let go of, and its thread waits for a reader. */
static void settle_down(struct loop *loop)
{
    urgent_close(&loop->urgent);
    port_rest(&loop->port);
    if (loop->stage == LOOP_ENDED)
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, loop->uffd.fd, NULL);
    loop->settled_stage = loop->stage;
}

/* What the VMM says is not read while it does not read, or while what it has said before is worked on. */
static void watch_vmm(struct loop *loop)
{
    uint32_t watched = vmm_watched(&loop->vmm, poison_holds_vmm(loop));
    struct epoll_event event = {.events = watched, .data.u64 = LOOP_SOURCE_VMM};

    if (loop->vmm.fd >= 0 && watched != loop->vmm_watched &&
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, loop->vmm.fd, &event) == 0)
        loop->vmm_watched = watched;
}

void *loop_run(void *argument)
{
    struct loop *loop = argument;
    struct epoll_event ready[WAIT_EVENTS];
    bool go_on = true, more = false;

    while (go_on) {
        int count = await(loop, more, ready);
        loop->now_ns = loop_clock_ns();
        if (count > 0)
            loop->active_ns = loop->now_ns;
        take_faults(loop, ready, count);
        for (int i = 0; i < count; i++)
            go_on &= take(loop, &ready[i]);
        if (loop->stage < LOOP_ENDED && !loop->let_go)
            engine_tick(&loop->engine, loop->now_ns);
        if (loop->stage < LOOP_COMPLETE)
            urgent_turn(&loop->urgent); /* asks leave before bulk is worked on */
        more = fill(loop);
        more |= poison_turn(loop);
        if (loop->stage < LOOP_COMPLETE)
            look_at_progress(loop);
        loop_let_go_perhaps(loop);
        more |= zapper_turn(loop); /* behind what may have armed */
        if (loop->stage >= LOOP_COMPLETE && loop->settled_stage != loop->stage)
            settle_down(loop);
        watch_vmm(loop);
    }
    return NULL;
}
