/* SPDX-License-Identifier: Apache-2.0 */
/* What takes mappings away, with the data or without, and what makes them huge: sections c and d. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <signal.h>

#include "matrix.h"

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#define GUARD_INSTALL 102
#define GUARD_REMOVE 103
#define THP_BYTES (UINT64_C(2) << 20)

/* Page 1 holds data, is mapped, and the area is registered for all the faults it can have. */
static bool mapped(struct bed *bed)
{
    put_data(bed, 1);
    if (!start(bed, 0, its_modes(bed)))
        return false;
    return !has_file(bed) || fill_continue(bed, 1, 1, 0, NULL) == 0;
}

/* What a read meets now, and reads once a fault is resolved: from the cache, or a copy. */
static void look_again(struct bed *bed)
{
    struct actor actor;
    const char *met = meets(bed, &actor, ACT_READ, 1);

    say(bed, "%s", met);
    if (strcmp(met, "MISSING") == 0)
        fill_copy(bed, bed->uffd, 1, 0, NULL);
    if (strcmp(met, "MINOR") == 0)
        fill_continue(bed, 1, 1, 0, NULL);
    say(bed, "%s", ends(&actor));
}

static void advise(struct bed *bed, int advice)
{
    if (!mapped(bed))
        return;
    say(bed, "%s", word(madvise(at(bed, 1), bed->page, advice) < 0 ? -errno : 0));
    look_again(bed);
}

static void dontneed(struct bed *bed)
{
    advise(bed, MADV_DONTNEED);
}

static void remove_range(struct bed *bed)
{
    advise(bed, MADV_REMOVE);
}

static void cold(struct bed *bed)
{
    advise(bed, MADV_COLD);
}

static void locked(struct bed *bed)
{
    if (!mapped(bed))
        return;
    if (syscall(SYS_mlock2, at(bed, 1), bed->page, 1 /* on fault */) < 0)
        say(bed, "mlock %s", word(-errno));
    say(bed, "%s", word(madvise(at(bed, 1), bed->page, MADV_DONTNEED) < 0 ? -errno : 0));
    say(bed, "%s", word(madvise(at(bed, 1), bed->page, MADV_DONTNEED_LOCKED) < 0 ? -errno : 0));
    look_again(bed);
}

static void punch(struct bed *bed)
{
    int rc;

    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!mapped(bed))
        return;
    rc = fallocate(bed->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)bed->page, (off_t)bed->page);
    say(bed, "%s", word(rc < 0 ? -errno : 0));
    look_again(bed);
}

static void mapped_anew(struct bed *bed)
{
    if (!mapped(bed) || map_again(bed) < 0)
        return;
    say(bed, "REGISTER %s", word(register_range(bed->uffd, bed->area, bed->bytes, its_modes(bed), NULL)));
    look_again(bed);
}

static void replaced(struct bed *bed)
{
    if (!mapped(bed) || map_again(bed) < 0)
        return;
    look_again(bed);
}

static void registered_anew(struct bed *bed)
{
    if (!mapped(bed))
        return;
    unregister(bed);
    register_range(bed->uffd, bed->area, bed->bytes, its_modes(bed), NULL);
    look_again(bed);
}

static void protected_and_back(struct bed *bed)
{
    if (!mapped(bed))
        return;
    mprotect(bed->area, bed->bytes, PROT_NONE);
    mprotect(bed->area, bed->bytes, PROT_READ | PROT_WRITE);
    look_again(bed);
}

static void guarded(struct bed *bed)
{
    if (!mapped(bed))
        return;
    say(bed, "%s", word(madvise(at(bed, 1), bed->page, GUARD_INSTALL) < 0 ? -errno : 0));
    madvise(at(bed, 1), bed->page, GUARD_REMOVE);
    look_again(bed);
}

/* Another process asks the kernel for it. */
static void from_outside(struct bed *bed, int advice)
{
    pid_t me = getpid(), child;
    int status = 0;

    if (!mapped(bed))
        return;
    child = fork();
    if (child == 0) {
        struct iovec range = {at(bed, 1), bed->page};
        int pidfd = (int)syscall(SYS_pidfd_open, me, 0);
        _exit(syscall(SYS_process_madvise, pidfd, &range, 1, advice, 0) < 0 ? errno : 0);
    }
    waitpid(child, &status, 0);
    say(bed, "%s", word(-WEXITSTATUS(status)));
    look_again(bed);
}

static void dontneed_from_outside(struct bed *bed)
{
    from_outside(bed, MADV_DONTNEED);
}

static const struct row zap_rows_table[] = {
    {"c-dontneed", "MADV_DONTNEED", dontneed,
     {.all = "ok, MINOR, data", .anon = "ok, MISSING, copy", .huge_anon = "ok, MISSING, copy"},
     "zap; a REMOVE event changes no word on shared memory", NULL, false},
    {"c-locked", "on locked memory: DONTNEED, DONTNEED_LOCKED", locked,
     {.all = "EINVAL, ok, MINOR, data", .huge = "ok, ok, MINOR, data", .anon = "EINVAL, ok, MISSING, copy",
      .huge_anon = "ok, ok, MISSING, copy"},
     "zap: tried, not looked up", NULL, false},
    {"c-remove", "MADV_REMOVE", remove_range,
     {.all = "EACCES, none, data", .anon = "EINVAL, none, data", .shmem = "ok, MISSING, copy",
      .huge_shared = "ok, MISSING, copy"},
     "a discard: a hole under a claimed page", NULL, false},
    {"c-punch", "PUNCH_HOLE in the file", punch,
     {.all = "ok, MISSING, copy", .anon = "no file", .huge_anon = "no file"},
     "a discard; poison: the bytes go", NULL, false},
    {"c-anew", "another mapping put in its place, registered", mapped_anew,
     {.all = "REGISTER ok, MINOR, data", .anon = "REGISTER ok, MISSING, copy",
      .huge_anon = "REGISTER ok, MISSING, copy"},
     "zap, the last way", NULL, false},
    {"c-replaced", "the same, and not registered", replaced,
     {.all = "none, data", .anon = "none, zeros", .huge_anon = "none, zeros"},
     "a mapping without registration is refused", NULL, false},
    {"c-reregister", "UNREGISTER, REGISTER", registered_anew, {.all = "none, data"}, "it is no zap", NULL, false},
    {"c-mprotect", "PROT_NONE and back", protected_and_back, {.all = "none, data"}, "it is no zap", NULL, false},
    {"c-cold", "MADV_COLD", cold,
     {.all = "ok, none, data", .huge = "EINVAL, none, data"},
     "it is no zap", NULL, false},
    {"c-guard", "MADV_GUARD_INSTALL, GUARD_REMOVE", guarded,
     {.all = "ok, MINOR, data", .huge = "EINVAL, none, data", .anon = "ok, MISSING, copy"},
     NULL, NULL, false},
    {"c-outside", "process_madvise(DONTNEED) by another process", dontneed_from_outside,
     {.all = "EINVAL, none, data"},
     "a zap runs inside the VMM", NULL, false},
};
ROWS(zap_rows, "What takes mappings away");

/* ------------------------------------------------------------------------------------------------------- huge pages */

/* 2 MiB of small pages, all in the cache (or present, where there is none), at an address of 2 MiB. */
static bool big(struct bed *bed)
{
    struct bed other = *bed;

    if (is_huge(bed)) {
        say(bed, "huge already");
        return false;
    }
    other.bytes = THP_BYTES;
    if (has_file(bed) && ftruncate(bed->fd, (off_t)THP_BYTES) < 0)
        return false;
    if (map_again(&other) < 0)
        return false;
    if (has_file(bed)) {
        void *alias = mmap(NULL, THP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, bed->fd, 0);
        memset(alias, DATA, THP_BYTES);
        munmap(alias, THP_BYTES);
        munmap(bed->alias, bed->bytes);
    } else {
        memset(bed->area, DATA, THP_BYTES);
    }
    bed->bytes = THP_BYTES;
    return true;
}

static void collapse(struct bed *bed, bool guarded_against)
{
    if (!big(bed))
        return;
    if (!guarded_against && madvise(bed->area, bed->bytes, MADV_HUGEPAGE) < 0)
        say(bed, "MADV_HUGEPAGE %s", word(-errno));
    if (!start(bed, 0, its_modes(bed)))
        return;
    say(bed, "%s", word(madvise(bed->area, bed->bytes, MADV_COLLAPSE) < 0 ? -errno : 0));
    look_again(bed);
}

static void collapse_guarded(struct bed *bed)
{
    collapse(bed, true);
}

static void collapse_minor(struct bed *bed)
{
    collapse(bed, false);
}

/* It is in the way of a thread that waits: its page is mapped, and nobody tells it. */
static void collapse_under_a_sleeper(struct bed *bed)
{
    struct actor actor;

    if (!has_file(bed) && !is_huge(bed)) {
        say(bed, "no cache");
        return;
    }
    if (!big(bed) || madvise(bed->area, bed->bytes, MADV_HUGEPAGE) < 0 || !start(bed, 0, MISSING | MINOR))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "%s", word(madvise(bed->area, bed->bytes, MADV_COLLAPSE) < 0 ? -errno : 0));
    say(bed, "%s", still_waits(&actor) ? "waits" : "woken");
    say(bed, "CONTINUE %s", word(fill_continue(bed, 1, 1, 0, NULL)));
    wake(bed, 1);
    say(bed, "%s", ends(&actor));
}

static const struct row huge_rows_table[] = {
    {"d-guarded", "MADV_COLLAPSE of memory with MADV_NOHUGEPAGE", collapse_guarded,
     {.all = "EINVAL, MINOR, data", .huge = "huge already", .anon = "EINVAL, none, data"},
     "NOHUGEPAGE on the mapping, kept", NULL, false},
    {"d-collapse", "MADV_COLLAPSE without it, all in the cache, nothing mapped", collapse_minor,
     {.all = "ok, none, data", .huge = "huge already"},
     "what NOHUGEPAGE prevents", "minor-collapse", false},
    {"d-sleeper", "the same while a thread waits for a page of it", collapse_under_a_sleeper,
     {.all = "MINOR, ok, waits, CONTINUE EEXIST, data", .huge = "huge already", .anon = "no cache"},
     "EEXIST: WAKE", NULL, false},
};
ROWS(huge_rows, "What makes it huge");
