/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image as the server's methods see it: pages by index, wherever they lie. Kinds of images (a file now; live
 * memory and a remote snapshot later) differ behind this table only.
 */
#ifndef PAGEFERRY_IMAGE_H
#define PAGEFERRY_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_NAME_BYTES 129
#define IMAGE_REGIONS_MAX 64
/* Version of every page of an image that never changes: incarnation 1, round 1. */
#define IMAGE_VERSION_IMMUTABLE ((UINT64_C(1) << 32) | 1)

struct image;

struct image_ops {
    /*
     * Reads the bytes of whole pages to `bytes`, on one worker's thread. 0; -PF_REASON_GOING_AWAY: not now (the pages
     * travel as LATER); -PF_REASON_MISMATCH: the image is not what it was (the call ends). A page that is in no data
     * extent reads as zeros without touching it.
     */
    int (*read)(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes);
    /* The first page at or after `page` that may hold data, and where that run ends (both at most page_count). What
     * lies before it is zeros. 0 or minus a reason. */
    int (*next_data)(const struct image *image, uint64_t page, uint64_t *data_page, uint64_t *data_end);
    uint64_t (*version)(const struct image *image, uint64_t page);
    void (*close)(struct image *image);
};

struct image {
    const struct image_ops *ops;
    char name[IMAGE_NAME_BYTES];
    uint64_t content_id;
    uint64_t page_count;
    uint64_t region_pages[IMAGE_REGIONS_MAX];
    uint32_t region_count;
    bool live;
    uint64_t as_of;
    int fd; /* image_file.c's */
};

#endif
