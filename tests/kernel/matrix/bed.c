/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of each kind, and the calls that are asked about: see matrix.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "matrix.h"

#define HUGE_BYTES (UINT64_C(2) << 20)
#define SMALL_BYTES UINT64_C(4096)
#define HUGE_OF_2_MIB (21 << 26) /* of mmap and memfd_create: log2 of the size */

bool has_file(const struct bed *bed)
{
    return bed->fd >= 0;
}

bool is_huge(const struct bed *bed)
{
    return bed->page == HUGE_BYTES;
}

bool is_shared(const struct bed *bed)
{
    return bed->kind == MEMFD || bed->kind == TMPFS || bed->kind == HUGE_SHARED;
}

uint8_t *at(const struct bed *bed, size_t page)
{
    return bed->area + page * bed->page;
}

static int open_file(enum kind kind)
{
    if (kind == TMPFS)
        return open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (kind == MEMFD || kind == MEMFD_PRIVATE)
        return memfd_create("matrix", MFD_CLOEXEC);
    if (kind == HUGE_SHARED || kind == HUGE_PRIVATE)
        return memfd_create("matrix", MFD_CLOEXEC | MFD_HUGETLB | HUGE_OF_2_MIB);
    return -1;
}

static int flags_of(const struct bed *bed)
{
    int flags = is_shared(bed) ? MAP_SHARED : MAP_PRIVATE;

    if (!has_file(bed))
        flags |= MAP_ANONYMOUS | (is_huge(bed) ? MAP_HUGETLB | HUGE_OF_2_MIB : 0);
    return flags;
}

int map_again(struct bed *bed)
{
    void *area = mmap(bed->area, bed->bytes, PROT_READ | PROT_WRITE, flags_of(bed) | MAP_FIXED, bed->fd, 0);

    if (area == MAP_FAILED)
        return -errno;
    return is_huge(bed) ? 0 : madvise(area, bed->bytes, MADV_NOHUGEPAGE);
}

int move_behind(const struct bed *bed)
{
    void *to = bed->area + bed->bytes;

    return mremap(bed->area, bed->bytes, bed->bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED ? -errno : 0;
}

bool bed_open(struct bed *bed, enum kind kind)
{
    size_t page = kind >= HUGE_SHARED ? HUGE_BYTES : SMALL_BYTES;
    uint8_t *room = mmap(NULL, 2 * BED_PAGES * page + 3 * HUGE_BYTES, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    *bed = (struct bed){.kind = kind, .page = page, .bytes = BED_PAGES * page, .fd = open_file(kind), .uffd = -1};
    bed->area = (uint8_t *)(((uintptr_t)room + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
    if (has_file(bed)) {
        if (ftruncate(bed->fd, (off_t)bed->bytes) < 0)
            return false;
        bed->alias = mmap(NULL, bed->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bed->fd, 0);
        if (bed->alias == MAP_FAILED)
            return false;
    }
    return map_again(bed) == 0;
}

/* ----------------------------------------------------------------------------------------------------------- words */

void say(struct bed *bed, const char *format, ...)
{
    size_t length = strlen(bed->answer);
    va_list arguments;

    if (length > 0)
        length += (size_t)snprintf(bed->answer + length, sizeof(bed->answer) - length, ", ");
    va_start(arguments, format);
    vsnprintf(bed->answer + length, sizeof(bed->answer) - length, format, arguments);
    va_end(arguments);
}

const char *word(int rc)
{
    return rc < 0 ? strerrorname_np(-rc) : "ok";
}

const char *holds(uint8_t byte)
{
    return byte == ZEROS     ? "zeros"
           : byte == DATA    ? "data"
           : byte == COPIED  ? "copy"
           : byte == WRITTEN ? "write"
                             : "other";
}

void put_data(struct bed *bed, size_t page)
{
    memset(has_file(bed) ? bed->alias + page * bed->page : at(bed, page), DATA, bed->page);
}

uint8_t file_has(const struct bed *bed, size_t page)
{
    uint8_t byte = ZEROS;

    return pread(bed->fd, &byte, 1, (off_t)(page * bed->page)) == 1 ? byte : 0xff;
}

/* ----------------------------------------------------------------------------------------------------------- calls */

bool enable(struct bed *bed, uint64_t features)
{
    struct uffdio_api api = {.api = UFFD_API, .features = features};

    bed->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (bed->uffd >= 0 && ioctl(bed->uffd, UFFDIO_API, &api) == 0)
        return true;
    say(bed, "no userfaultfd: %s", word(-errno));
    return false;
}

int register_range(int uffd, const void *from, size_t bytes, uint64_t modes, uint64_t *ioctls)
{
    struct uffdio_register arg = {.range = {(uintptr_t)from, bytes}, .mode = modes};

    if (ioctl(uffd, UFFDIO_REGISTER, &arg) < 0)
        return -errno;
    if (ioctls != NULL)
        *ioctls = arg.ioctls;
    return 0;
}

uint64_t its_modes(const struct bed *bed)
{
    return MISSING | (has_file(bed) ? MINOR : 0);
}

bool start(struct bed *bed, uint64_t features, uint64_t modes)
{
    int rc;

    if (!enable(bed, features))
        return false;
    rc = register_range(bed->uffd, bed->area, bed->bytes, modes, NULL);
    if (rc < 0)
        say(bed, "REGISTER %s", word(rc));
    return rc == 0;
}

int unregister(const struct bed *bed)
{
    struct uffdio_range range = {(uintptr_t)bed->area, bed->bytes};

    return ioctl(bed->uffd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

static struct uffdio_range range_of(const struct bed *bed, size_t page, size_t count)
{
    return (struct uffdio_range){(uintptr_t)at(bed, page), count * bed->page};
}

int fill_copy(const struct bed *bed, int uffd, size_t page, uint64_t mode, int64_t *done)
{
    void *bytes = aligned_alloc(SMALL_BYTES, bed->page);
    struct uffdio_copy arg = {.dst = (uintptr_t)at(bed, page), .src = (uintptr_t)bytes, .len = bed->page, .mode = mode};
    int rc;

    memset(bytes, COPIED, bed->page);
    rc = ioctl(uffd, UFFDIO_COPY, &arg) < 0 ? -errno : 0;
    if (done != NULL)
        *done = arg.copy;
    free(bytes);
    return rc;
}

int fill_zero(const struct bed *bed, size_t page, int64_t *done)
{
    struct uffdio_zeropage arg = {.range = range_of(bed, page, 1)};
    int rc = ioctl(bed->uffd, UFFDIO_ZEROPAGE, &arg) < 0 ? -errno : 0;

    if (done != NULL)
        *done = arg.zeropage;
    return rc;
}

int fill_continue(const struct bed *bed, size_t page, size_t count, uint64_t mode, int64_t *done)
{
    struct uffdio_continue arg = {.range = range_of(bed, page, count), .mode = mode};
    int rc = ioctl(bed->uffd, UFFDIO_CONTINUE, &arg) < 0 ? -errno : 0;

    if (done != NULL)
        *done = arg.mapped;
    return rc;
}

int poison(const struct bed *bed, size_t page)
{
    struct uffdio_poison arg = {.range = range_of(bed, page, 1)};

    return ioctl(bed->uffd, UFFDIO_POISON, &arg) < 0 ? -errno : 0;
}

int protect(const struct bed *bed, size_t page, bool on)
{
    struct uffdio_writeprotect arg = {.range = range_of(bed, page, 1), .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};

    return ioctl(bed->uffd, UFFDIO_WRITEPROTECT, &arg) < 0 ? -errno : 0;
}

int wake(const struct bed *bed, size_t page)
{
    struct uffdio_range range = range_of(bed, page, 1);

    return ioctl(bed->uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int scan_page(const struct bed *bed, size_t page, uint64_t flags)
{
    struct page_region found = {0};
    uint64_t wanted = (flags & PM_SCAN_WP_MATCHING) != 0 ? PAGE_IS_WRITTEN : 0;
    struct pm_scan_arg arg = {.size = sizeof(arg), .flags = flags, .start = (uintptr_t)at(bed, page),
                              .end = (uintptr_t)at(bed, page + 1), .vec = (uintptr_t)&found, .vec_len = 1,
                              .category_mask = wanted,
                              .return_mask = PAGE_IS_WRITTEN | PAGE_IS_PRESENT | PAGE_IS_SWAPPED};
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int rc = ioctl(pagemap, PAGEMAP_SCAN, &arg) < 0 ? -errno : (int)found.categories;

    close(pagemap);
    return rc;
}
