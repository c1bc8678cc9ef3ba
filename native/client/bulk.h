/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bulk thread: one a process. It turns the ports of all VMs (port.h): ranges in, checked slices out. It never
 * touches a page table or guest memory.
 */
#ifndef PAGEFERRY_BULK_H
#define PAGEFERRY_BULK_H

#include "port.h"

struct bulk;

/* 0 or -errno. */
int bulk_open(struct bulk **bulk);
/* All ports have left before. */
void bulk_close(struct bulk *bulk);
/* The thread works on the port from now on. 0 or -errno. */
int bulk_join(struct bulk *bulk, struct port *port);
/* Waits until the thread has let go of it. */
void bulk_leave(struct bulk *bulk, struct port *port);

#endif
