/* SPDX-License-Identifier: Apache-2.0 */
/* Digests, and whether a batch is what it says: see payload.h. */
#include "payload.h"

#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* the state lies on the stack */
#include <xxhash.h>

#include "../gen/contract.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "struct run is digested as it lies in memory: little-endian"
#endif
_Static_assert(sizeof(struct run) == 32, "a run is four 64-bit words without padding");

uint64_t payload_digest(uint64_t content_id, const struct run *runs, uint32_t run_count, struct grpc_bytes data)
{
    XXH3_state_t state;

    XXH3_INITSTATE(&state);
    XXH3_64bits_reset_withSeed(&state, content_id);
    XXH3_64bits_update(&state, runs, run_count * sizeof(*runs));
    XXH3_64bits_update(&state, data.data, data.length);
    return XXH3_64bits_digest(&state);
}

int payload_check(uint64_t content_id, const struct page_batch *batch, uint64_t *data_pages)
{
    const uint64_t pages_max = PF_LIMIT_BATCH_BYTES_CAP / PF_LIMIT_PAGE_BYTES;
    uint64_t pages = 0;

    if (batch->run_count == 0 || batch->as_of == 0)
        return -PF_REASON_BAD_REQUEST;
    for (uint32_t i = 0; i < batch->run_count; i++) {
        const struct run *run = &batch->runs[i];
        if (run->kind < PF_RUN_KIND_DATA || run->kind > PF_RUN_KIND_VERSION)
            return -PF_REASON_BAD_REQUEST;
        if (run->version == 0 || run->version >= PAYLOAD_VERSION_END)
            return -PF_REASON_BAD_REQUEST;
        if (run->kind != PF_RUN_KIND_DATA)
            continue;
        if (run->page_count > pages_max - pages)
            return -PF_REASON_BAD_REQUEST;
        pages += run->page_count;
    }
    if (batch->data.length != pages * PF_LIMIT_PAGE_BYTES)
        return -PF_REASON_BAD_REQUEST;
    if (pages > 0 && batch->encoding != PF_ENCODING_IDENTITY)
        return -PF_REASON_BAD_REQUEST;
    if (payload_digest(content_id, batch->runs, batch->run_count, batch->data) != batch->digest)
        return -PF_REASON_MISMATCH;
    *data_pages = pages;
    return 0;
}

bool payload_page_is_zero(const uint8_t *page)
{
    /* All bytes equal their neighbour and the first is zero; memcmp stops at the first difference. */
    return page[0] == 0 && memcmp(page, page + 1, PF_LIMIT_PAGE_BYTES - 1) == 0;
}
