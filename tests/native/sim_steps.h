/* SPDX-License-Identifier: Apache-2.0 */
/* The steps that a world takes: what guest, VMM, server and link do, and what the engine is told. */
#ifndef PAGEFERRY_SIM_STEPS_H
#define PAGEFERRY_SIM_STEPS_H

#include "sim_world.h"

/* The engine has asked; an answer comes some day. */
void steps_server_asked(struct world *world, uint64_t page);
/* The engine wants the VMM to let go of these. */
void steps_vmm_drops(struct world *world, uint64_t first_page, uint64_t page_count);
void steps_random(struct world *world);
/* Switch-over: the map is frozen, what is older is invalidated, then faults are resolved. */
void steps_arm(struct world *world);
/* One round in which nothing goes wrong. */
void steps_heal(struct world *world);

#endif
