/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One look at a whole image file, its holes aside: how many pages hold data, and the content id that names
 * the bytes: XXH3-64 over index and bytes of every page that is not all zeros, then the number of pages. So
 * two copies of an image have one id, however their holes and zeros lie in the file.
 *
 * Pages that are lost have no bytes: they are left out as if they were zeros. Which those were has to be remembered with
 * the id: a page that is lost later leaves it as it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "../rpc/payload.h"
#include "image.h"
#include "sparse.h"

#define LOOK_PAGES UINT64_C(64) /* read at once */

struct look {
    int fd;
    uint64_t page_count;
    struct pageferry_progress *progress; /* may be NULL */
    struct pageferry_left_out *left_out; /* likewise */
    uint32_t known_at;                   /* of its known runs: the first that does not end before this page */
    struct pageferry_image_facts *facts;
    XXH3_state_t *hash;
    uint8_t *bytes; /* LOOK_PAGES */
    char *error;
    size_t error_bytes;
};

static void look_hash_word(struct look *look, uint64_t word)
{
    uint8_t bytes[8];

    for (unsigned i = 0; i < 8; i++)
        bytes[i] = (uint8_t)(word >> (8 * i));
    XXH3_64bits_update(look->hash, bytes, sizeof(bytes));
}

static void look_at_pages(struct look *look, uint64_t first_page, uint64_t page_count)
{
    for (uint64_t i = 0; i < page_count; i++) {
        const uint8_t *page = look->bytes + i * IMAGE_PAGE_BYTES;
        if (!payload_page_is_zero(page)) {
            look_hash_word(look, first_page + i);
            XXH3_64bits_update(look->hash, page, IMAGE_PAGE_BYTES);
            look->facts->data_pages++;
        }
    }
}

static bool look_reports(struct look *look, uint64_t page)
{
    struct pageferry_progress *progress = look->progress;

    if (progress == NULL)
        return true;
    __atomic_store_n(&progress->done_bytes, page * IMAGE_PAGE_BYTES, __ATOMIC_RELAXED);
    return __atomic_load_n(&progress->cancel, __ATOMIC_RELAXED) == 0;
}

static int look_unreadable(struct look *look, int rc)
{
    sparse_explain(look->error, look->error_bytes, "the image cannot be read: %s", sparse_why(rc));
    return -PF_REASON_BAD_REQUEST;
}

/* Is `page` one that is known to be left out? *end comes down to where the pages end that are alike in this. */
static bool look_passes_over(struct look *look, uint64_t page, uint64_t *end)
{
    const struct pageferry_left_out *left_out = look->left_out;
    const uint64_t *run = NULL;
    bool inside;

    while (left_out != NULL && look->known_at < left_out->known_count) {
        run = left_out->known + 2 * (size_t)look->known_at;
        if (run[0] + run[1] > page)
            break;
        run = NULL;
        look->known_at++;
    }
    if (run == NULL)
        return false;
    inside = run[0] <= page;
    if (*end > (inside ? run[0] + run[1] : run[0]))
        *end = inside ? run[0] + run[1] : run[0];
    return inside;
}

/* Notes a page that is lost. False: there is no place for another run, or nobody wants to know. */
static bool look_notes_lost(struct look *look, uint64_t page)
{
    struct pageferry_left_out *left_out = look->left_out;
    uint64_t *runs = left_out == NULL ? NULL : left_out->found;
    size_t at = left_out == NULL ? 0 : 2 * (size_t)left_out->found_count;

    if (at > 0 && runs[at - 2] + runs[at - 1] == page) {
        runs[at - 1]++;
        return true;
    }
    if (left_out == NULL || left_out->found_count == left_out->found_capacity)
        return false;
    runs[at] = page;
    runs[at + 1] = 1;
    left_out->found_count++;
    return true;
}

/* A bad sector takes no neighbour with it. */
static int look_one_by_one(struct look *look, uint64_t first_page, uint64_t page_count)
{
    for (uint64_t page = first_page; page < first_page + page_count; page++) {
        int rc = sparse_read(look->fd, page * IMAGE_PAGE_BYTES, IMAGE_PAGE_BYTES, look->bytes);
        if (rc == 0)
            look_at_pages(look, page, 1);
        else if (image_read_said(rc, 1) != IMAGE_READ_LOST || !look_notes_lost(look, page))
            return look_unreadable(look, rc);
    }
    return 0;
}

static int look_at_extent(struct look *look, uint64_t first, uint64_t end)
{
    uint64_t page = first;

    while (page < end) {
        uint64_t past = end - page < LOOK_PAGES ? end : page + LOOK_PAGES;
        bool passed = look_passes_over(look, page, &past);
        uint64_t count = past - page;
        int rc = passed ? 0 : sparse_read(look->fd, page * IMAGE_PAGE_BYTES, count * IMAGE_PAGE_BYTES, look->bytes);
        if (rc == 0 && !passed)
            look_at_pages(look, page, count);
        else if (rc != 0)
            rc = look_one_by_one(look, page, count);
        if (rc != 0)
            return rc;
        page = past;
        if (!look_reports(look, page)) {
            sparse_explain(look->error, look->error_bytes, "the look at the image was cancelled");
            return -PF_REASON_CANCELLED;
        }
    }
    return 0;
}

static int look_at_all(struct look *look)
{
    uint64_t page = 0, end = 0;

    while (page < look->page_count) {
        int rc = sparse_next_extent(look->fd, page, look->page_count, &page, &end);
        if (rc != 0)
            return look_unreadable(look, rc);
        rc = look_at_extent(look, page, end);
        if (rc != 0)
            return rc;
        page = end;
    }
    look_reports(look, look->page_count);
    return 0;
}

int pageferry_image_inspect(int fd, struct pageferry_progress *progress, struct pageferry_left_out *left_out,
                            struct pageferry_image_facts *facts, char *error, size_t error_bytes)
{
    struct look look = {.fd = fd, .progress = progress, .left_out = left_out, .facts = facts, .error = error,
                        .error_bytes = error_bytes};
    off_t position = lseek(fd, 0, SEEK_CUR);
    int rc = sparse_check(fd, &look.page_count, error, error_bytes);

    memset(facts, 0, sizeof(*facts));
    if (left_out != NULL)
        left_out->found_count = 0;
    if (rc != 0)
        goto out;
    look.hash = XXH3_createState();
    look.bytes = malloc(LOOK_PAGES * IMAGE_PAGE_BYTES);
    if (look.hash == NULL || look.bytes == NULL) {
        sparse_explain(error, error_bytes, "no memory to look at the image");
        rc = -PF_REASON_NO_MEMORY;
        goto out;
    }
    if (progress != NULL)
        __atomic_store_n(&progress->total_bytes, look.page_count * IMAGE_PAGE_BYTES, __ATOMIC_RELAXED);
    XXH3_64bits_reset(look.hash);
    facts->page_count = look.page_count;
    rc = look_at_all(&look);
    look_hash_word(&look, look.page_count);
    facts->content_id = XXH3_64bits_digest(look.hash);
    if (facts->content_id == 0) /* 0 means none */
        facts->content_id = 1;
out:
    if (position >= 0)
        lseek(fd, position, SEEK_SET); /* a dup shares it with the caller */
    XXH3_freeState(look.hash);
    free(look.bytes);
    return rc;
}
