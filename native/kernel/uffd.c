/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real kernel_ops. This file alone decides what an errno of a uffd call means; each meaning names the test in
 * tests/native/test_uffd*.c that proves it on the kernel that runs.
 *
 * How the calls speak. The filling ones return 0 when all of it is done; otherwise errno says why they stopped, and a
 * signed field says how far they came, or repeats the errno negated, or was not written at all: it is preset to 0, and
 * only a positive value of it counts (test_gone_after_exit: ESRCH leaves it alone). Partial progress is always EAGAIN
 * with a positive field and hides the true reason, so the call goes on from there and meets it (test_partial_*).
 *
 *   EAGAIN, no progress  LATER   an event is unread, or its cause not over     test_later_while_a_remove_waits
 *   EEXIST               ALREADY and the sleepers are not woken                test_already_*, test_eexist_wakes_nobody
 *   EFAULT of CONTINUE   ABSENT  a hole                                        test_map_of_a_hole
 *   ENOENT               ABSENT  no registered mapping; with more than one     test_absent_after_unmap,
 *                                page perhaps two of them: halves are tried    test_call_across_a_split_mapping
 *   EINVAL of CONTINUE,  ABSENT  if the file now ends before the page          test_file_cut_short
 *   EFAULT of the others
 *   ENOMEM, ENOSPC       FULL                                                  test_full_tmpfs
 *   ESRCH                GONE                                                  test_gone_after_exit
 *   EIO of CONTINUE      BROKEN                                                test_broken_memory, which plays the answer
 *   all else             REFUSED                                               test_refused_*
 *
 * Where the kernel maps units larger than a page (huge pages of a pool), the calls that map take whole units only. A zero
 * page does not exist there: `zero` maps what fallocate has filled with zeros or, on private memory, copies zeros. `map`
 * of private units is a COPY out of the staging file, which forgets them then. EEXIST of these copies says nothing: it
 * also comes from an empty pool (Linux 6.18, test_full_pool_says_eexist). The VMM's page table knows better. Where we may
 * not look, bytes count as not there, or they would be forgotten and lost; of zeros the pool tells well enough.
 *
 * Where no mapping is left nobody else would wake who slept there: that is done here, before ABSENT is returned.
 */
#include "uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mapping.h"
#include "uapi.h"
#include "zap.h"

#define KERNEL_PAGE_BYTES UINT64_C(4096)

/* What is left of a span while a call works its way through it. */
struct rest {
    uint64_t address;
    uint64_t length_bytes;
    uint64_t file_offset;
    const uint8_t *bytes; /* of copies only */
};

/* One system call on the front of `rest`: 0 or the errno, and the field. */
struct attempt {
    int error;
    int64_t field;
};

typedef struct attempt attempt_fn(const struct uffd *uffd, const struct rest *rest, uint64_t length_bytes);

static struct attempt attempted(int rc, int64_t field)
{
    return (struct attempt){.error = rc < 0 ? errno : 0, .field = field};
}

static struct attempt attempt_map(const struct uffd *uffd, const struct rest *rest, uint64_t length_bytes)
{
    struct uffdio_continue arg = {.range = {.start = rest->address, .len = length_bytes}, .mapped = 0};
    int rc = ioctl(uffd->fd, UFFDIO_CONTINUE, &arg);

    return attempted(rc, arg.mapped);
}

static struct attempt attempt_copy(const struct uffd *uffd, const struct rest *rest, uint64_t length_bytes)
{
    struct uffdio_copy arg = {.dst = rest->address, .src = (uintptr_t)rest->bytes, .len = length_bytes, .copy = 0};
    int rc = ioctl(uffd->fd, UFFDIO_COPY, &arg);

    return attempted(rc, arg.copy);
}

static struct attempt attempt_zero(const struct uffd *uffd, const struct rest *rest, uint64_t length_bytes)
{
    struct uffdio_zeropage arg = {.range = {.start = rest->address, .len = length_bytes}, .zeropage = 0};
    int rc = ioctl(uffd->fd, UFFDIO_ZEROPAGE, &arg);

    return attempted(rc, arg.zeropage);
}

/* Where writes are tracked a clean page has a marker of its own, which POISON finds in its way: it counts as written first
 * (test_poison_where_writes_are_tracked). Where they are not there is no such range (ENOENT). */
static struct attempt attempt_poison(const struct uffd *uffd, const struct rest *rest, uint64_t length_bytes)
{
    struct uffdio_poison arg = {.range = {.start = rest->address, .len = length_bytes}, .updated = 0};
    int rc = ioctl(uffd->fd, UFFDIO_POISON, &arg), freed;

    if (rc < 0 && errno == EEXIST) {
        freed = zap_count_written(uffd->fd, rest->address, view_unit_bytes(&uffd->view));
        if (freed == -EAGAIN)
            return (struct attempt){.error = EAGAIN};
        arg.updated = 0;
        rc = ioctl(uffd->fd, UFFDIO_POISON, &arg);
    }
    return attempted(rc, arg.updated);
}

/* EEXIST of a COPY to a private unit: is it there? */
static bool unit_is_mapped(const struct uffd *uffd, const struct rest *rest)
{
    int present = uffd->vmm_pid > 0 ? mapping_page_present(uffd->vmm_pid, rest->address) : -EACCES;
    bool zeros = rest->bytes == uffd->view.zeros; /* to be there twice, or once more, is one to them */

    return present >= 0 ? present == 1 : zeros && !view_pool_is_empty(uffd->view.unit_bytes);
}

static int wake(const struct uffd *uffd, uint64_t address, uint64_t length_bytes)
{
    struct uffdio_range arg = {.start = address, .len = length_bytes};

    return ioctl(uffd->fd, UFFDIO_WAKE, &arg) < 0 ? errno : 0;
}

/* The file behind shared memory may have been cut by its owner: then there is no page, and an access raises SIGBUS. */
static bool beyond_end(const struct uffd *uffd, const struct rest *rest)
{
    struct stat file;

    if (uffd->backing_fd < 0 || fstat(uffd->backing_fd, &file) < 0)
        return false;
    return rest->file_offset >= (uint64_t)file.st_size; /* a page that the file ends in is there */
}

/* What an errno without progress means for the page at the front of `rest`. */
static enum kernel_result meaning(const struct uffd *uffd, const struct rest *rest, int error, attempt_fn *attempt)
{
    enum kernel_result result = KERNEL_REFUSED;

    if (error == EAGAIN)
        result = KERNEL_LATER;
    else if (error == EEXIST && attempt == attempt_copy && uffd->view.kind == VIEW_STAGING)
        result = unit_is_mapped(uffd, rest) ? KERNEL_ALREADY : KERNEL_FULL;
    else if (error == EEXIST)
        result = KERNEL_ALREADY;
    else if (error == ESRCH)
        result = KERNEL_GONE;
    else if (error == EIO && attempt == attempt_map)
        result = KERNEL_BROKEN;
    else if (error == ENOMEM || error == ENOSPC)
        result = KERNEL_FULL;
    else if (error == ENOENT || ((error == EINVAL || error == EFAULT) && beyond_end(uffd, rest)))
        result = KERNEL_ABSENT;
    else if (error == EFAULT && attempt == attempt_map)
        return KERNEL_ABSENT; /* a hole: the mapping is there, so its sleepers are the caller's */
    else if (error == EFAULT && uffd->view.kind == VIEW_STAGING)
        result = KERNEL_FULL; /* our own file had no memory for a page of it that nobody has written */
    if (result == KERNEL_ABSENT)
        wake(uffd, rest->address, view_unit_bytes(&uffd->view));
    return result;
}

static void advance(struct rest *rest, uint64_t length_bytes)
{
    rest->address += length_bytes;
    rest->length_bytes -= length_bytes;
    rest->file_offset += length_bytes;
    if (rest->bytes != NULL)
        rest->bytes += length_bytes;
}

static uint64_t half_of(uint64_t length_bytes, uint64_t unit_bytes)
{
    uint64_t half_bytes = length_bytes / 2 / unit_bytes * unit_bytes;

    return half_bytes != 0 ? half_bytes : unit_bytes;
}

/* Repeats `attempt` along the span until it is done or a page answers with something else than progress. */
static struct kernel_outcome along(const struct uffd *uffd, const struct kernel_span *span, const void *bytes,
                                   attempt_fn *attempt)
{
    struct rest rest = {span->address, span->length_bytes, span->file_offset, bytes};
    struct kernel_outcome outcome = {.result = KERNEL_MAPPED};
    uint64_t piece_bytes = rest.length_bytes, unit_bytes = view_unit_bytes(&uffd->view);

    while (rest.length_bytes != 0) {
        struct attempt made = attempt(uffd, &rest, piece_bytes);
        if (made.error == 0 && made.field <= 0)
            made.field = (int64_t)piece_bytes; /* a kernel that says 0 and nothing: all of it */
        outcome.parts += made.error == EAGAIN && made.field > 0;
        if (made.error == 0 || (made.error == EAGAIN && made.field > 0)) {
            advance(&rest, (uint64_t)made.field);
            piece_bytes = rest.length_bytes;
        } else if (made.error == ENOENT && piece_bytes > unit_bytes) {
            piece_bytes = half_of(piece_bytes, unit_bytes);
        } else {
            outcome.result = meaning(uffd, &rest, made.error, attempt);
            break;
        }
    }
    outcome.done_bytes = span->length_bytes - rest.length_bytes;
    return outcome;
}

/* Private units: what was gathered is copied in, and not needed any more. */
static struct kernel_outcome map_staged(const struct uffd *uffd, const struct kernel_span *span)
{
    struct kernel_outcome outcome;
    struct kernel_span done = *span;

    view_make_resident(&uffd->view, span);
    outcome = along(uffd, span, uffd->view.bytes + span->file_offset, attempt_copy);
    done.length_bytes = outcome.done_bytes;
    if (done.length_bytes != 0)
        view_punch(&uffd->view, -1, &done);
    return outcome;
}

static struct kernel_outcome op_map(void *kernel, const struct kernel_span *span)
{
    const struct uffd *uffd = kernel;

    return uffd->view.kind == VIEW_STAGING ? map_staged(uffd, span) : along(uffd, span, NULL, attempt_map);
}

static struct kernel_outcome op_copy(void *kernel, const struct kernel_span *span, const void *bytes)
{
    return along(kernel, span, bytes, attempt_copy);
}

static struct kernel_outcome zero_unit(const struct uffd *uffd, const struct kernel_span *unit)
{
    struct kernel_outcome room;

    if (uffd->view.kind == VIEW_STAGING)
        return along(uffd, unit, uffd->view.zeros, attempt_copy);
    room = view_allocate(&uffd->view, uffd->backing_fd, unit);
    return room.result == KERNEL_FULL ? room : along(uffd, unit, NULL, attempt_map); /* a file that was cut: it says so */
}

static struct kernel_outcome zero_units(const struct uffd *uffd, const struct kernel_span *span)
{
    struct kernel_outcome outcome = {.result = KERNEL_MAPPED};
    uint64_t unit_bytes = uffd->view.unit_bytes, done_bytes = 0;

    while (done_bytes < span->length_bytes && outcome.result == KERNEL_MAPPED) {
        struct kernel_span unit = {span->address + done_bytes, unit_bytes, span->file_offset + done_bytes};
        outcome = zero_unit(uffd, &unit);
        done_bytes += outcome.done_bytes;
    }
    outcome.done_bytes = done_bytes;
    return outcome;
}

static struct kernel_outcome op_zero(void *kernel, const struct kernel_span *span)
{
    const struct uffd *uffd = kernel;

    return uffd->view.zeros != NULL ? zero_units(uffd, span) : along(uffd, span, NULL, attempt_zero);
}

static struct kernel_outcome op_poison(void *kernel, const struct kernel_span *span)
{
    return along(kernel, span, NULL, attempt_poison);
}

/* WAKE looks at no mapping and knows no progress: it works after an unmap, and after the VMM's end. */
static struct kernel_outcome op_wake(void *kernel, const struct kernel_span *span)
{
    bool refused = wake(kernel, span->address, span->length_bytes) != 0;

    return (struct kernel_outcome){.result = refused ? KERNEL_REFUSED : KERNEL_MAPPED,
                                   .done_bytes = refused ? 0 : span->length_bytes};
}

/* ---------------------------------------------------------------------------- the page cache, through our own view */

static struct kernel_outcome op_populate(void *kernel, const struct kernel_span *span, const void *bytes)
{
    const struct uffd *uffd = kernel;

    return view_populate(&uffd->view, uffd->backing_fd, span, bytes);
}

static struct kernel_outcome op_punch(void *kernel, const struct kernel_span *span)
{
    const struct uffd *uffd = kernel;

    return view_punch(&uffd->view, uffd->backing_fd, span);
}

/* --------------------------------------------------------------------------------------------------------- events */

_Static_assert(KERNEL_FAULT_WRITE == UFFD_PAGEFAULT_FLAG_WRITE && KERNEL_FAULT_WP == UFFD_PAGEFAULT_FLAG_WP &&
                   KERNEL_FAULT_MINOR == UFFD_PAGEFAULT_FLAG_MINOR,
               "the flags are the kernel's own bits");
_Static_assert(KERNEL_EVENT_FAULT == UFFD_EVENT_PAGEFAULT && KERNEL_EVENT_FORK == UFFD_EVENT_FORK &&
                   KERNEL_EVENT_REMAP == UFFD_EVENT_REMAP && KERNEL_EVENT_REMOVE == UFFD_EVENT_REMOVE &&
                   KERNEL_EVENT_UNMAP == UFFD_EVENT_UNMAP,
               "the kinds are the kernel's own numbers");
#define SAME_PLACE(ours, theirs) (offsetof(struct kernel_event, ours) == offsetof(struct uffd_msg, theirs))
_Static_assert(sizeof(struct kernel_event) == sizeof(struct uffd_msg) && SAME_PLACE(kind, event) &&
                   SAME_PLACE(flags, arg.pagefault.flags) && SAME_PLACE(address, arg.pagefault.address) &&
                   SAME_PLACE(thread, arg.pagefault.feat.ptid) && SAME_PLACE(start, arg.remove.start) &&
                   SAME_PLACE(end, arg.remove.end),
               "an event is the kernel's message as it is");

/* The child's userfaultfd, put among our fds by the read. */
static void close_child(const struct kernel_event *event)
{
    struct uffd_msg message;

    memcpy(&message, event, sizeof(message));
    close((int)message.arg.fork.ufd);
}

/* One read(2), straight to where a successor would look (test_an_event_outlives_its_reader). The fd does not block; a
 * readable fd may still have nothing (EAGAIN), and so has one of a VMM that is gone (test_gone_after_exit). */
static int op_read_events(void *kernel, struct kernel_event *events, int capacity)
{
    const struct uffd *uffd = kernel;
    ssize_t got_bytes;
    int count;

    do {
        got_bytes = read(uffd->fd, events, (size_t)capacity * sizeof(events[0]));
    } while (got_bytes < 0 && errno == EINTR);
    count = got_bytes < 0 ? 0 : (int)((size_t)got_bytes / sizeof(events[0]));
    for (int i = 0; i < count; i++)
        if (events[i].kind == KERNEL_EVENT_FORK)
            close_child(&events[i]);
    return count;
}

const struct kernel_ops uffd_kernel_ops = {
    .read_events = op_read_events,
    .populate = op_populate,
    .map = op_map,
    .copy = op_copy,
    .zero = op_zero,
    .punch = op_punch,
    .poison = op_poison,
    .wake = op_wake,
};

/* -------------------------------------------------------------------------------------------------- registration */

/* UNREGISTER answers ENOMEM both for a VMM that is gone and for no memory. A COPY from where nothing can be read does
 * nothing to anybody, and answers ESRCH in the first case only. */
static bool vmm_is_gone(const struct uffd *uffd, uint64_t address)
{
    struct rest rest = {.address = address, .length_bytes = KERNEL_PAGE_BYTES, .bytes = NULL};

    return attempt_copy(uffd, &rest, KERNEL_PAGE_BYTES).error == ESRCH;
}

/* An argument that cannot be read is the first thing that a call which exists complains of, or that events are unread;
 * one that does not is EINVAL (test_can_poison). */
bool uffd_can_poison(const struct uffd *uffd)
{
    return ioctl(uffd->fd, UFFDIO_POISON, NULL) < 0 && errno != EINVAL;
}

/* UNREGISTER wakes the sleepers of MISSING registrations and not those of MINOR alone: WAKE by hand, always. */
int uffd_unregister(struct uffd *uffd, const struct kernel_span *span)
{
    struct uffdio_range arg = {.start = span->address, .len = span->length_bytes};
    int rc = ioctl(uffd->fd, UFFDIO_UNREGISTER, &arg) < 0 ? -errno : 0;

    wake(uffd, span->address, span->length_bytes);
    if (rc == -ESRCH || (rc == -ENOMEM && vmm_is_gone(uffd, span->address)))
        rc = 0;
    return rc;
}
