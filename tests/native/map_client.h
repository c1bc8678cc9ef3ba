/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a live image without a wire: the map, then what is missing, in the page server's order of a page
 * (version, how it stands, hole, bytes), which a test may take apart.
 */
#ifndef MAP_CLIENT_H
#define MAP_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "serve/image.h"

#define MAP_CLIENT_PAGES_MAX 40000

struct map_client {
    const struct image *image;
    uint64_t floor[MAP_CLIENT_PAGES_MAX];
    uint64_t held[MAP_CLIENT_PAGES_MAX]; /* version; 0: it is missing */
    uint64_t hash[MAP_CLIENT_PAGES_MAX]; /* of the bytes held */
    uint64_t as_of;
};

/* A page on its way. */
struct map_fetch {
    uint64_t version;
    enum image_standing standing;
    bool may_hold_data;
};

/* Holds nothing of it. */
void map_client_begin(struct map_client *client, const struct image *image);

void map_load_version(const struct map_client *client, struct map_fetch *fetch, uint64_t page);
void map_ask_standing(const struct map_client *client, struct map_fetch *fetch, uint64_t page);
void map_ask_for_holes(const struct map_client *client, struct map_fetch *fetch, uint64_t page);
/* False: it could not be read. */
bool map_read_and_keep(struct map_client *client, const struct map_fetch *fetch, uint64_t page);
/* All four. */
bool map_fetch_page(struct map_client *client, uint64_t page);
bool map_fetch_missing(struct map_client *client);

/* The versions above what is known; the number of pages that went missing by them. */
uint64_t map_read(struct map_client *client);

/* Nobody writes any more: pages that are missing, or hold other bytes than the RAM file; UINT64_MAX: all are right, and
 * the sum over the map is another than the image's. */
uint64_t map_wrong(const struct map_client *client, int ram_fd);

#endif
