/* SPDX-License-Identifier: Apache-2.0 */
/* See arriving.h. The table is another process's: of its header nothing is believed that its size does not say too. */
#include "arriving.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MAP_PAGE_BYTES UINT64_C(4096)

/* Words lie at the end, behind whole pages; one that could be shortened would end us by SIGBUS. */
static int check_file(int fd, uint64_t page_count, size_t *bytes)
{
    struct stat facts;
    int seals;

    if (fstat(fd, &facts) < 0)
        return -errno;
    seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || !S_ISREG(facts.st_mode) || page_count > PF_LIMIT_IMAGE_PAGES_MAX ||
        (uint64_t)facts.st_size < MAP_PAGE_BYTES + page_count * sizeof(uint64_t))
        return -EPROTO;
    *bytes = (size_t)facts.st_size;
    return 0;
}

static bool header_agrees(const struct words_header *header, uint64_t page_count, size_t bytes)
{
    uint64_t offset = header->words_offset_bytes;

    return header->magic == WORDS_MAGIC && header->page_count == page_count && offset % MAP_PAGE_BYTES == 0 &&
           offset >= MAP_PAGE_BYTES && offset + page_count * sizeof(uint64_t) == bytes;
}

int arriving_open(int fd, uint64_t page_count, struct arriving *arriving)
{
    size_t bytes = 0;
    int rc = check_file(fd, page_count, &bytes);
    void *at;

    memset(arriving, 0, sizeof(*arriving));
    if (rc < 0)
        return rc;
    at = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        return -errno;
    arriving->mapped = at;
    arriving->mapped_bytes = bytes;
    if (!header_agrees(at, page_count, bytes)) {
        arriving_close(arriving);
        return -EPROTO;
    }
    arriving->words = (const _Atomic uint64_t *)(const void *)((const char *)at + bytes - page_count * sizeof(uint64_t));
    return 0;
}

void arriving_close(struct arriving *arriving)
{
    if (arriving->mapped != NULL)
        munmap(arriving->mapped, arriving->mapped_bytes);
    memset(arriving, 0, sizeof(*arriving));
}

/*
 * ZERO is no answer of its own: the guest may have been given the page, and have written it, a moment before the word
 * says OWNED. What the file holds is right, unless it is something else still (stale). A word that cannot be is AWAY.
 */
static enum image_standing standing_of(uint64_t word)
{
    switch (page_state(word)) {
    case PAGE_POISONED:
        return IMAGE_LOST;
    case PAGE_CACHED:
    case PAGE_ZERO:
    case PAGE_OWNED:
        return page_stale(word) || page_held(word) ? IMAGE_AWAY : IMAGE_HERE;
    default:
        return IMAGE_AWAY;
    }
}

static uint64_t word_of(const struct arriving *arriving, uint64_t page)
{
    return atomic_load_explicit(&arriving->words[page], memory_order_acquire);
}

enum image_standing arriving_standing(const struct arriving *arriving, uint64_t page, uint64_t *end)
{
    enum image_standing standing;
    uint64_t at = page + 1;

    if (arriving->words == NULL)
        return IMAGE_HERE;
    standing = standing_of(word_of(arriving, page));
    while (at < *end && standing_of(word_of(arriving, at)) == standing)
        at++;
    *end = at;
    return standing;
}
