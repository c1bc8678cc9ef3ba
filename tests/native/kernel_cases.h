/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cases in which Linux and the simulated kernel must agree (kernel_script.h has their words): facts, each with
 * what Linux must say, and every call on every state of a page, in the middle of a run of pages that it can do.
 */
#ifndef PAGEFERRY_KERNEL_CASES_H
#define PAGEFERRY_KERNEL_CASES_H

#include "kernel_script.h"

#define CASES_MAX 900

/* Their number. */
uint32_t kernel_cases(struct kernel_case cases[CASES_MAX]);

#endif
