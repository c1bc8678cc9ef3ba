/* SPDX-License-Identifier: Apache-2.0 */
/* The images that are served, by name: a list that only grows, so that workers read it without a lock. */
#include <string.h>

#include "image.h"

int images_add(struct images *images, struct image *image)
{
    uint32_t count = atomic_load_explicit(&images->count, memory_order_relaxed);
    struct grpc_bytes name = {.data = (const uint8_t *)image->name, .length = strlen(image->name)};

    if (images_find(images, name) != NULL)
        return -PF_REASON_ALREADY_ATTACHED;
    if (count == IMAGES_MAX)
        return -PF_REASON_BAD_REQUEST;
    images->image[count] = image;
    atomic_store_explicit(&images->count, count + 1, memory_order_release);
    return 0;
}

const struct image *images_find(struct images *images, struct grpc_bytes name)
{
    uint32_t count = atomic_load_explicit(&images->count, memory_order_acquire);
    const struct image *found = NULL;

    for (uint32_t i = 0; i < count && found == NULL; i++) {
        if (grpc_is_text(name, images->image[i]->name))
            found = images->image[i];
    }
    return found;
}

void images_close(struct images *images)
{
    uint32_t count = atomic_load_explicit(&images->count, memory_order_acquire);

    for (uint32_t i = 0; i < count; i++)
        images->image[i]->ops->close(images->image[i]);
    atomic_store_explicit(&images->count, 0, memory_order_relaxed);
}
