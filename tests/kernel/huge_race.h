/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the two halves of huge_race agree on: the process that plays the VM (huge_vmm.c), and the one that restores it
 * with the real pager and page server (huge_race.c).
 */
#ifndef PAGEFERRY_HUGE_RACE_H
#define PAGEFERRY_HUGE_RACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define RACE_PAGE UINT64_C(4096)
#define RACE_PIECE (UINT64_C(2) << 20)
#define RACE_PIECE_PAGES (RACE_PIECE / RACE_PAGE)
#define RACE_OLD UINT64_C(0xeeeeeeeeeeeeeeee) /* what the memory's last owner has left in the RAM file */

/* Every fourth piece has pages that are zeros, and so holes in the image: clearing one splits a huge page. */
static inline uint64_t race_word(uint64_t page, uint64_t seed)
{
    bool zero = page / RACE_PIECE_PAGES % 4 == 1 && page % 16 == 15;

    return zero ? 0 : ((page + 1) * UINT64_C(0x9e3779b97f4a7c15)) ^ seed ^ 1;
}

/* And every fourth has nothing in the RAM file before the restore: no huge page there. */
static inline bool race_piece_is_old(uint64_t piece)
{
    return piece % 4 != 3;
}

enum race_order {
    RACE_MAP = 1,  /* the RAM file, which comes along; answered by the address */
    RACE_BAR,      /* MADV_NOHUGEPAGE */
    RACE_REGISTER, /* for `modes`; the userfaultfd goes back */
    RACE_READ,     /* every page, by `readers` threads, each in an order of its own; answered by counts */
    RACE_UNMAP
};

struct race_ask {
    uint32_t order;
    uint32_t readers;
    uint64_t pages;
    uint64_t seed;
    uint64_t modes;
};

struct race_counts {
    uint64_t tries; /* reads of a page that was not in the reader's page table just before */
    uint64_t huge;  /* of these: behind the page is a folio of 2 MiB, as /proc/kpageflags says */
    uint64_t wrong; /* words that are not what the image has */
    uint64_t wrong_page, wrong_word; /* the first of them */
};

struct race_answer {
    int32_t rc; /* 0 or -errno */
    uint32_t reserved;
    uint64_t address;
    struct race_counts counts;
};

/* The child: obeys until its socket ends. */
void race_vm(int control) __attribute__((noreturn));

/* One message and perhaps a descriptor (-1: none). False: the other end is gone. */
bool race_send(int control, const void *bytes, size_t size, int fd);
bool race_receive(int control, void *bytes, size_t size, int *fd);

/* Where a huge page could be mapped; room for `bytes`. */
void *race_place(uint64_t bytes);

#endif
