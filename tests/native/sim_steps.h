/* SPDX-License-Identifier: Apache-2.0 */
/* The steps that a world takes: what guest, VMM, server and link do, and what the engine is told. */
#ifndef PAGEFERRY_SIM_STEPS_H
#define PAGEFERRY_SIM_STEPS_H

#include "sim_world.h"

/* The token of a page at a version: 0 is a page of zeros. */
uint64_t steps_content(uint64_t page, uint64_t version);
/* The engine has asked; an answer comes some day. */
void steps_server_asked(struct world *world, uint64_t page);
/* If the word says POISONED, the guest may not read the page any more. */
void steps_note_lost(struct world *world, uint64_t page);
void steps_random(struct world *world);
/* One round in which nothing goes wrong. */
void steps_heal(struct world *world);

#endif
