/* SPDX-License-Identifier: Apache-2.0 */
/*
 * StreamPages with open_round: its worker settles a round of a live image in steps, between the turns of its
 * connections, and the call is answered from the map as it is then.
 */
#ifndef PAGEFERRY_OPENING_H
#define PAGEFERRY_OPENING_H

#include "serve.h"

/* 0: the round is under way, and the call is resumed when it is settled; or minus a reason, told. */
int opening_begin(struct call *call);
/* A step of the oldest, if there is one. Its connection wants a turn when this returns it; NULL: none does. */
struct connection *opening_step(struct worker *worker);
/* The call has ended, whether it had a round under way or not. */
void opening_leave(struct call *call);

#endif
