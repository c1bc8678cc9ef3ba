/* SPDX-License-Identifier: Apache-2.0 */
/* Linux as one side of the comparison: see kernel_side.h. Somebody else than the VMM is this process. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kernel/uapi.h"
#include "kernel_side.h"

#define PATIENCE_S 20
#define SMALL_TMPFS "64k"
#define SMALL_POOL "16m"
#define WORDS (REAL_PAGE / sizeof(uint64_t))

static bool huge(const struct side *side)
{
    return side->unit_pages > 1;
}

static uint64_t unit_bytes(const struct side *side)
{
    return side->unit_pages * REAL_PAGE;
}

static bool open_real(struct side *side)
{
    struct real_options options = {.memory = side->memory};

    side->unit_pages = real_is_huge(side->memory) ? REAL_HUGE_PAGES : 1;
    options.pages = SIDE_PAGES * side->unit_pages;
    if (side->announced)
        options.features = UFFD_FEATURE_EVENT_REMOVE;
    if (side->small) {
        options.backing_fd =
            huge(side) ? real_hugetlbfs_file(SMALL_POOL) : real_tmpfs_file(SMALL_TMPFS, NULL, NULL);
        if (options.backing_fd < 0 || ftruncate(options.backing_fd, (off_t)(SIDE_PAGES * unit_bytes(side))) < 0)
            return false;
    }
    if (!real_start(&side->real, &options))
        return false;
    side->kernel = &side->real.uffd;
    side->address = side->real.address;
    return true;
}

static void close_real(struct side *side)
{
    real_end(&side->real);
}

/* --------------------------------------------------------------------------------------------------------- threads */

static void begin_real(struct side *side, struct side_access *access)
{
    uint64_t page = access->page * side->unit_pages + (access->last ? side->unit_pages - 1 : 0);

    access->thread = real_begin(&side->real, access->write ? REAL_WRITE : REAL_READ, page,
                                access->write ? side->unit_pages : 1, (int64_t)access->word);
}

/* Takes every answer that is there; the number of accesses that gave none yet. */
static uint64_t collect(struct side *side)
{
    uint64_t ticket, open = 0;
    int64_t answer;

    while (real_ended(&side->real, &ticket, &answer)) {
        for (uint32_t i = 0; i < side->access_count; i++)
            if (side->accesses[i].thread == ticket) {
                side->accesses[i].ended = true;
                side->accesses[i].answer = answer;
            }
        if (side->removal_waits && side->removal == ticket) {
            side->removal_waits = side->removal_read = false;
            side->removal_answer = answer;
        }
    }
    for (uint32_t i = 0; i < side->access_count; i++)
        open += !side->accesses[i].ended;
    return open;
}

/* Who has neither ended nor sleeps is on its way, and will do the one or the other. */
static bool settle_real(struct side *side)
{
    const struct timespec pause = {.tv_nsec = 50000};
    struct timespec start, now;

    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        uint64_t asleep = side->exited ? 0 : real_asleep(&side->real);
        if (side->exited || (collect(side) == asleep && !side->removal_read))
            return true;
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec - start.tv_sec < PATIENCE_S);
    return false;
}

/* ------------------------------------------------------------------------------------------------------------ acts */

static int64_t result_of(long rc)
{
    return rc < 0 ? -errno : 0;
}

static int64_t one_word(const volatile uint64_t *words)
{
    uint64_t first = words[0];

    for (uint64_t i = 1; i < WORDS; i++)
        if (words[i] != first)
            return REAL_TORN;
    return (int64_t)first;
}

/* A file on a pool does not tell its holes from zeros. */
static int64_t look_up(const struct side *side, int file, uint64_t page)
{
    _Alignas(8) uint64_t words[WORDS];
    off_t offset = (off_t)(page * unit_bytes(side));

    if (!huge(side) && lseek(file, offset, SEEK_DATA) != offset)
        return SIDE_HOLE;
    if (pread(file, words, sizeof(words), offset) != (ssize_t)sizeof(words))
        return huge(side) ? 0 : -errno; /* behind its end there is a hole too */
    return one_word(words);
}

static int64_t read_alias(const struct side *side, int file, uint64_t page)
{
    uint64_t bytes = unit_bytes(side);
    void *alias = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, (off_t)(page * bytes));
    int64_t word;

    if (alias == MAP_FAILED)
        return -errno;
    word = one_word(alias);
    munmap(alias, bytes);
    return word;
}

/* Which takes no pwrite where it lies on a pool. */
static int64_t write_file(const struct side *side, int file, uint64_t page, uint64_t count, uint64_t word)
{
    uint64_t words[WORDS];

    for (uint64_t i = 0; huge(side) && i < count; i++) {
        void *alias = mmap(NULL, REAL_HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, (off_t)((page + i) * REAL_HUGE_BYTES));
        if (alias == MAP_FAILED)
            return -errno;
        real_fill(alias, REAL_HUGE_PAGES, word + i);
        munmap(alias, REAL_HUGE_BYTES);
    }
    for (uint64_t i = 0; !huge(side) && i < count; i++) {
        real_fill(words, 1, word + i);
        if (pwrite(file, words, sizeof(words), (off_t)((page + i) * REAL_PAGE)) != (ssize_t)sizeof(words))
            return -errno;
    }
    return 0;
}

static int64_t map_silently(struct side *side, uint64_t page)
{
    struct uffdio_range range = {.start = side->address + page * unit_bytes(side), .len = unit_bytes(side)};
    struct uffdio_continue shared = {.range = range, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};
    struct uffdio_zeropage zeros = {.range = range, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE};

    struct uffdio_copy huge_zeros = {.dst = range.start, .src = (uintptr_t)side->real.uffd.view.zeros,
                                     .len = range.len, .mode = UFFDIO_COPY_MODE_DONTWAKE};

    if (side->memory == REAL_HUGE_PRIVATE)
        ioctl(side->real.uffd.fd, UFFDIO_COPY, &huge_zeros);
    else if (side->memory == REAL_PRIVATE)
        ioctl(side->real.uffd.fd, UFFDIO_ZEROPAGE, &zeros); /* what is there may stay */
    else
        ioctl(side->real.uffd.fd, UFFDIO_CONTINUE, &shared);
    return 0;
}

/* The event is queued a moment after the call begins; nothing else is unread then. */
static int64_t advise(struct side *side, uint64_t page, uint64_t count, int advice)
{
    page *= side->unit_pages;
    count *= side->unit_pages;
    if (!side->announced)
        return real_do(&side->real, REAL_ADVISE, page, count, advice);
    side->removal = real_begin(&side->real, REAL_ADVISE, page, count, advice);
    side->removal_waits = true;
    return real_event_waits(&side->real) ? SIDE_WAITS : REAL_NO_ANSWER;
}

/* Pages behind the guest's take what room there is. */
static int64_t fill_up(const struct side *side, int file)
{
    uint64_t page = SIDE_PAGES, bytes = unit_bytes(side);

    while (fallocate(file, FALLOC_FL_KEEP_SIZE, (off_t)(page * bytes), (off_t)bytes) == 0)
        page++;
    return errno == ENOSPC ? 0 : -errno;
}

static int64_t punch_file(const struct side *side, int file, uint64_t page, uint64_t count)
{
    return result_of(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * unit_bytes(side)),
                               (off_t)(count * unit_bytes(side))));
}

static int64_t end_vmm(struct side *side)
{
    real_kill(&side->real);
    side->exited = true;
    return 0;
}

static int64_t act_on_file(const struct side *side, enum side_act act, uint64_t page, uint64_t count, uint64_t word)
{
    int file = side->real.uffd.backing_fd;
    off_t offset = (off_t)(page * unit_bytes(side));

    switch (act) {
    case ACT_DISCARD:
        return punch_file(side, file, page, count);
    case ACT_FOREIGN:
        return write_file(side, file, page, count, word);
    case ACT_ALLOCATE:
        return result_of(fallocate(file, FALLOC_FL_KEEP_SIZE, offset, (off_t)(count * unit_bytes(side))));
    case ACT_ALIAS:
        return read_alias(side, file, page);
    case ACT_CACHE:
        return look_up(side, file, page);
    case ACT_CUT:
        return result_of(ftruncate(file, offset));
    case ACT_FULL:
        return fill_up(side, file);
    case ACT_ROOM:
        return punch_file(side, file, SIDE_PAGES, 64);
    default:
        return -ENOSYS;
    }
}

static int64_t act_real(struct side *side, enum side_act act, uint64_t page, uint64_t count, uint64_t word)
{
    struct kernel_span span = real_span(&side->real, page * side->unit_pages, count * side->unit_pages);

    switch (act) {
    case ACT_DONTNEED:
        return advise(side, page, count, MADV_DONTNEED);
    case ACT_REMOVE:
        return advise(side, page, count, MADV_REMOVE);
    case ACT_RECLAIM:
        return real_do(&side->real, REAL_ADVISE, page * side->unit_pages, count * side->unit_pages, MADV_DONTNEED);
    case ACT_SILENT:
        return map_silently(side, page);
    case ACT_UNREGISTER:
        return uffd_unregister(&side->real.uffd, &span);
    case ACT_UNMAP:
        return real_do(&side->real, REAL_UNMAP, page * side->unit_pages, count * side->unit_pages, 0);
    case ACT_EXIT:
        return end_vmm(side);
    default:
        return act_on_file(side, act, page, count, word);
    }
}

const struct side_calls side_real = {
    .open = open_real,
    .close = close_real,
    .ops = &uffd_kernel_ops,
    .begin = begin_real,
    .settle = settle_real,
    .act = act_real,
};
