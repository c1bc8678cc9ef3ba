/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the stand-in VMM writes into a page, and what it takes a page for.
 *
 * A page is 64 lines of 64 bytes; each says which page and line it is, who wrote it (incarnation) and at which
 * rewrite of the page (n), and ends in a hash of all that. So whatever is wrong with a page can be told apart: old,
 * mixed, from elsewhere, damaged, or zeros. Which pages of an image hold data is computed, not stored: the maker of
 * the image and the guest on it agree without speaking.
 */
#ifndef GUEST_STAMP_H
#define GUEST_STAMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PAGE_BYTES 4096u
#define PAGE_LINES 64u
#define SPARSE_PAGES 16u /* neighbours that are data or hole together */

#define INCARNATION_IMAGE 1u
#define INCARNATION_GUEST 2u
#define N_IMAGE 1u

struct line {
    uint64_t page; /* and whose: stamp_id */
    uint64_t incarnation;
    uint64_t n;
    uint64_t line;
    uint64_t filler[3]; /* no line is like another */
    uint64_t hash;
};
_Static_assert(sizeof(struct line) * PAGE_LINES == PAGE_BYTES, "64 lines of 64 bytes");

struct image_shape {
    uint64_t pages;
    uint64_t seed;
    uint32_t data_percent; /* 100: no holes */
};

static inline uint64_t stamp_mix(uint64_t value)
{
    value ^= value >> 31;
    value *= UINT64_C(0x9fb21c651e98df25);
    value ^= value >> 28;
    value *= UINT64_C(0xd6e8feb86659fd93);
    return value ^ value >> 32;
}

static inline bool stamp_is_data(const struct image_shape *shape, uint64_t page)
{
    return stamp_mix(page / SPARSE_PAGES + (shape->seed << 32)) % 100 < shape->data_percent;
}

/* Of a page in its stamps: a page of another image is told from this one's. */
static inline uint64_t stamp_id(const struct image_shape *shape, uint64_t page)
{
    return shape->seed << 32 | page;
}

static inline uint64_t stamp_hash(const struct line *line)
{
    uint64_t words[7], hash = 0x5061676521;

    memcpy(words, line, sizeof(words));
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        hash = stamp_mix(hash + words[i]);
    return hash;
}

static inline void stamp_line(struct line *line, uint64_t page, uint64_t incarnation, uint64_t n, uint64_t index)
{
    line->page = page;
    line->incarnation = incarnation;
    line->n = n;
    line->line = index;
    for (uint64_t i = 0; i < 3; i++)
        line->filler[i] = stamp_mix((page << 8 | index) + (n << 40) + i);
    line->hash = stamp_hash(line);
}

static inline void stamp_page(struct line *lines, uint64_t page, uint64_t incarnation, uint64_t n)
{
    for (uint64_t i = 0; i < PAGE_LINES; i++)
        stamp_line(&lines[i], page, incarnation, n, i);
}

/* What a page may turn out to be; each kind of error is counted by itself. */
#define STAMP_VERDICTS(X) \
    X(right, "as it must be") \
    X(stale, "whole, of an older n") \
    X(torn, "lines of different times") \
    X(misplaced, "another page's or line's bytes, or another VM's") \
    X(damaged, "a line that nobody wrote") \
    X(zero, "zeros where the image has data") \
    X(lost_write, "what the guest itself wrote is gone") \
    X(not_zero, "data where the image has none") \
    X(removed_back, "a page that the balloon gave away shows bytes again") \
    X(lost, "who touches it gets SIGBUS") \
    X(undead, "a page that is lost can be read")

#define STAMP_ENUM(name, help) STAMP_##name,
enum stamp_verdict { STAMP_VERDICTS(STAMP_ENUM) STAMP_VERDICT_COUNT };
#undef STAMP_ENUM

static inline bool stamp_zero(const void *bytes, size_t length)
{
    const uint8_t *first = bytes;

    return first[0] == 0 && memcmp(first, first + 1, length - 1) == 0;
}

/* A page that should hold stamps of this n and incarnation. */
static inline enum stamp_verdict stamp_judge(const struct line *lines, uint64_t page, uint64_t incarnation, uint64_t n)
{
    bool own = incarnation == INCARNATION_GUEST;
    uint32_t zero = 0, broken = 0, elsewhere = 0, right = 0, alike = 0;
    enum stamp_verdict verdict = STAMP_torn;

    for (uint32_t i = 0; i < PAGE_LINES; i++) {
        const struct line *line = &lines[i];
        if (stamp_zero(line, sizeof(*line)))
            zero++;
        else if (stamp_hash(line) != line->hash)
            broken++;
        else if (line->page != page || line->line != i)
            elsewhere++;
        else if (line->n == n && line->incarnation == incarnation)
            right++;
        alike += line->n == lines[0].n && line->incarnation == lines[0].incarnation;
    }
    if (right == PAGE_LINES)
        verdict = STAMP_right;
    else if (zero == PAGE_LINES)
        verdict = own ? STAMP_lost_write : STAMP_zero;
    else if (broken > 0)
        verdict = STAMP_damaged;
    else if (elsewhere > 0)
        verdict = STAMP_misplaced;
    else if (alike == PAGE_LINES)
        verdict = own ? STAMP_lost_write : STAMP_stale;
    return verdict;
}

#endif
