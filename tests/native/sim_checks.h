/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold in a world after each step, and when it has ended; whatever does not is world_failed. */
#ifndef PAGEFERRY_SIM_CHECKS_H
#define PAGEFERRY_SIM_CHECKS_H

#include "sim_world.h"

/* The words that a step changed; now and then all that is in memory. */
void checks_step(struct world *world);
/* Nothing is under way, and nothing that the engine is owed. */
bool checks_quiet(const struct world *world);
/* All troubles are over: nobody is stranded, all is settled, and each page is what the guest must find. */
void checks_end(struct world *world);

#endif
