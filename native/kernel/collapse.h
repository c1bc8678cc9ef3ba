/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages made from outside: a piece of 2 MiB of another process that lies in 512 small pages becomes one huge page,
 * by process_madvise(MADV_COLLAPSE). Only for memory of which every byte is there: the kernel maps the whole piece at
 * once, without an event, so nothing here may run while pages arrive (docs/huge-pages.md).
 */
#ifndef PAGEFERRY_COLLAPSE_H
#define PAGEFERRY_COLLAPSE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kernel_ops.h"

#define COLLAPSE_BYTES (UINT64_C(2) << 20)

enum collapse_result {
    COLLAPSE_DONE = 0,    /* one huge page, perhaps before already */
    COLLAPSE_BUSY,        /* a page of it is in use just now; some tries were made */
    COLLAPSE_NO_MEMORY,   /* no free piece of 2 MiB, or the memory limit of the process's control group */
    COLLAPSE_REFUSED,     /* not this memory, or not with these settings: see collapse_look, collapse_bar */
    COLLAPSE_NOT_ALLOWED,
    COLLAPSE_GONE         /* the process has exited */
};

/* One piece; `address` is a multiple of COLLAPSE_BYTES. About a millisecond; some more when it is busy. */
enum collapse_result collapse_piece(int pidfd, uint64_t address);

/* Nothing of [offset, offset + COLLAPSE_BYTES) of a file is a hole. A collapse would fill it with zeros. */
bool collapse_is_whole(int fd, uint64_t offset_bytes);

struct collapse_facts {
    uint64_t huge_bytes; /* mapped by huge entries: AnonHugePages, ShmemPmdMapped, FilePmdMapped */
    bool barred;         /* VmFlags nh: the process has forbidden them (MADV_NOHUGEPAGE) */
    bool pool;           /* hugetlbfs: huge from the beginning */
};

/* What smaps says of the mappings that these spans touch, each counted once and whole. 0 or -errno: -EACCES, -EPERM,
 * -ESRCH as mapping_look. */
int collapse_look(pid_t pid, const struct kernel_span *spans, uint32_t span_count, struct collapse_facts *facts);

enum collapse_bar {
    COLLAPSE_BAR_NONE = 0,
    COLLAPSE_BAR_PROCESS, /* switched off for that process: PR_SET_THP_DISABLE */
    COLLAPSE_BAR_SYSTEM   /* shmem_enabled is deny */
};

/* What may stand in the way, beside the mapping's own flag. */
enum collapse_bar collapse_bar(pid_t pid);

#endif
