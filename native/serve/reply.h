/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages asked -> one PageBatch: kinds, versions, bytes, digest. The bytes are read to where they are sent
 * from, once; the head is written in front of them when they are known.
 */
#ifndef PAGEFERRY_REPLY_H
#define PAGEFERRY_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../base/stats.h"
#include "../rpc/messages.h"
#include "asks.h"
#include "image.h"

struct reply_order {
    struct image *image;
    uint64_t as_of;
    uint64_t since_version; /* pages not above it are passed over, at little cost */
    bool versions_only;
    bool may_repeat;        /* a page may be asked twice: in one batch it is named once */
    uint32_t pages_max;     /* of bytes, and of pages that are read to find out that they are zeros */
    uint32_t runs_max;
    uint64_t named_pages_max; /* about: a run is named whole; 0: as many as there are */
};

/* Where it is made: reply_bytes_max that stay until it is sent, and runs_max runs for the making alone. */
struct reply_space {
    uint8_t *bytes;
    size_t capacity_bytes;
    struct run *runs;
};

struct reply {
    struct grpc_bytes message; /* in the space */
    uint32_t run_count;
    uint32_t lost_pages; /* that a read has found, and nobody knew of */
};

size_t reply_bytes_max(uint32_t pages_max, uint32_t runs_max);

/*
 * Answers as many of the oldest asks as fit. Pages that cannot be read now travel as LATER, those that are lost as POISON;
 * a read may find one lost. 0, or minus a
 * reason: the call cannot go on. run_count 0: none of the pages asked has a version above since_version.
 */
int reply_make(const struct reply_order *order, struct asks *asks, const struct reply_space *space,
               struct stats *stats, struct reply *reply);

#endif
