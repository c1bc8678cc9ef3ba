/* SPDX-License-Identifier: Apache-2.0 */
/* The probe and the ways to a userfaultfd: with the right, without it, and by a device that somebody passed on. */
#include "kernel/probe.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/trial.h"
#include "kernel/uapi.h"
#include "pageferry.h"

#define NOBODY 65534
#define PROBES 10

static void show(const struct probe *probe)
{
    for (int i = 0; i < PROBE_FACT_COUNT; i++) {
        const struct probe_fact *fact = &probe->facts[i];
        printf("     %-20s %d %s%s%s\n", probe_word(i), fact->verdict, fact->text, fact->remedy != NULL ? ": " : "",
               fact->remedy != NULL ? fact->remedy : "");
        CHECK(strlen(fact->text) > 0);
        CHECK((fact->verdict == PROBE_GOOD || fact->verdict == PROBE_UNTRIED) || fact->remedy != NULL);
        CHECK(fact->verdict != PROBE_GOOD || fact->remedy == NULL);
    }
}

static void test_with_the_right(void)
{
    static const enum probe_name sure[] = {PROBE_USERFAULTFD, PROBE_KERNEL_FAULTS, PROBE_HANDSHAKE, PROBE_SHARED,
                                           PROBE_TMPFS,       PROBE_PRIVATE,       PROBE_LOCKED};
    struct probe probe;

    probe_run(-1, false, &probe);
    show(&probe);
    for (size_t i = 0; i < sizeof(sure) / sizeof(sure[0]); i++)
        CHECK_EQ(probe.facts[sure[i]].verdict, PROBE_GOOD);
    for (int i = 0; i < PROBE_FACT_COUNT; i++)
        CHECK(probe.facts[i].verdict != PROBE_FAILED);
    CHECK(probe_usable(&probe));
    CHECK(probe.way == CREATE_WAY_SYSCALL || probe.way == CREATE_WAY_DEVICE);
    CHECK((probe.features & UFFD_FEATURE_MINOR_SHMEM) != 0);
    CHECK((probe.shared_calls & UINT64_C(1) << _UFFDIO_CONTINUE) != 0);
    CHECK((probe.private_calls & UINT64_C(1) << _UFFDIO_CONTINUE) == 0);
}

/* ---------------------------------------------------------------------------------- what it leaves behind: nothing */

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

static int mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    int count = 0, c;

    while (maps != NULL && (c = fgetc(maps)) != EOF)
        count += c == '\n';
    if (maps != NULL)
        fclose(maps);
    return count;
}

static void test_nothing_is_left(void)
{
    struct probe probe;
    int fds, before;

    probe_run(-1, false, &probe);
    fds = open_fds();
    before = mappings();
    for (int i = 0; i < PROBES; i++)
        probe_run(-1, false, &probe);
    CHECK_EQ(open_fds(), fds);
    CHECK(mappings() < before + PROBES); /* the libc keeps a stack or two for the next thread */
}

/* A VMM that locks whatever it maps: mmap fills the scratch pages, and yet they are missed. */
static int all_is_locked(int device_fd)
{
    struct probe probe;

    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        return 98;
    probe_run(device_fd, false, &probe);
    return probe_usable(&probe) && probe.facts[PROBE_SHARED].verdict == PROBE_GOOD &&
                   probe.facts[PROBE_TMPFS].verdict == PROBE_GOOD && probe.facts[PROBE_PRIVATE].verdict == PROBE_GOOD
               ? 0
               : 1;
}

static void test_where_all_memory_is_locked(void)
{
    int status = 0;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0)
        _exit(all_is_locked(-1));
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* The same facts through the API, and no more of them than there is room for. */
static void test_by_the_api(void)
{
    struct pageferry_fact facts[PROBE_FACT_COUNT + 1];

    memset(facts, 0, sizeof(facts));
    CHECK_EQ(pageferry_probe(-1, 1, facts, 2), PROBE_FACT_COUNT);
    CHECK(facts[2].name == NULL);
    CHECK_EQ(pageferry_probe(-1, 1, facts, PROBE_FACT_COUNT + 1), PROBE_FACT_COUNT);
    CHECK(facts[PROBE_FACT_COUNT].name == NULL);
    for (int i = 0; i < PROBE_FACT_COUNT; i++) {
        CHECK(strcmp(facts[i].name, probe_word(i)) == 0 && strcmp(facts[i].help, probe_help(i)) == 0);
        CHECK(facts[i].verdict <= PAGEFERRY_VERDICT_FAILED && strlen(facts[i].found) > 0);
    }
    CHECK_EQ(facts[PROBE_SHARED].verdict, PAGEFERRY_VERDICT_GOOD);
    CHECK(facts[PROBE_HUGE_SHARED].verdict != PAGEFERRY_VERDICT_GOOD); /* a pool is left alone */
}

static void test_every_fact_has_its_words(void)
{
    for (int i = 0; i < PROBE_FACT_COUNT; i++)
        CHECK(strlen(probe_word(i)) > 0 && strlen(probe_help(i)) > 0);
    CHECK(probe_word(PROBE_FACT_COUNT) == NULL && probe_help(PROBE_FACT_COUNT) == NULL);
}

/* The handshake on a second fd enables what was asked and nothing else: fdinfo says so. */
static void test_features_enabled(void)
{
    uint64_t features = 0, enabled = 0;
    int fd = create_uffd(-1, UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, &features);
    char path[64], line[128] = "";
    FILE *info;

    CHECK(fd >= 0);
    CHECK((features & UFFD_FEATURE_MINOR_SHMEM) != 0);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    CHECK((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    info = fopen(path, "re");
    while (info != NULL && fgets(line, sizeof(line), info) != NULL)
        if (sscanf(line, "API: %*x:%lx", &enabled) == 1)
            break;
    CHECK_EQ(enabled & 0x7fffffff, UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM);
    if (info != NULL)
        fclose(info);
    close(fd);
}

static void test_features_that_no_kernel_has(void)
{
    uint64_t features = 0;

    CHECK_EQ(create_uffd(-1, UINT64_C(1) << 60, &features), -EOPNOTSUPP);
    CHECK((features & UFFD_FEATURE_MISSING_SHMEM) != 0);
    CHECK(strstr(create_remedy(-EOPNOTSUPP), "kernel") != NULL);
}

/* Runs `check` as somebody without any right; its result is the exit status. */
static void as_nobody(int (*check)(int device_fd), int device_fd)
{
    int status = 0;
    pid_t child;

    fflush(stdout);
    child = fork();
    if (child == 0) {
        if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
            _exit(99);
        _exit(check(device_fd));
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
}

/* 0, or the line that does not hold. */
static int has_no_right(int device_fd)
{
    struct probe probe;

    if (create_bare(device_fd, NULL) != -EPERM)
        return __LINE__ & 0x7f;
    probe_run(device_fd, false, &probe);
    if (probe.facts[PROBE_USERFAULTFD].verdict != PROBE_BAD || probe_usable(&probe))
        return __LINE__ & 0x7f;
    if (strstr(probe.facts[PROBE_USERFAULTFD].remedy, "CAP_SYS_PTRACE") == NULL)
        return __LINE__ & 0x7f;
    if (probe.facts[PROBE_KERNEL_FAULTS].verdict != PROBE_BAD ||
        strstr(probe.facts[PROBE_KERNEL_FAULTS].text, "user mode") == NULL)
        return __LINE__ & 0x7f;
    return probe.facts[PROBE_SHARED].verdict != PROBE_UNTRIED;
}

static int has_it_by_the_device(int device_fd)
{
    struct probe probe;

    probe_run(device_fd, false, &probe);
    return probe.way != CREATE_WAY_GIVEN || probe.facts[PROBE_KERNEL_FAULTS].verdict != PROBE_GOOD ||
           probe.facts[PROBE_SHARED].verdict != PROBE_GOOD || probe.facts[PROBE_PRIVATE].verdict != PROBE_GOOD;
}

static void test_without_the_right(void)
{
    as_nobody(has_no_right, -1);
}

static void test_device_passed_on(void)
{
    int device_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

    CHECK(device_fd >= 0);
    as_nobody(has_it_by_the_device, device_fd);
    close(device_fd);
}

static void expect_no_device(int fd, const char *said)
{
    struct probe probe;

    probe_run(fd, true, &probe);
    CHECK_EQ(probe.facts[PROBE_USERFAULTFD].verdict, PROBE_BAD);
    CHECK(strstr(probe.facts[PROBE_USERFAULTFD].text, said) != NULL);
    CHECK(strstr(probe.facts[PROBE_USERFAULTFD].remedy, "/dev/userfaultfd") != NULL);
    CHECK_EQ(probe.facts[PROBE_SHARED].verdict, PROBE_UNTRIED);
    CHECK(!probe_usable(&probe));
}

static void test_device_that_is_none(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    CHECK(create_bare(fd, NULL) < 0);
    expect_no_device(fd, "is no /dev/userfaultfd");
    close(fd);
    expect_no_device(fd, "is not open");
}

/* One for user mode alone, which everybody can make: passed on it looks like any other. */
static void test_userfaultfd_in_place_of_the_device(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

    CHECK(fd >= 0);
    CHECK_EQ(trial_kernel_fault(fd), -EFAULT);
    expect_no_device(fd, "is a userfaultfd");
    close(fd);
}

static bool everybody_may(void)
{
    int fd = open("/proc/sys/vm/unprivileged_userfaultfd", O_RDONLY | O_CLOEXEC);
    char value = '0';
    bool read_one = fd >= 0 && read(fd, &value, 1) == 1;

    if (fd >= 0)
        close(fd);
    return read_one && value != '0';
}

static void run_as_root(void)
{
    if (everybody_may())
        SKIP(test_without_the_right, "vm.unprivileged_userfaultfd is 1");
    else
        RUN(test_without_the_right);
    RUN(test_where_all_memory_is_locked);
    if (access("/dev/userfaultfd", F_OK) == 0)
        RUN(test_device_passed_on);
    else
        SKIP(test_device_passed_on, "no /dev/userfaultfd here");
}

int main(void)
{
    int fd = create_bare(-1, NULL);

    RUN(test_every_fact_has_its_words);
    RUN(test_device_that_is_none);
    RUN(test_userfaultfd_in_place_of_the_device);
    if (fd < 0) {
        SKIP(test_with_the_right, "no userfaultfd right");
        return check_done();
    }
    close(fd);
    RUN(test_with_the_right);
    RUN(test_nothing_is_left);
    RUN(test_by_the_api);
    RUN(test_features_enabled);
    RUN(test_features_that_no_kernel_has);
    if (geteuid() == 0)
        run_as_root();
    else
        SKIP(test_without_the_right, "needs root: to become somebody else");
    return check_done();
}
