/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this process has mapped at a range of its own addresses, as /proc/self shows it. For whoever is about to take
 * mappings away: what is lost with them depends on what they are. No state, no malloc: it runs inside a VMM too.
 */
#ifndef PAGEFERRY_OWN_MAPS_H
#define PAGEFERRY_OWN_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct own_maps {
    bool whole;          /* every byte is mapped */
    bool shared;         /* all of it MAP_SHARED */
    bool private_memory; /* all of it MAP_PRIVATE */
    bool of_file;        /* all of it maps the file that was asked for, from the offset on */
    bool anonymous;      /* none of it maps any file; huge pages of a pool that nobody named count as none */
    bool huge;           /* some of it is of those */
    int protection;      /* PROT_*, of the first mapping */
    /* By the two below, when they are asked for: they cost a walk of the page tables. */
    uint64_t unit_bytes; /* the largest that the kernel maps at once */
    uint32_t flags;      /* OWN_MAPS_*, what all of it has */
};

#define OWN_MAPS_MISSING 1u       /* registered with a userfaultfd, for this */
#define OWN_MAPS_MINOR 2u
#define OWN_MAPS_WP 4u
#define OWN_MAPS_NO_HUGE_PAGES 8u /* MADV_NOHUGEPAGE */
#define OWN_MAPS_NO_FORK 16u      /* MADV_DONTFORK */
#define OWN_MAPS_NO_DUMP 32u      /* MADV_DONTDUMP */

/* `file` and `offset_bytes`: what `of_file` is held against; NULL: nothing is. `closely`: unit_bytes and flags too.
 * 0, or -errno: this process cannot look. */
int own_maps_look(uint64_t address, uint64_t length_bytes, const struct stat *file, uint64_t offset_bytes,
                  bool closely, struct own_maps *maps);

#endif
