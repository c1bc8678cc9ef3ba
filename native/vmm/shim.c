/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry-shim.so: preloaded into an unmodified VMM whose RAM is a shared file. It waits for the VMM to map that
 * file, hands the mapping over to the fault client or the page server, and from then on keeps the VMM from doing what
 * would break a lazy restore, or escape the tracking. docs/handoff.md has its settings and guards, with the reasons.
 *
 *   PAGEFERRY_SHIM_RAM         the RAM file, or memfd:NAME
 *   PAGEFERRY_SHIM_SOCKET      the hand-off socket
 *   PAGEFERRY_SHIM_RAM_2 ...   a second file, with its own PAGEFERRY_SHIM_SOCKET_2, and so on to _4
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
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ram.h"

#define EXPORT __attribute__((visibility("default")))
#define TIMEOUT_MS_DEFAULT 30000
#define RAMS_MAX 4

static const struct {
    const char *ram, *socket;
} names[RAMS_MAX] = {
    {"PAGEFERRY_SHIM_RAM", "PAGEFERRY_SHIM_SOCKET"},
    {"PAGEFERRY_SHIM_RAM_2", "PAGEFERRY_SHIM_SOCKET_2"},
    {"PAGEFERRY_SHIM_RAM_3", "PAGEFERRY_SHIM_SOCKET_3"},
    {"PAGEFERRY_SHIM_RAM_4", "PAGEFERRY_SHIM_SOCKET_4"},
};

static struct {
    pthread_once_t configured;
    struct ram_settings settings;
    struct ram rams[RAMS_MAX];
    size_t count; /* 0: the shim does nothing */
} shim = {.configured = PTHREAD_ONCE_INIT};

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

/* True: there is one of this number. */
static bool add_ram(size_t number)
{
    const char *name = getenv(names[number].ram), *socket_path = getenv(names[number].socket);
    struct ram *ram = &shim.rams[shim.count];

    if ((name == NULL) != (socket_path == NULL))
        shim_die("%s and %s belong together: set %s too", names[number].ram, names[number].socket,
                 name == NULL ? names[number].ram : names[number].socket);
    if (name == NULL)
        return false;
    if (number != shim.count)
        shim_die("%s is set, and %s is not: number them without a gap", names[number].ram, names[shim.count].ram);
    for (size_t i = 0; i < shim.count; i++)
        if (strcmp(shim.rams[i].name, name) == 0 || strcmp(shim.rams[i].socket_path, socket_path) == 0)
            shim_die("%s and %s are alike in their file or their socket: each file is handed over by itself",
                     names[i].ram, names[number].ram);
    ram->name = name;
    ram->socket_path = socket_path;
    ram->settings = &shim.settings;
    pthread_mutex_init(&ram->lock, NULL);
    return true;
}

static void configure(void)
{
    for (size_t number = 0; number < RAMS_MAX; number++)
        if (add_ram(number))
            shim.count++;
    shim.settings.role = role_setting();
    shim.settings.timeout_ms = number_setting("PAGEFERRY_SHIM_TIMEOUT_MS", TIMEOUT_MS_DEFAULT, 1);
    shim.settings.device_fd = number_setting("PAGEFERRY_SHIM_UFFD_FD", -1, 0);
}

__attribute__((constructor)) static void begin(void)
{
    pthread_once(&shim.configured, configure);
}

__attribute__((destructor)) static void end(void)
{
    for (size_t i = 0; i < shim.count; i++)
        if (!atomic_load(&shim.rams[i].taken))
            shim_say("%s (process %d) exits and has never mapped %s: if it is the VMM, %s; name the file of its RAM "
                     "in %s", program_invocation_short_name, (int)getpid(), shim.rams[i].name,
                     shim.settings.role == HANDOFF_TRACK ? "it could not have been moved"
                                                         : "nothing was restored into it", names[i].ram);
}

/* --------------------------------------------------------------------------------------------- which calls matter */

static struct ram *ram_of(int fd, struct stat *file)
{
    for (size_t i = 0; i < shim.count; i++)
        if (ram_is(&shim.rams[i], fd, file))
            return &shim.rams[i];
    return NULL;
}

/* NULL: none. No range of a VMM's goes over two of them: they are mappings of their own. */
static struct ram *ram_at(const void *address, size_t length_bytes)
{
    for (size_t i = 0; i < shim.count; i++)
        if (ram_touched(&shim.rams[i], address, length_bytes))
            return &shim.rams[i];
    return NULL;
}

EXPORT void *mmap(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    struct ram_mapping mapping = {address, length_bytes, protection, flags, fd, offset};
    struct ram *ram = NULL;
    struct stat file;

    pthread_once(&shim.configured, configure);
    if ((flags & MAP_ANONYMOUS) == 0)
        ram = ram_of(fd, &file);
    return ram != NULL ? ram_map(ram, &mapping, &file) : ram_map_plainly(&mapping);
}

EXPORT void *mmap64(void *address, size_t length_bytes, int protection, int flags, int fd, off_t offset)
{
    return mmap(address, length_bytes, protection, flags, fd, offset);
}

EXPORT int fallocate(int fd, int mode, off_t offset, off_t length_bytes)
{
    bool drops = (mode & FALLOC_FL_PUNCH_HOLE) != 0 && offset >= 0 && length_bytes > 0;
    struct stat file;
    struct ram *ram = drops ? ram_of(fd, &file) : NULL;

    if (ram != NULL && atomic_load(&ram->taken))
        return ram_punch(ram, fd, mode, offset, length_bytes);
    return (int)syscall(SYS_fallocate, fd, mode, offset, length_bytes);
}

EXPORT int fallocate64(int fd, int mode, off_t offset, off_t length_bytes)
{
    return fallocate(fd, mode, offset, length_bytes);
}

/* ---------------------------------------------------------------------------------------------------------- guards */

/* DONTNEED and its kin go by: on shared memory they drop mappings and no bytes (the next access finds the page in the
 * cache, or absent as before), so there is nothing to report. */
EXPORT int madvise(void *address, size_t length_bytes, int advice)
{
    struct ram *ram = ram_at(address, length_bytes);
    bool absent;

    if (ram == NULL)
        return (int)syscall(SYS_madvise, address, length_bytes, advice);
    absent = ram_arriving(ram);
    switch (advice) {
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
        if (ram_keeps_wish(ram, advice))
            return 0;
        break;
    case MADV_DOFORK: /* a child would read zeros, and its writes are not seen */
        if (absent || ram_tracked(ram))
            return 0;
        break;
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
        if (absent)
            shim_die("prealloc=on pulls every page of %s before the VM runs: start the VMM without it", ram->name);
        break;
    case MADV_REMOVE:
        return ram_remove(ram, address, length_bytes);
    }
    return (int)syscall(SYS_madvise, address, length_bytes, advice);
}

static void refuse_locking(const struct ram *ram)
{
    shim_die("locking memory pulls every page of %s before the VM runs: start the VMM without it "
             "(QEMU: -overcommit mem-lock=off)", ram->name);
}

static void check_lock(const void *address, size_t length_bytes)
{
    struct ram *ram = ram_at(address, length_bytes);

    if (ram != NULL && ram_arriving(ram))
        refuse_locking(ram);
}

EXPORT int mlock(const void *address, size_t length_bytes)
{
    check_lock(address, length_bytes);
    return (int)syscall(SYS_mlock, address, length_bytes);
}

EXPORT int mlock2(const void *address, size_t length_bytes, unsigned int flags)
{
    check_lock(address, length_bytes);
    return (int)syscall(SYS_mlock2, address, length_bytes, flags);
}

/* Also before the RAM is mapped: it would be locked as it is. */
EXPORT int mlockall(int flags)
{
    pthread_once(&shim.configured, configure);
    for (size_t i = 0; i < shim.count; i++)
        if (ram_restoring(&shim.rams[i]))
            refuse_locking(&shim.rams[i]);
    return (int)syscall(SYS_mlockall, flags);
}
