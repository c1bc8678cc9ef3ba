/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was handed over, as /proc and stat show it: see mapping.h. Reads files of the kernel, touches no memory of the
 * VMM (a read of an absent page by anybody would wait for the pager, which is us).
 */
#include "mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "uapi.h"

#define KERNEL_PAGE_BYTES UINT64_C(4096)
#define SCAN_REGIONS 256
#define PAGEMAP_WORDS 4096
#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)
#define THP_DIRECTORY "/sys/kernel/mm/transparent_hugepage"

/* ------------------------------------------------------------------------------------------------------ kind of fd */

static bool is_uffd(int fd)
{
    char link[32], target[64];
    ssize_t length;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    length = readlink(link, target, sizeof(target) - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    return strcmp(target, "anon_inode:[userfaultfd]") == 0;
}

static enum fd_kind file_kind(const struct statfs *system)
{
    enum fd_kind kind = FD_KIND_OTHER;

    if ((unsigned long)system->f_type == HUGETLBFS_MAGIC)
        kind = FD_KIND_HUGETLB;
    else if ((unsigned long)system->f_type == TMPFS_MAGIC)
        kind = FD_KIND_SHARED_FILE;
    return kind;
}

int mapping_fd_kind(int fd, enum fd_kind *kind)
{
    struct stat file;
    struct statfs system;
    int flags = fcntl(fd, F_GETFL);

    *kind = FD_KIND_OTHER;
    if (flags < 0 || fstat(fd, &file) < 0)
        return -errno;
    if (S_ISREG(file.st_mode) && (flags & O_ACCMODE) == O_RDWR) {
        if (fstatfs(fd, &system) < 0)
            return -errno;
        *kind = file_kind(&system);
    } else if (is_uffd(fd)) {
        *kind = FD_KIND_UFFD;
    }
    return 0;
}

/* st_blksize of a pool's file is its page. Of a tmpfs file it is more than a page where the mount has huge=, or for a
 * memfd where huge pages are forced on: one write may bring 512 pages into the cache. */
int mapping_file_pages(int fd, struct file_pages *pages)
{
    enum thp_shmem setting = THP_SHMEM_NEVER;
    struct statfs system;
    struct stat file;
    bool pool;

    if (fstat(fd, &file) < 0 || fstatfs(fd, &system) < 0)
        return -errno;
    pool = (unsigned long)system.f_type == HUGETLBFS_MAGIC;
    pages->unit_bytes = pool ? (uint64_t)file.st_blksize : KERNEL_PAGE_BYTES;
    pages->brings_more = !pool && ((uint64_t)file.st_blksize != KERNEL_PAGE_BYTES ||
                                   (mapping_thp_shmem(&setting) == 0 && setting == THP_SHMEM_FORCED));
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- smaps */

/* The range under scrutiny, and how far its mappings have been seen to follow one another. */
struct look {
    uint64_t start;
    uint64_t end;
    uint64_t covered_end;
    bool inside; /* the mapping being read overlaps the range */
    bool sized;  /* one that did has told its page size */
};

static void see_header(struct look *look, struct mapping_facts *facts, uint64_t start, uint64_t end, char sharing)
{
    look->inside = start < look->end && end > look->start;
    if (!look->inside)
        return;
    if (start > look->covered_end)
        facts->mapped = false;
    look->covered_end = end;
    facts->shared &= sharing == 's';
}

static bool has_flag(const char *flags, const char *flag)
{
    const char *found = strstr(flags, flag);

    return found != NULL && found[-1] == ' ' && (found[2] == ' ' || found[2] == '\n' || found[2] == '\0');
}

static void see_flags(struct mapping_facts *facts, const char *flags)
{
    facts->registered_missing &= has_flag(flags, "um");
    facts->registered_minor &= has_flag(flags, "ui");
    facts->huge_pages_barred &= has_flag(flags, "nh");
    facts->locked |= has_flag(flags, "lo");
}

static void see_page_size(struct mapping_facts *facts, uint64_t page_bytes, bool first)
{
    if (first)
        facts->unit_bytes = page_bytes;
    else if (facts->unit_bytes != page_bytes)
        facts->unit_bytes = 0;
}

static void see_line(struct look *look, struct mapping_facts *facts, const char *line)
{
    static const char flags_name[] = "VmFlags:";
    uint64_t start, end, page_kib;
    char access[5];

    if (strncmp(line, flags_name, sizeof(flags_name) - 1) == 0) {
        if (look->inside)
            see_flags(facts, line + sizeof(flags_name) - 1);
    } else if (sscanf(line, "KernelPageSize: %" SCNu64 " kB", &page_kib) == 1) {
        if (look->inside)
            see_page_size(facts, page_kib * 1024, !look->sized);
        look->sized |= look->inside;
    } else if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &start, &end, access) == 3) {
        see_header(look, facts, start, end, access[3]);
    }
}

/* A process that has exited, but was not waited for, shows an empty file. */
static int look_at_smaps(pid_t pid, struct look *look, struct mapping_facts *facts)
{
    char path[64];
    char *line = NULL;
    size_t capacity = 0;
    FILE *smaps;
    bool empty = true;
    int rc = 0;

    snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
    smaps = fopen(path, "re");
    if (smaps == NULL)
        return errno == ENOENT ? -ESRCH : -errno;
    errno = 0;
    while (getline(&line, &capacity, smaps) > 0) {
        empty = false;
        see_line(look, facts, line);
    }
    if (ferror(smaps) || errno == ENOMEM)
        rc = errno != 0 ? -errno : -EIO;
    else if (empty)
        rc = -ESRCH;
    free(line);
    fclose(smaps);
    return rc;
}

/* -------------------------------------------------------------------------------------------------------- pagemap */

/* Goes through the range by PAGEMAP_SCAN. -ENOTTY or -EINVAL: this kernel does not have it. */
static int count_by_scan(int pagemap, uint64_t start, uint64_t end, uint64_t *present_pages)
{
    struct page_region found[SCAN_REGIONS];

    while (start < end) {
        struct pm_scan_arg arg = {
            .size = sizeof(arg),
            .start = start,
            .end = end,
            .vec = (uintptr_t)found,
            .vec_len = SCAN_REGIONS,
            .category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            .return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        };
        int count = ioctl(pagemap, PAGEMAP_SCAN, &arg);
        if (count < 0)
            return -errno;
        for (int i = 0; i < count; i++)
            *present_pages += (found[i].end - found[i].start) / KERNEL_PAGE_BYTES;
        if (arg.walk_end <= start)
            return -EIO;
        start = arg.walk_end;
    }
    return 0;
}

static int count_by_reading(int pagemap, uint64_t start, uint64_t end, uint64_t *present_pages)
{
    uint64_t words[PAGEMAP_WORDS];

    while (start < end) {
        uint64_t pages = (end - start) / KERNEL_PAGE_BYTES;
        ssize_t got_bytes;
        if (pages > PAGEMAP_WORDS)
            pages = PAGEMAP_WORDS;
        got_bytes = pread(pagemap, words, pages * sizeof(words[0]),
                          (off_t)(start / KERNEL_PAGE_BYTES * sizeof(words[0])));
        if (got_bytes < 0 && errno == EINTR)
            continue;
        if (got_bytes < (ssize_t)sizeof(words[0]))
            return got_bytes < 0 ? -errno : -ESRCH;
        pages = (uint64_t)got_bytes / sizeof(words[0]);
        for (uint64_t i = 0; i < pages; i++)
            *present_pages += (words[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) != 0;
        start += pages * KERNEL_PAGE_BYTES;
    }
    return 0;
}

static int open_pagemap(pid_t pid)
{
    char path[64];
    int pagemap;

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    pagemap = open(path, O_RDONLY | O_CLOEXEC);
    return pagemap >= 0 ? pagemap : errno == ENOENT ? -ESRCH : -errno;
}

int mapping_page_present(pid_t pid, uint64_t address)
{
    int pagemap = open_pagemap(pid), rc = pagemap;
    uint64_t word = 0;

    if (pagemap >= 0) {
        ssize_t got = pread(pagemap, &word, sizeof(word), (off_t)(address / KERNEL_PAGE_BYTES * sizeof(word)));
        rc = got == (ssize_t)sizeof(word) ? (word & PAGEMAP_PRESENT) != 0 : got < 0 ? -errno : -ESRCH;
        close(pagemap);
    }
    return rc;
}

int mapping_present(pid_t pid, uint64_t address, uint64_t length_bytes, uint64_t *present_pages)
{
    uint64_t start = address, end = address + length_bytes;
    int pagemap = open_pagemap(pid), rc;

    if (pagemap < 0)
        return pagemap;
    *present_pages = 0;
    rc = count_by_scan(pagemap, start, end, present_pages);
    if (rc == -ENOTTY || rc == -EINVAL) {
        *present_pages = 0;
        rc = count_by_reading(pagemap, start, end, present_pages);
    }
    close(pagemap);
    return rc;
}

int mapping_look(pid_t pid, uint64_t address, uint64_t length_bytes, struct mapping_facts *facts)
{
    struct look look = {.start = address, .end = address + length_bytes, .covered_end = address};
    int rc;

    memset(facts, 0, sizeof(*facts));
    if (length_bytes == 0 || ((address | length_bytes) & (KERNEL_PAGE_BYTES - 1)) != 0 || look.end < address)
        return -EINVAL;
    facts->mapped = facts->shared = true;
    facts->registered_missing = facts->registered_minor = facts->huge_pages_barred = true;
    rc = look_at_smaps(pid, &look, facts);
    facts->mapped &= look.covered_end >= look.end;
    if (rc == 0)
        rc = mapping_present(pid, address, length_bytes, &facts->present_pages);
    if (rc < 0 || !facts->mapped)
        *facts = (struct mapping_facts){.present_pages = rc < 0 ? 0 : facts->present_pages};
    return rc;
}

/* ------------------------------------------------------------------------------------------- huge pages by default */

/* The file's words, the chosen one in brackets. "inherit" of one size is what the top says, and counted there. */
static int read_setting(const char *path, enum thp_shmem *setting)
{
    char text[128];
    char *chosen, *close_bracket;
    FILE *file = fopen(path, "re");
    size_t length;

    *setting = THP_SHMEM_NEVER;
    if (file == NULL)
        return errno == ENOENT ? 0 : -errno; /* not there: a kernel without huge pages, or without this size */
    length = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[length] = '\0';
    chosen = strchr(text, '[');
    close_bracket = chosen != NULL ? strchr(chosen, ']') : NULL;
    if (close_bracket == NULL)
        return -EPROTO;
    *close_bracket = '\0';
    if (strcmp(chosen + 1, "advise") == 0 || strcmp(chosen + 1, "madvise") == 0)
        *setting = THP_SHMEM_ADVISE;
    else if (strcmp(chosen + 1, "always") == 0 || strcmp(chosen + 1, "within_size") == 0 ||
             strcmp(chosen + 1, "force") == 0)
        *setting = THP_SHMEM_FORCED;
    return 0;
}

/* The setting of 4 KiB pages' own file, or the strongest of any larger size. */
static int strongest_setting(const char *name, enum thp_shmem *setting)
{
    char path[128];
    int rc;

    snprintf(path, sizeof(path), THP_DIRECTORY "/%s", name);
    rc = read_setting(path, setting);
    for (uint64_t size_kib = 8; rc == 0 && size_kib <= UINT64_C(1) << 24; size_kib *= 2) {
        enum thp_shmem of_size;
        snprintf(path, sizeof(path), THP_DIRECTORY "/hugepages-%" PRIu64 "kB/%s", size_kib, name);
        rc = read_setting(path, &of_size);
        if (rc == 0 && of_size > *setting)
            *setting = of_size;
    }
    return rc;
}

int mapping_thp_shmem(enum thp_shmem *setting)
{
    return strongest_setting("shmem_enabled", setting);
}

int mapping_thp_private(enum thp_shmem *setting)
{
    return strongest_setting("enabled", setting);
}
