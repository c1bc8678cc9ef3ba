/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One RAM file of the VMM under the shim: how it is known, its hand-off when it is mapped, and what is reported before
 * a part of it is dropped. A VMM may have several (QEMU: the machine's, and one of each virtio-mem): each has a hand-off
 * of its own, to a fault client that serves it by itself, and nothing is shared between them but the settings. Our own
 * zaps do not pass here: they are no drops (kernel/zap.h).
 */
#ifndef PAGEFERRY_RAM_H
#define PAGEFERRY_RAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "handoff.h"

#define RAM_PAGE_BYTES UINT64_C(4096)

/* For all of them alike. */
struct ram_settings {
    enum handoff_role role;
    int timeout_ms;
    int device_fd;
};

struct ram {
    const char *name; /* of the file, or memfd:NAME; NULL: there is none */
    const char *socket_path;
    const struct ram_settings *settings;
    pthread_mutex_t lock; /* over the hand-off, and a report after it: one at a time */
    atomic_bool taken;    /* the hand-off has been made; all below is set before */
    dev_t device;
    ino_t inode;
    uint64_t start;
    uint64_t length_bytes;
    struct handoff handoff;
};

/* What mmap was asked. */
struct ram_mapping {
    void *address;
    size_t length_bytes;
    int protection, flags, fd;
    off_t offset;
};

/* Whether the descriptor is of this file: by what it is and not by the path it was opened by. */
bool ram_is(const struct ram *ram, int fd, struct stat *file);
bool ram_touched(const struct ram *ram, const void *address, size_t length_bytes);

/* Pages of it may be absent still: what touches them pulls them. */
bool ram_arriving(struct ram *ram);
/* It is being restored into: not yet mapped, or not whole. */
bool ram_restoring(struct ram *ram);
bool ram_tracked(const struct ram *ram);
/* The VMM says MADV_HUGEPAGE or MADV_NOHUGEPAGE. True: that is kept, and done when every page is here; where pages are
 * tracked one by one, never. */
bool ram_keeps_wish(struct ram *ram, int advice);

/* mmap of the file: the first one is handed over. */
void *ram_map(struct ram *ram, const struct ram_mapping *mapping, const struct stat *file);
void *ram_map_plainly(const struct ram_mapping *mapping);

/* Drops, after they were reported: as the system calls do, 0 or -1 and errno. */
int ram_punch(struct ram *ram, int fd, int mode, off_t offset, off_t length_bytes);
int ram_remove(struct ram *ram, void *address, size_t length_bytes);

#endif
