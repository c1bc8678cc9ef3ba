/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A worker of the page server: one thread, one epoll. It accepts connections, each of which is its own for
 * life, and gives every ready one a turn: what one read(2) brings, then what it may write within
 * WRITE_BUDGET_BYTES. So a page costs one epoll_wait, one read and one write, and no connection can hold the
 * others up.
 */
#ifndef PAGEFERRY_LISTENER_H
#define PAGEFERRY_LISTENER_H

#include "serve.h"

/*
 * Starts the thread. `listeners` are non-blocking and stay the caller's, who keeps them until listener_stop.
 * The worker is zeroed but for `service`. 0 or minus a reason; on failure nothing is left of it.
 */
int listener_start(struct worker *worker, const struct watched *listeners, uint32_t listener_count,
                   uint32_t number);
/* Look at the service's flags. From any thread. */
void listener_ring(struct worker *worker);
/* Waits for the thread, which ends because service.stopping is set; its connections are closed. */
void listener_stop(struct worker *worker);
/* Then gives up all that is left of it. */
void listener_close(struct worker *worker);

#endif
