/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page's word, and where words lie in the memfd of a page table. The pager is their one writer; what may happen to
 * them is in pager/page.h. Here is what somebody needs who only reads them: a page server to which a VM was handed on
 * while its memory still arrives.
 *
 * A word is 64 bits: version << 8 | fresh << 7 | had << 6 | owed << 5 | held << 4 | stale << 3 | state.
 *   version  what is held (CACHED, ZERO, OWNED) or the lowest acceptable (MISSING, WANTED); 0: none, or any
 *   stale    the page cache may hold something that is not this page. Set BEFORE a write to the cache begins, by
 *            invalidate, and at attach for what SEEK_DATA finds; clear otherwise (DESIGN 3.5). POISONED on private
 *            memory: the guest may still have the lost bytes mapped
 *   held     what cannot be was found here, and reported: nothing is written, mapped or asked any more, also by a
 *            successor; only a page that is removed or lost leaves this. POISONED: the kernel cannot poison, so whoever
 *            touches the page waits, until it is cleared
 *   owed     the poison log owes an entry: POISONED, or, in any other state, that the poison was cleared
 *   had      POISONED, with owed alone: the guest had the page before
 *   fresh    its poison was cleared: it is the guest's own fresh memory, and what the source says of it counts no more
 *
 * A word is stored with release when what it claims is there: whoever loads it with acquire, and then looks at the
 * page cache, finds that, or something newer.
 */
#ifndef PAGEFERRY_WORDS_H
#define PAGEFERRY_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE_STATES(X) \
    X(MISSING, "no acceptable bytes here; the version is the lowest acceptable") \
    X(WANTED, "as MISSING, and a vCPU waits: asked") \
    X(CACHED, "acceptable bytes in the page cache, not mapped; the version is held") \
    X(ZERO, "acceptable, reads as zeros, nothing in the cache") \
    X(OWNED, "the guest's for good: never written again") \
    X(POISONED, "lost: an access raises SIGBUS or a machine check")

#define PAGE_NAME(name, help) PAGE_##name,
enum page_state { PAGE_STATES(PAGE_NAME) PAGE_STATE_COUNT };
#undef PAGE_NAME

#define PAGE_STATE_MASK UINT64_C(7)
#define PAGE_STALE UINT64_C(8)
#define PAGE_HELD UINT64_C(16)
#define PAGE_OWED UINT64_C(32)
#define PAGE_HAD UINT64_C(64)
#define PAGE_FRESH UINT64_C(128)
#define PAGE_VERSION_SHIFT 8

static inline enum page_state page_state(uint64_t word)
{
    return (enum page_state)(word & PAGE_STATE_MASK);
}

static inline bool page_stale(uint64_t word)
{
    return (word & PAGE_STALE) != 0;
}

static inline bool page_held(uint64_t word)
{
    return (word & PAGE_HELD) != 0;
}

static inline bool page_owed(uint64_t word)
{
    return (word & PAGE_OWED) != 0;
}

static inline bool page_fresh(uint64_t word)
{
    return (word & PAGE_FRESH) != 0;
}

static inline uint64_t page_version(uint64_t word)
{
    return word >> PAGE_VERSION_SHIFT;
}

static inline uint64_t page_word(enum page_state state, bool stale, uint64_t version)
{
    return version << PAGE_VERSION_SHIFT | (stale ? PAGE_STALE : 0) | (uint64_t)state;
}

/* The memfd begins with this, whatever else its writer keeps behind it. The words, one a page, are its last bytes; it is
 * sealed against shrinking. */
#define WORDS_MAGIC UINT64_C(0x3430656c62617470) /* "ptable04": grows with the layout */

struct words_header {
    uint64_t magic; /* written last */
    uint64_t page_count;
    uint64_t words_offset_bytes;
};

#endif
