/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much memory this process may still fill before its cgroup, or one above it, lets the kernel kill it. What the
 * fault client writes before arming is charged to its own cgroup, not to the VM's.
 */
#ifndef PAGEFERRY_HEADROOM_H
#define PAGEFERRY_HEADROOM_H

#include <stdbool.h>
#include <stdint.h>

#define HEADROOM_PATH_BYTES 512

struct headroom {
    uint64_t available_bytes; /* of the machine, as the kernel estimates it */
    bool grouped;             /* memory cgroups could be read */
    bool limited;             /* one of them has a limit; the tightest one: */
    uint64_t limit_bytes;
    uint64_t used_bytes;
    uint64_t free_bytes;
    char group[HEADROOM_PATH_BYTES]; /* its folder */
};

/* `root` goes before every path: "" but in tests. 0, or -errno of /proc/meminfo. */
int headroom_look(const char *root, struct headroom *headroom);

#endif
