/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernel constants that are newer than the distribution's headers (Debian 12: Linux 6.1), each proven at compile
 * time. A constant here says nothing about the kernel that runs: that is tried (probe.h).
 */
#ifndef PAGEFERRY_UAPI_H
#define PAGEFERRY_UAPI_H

#include <linux/fs.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

/* ------------------------------------------------------------------------------------------------- userfaultfd */

#ifndef USERFAULTFD_IOC_NEW /* on an open /dev/userfaultfd; 6.1 */
#define USERFAULTFD_IOC 0xAA
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif
_Static_assert(USERFAULTFD_IOC_NEW == 0xaa00, "USERFAULTFD_IOC_NEW");

#ifndef UFFD_FEATURE_WP_UNPOPULATED /* 6.4 */
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON /* 6.6 */
#define UFFD_FEATURE_POISON (1 << 14)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC /* 6.7 */
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
_Static_assert(UFFD_FEATURE_MISSING_SHMEM == 0x20 && UFFD_FEATURE_MINOR_SHMEM == 0x400, "features of 6.1");
_Static_assert(UFFD_FEATURE_WP_UNPOPULATED == 0x2000 && UFFD_FEATURE_POISON == 0x4000, "features of 6.6");
_Static_assert(UFFD_FEATURE_WP_ASYNC == 0x8000, "features of 6.7");

#ifndef UFFDIO_POISON /* 6.6 */
#define _UFFDIO_POISON 0x08
#define UFFDIO_POISON _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
#define UFFDIO_POISON_MODE_DONTWAKE ((__u64)1 << 0)
struct uffdio_poison {
    struct uffdio_range range;
    __u64 mode;
    __s64 updated; /* bytes, or minus an errno; written by the kernel */
};
#endif
_Static_assert(sizeof(struct uffdio_poison) == 32 && UFFDIO_POISON == 0xc020aa08, "UFFDIO_POISON");
_Static_assert(sizeof(struct uffdio_copy) == 40 && UFFDIO_COPY == 0xc028aa03, "UFFDIO_COPY");
_Static_assert(sizeof(struct uffdio_zeropage) == 32 && UFFDIO_ZEROPAGE == 0xc020aa04, "UFFDIO_ZEROPAGE");
_Static_assert(sizeof(struct uffdio_continue) == 32 && UFFDIO_CONTINUE == 0xc020aa07, "UFFDIO_CONTINUE");
_Static_assert(sizeof(struct uffdio_writeprotect) == 24 && UFFDIO_WRITEPROTECT == 0xc018aa06, "UFFDIO_WRITEPROTECT");
_Static_assert(sizeof(struct uffdio_register) == 32 && UFFDIO_REGISTER == 0xc020aa00, "UFFDIO_REGISTER");
_Static_assert(sizeof(struct uffdio_range) == 16 && UFFDIO_WAKE == 0x8010aa02, "UFFDIO_WAKE");
_Static_assert(sizeof(struct uffd_msg) == 32, "struct uffd_msg");

/* ------------------------------------------------------------------------------------- PAGEMAP_SCAN, since 6.7 */

#ifndef PAGEMAP_SCAN
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#define PAGE_IS_WPALLOWED (1 << 0) /* the mapping is registered for asynchronous write protection */
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_PRESENT (1 << 3)
#define PAGE_IS_SWAPPED (1 << 4) /* also markers: poison, write protection of an absent page */
struct page_region {
    __u64 start;
    __u64 end;
    __u64 categories;
};
struct pm_scan_arg {
    __u64 size;
    __u64 flags;
    __u64 start;
    __u64 end;
    __u64 walk_end; /* where the kernel stopped; the fields around it are asked by the caller */
    __u64 vec;
    __u64 vec_len;
    __u64 max_pages;
    __u64 category_inverted;
    __u64 category_mask;
    __u64 category_anyof_mask;
    __u64 return_mask;
};
#endif
_Static_assert(PAGE_IS_WPALLOWED == 1 && PAGE_IS_WRITTEN == 2 && PM_SCAN_CHECK_WPASYNC == 2, "PAGEMAP_SCAN's bits");
_Static_assert(sizeof(struct page_region) == 24, "struct page_region");
_Static_assert(sizeof(struct pm_scan_arg) == 96 && PAGEMAP_SCAN == 0xc0606610, "PAGEMAP_SCAN");

/* ------------------------------------------------------------------------------------------------- madvise, since 6.1 */

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
_Static_assert(MADV_COLLAPSE == 25, "MADV_COLLAPSE");

#endif
