/* SPDX-License-Identifier: Apache-2.0 */
/* Image files: what inspect finds, what is refused, and that holes are neither read nor filled. On a memfd
 * (tmpfs). */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "check.h"
#include "pageferry.h"
#include "serve/image.h"
#include "serve/sparse.h"

#define PAGES 200

static char error[PAGEFERRY_TEXT_BYTES];

static int new_file(uint64_t page_count)
{
    int fd = memfd_create("image", MFD_CLOEXEC);

    CHECK(fd >= 0 && ftruncate(fd, (off_t)(page_count * IMAGE_PAGE_BYTES)) == 0);
    return fd;
}

static void put_page(int fd, uint64_t page, int byte)
{
    uint8_t bytes[IMAGE_PAGE_BYTES];

    memset(bytes, byte, sizeof(bytes));
    CHECK(pwrite(fd, bytes, sizeof(bytes), (off_t)(page * IMAGE_PAGE_BYTES)) == (ssize_t)sizeof(bytes));
}

static blkcnt_t blocks_of(int fd)
{
    struct stat status;

    CHECK(fstat(fd, &status) == 0);
    return status.st_blocks;
}

/* Data in pages 0 to 69, 130 and the last; zeros that were written in 70 to 79; the rest is a hole. */
static int sparse_file(void)
{
    int fd = new_file(PAGES);

    for (uint64_t page = 0; page < 70; page++)
        put_page(fd, page, (int)page + 1);
    for (uint64_t page = 70; page < 80; page++)
        put_page(fd, page, 0);
    put_page(fd, 130, 131);
    put_page(fd, PAGES - 1, PAGES % 256);
    return fd;
}

static bool holds_data(uint64_t page)
{
    return page < 70 || page == 130 || page == PAGES - 1;
}

static struct pageferry_image_facts inspect(int fd)
{
    struct pageferry_image_facts facts;

    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, error, sizeof(error)), 0);
    return facts;
}

static struct image *open_image(int fd)
{
    struct pageferry_image_facts facts = inspect(fd);
    struct image *image = NULL;

    CHECK_EQ(image_file_open("vm", fd, &facts, &facts.page_count, 1, &image, error, sizeof(error)), 0);
    return image;
}

/* ------------------------------------------------------------------------------------------------ inspect */

/* By the contract's words, in one piece. */
static uint64_t content_id_of(int fd)
{
    XXH3_state_t *hash = XXH3_createState();
    uint8_t bytes[IMAGE_PAGE_BYTES];
    uint64_t page_count = PAGES, id;

    XXH3_64bits_reset(hash);
    for (uint64_t page = 0; page < PAGES; page++) {
        CHECK(pread(fd, bytes, sizeof(bytes), (off_t)(page * IMAGE_PAGE_BYTES)) == (ssize_t)sizeof(bytes));
        if (holds_data(page)) {
            XXH3_64bits_update(hash, &page, sizeof(page));
            XXH3_64bits_update(hash, bytes, sizeof(bytes));
        }
    }
    XXH3_64bits_update(hash, &page_count, sizeof(page_count));
    id = XXH3_64bits_digest(hash);
    XXH3_freeState(hash);
    return id;
}

static void test_inspect_counts_and_names(void)
{
    int fd = sparse_file();
    struct pageferry_progress progress = {0};
    struct pageferry_image_facts facts;
    blkcnt_t before = blocks_of(fd);

    CHECK_EQ(lseek(fd, 5, SEEK_SET), 5);
    CHECK_EQ(pageferry_image_inspect(fd, &progress, NULL, &facts, error, sizeof(error)), 0);
    CHECK_EQ(facts.page_count, PAGES);
    CHECK_EQ(facts.data_pages, 72);
    CHECK_EQ(progress.done_bytes, PAGES * IMAGE_PAGE_BYTES);
    CHECK_EQ(progress.total_bytes, PAGES * IMAGE_PAGE_BYTES);
    CHECK_EQ(lseek(fd, 0, SEEK_CUR), 5);
    CHECK_EQ(blocks_of(fd), before);
    CHECK(facts.content_id == content_id_of(fd));
    close(fd);
}

static void test_holes_and_written_zeros_have_one_name(void)
{
    int sparse = sparse_file(), dense = new_file(PAGES), other = sparse_file();
    struct pageferry_image_facts facts = inspect(sparse);

    for (uint64_t page = 0; page < PAGES; page++)
        put_page(dense, page, holds_data(page) ? (int)(page + 1) % 256 : 0);
    CHECK(inspect(dense).content_id == facts.content_id);
    put_page(other, 131, 1);
    CHECK(inspect(other).content_id != facts.content_id);
    CHECK(ftruncate(sparse, (PAGES + 1) * (off_t)IMAGE_PAGE_BYTES) == 0);
    CHECK(inspect(sparse).content_id != facts.content_id);
    close(sparse);
    close(dense);
    close(other);
}

static void test_inspect_gives_up_when_told(void)
{
    int fd = sparse_file();
    struct pageferry_progress progress = {.cancel = 1};
    struct pageferry_image_facts facts;

    CHECK_EQ(pageferry_image_inspect(fd, &progress, NULL, &facts, error, sizeof(error)), -PF_REASON_CANCELLED);
    CHECK(strstr(error, "cancelled") != NULL);
    close(fd);
}

static void refused(int fd, const char *words)
{
    struct pageferry_image_facts facts;

    error[0] = 0;
    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    if (strstr(error, words) == NULL)
        printf("said: %s\n", error);
    CHECK(strstr(error, words) != NULL);
    CHECK_EQ(pageferry_image_inspect(fd, NULL, NULL, &facts, NULL, 0), -PF_REASON_BAD_REQUEST);
    close(fd);
}

static void test_what_is_no_image(void)
{
    int odd = new_file(1), of_proc = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC), ends[2];

    CHECK(ftruncate(odd, 5000) == 0 && pipe(ends) == 0);
    refused(odd, "multiple of 4096");
    refused(new_file(0), "none at all");
    refused(new_file((uint64_t)PF_LIMIT_IMAGE_PAGES_MAX + 1), "at most");
    refused(ends[0], "not a regular file");
    refused(open("/dev/zero", O_RDONLY | O_CLOEXEC), "not a regular file");
    refused(open("/tmp", O_RDONLY | O_CLOEXEC | O_DIRECTORY), "not a regular file");
    refused(of_proc, "none at all");
    close(ends[1]);
    refused(-1, "cannot be looked at");
}

/* ---------------------------------------------------------------------------------------------- the image */

static void test_the_map_of_data(void)
{
    int fd = sparse_file();
    struct image *image = open_image(fd);
    uint64_t end = PAGES;

    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(image->ops->may_hold_data(image, page), holds_data(page) || (page >= 70 && page < 80));
    CHECK_EQ(image->ops->alike_end(image, 0, PAGES), 80);
    CHECK_EQ(image->ops->alike_end(image, 79, PAGES), 80);
    CHECK_EQ(image->ops->alike_end(image, 0, 64), 64);
    CHECK_EQ(image->ops->alike_end(image, 3, 7), 7);
    CHECK_EQ(image->ops->alike_end(image, 80, PAGES), 130);
    CHECK_EQ(image->ops->alike_end(image, 130, PAGES), 131);
    CHECK_EQ(image->ops->alike_end(image, 131, PAGES), PAGES - 1);
    CHECK_EQ(image->ops->alike_end(image, PAGES - 1, PAGES), PAGES);
    CHECK_EQ(image->ops->version(image, 5, &end), PF_LIMIT_IMMUTABLE_VERSION);
    CHECK_EQ(end, PAGES);
    image->ops->close(image);
    close(fd);
}

static void test_reads_are_whole_or_say_why(void)
{
    static uint8_t bytes[PAGES * IMAGE_PAGE_BYTES];
    int fd = sparse_file();
    struct image *image = open_image(fd);
    blkcnt_t before = blocks_of(fd);

    CHECK_EQ(image->ops->read(image, 0, PAGES, bytes), 0);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(bytes[page * IMAGE_PAGE_BYTES + 4095], holds_data(page) ? (page + 1) % 256 : 0);
    CHECK_EQ(blocks_of(fd), before);
    CHECK(ftruncate(fd, 100 * (off_t)IMAGE_PAGE_BYTES) == 0);
    CHECK_EQ(image->ops->read(image, 0, 100, bytes), 0);
    CHECK_EQ(image->ops->read(image, 99, 2, bytes), -PF_REASON_MISMATCH);
    CHECK_EQ(image->ops->read(image, 130, 1, bytes), -PF_REASON_MISMATCH);
    close(image->fd);
    image->fd = open("/tmp", O_RDONLY | O_CLOEXEC | O_DIRECTORY); /* a read that fails: EISDIR */
    CHECK_EQ(image->ops->read(image, 0, 1, bytes), -PF_REASON_GOING_AWAY);
    image->ops->close(image);
    close(fd);
}

/* A file system may have extents smaller than a page: the page that one begins or ends in may hold data. */
static void test_extents_are_rounded_outward(void)
{
    int fd = new_file(4);
    uint64_t first, end;

    put_page(fd, 1, 7);
    CHECK_EQ(sparse_next_extent(fd, 0, 4, &first, &end), 0);
    CHECK_EQ(first, 1);
    CHECK_EQ(end, 2);
    CHECK_EQ(sparse_next_extent(fd, 2, 4, &first, &end), 0);
    CHECK_EQ(first, 4);
    CHECK_EQ(end, 4);
    CHECK_EQ(sparse_next_extent(fd, 1, 1, &first, &end), 0); /* what the file grew by is not its */
    CHECK_EQ(first, 1);
    CHECK_EQ(end, 1);
    CHECK_EQ(sparse_next_extent(-1, 0, 4, &first, &end), -EBADF);
    close(fd);
}

/* Cut while it is looked at: what is gone is not a hole, or a guest would read zeros there. */
static void test_a_file_cut_short_has_no_hole_at_its_end(void)
{
    uint64_t first, end;
    int fd = new_file(4);

    put_page(fd, 0, 1);
    CHECK_EQ(sparse_next_extent(fd, 1, 4, &first, &end), 0);
    CHECK_EQ(first, 4);
    CHECK(ftruncate(fd, (off_t)(3 * IMAGE_PAGE_BYTES)) == 0);
    CHECK_EQ(sparse_next_extent(fd, 1, 4, &first, &end), 1);
    CHECK_EQ(sparse_next_extent(fd, 3, 4, &first, &end), 1);
    CHECK(strstr(sparse_why(1), "shorter") != NULL);
    close(fd);
}

static void not_opened(const char *name, int fd, const struct pageferry_image_facts *facts,
                       const uint64_t *regions,
                       uint32_t region_count, const char *words)
{
    struct image *image = (struct image *)1;

    CHECK_EQ(image_file_open(name, fd, facts, regions, region_count, &image, error, sizeof(error)),
             -PF_REASON_BAD_REQUEST);
    CHECK(image == NULL);
    CHECK(strstr(error, words) != NULL);
}

static void test_what_is_not_opened(void)
{
    static const uint64_t short_of[] = {100, 99}, too_long[] = {100, 101}, with_none[] = {200,
                                                                                          0}, fits[] = {150,
                                                                                                        50};
    uint64_t many[PF_LIMIT_REGIONS_MAX + 1];
    char long_name[PF_LIMIT_IMAGE_NAME_BYTES_MAX + 2];
    int fd = sparse_file(), next = dup(fd);
    struct pageferry_image_facts facts = inspect(fd), other = facts;
    struct image *image = NULL;

    close(next);
    for (size_t i = 0; i < sizeof(many) / sizeof(many[0]); i++)
        many[i] = 1;
    memset(long_name, 'v', sizeof(long_name));
    long_name[sizeof(long_name) - 1] = 0;
    other.page_count++;
    not_opened("vm", fd, &facts, short_of, 2, "the regions have 199 pages, the image has 200");
    not_opened("vm", fd, &facts, too_long, 2, "longer than what is left");
    not_opened("vm", fd, &facts, with_none, 2, "is empty");
    not_opened("vm", fd, &facts, many, PF_LIMIT_REGIONS_MAX + 1, "1 to 64 regions");
    not_opened("vm", fd, &facts, many, 0, "1 to 64 regions");
    not_opened("", fd, &facts, fits, 2, "1 to 128 bytes");
    not_opened(long_name, fd, &facts, fits, 2, "1 to 128 bytes");
    not_opened("vm", fd, &other, fits, 2, "when it was inspected");
    CHECK_EQ(dup(fd), next); /* nothing was kept */
    close(next);
    long_name[PF_LIMIT_IMAGE_NAME_BYTES_MAX] = 0;
    CHECK_EQ(image_file_open(long_name, fd, &facts, fits, 2, &image, error, sizeof(error)), 0);
    CHECK_EQ(image->region_count, 2);
    CHECK_EQ(image->region_pages[1], 50);
    image->ops->close(image);
    close(fd);
}

/* ---------------------------------------------------------------------------------------- images, by name */

static struct grpc_bytes text(const char *name)
{
    return (struct grpc_bytes){(const uint8_t *)name, strlen(name)};
}

static void test_images_by_name(void)
{
    static struct images images;
    int fd = sparse_file();
    struct image *one;

    for (int i = 0; i < IMAGES_MAX; i++) {
        one = open_image(fd);
        snprintf(one->name, sizeof(one->name), "vm%d", i);
        CHECK_EQ(images_add(&images, one), 0);
    }
    one = open_image(fd);
    CHECK_EQ(images_add(&images, one), -PF_REASON_BAD_REQUEST);
    snprintf(one->name, sizeof(one->name), "vm7");
    CHECK_EQ(images_add(&images, one), -PF_REASON_ALREADY_ATTACHED);
    one->ops->close(one);
    one = images_take(&images, text("vm255"));
    CHECK(one == images.image[255]);
    CHECK(images_take(&images, text("vm")) == NULL);
    CHECK(images_take(&images, text("")) == NULL);
    CHECK(images_take(&images, (struct grpc_bytes){(const uint8_t *)"vm7\0x", 5}) == NULL);
    images_release(one);
    images_close(&images);
    CHECK(images_take(&images, text("vm7")) == NULL);
    close(fd);
}

static uint32_t closed;

static void count_close(struct image *image)
{
    (void)image;
    closed++;
}

/* Who has it keeps it, whatever its name means to others by then. */
static void test_an_image_goes_when_nobody_has_it(void)
{
    static const struct image_ops ops = {.close = count_close};
    static struct images images;
    static struct image first = {.ops = &ops, .name = "vm"}, second = {.ops = &ops, .name = "vm"};
    struct image *mine;

    closed = 0;
    CHECK(!images_remove(&images, text("vm")));
    CHECK_EQ(images_add(&images, &first), 0);
    mine = images_take(&images, text("vm"));
    CHECK(mine == &first && !image_is_removed(mine));
    CHECK(images_remove(&images, text("vm")));
    CHECK(image_is_removed(mine));
    CHECK(images_take(&images, text("vm")) == NULL);
    CHECK_EQ(images_add(&images, &second), 0);
    CHECK(images_take(&images, text("vm")) == &second);
    CHECK_EQ(closed, 0);
    images_release(mine);
    CHECK_EQ(closed, 1);
    images_release(&second);
    images_close(&images);
    CHECK_EQ(closed, 2);
}

int main(void)
{
    RUN(test_inspect_counts_and_names);
    RUN(test_holes_and_written_zeros_have_one_name);
    RUN(test_inspect_gives_up_when_told);
    RUN(test_what_is_no_image);
    RUN(test_the_map_of_data);
    RUN(test_reads_are_whole_or_say_why);
    RUN(test_extents_are_rounded_outward);
    RUN(test_a_file_cut_short_has_no_hole_at_its_end);
    RUN(test_what_is_not_opened);
    RUN(test_images_by_name);
    RUN(test_an_image_goes_when_nobody_has_it);
    return check_done();
}
