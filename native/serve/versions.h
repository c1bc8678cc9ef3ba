/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How new each page of a live image is: the number of the round in which it was found written last, 32 bits a
 * page, in shared memory that outlives this process if somebody else holds its fd.
 *
 *     version = incarnation << 32 | round
 *
 * One thread at a time raises (rounds.c sees to it), any number read meanwhile. A round is SETTLED when all
 * pages that it names have been raised; only then may anybody be told its number. Readers may see a page of a
 * round that is not settled yet: it is as new as it says, and is named once more when the round is settled.
 *
 * A round that is given up leaves its number used: the next one must be higher, for pages may be known under
 * it.
 *
 * The incarnation rises when everything has to be announced again: after a takeover from a server that died,
 * for nobody knows what it had reset and not raised yet; and after a frozen map was thawed, for the guest ran
 * on. Once frozen the map never changes and is taken over as it is, after it has proven that it is whole.
 */
#ifndef PAGEFERRY_VERSIONS_H
#define PAGEFERRY_VERSIONS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../base/manifest.h"

#define VERSIONS_MAGIC UINT64_C(0x3272657650466d70) /* "pmFPver2": also says the layout */
#define VERSIONS_GROUP_PAGES 512

struct versions_header {
    uint64_t magic; /* written last */
    uint64_t page_count;
    uint64_t content_id; /* other bytes, another id */
    uint64_t proof;      /* XXH3-64 of the three above */
    _Atomic uint64_t settled; /* a version: the newest settled round; round 0: none in this incarnation */
    _Atomic uint32_t begun;   /* the newest round of this incarnation, settled or not */
    _Atomic uint32_t frozen;
    _Atomic uint32_t raising; /* the sum is not that of the pages just now */
    uint32_t reserved;
    manifest_sum sum;
};

struct versions {
    struct versions_header *header;
    _Atomic uint32_t *rounds; /* a page */
    _Atomic uint32_t *newest; /* of each group of pages: one that has nothing new is passed over at once */
    uint64_t page_count;
    size_t mapped_bytes;
    int fd;
};

/* A new map, without a round. All its memory is taken now. 0 or -errno. */
int versions_create(uint64_t page_count, uint64_t content_id, uint32_t incarnation, struct versions *versions);
/*
 * Takes a map over; `fd` is the map's from then on if it succeeds. A frozen one stays as it is; any other
 * comes back in the next incarnation, without a round. -EPROTO: it is not whole, or not of such an image, and
 * whoever relies on it must be refused. -EOVERFLOW: no incarnation is left. Or another -errno.
 */
int versions_adopt(int fd, uint64_t page_count, struct versions *versions);
/* Harmless on one that was zeroed. */
void versions_close(struct versions *versions);

/* ------------------------------------------------------------------------------------------ by any thread */

/* The newest settled version; its round is 0 before the first. */
uint64_t versions_as_of(const struct versions *versions);
/* Version of `page`; to be loaded before its bytes are. *end comes down to a page, at most 512 away, up to
 * which all have the same. */
uint64_t versions_of(const struct versions *versions, uint64_t page, uint64_t *end);
/* The first page from `page` on, before `end`, whose version is above `version`; `end` if there is none. */
uint64_t versions_next_above(const struct versions *versions, uint64_t version, uint64_t page, uint64_t end);
bool versions_frozen(const struct versions *versions);

/* -------------------------------------------------------------------------------- by one thread at a time */

/* The number of a new round, above all there were; 0: there is none left. */
uint32_t versions_begin(struct versions *versions);
/* The pages are as new as this round: their bytes are to be read after this. */
void versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round);
/* Every page of the round has been raised. */
void versions_settle(struct versions *versions, uint32_t round);
/* Nothing is raised any more, for ever; a round has been settled. */
void versions_freeze(struct versions *versions);
/* The next incarnation, without a round. -EOVERFLOW: there is none. */
int versions_renew(struct versions *versions);
/* Over all pages that have a round. */
manifest_sum versions_sum(const struct versions *versions);

#endif
