/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that runs is made to have its memory tracked, and notices nothing of it: whatever its main thread was in
 * the middle of ends as if nothing had been. The process is a fork of this one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "kernel/create.h"
#include "kernel/scan.h"
#include "pageferry.h"

/* ThreadSanitizer maps memory of its own in the VMM, whenever a thread does something for the first time. */
#ifdef __SANITIZE_THREAD__
#define HAS_ITS_OWN true
#else
#define HAS_ITS_OWN false
#endif

#define PAGE UINT64_C(4096)
#define PAGES 64
#define WRITES 'w'  /* page 3, itself */
#define READS_IN 'r' /* into page 5: the kernel writes */
#define SLEEPS 's'
#define WAITS 'p'   /* in poll, with a time limit */
#define COUNTS 'c'  /* in no system call at all */
#define SIGNALS 'g' /* waits for a signal, blocked everywhere else */

static struct {
    pid_t pid;
    int pidfd;
    int ram_fd;
    char *memory; /* at the same address in both: it is a fork */
    int order;    /* we write */
    int answer;   /* we read */
} vm;

/* ----------------------------------------------------------------------------------------------- the process */

static uint64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* The same sum twice, one of them interrupted. */
static bool counted(void)
{
    uint64_t sums[2] = {0, 0}, rounds = 0, until_ms = now_ms() + 300;

    for (; now_ms() < until_ms; rounds++)
        for (uint64_t i = 0; i < 100000; i++)
            sums[0] += i ^ (sums[0] << 1);
    for (; rounds > 0; rounds--)
        for (uint64_t i = 0; i < 100000; i++)
            sums[1] += i ^ (sums[1] << 1);
    return sums[0] == sums[1];
}

static bool obeyed(char order, int in)
{
    struct timespec pause = {0, 300000000};
    struct pollfd nothing = {.fd = in, .events = POLLPRI};
    uint64_t began_ms = now_ms();
    sigset_t wanted;
    int got;
    bool well = true;

    switch (order) {
    case WRITES:
        vm.memory[3 * PAGE] ^= 1;
        break;
    case READS_IN:
        got = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
        well = read(got, vm.memory + 5 * PAGE, PAGE) == (ssize_t)PAGE;
        close(got);
        break;
    case SLEEPS:
        well = nanosleep(&pause, NULL) == 0 && now_ms() - began_ms >= 300;
        break;
    case WAITS:
        well = poll(&nothing, 1, 300) == 0 && now_ms() - began_ms >= 300;
        break;
    case COUNTS:
        well = counted();
        break;
    case SIGNALS:
        sigemptyset(&wanted);
        sigaddset(&wanted, SIGUSR1);
        sigprocmask(SIG_SETMASK, &wanted, NULL);
        do {
            got = sigwaitinfo(&wanted, NULL);
        } while (got < 0 && errno == EINTR); /* as after SIGSTOP and SIGCONT: signal(7) */
        well = got == SIGUSR1;
        sigprocmask(SIG_SETMASK, NULL, &wanted);
        well = well && sigismember(&wanted, SIGUSR1) == 1 && sigismember(&wanted, SIGUSR2) == 0;
        break;
    }
    return well;
}

static _Noreturn void live(int in, int out)
{
    char order, well;

    while (read(in, &order, 1) == 1) {
        well = obeyed(order, in) ? 'y' : 'n';
        if (write(out, &well, 1) != 1)
            break;
    }
    _exit(0);
}

/* ------------------------------------------------------------------------------------------------- from here */

static void ordered(char order)
{
    CHECK(write(vm.order, &order, 1) == 1);
}

static void is_well(void)
{
    char well = 0;

    CHECK(read(vm.answer, &well, 1) == 1 && well == 'y');
}

static void begin(void)
{
    int orders[2], answers[2];

    vm.ram_fd = memfd_create("ram", MFD_CLOEXEC);
    CHECK(vm.ram_fd >= 0 && ftruncate(vm.ram_fd, (off_t)(PAGES * PAGE)) == 0);
    vm.memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, vm.ram_fd, 0);
    CHECK(vm.memory != MAP_FAILED && pipe2(orders, O_CLOEXEC) == 0 && pipe2(answers, O_CLOEXEC) == 0);
    memset(vm.memory, 1, PAGES / 2 * PAGE);
    vm.pid = fork();
    if (vm.pid == 0) {
        close(orders[1]);
        live(orders[0], answers[1]);
    }
    vm.pidfd = (int)syscall(SYS_pidfd_open, vm.pid, 0);
    close(orders[0]);
    close(answers[1]);
    vm.order = orders[1];
    vm.answer = answers[0];
    ordered(WRITES); /* it lives, and has closed what it does not need */
    is_well();
}

static void end(void)
{
    int status = 0;

    close(vm.order);
    waitpid(vm.pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    close(vm.answer);
    close(vm.pidfd);
    close(vm.ram_fd);
    munmap(vm.memory, PAGES * PAGE);
}

static int attach(char *error)
{
    struct pageferry_region region = {
        .address = (uint64_t)(uintptr_t)vm.memory,
        .length_bytes = PAGES * PAGE,
    };

    error[0] = '\0';
    return pageferry_attach(vm.pid, vm.pidfd, &region, 1, error, PAGEFERRY_TEXT_BYTES);
}

static int attached(void)
{
    char error[PAGEFERRY_TEXT_BYTES];
    int fd = attach(error);

    CHECK(fd >= 0);
    if (fd < 0)
        printf("%s\n", error);
    return fd;
}

static void refused(int reason, const char *word)
{
    char error[PAGEFERRY_TEXT_BYTES];

    CHECK_EQ(attach(error), -reason);
    CHECK(strstr(error, word) != NULL);
}

static int entries(const char *folder)
{
    char path[64];
    int count = 0;
    DIR *listed;

    snprintf(path, sizeof(path), "/proc/%d/%s", (int)vm.pid, folder);
    listed = opendir(path);
    while (listed != NULL && readdir(listed) != NULL)
        count++;
    if (listed != NULL)
        closedir(listed);
    return count;
}

static int mappings(void)
{
    char path[64], line[512];
    int count = 0;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/maps", (int)vm.pid);
    maps = fopen(path, "re");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
        count++;
    if (maps != NULL)
        fclose(maps);
    return count;
}

/* ----------------------------------------------------------------------------------------------------- tests */

static void goes_on(char in_the_middle_of)
{
    int fd, descriptors, mapped;

    begin();
    descriptors = entries("fd");
    mapped = mappings();
    ordered(in_the_middle_of);
    usleep(50000);
    fd = attached();
    if (in_the_middle_of == SIGNALS)
        kill(vm.pid, SIGUSR1);
    is_well();
    CHECK_EQ(entries("fd"), descriptors);
    if (!HAS_ITS_OWN)
        CHECK_EQ(mappings(), mapped);
    CHECK_EQ(close(fd), 0);
    end();
}

static void test_a_sleep_goes_on(void)
{
    goes_on(SLEEPS);
}

static void test_a_poll_goes_on(void)
{
    goes_on(WAITS);
}

static void test_a_computation_goes_on(void)
{
    goes_on(COUNTS);
}

static void test_signals_are_as_before(void)
{
    goes_on(SIGNALS);
}

static void test_its_writes_are_seen(void)
{
    uint64_t start, looked_end;
    struct scan_range found[SCAN_RANGES_MAX];
    int fd, pagemap_fd;

    begin();
    start = (uint64_t)(uintptr_t)vm.memory;
    fd = attached();
    pagemap_fd = scan_open(vm.pid, vm.pidfd);
    CHECK_EQ(scan_covered(pagemap_fd, start, start + PAGES * PAGE), 1);
    CHECK_EQ(scan_calls.reset(pagemap_fd, start, start + PAGES * PAGE), 0);
    CHECK_EQ(scan_calls.dirty(pagemap_fd, start, start + PAGES * PAGE, found, &looked_end), 0);
    ordered(WRITES);
    is_well();
    ordered(READS_IN); /* though the userfaultfd is for faults of user mode alone */
    is_well();
    CHECK_EQ(scan_calls.dirty(pagemap_fd, start, start + PAGES * PAGE, found, &looked_end), 2);
    CHECK_EQ(found[0].start, start + 3 * PAGE);
    CHECK_EQ(found[1].start, start + 5 * PAGE);
    close(fd);
    CHECK_EQ(scan_covered(pagemap_fd, start, start + PAGES * PAGE), 0); /* the only copy */
    close(pagemap_fd);
    end();
}

static void test_again_once_the_first_has_ended(void)
{
    int fd;

    begin();
    fd = attached();
    refused(PF_REASON_ALREADY_ATTACHED, "another userfaultfd");
    ordered(WRITES);
    is_well();
    close(fd);
    close(attached());
    end();
}

static void test_many_times_while_it_works(void)
{
    begin();
    for (int i = 0; i < 100; i++) {
        ordered(i % 2 ? WRITES : READS_IN);
        close(attached());
        is_well();
    }
    end();
}

static void test_a_stopped_process_is_refused(void)
{
    int status;

    begin();
    kill(vm.pid, SIGSTOP);
    CHECK_EQ(waitpid(vm.pid, &status, WUNTRACED), vm.pid);
    refused(PF_REASON_BUSY, "stopped");
    kill(vm.pid, SIGCONT);
    ordered(WRITES);
    is_well();
    close(attached());
    end();
}

static void test_what_is_no_memory_of_its_is_refused(void)
{
    char error[PAGEFERRY_TEXT_BYTES];
    struct pageferry_region region = {.address = 4096, .length_bytes = PAGE};
    int descriptors;

    begin();
    descriptors = entries("fd");
    CHECK_EQ(pageferry_attach(vm.pid, vm.pidfd, &region, 1, error, sizeof(error)), -PF_REASON_UNSUPPORTED);
    CHECK_EQ(pageferry_attach(0, vm.pidfd, &region, 1, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(pageferry_attach(vm.pid, vm.pidfd, &region, 0, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(entries("fd"), descriptors);
    ordered(WRITES);
    is_well();
    end();
}

static void test_a_process_that_is_gone(void)
{
    int status;

    begin();
    kill(vm.pid, SIGKILL);
    CHECK_EQ(waitpid(vm.pid, &status, 0), vm.pid);
    refused(PF_REASON_NO_VMM, "exited");
    close(vm.order);
    close(vm.answer);
    close(vm.pidfd);
    close(vm.ram_fd);
    munmap(vm.memory, PAGES * PAGE);
}

int main(void)
{
    int fd = create_uffd(-1, CREATE_TRACK_FEATURES, NULL);

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (fd < 0) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    close(fd);
    RUN(test_a_sleep_goes_on);
    RUN(test_a_poll_goes_on);
    RUN(test_a_computation_goes_on);
    RUN(test_signals_are_as_before);
    RUN(test_its_writes_are_seen);
    RUN(test_again_once_the_first_has_ended);
    RUN(test_many_times_while_it_works);
    RUN(test_a_stopped_process_is_refused);
    RUN(test_what_is_no_memory_of_its_is_refused);
    RUN(test_a_process_that_is_gone);
    return check_done();
}
