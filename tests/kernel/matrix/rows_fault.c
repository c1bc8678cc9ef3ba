/* SPDX-License-Identifier: Apache-2.0 */
/* Which access meets which fault, and what fills a page: section b of the kernel facts. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "matrix.h"

/* A read of page 1; what it meets is resolved by the call that fits, and what it has read is said. */
static void read_and_resolve(struct bed *bed)
{
    struct actor actor;
    const char *met = meets(bed, &actor, ACT_READ, 1);

    say(bed, "%s", met);
    if (strcmp(met, "MISSING") == 0)
        say(bed, "COPY %s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    if (strcmp(met, "MINOR") == 0)
        say(bed, "CONTINUE %s", word(fill_continue(bed, 1, 1, 0, NULL)));
    say(bed, "%s", ends(&actor));
}

static void meet(struct bed *bed, uint64_t modes, bool cached)
{
    if (cached && !has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    if (cached)
        put_data(bed, 1);
    if (start(bed, SYNC, modes))
        read_and_resolve(bed);
}

static void missing_absent(struct bed *bed)
{
    meet(bed, MISSING, false);
}

static void missing_cached(struct bed *bed)
{
    meet(bed, MISSING, true);
}

static void minor_absent(struct bed *bed)
{
    meet(bed, MINOR, false);
}

static void minor_cached(struct bed *bed)
{
    meet(bed, MINOR, true);
}

static void both_absent(struct bed *bed)
{
    meet(bed, MISSING | MINOR, false);
}

static void both_cached(struct bed *bed)
{
    meet(bed, MISSING | MINOR, true);
}

static void wp_absent(struct bed *bed)
{
    meet(bed, WP, false);
}

static void present_before(struct bed *bed)
{
    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    if (start(bed, 0, MISSING))
        read_and_resolve(bed);
}

static void allocated(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    if (fallocate(bed->fd, 0, 0, (off_t)bed->bytes) < 0)
        say(bed, "fallocate %s", word(-errno));
    else if (start(bed, 0, MISSING | MINOR))
        read_and_resolve(bed);
}

/* A read through any mapping brings a page of zeros into the file. */
static void touched_elsewhere(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (*(volatile uint8_t *)(bed->alias + bed->page) == ZEROS && start(bed, 0, MISSING | MINOR))
        read_and_resolve(bed);
}

static void looked_for_elsewhere(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (file_has(bed, 1) == ZEROS && start(bed, 0, MISSING | MINOR))
        read_and_resolve(bed);
}

static void by_the_kernel(struct bed *bed)
{
    struct actor actor;

    if (!start(bed, 0, MISSING))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_SEND, 1));
    say(bed, "COPY %s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    say(bed, "%s", ends(&actor));
}

static void where_it_is_said_to_be(struct bed *bed, uint64_t features)
{
    struct actor actor;
    struct uffd_msg message = {0};
    struct bed inner = *bed;

    if (!start(bed, features, MISSING))
        return;
    inner.uffd = bed->uffd;
    inner.area += bed->page / 2 + 5; /* an odd byte in the middle of page 1 */
    begin(&inner, &actor, ACT_READ, 1);
    next_event(&actor, bed->uffd, &message);
    say(bed, "%s", message.arg.pagefault.address == (uintptr_t)at(bed, 1)        ? "the page"
                   : message.arg.pagefault.address == (uintptr_t)at(&inner, 1) ? "the byte" : "elsewhere");
    say(bed, "%s", message.arg.pagefault.feat.ptid == (uint32_t)actor.tid ? "its thread" : "no thread");
    fill_copy(bed, bed->uffd, 1, 0, NULL);
    ends(&actor);
}

static void address(struct bed *bed)
{
    where_it_is_said_to_be(bed, 0);
}

static void exact_address(struct bed *bed)
{
    where_it_is_said_to_be(bed, UFFD_FEATURE_EXACT_ADDRESS | UFFD_FEATURE_THREAD_ID);
}

static void by_signal(struct bed *bed)
{
    if (!start(bed, UFFD_FEATURE_SIGBUS, MISSING))
        return;
    say(bed, "%s", reads(bed, 1));
    say(bed, "COPY %s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    say(bed, "%s", reads(bed, 1));
}

static const struct row fault_rows_table[] = {
    {"b-missing-absent", "MISSING registered, nothing there", missing_absent,
     {.all = "MISSING, COPY ok, copy"},
     "private memory: MISSING, COPY", NULL, false},
    {"b-missing-cached", "MISSING registered, page in the cache", missing_cached,
     {.all = "none, data", .anon = "no cache", .huge_anon = "no cache"},
     "MISSING alone lets half-written pages be read: both are registered", NULL, false},
    {"b-minor-absent", "MINOR registered, nothing there", minor_absent,
     {.all = "none, zeros", .anon = "REGISTER EINVAL"},
     "MINOR alone fills holes with zeros: both", NULL, false},
    {"b-minor-cached", "MINOR registered, page in the cache", minor_cached,
     {.all = "MINOR, CONTINUE ok, data", .anon = "no cache", .huge_anon = "no cache"},
     NULL, "minor", false},
    {"b-both-absent", "both registered, nothing there", both_absent,
     {.all = "MISSING, COPY ok, copy", .anon = "REGISTER EINVAL"},
     "page.h: the flavour is a hint", NULL, false},
    {"b-both-cached", "both registered, page in the cache", both_cached,
     {.all = "MINOR, CONTINUE ok, data", .anon = "no cache", .huge_anon = "no cache"},
     "page.h: CACHED + FAULT, MAP", "minor", false},
    {"b-wp-absent", "WP registered, nothing there", wp_absent,
     {.all = "none, zeros"},
     "role `track`: nobody waits", NULL, false},
    {"b-present", "MISSING registered, page mapped before", present_before,
     {.all = "none, write"},
     "nothing may be present at the hand-off", NULL, false},
    {"b-allocated", "both registered, fallocate()d and never written", allocated,
     {.all = "MINOR, CONTINUE ok, zeros", .anon = "no cache", .huge_anon = "no cache"},
     "MINOR does not mean valid: the table does", NULL, false},
    {"b-touched", "both registered, a hole was read through another mapping", touched_elsewhere,
     {.all = "MINOR, CONTINUE ok, zeros", .anon = "no file", .huge_anon = "no file"},
     "holes are never touched", NULL, false},
    {"b-looked", "both registered, a hole was read by pread", looked_for_elsewhere,
     {.all = "MISSING, COPY ok, copy", .anon = "no file", .huge_anon = "no file"},
     "holes are found by SEEK_DATA and pread", NULL, false},
    {"b-kernel", "MISSING registered, the kernel reads it for write(2)", by_the_kernel,
     {.all = "MISSING, COPY ok, ok"},
     "a VMM's own calls wait too", NULL, false},
    {"b-address", "address and thread of a fault", address,
     {.all = "the page, no thread"},
     "region.c: page start", NULL, false},
    {"b-exact", "the same with EXACT_ADDRESS and THREAD_ID", exact_address,
     {.all = "the byte, its thread"},
     NULL, NULL, false},
    {"b-signal", "FEATURE_SIGBUS, nothing there; then COPY", by_signal,
     {.all = "SIGBUS, COPY ok, copy"},
     NULL, "sigbus", false},
};
ROWS(fault_rows, "Which fault is met");

/* ------------------------------------------------------------------------------------------------------------ fills */

static void copy_twice(struct bed *bed)
{
    int64_t done = 0;

    if (!start(bed, 0, MISSING))
        return;
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, &done)));
    say(bed, "%s", reads(bed, 1));
}

static void copy_over_cache(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    put_data(bed, 1);
    if (!start(bed, 0, MISSING))
        return;
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    say(bed, "%s", reads(bed, 1));
}

/* Page 1 was reserved; a hole at page 2 was read through another mapping. False: there is no file, which has been said. */
static bool make_room(struct bed *bed)
{
    bool made = has_file(bed) && fallocate(bed->fd, 0, (off_t)bed->page, (off_t)bed->page) == 0 &&
                *(volatile uint8_t *)(bed->alias + 2 * bed->page) == ZEROS;

    if (!made)
        say(bed, has_file(bed) ? "no room" : "no file");
    return made;
}

static void look_for_room(struct bed *bed)
{
    struct stat facts;

    if (!make_room(bed))
        return;
    for (off_t page = 1; page <= 2; page++)
        say(bed, lseek(bed->fd, page * (off_t)bed->page, SEEK_DATA) == page * (off_t)bed->page ? "data" : "hole");
    say(bed, "%d allocated", fstat(bed->fd, &facts) < 0 ? -1 : (int)((size_t)facts.st_blocks * 512 / bed->page));
}

static void copy_over_room(struct bed *bed)
{
    if (!make_room(bed) || !start(bed, 0, MISSING))
        return;
    for (size_t page = 1; page <= 2; page++)
        say(bed, "%s", word(fill_copy(bed, bed->uffd, page, 0, NULL)));
    say(bed, "%s", reads(bed, 1));
}

static void zero_a_hole(struct bed *bed)
{
    if (!start(bed, 0, MISSING))
        return;
    say(bed, "%s", word(fill_zero(bed, 1, NULL)));
    if (has_file(bed) && !is_huge(bed))
        say(bed, "file has %s", lseek(bed->fd, 0, SEEK_DATA) < 0 ? "a hole" : "a page");
}

static void zero_over_cache(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    put_data(bed, 1);
    if (!start(bed, 0, MISSING))
        return;
    say(bed, "%s", word(fill_zero(bed, 1, NULL)));
    say(bed, "%s", reads(bed, 1));
}

static void copy_past_the_end(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!start(bed, 0, MISSING) || ftruncate(bed->fd, (off_t)bed->page) < 0)
        return;
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
}

struct move {
    uint64_t dst, src, len, mode;
    int64_t moved;
};
#define UFFDIO_MOVE_CALL _IOWR(UFFDIO, 0x05, struct move)

static void move_in(struct bed *bed)
{
    void *from = mmap(NULL, bed->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct move arg = {.dst = (uintptr_t)at(bed, 1), .src = (uintptr_t)from, .len = bed->page};

    memset(from, COPIED, bed->page);
    if (start(bed, 0, MISSING))
        say(bed, "%s", word(ioctl(bed->uffd, UFFDIO_MOVE_CALL, &arg) < 0 ? -errno : 0));
}

static const struct row fill_rows_table[] = {
    {"b-copy-twice", "COPY onto nothing, then once more", copy_twice,
     {.all = "ok, EEXIST, copy"},
     "PLACE: COPY cannot overwrite", NULL, false},
    {"b-copy-cached", "COPY onto a page in the cache", copy_over_cache,
     {.all = "EEXIST, data", .anon = "no cache", .memfd_private = "ok, copy", .huge_anon = "no cache",
      .huge_private = "ok, copy"},
     "PLACE: EEXIST of COPY is not \"mapped\"", NULL, false},
    {"b-room", "SEEK_DATA of a page fallocate()d, of one read through another mapping; st_blocks", look_for_room,
     {.all = "hole, data, 2 allocated", .anon = "no file", .huge_anon = "no file", .huge = "data, data, 2 allocated"},
     "hand-off: more allocated than found is stale, all of it", NULL, false},
    {"b-copy-room", "COPY onto a page fallocate()d, onto one read through another mapping", copy_over_room,
     {.all = "EEXIST, EEXIST, zeros", .anon = "no file", .huge_anon = "no file", .memfd_private = "ok, ok, copy",
      .huge_private = "ok, ok, copy"},
     "PLACE: EEXIST of COPY is not \"mapped\": stale, written, CONTINUE", NULL, false},
    {"b-copy-end", "COPY past the end of the file", copy_past_the_end,
     {.all = "EFAULT", .anon = "no file", .huge_anon = "no file", .huge_private = "ok"},
     NULL, NULL, false},
    {"b-zero", "ZEROPAGE onto nothing", zero_a_hole,
     {.all = "EINVAL", .anon = "ok", .shmem = "ok, file has a page", .memfd_private = "ok, file has a hole"},
     "MAP_ZERO; a pool has none: COPY of zeros", "zeropage", false},
    {"b-zero-cached", "ZEROPAGE onto a page in the cache", zero_over_cache,
     {.all = "EEXIST, data", .huge = "EINVAL, data", .anon = "no cache", .memfd_private = "ok, zeros",
      .huge_anon = "no cache"},
     "MAP_ZERO: punch first", NULL, false},
    {"b-move", "MOVE of a private page into it", move_in, {.all = "EINVAL", .anon = "ok"}, NULL, "move", false},
};
ROWS(fill_rows, "What fills a page");
