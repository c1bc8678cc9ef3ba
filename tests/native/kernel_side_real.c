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
#define WORDS (REAL_PAGE / sizeof(uint64_t))

static bool open_real(struct side *side)
{
    struct real_options options = {.memory = side->memory, .pages = SIDE_PAGES};

    if (side->announced)
        options.features = UFFD_FEATURE_EVENT_REMOVE;
    if (side->small) {
        options.backing_fd = real_tmpfs_file(SMALL_TMPFS, NULL, NULL);
        if (options.backing_fd < 0 || ftruncate(options.backing_fd, SIDE_PAGES * REAL_PAGE) < 0)
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
    access->thread = real_begin(&side->real, access->write ? REAL_WRITE : REAL_READ, access->page, 1,
                                (int64_t)access->word);
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

static int64_t look_up(int file, uint64_t page)
{
    _Alignas(8) uint64_t words[WORDS];
    off_t offset = (off_t)(page * REAL_PAGE);

    if (lseek(file, offset, SEEK_DATA) != offset)
        return SIDE_HOLE;
    if (pread(file, words, sizeof(words), offset) != (ssize_t)sizeof(words))
        return -errno;
    return one_word(words);
}

static int64_t read_alias(int file, uint64_t page)
{
    void *alias = mmap(NULL, REAL_PAGE, PROT_READ, MAP_SHARED, file, (off_t)(page * REAL_PAGE));
    int64_t word;

    if (alias == MAP_FAILED)
        return -errno;
    word = one_word(alias);
    munmap(alias, REAL_PAGE);
    return word;
}

static int64_t write_file(int file, uint64_t page, uint64_t count, uint64_t word)
{
    uint64_t words[WORDS];

    for (uint64_t i = 0; i < count; i++) {
        real_fill(words, 1, word + i);
        if (pwrite(file, words, sizeof(words), (off_t)((page + i) * REAL_PAGE)) != (ssize_t)sizeof(words))
            return -errno;
    }
    return 0;
}

static int64_t map_silently(struct side *side, uint64_t page)
{
    struct uffdio_range range = {.start = side->address + page * REAL_PAGE, .len = REAL_PAGE};
    struct uffdio_continue shared = {.range = range, .mode = UFFDIO_CONTINUE_MODE_DONTWAKE};
    struct uffdio_zeropage zeros = {.range = range, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE};

    if (side->memory == REAL_PRIVATE)
        ioctl(side->real.uffd.fd, UFFDIO_ZEROPAGE, &zeros); /* what is there may stay */
    else
        ioctl(side->real.uffd.fd, UFFDIO_CONTINUE, &shared);
    return 0;
}

/* The event is queued a moment after the call begins; nothing else is unread then. */
static int64_t advise(struct side *side, uint64_t page, uint64_t count, int advice)
{
    if (!side->announced)
        return real_do(&side->real, REAL_ADVISE, page, count, advice);
    side->removal = real_begin(&side->real, REAL_ADVISE, page, count, advice);
    side->removal_waits = true;
    return real_event_waits(&side->real) ? SIDE_WAITS : REAL_NO_ANSWER;
}

/* Pages behind the guest's take what room there is. */
static int64_t fill_up(int file)
{
    uint64_t page = SIDE_PAGES;

    while (fallocate(file, FALLOC_FL_KEEP_SIZE, (off_t)(page * REAL_PAGE), REAL_PAGE) == 0)
        page++;
    return errno == ENOSPC ? 0 : -errno;
}

static int64_t punch_file(int file, uint64_t page, uint64_t count)
{
    return result_of(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * REAL_PAGE),
                               (off_t)(count * REAL_PAGE)));
}

static int64_t end_vmm(struct side *side)
{
    real_kill(&side->real);
    side->exited = true;
    return 0;
}

static int64_t act_on_file(int file, enum side_act act, uint64_t page, uint64_t count, uint64_t word)
{
    switch (act) {
    case ACT_DISCARD:
        return punch_file(file, page, count);
    case ACT_FOREIGN:
        return write_file(file, page, count, word);
    case ACT_ALLOCATE:
        return result_of(fallocate(file, FALLOC_FL_KEEP_SIZE, (off_t)(page * REAL_PAGE), (off_t)(count * REAL_PAGE)));
    case ACT_ALIAS:
        return read_alias(file, page);
    case ACT_CACHE:
        return look_up(file, page);
    case ACT_CUT:
        return result_of(ftruncate(file, (off_t)(page * REAL_PAGE)));
    case ACT_FULL:
        return fill_up(file);
    case ACT_ROOM:
        return punch_file(file, SIDE_PAGES, 64);
    default:
        return -ENOSYS;
    }
}

static int64_t act_real(struct side *side, enum side_act act, uint64_t page, uint64_t count, uint64_t word)
{
    struct kernel_span span = real_span(&side->real, page, count);

    switch (act) {
    case ACT_DONTNEED:
        return advise(side, page, count, MADV_DONTNEED);
    case ACT_REMOVE:
        return advise(side, page, count, MADV_REMOVE);
    case ACT_RECLAIM:
        return real_do(&side->real, REAL_ADVISE, page, count, MADV_DONTNEED);
    case ACT_SILENT:
        return map_silently(side, page);
    case ACT_UNREGISTER:
        return uffd_unregister(&side->real.uffd, &span);
    case ACT_UNMAP:
        return real_do(&side->real, REAL_UNMAP, page, count, 0);
    case ACT_EXIT:
        return end_vmm(side);
    default:
        return act_on_file(side->real.uffd.backing_fd, act, page, count, word);
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
