/* SPDX-License-Identifier: Apache-2.0 */
/* One RAM file of ram.h. The real functions are the system calls themselves. */
#include "ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "the system calls below take 64-bit offsets");

/* ------------------------------------------------------------------------------------------------------ which it is */

static bool is_named_memfd(int fd, const char *name)
{
    char link[64], target[PATH_MAX];
    size_t name_length = strlen(name);
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, target, sizeof(target) - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    if (strncmp(target, "/memfd:", 7) != 0 || strncmp(target + 7, name, name_length) != 0)
        return false;
    return target[7 + name_length] == '\0' || strcmp(target + 7 + name_length, " (deleted)") == 0;
}

bool ram_is(const struct ram *ram, int fd, struct stat *file)
{
    struct stat named;

    if (fd < 0 || fstat(fd, file) < 0 || !S_ISREG(file->st_mode))
        return false;
    if (atomic_load(&ram->taken))
        return file->st_dev == ram->device && file->st_ino == ram->inode;
    if (strncmp(ram->name, "memfd:", 6) == 0)
        return is_named_memfd(fd, ram->name + 6);
    return stat(ram->name, &named) == 0 && file->st_dev == named.st_dev && file->st_ino == named.st_ino;
}

bool ram_touched(const struct ram *ram, const void *address, size_t length_bytes)
{
    uint64_t start = (uint64_t)(uintptr_t)address;

    return atomic_load(&ram->taken) && length_bytes != 0 && start < ram->start + ram->length_bytes &&
           start + length_bytes > ram->start;
}

bool ram_arriving(struct ram *ram)
{
    return handoff_arriving(&ram->handoff);
}

bool ram_tracked(const struct ram *ram)
{
    return (ram->settings->role & HANDOFF_TRACK) != 0;
}

bool ram_keeps_wish(struct ram *ram, int advice)
{
    return handoff_huge_pages(&ram->handoff, advice) || ram_tracked(ram);
}

/* With the lock held. */
static bool restoring(struct ram *ram)
{
    if (!atomic_load(&ram->taken))
        return (ram->settings->role & HANDOFF_RESTORE) != 0;
    return handoff_arriving(&ram->handoff);
}

bool ram_restoring(struct ram *ram)
{
    bool is;

    pthread_mutex_lock(&ram->lock);
    is = restoring(ram);
    pthread_mutex_unlock(&ram->lock);
    return is;
}

/* ----------------------------------------------------------------------------------------------- mmap: the hand-off */

static void check_mapping(const struct ram *ram, const struct ram_mapping *mapping, const struct stat *file)
{
    bool shared = (mapping->flags & MAP_TYPE) == MAP_SHARED || (mapping->flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    uint64_t file_bytes = (uint64_t)file->st_size;

    if (atomic_load(&ram->taken))
        shim_die("the VMM maps its RAM %s once more: only one mapping can be restored into", ram->name);
    if (!shared)
        shim_die("the VMM maps its RAM %s privately: it needs share=on", ram->name);
    if ((ram->settings->role & HANDOFF_RESTORE) != 0 && (mapping->flags & (MAP_POPULATE | MAP_LOCKED)) != 0)
        shim_die("the VMM wants its RAM %s %s: that pulls every page before the VM runs; start it without prealloc=on "
                 "and without memory locking", ram->name, mapping->flags & MAP_LOCKED ? "locked" : "populated");
    if (mapping->offset != 0 || mapping->length_bytes != file_bytes || file_bytes == 0 ||
        file_bytes % RAM_PAGE_BYTES != 0)
        shim_die("the VMM maps %zu bytes at offset %" PRId64 " of %s, which has %" PRIu64 ": it must map the whole "
                 "file, in one piece, in pages of 4096 bytes", mapping->length_bytes, (int64_t)mapping->offset,
                 ram->name, file_bytes);
}

void *ram_map_plainly(const struct ram_mapping *mapping)
{
    return (void *)syscall(SYS_mmap, mapping->address, mapping->length_bytes, mapping->protection, mapping->flags,
                           mapping->fd, mapping->offset);
}

static void *hand_over(struct ram *ram, const struct ram_mapping *mapping, const struct stat *file)
{
    struct handoff_request request = {
        .role = ram->settings->role,
        .socket_path = ram->socket_path,
        .timeout_ms = ram->settings->timeout_ms,
        .device_fd = ram->settings->device_fd,
        .ram_fd = mapping->fd,
        .length_bytes = mapping->length_bytes,
    };
    void *start;

    check_mapping(ram, mapping, file);
    start = ram_map_plainly(mapping);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    request.address = (uint64_t)(uintptr_t)start;
    handoff_make(&ram->handoff, &request);
    handoff_listen(&ram->handoff);
    ram->device = file->st_dev;
    ram->inode = file->st_ino;
    ram->start = request.address;
    ram->length_bytes = mapping->length_bytes;
    atomic_store(&ram->taken, true);
    return start;
}

/* Once more, of a VM that runs: writes through that mapping would be seen by nobody. */
static void *refuse_mapping(const struct ram *ram)
{
    shim_say("the VMM wants to map its RAM %s once more and is refused: writes there could not be tracked", ram->name);
    errno = EBUSY;
    return MAP_FAILED;
}

void *ram_map(struct ram *ram, const struct ram_mapping *mapping, const struct stat *file)
{
    void *start;

    pthread_mutex_lock(&ram->lock);
    if (!atomic_load(&ram->taken) || restoring(ram))
        start = hand_over(ram, mapping, file);
    else if (ram_tracked(ram))
        start = refuse_mapping(ram);
    else
        start = ram_map_plainly(mapping);
    pthread_mutex_unlock(&ram->lock);
    return start;
}

/* ----------------------------------------------------------------------------------------------------------- drops */

/* A drop that begins or ends inside a page zeroes a part of it: that page must be here first. The kernel brings it, waiting
 * as an access would; one that is lost (EHWPOISON) has nothing to zero, and an access to it would raise SIGBUS in the VMM.
 * Every kernel with minor faults on shared memory knows the advice (Linux 5.14). 0, or -errno: it cannot be had. */
static int bring(const struct ram *ram, uint64_t offset_bytes)
{
    uint64_t page = ram->start + offset_bytes / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    bool needed = offset_bytes % RAM_PAGE_BYTES != 0 && offset_bytes < ram->length_bytes;

    if (needed && syscall(SYS_madvise, page, RAM_PAGE_BYTES, MADV_POPULATE_READ) < 0 && errno != EHWPOISON)
        return -errno;
    return 0;
}

/* Before [offset, end) is dropped. 0; HANDOFF_KEEP: it is not to be dropped, and the VMM need not know; -errno: it must
 * stay, and the VMM must know. */
static int report_drop(struct ram *ram, uint64_t offset_bytes, uint64_t end_bytes)
{
    uint64_t first = (offset_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    uint64_t end = end_bytes / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    int rc = 0;

    if (end_bytes >= ram->length_bytes)
        end_bytes = end = ram->length_bytes;
    if (!ram_arriving(ram))
        return 0;
    rc = bring(ram, offset_bytes);
    if (rc == 0)
        rc = bring(ram, end_bytes);
    if (rc == 0 && first < end) {
        pthread_mutex_lock(&ram->lock);
        rc = handoff_discard(&ram->handoff, first, end - first);
        pthread_mutex_unlock(&ram->lock);
    }
    return rc;
}

/* After it: a page that is zeroed in part has changed too. */
static void note_dropped(const struct ram *ram, uint64_t offset_bytes, uint64_t end_bytes)
{
    uint64_t first = offset_bytes / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    uint64_t end = (end_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;

    end = end < ram->length_bytes ? end : ram->length_bytes;
    if (first < end)
        handoff_dropped(&ram->handoff, ram->start + first, end - first);
}

/* What a drop that does not happen answers its caller. */
static int undone(int reported)
{
    if (reported == HANDOFF_KEEP)
        return 0;
    errno = -reported;
    return -1;
}

int ram_punch(struct ram *ram, int fd, int mode, off_t offset, off_t length_bytes)
{
    uint64_t end = (uint64_t)offset + (uint64_t)length_bytes;
    int rc = report_drop(ram, (uint64_t)offset, end);

    if (rc != 0)
        return undone(rc);
    rc = (int)syscall(SYS_fallocate, fd, mode, offset, length_bytes);
    note_dropped(ram, (uint64_t)offset, end);
    return rc;
}

/* MADV_REMOVE is a punch by address. The kernel refuses what is not whole pages, and so nothing is reported then. */
int ram_remove(struct ram *ram, void *address, size_t length_bytes)
{
    uint64_t start = (uint64_t)(uintptr_t)address, ram_end = ram->start + ram->length_bytes;
    uint64_t end = start + (length_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    bool whole = start % RAM_PAGE_BYTES == 0;
    int rc = 0;

    start = start > ram->start ? start : ram->start;
    end = end < ram_end ? end : ram_end;
    if (whole)
        rc = report_drop(ram, start - ram->start, end - ram->start);
    if (rc != 0)
        return undone(rc);
    rc = (int)syscall(SYS_madvise, address, length_bytes, MADV_REMOVE);
    if (whole)
        note_dropped(ram, start - ram->start, end - ram->start);
    return rc;
}
