/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM handed over, as the kernel shows it: which kind an fd is, and how a piece of another process's address
 * space is mapped and registered. Used once, at the hand-off (invariant I7); nothing here is on a page's way.
 */
#ifndef PAGEFERRY_MAPPING_H
#define PAGEFERRY_MAPPING_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum fd_kind {
    FD_KIND_OTHER = 0,
    FD_KIND_UFFD,        /* anon_inode:[userfaultfd] */
    FD_KIND_SHARED_FILE, /* memfd or tmpfs file, open for writing: 4 KiB pages, transparent huge ones perhaps */
    FD_KIND_HUGETLB      /* memfd or file on hugetlbfs, open for writing: huge pages of a pool */
};

/* 0 and the kind, or -errno. */
int mapping_fd_kind(int fd, enum fd_kind *kind);

struct file_pages {
    uint64_t unit_bytes; /* what the kernel maps of it at once: 4096, or its pool's page */
    bool brings_more;    /* small pages, but a write to one may bring in others: huge=, or huge pages forced on */
};

/* Of a RAM file of one of the two kinds above. 0 or -errno. */
int mapping_file_pages(int fd, struct file_pages *pages);

struct mapping_facts {
    bool mapped;             /* every byte of the range is mapped */
    bool shared;             /* and all of it MAP_SHARED */
    bool registered_missing; /* VmFlags um on all of it */
    bool registered_minor;   /* VmFlags ui on all of it */
    bool locked;             /* VmFlags lo somewhere */
    bool huge_pages_barred;  /* VmFlags nh on all of it */
    uint64_t present_pages;  /* pages with an entry in the page table of that process */
    uint64_t unit_bytes;     /* what the kernel maps at once, on all of it; 0: it differs */
};

/* Looks at [address, address + length_bytes) of a process through /proc/PID/{smaps,pagemap}. 0 or -errno:
 * -EACCES/-EPERM: not allowed to look (then nothing is known), -ESRCH: the process is gone. */
int mapping_look(pid_t pid, uint64_t address, uint64_t length_bytes, struct mapping_facts *facts);

/* Only the pages with an entry in that process's page table: quick, for a look at the last moment. */
int mapping_present(pid_t pid, uint64_t address, uint64_t length_bytes, uint64_t *present_pages);

/* One page of a process: 1 and 0, present in its page table or not (a marker of poison is not); -errno as above. */
int mapping_page_present(pid_t pid, uint64_t address);

enum thp_shmem {
    THP_SHMEM_NEVER = 0,
    THP_SHMEM_ADVISE, /* only where asked for */
    THP_SHMEM_FORCED  /* always, within_size or force: a write of one page may bring in others */
};

/* The system's setting for shared memory, 4 KiB and every larger size. 0 or -errno. */
int mapping_thp_shmem(enum thp_shmem *setting);
/* And for private memory, where FORCED means: wherever it fits. */
int mapping_thp_private(enum thp_shmem *setting);

#endif
