/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each way of dropping mappings leaves behind, on each kind of memory, on the kernel that runs; and what zap_here
 * makes of it. "test_zap table" prints what was measured as Markdown: docs/zap-table.md is held against that.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <linux/mman.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "huge_pool.h"
#include "kernel/uapi.h"
#include "kernel/zap.h"
#include "pageferry.h"
#include "zap_area.h"

#define PAGE UINT64_C(4096)
#define HUGE_PAGES (2 * AREA_UNITS + 2)

static bool have_huge_pages;

/* --------------------------------------------------------------------------------------- what the kernel's calls do */

enum way { WAY_DONTNEED, WAY_DONTNEED_LOCKED, WAY_REMAP, WAY_PUNCH, WAY_COUNT };

static int go(const struct area *area, enum way way)
{
    bool shared = area->fd >= 0 && area->kind != AREA_SHMEM_PRIVATE;
    int flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE) | (area->fd < 0 ? MAP_ANONYMOUS : 0) |
                (area->kind == AREA_HUGETLB_PRIVATE ? MAP_HUGETLB | MAP_HUGE_2MB : 0);
    long rc = -1;

    errno = ENODEV;
    switch (way) {
    case WAY_DONTNEED:
        rc = syscall(SYS_madvise, area->start, area->bytes, MADV_DONTNEED);
        break;
    case WAY_DONTNEED_LOCKED:
        rc = syscall(SYS_madvise, area->start, area->bytes, MADV_DONTNEED_LOCKED);
        break;
    case WAY_REMAP:
        rc = mmap(area->start, area->bytes, PROT_READ | PROT_WRITE, flags, area->fd, 0) == MAP_FAILED ? -1 : 0;
        break;
    case WAY_PUNCH:
        rc = fallocate(area->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)area->bytes);
        break;
    default:
        break;
    }
    return rc < 0 ? -errno : 0;
}

/* What facts say; "fault, data" as the table has it. NULL: cannot be done there. */
static const char *const expected[AREA_KIND_COUNT][WAY_COUNT] = {
    [AREA_MEMFD] = {"minor, kept", "minor, kept", "minor, kept", "missing, zeros"},
    [AREA_TMPFS] = {"minor, kept", "minor, kept", "minor, kept", "missing, zeros"},
    [AREA_LOCKED] = {"EINVAL", "minor, kept", "minor, kept", "missing, zeros"},
    [AREA_SHMEM_PRIVATE] = {"minor, the file's", "minor, the file's", "minor, the file's", "none, kept"},
    [AREA_ANON] = {"missing, zeros", "missing, zeros", "missing, zeros", "-"},
    [AREA_HUGETLB_SHARED] = {"minor, kept", "minor, kept", "minor, kept", "missing, zeros"},
    [AREA_HUGETLB_PRIVATE] = {"missing, zeros", "missing, zeros", "missing, zeros", "-"},
};

static const char *fault_name(enum area_fault fault)
{
    static const char *const names[] = {[FAULT_NONE] = "none", [FAULT_MINOR] = "minor", [FAULT_MISSING] = "missing"};

    return names[fault];
}

static const char *data_name(enum area_data data)
{
    static const char *const names[] = {[DATA_KEPT] = "kept", [DATA_ZEROS] = "zeros", [DATA_OF_THE_FILE] = "the file's",
                                        [DATA_ELSE] = "something else"};

    return names[data];
}

/* What the next access to both ends of the area meets. */
static void look(struct area *area, char *cell, size_t cell_bytes)
{
    struct area_next first, last;

    if (!area_touch(area, 0, &first) || !area_touch(area, area->bytes - 1, &last))
        snprintf(cell, cell_bytes, "nothing comes of it");
    else if (first.fault != last.fault || first.data != last.data)
        snprintf(cell, cell_bytes, "its ends differ");
    else
        snprintf(cell, cell_bytes, "%s, %s", fault_name(first.fault), data_name(first.data));
}

static void measure(enum area_kind kind, enum way way, char *cell, size_t cell_bytes)
{
    struct area area;
    int rc;

    snprintf(cell, cell_bytes, "cannot be made");
    if (area_make(&area, kind, 0)) {
        rc = go(&area, way);
        if (rc == 0 && way == WAY_REMAP && !area_register(&area))
            rc = -EIO;
        if (rc == 0)
            look(&area, cell, cell_bytes);
        else if (way == WAY_PUNCH && area.fd < 0)
            snprintf(cell, cell_bytes, "-");
        else
            snprintf(cell, cell_bytes, "%s", strerrorname_np(-rc));
    }
    area_end(&area);
}

static bool may(enum area_kind kind)
{
    return have_huge_pages || !area_of_huge_pages(kind);
}

static void test_what_each_call_leaves_behind(void)
{
    char cell[64];

    for (int kind = 0; kind < AREA_KIND_COUNT; kind++)
        for (int way = 0; may((enum area_kind)kind) && way < WAY_COUNT; way++) {
            measure((enum area_kind)kind, (enum way)way, cell, sizeof(cell));
            if (strcmp(cell, expected[kind][way]) != 0)
                printf("%s, way %d: %s, not %s\n", area_name((enum area_kind)kind), way, cell, expected[kind][way]);
            CHECK(strcmp(cell, expected[kind][way]) == 0);
        }
}

/* ------------------------------------------------------------------------------------------------ what zap_here does */

struct answer {
    int rc;
    struct zap_done done;
    char cell[64]; /* of the access after it */
};

static const char *const methods[] = {
    [ZAP_METHOD_NONE] = "refused", [ZAP_METHOD_DONTNEED] = "DONTNEED",
    [ZAP_METHOD_DONTNEED_LOCKED] = "DONTNEED_LOCKED", [ZAP_METHOD_REMAP] = "mapped anew",
    [ZAP_METHOD_PUNCH] = "PUNCH_HOLE",
};

static struct zap_request whole(const struct area *area, bool drop)
{
    return (struct zap_request){.address = (uintptr_t)area->start, .length_bytes = area->bytes,
                                .backing_fd = area->fd, .drop = drop, .uffd = -1};
}

static void zap(enum area_kind kind, bool drop, struct answer *answer)
{
    struct zap_request request;
    struct area area;

    *answer = (struct answer){.rc = -EIO, .done = {.why = "it cannot be made"}};
    if (area_make(&area, kind, 0)) {
        request = whole(&area, drop);
        answer->rc = zap_here(&request, &answer->done);
        look(&area, answer->cell, sizeof(answer->cell));
    }
    area_end(&area);
}

static const struct row {
    int rc;
    enum zap_method method;
    const char *cell;
} rows[AREA_KIND_COUNT][2] = { /* data kept, data dropped */
    [AREA_MEMFD] = {{0, ZAP_METHOD_DONTNEED, "minor, kept"}, {0, ZAP_METHOD_PUNCH, "missing, zeros"}},
    [AREA_TMPFS] = {{0, ZAP_METHOD_DONTNEED, "minor, kept"}, {0, ZAP_METHOD_PUNCH, "missing, zeros"}},
    [AREA_LOCKED] = {{0, ZAP_METHOD_DONTNEED_LOCKED, "minor, kept"}, {0, ZAP_METHOD_PUNCH, "missing, zeros"}},
    [AREA_SHMEM_PRIVATE] = {{-EOPNOTSUPP, ZAP_METHOD_NONE, "none, kept"}, {-EOPNOTSUPP, ZAP_METHOD_NONE, "none, kept"}},
    [AREA_ANON] = {{-EOPNOTSUPP, ZAP_METHOD_NONE, "none, kept"}, {0, ZAP_METHOD_DONTNEED, "missing, zeros"}},
    [AREA_HUGETLB_SHARED] = {{0, ZAP_METHOD_DONTNEED, "minor, kept"}, {0, ZAP_METHOD_PUNCH, "missing, zeros"}},
    [AREA_HUGETLB_PRIVATE] = {{-EOPNOTSUPP, ZAP_METHOD_NONE, "none, kept"}, {0, ZAP_METHOD_DONTNEED, "missing, zeros"}},
};

static void test_zap_on_every_kind(void)
{
    struct answer answer;

    for (int kind = 0; kind < AREA_KIND_COUNT; kind++)
        for (int drop = 0; may((enum area_kind)kind) && drop < 2; drop++) {
            const struct row *row = &rows[kind][drop];
            zap((enum area_kind)kind, drop != 0, &answer);
            CHECK_EQ(answer.rc, row->rc);
            CHECK_EQ(answer.done.method, row->method);
            CHECK(answer.done.why != NULL && strlen(answer.done.why) > 10);
            CHECK_EQ(answer.done.done_bytes > 0, row->rc == 0);
            if (strcmp(answer.cell, row->cell) != 0)
                printf("%s, drop %d: %s, not %s\n", area_name((enum area_kind)kind), drop, answer.cell, row->cell);
            CHECK(strcmp(answer.cell, row->cell) == 0);
        }
}

/* --------------------------------------------------------------------------------------------------- what is refused */

static int refusal(struct zap_request request, const char *fragment)
{
    struct zap_done done;
    int rc = zap_here(&request, &done);

    if (rc < 0 && strstr(done.why, fragment) == NULL) {
        printf("\"%s\" has no \"%s\"\n", done.why, fragment);
        rc = 1;
    }
    return rc < 0 && (done.done_bytes != 0 || done.method != ZAP_METHOD_NONE) ? 2 : rc;
}

static void test_what_cannot_be_zapped(void)
{
    struct area area, other;
    struct zap_request request;
    struct area_next next;

    CHECK(area_make(&area, AREA_MEMFD, 0) && area_make(&other, AREA_MEMFD, 0));
    request = whole(&area, false);
    request.length_bytes = 0;
    CHECK_EQ(refusal(request, "whole pages"), -EINVAL);
    request.length_bytes = PAGE + 1;
    CHECK_EQ(refusal(request, "whole pages"), -EINVAL);
    request.length_bytes = UINT64_MAX - PAGE + 1;
    CHECK_EQ(refusal(request, "whole pages"), -EINVAL);
    request = whole(&area, false);
    request.address += 512;
    CHECK_EQ(refusal(request, "whole pages"), -EINVAL);
    request = whole(&area, false);
    request.backing_fd = other.fd;
    CHECK_EQ(refusal(request, "not what is mapped"), -EINVAL);
    request = whole(&area, true);
    request.backing_fd = other.fd; /* nothing of the other file goes */
    CHECK_EQ(refusal(request, "not what is mapped"), -EINVAL);
    request = whole(&area, false);
    request.offset_bytes = PAGE;
    CHECK_EQ(refusal(request, "not what is mapped"), -EINVAL);
    request = whole(&area, false);
    request.backing_fd = 9999;
    CHECK_EQ(refusal(request, "descriptor"), -EINVAL);
    request.backing_fd = -1;
    CHECK_EQ(refusal(request, "shared memory"), -EINVAL);
    CHECK_EQ(munmap(area.start + area.bytes - PAGE, PAGE), 0);
    CHECK_EQ(refusal(whole(&area, false), "mapped"), -EINVAL);
    CHECK(area_touch(&area, 0, &next) && next.fault == FAULT_NONE && next.data == DATA_KEPT);
    CHECK(area_touch(&other, 0, &next) && next.fault == FAULT_NONE && next.data == DATA_KEPT);
    area_end(&area);
    area_end(&other);
}

static void test_only_whole_huge_pages(void)
{
    static const enum area_kind kinds[] = {AREA_HUGETLB_SHARED, AREA_HUGETLB_PRIVATE};
    struct zap_request request;
    struct area_next next;
    struct area area;

    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        CHECK(area_make(&area, kinds[i], 0));
        request = whole(&area, true);
        request.length_bytes -= PAGE; /* the kernel would round it down, and say nothing */
        CHECK_EQ(refusal(request, "huge pages"), -EINVAL);
        request.address += PAGE;
        request.offset_bytes = PAGE;
        CHECK_EQ(refusal(request, "huge pages"), -EINVAL);
        CHECK(area_touch(&area, 0, &next) && next.fault == FAULT_NONE && next.data == DATA_KEPT);
        area_end(&area);
    }
}

/* --------------------------------------------------------------------------------------------------- other kernels */

/* A kernel that has no DONTNEED for this memory. `uffd`: nobody touches it meanwhile. */
static int on_an_older_kernel(bool stands_still)
{
    struct zap_request request;
    struct zap_done done;
    struct area area;
    char cell[64];
    int rc;

    if (!area_make(&area, AREA_MEMFD, 0) || !real_deny_advice(MADV_DONTNEED, EINVAL) ||
        !real_deny_advice(MADV_DONTNEED_LOCKED, EINVAL))
        return 1;
    request = whole(&area, false);
    request.uffd = stands_still ? area.uffd : -1;
    rc = zap_here(&request, &done);
    look(&area, cell, sizeof(cell));
    if (stands_still)
        return rc != 0 || done.method != ZAP_METHOD_REMAP || strcmp(cell, "minor, kept") != 0;
    return rc != -EOPNOTSUPP || done.method != ZAP_METHOD_NONE || strcmp(cell, "none, kept") != 0;
}

static int without_dontneed(void)
{
    return on_an_older_kernel(false);
}

static int without_dontneed_standing_still(void)
{
    return on_an_older_kernel(true);
}

/* Locked memory before Linux 5.18. */
static int without_dontneed_locked(void)
{
    struct zap_request request;
    struct zap_done done;
    struct area area;

    if (!area_make(&area, AREA_LOCKED, 0) || !real_deny_advice(MADV_DONTNEED_LOCKED, EINVAL))
        return 1;
    request = whole(&area, false);
    return zap_here(&request, &done) != -EOPNOTSUPP || strstr(done.why, "5.18") == NULL;
}

static void test_older_kernels(void)
{
    CHECK(real_apart(without_dontneed));
    CHECK(real_apart(without_dontneed_standing_still));
    CHECK(real_apart(without_dontneed_locked));
}

/* ---------------------------------------------------------------------------------------------------- pageferry_zap */

static void test_the_library_call(void)
{
    struct pageferry_zap call;
    struct area area;

    CHECK(area_make(&area, AREA_ANON, 0));
    call = (struct pageferry_zap){
        .address = (uintptr_t)area.start, .length_bytes = area.bytes, .backing_fd = -1, .uffd = -1};
    CHECK_EQ(pageferry_zap(&call), -PF_REASON_UNSUPPORTED);
    CHECK(strstr(call.why, "private memory") != NULL);
    call.flags = PAGEFERRY_ZAP_DROP;
    CHECK_EQ(pageferry_zap(&call), 0);
    CHECK_EQ(call.method, PAGEFERRY_ZAPPED_BY_DONTNEED);
    CHECK_EQ(call.done_bytes, area.bytes);
    call.flags = 4;
    CHECK_EQ(pageferry_zap(&call), -PF_REASON_BAD_REQUEST);
    call.flags = 0;
    call.length_bytes = 1;
    CHECK_EQ(pageferry_zap(&call), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(call.done_bytes, 0);
    CHECK_EQ(call.method, 0);
    area_end(&area);
}

/* ------------------------------------------------------------------------------------------- removals are reported */

struct zapping {
    struct zap_request request;
    struct zap_done done;
    int rc;
};

static void *zap_thread(void *argument)
{
    struct zapping *zapping = argument;

    zapping->rc = zap_here(&zapping->request, &zapping->done);
    return NULL;
}

/* The call waits until its REMOVE event is read; data stays. */
static void test_where_removals_are_reported(void)
{
    struct uffd_msg event = {0};
    struct zapping zapping;
    struct area_next next;
    struct area area;
    pthread_t thread;

    CHECK(area_make(&area, AREA_MEMFD, UFFD_FEATURE_EVENT_REMOVE));
    zapping.request = whole(&area, false);
    CHECK_EQ(pthread_create(&thread, NULL, zap_thread, &zapping), 0);
    CHECK(CLIENT_UNTIL(read(area.uffd, &event, sizeof(event)) == (ssize_t)sizeof(event)));
    CHECK_EQ(event.event, UFFD_EVENT_REMOVE);
    CHECK_EQ(event.arg.remove.start, (uintptr_t)area.start);
    CHECK_EQ(event.arg.remove.end, (uintptr_t)area.start + area.bytes);
    pthread_join(thread, NULL);
    CHECK_EQ(zapping.rc, 0);
    CHECK_EQ(zapping.done.method, ZAP_METHOD_DONTNEED);
    CHECK(area_touch(&area, 0, &next) && next.fault == FAULT_MINOR && next.data == DATA_KEPT);
    area_end(&area);
}

/* ------------------------------------------------------------------------------------------------------------ table */

static void print_table(void)
{
    char cell[64];

    printf("<!-- printed by tests/native/test_zap.c; do not edit: make -C native zap-table -->\n\n"
           "# Zap: what is left behind\n\n"
           "What the next access meets after mappings were dropped, and which data it finds: measured by the program that\n"
           "prints this, on each kind of memory, registered for missing faults and, where a file is behind it, for minor\n"
           "faults. *none*: no fault, it is still mapped.\n\n"
           "| memory | MADV_DONTNEED | MADV_DONTNEED_LOCKED | mapped and registered anew | PUNCH_HOLE |\n"
           "|---|---|---|---|---|\n");
    for (int kind = 0; kind < AREA_KIND_COUNT; kind++) {
        printf("| %s |", area_name((enum area_kind)kind));
        for (int way = 0; way < WAY_COUNT; way++) {
            measure((enum area_kind)kind, (enum way)way, cell, sizeof(cell));
            printf(" %s |", cell);
        }
        printf("\n");
    }
    printf("\nMADV_REMOVE is PUNCH_HOLE by address. Mapping anew leaves the memory without registration for an instant:\n"
           "nobody may touch it meanwhile.\n\n"
           "## Which of them a zap uses\n\n"
           "`pageferry_zap`, the shim, and ORDER_ZAP (`native/pageferry.h`), in steps of 2 MiB at most.\n\n"
           "| memory | data | way | next access | why |\n|---|---|---|---|---|\n");
    for (int kind = 0; kind < AREA_KIND_COUNT; kind++)
        for (int drop = 0; drop < 2; drop++) {
            struct answer answer;
            zap((enum area_kind)kind, drop != 0, &answer);
            printf("| %s | %s | %s | %s | %s |\n", area_name((enum area_kind)kind), drop ? "dropped" : "kept",
                   methods[answer.done.method], answer.cell, answer.done.why);
        }
}

int main(int argc, char **argv)
{
    const char *lacking = "no huge pages: raise vm.nr_hugepages by 6";

    if (!client_may()) {
        SKIP(test_zap, "no userfaultfd right");
        return check_done();
    }
    have_huge_pages = huge_pool_add(HUGE_PAGES);
    if (argc == 2 && strcmp(argv[1], "table") == 0) {
        print_table();
        return 0;
    }
    RUN(test_what_each_call_leaves_behind);
    RUN(test_zap_on_every_kind);
    RUN(test_what_cannot_be_zapped);
    if (have_huge_pages)
        RUN(test_only_whole_huge_pages);
    else
        SKIP(test_only_whole_huge_pages, lacking);
    RUN(test_older_kernels);
    RUN(test_the_library_call);
    RUN(test_where_removals_are_reported);
    return check_done();
}
