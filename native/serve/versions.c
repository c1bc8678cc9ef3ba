/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map of versions.h in a memfd: a header, a round a page, the newest round a group of pages.
 *
 * It holds at any instruction that this process may die at: `raising` says that pages and sum may differ; the
 * incarnation, the newest settled round and both in one word; `frozen` is written when everything before it
 * is there, and taken back before anything of it is undone.
 */
#include "versions.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "../gen/contract.h"

#define MAP_PAGE_BYTES UINT64_C(4096)
#define ROUND_MASK UINT64_C(0xffffffff)

_Static_assert(sizeof(struct versions_header) <= MAP_PAGE_BYTES, "the header has a page of its own");

static uint64_t group_count(uint64_t page_count)
{
    return (page_count + VERSIONS_GROUP_PAGES - 1) / VERSIONS_GROUP_PAGES;
}

static size_t map_bytes(uint64_t page_count)
{
    return MAP_PAGE_BYTES + (page_count + group_count(page_count)) * sizeof(uint32_t);
}

static uint64_t incarnation_bits(uint64_t version)
{
    return version & ~ROUND_MASK;
}

static manifest_sum sum_of_pages(const struct versions *versions)
{
    uint64_t bits = incarnation_bits(versions_as_of(versions));
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < versions->page_count; page++) {
        uint32_t round = atomic_load_explicit(&versions->rounds[page], memory_order_relaxed);
        sum += manifest_of(page, bits | round);
    }
    return sum;
}

/* --------------------------------------------------------------------------------------- made, taken over */

static uint64_t proof_of(const struct versions_header *header)
{
    uint64_t words[3] = {htole64(header->magic), htole64(header->page_count), htole64(header->content_id)};

    return XXH3_64bits(words, sizeof(words));
}

static int map_in(int fd, uint64_t page_count, struct versions *versions)
{
    size_t bytes = map_bytes(page_count);
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

    if (at == MAP_FAILED)
        return -errno;
    versions->header = (struct versions_header *)(void *)at;
    versions->rounds = (_Atomic uint32_t *)(void *)(at + MAP_PAGE_BYTES);
    versions->newest = versions->rounds + page_count;
    versions->page_count = page_count;
    versions->mapped_bytes = bytes;
    versions->fd = fd;
    return 0;
}

static bool fits(uint64_t page_count)
{
    return page_count != 0 && page_count <= PF_LIMIT_IMAGE_PAGES_MAX;
}

static void write_header(struct versions_header *header, uint64_t page_count, uint64_t content_id,
                         uint32_t incarnation)
{
    header->page_count = page_count;
    header->content_id = content_id;
    atomic_store(&header->settled, (uint64_t)incarnation << 32);
    atomic_store(&header->raising, 0);
    header->magic = VERSIONS_MAGIC;
    header->proof = proof_of(header);
}

int versions_create(uint64_t page_count, uint64_t content_id, uint32_t incarnation, struct versions *versions)
{
    int fd = -1, rc = 0;

    memset(versions, 0, sizeof(*versions));
    versions->fd = -1;
    if (!fits(page_count) || incarnation == 0 || incarnation > PF_LIMIT_INCARNATION_MAX)
        return -EINVAL;
    fd = memfd_create("pageferry-versions", MFD_CLOEXEC);
    if (fd < 0 || fallocate(fd, 0, 0, (off_t)map_bytes(page_count)) < 0)
        rc = -errno;
    if (rc == 0)
        rc = map_in(fd, page_count, versions);
    if (rc == 0)
        write_header(versions->header, page_count, content_id, incarnation);
    else if (fd >= 0)
        close(fd);
    return rc;
}

/* Whole: what is relied on is there and agrees. Of a map that was being raised only the header is relied on.
 * */
static bool proven(const struct versions *versions)
{
    struct versions_header *header = versions->header;
    uint64_t settled = atomic_load(&header->settled);
    bool frozen = atomic_load(&header->frozen) != 0;

    if (header->magic != VERSIONS_MAGIC || header->page_count != versions->page_count ||
        header->proof != proof_of(header) || settled >> 32 == 0 || settled >> 32 > PF_LIMIT_INCARNATION_MAX ||
        (settled & ROUND_MASK) > atomic_load(&header->begun))
        return false;
    if (frozen && (atomic_load(&header->raising) != 0 || (settled & ROUND_MASK) == 0))
        return false;
    return atomic_load(&header->raising) != 0 || sum_of_pages(versions) == header->sum;
}

/* The groups are not in the sum; they follow from the pages. */
static void find_newest(struct versions *versions)
{
    for (uint64_t group = 0; group < group_count(versions->page_count); group++)
        atomic_store_explicit(&versions->newest[group], 0, memory_order_relaxed);
    for (uint64_t page = 0; page < versions->page_count; page++) {
        uint32_t round = atomic_load_explicit(&versions->rounds[page], memory_order_relaxed);
        _Atomic uint32_t *newest = &versions->newest[page / VERSIONS_GROUP_PAGES];
        if (round > atomic_load_explicit(newest, memory_order_relaxed))
            atomic_store_explicit(newest, round, memory_order_relaxed);
    }
}

int versions_adopt(int fd, uint64_t page_count, struct versions *versions)
{
    struct stat facts;
    int rc;

    memset(versions, 0, sizeof(*versions));
    versions->fd = -1;
    if (!fits(page_count))
        return -EINVAL;
    if (fstat(fd, &facts) < 0)
        return -errno;
    if (facts.st_size < 0 || (uint64_t)facts.st_size != map_bytes(page_count))
        return -EPROTO;
    rc = map_in(fd, page_count, versions);
    if (rc < 0)
        return rc;
    if (!proven(versions))
        rc = -EPROTO;
    else if (versions_frozen(versions))
        find_newest(versions);
    else
        rc = versions_renew(versions);
    if (rc < 0) {
        munmap(versions->header, versions->mapped_bytes); /* the fd stays the caller's */
        memset(versions, 0, sizeof(*versions));
        versions->fd = -1;
    }
    return rc;
}

void versions_close(struct versions *versions)
{
    if (versions->header != NULL) {
        munmap(versions->header, versions->mapped_bytes);
        close(versions->fd);
    }
    memset(versions, 0, sizeof(*versions));
    versions->fd = -1;
}

/* ------------------------------------------------------------------------------------------------ readers */

uint64_t versions_as_of(const struct versions *versions)
{
    return atomic_load_explicit(&versions->header->settled, memory_order_acquire);
}

bool versions_frozen(const struct versions *versions)
{
    return atomic_load_explicit(&versions->header->frozen, memory_order_acquire) != 0;
}

static uint32_t round_of(const struct versions *versions, uint64_t page)
{
    return atomic_load_explicit(&versions->rounds[page], memory_order_acquire);
}

/* The incarnation first: with a newer one, the rounds of the older are gone already. */
uint64_t versions_of(const struct versions *versions, uint64_t page, uint64_t *end)
{
    uint64_t bits = incarnation_bits(versions_as_of(versions));
    uint32_t round = round_of(versions, page);
    uint64_t past = page + VERSIONS_GROUP_PAGES < *end ? page + VERSIONS_GROUP_PAGES : *end;
    uint64_t at = page + 1;

    while (at < past && round_of(versions, at) == round)
        at++;
    *end = at;
    return bits | round;
}

uint64_t versions_next_above(const struct versions *versions, uint64_t version, uint64_t page, uint64_t end)
{
    uint64_t bits = incarnation_bits(versions_as_of(versions));
    uint32_t since = (uint32_t)version;

    if (version < bits)
        return page < end ? page : end;
    if (incarnation_bits(version) > bits)
        return end;
    while (page < end) {
        uint64_t group = page / VERSIONS_GROUP_PAGES;
        uint64_t past = (group + 1) * VERSIONS_GROUP_PAGES < end ? (group + 1) * VERSIONS_GROUP_PAGES : end;
        if (atomic_load_explicit(&versions->newest[group], memory_order_acquire) > since) {
            for (; page < past; page++)
                if (round_of(versions, page) > since)
                    return page;
        }
        page = past;
    }
    return end;
}

/* ------------------------------------------------------------------------------------ the one that raises */

uint32_t versions_begin(struct versions *versions)
{
    uint32_t begun = atomic_load(&versions->header->begun);

    if (begun == UINT32_MAX)
        return 0;
    atomic_store(&versions->header->begun, begun + 1);
    return begun + 1;
}

void versions_raise(struct versions *versions, uint64_t first_page, uint64_t page_count, uint32_t round)
{
    struct versions_header *header = versions->header;
    uint64_t bits = incarnation_bits(versions_as_of(versions));
    manifest_sum sum = header->sum;

    atomic_store(&header->raising, 1);
    for (uint64_t page = first_page; page < first_page + page_count; page++) {
        uint32_t held = atomic_load_explicit(&versions->rounds[page], memory_order_relaxed);
        if (held < round) {
            sum += manifest_of(page, bits | round) - manifest_of(page, bits | held);
            atomic_store_explicit(&versions->rounds[page], round, memory_order_release);
            atomic_store_explicit(&versions->newest[page / VERSIONS_GROUP_PAGES], round, memory_order_release);
        }
    }
    header->sum = sum;
    atomic_store(&header->raising, 0);
}

void versions_settle(struct versions *versions, uint32_t round)
{
    uint64_t bits = incarnation_bits(versions_as_of(versions));

    atomic_store_explicit(&versions->header->settled, bits | round, memory_order_release);
}

void versions_freeze(struct versions *versions)
{
    atomic_store(&versions->header->frozen, 1);
}

/* Rounds first, the incarnation last: nobody sees an old round under a new incarnation. */
int versions_renew(struct versions *versions)
{
    struct versions_header *header = versions->header;
    uint64_t incarnation = (atomic_load(&header->settled) >> 32) + 1;

    if (incarnation > PF_LIMIT_INCARNATION_MAX)
        return -EOVERFLOW;
    atomic_store(&header->frozen, 0);
    atomic_store(&header->raising, 1);
    for (uint64_t page = 0; page < versions->page_count; page++)
        atomic_store_explicit(&versions->rounds[page], 0, memory_order_relaxed);
    for (uint64_t group = 0; group < group_count(versions->page_count); group++)
        atomic_store_explicit(&versions->newest[group], 0, memory_order_relaxed);
    header->sum = 0;
    atomic_store(&header->settled, incarnation << 32);
    atomic_store(&header->begun, 0);
    atomic_store(&header->raising, 0);
    return 0;
}

manifest_sum versions_sum(const struct versions *versions)
{
    return versions->header->sum;
}
