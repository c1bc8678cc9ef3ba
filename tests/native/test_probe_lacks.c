/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe on machines that lack something, or have something wrong: system calls that a seccomp filter answers as
 * such a kernel would. What is absent is LESS, what fails is FAILED, and each time all else is what it was.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/probe.h"
#include "kernel/uapi.h"

#define RULES_MAX 2
#define FACTS_MAX 6
#define ANY 0xffffffffu

/* The call with this number, and this value as its argument `argument`, answers with `error`. */
struct rule {
    unsigned number;
    unsigned argument;
    unsigned value;
    unsigned error;
};

struct expected {
    enum probe_name fact;
    enum probe_verdict verdict;
};

struct row {
    const char *what;
    struct rule rules[RULES_MAX];
    struct expected facts[FACTS_MAX]; /* up to the first that is FACT_COUNT; all others are as without a filter */
    enum probe_verdict usable; /* the last fact */
};

#define IOCTL(command, error_) {SYS_ioctl, 1, (unsigned)(command), error_}
#define END {PROBE_FACT_COUNT, PROBE_GOOD}

static const struct row rows[] = {
    {"no UFFDIO_POISON", {IOCTL(UFFDIO_POISON, EINVAL)}, {{PROBE_POISON, PROBE_LESS}, END}, PROBE_GOOD},
    {"UFFDIO_POISON fails", {IOCTL(UFFDIO_POISON, ENOMEM)}, {{PROBE_POISON, PROBE_FAILED}, END}, PROBE_GOOD},
    {"no PAGEMAP_SCAN",
     {IOCTL(PAGEMAP_SCAN, ENOTTY)},
     {{PROBE_PAGEMAP_SCAN, PROBE_LESS}, {PROBE_DIRTY_TRACKING, PROBE_LESS}, END},
     PROBE_GOOD},
    {"PAGEMAP_SCAN fails",
     {IOCTL(PAGEMAP_SCAN, ENOMEM)},
     {{PROBE_PAGEMAP_SCAN, PROBE_FAILED}, {PROBE_DIRTY_TRACKING, PROBE_FAILED}, END},
     PROBE_GOOD},
    {"UFFDIO_CONTINUE fails",
     {IOCTL(UFFDIO_CONTINUE, EIO)},
     {{PROBE_SHARED, PROBE_FAILED}, {PROBE_TMPFS, PROBE_FAILED}, END},
     PROBE_LESS},
    {"UFFDIO_COPY fails",
     {IOCTL(UFFDIO_COPY, EIO)},
     {{PROBE_SHARED, PROBE_FAILED}, {PROBE_TMPFS, PROBE_FAILED}, {PROBE_PRIVATE, PROBE_FAILED},
      {PROBE_POISON, PROBE_UNTRIED}, END},
     PROBE_FAILED},
    {"UFFDIO_ZEROPAGE fails",
     {IOCTL(UFFDIO_ZEROPAGE, EIO)},
     {{PROBE_SHARED, PROBE_FAILED}, {PROBE_TMPFS, PROBE_FAILED}, {PROBE_PRIVATE, PROBE_FAILED},
      {PROBE_POISON, PROBE_UNTRIED}, END},
     PROBE_FAILED},
    {"nothing can be registered",
     {IOCTL(UFFDIO_REGISTER, EINVAL)},
     {{PROBE_KERNEL_FAULTS, PROBE_FAILED}, {PROBE_SHARED, PROBE_BAD}, {PROBE_TMPFS, PROBE_LESS},
      {PROBE_PRIVATE, PROBE_BAD}, {PROBE_POISON, PROBE_UNTRIED}, {PROBE_DIRTY_TRACKING, PROBE_LESS}},
     PROBE_FAILED},
    {"no memfd_create",
     {{SYS_memfd_create, 0, ANY, ENOSYS}},
     {{PROBE_SHARED, PROBE_LESS}, {PROBE_DIRTY_TRACKING, PROBE_UNTRIED}, END},
     PROBE_LESS},
    {"no MADV_DONTNEED_LOCKED", {{SYS_madvise, 2, 24, EINVAL}}, {{PROBE_LOCKED, PROBE_LESS}, END}, PROBE_GOOD},
    {"MADV_DONTNEED fails",
     {{SYS_madvise, 2, MADV_DONTNEED, ENOMEM}},
     {{PROBE_SHARED, PROBE_FAILED}, {PROBE_TMPFS, PROBE_FAILED}, {PROBE_PRIVATE, PROBE_FAILED},
      {PROBE_POISON, PROBE_UNTRIED}, END},
     PROBE_FAILED},
};

static int install(const struct rule *rules)
{
    struct sock_filter filter[RULES_MAX * 6 + 1];
    struct sock_fprog program = {.filter = filter};

    for (int i = 0; i < RULES_MAX && rules[i].error != 0; i++) {
        const struct rule *rule = &rules[i];
        unsigned at = offsetof(struct seccomp_data, args) + 8 * rule->argument;
        bool any = rule->value == ANY;
        filter[program.len++] =
            (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
        filter[program.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->number, 0, any ? 1 : 3);
        if (!any) {
            filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, at);
            filter[program.len++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, rule->value, 0, 1);
        }
        filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | rule->error);
    }
    filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        return -errno;
    return 0;
}

static enum probe_verdict wanted(const struct row *row, const struct probe *without, enum probe_name name)
{
    for (int i = 0; i < FACTS_MAX && row->facts[i].fact != PROBE_FACT_COUNT; i++)
        if (row->facts[i].fact == name)
            return row->facts[i].verdict;
    return without->facts[name].verdict;
}

/* Other tests take pages of the pool and give them back meanwhile. */
static bool pool_moved(enum probe_name name, enum probe_verdict one, enum probe_verdict other)
{
    return (name == PROBE_HUGE_SHARED || name == PROBE_HUGE_PRIVATE) && one != PROBE_BAD && one != PROBE_FAILED &&
           other != PROBE_BAD && other != PROBE_FAILED;
}

/* In a child that lives with the filter. */
static int check_row(const struct row *row, const struct probe *without)
{
    struct probe probe;

    if (install(row->rules) < 0)
        return 97;
    probe_run(-1, true, &probe);
    for (int i = 0; i < PROBE_FACT_COUNT; i++) {
        const struct probe_fact *fact = &probe.facts[i];
        enum probe_verdict verdict = i == PROBE_USABLE ? row->usable : wanted(row, without, i);
        if (fact->verdict == verdict || pool_moved(i, fact->verdict, verdict))
            continue;
        printf("%s: %s is %d, not %d: %s\n", row->what, probe_word(i), fact->verdict, verdict, fact->text);
        check_bad = 1;
    }
    CHECK_EQ(probe_usable(&probe), row->usable != PROBE_BAD && row->usable != PROBE_FAILED);
    fflush(stdout);
    return check_bad;
}

static void test_what_is_absent_and_what_fails(void)
{
    struct probe without;

    probe_run(-1, true, &without);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int status = 0;
        pid_t child;
        fflush(stdout);
        child = fork();
        if (child == 0)
            _exit(check_row(&rows[i], &without));
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
    }
}

/* By no way at all, as under a container's filter: BAD; for want of descriptors: FAILED. */
static int no_userfaultfd(unsigned error, enum probe_verdict verdict)
{
    struct rule rules[RULES_MAX] = {{SYS_userfaultfd, 0, ANY, error}, IOCTL(USERFAULTFD_IOC_NEW, error)};
    struct probe probe;

    if (install(rules) < 0)
        return 97;
    probe_run(-1, true, &probe);
    CHECK_EQ(probe.facts[PROBE_USERFAULTFD].verdict, verdict);
    CHECK_EQ(probe.facts[PROBE_KERNEL_FAULTS].verdict, PROBE_UNTRIED);
    CHECK_EQ(probe.facts[PROBE_SHARED].verdict, PROBE_UNTRIED);
    CHECK(!probe_usable(&probe));
    fflush(stdout);
    return check_bad;
}

static void test_no_userfaultfd_at_all(void)
{
    static const struct {
        unsigned error;
        enum probe_verdict verdict;
    } cases[] = {{ENOSYS, PROBE_BAD}, {EPERM, PROBE_BAD}, {ENFILE, PROBE_FAILED}};

    for (int i = 0; i < 3; i++) {
        int status = 0;
        pid_t child;
        fflush(stdout);
        child = fork();
        if (child == 0)
            _exit(no_userfaultfd(cases[i].error, cases[i].verdict));
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK_EQ(status, 0);
    }
}

int main(void)
{
    int fd = create_bare(-1, NULL);

    RUN(test_no_userfaultfd_at_all);
    if (fd < 0) {
        SKIP(test_what_is_absent_and_what_fails, "no userfaultfd right");
        return check_done();
    }
    close(fd);
    RUN(test_what_is_absent_and_what_fails);
    return check_done();
}
