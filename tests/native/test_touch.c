/* SPDX-License-Identifier: Apache-2.0 */
/* Reads that cannot hurt: an absent page, one that can never be, a poisoned one; and who else gets a signal: nobody. */
#include "kernel/touch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "kernel/create.h"

#define PAGE 4096

static uint8_t *page_of(int fd)
{
    uint8_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

    CHECK(page != MAP_FAILED);
    return page;
}

static void test_bytes(void)
{
    uint8_t *page = page_of(-1);
    struct touch touch;
    struct touch_signal met;

    memcpy(page, "ab", 2);
    CHECK_EQ(touch_begin(&touch, page), 0);
    CHECK_EQ(touch_end(&touch), 0);
    CHECK(memcmp(touch.bytes, "ab", 2) == 0);
    CHECK_EQ(touch_for_signal(page, &met), 0);
    CHECK_EQ(met.code, 0);
    munmap(page, PAGE);
}

/* Behind the end of its file: SIGBUS for a program, EFAULT for a read by the kernel. */
static void test_page_that_can_never_be(void)
{
    int fd = memfd_create("empty", MFD_CLOEXEC);
    uint8_t *page = page_of(fd);
    struct touch touch;
    struct touch_signal met;

    CHECK_EQ(touch_begin(&touch, page), 0);
    CHECK_EQ(touch_end(&touch), -EFAULT);
    CHECK_EQ(touch_for_signal(page, &met), 0);
    CHECK_EQ(met.code, BUS_ADRERR);
    CHECK_EQ(met.lsb, 0);
    munmap(page, PAGE);
    close(fd);
}

static volatile sig_atomic_t bus_count, child_count;

static void on_bus(int number)
{
    (void)number;
    bus_count++;
}

static void on_child(int number)
{
    (void)number;
    child_count++;
}

/* The process keeps its own ways of taking SIGBUS and SIGCHLD, and sees neither. */
static void test_dispositions_stay(void)
{
    struct sigaction bus = {.sa_handler = on_bus}, child = {.sa_handler = on_child}, now;
    int fd = memfd_create("empty", MFD_CLOEXEC);
    uint8_t *page = page_of(fd);
    struct touch_signal met;
    sigset_t before = {0}, after = {0};

    CHECK(sigaction(SIGBUS, &bus, NULL) == 0 && sigaction(SIGCHLD, &child, NULL) == 0);
    sigprocmask(SIG_SETMASK, NULL, &before);
    CHECK_EQ(touch_for_signal(page, &met), 0);
    CHECK_EQ(met.code, BUS_ADRERR);
    sigprocmask(SIG_SETMASK, NULL, &after);
    CHECK(memcmp(&before, &after, sizeof(before)) == 0);
    CHECK_EQ(bus_count, 0);
    CHECK_EQ(child_count, 0);
    CHECK(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD);
    raise(SIGBUS);
    CHECK_EQ(bus_count, 1);
    CHECK(sigaction(SIGBUS, NULL, &now) == 0 && now.sa_handler == on_bus);
    signal(SIGBUS, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    munmap(page, PAGE);
    close(fd);
}

static int registered(uint8_t *page)
{
    struct uffdio_register arg = {.range = {(uintptr_t)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    int uffd = create_uffd(-1, 0, NULL);

    CHECK(uffd >= 0 && ioctl(uffd, UFFDIO_REGISTER, &arg) == 0);
    return uffd;
}

/* Nobody answers: the child gives up by itself, and a thread reads on when the registration ends. */
static void test_page_that_never_comes(void)
{
    uint8_t *page = page_of(-1);
    struct uffdio_range range = {(uintptr_t)page, PAGE};
    int uffd = registered(page);
    struct touch_signal met;
    struct touch touch;

    CHECK_EQ(touch_for_signal(page, &met), -ETIMEDOUT);
    CHECK_EQ(touch_begin(&touch, page), 0);
    CHECK(ioctl(uffd, UFFDIO_UNREGISTER, &range) == 0 && ioctl(uffd, UFFDIO_WAKE, &range) == 0);
    CHECK_EQ(touch_end(&touch), 0);
    CHECK(memcmp(touch.bytes, "\0", 2) == 0);
    close(uffd);
    munmap(page, PAGE);
}

static void test_poisoned_page(void)
{
    uint8_t *page = page_of(-1);
    struct uffdio_poison poison = {.range = {(uintptr_t)page, PAGE}};
    int uffd = registered(page);
    struct touch_signal met;
    struct touch touch;

    if (ioctl(uffd, UFFDIO_POISON, &poison) == 0) {
        CHECK_EQ(touch_for_signal(page, &met), 0);
        CHECK((met.code == BUS_ADRERR && met.lsb == 0) || (met.code == BUS_MCEERR_AR && met.lsb == 12));
        CHECK_EQ(touch_begin(&touch, page), 0);
        CHECK_EQ(touch_end(&touch), -EFAULT);
    } else {
        CHECK_EQ(errno, EINVAL);
    }
    close(uffd);
    munmap(page, PAGE);
}

int main(void)
{
    int fd = create_bare(-1, NULL);

    RUN(test_bytes);
    RUN(test_page_that_can_never_be);
    RUN(test_dispositions_stay);
    if (fd >= 0) {
        close(fd);
        RUN(test_page_that_never_comes);
        RUN(test_poisoned_page);
    } else {
        SKIP(test_page_that_never_comes, "no userfaultfd right");
    }
    return check_done();
}
