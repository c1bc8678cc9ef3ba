/* SPDX-License-Identifier: Apache-2.0 */
/* The four views of view.h. Each errno's meaning names the test that shows it. */
#include "view.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define KERNEL_PAGE_BYTES UINT64_C(4096)

static enum kernel_result file_meaning(int error)
{
    return error == ENOSPC || error == ENOMEM || error == EDQUOT ? KERNEL_FULL : KERNEL_REFUSED;
}

/* EIO: the page that lies there has a memory error (mm/shmem.c, shmem_write_begin). */
static enum kernel_result write_meaning(int error)
{
    return error == EIO ? KERNEL_BROKEN : file_meaning(error);
}

static struct kernel_outcome outcome_of(enum kernel_result result, uint64_t done_bytes)
{
    return (struct kernel_outcome){.result = result, .done_bytes = done_bytes / KERNEL_PAGE_BYTES * KERNEL_PAGE_BYTES};
}

/* -------------------------------------------------------------------------------------------------------- writing */

/* pwrite may stop short, at a folio's end or where memory ran out; the next one says which (test_full_tmpfs). The
 * source is our own resident buffer: pwrite of one that is not shows a zero page for an instant. */
static struct kernel_outcome write_file(int file, const struct kernel_span *span, const uint8_t *bytes)
{
    uint64_t done_bytes = 0;

    while (done_bytes < span->length_bytes) {
        ssize_t rc = pwrite(file, bytes + done_bytes, span->length_bytes - done_bytes,
                            (off_t)(span->file_offset + done_bytes));
        if (rc > 0)
            done_bytes += (uint64_t)rc;
        else if (rc == 0 || errno != EINTR)
            return outcome_of(rc == 0 ? KERNEL_REFUSED : write_meaning(errno), done_bytes);
    }
    return outcome_of(KERNEL_MAPPED, done_bytes);
}

/* Nothing lies there any more, or never will: the file was cut, so that no write could be seen. */
static bool beyond_end(int file, uint64_t offset_bytes)
{
    struct stat facts;

    return fstat(file, &facts) == 0 && offset_bytes >= (uint64_t)facts.st_size;
}

/* EFAULT says that the mapping gave no page: no memory, or no file there any more (test_full_pool, test_cut_pool). */
static struct kernel_outcome write_mapping(const struct view *view, int file, const struct kernel_span *span,
                                           const uint8_t *bytes)
{
    uint64_t done_bytes = 0;

    if (span->file_offset > view->length_bytes || span->length_bytes > view->length_bytes - span->file_offset)
        return outcome_of(KERNEL_REFUSED, 0);
    while (done_bytes < span->length_bytes) {
        struct iovec from = {(void *)(bytes + done_bytes), span->length_bytes - done_bytes};
        struct iovec to = {view->bytes + span->file_offset + done_bytes, from.iov_len};
        ssize_t rc = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
        if (rc > 0)
            done_bytes += (uint64_t)rc;
        else if (rc < 0 && (errno == EFAULT || errno == ENOMEM) && !beyond_end(file, span->file_offset + done_bytes))
            return outcome_of(KERNEL_FULL, done_bytes);
        else if (rc == 0 || errno != EINTR)
            return outcome_of(KERNEL_REFUSED, done_bytes);
    }
    return outcome_of(KERNEL_MAPPED, done_bytes);
}

static int allocate(int file, int mode, uint64_t offset_bytes, uint64_t length_bytes)
{
    int rc;

    do {
        rc = fallocate(file, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset_bytes, (off_t)length_bytes);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? errno : 0;
}

struct kernel_outcome view_allocate(const struct view *view, int file, const struct kernel_span *span)
{
    int error = beyond_end(file, span->file_offset) ? EINVAL : allocate(file, 0, span->file_offset, span->length_bytes);

    (void)view;
    return outcome_of(error != 0 ? file_meaning(error) : KERNEL_MAPPED, error != 0 ? 0 : span->length_bytes);
}

/* Room first: an empty pool says so here (ENOSPC, ENOMEM), and what was allocated is zeros. */
static struct kernel_outcome write_pool(const struct view *view, int file, const struct kernel_span *span,
                                        const uint8_t *bytes)
{
    uint64_t start = span->file_offset / view->unit_bytes * view->unit_bytes;
    uint64_t end = (span->file_offset + span->length_bytes + view->unit_bytes - 1) / view->unit_bytes *
                   view->unit_bytes;
    struct kernel_span units = {.file_offset = start, .length_bytes = end - start};
    struct kernel_outcome outcome = view_allocate(view, file, &units);

    return outcome.result != KERNEL_MAPPED ? outcome : write_mapping(view, file, span, bytes);
}

struct kernel_outcome view_populate(const struct view *view, int file, const struct kernel_span *span,
                                    const void *bytes)
{
    switch (view->kind) {
    case VIEW_ALIAS:
        return write_mapping(view, file, span, bytes);
    case VIEW_POOL:
        return write_pool(view, file, span, bytes);
    case VIEW_STAGING:
        return write_file(view->staging_fd, span, bytes);
    default:
        return write_file(file, span, bytes);
    }
}

/* -------------------------------------------------------------------------------------------------------- dropping */

static struct kernel_outcome drop(int file, const struct kernel_span *span)
{
    int error = allocate(file, FALLOC_FL_PUNCH_HOLE, span->file_offset, span->length_bytes);

    return outcome_of(error != 0 ? file_meaning(error) : KERNEL_MAPPED, error != 0 ? 0 : span->length_bytes);
}

/* The piece of a span up to the end of a unit; whole units are kept together. */
static uint64_t piece_of(const struct view *view, uint64_t offset_bytes, uint64_t left_bytes)
{
    uint64_t within = offset_bytes % view->unit_bytes;
    uint64_t piece_bytes = within != 0 ? view->unit_bytes - within : left_bytes / view->unit_bytes * view->unit_bytes;

    return piece_bytes == 0 || piece_bytes > left_bytes ? left_bytes : piece_bytes;
}

static struct kernel_outcome drop_pool(const struct view *view, int file, const struct kernel_span *span)
{
    struct kernel_outcome outcome = outcome_of(KERNEL_MAPPED, 0);
    uint64_t done_bytes = 0;

    while (done_bytes < span->length_bytes && outcome.result == KERNEL_MAPPED) {
        struct kernel_span piece = {.file_offset = span->file_offset + done_bytes};
        piece.length_bytes = piece_of(view, piece.file_offset, span->length_bytes - done_bytes);
        if (piece.length_bytes % view->unit_bytes == 0)
            outcome = drop(file, &piece);
        else
            outcome = write_pool(view, file, &piece, view->zeros);
        done_bytes += outcome.done_bytes;
    }
    outcome.done_bytes = done_bytes;
    return outcome;
}

struct kernel_outcome view_punch(const struct view *view, int file, const struct kernel_span *span)
{
    if (view->kind == VIEW_POOL)
        return drop_pool(view, file, span);
    return drop(view->kind == VIEW_STAGING ? view->staging_fd : file, span);
}

/* -------------------------------------------------------------------------------------------------- open and close */

static int map_at(uint8_t **at, uint64_t length_bytes, int protection, int flags, int file)
{
    void *start = mmap(NULL, length_bytes, protection, flags | MAP_NORESERVE, file, 0);

    if (start == MAP_FAILED)
        return -errno;
    *at = start;
    return 0;
}

static int open_staging(struct view *view)
{
    view->kind = VIEW_STAGING;
    view->staging_fd = memfd_create("pageferry-staging", MFD_CLOEXEC);
    if (view->staging_fd < 0 || ftruncate(view->staging_fd, (off_t)view->length_bytes) < 0)
        return -errno;
    return map_at(&view->bytes, view->length_bytes, PROT_READ, MAP_SHARED, view->staging_fd);
}

/* Before any page of it is there, and for as long as it stands. */
static int open_alias(struct view *view, int file)
{
    int rc = map_at(&view->bytes, view->length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file);

    view->kind = VIEW_ALIAS;
    if (rc == 0 && madvise(view->bytes, view->length_bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        rc = -errno; /* EINVAL: a kernel without transparent huge pages */
    return rc;
}

static int open_pool(struct view *view, int file)
{
    view->kind = VIEW_POOL;
    return map_at(&view->bytes, view->length_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file);
}

int view_open(struct view *view, int file, uint64_t length_bytes, uint64_t unit_bytes, bool brings_more)
{
    bool units = unit_bytes > KERNEL_PAGE_BYTES;
    int rc = 0;

    *view = (struct view){.unit_bytes = unit_bytes, .length_bytes = length_bytes, .staging_fd = -1};
    if (units)
        rc = map_at(&view->zeros, unit_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (rc == 0 && units && file < 0)
        madvise(view->zeros, unit_bytes, MADV_POPULATE_READ); /* resident, as what is copied must be */
    if (rc == 0 && units)
        rc = file >= 0 ? open_pool(view, file) : open_staging(view);
    else if (rc == 0 && file >= 0 && brings_more)
        rc = open_alias(view, file);
    if (rc < 0)
        view_close(view);
    return rc;
}

void view_close(struct view *view)
{
    if (view->bytes != NULL)
        munmap(view->bytes, view->length_bytes);
    if (view->zeros != NULL)
        munmap(view->zeros, view->unit_bytes);
    if (view->kind == VIEW_STAGING && view->staging_fd >= 0)
        close(view->staging_fd);
    *view = (struct view){.staging_fd = -1};
}

/* Where the kernel cannot, or need not, it makes nothing worse. */
void view_make_resident(const struct view *view, const struct kernel_span *span)
{
    madvise(view->bytes + span->file_offset, span->length_bytes, MADV_POPULATE_READ);
}

static bool read_pool(uint64_t unit_bytes, const char *name, uint64_t *pages)
{
    char path[96];
    FILE *file;
    bool got;

    snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/%s", unit_bytes / 1024, name);
    file = fopen(path, "re");
    got = file != NULL && fscanf(file, "%" SCNu64, pages) == 1;
    if (file != NULL)
        fclose(file);
    return got;
}

bool view_pool_is_empty(uint64_t unit_bytes)
{
    uint64_t free_pages, reserved_pages;

    return read_pool(unit_bytes, "free_hugepages", &free_pages) &&
           read_pool(unit_bytes, "resv_hugepages", &reserved_pages) && free_pages <= reserved_pages;
}

bool view_is_empty(int file)
{
    struct stat facts;

    return fstat(file, &facts) == 0 && facts.st_blocks == 0;
}
