/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stamp.h: what the benchmark writes into every page, so that whoever reads it knows which page it is and
 * that all of it came. Word 0 is the page's index; the other words are mixed from index and position, and
 * are never all zero, so that no server may send a page of the benchmark as "zero" and skip its bytes.
 */
#ifndef BENCH_STAMP_H
#define BENCH_STAMP_H

#include <stdint.h>

#define STAMP_PAGE_BYTES 4096u
#define STAMP_WORDS (STAMP_PAGE_BYTES / 8)

/* splitmix64's finaliser: cheap, and neighbouring inputs share nothing, so no page compresses or repeats. */
static inline uint64_t stamp_mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static inline uint64_t stamp_word(uint64_t page, uint32_t word)
{
    return word == 0 ? page : stamp_mix(page * STAMP_WORDS + word);
}

static inline void stamp_fill(uint64_t page, uint64_t words[STAMP_WORDS])
{
    for (uint32_t word = 0; word < STAMP_WORDS; word++)
        words[word] = stamp_word(page, word);
}

#endif
