/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of a VM that runs, as an image: a RAM file (memfd or tmpfs) that the VMM has mapped and
 * registered for asynchronous write protection, each page with the round in which it was found written last.
 *
 * `image->live` is true and `image->rounds` its rounds; `image->as_of` is the newest settled version, with
 * round 0 before the first. Bytes are always copied (by pread) before anything is done with them.
 */
#ifndef PAGEFERRY_IMAGE_MEMORY_H
#define PAGEFERRY_IMAGE_MEMORY_H

#include "image.h"
#include "rounds.h"

/* All fds stay the caller's; those that are needed are duplicated. */
struct image_memory_request {
    const char *name;
    int uffd;   /* kept open with the image: tracking ends with its last holder */
    int ram_fd;
    pid_t pid;  /* of the VMM; 0: in another PID namespace, refused */
    int pidfd;  /* of the same; -1: none */
    const struct pageferry_region *regions; /* in the order of the image, without a gap */
    uint32_t region_count;
    uint64_t content_id;  /* these two of a new map */
    uint32_t incarnation;
    bool drops_untold; /* rounds.h */
    int versions_fd; /* the map of a server that was there before; -1: none */
    int arriving_fd; /* the page table of the fault client that brings the memory; -1: it is here */
};

/*
 * Checks that the memory is what was said and is tracked as a whole. 0, or minus a reason with a sentence:
 * BAD_REQUEST, UNSUPPORTED (not memfd or tmpfs, no PAGEMAP_SCAN), NOT_ALLOWED, NO_VMM, MISMATCH, NO_MEMORY.
 */
int image_memory_open(const struct image_memory_request *request, struct image **image, char *error,
                      size_t error_bytes);

/*
 * Every page has arrived, and whoever has brought them is to go: the memory, which was registered for its faults too, is
 * registered for write protection alone. All pages count as written then. 0, or minus a reason: WRONG_PHASE (pages are
 * missing, or lost for good: they need somebody), NO_VMM, BUG.
 */
int image_memory_arrived(struct image *image);

/* Of an image of this kind: the sum over its map (wait for the freeze), and the fd of the map, which stays
 * the image's. */
manifest_sum image_memory_manifest(const struct image *image);
int image_memory_versions_fd(const struct image *image);

#endif
