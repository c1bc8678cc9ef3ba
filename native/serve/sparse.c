/* SPDX-License-Identifier: Apache-2.0 */
/* See sparse.h. */
#include "sparse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void sparse_explain(char *error, size_t error_bytes, const char *format, ...)
{
    va_list values;

    va_start(values, format);
    if (error != NULL && error_bytes > 0)
        vsnprintf(error, error_bytes, format, values);
    va_end(values);
}

int sparse_check(int fd, uint64_t *page_count, char *error, size_t error_bytes)
{
    struct stat status;
    uint64_t bytes = 0;

    if (fstat(fd, &status) != 0) {
        sparse_explain(error, error_bytes, "the image cannot be looked at: %s", strerror(errno));
        return -PF_REASON_BAD_REQUEST;
    }
    if (!S_ISREG(status.st_mode)) {
        sparse_explain(error, error_bytes, "the image is not a regular file; copy it into one");
        return -PF_REASON_BAD_REQUEST;
    }
    bytes = (uint64_t)status.st_size;
    if (bytes == 0 || bytes % IMAGE_PAGE_BYTES != 0) {
        sparse_explain(error, error_bytes,
                       "the image has %" PRIu64 " bytes, %s: it must be the guest's RAM, whole pages",
                       bytes, bytes == 0 ? "none at all" : "no multiple of 4096");
        return -PF_REASON_BAD_REQUEST;
    }
    if (bytes / IMAGE_PAGE_BYTES > PF_LIMIT_IMAGE_PAGES_MAX) {
        sparse_explain(error, error_bytes,
                       "the image has %" PRIu64 " bytes; at most %" PRIu64 " can be served", bytes,
                       PF_LIMIT_IMAGE_PAGES_MAX * IMAGE_PAGE_BYTES);
        return -PF_REASON_BAD_REQUEST;
    }
    *page_count = bytes / IMAGE_PAGE_BYTES;
    return 0;
}

/* lseek found nothing more: 0 if that is how the file is, 1 if it ends before `page_count` pages, or -errno. */
static int found_no_more(int fd, uint64_t page_count)
{
    struct stat status;

    if (errno != ENXIO || fstat(fd, &status) != 0)
        return -errno;
    return (uint64_t)status.st_size / IMAGE_PAGE_BYTES < page_count;
}

int sparse_next_extent(int fd, uint64_t page, uint64_t page_count, uint64_t *first, uint64_t *end)
{
    off_t data = lseek(fd, (off_t)(page * IMAGE_PAGE_BYTES), SEEK_DATA);
    off_t hole;

    *first = *end = page_count;
    if (data < 0)
        return found_no_more(fd, page_count);
    hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0)
        return found_no_more(fd, page_count);
    *first = (uint64_t)data / IMAGE_PAGE_BYTES;
    *end = ((uint64_t)hole + IMAGE_PAGE_BYTES - 1) / IMAGE_PAGE_BYTES;
    if (*first < page) /* its first page was the last one of the extent before */
        *first = page;
    if (*first > page_count)
        *first = page_count;
    if (*end > page_count)
        *end = page_count;
    return 0;
}

int sparse_read(int fd, uint64_t offset_bytes, uint64_t length_bytes, uint8_t *bytes)
{
    uint64_t done = 0;

    while (done < length_bytes) {
        ssize_t got = pread(fd, bytes + done, length_bytes - done, (off_t)(offset_bytes + done));
        if (got == 0)
            return 1;
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0)
            done += (uint64_t)got;
    }
    return 0;
}

const char *sparse_why(int rc)
{
    return rc > 0 ? "it got shorter meanwhile; stop what writes it" : strerror(-rc);
}
