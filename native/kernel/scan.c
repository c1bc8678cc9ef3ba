/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dirty pages of another process by PAGEMAP_SCAN: see scan.h.
 *
 * The categories asked for are exactly WRITTEN: only then do all kernels count a page without an entry as
 * written (some leave it out on the way that other masks take). The price is that a dirty range does not say
 * whether a huge page is behind it; so reset treats whatever is as large and as aligned as one as if it were.
 */
#include "scan.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "uapi.h"

#define KERNEL_PAGE_BYTES UINT64_C(4096)
#define HUGE_BYTES (UINT64_C(2) << 20)

/* The number of regions, at most `capacity`, in `found`; arg->walk_end. */
static int scan(int pagemap_fd, struct pm_scan_arg *arg, struct page_region *found, uint32_t capacity)
{
    int rc;

    arg->size = sizeof(*arg);
    arg->vec = (uintptr_t)found;
    arg->vec_len = capacity;
    do {
        rc = ioctl(pagemap_fd, PAGEMAP_SCAN, arg);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : rc;
}

static int dirty(int pagemap_fd, uint64_t start, uint64_t end, struct scan_range *ranges, uint64_t *looked_end)
{
    struct page_region found[SCAN_RANGES_MAX];
    struct pm_scan_arg arg = {
        .flags = PM_SCAN_CHECK_WPASYNC,
        .start = start,
        .end = end,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    int count = scan(pagemap_fd, &arg, found, SCAN_RANGES_MAX);

    if (count >= 0 && (arg.walk_end <= start || arg.walk_end > end))
        count = -EIO; /* it would never come to an end */
    for (int i = 0; i < count; i++)
        ranges[i] = (struct scan_range){found[i].start, found[i].end};
    if (count >= 0)
        *looked_end = arg.walk_end;
    return count;
}

static int protect(int pagemap_fd, uint64_t start, uint64_t end)
{
    struct pm_scan_arg arg = {
        .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        .start = start,
        .end = end,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };

    return scan(pagemap_fd, &arg, NULL, 0);
}

/* A protected huge mapping is dirty as a whole from its first write on; to protect one page of it alone
 * splits it. */
static int reset(int pagemap_fd, uint64_t start, uint64_t end)
{
    uint64_t huge = (start + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
    int rc = 0;

    for (; rc >= 0 && huge + HUGE_BYTES <= end; huge += HUGE_BYTES)
        rc = protect(pagemap_fd, huge, huge + KERNEL_PAGE_BYTES);
    if (rc >= 0)
        rc = protect(pagemap_fd, start, end);
    return rc < 0 ? rc : 0;
}

const struct scan_calls scan_calls = {.dirty = dirty, .reset = reset};

/* The kernel takes no mode off a mapping (a mode that is there already changes nothing), so it has to be done in two. */
int scan_protect_alone(int uffd, uint64_t start, uint64_t end)
{
    struct uffdio_range all = {.start = start, .len = end - start};
    struct uffdio_register again = {.range = all, .mode = UFFDIO_REGISTER_MODE_WP};
    int rc = ioctl(uffd, UFFDIO_UNREGISTER, &all) < 0 ? -errno : 0;

    if (rc == 0 && ioctl(uffd, UFFDIO_REGISTER, &again) < 0)
        rc = -errno;
    ioctl(uffd, UFFDIO_WAKE, &all); /* who was between the two; it fails where the process is gone */
    return rc == -ENOMEM ? -ESRCH : rc; /* so it says of a process that has ended */
}

/* ---------------------------------------------------------------------------- what is there to be tracked */

static bool has_ended(int pidfd)
{
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};

    return pidfd >= 0 && poll(&ended, 1, 0) != 0;
}

/* A scan of nothing tells whether there is such a call at all. */
static int try_scan(int pagemap_fd)
{
    struct pm_scan_arg arg = {.start = 0, .end = 0, .category_mask = PAGE_IS_WRITTEN, .return_mask = PAGE_IS_WRITTEN};
    struct page_region none;

    return scan(pagemap_fd, &arg, &none, 1);
}

int scan_open(pid_t pid, int pidfd)
{
    char path[64];
    int fd, rc;

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ESRCH : -errno;
    rc = has_ended(pidfd) ? -ESRCH : try_scan(fd);
    if (rc < 0) {
        close(fd);
        fd = rc;
    }
    return fd;
}

int scan_covered(int pagemap_fd, uint64_t start, uint64_t end)
{
    struct page_region found;
    struct pm_scan_arg arg = {
        .start = start,
        .end = end,
        .category_mask = PAGE_IS_WPALLOWED,
        .return_mask = PAGE_IS_WPALLOWED,
    };
    int rc = scan(pagemap_fd, &arg, &found, 1);

    if (rc == -EFAULT) /* addresses of no process at all */
        rc = 0;
    return rc < 0 ? rc : rc == 1 && found.start == start && found.end == end;
}

/* One line of /proc/PID/maps that is a mapping of the file. */
struct piece {
    uint64_t start;
    uint64_t end;
    uint64_t file_offset;
    bool shared;
};

static bool is_piece_of(const struct stat *file, const char *line, struct piece *piece)
{
    unsigned int device_major, device_minor;
    uint64_t inode;
    char access[5];

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &piece->start, &piece->end, access,
               &piece->file_offset, &device_major, &device_minor, &inode) != 7)
        return false;
    piece->shared = access[3] == 's';
    return inode == file->st_ino && makedev(device_major, device_minor) == file->st_dev;
}

/* How many bytes of the piece are where they are said to be. */
static uint64_t expected_bytes(const struct piece *piece, const struct scan_mapping *mappings, uint32_t count)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; piece->shared && i < count; i++) {
        uint64_t start = mappings[i].address, end = start + mappings[i].length_bytes;
        uint64_t from = piece->start > start ? piece->start : start;
        uint64_t to = piece->end < end ? piece->end : end;
        if (from < to && from - piece->start + piece->file_offset == from - start + mappings[i].file_offset)
            bytes += to - from;
    }
    return bytes;
}

int scan_mapped(pid_t pid, int fd, const struct scan_mapping *mappings, uint32_t count)
{
    uint64_t missing_bytes = 0, elsewhere_bytes = 0;
    size_t capacity = 0;
    struct piece piece;
    struct stat file;
    char *line = NULL;
    char path[64];
    FILE *maps;

    for (uint32_t i = 0; i < count; i++)
        missing_bytes += mappings[i].length_bytes;
    if (fstat(fd, &file) < 0)
        return -errno;
    snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
    maps = fopen(path, "re");
    if (maps == NULL)
        return errno == ENOENT ? -ESRCH : -errno;
    while (getline(&line, &capacity, maps) > 0) {
        if (is_piece_of(&file, line, &piece)) {
            uint64_t bytes = expected_bytes(&piece, mappings, count);
            missing_bytes -= bytes;
            elsewhere_bytes += piece.end - piece.start - bytes;
        }
    }
    free(line);
    fclose(maps);
    if (missing_bytes != 0)
        return -EXDEV;
    return elsewhere_bytes != 0 ? -EBUSY : 0;
}
