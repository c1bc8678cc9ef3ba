/* SPDX-License-Identifier: Apache-2.0 */
/* What the client half's callers hold: one VM. Its loop's thread owns nearly all of it (loop.h); the functions of
 * pageferry.h look at the rest. */
#ifndef PAGEFERRY_HANDLE_H
#define PAGEFERRY_HANDLE_H

#include "../pageferry.h"
#include "caller.h"
#include "loop.h"

struct pageferry_vm {
    struct address address;
    struct caller caller;
    char image[PF_LIMIT_IMAGE_NAME_BYTES_MAX + 1];
    struct region regions[PF_LIMIT_REGIONS_MAX];
    struct loop loop;
};

#endif
