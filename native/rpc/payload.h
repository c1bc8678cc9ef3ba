/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a batch carries: the digest that guards it, and (later) the encodings of its data. Both ends use this.
 */
#ifndef PAGEFERRY_PAYLOAD_H
#define PAGEFERRY_PAYLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "messages.h"

/* Incarnation, 24 bits, and round, 32: a version is below this, and a page's word has room for no more. */
#define PAYLOAD_VERSION_END (UINT64_C(1) << 56)

/* XXH3-64, seed content_id, over the fours of the runs as little-endian 64-bit words, then data before encoding. */
uint64_t payload_digest(uint64_t content_id, const struct run *runs, uint32_t run_count, struct grpc_bytes data);

/*
 * Is this batch what its runs say? Kinds known, versions neither 0 nor too wide, data exactly the pages of the DATA
 * runs, encoding one we asked for, digest right. *data_pages gets the pages of its DATA runs. 0; -PF_REASON_MISMATCH:
 * the digest does not agree; -PF_REASON_BAD_REQUEST: it is no such batch.
 */
int payload_check(uint64_t content_id, const struct page_batch *batch, uint64_t *data_pages);

/* All bytes of a page are 0. */
bool payload_page_is_zero(const uint8_t *page);

#endif
