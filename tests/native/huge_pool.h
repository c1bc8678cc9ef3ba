/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages of 2 MiB for a test: added to the kernel's pool on top of what is there, and exactly those given back when
 * the test has ended, however it ends: by a process that waits for its end. The lock is that of
 * tests/support/settings.py, held for the change alone.
 */
#ifndef PAGEFERRY_HUGE_POOL_H
#define PAGEFERRY_HUGE_POOL_H

#include <stdbool.h>
#include <stdint.h>

#define HUGE_POOL_PAGE (UINT64_C(2) << 20)

/* False: they are not to be had here. Call it before there are threads, once. */
bool huge_pool_add(uint64_t pages);

#endif
