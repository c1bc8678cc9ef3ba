/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bulk thread: one a process. Each VM has a port at it: ranges go in, checked slices come back, both by rings. The
 * thread never touches a page table or guest memory; what it hands over lies in a slot of the port's fixed pool until
 * the VM's loop gives the slot back.
 *
 * The pacing is HTTP/2's: the connection's window bounds what can be under way, and a loop that takes its time lets the
 * slots run out, which stops the reading.
 */
#ifndef PAGEFERRY_BULK_H
#define PAGEFERRY_BULK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../base/ring.h"
#include "../base/stats.h"
#include "../gen/contract.h"
#include "../pager/plan.h"
#include "../rpc/messages.h"
#include "link.h"

struct bulk;
struct bulk_port;

/* One batch, checked, or the end of a range. */
struct bulk_slice {
    uint32_t slot;       /* BULK_NO_SLOT: the end of a range */
    uint32_t run_count;
    uint64_t range_page; /* first page of the range, as it was asked */
    uint32_t reason;     /* end of a range: 0, or why it ended early */
    uint32_t later;      /* some of its pages cannot be read now */
    const struct run *runs;
    const uint8_t *data; /* the pages of the DATA runs, in order */
};

#define BULK_NO_SLOT UINT32_MAX

struct bulk_port_options {
    const struct address *address;
    const char *image;
    uint64_t page_count;
    uint32_t slots; /* 0: the default */
};

/* 0 or -errno. */
int bulk_open(struct bulk **bulk);
/* All ports are closed before. */
void bulk_close(struct bulk *bulk);

int bulk_port_open(struct bulk *bulk, const struct bulk_port_options *options, struct bulk_port **port);
/* Waits until the thread has let go of it. */
void bulk_port_close(struct bulk_port *port);

/* ---- for the VM's loop ---- */

/* The content id that digests are seeded with, once the server has described the image; starts the dialling. */
void bulk_port_attach(struct bulk_port *port, uint64_t content_id);
/* False: as many ranges are on their way as there may be. */
bool bulk_port_ask(struct bulk_port *port, const struct plan_range *range);
/* The oldest slice, if there is one. */
bool bulk_port_take(struct bulk_port *port, struct bulk_slice *slice);
/* The slice's bytes and runs are not needed any more. */
void bulk_port_give_back(struct bulk_port *port, uint32_t slot);
/* Readable when there is something to take. */
int bulk_port_bell(const struct bulk_port *port);
void bulk_port_silence(struct bulk_port *port);
/* Written by the bulk thread. */
const struct stats *bulk_port_stats(const struct bulk_port *port);

#endif
