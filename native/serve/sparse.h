/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A sparse file: what it must be to be an image, where its data lie, and reads that are whole or say why not.
 * An errno goes no further than this room's image_file.c and inspect.c.
 */
#ifndef PAGEFERRY_SPARSE_H
#define PAGEFERRY_SPARSE_H

#include <stddef.h>
#include <stdint.h>

#include "image.h"

/* A sentence for people, cut to fit; `error` may be NULL. */
__attribute__((format(printf, 3, 4))) void sparse_explain(char *error, size_t error_bytes,
                                                          const char *format, ...);

/* A regular file of whole pages, not empty, not too large: *page_count. 0 or minus a reason, explained. */
int sparse_check(int fd, uint64_t *page_count, char *error, size_t error_bytes);

/*
 * The next data extent at or after page `page`, in whole pages (a file system may have smaller ones). Beyond
 * the last one *first and *end are page_count. 0; 1 if the file has not so many pages any more; or -errno. A
 * file system that knows no holes says that all is data. Moves the file's position.
 */
int sparse_next_extent(int fd, uint64_t page, uint64_t page_count, uint64_t *first, uint64_t *end);

/* 0; 1 if the file ended before all was read; or -errno. */
int sparse_read(int fd, uint64_t offset_bytes, uint64_t length_bytes, uint8_t *bytes);

/* What either of these two says by not being 0, as the end of a sentence. */
const char *sparse_why(int rc);

#endif
