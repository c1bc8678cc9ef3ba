/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scratch memory of every kind, registered, missed, filled, zapped and poisoned: see trial.h.
 *
 * Every fault on the way is taken by a thread of ours in the kernel (touch.h), and where its answer fails the
 * registration is ended, which lets it go: no trial waits for longer than PATIENCE_MS.
 */
#include "trial.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "create.h"
#include "scan.h"
#include "scratch.h"
#include "uapi.h"

#define PATIENCE_MS 1000
#define CALL(name) (UINT64_C(1) << _UFFDIO_##name)
#define SHMEM_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM)
#define HUGETLB_FEATURES (UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS)

static const struct scratch_kind kinds[] = {
    [TRIAL_MEMFD] = {SCRATCH_PAGE_BYTES, SHMEM_FEATURES, true, false},
    [TRIAL_TMPFS] = {SCRATCH_PAGE_BYTES, SHMEM_FEATURES, true, true},
    [TRIAL_PRIVATE] = {SCRATCH_PAGE_BYTES, 0, false, false},
    [TRIAL_HUGE_SHARED] = {SCRATCH_HUGE_BYTES, HUGETLB_FEATURES, true, false},
    [TRIAL_HUGE_PRIVATE] = {SCRATCH_HUGE_BYTES, UFFD_FEATURE_MISSING_HUGETLBFS, false, false},
};

/* -------------------------------------------------------------------------------------------------- the faults */

enum expected { NO_EVENT, MISSING_EVENT, MINOR_EVENT };

static int await_event(const struct scratch *scratch, const struct touch *touch, enum expected expected)
{
    struct pollfd ready[] = {{.fd = scratch->uffd, .events = POLLIN}, {.fd = touch->pipe_fds[0], .events = POLLIN}};
    struct uffd_msg message = {0};
    int count, rc = -ENOMSG;

    do {
        count = poll(ready, 2, PATIENCE_MS);
    } while (count < 0 && errno == EINTR);
    if ((ready[0].revents & POLLIN) != 0 && read(scratch->uffd, &message, sizeof(message)) == sizeof(message)) {
        bool minor = (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0;
        bool right = message.event == UFFD_EVENT_PAGEFAULT && minor == (expected == MINOR_EVENT);
        rc = right && expected != NO_EVENT ? 0 : -EBADMSG;
    } else if (ready[1].revents != 0 && expected == NO_EVENT) {
        rc = 0;
    }
    return rc;
}

typedef int answer_fn(const struct scratch *scratch);

/* The kernel reads the first bytes of a page for us: the event that is expected comes, the answer lets it see them. */
static int meet(const struct scratch *scratch, uint64_t offset, enum expected expected, answer_fn *answer,
                const char *bytes)
{
    struct touch touch;
    int rc = touch_begin(&touch, scratch->start + offset), ended;

    if (rc < 0)
        return rc;
    rc = await_event(scratch, &touch, expected);
    if (rc == 0 && answer != NULL)
        rc = answer(scratch);
    if (rc < 0)
        scratch_let_go(scratch);
    ended = touch_end(&touch);
    if (ended < 0 && (rc == 0 || rc == -ENOMSG))
        rc = ended;
    if (rc == 0 && memcmp(touch.bytes, bytes, TOUCH_BYTES) != 0)
        rc = -EBADMSG;
    return rc;
}

/* -------------------------------------------------------------------------------------------------- the trials */

static bool in(const int *errnos, int rc)
{
    for (; *errnos != 0; errnos++)
        if (rc == -*errnos)
            return true;
    return false;
}

/* Sets the step and its result aside; goes on while nothing is wrong. `absence`: errnos that say "not here". */
static bool step(struct trial *trial, const char *name, int rc, const int *absence)
{
    trial->step = name;
    trial->error = rc;
    trial->end = rc < 0 ? TRIAL_FAILED : TRIAL_WORKS;
    if (rc < 0 && absence != NULL && in(absence, rc))
        trial->end = TRIAL_ABSENT;
    return rc == 0;
}

static const int no_such_memory[] = {ENOSYS, EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EISDIR, EACCES, EROFS, EPERM, 0};
static const int no_such_pool[] = {ENOSYS, EINVAL, ENODEV, EOPNOTSUPP, 0};
/* COPY to a huge page says EEXIST where there is nothing, if the pool has none to give. */
static const int no_page_free[] = {ENOMEM, ENOSPC, EEXIST, 0};
static const int no_such_feature[] = {EOPNOTSUPP, 0};
static const int no_such_mode[] = {EINVAL, EOPNOTSUPP, 0};
static const int no_such_call[] = {EINVAL, ENOTTY, EOPNOTSUPP, 0};

static int register_all(const struct scratch *scratch, struct trial *trial)
{
    uint64_t mode = UFFDIO_REGISTER_MODE_MISSING | (scratch->kind->shared ? UFFDIO_REGISTER_MODE_MINOR : 0);
    uint64_t needed = CALL(WAKE) | CALL(COPY) | (scratch->kind->shared ? CALL(CONTINUE) : 0);
    int rc = scratch_register(scratch, mode, &trial->calls);

    if (!scratch_is_huge(scratch))
        needed |= CALL(ZEROPAGE);
    return rc == 0 && (trial->calls & needed) != needed ? -EOPNOTSUPP : rc;
}

/* Through the alias, while nothing is mapped: it is there, and yet no read gets past us. */
static int zap_and_write(const struct scratch *scratch)
{
    int rc = scratch_zap(scratch);

    if (rc == 0 && scratch->alias != MAP_FAILED)
        scratch->alias[1] = 'm';
    return rc;
}

static void try_poison(const struct scratch *scratch, struct trial *trial)
{
    int rc = (trial->calls & CALL(POISON)) == 0 ? -EOPNOTSUPP : scratch_zap(scratch);

    if (rc == 0)
        rc = scratch_poison(scratch);
    trial->poison = in(no_such_call, rc) ? TRIAL_ABSENT : TRIAL_FAILED;
    if (rc == 0)
        rc = touch_for_signal(scratch->start, &trial->signal);
    if (rc == 0 && trial->signal.code == 0)
        rc = -EBADMSG; /* it could be read */
    if (rc == 0)
        trial->poison = TRIAL_WORKS;
    trial->poison_error = rc;
}

static bool try_memory(struct scratch *scratch, int device_fd, struct trial *trial)
{
    bool shared = scratch->kind->shared, huge = scratch_is_huge(scratch), goes_on;
    answer_fn *fill = shared && huge ? scratch_fill_by_alias : scratch_copy;

    goes_on = step(trial, "the memory", scratch_map(scratch), huge ? no_such_pool : no_such_memory) &&
              step(trial, "UFFDIO_API", scratch_uffd(scratch, device_fd), no_such_feature) &&
              step(trial, "UFFDIO_REGISTER", register_all(scratch, trial), no_such_mode) &&
              step(trial, "a missing page", meet(scratch, 0, MISSING_EVENT, fill, "c"), NULL);
    trial->told = goes_on;
    if (goes_on && !huge)
        goes_on = step(trial, "UFFDIO_ZEROPAGE", scratch_zeropage(scratch), NULL) &&
                  step(trial, "a zero page", meet(scratch, SCRATCH_PAGE_BYTES, NO_EVENT, NULL, "\0"), NULL);
    goes_on = goes_on && step(trial, "MADV_DONTNEED", zap_and_write(scratch), huge ? no_such_mode : NULL);
    if (goes_on && shared)
        goes_on = step(trial, "a page that is zapped", meet(scratch, 0, MINOR_EVENT, scratch_continue, "cm"), NULL);
    else if (goes_on)
        goes_on = step(trial, "a page that is zapped", meet(scratch, 0, MISSING_EVENT, fill, "c"), NULL);
    return goes_on;
}

void trial_run(enum trial_kind kind, int device_fd, struct trial *trial)
{
    struct scratch scratch;

    memset(trial, 0, sizeof(*trial));
    trial->poison = TRIAL_ABSENT;
    scratch_init(&scratch, &kinds[kind]);
    if (try_memory(&scratch, device_fd, trial))
        try_poison(&scratch, trial);
    else if (scratch_is_huge(&scratch) && in(no_page_free, trial->error))
        trial->end = TRIAL_UNTRIED; /* others have taken it meanwhile */
    scratch_close(&scratch);
}

/* Whether it can be filled is another question. */
static int answered_by_the_end(const struct scratch *scratch)
{
    scratch_let_go(scratch);
    return 0;
}

int trial_kernel_fault(int uffd)
{
    struct uffdio_api handshake = {.api = UFFD_API};
    struct scratch scratch;
    uint64_t calls;
    int rc;

    scratch_init(&scratch, &kinds[TRIAL_PRIVATE]);
    rc = scratch_map(&scratch);
    scratch.uffd = uffd;
    if (rc == 0 && ioctl(uffd, UFFDIO_API, &handshake) < 0)
        rc = -errno;
    if (rc == 0)
        rc = scratch_register(&scratch, UFFDIO_REGISTER_MODE_MISSING, &calls);
    if (rc == 0)
        rc = meet(&scratch, 0, MISSING_EVENT, answered_by_the_end, "\0");
    scratch.uffd = -1;
    scratch_close(&scratch);
    return rc;
}

/* ---------------------------------------------------------------------------------------------- dirty tracking */

/* By the kernel, which gets an errno where a store of ours would get a signal. */
static int write_page(uint8_t *page)
{
    int pipe_fds[2], rc;

    if (pipe2(pipe_fds, O_CLOEXEC) < 0)
        return -errno;
    rc = write(pipe_fds[1], "d", 1) == 1 && read(pipe_fds[0], page, 1) == 1 ? 0 : -errno;
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return rc;
}

static int dirty_alone(int pagemap_fd, uint64_t start, uint64_t end, uint64_t page)
{
    struct scan_range ranges[SCAN_RANGES_MAX];
    uint64_t looked_end = 0;
    int count = scan_calls.dirty(pagemap_fd, start, end, ranges, &looked_end);
    bool alone = count == 1 && ranges[0].start == page && ranges[0].end == page + SCRATCH_PAGE_BYTES;

    return count < 0 ? count : alone ? 0 : -EBADMSG;
}

void trial_dirty(int device_fd, struct trial *trial)
{
    static const struct scratch_kind tracked = {SCRATCH_PAGE_BYTES, CREATE_TRACK_FEATURES, true, false};
    static const int no_such_scan[] = {ENOTTY, EINVAL, 0}, no_pagemap[] = {ESRCH, EACCES, EPERM, 0};
    struct scratch scratch;
    uint64_t start, end;
    int pagemap_fd = scan_open(getpid(), -1), rc;

    memset(trial, 0, sizeof(*trial));
    scratch_init(&scratch, &tracked);
    if (!step(trial, "/proc/self/pagemap", in(no_pagemap, pagemap_fd) ? pagemap_fd : 0, no_pagemap) ||
        !step(trial, "the memory", scratch_map(&scratch), no_such_memory)) {
        if (trial->end == TRIAL_ABSENT)
            trial->end = TRIAL_UNTRIED;
        goto out;
    }
    if (!step(trial, "UFFDIO_API", scratch_uffd(&scratch, device_fd), no_such_feature))
        goto out;
    rc = scratch_register(&scratch, UFFDIO_REGISTER_MODE_WP, &trial->calls);
    if (!step(trial, "UFFDIO_REGISTER", rc, no_such_mode) ||
        !step(trial, "PAGEMAP_SCAN", pagemap_fd < 0 ? pagemap_fd : 0, no_such_scan))
        goto out;
    start = (uintptr_t)scratch.start;
    end = start + scratch.length_bytes;
    if (step(trial, "a first write", write_page(scratch.start), NULL) &&
        step(trial, "a reset", scan_calls.reset(pagemap_fd, start, end), NULL) &&
        step(trial, "a write", write_page(scratch.start + SCRATCH_PAGE_BYTES), NULL))
        step(trial, "a look", dirty_alone(pagemap_fd, start, end, start + SCRATCH_PAGE_BYTES), NULL);
out:
    if (pagemap_fd >= 0)
        close(pagemap_fd);
    scratch_close(&scratch);
}

/* ------------------------------------------------------------------------------------------------------- words */

void trial_call_names(uint64_t calls, char *text, size_t capacity)
{
    static const struct {
        uint64_t bit;
        const char *name;
    } names[] = {{CALL(WAKE), "WAKE"},         {CALL(COPY), "COPY"},
                 {CALL(ZEROPAGE), "ZEROPAGE"}, {CALL(CONTINUE), "CONTINUE"},
                 {CALL(POISON), "POISON"},     {CALL(WRITEPROTECT), "WRITEPROTECT"}};
    size_t used = 0;

    text[0] = '\0';
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && used < capacity; i++)
        if ((calls & names[i].bit) != 0)
            used += (size_t)snprintf(text + used, capacity - used, "%s%s", used != 0 ? " " : "", names[i].name);
}

const char *trial_error_text(int error)
{
    return error == -ENOMSG ? "no event came" : error == -EBADMSG ? "another event, or other bytes" : strerror(-error);
}
