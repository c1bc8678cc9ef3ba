/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The images that are served, by name, under a lock that is held for a moment when a call names its image. And
 * what all kinds of images have to be: named, and made of regions.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "image.h"
#include "sparse.h"

int image_set_regions(struct image *image, const uint64_t *region_pages, uint32_t region_count, char *error,
                      size_t error_bytes)
{
    uint64_t sum = 0;

    if (region_count == 0 || region_count > PF_LIMIT_REGIONS_MAX) {
        sparse_explain(error, error_bytes, "an image has 1 to %u regions, not %u", PF_LIMIT_REGIONS_MAX,
                       region_count);
        return -PF_REASON_BAD_REQUEST;
    }
    for (uint32_t i = 0; i < region_count; i++) {
        if (region_pages[i] == 0 || region_pages[i] > image->page_count - sum) {
            sparse_explain(error, error_bytes,
                           "region %u of %" PRIu64 " pages is empty, or longer than what is left", i,
                           region_pages[i]);
            return -PF_REASON_BAD_REQUEST;
        }
        sum += region_pages[i];
        image->region_pages[i] = region_pages[i];
    }
    if (sum != image->page_count) {
        sparse_explain(error, error_bytes, "the regions have %" PRIu64 " pages, the image has %" PRIu64, sum,
                       image->page_count);
        return -PF_REASON_BAD_REQUEST;
    }
    image->region_count = region_count;
    return 0;
}

int image_set_name(struct image *image, const char *name, char *error, size_t error_bytes)
{
    size_t length = strlen(name);

    if (length == 0 || length >= sizeof(image->name)) {
        sparse_explain(error, error_bytes, "an image's name has 1 to %u bytes, not %zu",
                       PF_LIMIT_IMAGE_NAME_BYTES_MAX, length);
        return -PF_REASON_BAD_REQUEST;
    }
    memcpy(image->name, name, length + 1);
    return 0;
}

enum image_standing image_standing(const struct image *image, uint64_t page, uint64_t *end)
{
    if (lost_has(&image->lost, page, end))
        return IMAGE_LOST;
    return image->ops->standing == NULL ? IMAGE_HERE : image->ops->standing(image, page, end);
}

enum image_standing image_standing_since(const struct image *image, uint64_t page, uint64_t *end)
{
    atomic_thread_fence(memory_order_acquire);
    return image_standing(image, page, end);
}

/* EIO is the kernel's word that the bytes are gone: a memory error, a bad sector. Which page it was is only known of one
 * that was read alone. */
int image_read_said(int rc, uint64_t page_count)
{
    if (rc > 0)
        return -PF_REASON_MISMATCH; /* the file got shorter */
    if ((rc == -EIO || rc == -EHWPOISON) && page_count == 1)
        return IMAGE_READ_LOST;
    return rc < 0 ? -PF_REASON_GOING_AWAY : 0;
}

/* With the lock held. The place of the image of this name; `count` if there is none. */
static uint32_t place_of(const struct images *images, struct grpc_bytes name)
{
    uint32_t i = 0;

    while (i < images->count && !grpc_is_text(name, images->image[i]->name))
        i++;
    return i;
}

int images_add(struct images *images, struct image *image)
{
    struct grpc_bytes name = {.data = (const uint8_t *)image->name, .length = strlen(image->name)};
    int rc = 0;

    pthread_mutex_lock(&images->lock);
    if (place_of(images, name) < images->count) {
        rc = -PF_REASON_ALREADY_ATTACHED;
    } else if (images->count == IMAGES_MAX) {
        rc = -PF_REASON_BAD_REQUEST;
    } else {
        atomic_store(&image->users, 1);
        images->image[images->count++] = image;
    }
    pthread_mutex_unlock(&images->lock);
    return rc;
}

struct image *images_take(struct images *images, struct grpc_bytes name)
{
    struct image *image = NULL;
    uint32_t place;

    pthread_mutex_lock(&images->lock);
    place = place_of(images, name);
    if (place < images->count) {
        image = images->image[place];
        atomic_fetch_add(&image->users, 1);
    }
    pthread_mutex_unlock(&images->lock);
    return image;
}

void images_release(struct image *image)
{
    if (atomic_fetch_sub(&image->users, 1) == 1)
        image->ops->close(image);
}

bool images_remove(struct images *images, struct grpc_bytes name)
{
    struct image *image = NULL;
    uint32_t place;

    pthread_mutex_lock(&images->lock);
    place = place_of(images, name);
    if (place < images->count) {
        image = images->image[place];
        images->image[place] = images->image[--images->count];
        atomic_store(&image->removed, true);
    }
    pthread_mutex_unlock(&images->lock);
    if (image != NULL)
        images_release(image);
    return image != NULL;
}

bool image_is_removed(const struct image *image)
{
    return atomic_load_explicit(&image->removed, memory_order_relaxed);
}

struct image *images_take_lost_news(struct images *images)
{
    struct image *image = NULL;

    pthread_mutex_lock(&images->lock);
    for (uint32_t i = 0; i < images->count && image == NULL; i++) {
        if (atomic_exchange(&images->image[i]->lost_news, false)) {
            image = images->image[i];
            atomic_fetch_add(&image->users, 1);
        }
    }
    pthread_mutex_unlock(&images->lock);
    return image;
}

void images_close(struct images *images)
{
    for (uint32_t i = 0; i < images->count; i++)
        images_release(images->image[i]);
    images->count = 0;
}
