/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sparse file as an image that never changes. Its holes are found once, when it is opened, and never read:
 * no block of the file gets allocated, and no page of bulk costs a seek (on tmpfs each SEEK_HOLE walks the
 * whole extent).
 *
 * The file must not change while it is served. One that got shorter is seen by the read that ends too early
 * (MISMATCH); bytes changed in place are seen by nobody but the guest. So: give the server a file that nobody
 * writes.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "sparse.h"

static int file_read(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    int rc = sparse_read(image->fd, first_page * IMAGE_PAGE_BYTES, page_count * IMAGE_PAGE_BYTES, bytes);

    return image_read_said(rc, page_count);
}

static bool file_may_hold_data(const struct image *image, uint64_t page)
{
    return (image->data_map[page / 64] >> (page % 64) & 1) != 0;
}

static uint64_t file_alike_end(const struct image *image, uint64_t page, uint64_t end)
{
    uint64_t alike = file_may_hold_data(image, page) ? UINT64_MAX : 0;
    uint64_t at = page;

    while (at < end) {
        uint64_t others = (image->data_map[at / 64] ^ alike) >> (at % 64);
        if (others != 0) {
            at += (uint64_t)__builtin_ctzll(others);
            break;
        }
        at = (at / 64 + 1) * 64;
    }
    return at < end ? at : end;
}

static uint64_t file_version(const struct image *image, uint64_t page, uint64_t *end)
{
    (void)page;
    (void)end; /* one version for all */
    return image->as_of;
}

static uint64_t file_next_above(const struct image *image, uint64_t version, uint64_t page, uint64_t end)
{
    return image->as_of > version && page < end ? page : end;
}

static void file_close(struct image *image)
{
    if (image->fd >= 0)
        close(image->fd);
    lost_close(&image->lost);
    free(image->data_map);
    free(image);
}

static const struct image_ops file_ops = {
    .read = file_read,
    .may_hold_data = file_may_hold_data,
    .alike_end = file_alike_end,
    .version = file_version,
    .next_above = file_next_above,
    .close = file_close,
};

static int map_data(struct image *image)
{
    uint64_t page = 0, end = 0;

    image->data_map = calloc(image->page_count / 64 + 1, sizeof(*image->data_map));
    if (image->data_map == NULL)
        return -ENOMEM;
    while (page < image->page_count) {
        int rc = sparse_next_extent(image->fd, page, image->page_count, &page, &end);
        if (rc != 0)
            return rc;
        for (; page < end; page++)
            image->data_map[page / 64] |= UINT64_C(1) << (page % 64);
    }
    return 0;
}

/* The file that inspect has seen: as long as it was, and readable. */
static int set_file(struct image *image, int fd, const struct pageferry_image_facts *facts, char *error,
                    size_t error_bytes)
{
    off_t position = lseek(fd, 0, SEEK_CUR);
    int rc = sparse_check(fd, &image->page_count, error, error_bytes);

    if (rc != 0)
        return rc;
    if (facts->content_id == 0 || facts->page_count != image->page_count) {
        sparse_explain(error, error_bytes,
                       "the image has %" PRIu64 " pages now and had %" PRIu64 " when it was inspected",
                       image->page_count, facts->page_count);
        return -PF_REASON_BAD_REQUEST;
    }
    image->content_id = facts->content_id;
    image->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    rc = image->fd < 0 ? -errno : map_data(image);
    if (rc == 0)
        rc = lost_open(&image->lost, image->page_count, false);
    if (position >= 0)
        lseek(fd, position, SEEK_SET);
    if (rc != 0) {
        sparse_explain(error, error_bytes, "the image cannot be opened: %s", sparse_why(rc));
        return rc == -ENOMEM || rc == -EMFILE ? -PF_REASON_NO_MEMORY : -PF_REASON_BAD_REQUEST;
    }
    return 0;
}

int image_file_open(const char *name, int fd, const struct pageferry_image_facts *facts,
                    const uint64_t *region_pages, uint32_t region_count, struct image **out, char *error,
                    size_t error_bytes)
{
    struct image *image = calloc(1, sizeof(*image));
    int rc = 0;

    if (image == NULL) {
        sparse_explain(error, error_bytes, "no memory for another image");
        return -PF_REASON_NO_MEMORY;
    }
    image->ops = &file_ops;
    image->fd = -1;
    image->as_of = PF_LIMIT_IMMUTABLE_VERSION;
    rc = image_set_name(image, name, error, error_bytes);
    if (rc == 0)
        rc = set_file(image, fd, facts, error, error_bytes);
    if (rc == 0)
        rc = image_set_regions(image, region_pages, region_count, error, error_bytes);
    if (rc != 0) {
        file_close(image);
        image = NULL;
    }
    *out = image;
    return rc;
}
