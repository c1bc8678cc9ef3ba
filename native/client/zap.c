/* SPDX-License-Identifier: Apache-2.0 */
/* pageferry_zap: a VMM zaps its own memory. What the order does for somebody outside of it is in zapper.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../gen/contract.h"
#include "../kernel/zap.h"
#include "../pageferry.h"

_Static_assert(PAGEFERRY_ZAPPED_BY_DONTNEED == (int)ZAP_METHOD_DONTNEED &&
                   PAGEFERRY_ZAPPED_BY_DONTNEED_LOCKED == (int)ZAP_METHOD_DONTNEED_LOCKED &&
                   PAGEFERRY_ZAPPED_BY_REMAP == (int)ZAP_METHOD_REMAP &&
                   PAGEFERRY_ZAPPED_BY_PUNCH == (int)ZAP_METHOD_PUNCH,
               "pageferry.h has the methods of kernel/zap.h");

static int reason_of(int rc)
{
    int reason = PF_REASON_BUG;

    if (rc == -EINVAL)
        reason = PF_REASON_BAD_REQUEST;
    else if (rc == -EOPNOTSUPP || rc == -EPERM)
        reason = PF_REASON_UNSUPPORTED;
    else if (rc == -ENOMEM || rc == -ENOSPC)
        reason = PF_REASON_NO_MEMORY;
    return reason;
}

int pageferry_zap(struct pageferry_zap *zap)
{
    struct zap_request request = {
        .address = zap->address,
        .length_bytes = zap->length_bytes,
        .backing_fd = zap->backing_fd,
        .offset_bytes = zap->offset_bytes,
        .drop = (zap->flags & PAGEFERRY_ZAP_DROP) != 0,
        .uffd = zap->uffd,
    };
    struct zap_done done = {.why = "a flag is unknown"};
    int rc = (zap->flags & ~PAGEFERRY_ZAP_DROP) != 0 ? -EINVAL : zap_here(&request, &done);

    zap->done_bytes = done.done_bytes;
    zap->method = (uint32_t)done.method;
    if (rc == 0 || rc == -EINVAL || rc == -EOPNOTSUPP)
        snprintf(zap->why, sizeof(zap->why), "%s", done.why);
    else
        snprintf(zap->why, sizeof(zap->why), "%s: %s", done.why, strerror(-rc));
    return rc == 0 ? 0 : -reason_of(rc);
}
