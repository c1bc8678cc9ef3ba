/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A case of test_kernels.c is a few words, done on one kernel or the other; what is seen of each step is a line of a
 * record, and two kernels agree when the lines are the same.
 *
 *   copy 1+3 a; read 2 -> reads a2; dontneed 2; read 2 -> sleeps; events -> minor 2
 *
 * A step is a verb, its pages (first, or first+count; of `events` the capacity) and a letter for the bytes that are
 * written: page 2 written with `a` holds a2; what else it may hold is zeros, or torn. Behind the arrow stands what
 * Linux must say: a fact that the simulation rests on, and not only an agreement.
 *
 *   populate map copy zero punch poison wake events       the calls of kernel_ops; results in their order's words
 *   populatehalf punchhalf                                the first half of one huge page: done is told in halves
 *   unread                                                events, sorted: threads woken together come in any order
 *   read readlast write                                   a new thread, numbered from 0: sleeps, reads, wrote, signal
 *   dontneed remove unregister unmap exit                 the VMM
 *   discard foreign allocate alias cache cut full room    somebody at the file
 *   silent reclaim                                        Linux by itself
 *
 * Each step also tells which threads it has ended, and how. After the last one all is looked at: the events that are
 * unread, what the cache holds of each page, and what a new thread meets there.
 */
#ifndef PAGEFERRY_KERNEL_SCRIPT_H
#define PAGEFERRY_KERNEL_SCRIPT_H

#include "kernel_side.h"

#define CASE_NAME 80
#define CASE_STEPS 384
#define RECORD_LINES 48
#define SIGHT_TEXT 96
#define RECORD_TEXT (SIGHT_TEXT + 44) /* a step and what was seen */
#define WRONG_TEXT (4 * RECORD_TEXT)

struct kernel_case {
    char name[CASE_NAME];
    enum real_memory memory;
    bool announced; /* removals are announced: EVENT_REMOVE */
    bool small;     /* a tmpfs that can be filled; needs root */
    char steps[CASE_STEPS];
};

struct record {
    uint32_t count;
    char lines[RECORD_LINES][RECORD_TEXT];
    char wrong[WRONG_TEXT / 2]; /* the first thing that was not as the case says, or "" */
};

void script_run(const struct kernel_case *one, const struct side_calls *calls, const struct plant *plant,
                struct record *record);
/* Whether Linux said what the case says, and the simulation the same in every line; if not, `what` tells. */
bool script_agree(const struct record *real, const struct record *sim, char what[WRONG_TEXT]);

#endif
