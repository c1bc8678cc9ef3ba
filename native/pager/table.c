/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The shared table of table.h. All its memory is taken when it is made: a write to a word can then neither fail nor
 * raise SIGBUS, and the per-page path allocates nothing.
 */
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOG_OFFSET_BYTES ((sizeof(struct table_header) + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES)
#define WORDS_OFFSET_BYTES (LOG_OFFSET_BYTES + TABLE_LOG_ENTRIES * sizeof(struct table_log_entry))
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) /* whoever maps it needs not fear for the next word */
#define TABLE_PAGES_MAX (UINT64_C(1) << 40) /* 4 PiB of guest memory */

static size_t table_bytes(uint64_t page_count)
{
    return WORDS_OFFSET_BYTES + (size_t)page_count * sizeof(uint64_t);
}

static int map_table(int fd, uint64_t page_count, struct table *table)
{
    size_t bytes = table_bytes(page_count);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

    if (at == MAP_FAILED)
        return -errno;
    table->fd = fd;
    table->mapped_bytes = bytes;
    table->header = at;
    table->log = (struct table_log_entry *)((char *)at + LOG_OFFSET_BYTES);
    table->words = (_Atomic uint64_t *)((char *)at + WORDS_OFFSET_BYTES);
    table->page_count = page_count;
    return 0;
}

int table_create(uint64_t page_count, struct table *table)
{
    int fd = -1, rc = 0;

    memset(table, 0, sizeof(*table));
    table->fd = -1;
    if (page_count == 0 || page_count > TABLE_PAGES_MAX) {
        rc = -EINVAL;
        goto out;
    }
    fd = memfd_create("pageferry-table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fallocate(fd, 0, 0, (off_t)table_bytes(page_count)) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0)
        rc = -errno;
    if (rc == 0)
        rc = map_table(fd, page_count, table);
    if (rc < 0)
        goto out;
    table->header->page_count = page_count;
    table->header->words_offset_bytes = WORDS_OFFSET_BYTES;
    table->header->log_capacity = TABLE_LOG_ENTRIES;
    atomic_thread_fence(memory_order_release);
    table->header->magic = WORDS_MAGIC; /* last: with it, the rest of the header is there */
out:
    if (rc < 0 && fd >= 0)
        close(fd);
    return rc;
}

static bool log_agrees(const struct table_header *header)
{
    uint64_t capacity = header->log_capacity, count = atomic_load(&header->log_count);
    bool agrees = capacity != 0 && capacity <= TABLE_LOG_ENTRIES && (capacity & (capacity - 1)) == 0;

    for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
        agrees = agrees && count - atomic_load(&header->log_taken[reader]) <= capacity;
    return agrees;
}

static bool header_agrees(const struct table_header *header, uint64_t page_count)
{
    return log_agrees(header) && header->magic == WORDS_MAGIC && header->page_count == page_count &&
           header->words_offset_bytes == WORDS_OFFSET_BYTES && atomic_load(&header->batch_count) <= TABLE_BATCH_EVENTS;
}

int table_adopt(int fd, uint64_t page_count, struct table *table)
{
    struct stat facts;
    int rc = 0;

    memset(table, 0, sizeof(*table));
    table->fd = -1;
    if (page_count == 0 || page_count > TABLE_PAGES_MAX)
        rc = -EINVAL;
    else if (fstat(fd, &facts) < 0)
        rc = -errno;
    else if (facts.st_size < 0 || (uint64_t)facts.st_size != table_bytes(page_count))
        rc = -EPROTO;
    if (rc == 0)
        rc = map_table(fd, page_count, table);
    if (rc == 0 && !header_agrees(table->header, page_count)) {
        munmap(table->header, table->mapped_bytes);
        memset(table, 0, sizeof(*table));
        table->fd = -1;
        rc = -EPROTO;
    }
    if (rc == 0)
        atomic_fetch_add(&table->header->takeovers, 1);
    return rc;
}

void table_close(struct table *table)
{
    if (table->header != NULL) {
        munmap(table->header, table->mapped_bytes);
        close(table->fd);
    }
    memset(table, 0, sizeof(*table));
    table->fd = -1;
}

void table_count(const struct table *table, uint64_t counts[PAGE_STATE_COUNT])
{
    uint64_t by_bits[PAGE_STATE_MASK + 1] = {0}; /* a torn or foreign word never counts outside the array */

    for (uint64_t page = 0; page < table->page_count; page++)
        by_bits[page_state(table_word(table, page))]++;
    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        counts[state] = by_bits[state];
}

manifest_sum table_manifest(const struct table *table)
{
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < table->page_count; page++)
        sum += manifest_of(page, page_version(table_word(table, page)));
    return sum;
}
