/* SPDX-License-Identifier: Apache-2.0 */
/* What this process has mapped: see own_maps.h. Lines of /proc/self/maps, or of smaps, which has more of them. */
#include "own_maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define KERNEL_PAGE_BYTES UINT64_C(4096)

/* Lines, of which the first bytes matter: a path may be longer. */
struct lines {
    int fd;
    int error;
    size_t have, at;
    char bytes[2048];
    char line[256];
};

struct look {
    uint64_t start, end;
    uint64_t covered_end; /* so far the mappings have followed one another */
    uint64_t offset_bytes;
    const struct stat *file;
    bool inside; /* the mapping being read overlaps the range */
    bool first;
};

static bool fill(struct lines *lines)
{
    ssize_t got;

    do {
        got = read(lines->fd, lines->bytes, sizeof(lines->bytes));
    } while (got < 0 && errno == EINTR);
    lines->error = got < 0 ? errno : 0;
    lines->have = got > 0 ? (size_t)got : 0;
    lines->at = 0;
    return got > 0;
}

static bool next_line(struct lines *lines)
{
    size_t length = 0;
    bool some = false, ended = false;

    while (!ended && (lines->at < lines->have || fill(lines))) {
        char byte = lines->bytes[lines->at++];
        some = true;
        ended = byte == '\n';
        if (!ended && length + 1 < sizeof(lines->line))
            lines->line[length++] = byte;
    }
    lines->line[length] = '\0';
    return some;
}

/* ---------------------------------------------------------------------------------------------------- one mapping */

struct header {
    uint64_t start, end, offset_bytes, inode;
    unsigned device_major, device_minor;
    char access[5];
    int path_at;
};

static bool is_file(const struct look *look, const struct header *header)
{
    uint64_t offset_bytes = look->offset_bytes + (header->start - look->start); /* wraps as it should */

    return look->file != NULL && header->inode == look->file->st_ino &&
           makedev(header->device_major, header->device_minor) == look->file->st_dev &&
           header->offset_bytes == offset_bytes;
}

static void see_mapping(struct look *look, struct own_maps *maps, const struct header *header, const char *path)
{
    bool huge = strncmp(path, "/anon_hugepage", 14) == 0;

    look->inside = header->start < look->end && header->end > look->start;
    if (!look->inside)
        return;
    if (header->start > look->covered_end)
        maps->whole = false;
    look->covered_end = header->end;
    maps->shared &= header->access[3] == 's';
    maps->private_memory &= header->access[3] == 'p';
    maps->anonymous &= header->inode == 0 || huge;
    maps->of_file &= is_file(look, header);
    maps->huge |= huge;
    if (look->first)
        maps->protection = (header->access[0] == 'r' ? PROT_READ : 0) | (header->access[1] == 'w' ? PROT_WRITE : 0) |
                           (header->access[2] == 'x' ? PROT_EXEC : 0);
    look->first = false;
}

static void see_flags(struct own_maps *maps, const char *line)
{
    static const struct {
        const char *name;
        uint32_t flag;
    } known[] = {{" um", OWN_MAPS_MISSING}, {" ui", OWN_MAPS_MINOR},   {" uw", OWN_MAPS_WP},
                 {" nh", OWN_MAPS_NO_HUGE_PAGES}, {" dc", OWN_MAPS_NO_FORK}, {" dd", OWN_MAPS_NO_DUMP}};

    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strstr(line, known[i].name) == NULL)
            maps->flags &= ~known[i].flag;
}

static void see_line(struct look *look, struct own_maps *maps, const char *line)
{
    struct header header = {.path_at = 0};
    uint64_t unit_kib;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &header.start, &header.end,
               header.access, &header.offset_bytes, &header.device_major, &header.device_minor, &header.inode,
               &header.path_at) == 7)
        see_mapping(look, maps, &header, line + header.path_at);
    else if (look->inside && sscanf(line, "KernelPageSize: %" SCNu64, &unit_kib) == 1)
        maps->unit_bytes = unit_kib * 1024 > maps->unit_bytes ? unit_kib * 1024 : maps->unit_bytes;
    else if (look->inside && strncmp(line, "VmFlags:", 8) == 0)
        see_flags(maps, line);
}

int own_maps_look(uint64_t address, uint64_t length_bytes, const struct stat *file, uint64_t offset_bytes,
                  bool closely, struct own_maps *maps)
{
    struct look look = {.start = address, .end = address + length_bytes, .covered_end = address,
                        .offset_bytes = offset_bytes, .file = file, .first = true};
    struct lines lines = {.fd = open(closely ? "/proc/self/smaps" : "/proc/self/maps", O_RDONLY | O_CLOEXEC)};

    *maps = (struct own_maps){.whole = true, .shared = true, .private_memory = true, .of_file = true,
                              .anonymous = true, .unit_bytes = KERNEL_PAGE_BYTES, .flags = UINT32_MAX};
    if (lines.fd < 0)
        return -errno;
    /* The list is in order: behind the range's last mapping only its own lines are still of interest. */
    while ((look.inside || look.covered_end < look.end) && next_line(&lines))
        see_line(&look, maps, lines.line);
    close(lines.fd);
    if (look.covered_end < look.end)
        maps->whole = false;
    return -lines.error;
}
