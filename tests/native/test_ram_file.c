/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RAM files that a VMM may come with. In some of them room was made where nobody has written: reserved (fallocate), or read
 * through another mapping. UFFDIO_COPY refuses such a page; it was once held back, and whoever touched it slept for ever.
 * And some cannot be served: those that nobody may write any more.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"

#define FILE_BYTES (SERVER_PAGES * REAL_PAGE)

static struct server server;
static struct client_vm vm;
static int ram_file; /* ours; the client's is its own from client_open on */

static void begin(void)
{
    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    ram_file = fcntl(vm.real.uffd.backing_fd, F_DUPFD_CLOEXEC, 0);
}

/* The first page that the guest reads wrong, or not at all; SERVER_PAGES: none. */
static uint64_t first_wrong(uint64_t step)
{
    uint64_t page = 0;

    while (page < SERVER_PAGES && real_do(&vm.real, REAL_READ, page, 1, 0) == client_word(page))
        page += step;
    return page < SERVER_PAGES ? page : SERVER_PAGES;
}

/* What is faulted for is the image's, and so is what comes in the background. */
static void comes_whole(uint64_t alarms)
{
    CHECK(client_arm(&vm));
    CHECK_EQ(first_wrong(7), SERVER_PAGES);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(first_wrong(1), SERVER_PAGES);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), alarms);
    close(ram_file);
    client_end(&vm);
    server_stop(&server);
}

static void test_reserved_before_the_hand_off(void)
{
    begin();
    CHECK_EQ(fallocate(ram_file, 0, 0, FILE_BYTES), 0);
    CHECK_EQ(client_open(&vm), 0);
    comes_whole(0);
}

/* Some of it, beside pages that somebody has written. */
static void test_reserved_in_part(void)
{
    begin();
    CHECK_EQ(fallocate(ram_file, 0, 100 * REAL_PAGE, 50 * REAL_PAGE), 0);
    CHECK_EQ(pwrite(ram_file, "other bytes", 11, 10 * REAL_PAGE), 11);
    CHECK_EQ(pwrite(ram_file, "other bytes", 11, 120 * REAL_PAGE), 11);
    CHECK_EQ(client_open(&vm), 0);
    comes_whole(0);
}

static void test_reserved_after_the_hand_off(void)
{
    begin();
    CHECK_EQ(client_open(&vm), 0);
    CHECK_EQ(fallocate(ram_file, 0, 0, FILE_BYTES), 0);
    comes_whole(1); /* said once */
}

/* As a tool does that looks at a VM's memory, or another process that shares it. */
static void test_read_through_another_mapping(void)
{
    uint8_t *bytes = MAP_FAILED;

    begin();
    CHECK_EQ(client_open(&vm), 0);
    bytes = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, ram_file, 0);
    CHECK(bytes != MAP_FAILED);
    CHECK_EQ(madvise(bytes, FILE_BYTES, MADV_POPULATE_READ), 0);
    comes_whole(1);
    munmap(bytes, FILE_BYTES);
}

/* Lost pages could not be taken out of it, and nothing written to it; a VMM's own mapping would go on as before. */
static void test_sealed_against_writing(void)
{
    static const int seals[] = {F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE | F_SEAL_SHRINK};

    begin();
    for (size_t i = 0; i < sizeof(seals) / sizeof(seals[0]); i++) {
        int sealed = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        CHECK_EQ(ftruncate(sealed, FILE_BYTES), 0);
        CHECK_EQ(fcntl(sealed, F_ADD_SEALS, seals[i]), 0);
        vm.options.backing_fd = sealed;
        CHECK_EQ(client_open(&vm), -PF_REASON_BAD_REQUEST);
        CHECK(strstr(vm.options.error, "sealed against writing") != NULL);
        close(sealed);
    }
    vm.options.backing_fd = vm.real.uffd.backing_fd; /* F_SEAL_SEAL: no more seals, and that is all */
    CHECK_EQ(client_open(&vm), 0);
    comes_whole(0);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_reserved_before_the_hand_off);
    RUN(test_reserved_in_part);
    RUN(test_reserved_after_the_hand_off);
    RUN(test_read_through_another_mapping);
    RUN(test_sealed_against_writing);
    return check_done();
}
