/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake, who may, and what a registration offers: section a of the kernel facts. */
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "matrix.h"

#define WANTED (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS | \
                UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_POISON | ASYNC)
#define NO_FEATURE (UINT64_C(1) << 62)
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif

static int bare(int flags)
{
    return (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);
}

static int shake(int uffd, uint64_t features, struct uffdio_api *api)
{
    *api = (struct uffdio_api){.api = UFFD_API, .features = features};
    return ioctl(uffd, UFFDIO_API, api) < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------------------------------------------- handshake */

static void before_the_handshake(struct bed *bed)
{
    struct uffd_msg message;
    int uffd = bare(O_NONBLOCK);
    struct pollfd one = {.fd = uffd, .events = POLLIN};

    say(bed, "REGISTER %s", word(register_range(uffd, bed->area, bed->bytes, MISSING, NULL)));
    say(bed, "read %s", word(read(uffd, &message, sizeof(message)) < 0 ? -errno : 0));
    say(bed, "poll %s", poll(&one, 1, 0) == 1 && one.revents == POLLERR ? "POLLERR" : "other");
}

static void no_features(struct bed *bed)
{
    struct uffdio_api api;

    say(bed, "%s", word(shake(bare(O_NONBLOCK), 0, &api)));
    say(bed, "%s", (api.features & WANTED) == WANTED ? "has all that we use" : "lacks some");
}

static void some_features(struct bed *bed)
{
    struct uffdio_api all, some;

    shake(bare(O_NONBLOCK), 0, &all);
    say(bed, "%s", word(shake(bare(O_NONBLOCK), UFFD_FEATURE_MINOR_SHMEM, &some)));
    say(bed, "%s", some.features == all.features ? "all there are" : "others");
}

static void an_unknown_feature(struct bed *bed)
{
    struct uffdio_api api;
    int uffd = bare(O_NONBLOCK);

    say(bed, "%s", word(shake(uffd, NO_FEATURE, &api)));
    say(bed, "%s", api.features == 0 && api.api == 0 ? "zeroed" : "kept");
    say(bed, "again %s", word(shake(uffd, 0, &api)));
}

static void a_second_handshake(struct bed *bed)
{
    struct uffdio_api api;
    int uffd = bare(O_NONBLOCK);

    shake(uffd, 0, &api);
    say(bed, "%s", word(shake(uffd, 0, &api)));
}

static void fork_event_without_the_right(struct bed *bed)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[2] = {0};
    struct uffdio_api api;
    int uffd = bare(O_NONBLOCK);

    syscall(SYS_capset, &head, none);
    say(bed, "%s", word(shake(uffd, UFFD_FEATURE_EVENT_FORK, &api)));
}

static void a_blocking_one(struct bed *bed)
{
    struct uffdio_api api;
    int uffd = bare(0);
    struct pollfd one = {.fd = uffd, .events = POLLIN};

    shake(uffd, 0, &api);
    say(bed, "poll %s", poll(&one, 1, 0) == 1 && one.revents == POLLERR ? "POLLERR" : "other");
}

static void user_mode_alone(struct bed *bed)
{
    struct uffdio_api api;
    struct actor actor;

    bed->uffd = bare(O_NONBLOCK | UFFD_USER_MODE_ONLY);
    shake(bed->uffd, 0, &api);
    register_range(bed->uffd, bed->area, bed->bytes, MISSING, NULL);
    say(bed, "%s", meets(bed, &actor, ACT_SEND, 0));
    say(bed, "%s", ends(&actor));
}

static void a_file_open_for_reading(struct bed *bed)
{
    char path[64];
    int file = memfd_create("matrix", MFD_CLOEXEC), read_only;
    void *area;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", file);
    read_only = open(path, O_RDONLY | O_CLOEXEC);
    if (!enable(bed, 0) || ftruncate(file, (off_t)bed->bytes) < 0)
        return;
    area = mmap(NULL, bed->bytes, PROT_READ, MAP_SHARED, read_only, 0);
    say(bed, "%s", word(register_range(bed->uffd, area, bed->bytes, MISSING | MINOR, NULL)));
}

static const struct row handshake_rows_table[] = {
    {"a-before", "anything before UFFDIO_API", before_the_handshake,
     {.all = "REGISTER EINVAL, read EINVAL, poll POLLERR"},
     "probe: two descriptors", NULL, true},
    {"a-none", "UFFDIO_API, no feature asked", no_features,
     {.all = "ok, has all that we use"},
     "probe: the first learns what there is", NULL, true},
    {"a-some", "UFFDIO_API, one feature asked: which come back", some_features,
     {.all = "ok, all there are"},
     "the bits that come back do not say what is enabled", NULL, true},
    {"a-unknown", "UFFDIO_API, a feature that nobody knows", an_unknown_feature,
     {.all = "EINVAL, zeroed, again ok"},
     "probe: a refusal tells nothing", NULL, true},
    {"a-second", "UFFDIO_API a second time", a_second_handshake,
     {.all = "EINVAL"},
     "probe: two descriptors", NULL, true},
    {"a-fork-right", "EVENT_FORK without CAP_SYS_PTRACE", fork_event_without_the_right,
     {.all = "EPERM"},
     "no EVENT_FORK: MADV_DONTFORK", NULL, true},
    {"a-blocking", "a userfaultfd without O_NONBLOCK", a_blocking_one,
     {.all = "poll POLLERR"},
     "hand-off: it must be non-blocking", NULL, true},
    {"a-user-mode", "USER_MODE_ONLY, and the kernel reads an absent page", user_mode_alone,
     {.all = "none, EFAULT"},
     "refused for VMs", NULL, true},
    {"a-read-only", "REGISTER of a mapping of a file open for reading", a_file_open_for_reading,
     {.all = "EPERM"},
     "hand-off: the RAM file is open for writing", NULL, true},
};
ROWS(handshake_rows, "Handshake, and who may");

/* -------------------------------------------------------------------------------------------------------- register */

static void offered(struct bed *bed, uint64_t modes)
{
    static const struct {
        int number;
        const char *name;
    } calls[] = {{_UFFDIO_WAKE, "WAKE"}, {_UFFDIO_COPY, "COPY"}, {_UFFDIO_ZEROPAGE, "ZERO"}, {0x05, "MOVE"},
                 {_UFFDIO_POISON, "POISON"}, {_UFFDIO_WRITEPROTECT, "WP"}, {_UFFDIO_CONTINUE, "CONTINUE"}};
    uint64_t ioctls = 0;
    char names[ANSWER_BYTES] = "";
    int rc = enable(bed, ASYNC & ~(uint64_t)UFFD_FEATURE_WP_ASYNC);

    if (rc == 0)
        return;
    rc = register_range(bed->uffd, bed->area, bed->bytes, modes, &ioctls);
    for (size_t i = 0; rc == 0 && i < sizeof(calls) / sizeof(calls[0]); i++)
        if ((ioctls >> calls[i].number & 1) != 0)
            snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s", names[0] != '\0' ? " " : "",
                     calls[i].name);
    say(bed, "%s", rc == 0 ? names : word(rc));
}

static void register_missing(struct bed *bed)
{
    offered(bed, MISSING);
}

static void register_minor(struct bed *bed)
{
    offered(bed, MINOR);
}

static void register_wp(struct bed *bed)
{
    offered(bed, WP);
}

static void register_missing_minor(struct bed *bed)
{
    offered(bed, MISSING | MINOR);
}

static void register_all(struct bed *bed)
{
    offered(bed, MISSING | MINOR | WP);
}

static void register_twice(struct bed *bed)
{
    struct bed other = *bed;

    if (start(bed, 0, MISSING)) {
        say(bed, "same %s", word(register_range(bed->uffd, bed->area, bed->bytes, MISSING, NULL)));
        if (enable(&other, 0))
            say(bed, "other %s", word(register_range(other.uffd, bed->area, bed->bytes, MISSING, NULL)));
    }
}

static void register_protected(struct bed *bed)
{
    if (!enable(bed, 0) || mprotect(bed->area, bed->bytes, PROT_READ) < 0)
        return;
    say(bed, "%s", word(register_range(bed->uffd, bed->area, bed->bytes, MISSING, NULL)));
}

static const struct row register_rows_table[] = {
    {"a-missing", "REGISTER for MISSING: calls offered", register_missing,
     {.all = "WAKE COPY ZERO MOVE POISON", .huge = "WAKE COPY POISON"},
     "hand-off: private memory", "register-ioctls", false},
    {"a-minor", "REGISTER for MINOR", register_minor,
     {.all = "WAKE COPY ZERO MOVE POISON CONTINUE", .huge = "WAKE COPY POISON CONTINUE", .anon = "EINVAL"},
     NULL, "register-ioctls", false},
    {"a-wp", "REGISTER for WP", register_wp,
     {.all = "WAKE COPY ZERO MOVE POISON WP", .huge = "WAKE COPY POISON WP"},
     "role `track`", "register-ioctls", false},
    {"a-both", "REGISTER for MISSING and MINOR", register_missing_minor,
     {.all = "WAKE COPY ZERO MOVE POISON CONTINUE", .huge = "WAKE COPY POISON CONTINUE", .anon = "EINVAL"},
     "hand-off: shared memory", "register-ioctls", false},
    {"a-all", "REGISTER for all three", register_all,
     {.all = "WAKE COPY ZERO MOVE POISON WP CONTINUE", .huge = "WAKE COPY POISON WP CONTINUE", .anon = "EINVAL"},
     "role `both`", "register-ioctls", false},
    {"a-twice", "REGISTER again: by the same, by another userfaultfd", register_twice,
     {.all = "same ok, other EBUSY"},
     "one userfaultfd a region", NULL, false},
    {"a-protected", "REGISTER of a mapping that is PROT_READ now", register_protected,
     {.all = "ok"},
     NULL, NULL, false},
};
ROWS(register_rows, "Registration");
