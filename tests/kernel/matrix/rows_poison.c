/* SPDX-License-Identifier: Apache-2.0 */
/* UFFDIO_POISON: section e of the kernel facts. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "matrix.h"

/* Page 1 is poisoned; in the cache there is data, where there is a cache and that is wanted. */
static bool poisoned(struct bed *bed, bool cached)
{
    int rc;

    for (size_t page = 0; cached && has_file(bed) && page < 3; page++)
        put_data(bed, page);
    if (!start(bed, UFFD_FEATURE_POISON, its_modes(bed)))
        return false;
    rc = poison(bed, 1);
    if (rc < 0)
        say(bed, "POISON %s", word(rc));
    return rc == 0;
}

static void absent(struct bed *bed)
{
    if (poisoned(bed, false))
        say(bed, "ok, %s", reads(bed, 1));
}

static void cached(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    if (!poisoned(bed, true))
        return;
    say(bed, "ok, %s", reads(bed, 1));
    say(bed, "alias %s, pread %s", holds(bed->alias[bed->page]), holds(file_has(bed, 1)));
}

static void mapped(struct bed *bed)
{
    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    if (!start(bed, UFFD_FEATURE_POISON, its_modes(bed)))
        return;
    say(bed, "%s", word(poison(bed, 1)));
    say(bed, "%s", reads(bed, 1));
}

static void twice(struct bed *bed)
{
    if (poisoned(bed, false))
        say(bed, "%s", word(poison(bed, 1)));
}

static void not_registered(struct bed *bed)
{
    if (enable(bed, UFFD_FEATURE_POISON))
        say(bed, "%s", word(poison(bed, 1)));
}

static void protected_alone(struct bed *bed)
{
    if (!start(bed, UFFD_FEATURE_POISON | SYNC, WP))
        return;
    say(bed, "%s", word(poison(bed, 1)));
    say(bed, "%s", reads(bed, 1));
}

static void sleeper(struct bed *bed)
{
    struct actor actor;

    if (!start(bed, UFFD_FEATURE_POISON, its_modes(bed)))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "%s", word(poison(bed, 1)));
    say(bed, "%s", ends(&actor));
    say(bed, "%s", actor.where == at(bed, 1) ? "at its page" : "elsewhere");
}

static void its_signal(struct bed *bed)
{
    struct actor actor;

    if (!poisoned(bed, false))
        return;
    begin(bed, &actor, ACT_READ, 1);
    ends(&actor);
    say(bed, "%s lsb %d",
        actor.code == BUS_ADRERR ? "ADRERR" : actor.code == BUS_MCEERR_AR ? "MCEERR_AR" : "other", actor.lsb);
}

static void written(struct bed *bed)
{
    struct actor actor;

    if (!poisoned(bed, false))
        return;
    begin(bed, &actor, ACT_WRITE, 1);
    say(bed, "%s", ends(&actor));
}

static void by_the_kernel(struct bed *bed)
{
    struct actor actor;
    uint8_t byte;
    struct iovec here = {&byte, 1}, there = {at(bed, 1), 1};

    if (!poisoned(bed, true))
        return;
    begin(bed, &actor, ACT_SEND, 1);
    say(bed, "write %s", ends(&actor));
    say(bed, "process_vm_readv %s", word(process_vm_readv(getpid(), &here, 1, &there, 1, 0) < 0 ? -errno : 0));
    say(bed, "POPULATE_READ %s", word(madvise(at(bed, 1), bed->page, MADV_POPULATE_READ) < 0 ? -errno : 0));
}

static void scanned(struct bed *bed)
{
    int bits;

    if (!poisoned(bed, false))
        return;
    bits = scan_page(bed, 1, 0);
    say(bed, "%s", bits < 0                          ? word(bits)
                   : (bits & PAGE_IS_PRESENT) != 0 ? "present"
                   : (bits & PAGE_IS_SWAPPED) != 0 ? "swapped"
                                                   : "nothing");
}

static const struct row poison_rows_table[] = {
    {"e-absent", "POISON of nothing, a read", absent,
     {.all = "ok, SIGBUS"},
     "page.h: LOST, POISONED", "poison", false},
    {"e-cached", "POISON of a page in the cache, a read; through others", cached,
     {.all = "ok, SIGBUS, alias data, pread data", .anon = "no cache", .huge_anon = "no cache"},
     "the bytes are punched as well", NULL, false},
    {"e-mapped", "POISON of a mapped page, a read", mapped,
     {.all = "EEXIST, write"},
     "a mapped page is zapped first", NULL, false},
    {"e-twice", "POISON twice", twice, {.all = "EEXIST"}, "POISON again: EEXIST, WAKE", NULL, false},
    {"e-unregistered", "POISON where nothing is registered", not_registered,
     {.all = "ENOENT"},
     "the registration stays while anything is poisoned", NULL, false},
    {"e-wp", "POISON where WP is registered alone", protected_alone, {.all = "ok, SIGBUS"}, NULL, NULL, false},
    {"e-sleeper", "a thread waits, POISON", sleeper,
     {.all = "MISSING, ok, SIGBUS, at its page"},
     "POISON wakes", NULL, false},
    {"e-code", "code of that SIGBUS", its_signal,
     {.all = "ADRERR lsb 0 or MCEERR_AR lsb 12", .huge = "ADRERR lsb 0 or MCEERR_AR lsb 21"},
     "a vCPU gets MCEERR_AR lsb 12 everywhere: tests/kvm", NULL, false},
    {"e-written", "a write to a poisoned page", written, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-kernel", "the kernel reads a poisoned page", by_the_kernel,
     {.all = "write EFAULT, process_vm_readv EFAULT, POPULATE_READ EHWPOISON"},
     "a VMM's calls fail, its threads do not hang", NULL, false},
    {"e-scan", "PAGEMAP_SCAN of a poisoned page", scanned,
     {.all = "swapped"},
     "before arming a marker is nothing present", NULL, false},
};
ROWS(poison_rows, "Poison");

/* ------------------------------------------------------------------------------------------------------ how it ends */

/* A read of page 1 now: the fault it meets if any, resolved by COPY, or what it finds. */
static void look_again(struct bed *bed)
{
    struct actor actor;
    const char *met = meets(bed, &actor, ACT_READ, 1);

    if (strcmp(met, "none") != 0) {
        say(bed, "%s", met);
        if (strcmp(met, "MINOR") == 0)
            fill_continue(bed, 1, 1, 0, NULL);
        else
            fill_copy(bed, bed->uffd, 1, 0, NULL);
    }
    say(bed, "%s", ends(&actor));
}

static void continued(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    say(bed, "%s", word(fill_continue(bed, 1, 1, 0, NULL)));
    look_again(bed);
}

static void in_a_batch(struct bed *bed)
{
    int64_t done = 0;

    if (!poisoned(bed, true))
        return;
    say(bed, "%s", word(fill_continue(bed, 0, 3, 0, &done)));
    look_again(bed);
}

static void copied(struct bed *bed)
{
    if (!poisoned(bed, false))
        return;
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    look_again(bed);
}

static void copied_over_cache(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no cache");
        return;
    }
    if (!poisoned(bed, true))
        return;
    say(bed, "%s", word(fill_copy(bed, bed->uffd, 1, 0, NULL)));
    look_again(bed);
}

static void zeroed(struct bed *bed)
{
    if (!poisoned(bed, false))
        return;
    say(bed, "%s", word(fill_zero(bed, 1, NULL)));
    look_again(bed);
}

static void woken(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    wake(bed, 1);
    look_again(bed);
}

static void acted(struct bed *bed, enum act act)
{
    struct actor actor;

    if (act == ACT_PUNCH && !has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!poisoned(bed, true))
        return;
    begin(bed, &actor, act, 1);
    say(bed, "%s", ends(&actor));
    look_again(bed);
}

static void dontneed(struct bed *bed)
{
    acted(bed, ACT_DONTNEED);
}

static void punched(struct bed *bed)
{
    acted(bed, ACT_PUNCH);
}

static void unregistered(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    unregister(bed);
    look_again(bed);
}

static void closed(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    close(bed->uffd);
    bed->uffd = -1;
    say(bed, "%s", reads(bed, 1));
}

static void protected_and_back(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    mprotect(bed->area, bed->bytes, PROT_NONE);
    mprotect(bed->area, bed->bytes, PROT_READ | PROT_WRITE);
    look_again(bed);
}

static void moved(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    if (move_behind(bed) < 0) {
        say(bed, "mremap %s", word(-errno));
        return;
    }
    bed->area += bed->bytes;
    say(bed, "%s", reads(bed, 1));
}

static void forked(struct bed *bed)
{
    struct actor actor;

    if (!poisoned(bed, true))
        return;
    begin(bed, &actor, ACT_FORK, 1);
    say(bed, "child %s", ends(&actor));
}

static void other_pages(struct bed *bed)
{
    if (!poisoned(bed, true))
        return;
    say(bed, "%s", word(has_file(bed) ? fill_continue(bed, 2, 1, 0, NULL) : fill_copy(bed, bed->uffd, 2, 0, NULL)));
    say(bed, "%s", reads(bed, 2));
    say(bed, "%s", reads(bed, 1));
}

static const struct row poison_ends_rows_table[] = {
    {"e-other", "the page after it is filled", other_pages,
     {.all = "ok, data, SIGBUS", .anon = "ok, copy, SIGBUS", .huge_anon = "ok, copy, SIGBUS"},
     NULL, NULL, false},
    {"e-continue", "CONTINUE of a poisoned page", continued,
     {.all = "ok, data", .anon = "EINVAL, SIGBUS", .huge_anon = "EFAULT, SIGBUS"},
     "poisoned pages are in no CONTINUE", NULL, false},
    {"e-batch", "CONTINUE of 3 pages, the middle one poisoned", in_a_batch,
     {.all = "ok, data", .anon = "EINVAL, SIGBUS", .huge_anon = "EFAULT, SIGBUS"},
     "nor in the middle of one", NULL, false},
    {"e-copy", "COPY onto a poisoned page", copied,
     {.all = "ok, copy"},
     "poisoned pages are in no COPY; CLEARED: COPY of zeros", NULL, false},
    {"e-copy-cached", "the same with a page in the cache", copied_over_cache,
     {.all = "EEXIST, SIGBUS", .anon = "no cache", .memfd_private = "ok, copy", .huge_anon = "no cache",
      .huge_private = "ok, copy"},
     "CLEARED: punched first", NULL, false},
    {"e-zero", "ZEROPAGE onto a poisoned page", zeroed,
     {.all = "EEXIST, SIGBUS", .huge = "EINVAL, SIGBUS", .shmem = "ok, zeros"},
     "poisoned pages are in no ZEROPAGE", NULL, false},
    {"e-wake", "WAKE of a poisoned page", woken, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-dontneed", "MADV_DONTNEED", dontneed,
     {.all = "ok, MINOR, data", .anon = "ok, MISSING, copy", .huge_anon = "ok, MISSING, copy"},
     "page.h: POISONED + FAULT, POISON", NULL, false},
    {"e-punch", "PUNCH_HOLE in the file", punched,
     {.all = "ok, SIGBUS", .huge = "ok, MISSING, copy", .anon = "no file", .huge_anon = "no file"},
     "a pool: punch first, then poison", NULL, false},
    {"e-unregister", "UNREGISTER", unregistered, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-close", "the userfaultfd is closed", closed, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-mprotect", "PROT_NONE and back", protected_and_back, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-mremap", "mremap", moved, {.all = "SIGBUS"}, NULL, NULL, false},
    {"e-fork", "fork", forked,
     {.all = "child SIGBUS", .shmem = "child data", .huge_shared = "child data"},
     "MADV_DONTFORK", NULL, false},
};
ROWS(poison_ends_rows, "How poison ends");
