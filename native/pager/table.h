/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page table of one VM: the truth about content (DESIGN 3.3), 8 bytes a page, in one shared memfd behind a
 * versioned header, so that a successor goes on from it after its worker was killed at any instruction. The last
 * batch of kernel events lies in it too: what was read from the kernel is not given twice. And so does the log of
 * poison (log.h), with how far each of its readers has come.
 *
 * One thread writes; others may read words (torn counts are harmless to them).
 */
#ifndef PAGEFERRY_TABLE_H
#define PAGEFERRY_TABLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../base/manifest.h"
#include "../kernel/kernel_ops.h"
#include "page.h"

#define TABLE_BATCH_EVENTS 64
#define TABLE_LOG_ENTRIES 16384 /* a power of two */

/* log.h. */
enum table_log_reader { TABLE_LOG_OWNER = 0, TABLE_LOG_VMM, TABLE_LOG_READERS };

struct table_log_entry {
    uint64_t page;
    uint32_t sequence; /* of the entries up to this one, so many say POISONED */
    uint8_t kind;      /* enum log_kind */
    uint8_t flags;
    uint8_t reserved[2];
};

/* At offset 0 of the memfd; the log follows, and the words at words_offset_bytes. The first three are those of struct words_header,
 * which others read (base/words.h). */
struct table_header {
    uint64_t magic;
    uint64_t page_count;
    uint64_t words_offset_bytes;
    uint64_t content_id;              /* of the image, 0 until described */
    _Atomic uint32_t armed;
    _Atomic uint32_t takeovers;       /* workers that took this table over from another */
    _Atomic uint32_t batch_count;     /* events of the last batch; 0: none is being worked on; while one is read, all
                                         places count, and those of kind 0 are no events */
    _Atomic uint32_t placed;          /* some worker has made a call that fills the page cache: what lies there may be
                                         ours; before, nothing is, also after a takeover */
    struct kernel_event batch[TABLE_BATCH_EVENTS];
    uint64_t log_capacity;            /* a power of two, at most TABLE_LOG_ENTRIES */
    _Atomic uint64_t log_count;       /* entries ever */
    _Atomic uint64_t log_taken[TABLE_LOG_READERS]; /* of them, by each reader */
};

_Static_assert(offsetof(struct table_header, magic) == offsetof(struct words_header, magic) &&
               offsetof(struct table_header, page_count) == offsetof(struct words_header, page_count) &&
               offsetof(struct table_header, words_offset_bytes) == offsetof(struct words_header, words_offset_bytes),
               "others read the header too");

struct table {
    int fd;
    size_t mapped_bytes;
    struct table_header *header;
    struct table_log_entry *log; /* entry n, from 0 on, is at n % log_capacity */
    _Atomic uint64_t *words;
    uint64_t page_count;
};

/* A new table, every word MISSING with floor 0. 0 or -errno. */
int table_create(uint64_t page_count, struct table *table);
/* One that another worker left; the fd is taken over. -EPROTO: not one of ours or not this size. Counts a takeover. */
int table_adopt(int fd, uint64_t page_count, struct table *table);
void table_close(struct table *table);
/* The sum over all versions; one pass over the words. */
manifest_sum table_manifest(const struct table *table);
/* Pages in each state; one pass over the words. */
void table_count(const struct table *table, uint64_t counts[PAGE_STATE_COUNT]);

static inline uint64_t table_word(const struct table *table, uint64_t page)
{
    return atomic_load_explicit(&table->words[page], memory_order_relaxed);
}

/* Release: whoever sees the word sees the bytes that were written before it. */
static inline void table_set(struct table *table, uint64_t page, uint64_t word)
{
    atomic_store_explicit(&table->words[page], word, memory_order_release);
}

#endif
