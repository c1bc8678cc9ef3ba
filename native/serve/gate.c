/* SPDX-License-Identifier: Apache-2.0 */
/* See gate.h. */
#include "gate.h"

uint32_t gate_call(struct service *service, const struct grpc_headers *headers, const char **why)
{
    if (atomic_load(&service->draining) != 0) {
        *why = "the server drains";
        return PF_REASON_GOING_AWAY;
    }
    if (headers->session.length > 0 || headers->authorization.length > 0) {
        *why = "no such session, or not with this token"; /* one sentence for all: it must not tell which */
        return PF_REASON_NOT_ALLOWED;
    }
    return 0;
}

uint32_t gate_image(struct service *service, struct grpc_bytes name, const struct image **image,
                    const char **why)
{
    *image = images_find(&service->images, name);
    if (*image == NULL) {
        *why = "this server has no image of this name";
        return PF_REASON_NO_SUCH_IMAGE;
    }
    if ((*image)->live) {
        *why = "the memory of a running VM is served to its session alone";
        return PF_REASON_NOT_ALLOWED;
    }
    return 0;
}
