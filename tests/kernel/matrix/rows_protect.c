/* SPDX-License-Identifier: Apache-2.0 */
/* Write protection, that somebody resolves and that nobody waits for: sections f and i of the kernel facts. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "matrix.h"

#define CONTINUE_MODE_WP 2 /* UFFDIO_CONTINUE_MODE_WP, 6.4 */

/* ------------------------------------------------------------------------------------------------------ synchronous */

static void write_protected(struct bed *bed)
{
    struct actor actor;

    say(bed, "%s", meets(bed, &actor, ACT_WRITE, 1));
    say(bed, "WRITEPROTECT %s", word(protect(bed, 1, false)));
    say(bed, "%s", ends(&actor));
    say(bed, "%s", reads(bed, 1));
}

static void present(struct bed *bed)
{
    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = DATA;
    if (!start(bed, SYNC, WP))
        return;
    say(bed, "%s", word(protect(bed, 1, true)));
    say(bed, "reads %s", reads(bed, 1));
    write_protected(bed);
}

static void absent(struct bed *bed, uint64_t features)
{
    struct actor actor;
    const char *met;

    if (!start(bed, SYNC | features, WP))
        return;
    say(bed, "%s", word(protect(bed, 1, true)));
    met = meets(bed, &actor, ACT_WRITE, 1);
    say(bed, "%s", met);
    if (strcmp(met, "WP") == 0)
        protect(bed, 1, false);
    say(bed, "%s", ends(&actor));
}

static void absent_plain(struct bed *bed)
{
    absent(bed, 0);
}

static void absent_unpopulated(struct bed *bed)
{
    absent(bed, UFFD_FEATURE_WP_UNPOPULATED);
}

static void minor_protected(struct bed *bed)
{
    struct actor actor;

    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    put_data(bed, 1);
    if (!start(bed, SYNC, MINOR | WP))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "CONTINUE %s", word(fill_continue(bed, 1, 1, CONTINUE_MODE_WP, NULL)));
    say(bed, "%s", ends(&actor));
    write_protected(bed);
}

static void copy_protected(struct bed *bed)
{
    if (!start(bed, SYNC, MISSING | WP))
        return;
    say(bed, "COPY %s", word(fill_copy(bed, bed->uffd, 1, UFFDIO_COPY_MODE_WP, NULL)));
    write_protected(bed);
}

static void by_signal(struct bed *bed)
{
    struct actor actor;

    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = DATA;
    if (!start(bed, SYNC | UFFD_FEATURE_SIGBUS, WP))
        return;
    protect(bed, 1, true);
    begin(bed, &actor, ACT_WRITE, 1);
    say(bed, "%s", ends(&actor));
    say(bed, "%s", reads(bed, 1));
}

static void events_protected(struct bed *bed)
{
    struct actor actor;

    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = DATA;
    if (!start(bed, SYNC | UFFD_FEATURE_EVENT_REMOVE, WP))
        return;
    protect(bed, 1, true);
    say(bed, "%s", meets(bed, &actor, ACT_DONTNEED, 1));
    say(bed, "%s", ends(&actor));
    say(bed, "then a write: %s", meets(bed, &actor, ACT_WRITE, 1));
    protect(bed, 1, false);
    say(bed, "%s", ends(&actor));
}

static const struct row protect_rows_table[] = {
    {"i-present", "a present page protected: a read, a write, WRITEPROTECT off", present,
     {.all = "ok, reads data, WP, WRITEPROTECT ok, ok, write"},
     NULL, NULL, false},
    {"i-absent", "an absent page protected, a write", absent_plain,
     {.all = "ok, WP, ok", .anon = "ok, none, ok"},
     NULL, NULL, false},
    {"i-unpopulated", "the same with WP_UNPOPULATED", absent_unpopulated,
     {.all = "ok, WP, ok"},
     "role `track` asks for it", "wp-unpopulated", false},
    {"i-minor", "MINOR and WP: CONTINUE with MODE_WP, a write", minor_protected,
     {.all = "MINOR, CONTINUE ok, data, WP, WRITEPROTECT ok, ok, write", .anon = "no cache", .huge_anon = "no cache"},
     NULL, "minor-wp", false},
    {"i-copy", "MISSING and WP: COPY with MODE_WP, a write", copy_protected,
     {.all = "COPY ok, WP, WRITEPROTECT ok, ok, write"},
     NULL, NULL, false},
    {"i-signal", "FEATURE_SIGBUS: a write to a protected page", by_signal,
     {.all = "SIGBUS, data"},
     NULL, "sigbus-wp", false},
    {"i-events", "a protected page dropped with EVENT_REMOVE, then written", events_protected,
     {.all = "REMOVE, ok, then a write: WP, ok", .anon = "REMOVE, ok, then a write: none, ok"},
     NULL, "events-wp", false},
};
ROWS(protect_rows, "Write protection that is waited for");

/* ----------------------------------------------------------------------------------------------------- asynchronous */

/* Whether it counts as written; the look has no effect. */
static const char *dirty(const struct bed *bed, size_t page)
{
    int bits = scan_page(bed, page, PM_SCAN_CHECK_WPASYNC);

    return bits < 0 ? word(bits) : (bits & PAGE_IS_WRITTEN) != 0 ? "written" : "clean";
}

static void reset(const struct bed *bed, size_t page)
{
    scan_page(bed, page, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC);
}

/* Page 1 is there (`there`) or not, looked at, and clean. */
static bool tracked(struct bed *bed, bool there, uint64_t more_modes)
{
    if (there) {
        put_data(bed, 1);
        *(volatile uint8_t *)at(bed, 1) = DATA;
    }
    if (!start(bed, ASYNC, WP | more_modes))
        return false;
    say(bed, "%s", dirty(bed, 1));
    reset(bed, 1);
    return true;
}

static void written(struct bed *bed)
{
    struct actor actor;

    if (!tracked(bed, true, 0))
        return;
    say(bed, "%s", dirty(bed, 1));
    say(bed, "a write meets %s", meets(bed, &actor, ACT_WRITE, 1));
    ends(&actor);
    say(bed, "%s", dirty(bed, 1));
    reset(bed, 1);
    say(bed, "%s", dirty(bed, 1));
}

static void written_absent(struct bed *bed)
{
    if (!tracked(bed, false, 0))
        return;
    say(bed, "%s", dirty(bed, 1));
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    say(bed, "%s", dirty(bed, 1));
}

static void read_present(struct bed *bed)
{
    if (!tracked(bed, true, 0))
        return;
    reads(bed, 1);
    say(bed, "%s", dirty(bed, 1));
}

static void read_absent(struct bed *bed)
{
    if (!tracked(bed, false, 0))
        return;
    reads(bed, 1);
    say(bed, "%s", dirty(bed, 1));
}

static void by_another_mapping(struct bed *bed)
{
    uint8_t byte = WRITTEN;

    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!tracked(bed, true, 0))
        return;
    bed->alias[bed->page] = WRITTEN;
    say(bed, "alias %s", dirty(bed, 1));
    if (pwrite(bed->fd, &byte, 1, (off_t)bed->page) == 1)
        say(bed, "pwrite %s", dirty(bed, 1));
    else
        say(bed, "pwrite %s", word(-errno));
}

static void by_the_kernel(struct bed *bed)
{
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);

    if (!tracked(bed, true, 0))
        return;
    if (read(zero, at(bed, 1), 1) == 1)
        say(bed, "%s", dirty(bed, 1));
}

static void dropped(struct bed *bed)
{
    if (!tracked(bed, true, 0))
        return;
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    say(bed, "%s", word(madvise(at(bed, 1), bed->page, MADV_DONTNEED) < 0 ? -errno : 0));
    say(bed, "%s", dirty(bed, 1));
}

static void punched(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!tracked(bed, true, 0))
        return;
    fallocate(bed->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)bed->page, (off_t)bed->page);
    say(bed, "%s", dirty(bed, 1));
    say(bed, "WRITEPROTECT off %s", word(protect(bed, 1, false)));
    say(bed, "%s", dirty(bed, 1));
}

static void arrived(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    put_data(bed, 1);
    put_data(bed, 2);
    if (!start(bed, ASYNC, MISSING | MINOR | WP))
        return;
    reset(bed, 1);
    reset(bed, 2);
    say(bed, "CONTINUE %s", word(fill_continue(bed, 1, 1, 0, NULL)));
    say(bed, "%s", dirty(bed, 1));
    say(bed, "with MODE_WP %s", word(fill_continue(bed, 2, 1, CONTINUE_MODE_WP, NULL)));
    say(bed, "%s", dirty(bed, 2));
}

static void from_outside(struct bed *bed)
{
    int status = 0;
    pid_t child;

    if (!tracked(bed, true, 0))
        return;
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    child = fork();
    if (child == 0) {
        struct page_region found = {0};
        struct pm_scan_arg arg = {.size = sizeof(arg), .flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                                  .start = (uintptr_t)at(bed, 1), .end = (uintptr_t)at(bed, 2),
                                  .vec = (uintptr_t)&found, .vec_len = 1, .category_mask = PAGE_IS_WRITTEN,
                                  .return_mask = PAGE_IS_WRITTEN};
        char path[64];
        int pagemap;
        snprintf(path, sizeof(path), "/proc/%d/pagemap", getppid());
        pagemap = open(path, O_RDONLY | O_CLOEXEC);
        _exit(ioctl(pagemap, PAGEMAP_SCAN, &arg) < 0 ? 2 : found.categories == PAGE_IS_WRITTEN ? 1 : 0);
    }
    waitpid(child, &status, 0);
    say(bed, "%s", WEXITSTATUS(status) == 1 ? "written" : WEXITSTATUS(status) == 0 ? "clean" : "refused");
    say(bed, "then %s", dirty(bed, 1));
}

static void closed(struct bed *bed)
{
    if (!tracked(bed, true, 0))
        return;
    close(bed->uffd);
    say(bed, "%s", dirty(bed, 1));
}

static const struct row dirty_rows_table[] = {
    {"f-written", "a present page: at first, looked at, written, looked at", written,
     {.all = "written, clean, a write meets none, written, clean"},
     "rounds: look, then reset", NULL, false},
    {"f-written-absent", "an absent page: at first, looked at, written", written_absent,
     {.all = "written, clean, written", .huge = "clean, clean, written"},
     "rounds", NULL, false},
    {"f-read", "a present page, read after the look", read_present,
     {.all = "written, clean"},
     "rounds name what was written", NULL, false},
    {"f-read-absent", "an absent page, read after the look", read_absent,
     {.all = "written, clean", .huge = "clean, written"},
     "rounds on a pool: whole pages armed first", NULL, false},
    {"f-unseen", "written through another mapping, by pwrite", by_another_mapping,
     {.all = "written, alias clean, pwrite clean", .huge = "written, alias clean, pwrite EINVAL", .anon = "no file",
      .huge_anon = "no file"},
     "vhost-user, O_DIRECT and the like are refused", NULL, false},
    {"f-kernel", "written by the kernel for read(2)", by_the_kernel,
     {.all = "written, written"},
     "a VMM's own calls are seen", NULL, false},
    {"f-dropped", "written, then MADV_DONTNEED, before the look", dropped,
     {.all = "written, ok, written", .huge = "written, ok, clean"},
     "a VMM that zaps a pool tells the page server", NULL, false},
    {"f-punched", "a clean page punched; WRITEPROTECT off", punched,
     {.all = "written, clean, WRITEPROTECT off ok, written", .huge = "written, clean, WRITEPROTECT off ok, clean",
      .anon = "no file", .huge_anon = "no file"},
     "the shim takes the protection off; a pool cannot be tracked so", NULL, false},
    {"f-arrived", "looked at, then CONTINUE; CONTINUE with MODE_WP", arrived,
     {.all = "CONTINUE ok, written, with MODE_WP ok, clean", .anon = "no cache", .huge_anon = "no cache"},
     "role `both`: what arrives is named", NULL, false},
    {"f-outside", "the look by another process", from_outside,
     {.all = "written, written, then clean"},
     "the page server looks", NULL, false},
    {"f-closed", "the last userfaultfd is closed", closed,
     {.all = "written, EPERM"},
     "MISMATCH: the image is given up", NULL, false},
};
ROWS(dirty_rows, "Write protection that nobody waits for");
