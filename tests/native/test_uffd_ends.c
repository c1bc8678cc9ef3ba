/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the real kernel_ops come to an end: no memory, no VMM, what the kernel will not do, memory that is broken. The
 * other results are in test_uffd.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "kernel/probe.h"
#include "kernel/uapi.h"
#include "real_vm.h"

#define PAGES 16
#define OPS (&uffd_kernel_ops)
static _Alignas(4096) uint8_t bytes[PAGES * 4096];
static bool poison_works; /* Linux 6.6 */

static bool start(struct real_vm *vm, enum real_memory memory)
{
    struct real_options options = {.memory = memory, .pages = PAGES};
    bool started = real_start(vm, &options);

    CHECK(started);
    return started;
}

/* --------------------------------------------------------------------------------------------- FULL, GONE, REFUSED */

/* A tmpfs of ten pages; after a punch there is room again. */
static void test_full_tmpfs(void)
{
    int file = real_tmpfs_file("40k", NULL, NULL);
    struct real_options options = {.memory = REAL_TMPFS, .pages = PAGES, .backing_fd = file};
    struct real_vm vm;

    CHECK(ftruncate(options.backing_fd, PAGES * 4096) == 0);
    if (real_start(&vm, &options)) {
        CHECK_OUTCOME(real_populate(&vm, 0, 8, 0x11), KERNEL_MAPPED, 8);
        CHECK_OUTCOME(real_populate(&vm, 8, 6, 0x22), KERNEL_FULL, 2);
        CHECK_OUTCOME(real_copy(&vm, 12, 1, 0x33), KERNEL_FULL, 0);
        CHECK_OUTCOME(real_call(OPS->zero, &vm, 12, 1), KERNEL_FULL, 0);
        CHECK_OUTCOME(real_call(OPS->map, &vm, 0, 10), KERNEL_MAPPED, 10);
        CHECK_OUTCOME(real_call(OPS->punch, &vm, 0, 2), KERNEL_MAPPED, 2);
        CHECK_OUTCOME(real_copy(&vm, 11, 4, 0x33), KERNEL_FULL, 2);
        CHECK_EQ(real_do(&vm, REAL_READ, 12, 1, 0), 0x33);
    } else {
        CHECK(false);
    }
    real_end(&vm);
}

static void test_gone_after_exit(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        struct kernel_event event;
        if (start(&vm, memory)) {
            struct kernel_span all = real_span(&vm, 0, PAGES);
            real_begin(&vm, REAL_READ, 3, 1, 0);
            CHECK(real_event_waits(&vm));
            real_kill(&vm);
            CHECK_EQ(OPS->read_events(&vm.uffd, &event, 1), 0);
            CHECK_OUTCOME(real_copy(&vm, 3, 2, 0x33), KERNEL_GONE, 0);
            CHECK_OUTCOME(real_call(OPS->zero, &vm, 3, 1), KERNEL_GONE, 0);
            CHECK_OUTCOME(real_call(OPS->poison, &vm, 3, 1), poison_works ? KERNEL_GONE : KERNEL_REFUSED, 0);
            CHECK_OUTCOME(real_call(OPS->wake, &vm, 3, 1), KERNEL_MAPPED, 1);
            CHECK_EQ(uffd_unregister(&vm.uffd, &all), 0);
            if (memory != REAL_PRIVATE) {
                CHECK_OUTCOME(real_populate(&vm, 3, 1, 0x33), KERNEL_MAPPED, 1);
                CHECK_OUTCOME(real_call(OPS->map, &vm, 3, 1), KERNEL_GONE, 0);
            }
        }
        real_end(&vm);
    }
}

/* An old kernel (before 6.6): no poison, and who would have met it sleeps on. */
static int without_poison(void)
{
    struct real_vm vm;

    if (real_deny_ioctl(UFFDIO_POISON, EINVAL) && start(&vm, REAL_MEMFD)) {
        real_begin(&vm, REAL_READ, 3, 1, 0);
        CHECK(real_faults(&vm, 3, 0));
        CHECK_OUTCOME(real_call(OPS->poison, &vm, 3, 1), KERNEL_REFUSED, 0);
        CHECK(real_sleeps(&vm));
        real_end(&vm);
        return check_bad;
    }
    return 1;
}

static void test_refused_poison_on_an_old_kernel(void)
{
    CHECK(real_apart(without_poison));
}

/* Memory errors cannot be made here, so the answer of the kernel to one is played. */
static int broken_memory(void)
{
    struct real_vm vm;

    if (real_deny_ioctl(UFFDIO_CONTINUE, EIO) && start(&vm, REAL_MEMFD)) {
        CHECK_OUTCOME(real_populate(&vm, 3, 2, 0x33), KERNEL_MAPPED, 2);
        real_begin(&vm, REAL_READ, 3, 1, 0);
        CHECK(real_faults(&vm, 3, KERNEL_FAULT_MINOR));
        CHECK_OUTCOME(real_call(OPS->map, &vm, 3, 2), KERNEL_BROKEN, 0);
        CHECK(real_sleeps(&vm));
        CHECK_OUTCOME(real_call(OPS->punch, &vm, 3, 1), KERNEL_MAPPED, 1);
        CHECK_OUTCOME(real_call(OPS->zero, &vm, 3, 1), KERNEL_MAPPED, 1);
        CHECK_EQ(real_answer(&vm), 0);
        real_end(&vm);
        return check_bad;
    }
    return 1;
}

static void test_broken_memory(void)
{
    CHECK(real_apart(broken_memory));
}

/* Private memory has no CONTINUE: a hand-off that called it shared must not look like a page cache with holes. */
static void test_refused_map_of_private_memory(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_PRIVATE)) {
        CHECK_OUTCOME(real_call(OPS->map, &vm, 3, 1), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(real_copy(&vm, 3, 1, 0x33), KERNEL_MAPPED, 1);
    }
    real_end(&vm);
}

static void test_refused_arguments(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD)) {
        struct kernel_span odd = {.address = vm.address + 100, .length_bytes = 4096, .file_offset = 0};
        struct kernel_span first = real_span(&vm, 0, 1);
        CHECK_OUTCOME(OPS->copy(&vm.uffd, &odd, bytes), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(OPS->zero(&vm.uffd, &odd), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(OPS->map(&vm.uffd, &odd), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(OPS->poison(&vm.uffd, &odd), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(OPS->wake(&vm.uffd, &odd), KERNEL_REFUSED, 0);
        CHECK_OUTCOME(OPS->copy(&vm.uffd, &first, NULL), KERNEL_REFUSED, 0);
    }
    real_end(&vm);
}

static void test_refused_file(void)
{
    struct kernel_span first = {.length_bytes = 4096};
    struct uffd uffd = {.fd = -1, .backing_fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING)};

    CHECK(ftruncate(uffd.backing_fd, 4096) == 0 && fcntl(uffd.backing_fd, F_ADD_SEALS, F_SEAL_WRITE) == 0);
    CHECK_OUTCOME(OPS->populate(&uffd, &first, bytes), KERNEL_REFUSED, 0);
    CHECK_OUTCOME(OPS->punch(&uffd, &first), KERNEL_REFUSED, 0);
    close(uffd.backing_fd);
}

int main(void)
{
    struct probe probe;

    probe_run(-1, true, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_GOOD) {
        SKIP(test_uffd_ends, "no userfaultfd right");
        return check_done();
    }
    poison_works = probe.facts[PROBE_POISON].verdict == PROBE_GOOD;
    if (geteuid() == 0)
        RUN(test_full_tmpfs);
    else
        SKIP(test_full_tmpfs, "needs root: to make a small tmpfs");
    RUN(test_gone_after_exit);
    RUN(test_refused_poison_on_an_old_kernel);
    RUN(test_broken_memory);
    RUN(test_refused_map_of_private_memory);
    RUN(test_refused_arguments);
    RUN(test_refused_file);
    return check_done();
}
