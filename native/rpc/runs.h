/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of runs on the wire, room-internal: flat numbers, packed or not, in as many pieces as the sender likes. */
#ifndef PAGEFERRY_RUNS_H
#define PAGEFERRY_RUNS_H

#include "messages.h"
#include "pb.h"

#define RUN_PAIR 2 /* numbers of a run in a request: first, count */
#define RUN_FOUR 4 /* and in an answer: first, count, kind, version */

struct run_list {
    struct run *runs;
    uint32_t runs_max;
    uint32_t run_numbers; /* RUN_PAIR or RUN_FOUR */
    uint64_t number_count;
};

/* Takes what one field brings, or passes over one of another type; false: too many, or no numbers. */
bool run_list_add(struct run_list *list, const struct pb_field *field);
/* All have come. 0, or -PF_REASON_BAD_REQUEST. */
int run_list_end(const struct run_list *list, uint32_t *run_count);
/* Packed; nothing for none. */
void run_list_write(struct pb_writer *writer, uint32_t field, const struct run *runs, uint32_t run_count,
                    uint32_t run_numbers);

#endif
