/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stand-in VMM's memory: made, registered before anything touches it, and handed over by Firecracker's handshake
 * in each of its generations.
 */
#ifndef GUEST_RAM_H
#define GUEST_RAM_H

#include <stdbool.h>
#include <stdint.h>

#define RAM_REGIONS_MAX 64u

enum ram_kind {
    RAM_MEMFD,   /* shared: MISSING|MINOR, two descriptors */
    RAM_FILE,    /* the same on a file of a tmpfs */
    RAM_PRIVATE, /* anonymous: MISSING, one descriptor, as Firecracker's */
};

/* The first and the last may lie on huge pages of a pool; a file does if its file system says so. */

struct ram_options {
    enum ram_kind kind;
    uint64_t huge_bytes;     /* of the pool's pages; 0: none */
    const char *path;        /* RAM_FILE */
    uint64_t region_pages[RAM_REGIONS_MAX];
    uint32_t region_count;
    bool reverse;            /* the image's first region lies at the highest address */
    bool unreserved;         /* of a pool: whether there are enough pages shows only when they are touched */
    bool bare;               /* no userfaultfd, no hand-off: whoever is preloaded sees to that */
    bool event_remove;       /* enabled by UFFDIO_API, as Firecracker does */
    const char *generation;  /* of the handshake: 1.1, 1.7, 1.12, 2.0 */
    const char *handoff;     /* path of the handler's socket */
};

struct ram {
    struct ram_options options;
    uint8_t *region_at[RAM_REGIONS_MAX];
    uint64_t pages;
    int fd;     /* -1: private */
    int uffd;   /* kept until the end: whoever serves may die */
    int socket; /* -1: none, or closed as the older generations do */
};

/* Ends the process with a line on stderr when something cannot be had: 71. */
void ram_make(struct ram *ram, const struct ram_options *options);
/* One sendmsg; waits for nothing. */
void ram_hand_over(struct ram *ram);
uint8_t *ram_page(const struct ram *ram, uint64_t page);
/* Gives pages away as a balloon does: MADV_DONTNEED. */
void ram_give_away(const struct ram *ram, uint64_t first, uint64_t count);
/* The same on shared memory, where only a hole in the file drops the bytes. 0 or -1 and errno. */
int ram_punch(const struct ram *ram, uint64_t first, uint64_t count);

#endif
