/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The loop of one VM: the one thread that owns its uffd, page table, urgent connection and VMM socket. A turn looks at
 * the kernel's events first, then at urgent answers, then at a bounded slice of bulk (DESIGN 3.10).
 */
#ifndef PAGEFERRY_LOOP_H
#define PAGEFERRY_LOOP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../base/ring.h"
#include "../kernel/mapping.h"
#include "../kernel/uffd.h"
#include "../pageferry.h"
#include "../pager/engine.h"
#include "bulk.h"
#include "fill.h"
#include "poison.h"
#include "tell.h"
#include "urgent.h"
#include "vmm.h"
#include "zapper.h"

#define LOOP_ORDER_STOP 0 /* internal kind: the thread ends */

/* How far the VM has come; only ever grows. */
enum loop_stage { LOOP_OPEN = 0, LOOP_ATTACHED, LOOP_ARMED, LOOP_COMPLETE, LOOP_ENDED };

struct loop {
    pthread_t thread;
    bool thread_runs;
    uint64_t now_ns;
    int epoll_fd;
    enum loop_stage stage;
    enum loop_stage settled_stage; /* settle_down was called for it */
    bool arm_wanted; /* ordered before the image was described */
    uint64_t arm_cookie;
    uint64_t round_cookie;  /* of the round that is wanted */
    uint64_t frozen_as_of;  /* of a live image: the newest round was the last there is, as of this; 0: it was not */
    bool populated;         /* POPULATED was told, and nothing has gone missing since */
    uint32_t phase_told;    /* the source's, and whether it asks to cancel */
    bool cancel_told;
    bool background;
    bool handed_on; /* the registration serves somebody else too: it does not end by itself */
    uint32_t spin_us;
    int vmm_pid;
    struct uffd uffd;
    struct regions regions;
    struct table table;
    struct engine engine;
    struct urgent urgent;
    struct vmm vmm;
    uint32_t vmm_watched; /* its socket, for these */
    struct poison poison;
    struct zapper zapper;
    struct ring orders; /* struct pageferry_order, from the owner of the handle */
    struct tell tell;   /* events, to it */
    struct stats stats;
    struct trace trace;
    struct tell_pause link_pause, memory_pause;
    bool early_told;
    bool let_go; /* complete, and unregistered: the kernel has nothing for us any more */
    uint64_t let_go_ns; /* that could not be, and is tried again then */
    _Atomic bool may_collapse; /* complete, and no page server tracks it: read by whoever collapses */
    struct pageferry_event end; /* FAILED or VMM_GONE, once it was told: the answer to orders that come later */
    uint64_t active_ns; /* the newest event or answer: spinning counts from it */
    struct port port;
    struct bulk *bulk; /* the port has joined; NULL: not yet */
    struct fill fill;
};

struct loop_options {
    const struct pageferry_vm_options *vm;
    const struct address *address;
    const char *image; /* kept by pointer */
    const struct grpc_headers *who; /* as urgent.h has it */
    struct bulk *bulk;
    const struct region *regions;
    struct file_pages pages; /* of the memory */
    uint32_t bulk_slots; /* 0: the default */
};

/* What epoll says is ready. */
enum loop_source {
    LOOP_SOURCE_UFFD = 1,
    LOOP_SOURCE_URGENT,
    LOOP_SOURCE_VMM,
    LOOP_SOURCE_PIDFD,
    LOOP_SOURCE_ORDERS,
    LOOP_SOURCE_BULK
};

/* Which pages a live image has is not known before its map has been read. */
static inline bool loop_knows_pages(const struct loop *loop)
{
    return !loop->urgent.live || loop->urgent.round.since != 0;
}

/* There is nothing left that could be done for this VM: said once. An order that waits is answered with it. */
void loop_end(struct loop *loop, uint32_t kind, uint32_t reason, const char *text);

/* The registration ends, if it is complete and nothing needs us any more. What the kernel has no room for just now, to divide
 * a mapping, stands until it has. */
void loop_let_go_perhaps(struct loop *loop);

/* The thread, in loop.c; opening and closing are in loop_open.c. */
void *loop_run(void *loop);
extern const struct urgent_events loop_urgent_events;
extern const struct engine_out loop_engine_out; /* owner is set by the opener */
uint64_t loop_clock_ns(void);

/* Takes over the fds of options->vm once it succeeds. 0 or -errno. */
int loop_open(struct loop *loop, const struct loop_options *options);
/* Ends the thread and closes everything. */
void loop_close(struct loop *loop);

#endif
