/* SPDX-License-Identifier: Apache-2.0 */
/* Huge pages made from outside: see collapse.h. Each errno's meaning is tried in tests/native/test_collapse.c. */
#include "collapse.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "uapi.h"

#define TRIES 5
#define FIRST_PAUSE_NS 1000000L

/* ------------------------------------------------------------------------------------------------------- one piece */

/* EBUSY and EAGAIN pass: somebody reads a page of it, or it lies on a list that the kernel empties now and then. */
static enum collapse_result meaning(int error)
{
    enum collapse_result result = COLLAPSE_REFUSED;

    if (error == EBUSY || error == EAGAIN || error == EINTR)
        result = COLLAPSE_BUSY;
    else if (error == ENOMEM)
        result = COLLAPSE_NO_MEMORY;
    else if (error == EPERM || error == EACCES)
        result = COLLAPSE_NOT_ALLOWED;
    else if (error == ESRCH)
        result = COLLAPSE_GONE;
    return result;
}

enum collapse_result collapse_piece(int pidfd, uint64_t address)
{
    struct iovec piece = {.iov_base = (void *)(uintptr_t)address, .iov_len = COLLAPSE_BYTES};
    struct timespec pause = {.tv_nsec = FIRST_PAUSE_NS};
    enum collapse_result result = COLLAPSE_BUSY;

    for (int tries = 0; tries < TRIES && result == COLLAPSE_BUSY; tries++) {
        if (tries > 0) {
            nanosleep(&pause, NULL);
            pause.tv_nsec *= 2;
        }
        result = syscall(SYS_process_madvise, pidfd, &piece, 1, MADV_COLLAPSE, 0) < 0 ? meaning(errno) : COLLAPSE_DONE;
    }
    return result;
}

bool collapse_is_whole(int fd, uint64_t offset_bytes)
{
    off_t hole = lseek(fd, (off_t)offset_bytes, SEEK_HOLE);

    return hole >= 0 && (uint64_t)hole >= offset_bytes + COLLAPSE_BYTES;
}

/* ----------------------------------------------------------------------------------------------------------- smaps */

struct look {
    const struct kernel_span *spans;
    uint32_t span_count;
    bool inside; /* the mapping being read touches one of them */
};

static bool touches(const struct look *look, uint64_t start, uint64_t end)
{
    bool inside = false;

    for (uint32_t i = 0; i < look->span_count && !inside; i++)
        inside = start < look->spans[i].address + look->spans[i].length_bytes && end > look->spans[i].address;
    return inside;
}

static void see_line(struct look *look, struct collapse_facts *facts, const char *line)
{
    uint64_t start, end, kib;
    char name[24];

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start, &end) == 2) {
        look->inside = touches(look, start, end);
    } else if (look->inside && strncmp(line, "VmFlags:", 8) == 0) {
        facts->barred |= strstr(line, " nh") != NULL;
        facts->pool |= strstr(line, " ht") != NULL;
    } else if (look->inside && sscanf(line, "%23[A-Za-z]: %" SCNu64 " kB", name, &kib) == 2) {
        if (strcmp(name, "AnonHugePages") == 0 || strcmp(name, "ShmemPmdMapped") == 0 ||
            strcmp(name, "FilePmdMapped") == 0)
            facts->huge_bytes += kib * 1024;
    }
}

int collapse_look(pid_t pid, const struct kernel_span *spans, uint32_t span_count, struct collapse_facts *facts)
{
    struct look look = {.spans = spans, .span_count = span_count};
    char path[64], *line = NULL;
    size_t capacity = 0;
    bool empty = true;
    FILE *smaps;
    int rc = 0;

    memset(facts, 0, sizeof(*facts));
    snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
    smaps = fopen(path, "re");
    if (smaps == NULL)
        return errno == ENOENT ? -ESRCH : -errno;
    errno = 0;
    while (getline(&line, &capacity, smaps) > 0) {
        empty = false;
        see_line(&look, facts, line);
    }
    if (ferror(smaps) || errno == ENOMEM)
        rc = errno != 0 ? -errno : -EIO;
    else if (empty) /* it has exited, and was not waited for */
        rc = -ESRCH;
    free(line);
    fclose(smaps);
    return rc;
}

/* ------------------------------------------------------------------------------------------ what stands in the way */

static bool file_says(const char *path, const char *words)
{
    FILE *file = fopen(path, "re");
    char text[4096];
    size_t length;

    if (file == NULL)
        return false;
    length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[length] = '\0';
    return strstr(text, words) != NULL;
}

enum collapse_bar collapse_bar(pid_t pid)
{
    enum collapse_bar bar = COLLAPSE_BAR_NONE;
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    if (file_says(path, "THP_enabled:\t0"))
        bar = COLLAPSE_BAR_PROCESS;
    else if (file_says("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "[deny]"))
        bar = COLLAPSE_BAR_SYSTEM;
    return bar;
}
