/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry.h's server half for pages that are lost, and all of its news: that a read has found one lost is of an image,
 * not of a session, so it is kept at the image. Any thread may call these.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "rounds.h"
#include "server.h"
#include "sparse.h"

int image_lose(struct image *image, uint64_t first_page, uint64_t page_count, char *error, size_t error_bytes)
{
    int rc = 0;

    if (page_count == 0 || first_page >= image->page_count || page_count > image->page_count - first_page) {
        sparse_explain(error, error_bytes, "pages %" PRIu64 " and %" PRIu64 " more are not within the %" PRIu64
                       " of %s", first_page, page_count, image->page_count, image->name);
        return -PF_REASON_OUT_OF_IMAGE;
    }
    if (image->rounds != NULL)
        rc = rounds_lose(image->rounds, first_page, page_count);
    else
        lost_note(&image->lost, first_page, page_count);
    if (rc == -PF_REASON_WRONG_PHASE)
        sparse_explain(error, error_bytes, "the memory of %s is handed over: its target has to poison the pages now",
                       image->name);
    return rc;
}

/* Until images_release. NULL: there is none of this name. */
static struct image *take(struct pageferry_server *server, const char *name)
{
    return images_take(&server->service.images, (struct grpc_bytes){(const uint8_t *)name, strlen(name)});
}

int pageferry_server_poison(struct pageferry_server *server, const char *name, uint64_t first_page, uint64_t page_count,
                            char *error, size_t error_bytes)
{
    struct image *image = take(server, name);
    int rc;

    if (image == NULL) {
        sparse_explain(error, error_bytes, "no image has the name %s", name);
        return -PF_REASON_NO_SUCH_IMAGE;
    }
    rc = image_lose(image, first_page, page_count, error, error_bytes);
    images_release(image);
    return rc;
}

int pageferry_server_poisoned(struct pageferry_server *server, const char *name, uint64_t *first, uint64_t *runs,
                              uint32_t capacity)
{
    struct image *image = take(server, name);
    uint32_t count = 0;
    uint64_t end;

    if (image == NULL)
        return -PF_REASON_NO_SUCH_IMAGE;
    while (*first < image->page_count && count < capacity) {
        end = image->page_count;
        if (image_standing(image, *first, &end) == IMAGE_LOST) {
            runs[2 * count] = *first;
            runs[2 * count + 1] = end - *first;
            count++;
        }
        *first = end;
    }
    images_release(image);
    return (int)count;
}

static int lost_event(struct pageferry_server *server, struct pageferry_server_event *event)
{
    struct image *image = images_take_lost_news(&server->service.images);

    if (image == NULL)
        return 0;
    memset(event, 0, sizeof(*event));
    event->kind = PAGEFERRY_SERVER_EVENT_LOST;
    event->page_count = atomic_load(&image->lost.count);
    snprintf(event->text, sizeof(event->text), "%s", image->name);
    images_release(image);
    sessions_ring(&server->service.sessions); /* there may be another: the next call finds out */
    return 1;
}

/* The bell is silenced when no session has news, before images are looked at: who rings it later is heard. */
int pageferry_server_event(struct pageferry_server *server, struct pageferry_server_event *event)
{
    int some = sessions_event(&server->service.sessions, event);

    return some != 0 ? some : lost_event(server, event);
}

int pageferry_server_event_fd(struct pageferry_server *server)
{
    return server->service.sessions.event_fd;
}
