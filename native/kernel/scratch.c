/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of every kind, and the calls on it: see scratch.h. */
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/mman.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "create.h"
#include "uapi.h"

bool scratch_is_huge(const struct scratch *scratch)
{
    return scratch->kind->unit_bytes != SCRATCH_PAGE_BYTES;
}

/* -------------------------------------------------------------------------------------------------- the memory */

static int open_tmpfs(void)
{
    struct statfs system;
    int fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    int rc;

    if (fd < 0)
        return -errno;
    rc = fstatfs(fd, &system) < 0 ? -errno : (unsigned long)system.f_type == TMPFS_MAGIC ? 0 : -ENODEV;
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

static int open_file(const struct scratch *scratch)
{
    unsigned flags = scratch_is_huge(scratch) ? MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB : MFD_CLOEXEC;
    int fd;

    if (scratch->kind->in_tmpfs)
        return open_tmpfs();
    fd = memfd_create("pageferry-trial", flags);
    return fd < 0 ? -errno : fd;
}

static uint8_t *mapped(const struct scratch *scratch)
{
    int flags = scratch->kind->shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;

    if (!scratch->kind->shared && scratch_is_huge(scratch))
        flags |= MAP_HUGETLB | MAP_HUGE_2MB;
    return mmap(NULL, scratch->length_bytes, PROT_READ | PROT_WRITE, flags, scratch->file_fd, 0);
}

/* Where all memory of the process is locked, mmap has filled it: it is emptied again. */
static void emptied(const struct scratch *scratch, uint8_t *start)
{
    struct stat file = {0};

    if (!scratch_is_huge(scratch))
        madvise(start, scratch->length_bytes, MADV_NOHUGEPAGE); /* fails where there are none: as good */
    munlock(start, scratch->length_bytes);
    if (!scratch->kind->shared)
        madvise(start, scratch->length_bytes, MADV_DONTNEED);
    else if (fstat(scratch->file_fd, &file) == 0 && file.st_blocks != 0)
        madvise(start, scratch->length_bytes, MADV_REMOVE);
}

int scratch_map(struct scratch *scratch)
{
    if (scratch->kind->shared) {
        scratch->file_fd = open_file(scratch);
        if (scratch->file_fd < 0)
            return scratch->file_fd;
        if (ftruncate(scratch->file_fd, (off_t)scratch->length_bytes) < 0)
            return -errno;
        scratch->alias = mapped(scratch);
        if (scratch->alias == MAP_FAILED)
            return -errno;
        emptied(scratch, scratch->alias);
    }
    scratch->start = mapped(scratch);
    if (scratch->start == MAP_FAILED)
        return -errno;
    emptied(scratch, scratch->start);
    return 0;
}

void scratch_init(struct scratch *scratch, const struct scratch_kind *kind)
{
    *scratch = (struct scratch){.kind = kind, .uffd = -1, .file_fd = -1, .start = MAP_FAILED, .alias = MAP_FAILED};
    scratch->length_bytes = kind->unit_bytes * (scratch_is_huge(scratch) ? 1 : 2);
}

void scratch_close(struct scratch *scratch)
{
    if (scratch->start != MAP_FAILED)
        munmap(scratch->start, scratch->length_bytes);
    if (scratch->alias != MAP_FAILED)
        munmap(scratch->alias, scratch->length_bytes);
    if (scratch->uffd >= 0)
        close(scratch->uffd);
    if (scratch->file_fd >= 0)
        close(scratch->file_fd);
}

/* --------------------------------------------------------------------------------------------------- the calls */

static int called(int rc)
{
    return rc < 0 ? -errno : 0;
}

int scratch_uffd(struct scratch *scratch, int device_fd)
{
    scratch->uffd = create_uffd(device_fd, scratch->kind->features, NULL);
    return scratch->uffd < 0 ? scratch->uffd : 0;
}

int scratch_register(const struct scratch *scratch, uint64_t mode, uint64_t *calls)
{
    struct uffdio_register arg = {.range = {(uintptr_t)scratch->start, scratch->length_bytes}, .mode = mode};
    int rc = called(ioctl(scratch->uffd, UFFDIO_REGISTER, &arg));

    *calls = rc == 0 ? arg.ioctls : 0;
    return rc;
}

int scratch_copy(const struct scratch *scratch)
{
    uint64_t length_bytes = scratch->kind->unit_bytes;
    uint8_t *source = mmap(NULL, length_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_copy arg = {.dst = (uintptr_t)scratch->start, .src = (uintptr_t)source, .len = length_bytes};
    int rc;

    if (source == MAP_FAILED)
        return -errno;
    source[0] = 'c';
    rc = called(ioctl(scratch->uffd, UFFDIO_COPY, &arg));
    munmap(source, length_bytes);
    return rc;
}

int scratch_continue(const struct scratch *scratch)
{
    struct uffdio_continue arg = {.range = {(uintptr_t)scratch->start, scratch->kind->unit_bytes}};

    return called(ioctl(scratch->uffd, UFFDIO_CONTINUE, &arg));
}

/* No COPY to a file on huge pages: into the cache, through our alias, with the page allocated before. */
int scratch_fill_by_alias(const struct scratch *scratch)
{
    int rc = called(fallocate(scratch->file_fd, 0, 0, (off_t)scratch->length_bytes));

    if (rc == 0) {
        scratch->alias[0] = 'c';
        rc = scratch_continue(scratch);
    }
    return rc;
}

int scratch_zeropage(const struct scratch *scratch)
{
    struct uffdio_zeropage arg = {.range = {(uintptr_t)scratch->start + SCRATCH_PAGE_BYTES, SCRATCH_PAGE_BYTES}};

    return called(ioctl(scratch->uffd, UFFDIO_ZEROPAGE, &arg));
}

int scratch_poison(const struct scratch *scratch)
{
    struct uffdio_poison arg = {.range = {(uintptr_t)scratch->start, scratch->kind->unit_bytes}};

    return called(ioctl(scratch->uffd, UFFDIO_POISON, &arg));
}

int scratch_zap(const struct scratch *scratch)
{
    return called(madvise(scratch->start, scratch->kind->unit_bytes, MADV_DONTNEED));
}

void scratch_let_go(const struct scratch *scratch)
{
    struct uffdio_range all = {(uintptr_t)scratch->start, scratch->length_bytes};

    ioctl(scratch->uffd, UFFDIO_UNREGISTER, &all);
    ioctl(scratch->uffd, UFFDIO_WAKE, &all);
}
