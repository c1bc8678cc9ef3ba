/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest digest: which version each page of a VM has, as one number, equal at both ends of a move when no page
 * is stale. A sum modulo 2^128 over all pages that have a round, so it does not matter in which order versions change,
 * and each change costs the same.
 */
#ifndef PAGEFERRY_MANIFEST_H
#define PAGEFERRY_MANIFEST_H

#include <stdint.h>
#include <string.h>
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are digested, and the sum is told, as they lie in memory: little-endian"
#endif

#define MANIFEST_BYTES 16

typedef unsigned __int128 manifest_sum;

/* What a page of this version adds. One without a round (the low half of its version) adds nothing. */
static inline manifest_sum manifest_of(uint64_t page, uint64_t version)
{
    const uint64_t words[2] = {page, version};
    XXH128_hash_t hash;

    if ((uint32_t)version == 0)
        return 0;
    hash = XXH3_128bits(words, sizeof(words));
    return (manifest_sum)hash.high64 << 64 | hash.low64;
}

/* As it travels. */
static inline void manifest_digest(manifest_sum sum, uint8_t digest[MANIFEST_BYTES])
{
    memcpy(digest, &sum, MANIFEST_BYTES);
}

#endif
