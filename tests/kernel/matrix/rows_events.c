/* SPDX-License-Identifier: Apache-2.0 */
/* Events of the address space, and what a fork leaves registered: section h of the kernel facts. */
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "matrix.h"

#define ALL_EVENTS \
    (UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_FORK)

/* Page 1 holds data and is mapped. */
static bool mapped(struct bed *bed, uint64_t features)
{
    put_data(bed, 1);
    if (!start(bed, features, its_modes(bed)))
        return false;
    return !has_file(bed) || fill_continue(bed, 1, 1, 0, NULL) == 0;
}

static void resolve_any(struct bed *bed, const char *met)
{
    if (strcmp(met, "MISSING") == 0)
        fill_copy(bed, bed->uffd, 1, 0, NULL);
    if (strcmp(met, "MINOR") == 0)
        fill_continue(bed, 1, 1, 0, NULL);
}

/* The act waits until its event has been read; then what a read meets. */
static void dropped(struct bed *bed, enum act act)
{
    struct actor actor, reader;
    struct uffd_msg message = {0};
    const char *event, *met;

    if (act == ACT_PUNCH && !has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (!mapped(bed, ALL_EVENTS))
        return;
    begin(bed, &actor, act, 1);
    event = next_event(&actor, bed->uffd, &message);
    say(bed, "%s", event);
    if (strcmp(event, "none") != 0 && (message.arg.remove.start != (uintptr_t)at(bed, 1) ||
                                       message.arg.remove.end != (uintptr_t)at(bed, 2)))
        say(bed, "of another range");
    say(bed, "%s", ends(&actor));
    if (act == ACT_UNMAP)
        return;
    met = meets(bed, &reader, ACT_READ, 1);
    say(bed, "then %s", met);
    resolve_any(bed, met);
    say(bed, "%s", ends(&reader));
}

static void dontneed(struct bed *bed)
{
    dropped(bed, ACT_DONTNEED);
}

static void removed(struct bed *bed)
{
    dropped(bed, ACT_REMOVE);
}

static void punched(struct bed *bed)
{
    dropped(bed, ACT_PUNCH);
}

static void unmapped(struct bed *bed)
{
    dropped(bed, ACT_UNMAP);
}

static void moved(struct bed *bed, uint64_t features)
{
    struct actor actor, reader;
    const char *event, *met;

    if (!start(bed, features, MISSING))
        return;
    event = meets(bed, &actor, ACT_MOVE, 0);
    say(bed, "%s", event);
    while (strcmp(event, "none") != 0 && strcmp(event, "HUNG") != 0) { /* UNMAP of the old place may follow */
        event = next_event(&actor, bed->uffd, NULL);
        if (strcmp(event, "none") != 0)
            say(bed, "%s", event);
    }
    say(bed, "%s", ends(&actor));
    bed->area += bed->bytes;
    met = meets(bed, &reader, ACT_READ, 1);
    say(bed, "then %s", met);
    resolve_any(bed, met);
    say(bed, "%s", ends(&reader));
}

static void moved_with_event(struct bed *bed)
{
    moved(bed, ALL_EVENTS);
}

static void moved_without(struct bed *bed)
{
    moved(bed, 0);
}

/* A fault that is there, and an event: the fault is read first. */
static void fault_first(struct bed *bed)
{
    struct actor actor, reader;

    if (!start(bed, ALL_EVENTS, MISSING))
        return;
    begin(bed, &actor, ACT_DONTNEED, 0);
    if (!still_waits(&actor))
        say(bed, "no event");
    begin(bed, &reader, ACT_READ, 1);
    if (!still_waits(&reader))
        say(bed, "no fault");
    say(bed, "%s", next_event(&actor, bed->uffd, NULL));
    say(bed, "%s", next_event(&actor, bed->uffd, NULL));
    ends(&actor);
    fill_copy(bed, bed->uffd, 1, 0, NULL);
    ends(&reader);
}

static void process_gone(struct bed *bed)
{
    struct uffd_msg message;
    struct pollfd one = {.events = POLLIN};
    int fork_uffd, status;
    struct actor actor;

    /* The child's own userfaultfd, which EVENT_FORK hands over, outlives it. */
    if (!start(bed, ALL_EVENTS, MISSING))
        return;
    begin(bed, &actor, ACT_FORK, 1);
    say(bed, "%s", next_event(&actor, bed->uffd, &message));
    fork_uffd = (int)message.arg.fork.ufd;
    next_event(&actor, fork_uffd, NULL);
    fill_copy(bed, fork_uffd, 1, 0, NULL);
    ends(&actor);
    one.fd = fork_uffd;
    status = poll(&one, 1, 0);
    say(bed, "poll %s", status == 0 ? "nothing" : (one.revents & POLLHUP) != 0 ? "POLLHUP" : "other");
    say(bed, "read %s", word(read(fork_uffd, &message, sizeof(message)) < 0 ? -errno : 0));
    say(bed, "COPY %s", word(fill_copy(bed, fork_uffd, 2, 0, NULL)));
}

static const struct row event_rows_table[] = {
    {"h-dontneed", "EVENT_REMOVE: MADV_DONTNEED", dontneed,
     {.all = "REMOVE, ok, then MINOR, data", .anon = "REMOVE, ok, then MISSING, copy",
      .huge_anon = "REMOVE, ok, then MISSING, copy"},
     "shared: \"look again\"; private: zeros", "events", false},
    {"h-remove", "EVENT_REMOVE: MADV_REMOVE", removed,
     {.all = "none, EACCES, then none, data", .anon = "none, EINVAL, then none, data",
      .shmem = "REMOVE, ok, then MISSING, copy", .huge_shared = "REMOVE, ok, then MISSING, copy"},
     "shared: a hole says what it was", "events", false},
    {"h-punch", "EVENT_REMOVE: PUNCH_HOLE in the file", punched,
     {.all = "none, ok, then MISSING, copy", .anon = "no file", .huge_anon = "no file"},
     "discards of shared memory are reported by the shim", NULL, false},
    {"h-unmap", "EVENT_UNMAP: munmap", unmapped, {.all = "UNMAP, ok"}, NULL, NULL, false},
    {"h-remap", "EVENT_REMAP: mremap, and a read there", moved_with_event,
     {.all = "REMAP, UNMAP, ok, then MISSING, copy"},
     NULL, "events", false},
    {"h-remap-without", "mremap without EVENT_REMAP, and a read there", moved_without,
     {.all = "none, ok, then none, zeros"},
     "a VMM may not move its RAM", NULL, false},
    {"h-order", "a REMOVE event waits, then a fault comes: what is read", fault_first,
     {.all = "MISSING, REMOVE"},
     "removals of a batch are taken first", NULL, false},
    {"h-gone", "a process ends: what its userfaultfd says", process_gone,
     {.all = "FORK, poll nothing, read EAGAIN, COPY ESRCH"},
     "the VMM's pidfd tells", NULL, false},
};
ROWS(event_rows, "Events");

/* ----------------------------------------------------------------------------------------------------------- a fork */

static void forked(struct bed *bed, uint64_t features)
{
    struct actor actor;
    struct uffd_msg message = {0};
    const char *event, *met;

    if (!start(bed, features, MISSING))
        return;
    begin(bed, &actor, ACT_FORK, 1);
    event = next_event(&actor, bed->uffd, &message);
    say(bed, "%s", event);
    if (strcmp(event, "FORK") == 0) {
        met = next_event(&actor, (int)message.arg.fork.ufd, NULL);
        say(bed, "child met %s", met);
        if (strcmp(met, "MISSING") == 0)
            fill_copy(bed, (int)message.arg.fork.ufd, 1, 0, NULL);
    }
    say(bed, "child %s", ends(&actor));
}

static void with_event(struct bed *bed)
{
    forked(bed, ALL_EVENTS);
}

static void without_event(struct bed *bed)
{
    forked(bed, 0);
}

static void kept_from_it(struct bed *bed)
{
    int status = 0;
    pid_t child;

    if (!start(bed, 0, MISSING) || madvise(bed->area, bed->bytes, MADV_DONTFORK) < 0)
        return;
    child = fork();
    if (child == 0)
        _exit(msync(bed->area, bed->page, MS_ASYNC) < 0 ? errno : 0);
    waitpid(child, &status, 0);
    say(bed, "child %s", word(-WEXITSTATUS(status)));
}

/* The kernel keeps the page for good, as for a device that reads and writes it: a fork must copy it at once. */
static int pin(void *page, size_t bytes)
{
    struct io_uring_params params = {0};
    struct iovec range = {page, bytes};
    int ring = (int)syscall(SYS_io_uring_setup, 1, &params);

    return ring < 0 || syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &range, 1) < 0 ? -errno : 0;
}

/* Page 1 is write-protected, pinned perhaps, and a child looks whether it is so there. */
static void forked_protected(struct bed *bed, uint64_t features, bool pinned)
{
    struct actor forker;
    struct uffd_msg message = {0};
    int bits;

    put_data(bed, 1);
    *(volatile uint8_t *)at(bed, 1) = WRITTEN;
    if (!start(bed, features | SYNC, WP))
        return;
    if (pinned)
        say(bed, "pin %s", word(pin(at(bed, 1), bed->page)));
    say(bed, "%s", word(protect(bed, 1, true)));
    begin(bed, &forker, ACT_FORK_MARKED, 1);
    if ((features & UFFD_FEATURE_EVENT_FORK) != 0)
        say(bed, "%s", next_event(&forker, bed->uffd, &message));
    say(bed, "there %s", ends(&forker));
    bits = scan_page(bed, 1, 0);
    say(bed, "here %s", bits >= 0 && (bits & PAGE_IS_WRITTEN) == 0 ? "protected" : "not protected");
}

static void protected_without_event(struct bed *bed)
{
    forked_protected(bed, 0, false);
}

static void protected_with_event(struct bed *bed)
{
    forked_protected(bed, ALL_EVENTS, false);
}

static void pinned_without_event(struct bed *bed)
{
    forked_protected(bed, 0, true);
}

static void pinned_with_event(struct bed *bed)
{
    forked_protected(bed, ALL_EVENTS, true);
}

static const struct row fork_rows_table[] = {
    {"h-fork", "fork with EVENT_FORK: the child reads an absent page", with_event,
     {.all = "FORK, child met MISSING, child copy"},
     NULL, "events", false},
    {"h-fork-without", "fork without it", without_event,
     {.all = "none, child zeros"},
     "MADV_DONTFORK", NULL, false},
    {"h-dontfork", "MADV_DONTFORK, and the child looks for it", kept_from_it,
     {.all = "child ENOMEM"},
     "MADV_DONTFORK", NULL, false},
    {"h-wp-fork", "a protected page, fork", protected_without_event,
     {.all = "ok, there not protected, here protected"},
     NULL, "wp-fork", false},
    {"h-wp-fork-event", "the same with EVENT_FORK", protected_with_event,
     {.all = "ok, FORK, there protected, here protected"},
     NULL, "wp-fork-with-event", false},
    {"h-wp-pin", "a protected page that is pinned, fork", pinned_without_event,
     {.all = "pin ok, ok, there not protected, here protected"},
     NULL, "wp-fork-pin", false},
    {"h-wp-pin-event", "the same with EVENT_FORK", pinned_with_event,
     {.all = "pin ok, ok, FORK, there protected, here protected"},
     NULL, "wp-fork-pin-with-event", false},
};
ROWS(fork_rows, "A fork");
