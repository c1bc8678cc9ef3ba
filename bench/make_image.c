/* SPDX-License-Identifier: Apache-2.0 */
/*
 * make_image PATH MIB: writes the image that every page server of the benchmark serves, each page stamped
 * by stamp.h. The file is left in the page cache, where all servers find it: no side of the benchmark
 * measures a disk.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "stamp.h"

#define MIB_MAX 65536u
#define BATCH_PAGES 256u

static int write_whole(int fd, const uint8_t *bytes, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno != EINTR)
            return -1;
        if (written > 0) {
            bytes += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static uint64_t batch[BATCH_PAGES][STAMP_WORDS];
    char *end = NULL;
    int status = EXIT_FAILURE;

    uint64_t mib = argc == 3 ? strtoull(argv[2], &end, 10) : 0;
    if (mib == 0 || mib > MIB_MAX || *end != '\0') {
        fprintf(stderr, "usage: make_image PATH MIB (1 to %u)\n", MIB_MAX);
        return 64;
    }
    int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        perror(argv[1]);
        return status;
    }
    uint64_t pages = mib << 8; /* 256 pages of 4096 bytes a MiB: a whole number of batches */
    for (uint64_t first = 0; first < pages; first += BATCH_PAGES) {
        for (uint32_t at = 0; at < BATCH_PAGES; at++)
            stamp_fill(first + at, batch[at]);
        if (write_whole(fd, (const uint8_t *)batch, sizeof(batch)) < 0) {
            perror(argv[1]);
            goto out;
        }
    }
    status = EXIT_SUCCESS;
out:
    if (close(fd) < 0)
        status = EXIT_FAILURE;
    return status;
}
