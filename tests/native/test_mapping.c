/* SPDX-License-Identifier: Apache-2.0 */
/* What a hand-off's fds and mappings are, as the kernel shows them: each fact for and against, of another process. */
#include "kernel/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/create.h"
#include "kernel/uapi.h"
#include "real_vm.h"

#define PAGES 64
#define THP "/sys/kernel/mm/transparent_hugepage"

static enum fd_kind kind_of(int fd)
{
    enum fd_kind kind = FD_KIND_OTHER;

    CHECK_EQ(mapping_fd_kind(fd, &kind), 0);
    close(fd);
    return kind;
}

/* ------------------------------------------------------------------------------------------------------ kinds of fd */

static void test_kinds_of_fd(void)
{
    enum fd_kind kind;
    int ends[2];

    CHECK_EQ(kind_of(create_bare(-1, NULL)), FD_KIND_UFFD);
    CHECK_EQ(kind_of(memfd_create("ram", MFD_CLOEXEC)), FD_KIND_SHARED_FILE);
    CHECK_EQ(kind_of(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)), FD_KIND_SHARED_FILE);
    CHECK_EQ(kind_of(open("/dev/shm", O_RDONLY | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK_EQ(kind_of(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK_EQ(kind_of(open("/dev/null", O_RDWR | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    CHECK_EQ(kind_of(ends[0]), FD_KIND_OTHER);
    CHECK_EQ(kind_of(ends[1]), FD_KIND_OTHER);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK_EQ(kind_of(ends[0]), FD_KIND_OTHER);
    CHECK_EQ(mapping_fd_kind(ends[0], &kind), -EBADF);
    close(ends[1]);
}

static void test_files_not_open_for_writing(void)
{
    char path[64];
    int fd = memfd_create("ram", MFD_CLOEXEC);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    CHECK_EQ(kind_of(open(path, O_RDONLY | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK_EQ(kind_of(open(path, O_WRONLY | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK_EQ(kind_of(open(path, O_PATH | O_CLOEXEC)), FD_KIND_OTHER);
    CHECK_EQ(kind_of(fd), FD_KIND_SHARED_FILE);
}

static void test_huge_memfd(void)
{
    struct file_pages pages;
    int fd = memfd_create("ram", MFD_CLOEXEC | MFD_HUGETLB | 21u << MAP_HUGE_SHIFT); /* of 2 MiB */

    CHECK_EQ(mapping_file_pages(fd, &pages), 0);
    CHECK_EQ(pages.unit_bytes, 2 << 20);
    CHECK(!pages.brings_more);
    CHECK_EQ(kind_of(fd), FD_KIND_HUGETLB);
}

static bool brings_more(const char *option, const char *value)
{
    int fd = real_tmpfs_file("8m", option, value);
    struct file_pages pages;

    CHECK(fd >= 0 && ftruncate(fd, 4 << 20) == 0);
    CHECK_EQ(mapping_file_pages(fd, &pages), 0);
    CHECK_EQ(pages.unit_bytes, REAL_PAGE);
    CHECK_EQ(kind_of(fd), FD_KIND_SHARED_FILE);
    return pages.brings_more;
}

/* Its mount says huge=, so one page written brings 512. Those of huge=advise are kept off by MADV_NOHUGEPAGE. Where huge
 * pages are forced on it is so for all, whatever the mount says. */
static void test_tmpfs_of_huge_pages(void)
{
    enum thp_shmem setting = THP_SHMEM_NEVER;
    bool forced = mapping_thp_shmem(&setting) == 0 && setting == THP_SHMEM_FORCED;

    CHECK(brings_more("huge", "always"));
    CHECK(brings_more("huge", "within_size"));
    CHECK_EQ(brings_more("huge", "advise"), forced);
    CHECK_EQ(brings_more("huge", "never"), forced);
    CHECK_EQ(brings_more(NULL, NULL), forced);
}

/* --------------------------------------------------------------------------------------------------------- mappings */

static struct mapping_facts look(const struct real_vm *vm, uint64_t page, uint64_t count)
{
    struct mapping_facts facts;

    CHECK_EQ(mapping_look(vm->pid, vm->address + page * REAL_PAGE, count * REAL_PAGE, &facts), 0);
    return facts;
}

static bool start(struct real_vm *vm, enum real_memory memory, uint64_t modes)
{
    struct real_options options = {.memory = memory, .pages = PAGES, .modes = modes};
    bool started = real_start(vm, &options);

    CHECK(started);
    return started;
}

static void test_what_is_registered(void)
{
    static const struct {
        enum real_memory memory;
        uint64_t modes;
        bool missing, minor;
    } cases[] = {
        {REAL_MEMFD, 0, true, true},
        {REAL_TMPFS, 0, true, true},
        {REAL_PRIVATE, 0, true, false},
        {REAL_MEMFD, UFFDIO_REGISTER_MODE_MISSING, true, false},
        {REAL_MEMFD, UFFDIO_REGISTER_MODE_MINOR, false, true},
        {REAL_MEMFD, REAL_UNREGISTERED, false, false},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct real_vm vm;
        if (start(&vm, cases[i].memory, cases[i].modes)) {
            struct mapping_facts facts = look(&vm, 0, PAGES);
            CHECK(facts.mapped && facts.huge_pages_barred && !facts.locked);
            CHECK_EQ(facts.shared, cases[i].memory != REAL_PRIVATE);
            CHECK_EQ(facts.registered_missing, cases[i].missing);
            CHECK_EQ(facts.registered_minor, cases[i].minor);
            CHECK_EQ(facts.present_pages, 0);
        }
        real_end(&vm);
    }
}

/* "all of it": a range of several mappings is what the worst of them is; and a hole is no memory. */
static void test_ranges_of_several_mappings(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD, 0)) {
        struct mapping_facts facts;
        struct kernel_span half = real_span(&vm, 32, 32);
        CHECK_EQ(real_do(&vm, REAL_PROTECT, 8, 4, PROT_READ), 0);
        facts = look(&vm, 0, PAGES);
        CHECK(facts.mapped && facts.shared && facts.registered_missing && facts.registered_minor);
        CHECK_EQ(uffd_unregister(&vm.uffd, &half), 0);
        CHECK(!look(&vm, 0, PAGES).registered_missing);
        CHECK(!look(&vm, 40, 1).registered_missing);
        CHECK(look(&vm, 0, 32).registered_missing);
        CHECK_EQ(real_do(&vm, REAL_ADVISE, 20, 2, MADV_HUGEPAGE), 0);
        CHECK(!look(&vm, 0, 32).huge_pages_barred);
        CHECK(look(&vm, 0, 20).huge_pages_barred);
        CHECK_EQ(real_do(&vm, REAL_UNMAP, 16, 1, 0), 0);
        CHECK(!look(&vm, 0, PAGES).mapped);
        CHECK(look(&vm, 0, 16).mapped);
        CHECK(look(&vm, 17, 15).mapped);
        CHECK(!look(&vm, 16, 1).mapped);
        CHECK(!look(&vm, 16, 1).shared);
    }
    real_end(&vm);
}

static void test_locked(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD, REAL_UNREGISTERED)) {
        CHECK_EQ(real_do(&vm, REAL_LOCK, 5, 1, 0), 0);
        CHECK(look(&vm, 0, PAGES).locked);
        CHECK(!look(&vm, 0, 5).locked);
        CHECK_EQ(look(&vm, 0, PAGES).present_pages, 1);
    }
    real_end(&vm);
}

/* Present is what has an entry in the page table: not what lies in the cache. Poison has one. */
static void test_present_pages(void)
{
    for (enum real_memory memory = 0; memory < REAL_MEMORY_COUNT; memory++) {
        struct real_vm vm;
        if (start(&vm, memory, 0)) {
            struct kernel_span all = real_span(&vm, 0, PAGES);
            if (memory != REAL_PRIVATE)
                CHECK_EQ(real_populate(&vm, 0, 8, 0x11).result, KERNEL_MAPPED);
            CHECK_EQ(look(&vm, 0, PAGES).present_pages, 0);
            CHECK_EQ(real_copy(&vm, 10, 3, 0x22).result, KERNEL_MAPPED);
            CHECK_EQ(look(&vm, 0, PAGES).present_pages, 3);
            CHECK_EQ(look(&vm, 11, 1).present_pages, 1);
            CHECK_EQ(look(&vm, 13, 8).present_pages, 0);
            CHECK_EQ(uffd_unregister(&vm.uffd, &all), 0);
            for (uint64_t page = 20; page < 60; page += 2) /* more pieces than one */
                CHECK_EQ(real_do(&vm, REAL_WRITE, page, 1, 1), 0);
            CHECK_EQ(look(&vm, 0, PAGES).present_pages, 23);
        }
        real_end(&vm);
    }
}

/* Before Linux 6.7 the page table is read word by word. */
static int without_pagemap_scan(void)
{
    CHECK(real_deny_ioctl(PAGEMAP_SCAN, ENOTTY));
    test_present_pages();
    return check_bad;
}

static void test_present_pages_without_pagemap_scan(void)
{
    CHECK(real_apart(without_pagemap_scan));
}

static void test_process_that_is_gone(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD, 0)) {
        struct mapping_facts facts;
        pid_t pid = vm.pid;
        real_kill(&vm);
        CHECK_EQ(mapping_look(pid, vm.address, REAL_PAGE, &facts), -ESRCH);
        CHECK(!facts.mapped && facts.present_pages == 0);
    }
    real_end(&vm);
}

/* Dead, and not waited for: its files in /proc are there, and empty. */
static void test_process_that_is_a_zombie(void)
{
    struct mapping_facts facts;
    pid_t child = fork();
    siginfo_t info;

    if (child == 0)
        _exit(0);
    CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0);
    CHECK_EQ(mapping_look(child, 0x10000, REAL_PAGE, &facts), -ESRCH);
    waitpid(child, NULL, 0);
}

static void test_ranges_that_cannot_be(void)
{
    struct mapping_facts facts;

    CHECK_EQ(mapping_look(getpid(), 0x10001, REAL_PAGE, &facts), -EINVAL);
    CHECK_EQ(mapping_look(getpid(), 0x10000, 100, &facts), -EINVAL);
    CHECK_EQ(mapping_look(getpid(), 0x10000, 0, &facts), -EINVAL);
    CHECK_EQ(mapping_look(getpid(), UINT64_C(0xfffffffffffff000), 2 * REAL_PAGE, &facts), -EINVAL);
}

/* Not being allowed to look is an answer of its own: nothing is known then. */
static void test_somebody_elses_process(void)
{
    struct real_vm vm;

    if (start(&vm, REAL_MEMFD, 0)) {
        struct mapping_facts facts;
        int rc;
        CHECK(seteuid(65534) == 0);
        rc = mapping_look(vm.pid, vm.address, REAL_PAGE, &facts);
        CHECK(seteuid(0) == 0);
        CHECK(rc == -EACCES || rc == -EPERM);
        CHECK(!facts.mapped);
    }
    real_end(&vm);
}

/* ------------------------------------------------------------------------------------------------------- huge pages */

/* In a mount namespace of its own, settings as we like them lie where the kernel's are. */
static void set(const char *file, const char *text)
{
    char path[128];
    FILE *setting;

    snprintf(path, sizeof(path), THP "/%s", file);
    setting = fopen(path, "we");
    CHECK(setting != NULL && fputs(text, setting) >= 0);
    if (setting != NULL)
        fclose(setting);
}

static void expect(int want_rc, enum thp_shmem want)
{
    enum thp_shmem is = THP_SHMEM_NEVER;

    CHECK_EQ(mapping_thp_shmem(&is), want_rc);
    CHECK_EQ(is, want);
}

static void check_settings(void)
{
    expect(0, THP_SHMEM_NEVER); /* no files: a kernel without huge pages */
    set("shmem_enabled", "always within_size advise [never] deny force\n");
    expect(0, THP_SHMEM_NEVER);
    set("shmem_enabled", "always within_size [advise] never deny force\n");
    expect(0, THP_SHMEM_ADVISE);
    set("shmem_enabled", "always [within_size] advise never deny force\n");
    expect(0, THP_SHMEM_FORCED);
    set("shmem_enabled", "[always] within_size advise never deny force\n");
    expect(0, THP_SHMEM_FORCED);
    set("shmem_enabled", "always within_size advise never deny [force]\n");
    expect(0, THP_SHMEM_FORCED);
    set("shmem_enabled", "always within_size advise never [deny] force\n");
    expect(0, THP_SHMEM_NEVER);
    CHECK(mkdir(THP "/hugepages-64kB", 0755) == 0 && mkdir(THP "/hugepages-2048kB", 0755) == 0);
    set("hugepages-64kB/shmem_enabled", "[always] inherit within_size advise never\n");
    expect(0, THP_SHMEM_FORCED);
    set("hugepages-64kB/shmem_enabled", "always inherit within_size [advise] never\n");
    set("hugepages-2048kB/shmem_enabled", "always [inherit] within_size advise never\n");
    expect(0, THP_SHMEM_ADVISE);
    set("shmem_enabled", "[always] within_size advise never deny force\n");
    expect(0, THP_SHMEM_FORCED);
    set("shmem_enabled", "none of them\n");
    expect(-EPROTO, THP_SHMEM_NEVER);
}

static void check_private_settings(void)
{
    static const struct {
        const char *text;
        enum thp_shmem setting;
    } cases[] = {{"always madvise [never]\n", THP_SHMEM_NEVER},
                 {"always [madvise] never\n", THP_SHMEM_ADVISE},
                 {"[always] madvise never\n", THP_SHMEM_FORCED}};
    enum thp_shmem is = THP_SHMEM_NEVER;

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        set("enabled", cases[i].text);
        CHECK_EQ(mapping_thp_private(&is), 0);
        CHECK_EQ(is, cases[i].setting);
    }
    set("enabled", cases[0].text);
    set("hugepages-64kB/enabled", "always inherit [madvise] never\n");
    CHECK_EQ(mapping_thp_private(&is), 0);
    CHECK_EQ(is, THP_SHMEM_ADVISE);
}

static int with_settings_of_ours(void)
{
    CHECK(unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
          mount("none", THP, "tmpfs", 0, NULL) == 0);
    if (!check_bad)
        check_settings();
    if (!check_bad)
        check_private_settings();
    return check_bad;
}

static void test_huge_page_settings(void)
{
    CHECK(real_apart(with_settings_of_ours));
}

static void run_with_uffd(void)
{
    RUN(test_kinds_of_fd);
    RUN(test_what_is_registered);
    RUN(test_ranges_of_several_mappings);
    RUN(test_locked);
    RUN(test_present_pages);
    RUN(test_present_pages_without_pagemap_scan);
    RUN(test_process_that_is_gone);
    if (geteuid() == 0)
        RUN(test_somebody_elses_process);
    else
        SKIP(test_somebody_elses_process, "needs root: to become somebody else");
}

int main(void)
{
    int fd = create_bare(-1, NULL);
    int huge = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);

    if (fd >= 0)
        run_with_uffd();
    else
        SKIP(test_mapping, "no userfaultfd right");
    if (huge >= 0)
        RUN(test_huge_memfd);
    else
        SKIP(test_huge_memfd, "this kernel has no hugetlbfs");
    RUN(test_files_not_open_for_writing);
    RUN(test_process_that_is_a_zombie);
    RUN(test_ranges_that_cannot_be);
    if (geteuid() == 0) {
        RUN(test_tmpfs_of_huge_pages);
        RUN(test_huge_page_settings);
    } else {
        SKIP(test_tmpfs_of_huge_pages, "needs root: to make a tmpfs");
        SKIP(test_huge_page_settings, "needs root: for a mount namespace");
    }
    close(huge);
    close(fd);
    return check_done();
}
