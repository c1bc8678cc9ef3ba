/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events and sleepers on the real kernel: what read_events gives, when a call is to come LATER, who wakes whom, and
 * what is left when a registration ends. The results of the filling calls are in test_uffd.c.
 */
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/create.h"
#include "kernel/uapi.h"
#include "real_vm.h"

#define PAGES 16
#define OPS (&uffd_kernel_ops)

static _Alignas(4096) uint8_t bytes[PAGES * 4096];

static bool start_with(struct real_vm *vm, enum real_memory memory, uint64_t features, uint64_t modes)
{
    struct real_options options = {.memory = memory, .pages = PAGES, .features = features, .modes = modes};
    bool started = real_start(vm, &options);

    CHECK(started);
    return started;
}

static uint64_t page_of(const struct real_vm *vm, uint64_t address)
{
    return (address - vm->address) / REAL_PAGE;
}

/* --------------------------------------------------------------------------------------------------------- reading */

/* Five threads, five pages: at most `capacity` a read, none twice, then 0 without waiting. */
static void test_events_up_to_capacity(void)
{
    struct real_vm vm;

    if (start_with(&vm, REAL_MEMFD, UFFD_FEATURE_THREAD_ID, 0)) {
        struct kernel_event events[PAGES];
        unsigned seen = 0;
        int count = 0;
        for (uint64_t page = 0; page < 5; page++)
            real_begin(&vm, REAL_READ, page, 1, 0);
        while (count < 5 && real_event_waits(&vm)) {
            int got = OPS->read_events(&vm.uffd, events, 2);
            CHECK(got >= 0 && got <= 2);
            for (int i = 0; i < got; i++) {
                CHECK_EQ(events[i].kind, KERNEL_EVENT_FAULT);
                CHECK(events[i].thread > (uint32_t)vm.pid);
                seen |= 1u << page_of(&vm, events[i].address);
            }
            count += got;
        }
        CHECK_EQ(seen, 0x1f);
        CHECK_EQ(OPS->read_events(&vm.uffd, events, PAGES), 0);
        CHECK_EQ(real_copy(&vm, 0, 5, 0x11).result, KERNEL_MAPPED);
        for (int i = 0; i < 5; i++)
            CHECK_EQ(real_answer(&vm), 0x11);
    }
    real_end(&vm);
}

/* n threads on one page are n events, and one call wakes them all. */
static void test_many_threads_on_one_page(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start_with(&vm, memory, 0, 0)) {
            for (int i = 0; i < 4; i++) {
                real_begin(&vm, REAL_READ, 9, 1, 0);
                CHECK(real_faults(&vm, 9, 0));
            }
            CHECK_EQ(real_copy(&vm, 9, 1, 0x99).result, KERNEL_MAPPED);
            for (int i = 0; i < 4; i++)
                CHECK_EQ(real_answer(&vm), 0x99);
        }
        real_end(&vm);
    }
}

static void test_exact_addresses_are_pages_all_the_same(void)
{
    struct real_vm vm;

    if (start_with(&vm, REAL_MEMFD, UFFD_FEATURE_EXACT_ADDRESS, 0)) {
        real_begin(&vm, REAL_READ, 3, 1, 0);
        CHECK(real_faults(&vm, 3, 0));
    }
    real_end(&vm);
}

/* Runs a traced child up to the end of its next read(fd), and kills it there. What the read returned. */
static int64_t kill_after_read(pid_t child, int fd)
{
    struct __ptrace_syscall_info info = {0};
    bool reading = false;
    int status;

    while (waitpid(child, &status, 0) == child && WIFSTOPPED(status)) {
        ptrace(PTRACE_SETOPTIONS, child, NULL, PTRACE_O_TRACESYSGOOD); /* calls and signals are told apart */
        if (ptrace(PTRACE_GET_SYSCALL_INFO, child, sizeof(info), &info) < 0)
            break;
        if (reading && info.op == PTRACE_SYSCALL_INFO_EXIT)
            break;
        reading = info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_read &&
                  info.entry.args[0] == (uint64_t)fd;
        ptrace(PTRACE_SYSCALL, child, NULL, NULL);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return reading ? info.exit.rval : -1;
}

/* A worker may be killed before it has taken another step. The kernel does not tell twice of a page that is dropped: a
 * reader that had kept events to itself until it had put them in order lost that one, and with it the guest's zeros. */
static void test_an_event_outlives_its_reader(void)
{
    struct real_vm vm;
    struct kernel_event *batch = mmap(NULL, PAGES * sizeof(*batch), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                                      -1, 0);

    if (start_with(&vm, REAL_PRIVATE, UFFD_FEATURE_EVENT_REMOVE, 0)) {
        pid_t child;
        real_begin(&vm, REAL_ADVISE, 4, 3, MADV_DONTNEED);
        CHECK(real_event_waits(&vm));
        child = fork();
        if (child == 0) {
            ptrace(PTRACE_TRACEME, 0, NULL, NULL);
            raise(SIGSTOP);
            OPS->read_events(&vm.uffd, batch, PAGES);
            _exit(0);
        }
        CHECK_EQ(kill_after_read(child, vm.uffd.fd), sizeof(*batch));
        CHECK_EQ(batch[0].kind, KERNEL_EVENT_REMOVE);
        CHECK_EQ(page_of(&vm, batch[0].start), 4);
        CHECK_EQ(page_of(&vm, batch[0].end), 7);
        CHECK_EQ(real_answer(&vm), 0);
    }
    real_end(&vm);
    munmap(batch, PAGES * sizeof(*batch));
}

static int open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;

    while (folder != NULL && readdir(folder) != NULL)
        count++;
    if (folder != NULL)
        closedir(folder);
    return count;
}

/* The kernel puts the child's userfaultfd among our fds when the event is read. */
static void test_fork_event_leaks_no_fd(void)
{
    struct real_vm vm;

    if (start_with(&vm, REAL_PRIVATE, UFFD_FEATURE_EVENT_FORK, 0)) {
        struct kernel_event event;
        int before = open_fds();
        real_begin(&vm, REAL_FORK, 0, 0, 0);
        CHECK(real_event(&vm, &event));
        CHECK_EQ(event.kind, KERNEL_EVENT_FORK);
        CHECK_EQ(open_fds(), before);
        CHECK_EQ(real_answer(&vm), 0);
    }
    real_end(&vm);
}

static void test_remap_and_unmap_events(void)
{
    struct real_vm vm;

    if (start_with(&vm, REAL_PRIVATE, UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_UNMAP, 0)) {
        struct kernel_event event;
        real_begin(&vm, REAL_MOVE, 2, 2, 0);
        CHECK(real_event(&vm, &event));
        CHECK_EQ(event.kind, KERNEL_EVENT_REMAP);
        CHECK(real_event(&vm, &event)); /* of the old place */
        CHECK_EQ(event.kind, KERNEL_EVENT_UNMAP);
        CHECK_EQ(real_answer(&vm), 0);
        real_begin(&vm, REAL_UNMAP, 8, 3, 0);
        CHECK(real_event(&vm, &event));
        CHECK_EQ(event.kind, KERNEL_EVENT_UNMAP);
        CHECK_EQ(page_of(&vm, event.start), 8);
        CHECK_EQ(page_of(&vm, event.end), 11);
        CHECK_EQ(real_answer(&vm), 0);
    }
    real_end(&vm);
}

/* ----------------------------------------------------------------------------------------------------------- LATER */

/* While a REMOVE is unread nothing can be filled anywhere; the thread that drops memory waits until it is read. After
 * the read it may still be on its way, and the answer LATER for an instant more. */
static void test_later_while_a_remove_waits(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start_with(&vm, memory, UFFD_FEATURE_EVENT_REMOVE, 0)) {
            struct kernel_event event;
            struct kernel_outcome outcome;
            CHECK_EQ(real_copy(&vm, 0, 1, 0x11).result, KERNEL_MAPPED);
            real_begin(&vm, REAL_ADVISE, 4, 3, MADV_DONTNEED);
            CHECK(real_event_waits(&vm));
            outcome = real_copy(&vm, 10, 2, 0x22);
            CHECK_EQ(outcome.result, KERNEL_LATER);
            CHECK_EQ(outcome.done_bytes, 0);
            CHECK_EQ(real_call(OPS->zero, &vm, 10, 1).result, KERNEL_LATER);
            if (memory != REAL_PRIVATE)
                CHECK_EQ(real_call(OPS->map, &vm, 10, 1).result, KERNEL_LATER);
            CHECK_EQ(real_call(OPS->wake, &vm, 10, 1).result, KERNEL_MAPPED);
            CHECK(real_sleeps(&vm));
            CHECK(real_event(&vm, &event));
            CHECK_EQ(event.kind, KERNEL_EVENT_REMOVE);
            CHECK_EQ(page_of(&vm, event.start), 4);
            CHECK_EQ(page_of(&vm, event.end), 7);
            CHECK_EQ(real_answer(&vm), 0);
            CHECK_EQ(real_copy(&vm, 10, 2, 0x22).result, KERNEL_MAPPED);
            CHECK_EQ(real_do(&vm, REAL_READ, 11, 1, 0), 0x22);
        }
        real_end(&vm);
    }
}

/* DONTNEED of what is mapped: on shared memory a minor fault on the same bytes, on private memory they are gone. */
static void test_what_dontneed_drops(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start_with(&vm, memory, 0, 0)) {
            bool shared = memory != REAL_PRIVATE;
            CHECK_EQ(real_copy(&vm, 2, 1, 0x22).result, KERNEL_MAPPED);
            CHECK_EQ(real_do(&vm, REAL_ADVISE, 2, 1, MADV_DONTNEED), 0);
            real_begin(&vm, REAL_READ, 2, 1, 0);
            CHECK(real_faults(&vm, 2, shared ? KERNEL_FAULT_MINOR : 0));
            CHECK_EQ(real_call(shared ? OPS->map : OPS->zero, &vm, 2, 1).result, KERNEL_MAPPED);
            CHECK_EQ(real_answer(&vm), shared ? 0x22 : 0);
        }
        real_end(&vm);
    }
}

/* ---------------------------------------------------------------------------------------------------------- waking */

static void test_wake_brings_the_fault_again(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start_with(&vm, memory, 0, 0)) {
            real_begin(&vm, REAL_READ, 6, 1, 0);
            CHECK(real_faults(&vm, 6, 0));
            CHECK_EQ(real_call(OPS->wake, &vm, 0, PAGES).result, KERNEL_MAPPED);
            CHECK(real_faults(&vm, 6, 0));
            CHECK_EQ(real_copy(&vm, 6, 1, 0x66).result, KERNEL_MAPPED);
            CHECK_EQ(real_answer(&vm), 0x66);
        }
        real_end(&vm);
    }
}

/* Mapped by somebody who woke nobody: the call that then finds it in place does not wake either. */
static void test_eexist_wakes_nobody(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start_with(&vm, memory, 0, 0)) {
            struct uffdio_copy quiet = {.dst = vm.address + 6 * REAL_PAGE, .src = (uintptr_t)bytes, .len = REAL_PAGE,
                                        .mode = UFFDIO_COPY_MODE_DONTWAKE};
            real_begin(&vm, REAL_READ, 6, 1, 0);
            CHECK(real_faults(&vm, 6, 0));
            real_fill(bytes, 1, 0x66);
            CHECK(ioctl(vm.uffd.fd, UFFDIO_COPY, &quiet) == 0);
            CHECK_EQ(real_copy(&vm, 6, 1, 0x11).result, KERNEL_ALREADY);
            if (memory != REAL_PRIVATE)
                CHECK_EQ(real_call(OPS->map, &vm, 6, 1).result, KERNEL_ALREADY);
            CHECK(real_sleeps(&vm));
            CHECK_EQ(real_call(OPS->wake, &vm, 6, 1).result, KERNEL_MAPPED);
            CHECK_EQ(real_answer(&vm), 0x66);
        }
        real_end(&vm);
    }
}

/* A thread that waits must not sleep on when its registration ends. With MINOR alone the kernel forgets it. */
static void test_unregister_wakes(void)
{
    static const uint64_t modes[] = {UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR,
                                     UFFDIO_REGISTER_MODE_MINOR};

    for (int i = 0; i < 2; i++) {
        struct real_vm vm;
        if (start_with(&vm, REAL_MEMFD, 0, modes[i])) {
            struct kernel_span span = real_span(&vm, 0, 8), other = real_span(&vm, 8, 8);
            real_fill(bytes, 8, 0x11);
            CHECK_EQ(OPS->populate(&vm.uffd, &span, bytes).result, KERNEL_MAPPED);
            real_begin(&vm, REAL_READ, 3, 1, 0);
            CHECK(real_faults(&vm, 3, KERNEL_FAULT_MINOR));
            CHECK_EQ(uffd_unregister(&vm.uffd, &span), 0);
            CHECK_EQ(real_answer(&vm), 0x11);
            CHECK_EQ(real_do(&vm, REAL_READ, 4, 1, 0), 0x11); /* no fault any more */
            CHECK_EQ(uffd_unregister(&vm.uffd, &other), 0);
            CHECK_EQ(real_do(&vm, REAL_READ, 12, 1, 0), 0);
        }
        real_end(&vm);
    }
}

/* The VM holds its userfaultfd too: when ours goes, who waits goes on waiting, instead of reading zeros. */
static void test_one_holder_less_wakes_nobody(void)
{
    struct real_vm vm;

    if (start_with(&vm, REAL_MEMFD, 0, 0)) {
        real_begin(&vm, REAL_READ, 3, 1, 0);
        CHECK(real_faults(&vm, 3, 0));
        close(vm.uffd.fd);
        CHECK(real_sleeps(&vm));
        vm.uffd.fd = -1;
    }
    real_end(&vm);
}

int main(void)
{
    int fd = create_bare(-1, NULL);

    if (fd < 0) {
        SKIP(test_uffd_events, "no userfaultfd right");
        return check_done();
    }
    close(fd);
    RUN(test_events_up_to_capacity);
    RUN(test_many_threads_on_one_page);
    RUN(test_exact_addresses_are_pages_all_the_same);
    RUN(test_an_event_outlives_its_reader);
    if (geteuid() == 0)
        RUN(test_fork_event_leaks_no_fd);
    else
        SKIP(test_fork_event_leaks_no_fd, "needs root: EVENT_FORK needs CAP_SYS_PTRACE");
    RUN(test_remap_and_unmap_events);
    RUN(test_later_while_a_remove_waits);
    RUN(test_what_dontneed_drops);
    RUN(test_wake_brings_the_fault_again);
    RUN(test_eexist_wakes_nobody);
    RUN(test_unregister_wakes);
    RUN(test_one_holder_less_wakes_nobody);
    return check_done();
}
