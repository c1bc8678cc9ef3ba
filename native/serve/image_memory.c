/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Live memory as an image: see image_memory.h. What the kernel shows of the VMM is looked at once, here,
 * before anybody relies on it; each refusal names its remedy.
 */
#include "image_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "arriving.h"
#include "sparse.h"

struct image_memory {
    struct image image; /* first: what the table's functions are given */
    int uffd;
    int pagemap_fd;
    struct arriving arriving;
    struct versions versions;
    struct holes holes;
    struct rounds_region regions[PF_LIMIT_REGIONS_MAX];
    struct rounds rounds;
    bool rounds_open;
};

static const struct image_memory *memory_of(const struct image *image)
{
    return (const struct image_memory *)image;
}

/* ---------------------------------------------------------------------------------------------- the table */

static int memory_read(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    int rc = sparse_read(image->fd, first_page * IMAGE_PAGE_BYTES, page_count * IMAGE_PAGE_BYTES, bytes);

    return image_read_said(rc, page_count);
}

static enum image_standing memory_standing(const struct image *image, uint64_t page, uint64_t *end)
{
    return arriving_standing(&memory_of(image)->arriving, page, end);
}

static bool memory_may_hold_data(const struct image *image, uint64_t page)
{
    return holes_may_hold_data(&memory_of(image)->holes, page);
}

static uint64_t memory_alike_end(const struct image *image, uint64_t page, uint64_t end)
{
    return holes_alike_end(&memory_of(image)->holes, page, end);
}

static uint64_t memory_version(const struct image *image, uint64_t page, uint64_t *end)
{
    return versions_of(&memory_of(image)->versions, page, end);
}

static uint64_t memory_next_above(const struct image *image, uint64_t version, uint64_t page, uint64_t end)
{
    return versions_next_above(&memory_of(image)->versions, version, page, end);
}

static void memory_close(struct image *image)
{
    struct image_memory *memory = (struct image_memory *)image;

    if (memory->rounds_open)
        rounds_close(&memory->rounds);
    holes_close(&memory->holes);
    versions_close(&memory->versions);
    arriving_close(&memory->arriving);
    lost_close(&image->lost);
    if (memory->pagemap_fd >= 0)
        close(memory->pagemap_fd);
    if (memory->uffd >= 0)
        close(memory->uffd);
    if (image->fd >= 0)
        close(image->fd);
    free(memory);
}

static const struct image_ops memory_ops = {
    .read = memory_read,
    .standing = memory_standing,
    .may_hold_data = memory_may_hold_data,
    .alike_end = memory_alike_end,
    .version = memory_version,
    .next_above = memory_next_above,
    .close = memory_close,
};

/* ------------------------------------------------------------------------------------ what is handed over */

/* A sentence, and minus the reason: for an errno of the calls that look at a VMM. */
static int cannot_look(int rc, const char *what, char *error, size_t error_bytes)
{
    int reason = PF_REASON_BUG;

    if (rc == -ESRCH) {
        reason = PF_REASON_NO_VMM;
        sparse_explain(error, error_bytes, "the VMM has exited: start it again");
    } else if (rc == -EACCES || rc == -EPERM) {
        reason = PF_REASON_NOT_ALLOWED;
        sparse_explain(error, error_bytes,
                       "%s of the VMM cannot be looked at: run the page server as its user or with CAP_SYS_PTRACE", what);
    } else if (rc == -ENOTTY) {
        reason = PF_REASON_UNSUPPORTED;
        sparse_explain(error, error_bytes, "this kernel has no PAGEMAP_SCAN: use Linux 6.7 or later");
    } else if (rc == -ENOMEM || rc == -EMFILE || rc == -ENFILE) {
        reason = PF_REASON_NO_MEMORY;
        sparse_explain(error, error_bytes, "no memory or file descriptors left: %s", strerror(-rc));
    } else {
        sparse_explain(error, error_bytes, "%s of the VMM cannot be looked at: %s", what, strerror(-rc));
    }
    return -reason;
}

static int set_ram(struct image *image, const struct image_memory_request *request, char *error, size_t error_bytes)
{
    struct statfs system;
    int rc = sparse_check(request->ram_fd, &image->page_count, error, error_bytes);

    if (rc != 0)
        return rc;
    if (fstatfs(request->ram_fd, &system) < 0 || (unsigned long)system.f_type != TMPFS_MAGIC) {
        sparse_explain(error, error_bytes, "the RAM file is on no tmpfs: live memory must be a memfd or a file on tmpfs, "
                       "without huge pages of hugetlbfs");
        return -PF_REASON_UNSUPPORTED;
    }
    image->fd = fcntl(request->ram_fd, F_DUPFD_CLOEXEC, 0);
    return image->fd < 0 ? cannot_look(-errno, "the RAM file", error, error_bytes) : 0;
}

static int set_regions(struct image_memory *memory, const struct image_memory_request *request, char *error,
                       size_t error_bytes)
{
    uint64_t region_pages[PF_LIMIT_REGIONS_MAX] = {0};
    uint64_t page = 0;

    for (uint32_t i = 0; i < request->region_count && i < PF_LIMIT_REGIONS_MAX; i++) {
        const struct pageferry_region *region = &request->regions[i];
        if ((region->address | region->length_bytes) % IMAGE_PAGE_BYTES != 0 ||
            region->address + region->length_bytes < region->address || region->offset_bytes / IMAGE_PAGE_BYTES != page ||
            region->offset_bytes % IMAGE_PAGE_BYTES != 0) {
            sparse_explain(error, error_bytes, "region %u is not of whole pages, or does not follow the one before", i);
            return -PF_REASON_BAD_REQUEST;
        }
        region_pages[i] = region->length_bytes / IMAGE_PAGE_BYTES;
        memory->regions[i] = (struct rounds_region){region->address, page, region_pages[i]};
        page += region_pages[i];
    }
    return image_set_regions(&memory->image, region_pages, request->region_count, error, error_bytes);
}

/* Everything is tracked that the guest can write through, as far as the VMM's own process goes. */
static int check_tracking(struct image_memory *memory, const struct image_memory_request *request, char *error,
                          size_t error_bytes)
{
    struct scan_mapping mappings[PF_LIMIT_REGIONS_MAX];
    int rc;

    for (uint32_t i = 0; i < request->region_count; i++) {
        const struct pageferry_region *region = &request->regions[i];
        mappings[i] = (struct scan_mapping){region->address, region->length_bytes, region->offset_bytes};
        rc = scan_covered(memory->pagemap_fd, region->address, region->address + region->length_bytes);
        if (rc < 0)
            return cannot_look(rc, "the memory", error, error_bytes);
        if (rc == 0) {
            sparse_explain(error, error_bytes, "region %u is not registered for asynchronous write protection, or not all "
                           "of it: start the VMM under the shim with PAGEFERRY_SHIM_ROLE=%s", i,
                           request->arriving_fd < 0 ? "track" : "both");
            return -PF_REASON_MISMATCH;
        }
    }
    rc = scan_mapped(request->pid, request->ram_fd, mappings, request->region_count);
    if (rc == -EXDEV)
        sparse_explain(error, error_bytes, "the VMM has not mapped this RAM file, shared, where it says");
    else if (rc == -EBUSY)
        sparse_explain(error, error_bytes, "the VMM has mapped its RAM a second time, where writes would not be seen: "
                       "start it without what does that");
    else if (rc < 0)
        return cannot_look(rc, "the mappings", error, error_bytes);
    return rc == -EXDEV ? -PF_REASON_MISMATCH : rc == -EBUSY ? -PF_REASON_UNSUPPORTED : 0;
}

static int set_tracking(struct image_memory *memory, const struct image_memory_request *request, char *error,
                        size_t error_bytes)
{
    if (request->pid <= 0) {
        sparse_explain(error, error_bytes,
                       "the VMM is in another PID namespace, where its writes cannot be seen: share the namespace");
        return -PF_REASON_UNSUPPORTED;
    }
    memory->uffd = fcntl(request->uffd, F_DUPFD_CLOEXEC, 0);
    if (memory->uffd < 0)
        return cannot_look(-errno, "the userfaultfd", error, error_bytes);
    memory->pagemap_fd = scan_open(request->pid, request->pidfd);
    if (memory->pagemap_fd < 0)
        return cannot_look(memory->pagemap_fd, "the memory", error, error_bytes);
    return check_tracking(memory, request, error, error_bytes);
}

static int set_arriving(struct image_memory *memory, const struct image_memory_request *request, char *error,
                        size_t error_bytes)
{
    int rc = 0;

    if (request->arriving_fd >= 0)
        rc = arriving_open(request->arriving_fd, memory->image.page_count, &memory->arriving);
    if (rc == -EPROTO) {
        sparse_explain(error, error_bytes, "the page table that came with the VM is none of this memory, or of another "
                       "version: let the fault client and the page server be of the same release");
        return -PF_REASON_MISMATCH;
    }
    return rc < 0 ? cannot_look(rc, "the page table", error, error_bytes) : 0;
}

/* ------------------------------------------------------------------------------------ versions and rounds */

static int set_versions(struct image_memory *memory, const struct image_memory_request *request, char *error,
                        size_t error_bytes)
{
    uint64_t page_count = memory->image.page_count;
    int fd = -1, rc;

    if (request->versions_fd < 0) {
        rc = versions_create(page_count, request->content_id, request->incarnation, &memory->versions);
    } else {
        fd = fcntl(request->versions_fd, F_DUPFD_CLOEXEC, 0);
        rc = fd < 0 ? -errno : versions_adopt(fd, page_count, &memory->versions);
        if (rc < 0 && fd >= 0)
            close(fd);
    }
    if (rc == -EPROTO || rc == -EOVERFLOW) {
        sparse_explain(error, error_bytes, "the map of versions of the server before cannot be relied on: %s",
                       rc == -EPROTO ? "it is damaged, or of another image" : "it has been taken over too often");
        return -PF_REASON_MISMATCH;
    }
    if (rc < 0)
        return cannot_look(rc, "the map of versions", error, error_bytes);
    memory->image.content_id = memory->versions.header->content_id;
    return 0;
}

static int set_rounds(struct image_memory *memory, const struct image_memory_request *request, char *error,
                      size_t error_bytes)
{
    struct image *image = &memory->image;
    int rc = holes_open(&memory->holes, image->fd, image->page_count);

    if (rc == 0)
        rc = lost_open(&image->lost, image->page_count, true);
    if (rc == 0)
        rc = rounds_open(&memory->rounds, &scan_calls, memory->pagemap_fd, memory->regions, image->region_count,
                         &memory->versions, &memory->holes, &image->as_of);
    if (rc < 0)
        return cannot_look(rc, "the RAM file", error, error_bytes);
    memory->holes.arriving = &memory->arriving;
    memory->rounds.drops_untold = request->drops_untold;
    memory->rounds.lost = &image->lost;
    memory->rounds_open = true;
    image->rounds = &memory->rounds;
    return 0;
}

int image_memory_open(const struct image_memory_request *request, struct image **out, char *error, size_t error_bytes)
{
    struct image_memory *memory = calloc(1, sizeof(*memory));
    int rc;

    *out = NULL;
    if (memory == NULL)
        return cannot_look(-ENOMEM, "the image", error, error_bytes);
    memory->image.ops = &memory_ops;
    memory->image.live = true;
    memory->image.fd = memory->uffd = memory->pagemap_fd = -1;
    rc = image_set_name(&memory->image, request->name, error, error_bytes);
    if (rc == 0)
        rc = set_ram(&memory->image, request, error, error_bytes);
    if (rc == 0)
        rc = set_regions(memory, request, error, error_bytes);
    if (rc == 0)
        rc = set_tracking(memory, request, error, error_bytes);
    if (rc == 0)
        rc = set_arriving(memory, request, error, error_bytes);
    if (rc == 0)
        rc = set_versions(memory, request, error, error_bytes);
    if (rc == 0)
        rc = set_rounds(memory, request, error, error_bytes);
    if (rc == 0)
        *out = &memory->image;
    else
        memory_close(&memory->image);
    return rc;
}

int image_memory_arrived(struct image *image)
{
    struct image_memory *memory = (struct image_memory *)image;
    uint64_t end = image->page_count;

    if (arriving_standing(&memory->arriving, 0, &end) != IMAGE_HERE || end != image->page_count)
        return -PF_REASON_WRONG_PHASE;
    return rounds_protect_alone(&memory->rounds, memory->uffd);
}

manifest_sum image_memory_manifest(const struct image *image)
{
    return versions_sum(&memory_of(image)->versions);
}

int image_memory_versions_fd(const struct image *image)
{
    return memory_of(image)->versions.fd;
}
