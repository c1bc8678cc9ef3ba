/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in VMM's memory and hand-off: see guest_ram.h. */
#include "guest_ram.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "guest_stamp.h"

#define JSON_BYTES (RAM_REGIONS_MAX * 192)

static _Noreturn void refused(const char *what)
{
    fprintf(stderr, "guest: %s: %s\n", what, strerror(errno));
    exit(71);
}

/* ------------------------------------------------------------------------------------------------------- memory */

/* The same bits for memfd_create as for mmap. */
static unsigned huge_flag(const struct ram *ram)
{
    uint64_t huge_bytes = ram->options.huge_bytes;

    return huge_bytes == 0 ? 0 : (unsigned)__builtin_ctzll(huge_bytes) << MAP_HUGE_SHIFT;
}

/* What the kernel maps at once, as it says itself where there is a file. */
static uint64_t page_size(const struct ram *ram)
{
    struct statfs system;
    struct stat file;

    if (ram->fd >= 0 && fstatfs(ram->fd, &system) == 0 && fstat(ram->fd, &file) == 0 &&
        (unsigned long)system.f_type == HUGETLBFS_MAGIC)
        return (uint64_t)file.st_blksize;
    return ram->fd < 0 && ram->options.huge_bytes != 0 ? ram->options.huge_bytes : PAGE_BYTES;
}

static void open_file(struct ram *ram)
{
    if (ram->options.kind == RAM_PRIVATE)
        return;
    if (ram->options.kind == RAM_MEMFD)
        ram->fd = memfd_create("guest-ram", MFD_CLOEXEC | (ram->options.huge_bytes != 0 ? MFD_HUGETLB : 0) |
                                                huge_flag(ram));
    else
        ram->fd = open(ram->options.path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ram->fd < 0 || ftruncate(ram->fd, (off_t)(ram->pages * PAGE_BYTES)) < 0)
        refused("the RAM file");
}

/* One reservation for all regions, so that neighbours touch, in either order. */
static void map_regions(struct ram *ram)
{
    const struct ram_options *options = &ram->options;
    uint64_t bytes = ram->pages * PAGE_BYTES, offset = 0;
    int huge = ram->fd < 0 && options->huge_bytes != 0 ? (int)(MAP_HUGETLB | huge_flag(ram)) : 0;
    uint8_t *start = NULL;

    if (options->region_count > 1) {
        start = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | huge, -1, 0);
        if (start == MAP_FAILED)
            refused("address space");
    }
    for (uint32_t i = 0; i < options->region_count; i++) {
        uint64_t length = options->region_pages[i] * PAGE_BYTES;
        uint8_t *at = start == NULL ? NULL : options->reverse ? start + bytes - offset - length : start + offset;
        int flags = (at != NULL ? MAP_FIXED : 0) |
                    (ram->fd >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE) | huge |
                    (options->unreserved ? MAP_NORESERVE : 0);
        void *region = mmap(at, length, PROT_READ | PROT_WRITE, flags, ram->fd, ram->fd >= 0 ? (off_t)offset : 0);
        if (region == MAP_FAILED)
            refused("mmap of the RAM");
        if (ram->fd >= 0 && !options->bare && madvise(region, length, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
            refused("MADV_NOHUGEPAGE");
        ram->region_at[i] = region;
        offset += length;
    }
}

static void open_uffd(struct ram *ram)
{
    struct uffdio_api api = {.api = UFFD_API, .features = ram->options.event_remove ? UFFD_FEATURE_EVENT_REMOVE : 0};
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    if (device >= 0) {
        ram->uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
        close(device);
    } else {
        ram->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    }
    if (ram->uffd < 0)
        refused("userfaultfd");
    if (ram->fd >= 0)
        api.features |= UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM;
    if (ioctl(ram->uffd, UFFDIO_API, &api) < 0)
        refused("UFFDIO_API");
}

static void register_regions(struct ram *ram)
{
    for (uint32_t i = 0; i < ram->options.region_count; i++) {
        struct uffdio_register range = {
            .range = {.start = (uintptr_t)ram->region_at[i], .len = ram->options.region_pages[i] * PAGE_BYTES},
            .mode = UFFDIO_REGISTER_MODE_MISSING | (ram->fd >= 0 ? UFFDIO_REGISTER_MODE_MINOR : 0),
        };
        if (ioctl(ram->uffd, UFFDIO_REGISTER, &range) < 0)
            refused("UFFDIO_REGISTER");
    }
}

void ram_make(struct ram *ram, const struct ram_options *options)
{
    *ram = (struct ram){.options = *options, .fd = -1, .uffd = -1, .socket = -1};
    for (uint32_t i = 0; i < options->region_count; i++)
        ram->pages += options->region_pages[i];
    open_file(ram);
    map_regions(ram);
    if (!options->bare) {
        open_uffd(ram);
        register_regions(ram);
    }
}

uint8_t *ram_page(const struct ram *ram, uint64_t page)
{
    uint32_t region = 0;

    while (page >= ram->options.region_pages[region])
        page -= ram->options.region_pages[region++];
    return ram->region_at[region] + page * PAGE_BYTES;
}

/* A call never crosses a region: its neighbour in the image may lie elsewhere. */
void ram_give_away(const struct ram *ram, uint64_t first, uint64_t count)
{
    uint64_t region_first = 0;

    for (uint32_t i = 0; i < ram->options.region_count && count > 0; i++) {
        uint64_t region_end = region_first + ram->options.region_pages[i];
        if (first < region_end) {
            uint64_t here = count < region_end - first ? count : region_end - first;
            if (madvise(ram_page(ram, first), here * PAGE_BYTES, MADV_DONTNEED) < 0)
                refused("MADV_DONTNEED");
            first += here;
            count -= here;
        }
        region_first = region_end;
    }
}

int ram_punch(const struct ram *ram, uint64_t first, uint64_t count)
{
    return fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(first * PAGE_BYTES),
                     (off_t)(count * PAGE_BYTES));
}

/* ------------------------------------------------------------------------------------------------------ hand-off */

/* The fields of each generation (Firecracker): page_size_kib, in bytes, came with 1.7, page_size with 1.12; 2.0 will
 * have dropped the first. */
static void write_sizes(const struct ram *ram, char *sizes, size_t sizes_bytes)
{
    const char *generation = ram->options.generation;
    unsigned long long bytes = page_size(ram);

    if (strcmp(generation, "1.1") == 0) {
        sizes[0] = '\0';
    } else if (strcmp(generation, "1.7") == 0) {
        snprintf(sizes, sizes_bytes, ",\"page_size_kib\":%llu", bytes);
    } else if (strcmp(generation, "1.12") == 0) {
        snprintf(sizes, sizes_bytes, ",\"page_size\":%llu,\"page_size_kib\":%llu", bytes, bytes);
    } else if (strcmp(generation, "2.0") == 0) {
        snprintf(sizes, sizes_bytes, ",\"page_size\":%llu", bytes);
    } else {
        errno = EINVAL;
        refused("generation of the handshake");
    }
}

static int write_layout(const struct ram *ram, char *json, size_t json_bytes)
{
    char sizes[96];
    uint64_t offset = 0;
    int used = 0;

    write_sizes(ram, sizes, sizeof(sizes));
    for (uint32_t i = 0; i < ram->options.region_count; i++) {
        uint64_t length = ram->options.region_pages[i] * PAGE_BYTES;
        used += snprintf(json + used, json_bytes - (size_t)used,
                         "%c{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64 ",\"offset\":%" PRIu64 "%s}",
                         i == 0 ? '[' : ',', (uint64_t)(uintptr_t)ram->region_at[i], length, offset, sizes);
        offset += length;
    }
    used += snprintf(json + used, json_bytes - (size_t)used, "]");
    return used;
}

/* Up to 1.11 the socket is closed at once; later ones keep it for their life. */
static bool keeps_socket(const struct ram *ram)
{
    return strcmp(ram->options.generation, "1.12") == 0 || strcmp(ram->options.generation, "2.0") == 0;
}

static int dial(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        refused("Failed to connect to UDS Unix stream");
    return fd;
}

void ram_hand_over(struct ram *ram)
{
    static char json[JSON_BYTES];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    int fds[2] = {ram->uffd, ram->fd};
    size_t fd_bytes = ram->fd >= 0 ? sizeof(fds) : sizeof(fds[0]);
    struct iovec part = {.iov_base = json, .iov_len = (size_t)write_layout(ram, json, sizeof(json))};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    struct cmsghdr *rights = &control.header;

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fd_bytes);
    memcpy(CMSG_DATA(rights), fds, fd_bytes);
    message.msg_controllen = CMSG_SPACE(fd_bytes);
    ram->socket = dial(ram->options.handoff);
    if (sendmsg(ram->socket, &message, MSG_NOSIGNAL) != (ssize_t)part.iov_len)
        refused("sendmsg of the hand-off");
    if (!keeps_socket(ram)) {
        close(ram->socket);
        ram->socket = -1;
    }
}
