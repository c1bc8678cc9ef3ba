/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A userfaultfd of one's own: used by the shim inside a VMM, by the probe and by tests. The pager never makes one, it
 * is handed one.
 *
 * It must report faults that the kernel takes for its own sake as well (a device model that reads a disk into guest
 * memory, KVM): a user-mode-only one, which nobody needs a right for, is never made.
 */
#ifndef PAGEFERRY_CREATE_H
#define PAGEFERRY_CREATE_H

#include <stdint.h>

#include "uapi.h"

/* Of one through which writes are seen from outside: asynchronous write protection, absent pages too. Linux 6.7. */
#define CREATE_TRACK_FEATURES \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | \
     UFFD_FEATURE_WP_ASYNC)

enum create_way { CREATE_WAY_NONE = 0, CREATE_WAY_GIVEN, CREATE_WAY_SYSCALL, CREATE_WAY_DEVICE };

/*
 * A new fd, CLOEXEC and non-blocking, before its handshake: from `device_fd` (an open /dev/userfaultfd that somebody
 * with the right to open it has passed on; -1: none), else by the system call, else by opening /dev/userfaultfd.
 * -EPERM: every way is refused; -ENOSYS: this kernel has none; or another -errno. `way` may be NULL.
 */
int create_bare(int device_fd, enum create_way *way);

/*
 * The same after the handshake, with the bits of `wanted` and no others enabled. The handshake takes two fds: the
 * first asks for nothing and learns what there is, which the second call on one fd refuses to tell. -EOPNOTSUPP: this
 * kernel lacks some of `wanted`; `features`, what it has (may be NULL), is set whenever that much was learnt.
 */
int create_uffd(int device_fd, uint64_t wanted, uint64_t *features);

/* What to do about a result of the two, as a sentence. */
const char *create_remedy(int rc);

#endif
