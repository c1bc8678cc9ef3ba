/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One side of the comparison of test_kernels.c: a kernel, the memory of a small VM on it, threads that touch it, and
 * the VMM that does things to it. There are two, Linux (real_vm.h) and the simulated kernel; a case does the same to
 * both and cannot tell them apart.
 *
 * Nothing here waits for time to pass: after each step the kernel itself says when all is quiet (real_asleep).
 */
#ifndef PAGEFERRY_KERNEL_SIDE_H
#define PAGEFERRY_KERNEL_SIDE_H

#include "real_vm.h"
#include "sim_kernel.h"

#define SIDE_PAGES 6
#define SIDE_SIM_UNIT_PAGES 4 /* of huge pages, in the simulation: nothing depends on how many they are */
#define SIDE_ACCESSES_MAX 24 /* of a case */

enum side_act {
    ACT_DONTNEED,   /* madvise(MADV_DONTNEED) by the VMM */
    ACT_REMOVE,     /* madvise(MADV_REMOVE), shared memory */
    ACT_DISCARD,    /* a hole is punched into the file by somebody */
    ACT_FOREIGN,    /* somebody writes to the file */
    ACT_ALLOCATE,   /* fallocate by somebody: bytes of zeros */
    ACT_ALIAS,      /* somebody reads through another mapping of the file; answers the word */
    ACT_CACHE,      /* what the page cache holds, looked up without a touch: the word, or SIDE_HOLE */
    ACT_SILENT,     /* the page is mapped as MADV_COLLAPSE would, and nobody is woken */
    ACT_RECLAIM,    /* a mapping goes, its data stays; shared memory, and no removals are announced */
    ACT_UNREGISTER,
    ACT_UNMAP,
    ACT_CUT,        /* the file is cut short: from this page on */
    ACT_EXIT,       /* the VMM ends */
    ACT_FULL,       /* no room in the tmpfs */
    ACT_ROOM        /* and there is again */
};

/* Answers of an act, besides 0, -errno and words. */
#define SIDE_HOLE INT64_C(-2000)
#define SIDE_WAITS INT64_C(-2001) /* until its event is read */

struct side_access {
    bool write, ended, told;
    bool last; /* of huge pages: touches the last 4 KiB of it, else the first */
    uint64_t page, word; /* what is written */
    uint64_t thread;     /* the ticket, or the simulated thread */
    int64_t answer;      /* as REAL_READ and REAL_WRITE */
};

struct side;

struct side_calls {
    bool (*open)(struct side *side);
    void (*close)(struct side *side);
    /* Calls of `kernel`, the simulated one perhaps through a plant. */
    const struct kernel_ops *ops;
    void (*begin)(struct side *side, struct side_access *access);
    /* Returns when every access has ended or sleeps, and every removal that was read has ended; false: never. */
    bool (*settle)(struct side *side);
    int64_t (*act)(struct side *side, enum side_act act, uint64_t page, uint64_t count, uint64_t word);
};

extern const struct side_calls side_real;
extern const struct side_calls side_simulated;

struct side {
    const struct side_calls *calls;
    void *kernel;
    enum real_memory memory;
    uint64_t unit_pages; /* what a page of the script is, in 4 KiB: more than one of huge pages */
    bool announced;      /* the userfaultfd has EVENT_REMOVE */
    bool small;          /* a tmpfs that can be filled */
    uint64_t address;    /* of page 0 */
    struct side_access accesses[SIDE_ACCESSES_MAX];
    uint32_t access_count;
    bool removal_waits, removal_read, exited;
    uint64_t removal;    /* the ticket */
    int64_t removal_answer;
    /* the kernel of one side or the other */
    struct real_vm real;
    struct sim_kernel sim;
    struct regions regions;
    const struct plant *plant;
};

#endif
