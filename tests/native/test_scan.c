/* SPDX-License-Identifier: Apache-2.0 */
/* Dirty tracking from outside, on the real kernel: what a scan sees of another process, and what it does not. */
#include <errno.h>
#include <sys/mman.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "kernel/scan.h"
#include "kernel/uffd.h"
#include "tracked.h"

#define PAGES 2048 /* four huge pages */

static struct tracked vmm;
static int pagemap_fd;

static void begin(bool huge)
{
    CHECK(tracked_start(&vmm, PAGES, PAGES, huge));
    pagemap_fd = scan_open(vmm.pid, vmm.pidfd);
    CHECK(pagemap_fd >= 0);
}

static void end(void)
{
    close(pagemap_fd);
    tracked_end(&vmm);
}

static uint64_t address_of(uint64_t page)
{
    return vmm.address + page * TRACKED_PAGE;
}

/* All dirty ranges into a byte a page; their number of pages. */
static uint64_t dirty_pages(uint8_t *dirty)
{
    struct scan_range found[SCAN_RANGES_MAX];
    uint64_t at = address_of(0), pages = 0;

    memset(dirty, 0, PAGES);
    while (at < address_of(PAGES)) {
        uint64_t looked_end = 0;
        int count = scan_calls.dirty(pagemap_fd, at, address_of(PAGES), found, &looked_end);
        CHECK(count >= 0 && looked_end > at);
        if (count < 0 || looked_end <= at)
            break;
        for (int i = 0; i < count; i++) {
            for (uint64_t address = found[i].start; address < found[i].end; address += TRACKED_PAGE) {
                dirty[(address - vmm.address) / TRACKED_PAGE] = 1;
                pages++;
            }
        }
        at = looked_end;
    }
    return pages;
}

static void clean(void)
{
    uint8_t dirty[PAGES];

    CHECK_EQ(scan_calls.reset(pagemap_fd, address_of(0), address_of(PAGES)), 0);
    CHECK_EQ(dirty_pages(dirty), 0);
}

/* Exactly these pages are dirty; page 0 at the end of the list closes it. */
static void are_dirty(uint64_t first, uint64_t second, uint64_t third)
{
    uint8_t dirty[PAGES];
    uint64_t want[] = {first, second, third}, count = 0;

    dirty_pages(dirty);
    for (size_t i = 0; i < 3; i++) {
        if (want[i] != 0)
            CHECK_EQ(dirty[want[i]], 1);
        count += want[i] != 0;
    }
    CHECK_EQ(dirty_pages(dirty), count);
}

static void test_writes_are_seen(void)
{
    uint8_t dirty[PAGES];

    begin(false);
    CHECK_EQ(dirty_pages(dirty), PAGES); /* nobody has ever looked */
    clean();
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 5, 1));
    CHECK(tracked_do(&vmm, TRACKED_READ, 6, 0));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 700, 1));
    are_dirty(5, 700, 0);
    are_dirty(5, 700, 0); /* to look changes nothing */
    CHECK_EQ(scan_calls.reset(pagemap_fd, address_of(5), address_of(6)), 0);
    are_dirty(700, 0, 0);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 5, 2));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 6, 2));
    are_dirty(5, 6, 700);
    end();
}

static void test_what_the_kernel_writes_on_its_behalf_is_seen(void)
{
    begin(false);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 9, 1));
    clean();
    CHECK(tracked_do(&vmm, TRACKED_RECEIVE, 9, 0));
    CHECK(tracked_do(&vmm, TRACKED_RECEIVE, 10, 0)); /* where nothing was */
    are_dirty(9, 10, 0);
    end();
}

/* Why vhost-user and the like are refused. */
static void test_writes_past_the_mapping_are_not_seen(void)
{
    begin(false);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 3, 1));
    clean();
    CHECK_EQ(pwrite(vmm.ram_fd, "x", 1, 3 * TRACKED_PAGE), 1);
    are_dirty(0, 0, 0);
    end();
}

/* And why the shim takes the protection off. */
static void test_a_hole_in_a_clean_page_is_not_seen(void)
{
    begin(false);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 3, 1));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 4, 1));
    clean();
    CHECK(tracked_do(&vmm, TRACKED_PUNCH, 3, 0));
    CHECK(tracked_do(&vmm, TRACKED_DONTNEED, 4, 0));
    are_dirty(0, 0, 0);
    CHECK(tracked_do(&vmm, TRACKED_UNPROTECT, 3, 0));
    are_dirty(3, 0, 0);
    end();
}

static void test_more_ranges_than_one_look_takes(void)
{
    struct scan_range found[SCAN_RANGES_MAX];
    uint8_t dirty[PAGES];
    uint64_t looked_end = 0;

    begin(false);
    clean();
    for (uint64_t page = 0; page < PAGES; page += 2)
        CHECK(tracked_do(&vmm, TRACKED_WRITE, page, 1));
    CHECK_EQ(scan_calls.dirty(pagemap_fd, address_of(0), address_of(PAGES), found, &looked_end), SCAN_RANGES_MAX);
    CHECK(looked_end < address_of(PAGES));
    CHECK_EQ(dirty_pages(dirty), PAGES / 2);
    for (uint64_t page = 0; page < PAGES; page++)
        CHECK_EQ(dirty[page], page % 2 == 0);
    end();
}

static void test_huge_pages_are_split_by_a_reset(void)
{
    uint8_t dirty[PAGES];

    if (!tracked_start(&vmm, PAGES, PAGES, true)) {
        tracked_end(&vmm);
        printf("     no huge pages of shared memory here\n");
        return;
    }
    pagemap_fd = scan_open(vmm.pid, vmm.pidfd);
    CHECK_EQ(dirty_pages(dirty), PAGES);
    clean();
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 513, 1));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 1500, 1));
    are_dirty(513, 1500, 0);
    end();
}

static void test_what_is_covered(void)
{
    begin(false);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES)), 1);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES + 1)), 0);
    CHECK_EQ(scan_covered(pagemap_fd, UINT64_C(1) << 60, (UINT64_C(1) << 60) + TRACKED_PAGE), 0);
    CHECK(tracked_do(&vmm, TRACKED_REPLACE, 8, 0));
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES)), 0);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(8)), 1);
    CHECK_EQ(scan_calls.reset(pagemap_fd, address_of(0), address_of(PAGES)), -EPERM);
    end();
    CHECK(tracked_start(&vmm, PAGES, PAGES - 1, false));
    pagemap_fd = scan_open(vmm.pid, vmm.pidfd);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES)), 0);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES - 1)), 1);
    end();
}

static void test_the_end_of_tracking_is_not_taken_for_silence(void)
{
    struct scan_range found[SCAN_RANGES_MAX];
    uint64_t looked_end;

    begin(false);
    clean();
    CHECK(tracked_do(&vmm, TRACKED_UNREGISTER, 0, 0));
    CHECK_EQ(scan_calls.dirty(pagemap_fd, address_of(0), address_of(PAGES), found, &looked_end), -EPERM);
    CHECK_EQ(scan_calls.reset(pagemap_fd, address_of(0), address_of(PAGES)), -EPERM);
    end();
}

static void test_a_process_that_ends(void)
{
    struct scan_range found[SCAN_RANGES_MAX];
    uint64_t looked_end;
    pid_t pid;

    begin(false);
    pid = vmm.pid;
    tracked_kill(&vmm);
    CHECK_EQ(scan_calls.dirty(pagemap_fd, address_of(0), address_of(PAGES), found, &looked_end), -ESRCH);
    CHECK_EQ(scan_open(pid, -1), -ESRCH);
    CHECK_EQ(scan_open(getpid(), vmm.pidfd), -ESRCH); /* its number has been given to another */
    end();
}

static int mapped(uint64_t address, uint64_t offset_bytes, uint64_t pages)
{
    struct scan_mapping mapping = {address, pages * TRACKED_PAGE, offset_bytes};

    return scan_mapped(vmm.pid, vmm.ram_fd, &mapping, 1);
}

static void test_how_the_file_is_mapped(void)
{
    int other = memfd_create("other", MFD_CLOEXEC);
    struct scan_mapping two[2], mapping;

    begin(false);
    mapping = (struct scan_mapping){address_of(0), PAGES * TRACKED_PAGE, 0};
    two[0] = (struct scan_mapping){address_of(0), 100 * TRACKED_PAGE, 0};
    two[1] = (struct scan_mapping){address_of(100), (PAGES - 100) * TRACKED_PAGE, 100 * TRACKED_PAGE};
    CHECK_EQ(mapped(address_of(0), 0, PAGES), 0);
    CHECK_EQ(scan_mapped(vmm.pid, vmm.ram_fd, two, 2), 0);
    CHECK_EQ(mapped(address_of(1), 0, PAGES), -EXDEV);             /* not there */
    CHECK_EQ(mapped(address_of(0), TRACKED_PAGE, PAGES), -EXDEV);  /* other pages of it */
    CHECK_EQ(mapped(address_of(0), 0, PAGES - 1), -EBUSY);         /* more than was said */
    CHECK_EQ(scan_mapped(vmm.pid, other, &mapping, 1), -EXDEV);    /* another file */
    CHECK(tracked_do(&vmm, TRACKED_MAP_AGAIN, 7, 0));
    CHECK_EQ(mapped(address_of(0), 0, PAGES), -EBUSY);
    CHECK_EQ(scan_mapped(0x7ffffff, vmm.ram_fd, &mapping, 1), -ESRCH);
    close(other);
    end();
}

/* ---------------------------------------------------------------------------------- memory that arrives meanwhile */

static void begin_arriving(void)
{
    CHECK(tracked_start_arriving(&vmm, PAGES));
    pagemap_fd = scan_open(vmm.pid, vmm.pidfd);
    CHECK(pagemap_fd >= 0);
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES)), 1);
    clean(); /* what is absent is clean as well */
}

static struct kernel_span span_of(uint64_t page)
{
    return (struct kernel_span){address_of(page), TRACKED_PAGE, page * TRACKED_PAGE};
}

static void copies(struct uffd *pager, uint64_t page)
{
    static const uint8_t bytes[TRACKED_PAGE] = {7};
    struct kernel_span span = span_of(page);

    CHECK_EQ(uffd_kernel_ops.copy(pager, &span, bytes).result, KERNEL_MAPPED);
}

/* Nobody has written these pages but whoever has put them there: a chain of moves rests on it. */
static void test_what_arrives_counts_as_written(void)
{
    struct kernel_span continued = span_of(700), zero = span_of(1500), cached = span_of(9);
    static const uint8_t bytes[TRACKED_PAGE] = {8};
    struct uffd pager;

    begin_arriving();
    pager = (struct uffd){.fd = vmm.uffd, .backing_fd = vmm.ram_fd};
    copies(&pager, 5);
    CHECK_EQ(uffd_kernel_ops.populate(&pager, &continued, bytes).result, KERNEL_MAPPED);
    CHECK_EQ(uffd_kernel_ops.populate(&pager, &cached, bytes).result, KERNEL_MAPPED);
    are_dirty(5, 0, 0); /* in the page cache alone: mapped nowhere, written by nobody */
    CHECK_EQ(uffd_kernel_ops.map(&pager, &continued).result, KERNEL_MAPPED);
    CHECK_EQ(uffd_kernel_ops.zero(&pager, &zero).result, KERNEL_MAPPED);
    are_dirty(5, 700, 1500);
    CHECK(tracked_do(&vmm, TRACKED_READ, 5, 0));
    are_dirty(5, 700, 1500);
    clean(); /* from here on it is as any other page */
    CHECK(tracked_do(&vmm, TRACKED_READ, 5, 0));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 700, 1));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 1500, 1));
    are_dirty(700, 1500, 0);
    end();
}

/* A fault comes to its reader though the page is protected, and the write that waits for it is seen. */
static void test_an_absent_page_that_was_reset_still_faults(void)
{
    struct kernel_event event = {0};
    struct uffd pager;

    begin_arriving();
    pager = (struct uffd){.fd = vmm.uffd, .backing_fd = vmm.ram_fd};
    tracked_order(&vmm, TRACKED_WRITE, 33, 1);
    while (uffd_kernel_ops.read_events(&pager, &event, 1) == 0)
        usleep(100);
    CHECK_EQ(event.kind, KERNEL_EVENT_FAULT);
    CHECK_EQ(event.address, address_of(33));
    are_dirty(0, 0, 0);
    copies(&pager, 33);
    CHECK(tracked_done(&vmm));
    are_dirty(33, 0, 0);
    clean();
    end();
}

static void test_protection_alone(void)
{
    uint8_t dirty[PAGES];
    struct uffd pager;

    begin_arriving();
    pager = (struct uffd){.fd = vmm.uffd, .backing_fd = vmm.ram_fd};
    copies(&pager, 3);
    clean();
    tracked_order(&vmm, TRACKED_READ, 40, 0); /* which sleeps on a fault that nobody will answer */
    usleep(1000);
    CHECK_EQ(scan_protect_alone(vmm.uffd, address_of(0), address_of(PAGES)), 0);
    CHECK(tracked_done(&vmm));
    CHECK_EQ(scan_covered(pagemap_fd, address_of(0), address_of(PAGES)), 1);
    CHECK_EQ(dirty_pages(dirty), PAGES); /* what was clean is known no more */
    clean();
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 3, 1));
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 41, 1)); /* absent: zeros, and no fault */
    are_dirty(3, 41, 0);
    tracked_kill(&vmm);
    CHECK_EQ(scan_protect_alone(vmm.uffd, address_of(0), address_of(PAGES)), -ESRCH);
    end();
}

int main(void)
{
    const char *absent = tracked_absent();

    if (absent != NULL) {
        SKIP(test_scan, absent);
        return check_done();
    }
    RUN(test_writes_are_seen);
    RUN(test_what_the_kernel_writes_on_its_behalf_is_seen);
    RUN(test_writes_past_the_mapping_are_not_seen);
    RUN(test_a_hole_in_a_clean_page_is_not_seen);
    RUN(test_more_ranges_than_one_look_takes);
    RUN(test_huge_pages_are_split_by_a_reset);
    RUN(test_what_is_covered);
    RUN(test_the_end_of_tracking_is_not_taken_for_silence);
    RUN(test_a_process_that_ends);
    RUN(test_how_the_file_is_mapped);
    RUN(test_what_arrives_counts_as_written);
    RUN(test_an_absent_page_that_was_reset_still_faults);
    RUN(test_protection_alone);
    return check_done();
}
