/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry-shim.so: preloaded into an unmodified VMM whose RAM is a shared file. It waits for the VMM to map that
 * file, hands the mapping over to the fault client or the page server, and from then on keeps the VMM from doing what
 * would break a lazy restore, or escape the tracking. docs/handoff.md has its settings and guards, with the reasons.
 *
 *   PAGEFERRY_SHIM_RAM         the RAM file, or memfd:NAME
 *   PAGEFERRY_SHIM_SOCKET      the hand-off socket
 *   PAGEFERRY_SHIM_ROLE        restore (the default), track, both: handoff.h
 *   PAGEFERRY_SHIM_UFFD_FD     an inherited open /dev/userfaultfd, for a VMM without the right to a userfaultfd
 *   PAGEFERRY_SHIM_TIMEOUT_MS  how long it may take to be accepted (30000)
 *
 * Without the first two it does nothing. Where it cannot do its work the VMM ends, with one line on stderr: memory
 * that nobody serves would read as zeros, and nobody would notice.
 *
 * The real functions are the system calls themselves, so nothing has to be looked up. This is the only file of the
 * project with a global: a VMM calls from any thread, and there is nobody to hand it a pointer.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "handoff.h"

#define EXPORT __attribute__((visibility("default")))
#define RAM_PAGE_BYTES UINT64_C(4096)
#define TIMEOUT_MS_DEFAULT 30000

_Static_assert(sizeof(long) == 8, "the system calls below take 64-bit offsets");

static struct {
    pthread_once_t configured;
    pthread_mutex_t lock; /* the hand-off, and the conversation after it */
    const char *ram;      /* NULL: the shim does nothing */
    const char *socket_path;
    enum handoff_role role;
    int timeout_ms;
    int device_fd;
    atomic_bool taken;    /* the hand-off has been made; all below is set before */
    dev_t device;
    ino_t inode;
    uint64_t start;
    uint64_t length_bytes;
    struct handoff handoff;
} shim = {.configured = PTHREAD_ONCE_INIT, .lock = PTHREAD_MUTEX_INITIALIZER};

/* -------------------------------------------------------------------------------------------------------- settings */

static int number_setting(const char *name, int otherwise, int least)
{
    const char *text = getenv(name);
    char *end;
    long value;

    if (text == NULL)
        return otherwise;
    value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < least || value > INT_MAX)
        shim_die("%s is \"%s\": it must be a number from %d up", name, text, least);
    return (int)value;
}

static enum handoff_role role_setting(void)
{
    const char *name = getenv("PAGEFERRY_SHIM_ROLE");
    enum handoff_role role = handoff_role_named(name == NULL ? "restore" : name);

    if (role == 0)
        shim_die("PAGEFERRY_SHIM_ROLE is \"%s\": it must be restore, track or both", name);
    return role;
}

static void configure(void)
{
    const char *ram = getenv("PAGEFERRY_SHIM_RAM");

    shim.socket_path = getenv("PAGEFERRY_SHIM_SOCKET");
    if ((ram == NULL) != (shim.socket_path == NULL))
        shim_die("PAGEFERRY_SHIM_RAM and PAGEFERRY_SHIM_SOCKET belong together: set %s too",
                 ram == NULL ? "PAGEFERRY_SHIM_RAM" : "PAGEFERRY_SHIM_SOCKET");
    shim.role = role_setting();
    shim.timeout_ms = number_setting("PAGEFERRY_SHIM_TIMEOUT_MS", TIMEOUT_MS_DEFAULT, 1);
    shim.device_fd = number_setting("PAGEFERRY_SHIM_UFFD_FD", -1, 0);
    shim.ram = ram;
}

__attribute__((constructor)) static void begin(void)
{
    pthread_once(&shim.configured, configure);
}

__attribute__((destructor)) static void end(void)
{
    if (shim.ram != NULL && !atomic_load(&shim.taken))
        shim_say("%s (process %d) exits and has never mapped %s: if it is the VMM, %s; name the file of its RAM in "
                 "PAGEFERRY_SHIM_RAM", program_invocation_short_name, (int)getpid(), shim.ram,
                 shim.role == HANDOFF_TRACK ? "it could not have been moved" : "nothing was restored into it");
}

/* --------------------------------------------------------------------------------------------- which calls matter */

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

/* The RAM file, by what it is and not by the path it was opened by. */
static bool is_ram_fd(int fd, struct stat *file)
{
    struct stat named;

    if (fd < 0 || fstat(fd, file) < 0 || !S_ISREG(file->st_mode))
        return false;
    if (atomic_load(&shim.taken))
        return file->st_dev == shim.device && file->st_ino == shim.inode;
    if (strncmp(shim.ram, "memfd:", 6) == 0)
        return is_named_memfd(fd, shim.ram + 6);
    return stat(shim.ram, &named) == 0 && file->st_dev == named.st_dev && file->st_ino == named.st_ino;
}

static bool touches_ram(const void *address, size_t length_bytes)
{
    uint64_t start = (uint64_t)(uintptr_t)address;

    return atomic_load(&shim.taken) && length_bytes != 0 && start < shim.start + shim.length_bytes &&
           start + length_bytes > shim.start;
}

/* Pages of the RAM may be absent still: what touches them pulls them. */
static bool arriving(void)
{
    bool absent;

    pthread_mutex_lock(&shim.lock);
    absent = handoff_arriving(&shim.handoff);
    pthread_mutex_unlock(&shim.lock);
    return absent;
}

static bool tracked(void)
{
    return (shim.role & HANDOFF_TRACK) != 0;
}

/* ----------------------------------------------------------------------------------------------- mmap: the hand-off */

static void check_mapping(const struct stat *file, size_t length_bytes, int flags, off_t offset)
{
    bool shared = (flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE;
    uint64_t file_bytes = (uint64_t)file->st_size;

    if (atomic_load(&shim.taken))
        shim_die("the VMM maps its RAM %s once more: only one mapping can be restored into", shim.ram);
    if (!shared)
        shim_die("the VMM maps its RAM %s privately: it needs share=on", shim.ram);
    if ((shim.role & HANDOFF_RESTORE) != 0 && (flags & (MAP_POPULATE | MAP_LOCKED)) != 0)
        shim_die("the VMM wants its RAM %s %s: that pulls every page before the VM runs; start it without prealloc=on "
                 "and without memory locking", shim.ram, flags & MAP_LOCKED ? "locked" : "populated");
    if (offset != 0 || length_bytes != file_bytes || file_bytes == 0 || file_bytes % RAM_PAGE_BYTES != 0)
        shim_die("the VMM maps %zu bytes at offset %" PRId64 " of %s, which has %" PRIu64 ": it must map the whole "
                 "file, in one piece, in pages of 4096 bytes", length_bytes, (int64_t)offset, shim.ram, file_bytes);
}

static void *map(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, address, length_bytes, protection, flags, fd, offset);
}

static void *map_ram(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset,
                     const struct stat *file)
{
    struct handoff_request request = {
        .role = shim.role,
        .socket_path = shim.socket_path,
        .timeout_ms = shim.timeout_ms,
        .device_fd = shim.device_fd,
        .ram_fd = fd,
        .length_bytes = length_bytes,
    };
    void *start;

    check_mapping(file, length_bytes, flags, offset);
    start = map(address, length_bytes, protection, flags, fd, offset);
    if (start == MAP_FAILED)
        return MAP_FAILED;
    request.address = (uint64_t)(uintptr_t)start;
    handoff_make(&shim.handoff, &request);
    shim.device = file->st_dev;
    shim.inode = file->st_ino;
    shim.start = request.address;
    shim.length_bytes = length_bytes;
    atomic_store(&shim.taken, true);
    return start;
}

/* The RAM is being restored into: not yet, or not whole. With the lock held. */
static bool restoring(void)
{
    if (!atomic_load(&shim.taken))
        return (shim.role & HANDOFF_RESTORE) != 0;
    return handoff_arriving(&shim.handoff);
}

/* Once more, of a VM that runs: writes through that mapping would be seen by nobody. */
static void *refuse_mapping(void)
{
    shim_say("the VMM wants to map its RAM %s once more and is refused: writes there could not be tracked", shim.ram);
    errno = EBUSY;
    return MAP_FAILED;
}

EXPORT void *mmap(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    struct stat file;
    void *start;

    pthread_once(&shim.configured, configure);
    if (shim.ram == NULL || (flags & MAP_ANONYMOUS) != 0 || !is_ram_fd(fd, &file))
        return map(address, length_bytes, protection, flags, fd, offset);
    pthread_mutex_lock(&shim.lock);
    if (!atomic_load(&shim.taken) || restoring())
        start = map_ram(address, length_bytes, protection, flags, fd, offset, &file);
    else if (tracked())
        start = refuse_mapping();
    else
        start = map(address, length_bytes, protection, flags, fd, offset);
    pthread_mutex_unlock(&shim.lock);
    return start;
}

EXPORT void *mmap64(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, length_bytes, protection, flags, fd, offset);
}

/* -------------------------------------------------------------------------------------------------------- discards */

/* A drop that begins or ends inside a page zeroes a part of it: that page must be here first. A read brings it. */
static void bring(uint64_t offset_bytes)
{
    if (offset_bytes % RAM_PAGE_BYTES != 0 && offset_bytes < shim.length_bytes)
        (void)*(volatile const char *)(uintptr_t)(shim.start + offset_bytes);
}

/* Before [offset, end) of the RAM is dropped. 0, or -EIO: then it must stay. */
static int report_discard(uint64_t offset_bytes, uint64_t end_bytes)
{
    uint64_t first = (offset_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    uint64_t end = end_bytes / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    int rc = 0;

    if (end_bytes >= shim.length_bytes)
        end_bytes = end = shim.length_bytes;
    if (!arriving())
        return 0;
    bring(offset_bytes);
    bring(end_bytes);
    if (first < end) {
        pthread_mutex_lock(&shim.lock);
        rc = handoff_discard(&shim.handoff, first, end - first);
        pthread_mutex_unlock(&shim.lock);
    }
    return rc;
}

/* After it: a page that is zeroed in part has changed too. */
static void note_dropped(uint64_t offset_bytes, uint64_t end_bytes)
{
    uint64_t first = offset_bytes / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    uint64_t end = (end_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;

    end = end < shim.length_bytes ? end : shim.length_bytes;
    if (first < end)
        handoff_dropped(&shim.handoff, shim.start + first, end - first);
}

static int failed(int rc)
{
    errno = -rc;
    return -1;
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length_bytes)
{
    struct stat file;
    bool drops = (mode & FALLOC_FL_PUNCH_HOLE) != 0 && offset >= 0 && length_bytes > 0 && atomic_load(&shim.taken) &&
                 is_ram_fd(fd, &file);
    uint64_t end = (uint64_t)offset + (uint64_t)length_bytes;
    int rc = drops ? report_discard((uint64_t)offset, end) : 0;

    if (rc < 0)
        return failed(rc);
    rc = (int)syscall(SYS_fallocate, fd, mode, offset, length_bytes);
    if (drops)
        note_dropped((uint64_t)offset, end);
    return rc;
}

EXPORT int fallocate64(int fd, int mode, off_t offset, off_t length_bytes)
{
    return fallocate(fd, mode, offset, length_bytes);
}

/* MADV_REMOVE is a punch by address. The kernel refuses what is not whole pages, and so nothing is reported then. */
static int remove_range(void *address, size_t length_bytes)
{
    uint64_t start = (uint64_t)(uintptr_t)address, ram_end = shim.start + shim.length_bytes;
    uint64_t end = start + (length_bytes + RAM_PAGE_BYTES - 1) / RAM_PAGE_BYTES * RAM_PAGE_BYTES;
    bool whole = start % RAM_PAGE_BYTES == 0;
    int rc = 0;

    start = start > shim.start ? start : shim.start;
    end = end < ram_end ? end : ram_end;
    if (whole)
        rc = report_discard(start - shim.start, end - shim.start);
    if (rc < 0)
        return failed(rc);
    rc = (int)syscall(SYS_madvise, address, length_bytes, MADV_REMOVE);
    if (whole)
        note_dropped(start - shim.start, end - shim.start);
    return rc;
}

/* ---------------------------------------------------------------------------------------------------------- guards */

/* DONTNEED and its kin go by: on shared memory they drop mappings and no bytes (the next access finds the page in the
 * cache, or absent as before), so there is nothing to report. */
EXPORT int madvise(void *address, size_t length_bytes, int advice)
{
    bool absent;

    if (!touches_ram(address, length_bytes))
        return (int)syscall(SYS_madvise, address, length_bytes, advice);
    absent = arriving();
    switch (advice) {
    case MADV_HUGEPAGE: /* a wish; pages arrive, and are tracked, one by one */
    case MADV_DOFORK:   /* a child would read zeros, and its writes are not seen */
        if (absent || tracked())
            return 0;
        break;
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
        if (absent)
            shim_die("prealloc=on pulls every page of %s before the VM runs: start the VMM without it", shim.ram);
        break;
    case MADV_REMOVE:
        return remove_range(address, length_bytes);
    }
    return (int)syscall(SYS_madvise, address, length_bytes, advice);
}

static void refuse_locking(void)
{
    shim_die("locking memory pulls every page of %s before the VM runs: start the VMM without it "
             "(QEMU: -overcommit mem-lock=off)", shim.ram);
}

EXPORT int mlock(const void *address, size_t length_bytes)
{
    if (touches_ram(address, length_bytes) && arriving())
        refuse_locking();
    return (int)syscall(SYS_mlock, address, length_bytes);
}

EXPORT int mlock2(const void *address, size_t length_bytes, unsigned int flags)
{
    if (touches_ram(address, length_bytes) && arriving())
        refuse_locking();
    return (int)syscall(SYS_mlock2, address, length_bytes, flags);
}

/* Also before the RAM is mapped: it would be locked as it is. */
EXPORT int mlockall(int flags)
{
    bool refused;

    pthread_once(&shim.configured, configure);
    pthread_mutex_lock(&shim.lock);
    refused = shim.ram != NULL && restoring();
    pthread_mutex_unlock(&shim.lock);
    if (refused)
        refuse_locking();
    return (int)syscall(SYS_mlockall, flags);
}
