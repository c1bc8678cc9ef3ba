/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry.h's server half for a move: live images, their last round, sessions, news. Any thread may call these: what
 * they touch has a lock of its own.
 */
#include <string.h>

#include "image_memory.h"
#include "server.h"
#include "sparse.h"

int pageferry_server_add_live(struct pageferry_server *server, struct pageferry_live_options *options)
{
    const struct image_memory_request request = {
        .name = options->name,
        .uffd = options->uffd,
        .ram_fd = options->ram_fd,
        .pid = options->vmm_pid,
        .pidfd = options->vmm_pidfd,
        .regions = options->regions,
        .region_count = options->region_count,
        .content_id = options->content_id,
        .incarnation = (uint32_t)options->incarnation, /* is looked at below */
        .versions_fd = -1,
        .arriving_fd = options->arriving_fd,
        .drops_untold = options->drops_untold != 0,
    };
    struct image *image = NULL;
    int rc;

    options->error[0] = 0;
    if (options->content_id == 0 || options->incarnation == 0 || options->incarnation > PF_LIMIT_INCARNATION_MAX) {
        sparse_explain(options->error, sizeof(options->error), "a live image needs a content id, and an incarnation from "
                       "1 to %u", PF_LIMIT_INCARNATION_MAX);
        return -PF_REASON_BAD_REQUEST;
    }
    rc = image_memory_open(&request, &image, options->error, sizeof(options->error));
    return rc == 0 ? server_add(server, image, options->error, sizeof(options->error)) : rc;
}

/* Until images_release; NULL, with *reason and a sentence. */
static struct image *take_live(struct pageferry_server *server, const char *name, int *reason, char *error,
                               size_t error_bytes)
{
    struct grpc_bytes bytes = {.data = (const uint8_t *)name, .length = strlen(name)};
    struct image *image = images_take(&server->service.images, bytes);

    *reason = 0;
    if (image == NULL) {
        *reason = -PF_REASON_NO_SUCH_IMAGE;
        sparse_explain(error, error_bytes, "no image has the name %s", name);
    } else if (image->rounds == NULL) {
        *reason = -PF_REASON_BAD_REQUEST;
        sparse_explain(error, error_bytes, "the image %s is not live", name);
        images_release(image);
        image = NULL;
    }
    return image;
}

static const char *why_not(int rc)
{
    if (rc == -PF_REASON_NO_VMM)
        return "the VMM has ended";
    if (rc == -PF_REASON_MISMATCH)
        return "the VMM's memory is tracked no more: what it wrote is unknown";
    return "the kernel says what it should not of the VMM's memory, or numbers have run out";
}

int pageferry_server_freeze(struct pageferry_server *server, const char *name, struct pageferry_frozen *frozen,
                            char *error, size_t error_bytes)
{
    int rc;
    struct image *image = take_live(server, name, &rc, error, error_bytes);

    if (image == NULL)
        return rc;
    rc = rounds_freeze(image->rounds);
    if (rc == 0) {
        frozen->as_of = atomic_load(&image->as_of);
        frozen->dirty_pages = rounds_settled_pages(image->rounds);
        manifest_digest(image_memory_manifest(image), frozen->digest);
    } else {
        sparse_explain(error, error_bytes, "%s", why_not(rc));
    }
    images_release(image);
    return rc;
}

int pageferry_server_thaw(struct pageferry_server *server, const char *name)
{
    int rc;
    struct image *image = take_live(server, name, &rc, NULL, 0);

    if (image == NULL)
        return rc;
    rc = rounds_thaw(image->rounds);
    images_release(image);
    return rc;
}

int pageferry_server_arrived(struct pageferry_server *server, const char *name)
{
    int rc;
    struct image *image = take_live(server, name, &rc, NULL, 0);

    if (image == NULL)
        return rc;
    rc = image_memory_arrived(image);
    images_release(image);
    return rc;
}

int pageferry_server_live_state(struct pageferry_server *server, const char *name, struct pageferry_live_state *state)
{
    int rc;
    struct image *image = take_live(server, name, &rc, NULL, 0);
    struct rounds_news news;

    memset(state, 0, sizeof(*state));
    if (image == NULL)
        return rc;
    rounds_news(image->rounds, &news);
    state->as_of = news.as_of;
    state->page_count = image->page_count;
    state->dirty_pages = news.settled_pages;
    state->round_ns = news.round_ns;
    state->round = (uint32_t)news.as_of;
    state->frozen = news.frozen;
    images_release(image);
    return 0;
}

int pageferry_server_remove(struct pageferry_server *server, const char *name)
{
    struct grpc_bytes bytes = {.data = (const uint8_t *)name, .length = strlen(name)};
    bool found = images_remove(&server->service.images, bytes);

    serve_ring_all(&server->service);
    return found ? 0 : -PF_REASON_NO_SUCH_IMAGE;
}

int pageferry_server_set_session(struct pageferry_server *server, const struct pageferry_session *session,
                                 char *error, size_t error_bytes)
{
    int rc = sessions_set(&server->service.sessions, session, error, error_bytes);

    serve_ring_all(&server->service);
    return rc;
}

int pageferry_server_drop_session(struct pageferry_server *server, const char *session)
{
    int rc = sessions_drop(&server->service.sessions, session);

    serve_ring_all(&server->service);
    return rc;
}

