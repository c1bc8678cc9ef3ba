/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The orders of a VM's owner, on its loop's thread: what is done at once, and what is answered by an event later. An
 * order that makes no sense now is refused, and nothing else changes.
 */
#ifndef PAGEFERRY_ORDERS_H
#define PAGEFERRY_ORDERS_H

#include "loop.h"

/* Those that have come. False: the thread is to end. */
bool orders_take(struct loop *loop);
/* Those that wait for something: answers them when it has come. */
void orders_look(struct loop *loop);

/* Only this order fails: FAILED, with page 1. */
void orders_refuse(struct loop *loop, uint64_t cookie, uint32_t reason, const char *why);

#endif
