/* SPDX-License-Identifier: Apache-2.0 */
/* See map_client.h. */
#include "map_client.h"

#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "serve/image_memory.h"

void map_client_begin(struct map_client *client, const struct image *image)
{
    memset(client, 0, sizeof(*client));
    client->image = image;
}

void map_load_version(const struct map_client *client, struct map_fetch *fetch, uint64_t page)
{
    uint64_t past = page + 1;

    fetch->version = client->image->ops->version(client->image, page, &past);
}

void map_ask_standing(const struct map_client *client, struct map_fetch *fetch, uint64_t page)
{
    uint64_t past = page + 1;

    fetch->standing = client->image->ops->standing(client->image, page, &past);
}

void map_ask_for_holes(const struct map_client *client, struct map_fetch *fetch, uint64_t page)
{
    fetch->may_hold_data = client->image->ops->may_hold_data(client->image, page);
}

bool map_read_and_keep(struct map_client *client, const struct map_fetch *fetch, uint64_t page)
{
    uint8_t bytes[IMAGE_PAGE_BYTES] = {0};

    if (fetch->standing != IMAGE_HERE) /* LATER */
        return true;
    if (fetch->may_hold_data && client->image->ops->read(client->image, page, 1, bytes) != 0)
        return false;
    if (fetch->version < client->floor[page] || fetch->version <= client->held[page])
        return true;
    client->held[page] = fetch->version;
    client->hash[page] = XXH3_64bits(bytes, sizeof(bytes));
    return true;
}

bool map_fetch_page(struct map_client *client, uint64_t page)
{
    struct map_fetch fetch;

    map_load_version(client, &fetch, page);
    map_ask_standing(client, &fetch, page);
    map_ask_for_holes(client, &fetch, page);
    return map_read_and_keep(client, &fetch, page);
}

bool map_fetch_missing(struct map_client *client)
{
    bool read = true;

    for (uint64_t page = 0; page < client->image->page_count; page++)
        if (client->held[page] == 0)
            read = map_fetch_page(client, page) && read;
    return read;
}

uint64_t map_read(struct map_client *client)
{
    const struct image *image = client->image;
    uint64_t as_of = atomic_load(&image->as_of), missing = 0;
    uint64_t page = image->ops->next_above(image, client->as_of, 0, image->page_count);

    while (page < image->page_count) {
        uint64_t past = image->page_count, version = image->ops->version(image, page, &past);
        for (; page < past; page++) {
            client->floor[page] = version;
            missing += client->held[page] < version;
            client->held[page] = client->held[page] < version ? 0 : client->held[page];
        }
        page = image->ops->next_above(image, client->as_of, page, image->page_count);
    }
    client->as_of = as_of;
    return missing;
}

uint64_t map_wrong(const struct map_client *client, int ram_fd)
{
    uint8_t bytes[IMAGE_PAGE_BYTES];
    uint64_t wrong = 0;
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < client->image->page_count; page++) {
        ssize_t length = pread(ram_fd, bytes, sizeof(bytes), (off_t)(page * IMAGE_PAGE_BYTES));
        wrong += length != (ssize_t)sizeof(bytes) || client->held[page] == 0 ||
                 client->hash[page] != XXH3_64bits(bytes, sizeof(bytes));
        sum += manifest_of(page, client->held[page]);
    }
    return wrong == 0 && sum != image_memory_manifest(client->image) ? UINT64_MAX : wrong;
}
