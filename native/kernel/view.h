/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our own view of a VM's memory: how bytes get where the kernel finds them when a page is mapped, and how they leave.
 * There are four, and the engine knows only that a page written here can be mapped:
 *
 *   FILE     small pages of a memfd or tmpfs: pwrite
 *   ALIAS    the same where a write may bring in more pages than it names, because transparent huge pages are forced on:
 *            through a mapping that bars them (MADV_NOHUGEPAGE); pwrite has no such say
 *   POOL     huge pages of a pool (hugetlbfs), which take no pwrite: room is allocated, then written through a mapping
 *   STAGING  private memory in huge pages: a file of ours with the same offsets gathers the pieces of a huge page until it
 *            can be copied in whole, and forgets them then. It dies with this process
 *
 * Mappings are written by process_vm_writev to ourselves, never by a store: the file belongs to a VMM that may cut or
 * punch it at any time, and a store would end this process, which serves other VMs too, by SIGBUS.
 */
#ifndef PAGEFERRY_VIEW_H
#define PAGEFERRY_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include "kernel_ops.h"

enum view_kind { VIEW_FILE = 0, VIEW_ALIAS, VIEW_POOL, VIEW_STAGING };

struct view {
    enum view_kind kind;
    uint64_t unit_bytes;   /* 0: 4096 */
    uint64_t length_bytes; /* of `bytes` */
    uint8_t *bytes;        /* the mapping; NULL with FILE */
    uint8_t *zeros;        /* a unit of them, where units are larger than a page; else NULL */
    int staging_fd;        /* STAGING only */
};

static inline uint64_t view_unit_bytes(const struct view *view)
{
    return view->unit_bytes != 0 ? view->unit_bytes : UINT64_C(4096);
}

/* Of `length_bytes` of a RAM file, or of private memory (file -1). 0 or -errno. */
int view_open(struct view *view, int file, uint64_t length_bytes, uint64_t unit_bytes, bool brings_more);
void view_close(struct view *view);
/* Nothing at all lies in the RAM file: the one thing that a file on a pool can say (it knows no SEEK_DATA). */
bool view_is_empty(int file);

/* POOL: room for these whole units, zeros where there was none. */
struct kernel_outcome view_allocate(const struct view *view, int file, const struct kernel_span *span);
/* STAGING: what is copied next is resident, holes too: the kernel takes a second huge page for a while otherwise. */
void view_make_resident(const struct view *view, const struct kernel_span *span);
/* The pool of huge pages of this size has none that nobody has reserved; false too where it cannot be looked at. */
bool view_pool_is_empty(uint64_t unit_bytes);

/* As populate and punch of kernel_ops. Of POOL, punch gives whole units back, and writes zeros to what is less. */
struct kernel_outcome view_populate(const struct view *view, int file, const struct kernel_span *span,
                                    const void *bytes);
struct kernel_outcome view_punch(const struct view *view, int file, const struct kernel_span *span);

#endif
