/* SPDX-License-Identifier: Apache-2.0 */
/* UFFDIO_CONTINUE, and who is woken by what: section g of the kernel facts. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "matrix.h"

static bool ready(struct bed *bed, size_t cached, uint64_t modes)
{
    for (size_t page = 0; has_file(bed) && page < cached; page++)
        put_data(bed, page);
    return start(bed, 0, modes);
}

static void say_continue(struct bed *bed, size_t page, size_t count)
{
    int64_t done = 0;
    int rc = fill_continue(bed, page, count, 0, &done);

    if (rc < 0 && done > 0)
        say(bed, "%s after %d", word(rc), (int)(done / (int64_t)bed->page));
    else if (rc == 0 && count > 1)
        say(bed, "ok, all");
    else
        say(bed, "%s", word(rc));
}

static void what_was_written_last(struct bed *bed)
{
    struct actor actor;

    if (!has_file(bed) || !ready(bed, 2, MINOR)) {
        if (!has_file(bed))
            say(bed, "no cache");
        return;
    }
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    memset(bed->alias + bed->page, COPIED, bed->page);
    say_continue(bed, 1, 1);
    say(bed, "%s", ends(&actor));
    say(bed, "then a write: %s", meets(bed, &actor, ACT_WRITE, 1));
    ends(&actor);
}

static void mapped_already(struct bed *bed)
{
    if (!ready(bed, 2, its_modes(bed)))
        return;
    say_continue(bed, 1, 1);
    say_continue(bed, 1, 1);
}

static void a_hole(struct bed *bed)
{
    if (ready(bed, 0, its_modes(bed)))
        say_continue(bed, 1, 1);
}

static void past_the_end(struct bed *bed)
{
    if (!has_file(bed)) {
        say(bed, "no file");
        return;
    }
    if (ready(bed, 0, MISSING | MINOR) && ftruncate(bed->fd, (off_t)bed->page) == 0)
        say_continue(bed, 1, 1);
}

static void not_registered(struct bed *bed)
{
    if (!enable(bed, 0))
        return;
    if (has_file(bed))
        put_data(bed, 1);
    say_continue(bed, 1, 1);
}

static void up_to_a_hole(struct bed *bed)
{
    if (!ready(bed, 2, its_modes(bed)))
        return;
    say_continue(bed, 0, 4);
    say_continue(bed, 2, 2);
}

static void up_to_a_mapped_one(struct bed *bed)
{
    if (!ready(bed, 4, its_modes(bed)))
        return;
    fill_continue(bed, 2, 1, 0, NULL);
    say_continue(bed, 0, 4);
    say_continue(bed, 2, 2);
    say_continue(bed, 3, 1);
}

/* A page that is missing may be resolved by a write into the file and CONTINUE, registered for it or not. */
static void written_then_continued(struct bed *bed)
{
    struct actor actor;

    if (!ready(bed, 0, MISSING))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    if (has_file(bed))
        memset(bed->alias + bed->page, COPIED, bed->page);
    say_continue(bed, 1, 1);
    if (!has_file(bed))
        fill_copy(bed, bed->uffd, 1, 0, NULL);
    say(bed, "%s", ends(&actor));
}

/* While an event of somebody else's waits to be read. */
static void events_unread(struct bed *bed)
{
    struct actor actor;
    int64_t done = 0;
    int rc;

    for (size_t page = 0; has_file(bed) && page < 2; page++)
        put_data(bed, page);
    if (!start(bed, UFFD_FEATURE_EVENT_REMOVE, its_modes(bed)))
        return;
    begin(bed, &actor, ACT_DONTNEED, 0);
    if (!still_waits(&actor)) {
        say(bed, "no event waits");
        return;
    }
    rc = has_file(bed) ? fill_continue(bed, 1, 1, 0, &done) : fill_copy(bed, bed->uffd, 1, 0, &done);
    say(bed, "%s, field %s", word(rc), done < 0 ? word((int)done) : "0");
    say(bed, "%s read", next_event(&actor, bed->uffd, NULL));
    say(bed, "%s", ends(&actor));
    rc = has_file(bed) ? fill_continue(bed, 1, 1, 0, &done) : fill_copy(bed, bed->uffd, 1, 0, &done);
    say(bed, "%s", word(rc));
}

static const struct row continue_rows_table[] = {
    {"g-last", "MINOR met, the file written meanwhile, CONTINUE", what_was_written_last,
     {.all = "MINOR, ok, copy, then a write: none", .anon = "no cache", .huge_anon = "no cache"},
     "MAP: the cache is what is mapped", "minor", false},
    {"g-missing", "MISSING registered alone: the file written, CONTINUE", written_then_continued,
     {.all = "MISSING, ok, copy", .anon = "MISSING, EINVAL, copy", .huge_anon = "MISSING, EFAULT, copy"},
     "PLACE of a stale page", NULL, false},
    {"g-mapped", "CONTINUE, and once more", mapped_already,
     {.all = "ok, EEXIST", .anon = "EINVAL, EINVAL", .huge_anon = "EFAULT, EFAULT"},
     "MAP: EEXIST is mapped, WAKE", "minor", false},
    {"g-hole", "CONTINUE of a hole", a_hole,
     {.all = "EFAULT", .anon = "EINVAL"},
     "MAP: a hole is zeros for ever", NULL, false},
    {"g-end", "CONTINUE past the end of the file", past_the_end,
     {.all = "EINVAL", .huge = "EFAULT", .anon = "no file", .huge_anon = "no file"},
     NULL, NULL, false},
    {"g-unregistered", "CONTINUE where nothing is registered", not_registered,
     {.all = "ENOENT"},
     "ENOENT: the VMM has changed its mapping", NULL, false},
    {"g-range-hole", "CONTINUE of 4 pages, 2 are there; of the other 2", up_to_a_hole,
     {.all = "EAGAIN after 2, EFAULT", .anon = "EINVAL, EINVAL", .huge_anon = "EFAULT, EFAULT"},
     "runs: go on from `mapped`", NULL, false},
    {"g-range-mapped", "CONTINUE of 4 pages, the 3rd is mapped; from it on; the 4th", up_to_a_mapped_one,
     {.all = "EAGAIN after 2, EEXIST, ok", .anon = "EINVAL, EINVAL, EINVAL", .huge_anon = "EFAULT, EFAULT, EFAULT"},
     "runs: skip by hand", NULL, false},
    {"g-unread", "CONTINUE (COPY) while a REMOVE event is unread, and after", events_unread,
     {.all = "EAGAIN, field EAGAIN, REMOVE read, ok, ok"},
     "EAGAIN: read events first, then retry", NULL, false},
};
ROWS(continue_rows, "CONTINUE");

/* ------------------------------------------------------------------------------------------------------------ wakes */

static int fill(struct bed *bed, uint64_t dont_wake)
{
    if (has_file(bed))
        return fill_continue(bed, 1, 1, dont_wake ? UFFDIO_CONTINUE_MODE_DONTWAKE : 0, NULL);
    return fill_copy(bed, bed->uffd, 1, dont_wake ? UFFDIO_COPY_MODE_DONTWAKE : 0, NULL);
}

static void many_at_once(struct bed *bed)
{
    struct actor actors[3];
    int messages = 0;

    if (!ready(bed, 2, its_modes(bed)))
        return;
    for (int i = 0; i < 3; i++)
        messages += strcmp(meets(bed, &actors[i], ACT_READ, 1), "none") != 0;
    say(bed, "%d messages", messages);
    say(bed, "%s", word(fill(bed, false)));
    for (int i = 0; i < 3; i++)
        say(bed, "%s", ends(&actors[i]));
}

static void eexist_wakes_nobody(struct bed *bed)
{
    struct actor actor;

    if (!ready(bed, 2, its_modes(bed)))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "%s", word(fill(bed, true)));
    say(bed, "%s", word(fill(bed, false)));
    say(bed, "%s", still_waits(&actor) ? "waits" : "woken");
    say(bed, "WAKE %s", word(wake(bed, 1)));
    say(bed, "%s", ends(&actor));
}

static void woken_for_nothing(struct bed *bed)
{
    struct actor actor;

    if (!ready(bed, 2, its_modes(bed)))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "WAKE %s", word(wake(bed, 1)));
    say(bed, "%s", next_event(&actor, bed->uffd, NULL));
    fill(bed, false);
    say(bed, "%s", ends(&actor));
}

static void unregistered(struct bed *bed, uint64_t modes)
{
    struct actor actor;

    if (!ready(bed, 2, modes))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    say(bed, "%s", word(unregister(bed)));
    if (still_waits(&actor))
        say(bed, "waits, WAKE %s", word(wake(bed, 1)));
    say(bed, "%s", ends(&actor));
}

static void unregistered_both(struct bed *bed)
{
    unregistered(bed, its_modes(bed));
}

static void unregistered_minor(struct bed *bed)
{
    if (has_file(bed))
        unregistered(bed, MINOR);
    else
        say(bed, "no cache");
}

static void closed(struct bed *bed)
{
    struct actor actor;

    if (!ready(bed, 0, its_modes(bed)))
        return;
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    close(bed->uffd);
    say(bed, "%s", ends(&actor));
}

static void closed_but_for_a_copy(struct bed *bed)
{
    struct actor actor;
    int kept;

    if (!ready(bed, 0, its_modes(bed)))
        return;
    kept = dup(bed->uffd);
    say(bed, "%s", meets(bed, &actor, ACT_READ, 1));
    close(bed->uffd);
    say(bed, "%s", still_waits(&actor) ? "waits" : "woken");
    bed->uffd = kept;
    say(bed, "COPY %s", word(fill_copy(bed, kept, 1, 0, NULL)));
    say(bed, "%s", ends(&actor));
}

static const struct row wake_rows_table[] = {
    {"g-many", "3 threads wait for a page, one call", many_at_once,
     {.all = "3 messages, ok, data, data, data", .anon = "3 messages, ok, copy, copy, copy",
      .huge_anon = "3 messages, ok, copy, copy, copy"},
     "a page is asked for once", NULL, false},
    {"g-eexist", "filled with DONTWAKE, filled again, WAKE", eexist_wakes_nobody,
     {.all = "MINOR, ok, EEXIST, waits, WAKE ok, data", .anon = "MISSING, ok, EEXIST, waits, WAKE ok, copy",
      .huge_anon = "MISSING, ok, EEXIST, waits, WAKE ok, copy"},
     "EEXIST: WAKE", NULL, false},
    {"g-woken", "WAKE, and nothing is there", woken_for_nothing,
     {.all = "MINOR, WAKE ok, MINOR, data", .anon = "MISSING, WAKE ok, MISSING, copy",
      .huge_anon = "MISSING, WAKE ok, MISSING, copy"},
     "a successor wakes all: they ask again", NULL, false},
    {"g-unregister", "UNREGISTER while a thread waits", unregistered_both,
     {.all = "MINOR, ok, data", .anon = "MISSING, ok, zeros", .huge_anon = "MISSING, ok, zeros"},
     "COMPLETE: unregister, then WAKE", NULL, false},
    {"g-unregister-minor", "the same, MINOR registered alone", unregistered_minor,
     {.all = "MINOR, ok, waits, WAKE ok, data", .anon = "no cache", .huge_anon = "no cache"},
     NULL, NULL, false},
    {"g-close", "the last descriptor is closed while a thread waits", closed,
     {.all = "MISSING, zeros"},
     "two holders of every userfaultfd", NULL, false},
    {"g-close-one", "one of two is closed", closed_but_for_a_copy,
     {.all = "MISSING, waits, COPY ok, copy"},
     "two holders of every userfaultfd", NULL, false},
};
ROWS(wake_rows, "Who is woken");
