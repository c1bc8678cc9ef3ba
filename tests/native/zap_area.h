/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A piece of memory of this process, of every kind that a VM may have, full of bytes and registered; and what the next
 * access to it meets. For test_zap.c.
 */
#ifndef ZAP_AREA_H
#define ZAP_AREA_H

#include <stdbool.h>
#include <stdint.h>

#define AREA_UNITS UINT64_C(2)

enum area_kind {
    AREA_MEMFD,
    AREA_TMPFS,
    AREA_LOCKED,
    AREA_SHMEM_PRIVATE,
    AREA_ANON,
    AREA_HUGETLB_SHARED,
    AREA_HUGETLB_PRIVATE,
    AREA_KIND_COUNT
};

enum area_fault { FAULT_NONE, FAULT_MINOR, FAULT_MISSING };
enum area_data { DATA_KEPT, DATA_ZEROS, DATA_OF_THE_FILE, DATA_ELSE };

struct area {
    enum area_kind kind;
    uint64_t unit_bytes; /* what the kernel maps at once */
    uint64_t bytes;      /* AREA_UNITS of them */
    uint8_t *start;
    int fd; /* -1: none */
    int uffd;
};

struct area_next {
    enum area_fault fault;
    enum area_data data; /* what the access has read, once its fault was resolved */
};

const char *area_name(enum area_kind kind);
bool area_of_huge_pages(enum area_kind kind);
/* All of it is mapped and holds its data; its file, where that is another, holds the file's. `features` of the
 * userfaultfd. False, with the reason on stdout: it cannot be had. */
bool area_make(struct area *area, enum area_kind kind, uint64_t features);
bool area_register(struct area *area);
void area_end(struct area *area);
/* A thread reads one byte; its fault, if it has one, is resolved as the pager would. */
bool area_touch(struct area *area, uint64_t at_bytes, struct area_next *next);

#endif
