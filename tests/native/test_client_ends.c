/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client through pageferry.h, on the real kernel: poison, no memory, the VMM's death and our own end at every
 * stage, several VMs, and what is refused before it begins.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"
#include "kernel/mapping.h"
#include "kernel/uapi.h"

static struct server server;
static struct client_vm vm;

static bool begin(enum real_memory memory, bool frames, bool background)
{
    server_start(&server);
    if (!client_prepare(&vm, memory, SERVER_PAGES, &server, frames))
        return false;
    vm.options.background = background;
    return client_open(&vm) == 0;
}

static void end(void)
{
    client_end(&vm);
    server_stop(&server);
}

static void read_all(uint64_t step)
{
    for (uint64_t page = 0; page < SERVER_PAGES; page += step)
        CHECK_EQ(real_do(&vm.real, REAL_READ, page, 1, 0), client_word(page));
}

/* ------------------------------------------------------------------------------------------------- poison, no room */

static void test_poison(void)
{
    server_start(&server);
    atomic_store(&server.will.poison_page, 21);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    vm.options.background = 1;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK_EQ(vm.event.value, 1);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_POISONED], 1);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 20, 1, 0), REAL_SIGBUS);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 20, 1, 0), REAL_SIGBUS);
    CHECK_EQ(real_do(&vm.real, REAL_READ, 21, 1, 0), client_word(21));
    CHECK_EQ(real_do(&vm.real, REAL_READ, 71, 1, 0), 0);
    CHECK(!client_busy());
    end();
}

static bool makes_tmpfs(void)
{
    int fd = real_tmpfs_file("64k", NULL, NULL);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* The file is longer than the memory: its tail takes the room of a small tmpfs, and gives it back. */
static void test_no_room(void)
{
    struct real_options real = {.memory = REAL_TMPFS, .pages = 64};
    int fd = real_tmpfs_file("512k", NULL, NULL);
    off_t tail = 64 * 4096;

    CHECK_EQ(ftruncate(fd, 2 * tail), 0);
    CHECK_EQ(fallocate(fd, 0, tail, tail), 0);
    while (fallocate(fd, 0, lseek(fd, 0, SEEK_END), 4096) == 0)
        ;
    server_start(&server);
    atomic_store(&server.will.page_count, 64);
    real.backing_fd = fd;
    CHECK(client_prepare(&vm, REAL_MEMFD, 64, &server, false));
    real_end(&vm.real);
    close(vm.options.vmm_pidfd);
    CHECK(real_start(&vm.real, &real));
    vm.options.vmm_pidfd = -1;
    vm.options.vmm_pid = vm.real.pid;
    vm.options.uffd = vm.real.uffd.fd;
    vm.options.backing_fd = vm.real.uffd.backing_fd;
    vm.options.background = 1;
    vm.region.address = vm.real.address;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    real_begin(&vm.real, REAL_READ, 5, 1, 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_PAUSED));
    CHECK_EQ(vm.event.reason, PF_REASON_NO_MEMORY);
    CHECK(!client_busy());
    CHECK(real_sleeps(&vm.real));
    CHECK_EQ(fallocate(vm.options.backing_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, tail, 1 << 30), 0);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_RESUMED));
    CHECK_EQ(vm.event.reason, PF_REASON_NO_MEMORY);
    CHECK(vm.event.value > 0);
    CHECK_EQ(real_answer(&vm.real), client_word(5));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    end();
}

/* ---------------------------------------------------------------------------------------------------------- ends */

static void reach(int stage)
{
    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, stage % 2 == 0));
    atomic_store(&server.will.frozen, stage == 0);
    vm.options.background = stage == 2 || stage == 5;
    CHECK_EQ(client_open(&vm), 0);
    if (stage >= 1)
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    if (stage == 2)
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_POPULATED));
    if (stage == 4)
        atomic_store(&server.will.fetch_mute, 1);
    if (stage >= 3)
        CHECK(client_arm(&vm));
    if (stage == 4) {
        for (uint64_t page = 0; page < 8; page++)
            real_begin(&vm.real, REAL_READ, page, 1, 0);
        CHECK(CLIENT_UNTIL(client_state(&vm, 7) == PAGE_WANTED && client_state(&vm, 0) == PAGE_WANTED));
    }
    if (stage == 5)
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
}
#define STAGES 6

static void test_closed_at_every_stage(void)
{
    uint32_t threads = client_count("/proc/self/task"), fds = client_count("/proc/self/fd");

    for (int stage = 0; stage < STAGES; stage++) {
        reach(stage);
        end();
        CHECK_EQ(client_count("/proc/self/fd"), fds);
        CHECK(CLIENT_UNTIL(client_count("/proc/self/task") == threads));
    }
}

static void test_vmm_dies_at_every_stage(void)
{
    for (int stage = 0; stage < STAGES; stage++) {
        reach(stage);
        real_kill(&vm.real);
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_VMM_GONE));
        CHECK_EQ(vm.event.reason, PF_REASON_NO_VMM);
        CHECK(!client_busy());
        CHECK(client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 77));
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
        CHECK_EQ(vm.event.cookie, 77);
        CHECK_EQ(vm.event.reason, PF_REASON_NO_VMM);
        end();
    }
}

/* Without a pidfd the socket says it, and the kernel does. */
static void test_vmm_dies_unseen(void)
{
    for (int frames = 0; frames < 2; frames++) {
        server_start(&server);
        CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, frames));
        close(vm.options.vmm_pidfd);
        vm.options.vmm_pidfd = -1;
        CHECK_EQ(client_open(&vm), 0);
        CHECK(client_arm(&vm));
        atomic_store(&server.will.fetch_mute, 1);
        real_begin(&vm.real, REAL_READ, 3, 1, 0);
        CHECK(CLIENT_UNTIL(client_state(&vm, 3) == PAGE_WANTED));
        real_kill(&vm.real);
        if (frames) {
            close(vm.frames_end);
            vm.frames_end = -1;
        } else {
            CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0)); /* its pages find nobody */
        }
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_VMM_GONE));
        CHECK(!client_busy());
        end();
    }
}

static bool is_registered(void)
{
    struct mapping_facts facts;

    return mapping_look(vm.real.pid, vm.region.address, vm.region.length_bytes, &facts) == 0 && facts.registered_missing &&
           facts.registered_minor;
}

/* A page server sees what it writes by the same userfaultfd: that must not end with the last page. */
static void test_handed_on(void)
{
    for (int let_go = 0; let_go <= 1; let_go++) {
        struct pageferry_vm_fds fds;
        int ram;
        uint64_t faults;
        server_start(&server);
        CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
        ram = fcntl(vm.options.backing_fd, F_DUPFD_CLOEXEC, 0);
        vm.options.background = vm.options.handed_on = 1;
        CHECK_EQ(client_open(&vm), 0);
        pageferry_vm_fds(vm.vm, &fds);
        CHECK_EQ(fds.uffd, vm.options.uffd);
        CHECK_EQ(fds.backing_fd, vm.options.backing_fd);
        CHECK_EQ(fds.vmm_pidfd, vm.options.vmm_pidfd);
        CHECK(fcntl(fds.table_fd, F_GET_SEALS) & F_SEAL_SHRINK);
        CHECK(client_order(&vm, PAGEFERRY_ORDER_LET_GO, 0, 0)); /* too early: nothing */
        CHECK(client_arm(&vm));
        CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
        CHECK(is_registered());
        if (let_go)
            CHECK(client_order(&vm, PAGEFERRY_ORDER_LET_GO, 0, 0));
        CHECK(CLIENT_UNTIL(is_registered() == !let_go));
        faults = client_counter(&vm, STATS_faults_total);
        CHECK_EQ(fallocate(ram, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * REAL_PAGE, REAL_PAGE), 0);
        CHECK_EQ(real_do(&vm.real, REAL_READ, 5, 1, 0), 0); /* the guest has given it back */
        CHECK_EQ(client_counter(&vm, STATS_faults_total), faults + !let_go);
        CHECK(!client_busy());
        close(ram);
        end();
    }
}

/* A removal may be announced in the very moment in which the memory is let go of: it is read all the same, or the VMM's
 * thread would wait for ever. Here it comes later, by a registration that the test has made anew. */
static void test_a_removal_that_comes_with_the_end_is_read(void)
{
    struct uffdio_register again = {.mode = UFFDIO_REGISTER_MODE_MISSING};
    int uffd;

    server_start(&server);
    client_more.features = UFFD_FEATURE_EVENT_REMOVE;
    CHECK(client_prepare(&vm, REAL_PRIVATE, SERVER_PAGES, &server, false));
    client_more.features = 0;
    uffd = dup(vm.real.uffd.fd);
    vm.options.background = 1;
    CHECK_EQ(client_open(&vm), 0);
    CHECK(client_arm(&vm));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    again.range = (struct uffdio_range){vm.region.address, vm.region.length_bytes};
    CHECK_EQ(ioctl(uffd, UFFDIO_REGISTER, &again), 0);
    CHECK_EQ(real_do(&vm.real, REAL_ADVISE, 5, 2, MADV_DONTNEED), 0);
    CHECK(!client_busy());
    close(uffd);
    end();
}

static void test_after_complete_nothing_is_kept(void)
{
    uint64_t before;

    reach(5);
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.open) == 0)); /* both are closed, a moment after it was told */
    before = atomic_load(&server.seen.connections);
    CHECK(!client_busy());
    CHECK_EQ(atomic_load(&server.seen.connections), before);
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_PAUSED], 0);
    end();
}

/* ------------------------------------------------------------------------------------------------------ four VMs */

static void test_four_vms(void)
{
    static struct client_vm vms[4];
    uint32_t fds;

    server_start(&server);
    fds = client_count("/proc/self/fd");
    for (int i = 0; i < 4; i++) /* all processes first: none is forked from one whose threads are at work */
        CHECK(client_prepare(&vms[i], i % 2 == 0 ? REAL_MEMFD : REAL_PRIVATE, SERVER_PAGES, &server, false));
    for (int i = 0; i < 4; i++) {
        vms[i].client = vms[0].client;
        vms[i].options.background = 1;
        CHECK_EQ(client_open(&vms[i]), 0);
        CHECK(client_order(&vms[i], PAGEFERRY_ORDER_ARM, 0, 1));
    }
    for (uint64_t page = 0; page < SERVER_PAGES; page += 37)
        for (int i = 0; i < 4; i++)
            CHECK_EQ(real_do(&vms[i].real, REAL_READ, page, 1, 0), client_word(page));
    for (int i = 3; i >= 0; i--) {
        CHECK(client_wait(&vms[i], PAGEFERRY_EVENT_COMPLETE));
        CHECK_EQ(client_counter(&vms[i], STATS_alarms_total), 0);
        if (i > 0)
            vms[i].client = NULL;
        client_end(&vms[i]);
    }
    CHECK(CLIENT_UNTIL(client_count("/proc/self/fd") == fds)); /* the server has closed its ends, too */
    server_stop(&server);
}

/* ------------------------------------------------------------------------------------------------------ refusals */

static void refused(int reason)
{
    CHECK_EQ(client_open(&vm), -reason);
    CHECK(vm.options.error[0] != 0);
    CHECK(fcntl(vm.real.uffd.fd, F_GETFD) >= 0);
    CHECK(fcntl(vm.real.uffd.backing_fd, F_GETFD) >= 0);
    vm.options.error[0] = 0;
}

static void test_refusals(void)
{
    uint32_t fds = client_count("/proc/self/fd");
    struct pageferry_vm_options good;
    struct pageferry_region region;
    char long_name[300];

    server_start(&server);
    CHECK(client_prepare(&vm, REAL_MEMFD, SERVER_PAGES, &server, false));
    good = vm.options;
    region = vm.region;
    memset(long_name, 'x', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = 0;
#define REFUSED(reason, change) \
    do { \
        vm.options = good; \
        vm.region = region; \
        change; \
        refused(reason); \
    } while (0)
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.image = NULL);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.image = "");
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.image = long_name);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.data_address = NULL);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.data_address = "nowhere");
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.data_address = long_name);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.uffd = vm.options.backing_fd);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.uffd = -1);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.backing_fd = -1);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.backing_fd = vm.options.uffd);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.memory = 3);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.memory = PAGEFERRY_MEMORY_PRIVATE);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.region_count = 0);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.region_count = 65);
    REFUSED(PF_REASON_BAD_REQUEST, vm.options.regions = NULL);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.length_bytes = 0);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.length_bytes += 1);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.offset_bytes = 4096);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.address += UINT64_C(1) << 40);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.length_bytes += 4096);           /* the file is too short */
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.length_bytes = UINT64_C(1) << 52); /* and nobody has that much */
    vm.options = good;
    vm.region = region;
    CHECK_EQ(ftruncate(vm.real.uffd.backing_fd, 2 * SERVER_PAGES * 4096), 0);
    REFUSED(PF_REASON_BAD_REQUEST, vm.region.length_bytes += 8192); /* not mapped there */
    REFUSED(PF_REASON_NO_VMM, vm.options.vmm_pid = 1 << 30);
    vm.options = good;
    vm.region = region;
    CHECK_EQ(client_open(&vm), 0); /* and the same fds are good after all that */
    CHECK(client_arm(&vm));
    end();
    CHECK_EQ(client_count("/proc/self/fd"), fds);
}

static void test_present_pages_are_no_restore(void)
{
    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_ATTACHED));
    CHECK_EQ(real_copy(&(struct real_vm){.uffd = {.fd = vm.options.uffd, .backing_fd = vm.options.backing_fd},
                                         .address = vm.real.address}, 3, 1, 5).result, KERNEL_MAPPED);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_ARM, 0, 3));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_FAILED));
    CHECK_EQ(vm.event.reason, PF_REASON_MISMATCH);
    CHECK_EQ(vm.event.cookie, 3);
    CHECK(!client_busy());
    end();
}

static void test_names(void)
{
    for (uint32_t kind = 1; kind <= PAGEFERRY_EVENT_POISON_CLEARED; kind++)
        CHECK(pageferry_event_name(kind) != NULL);
    CHECK(pageferry_event_name(0) == NULL);
    CHECK(pageferry_event_name(PAGEFERRY_EVENT_POISON_CLEARED + 1) == NULL);
    CHECK(pageferry_page_state_name(PAGEFERRY_PAGE_STATES) == NULL);
    CHECK_EQ(pageferry_api(), PAGEFERRY_API);
}

static uint64_t observed(void)
{
    uint64_t values[STATS_HISTOGRAM_VALUES] = {0}, sum = 0;

    CHECK_EQ(pageferry_vm_histogram(vm.vm, STATS_fault_fetch_ns, values, STATS_HISTOGRAM_VALUES),
             STATS_HISTOGRAM_VALUES);
    for (uint32_t i = 0; i < STATS_BUCKETS; i++)
        sum += values[i];
    return sum;
}

/* The guest goes on before the pager has counted: what is looked for comes in a moment. */
static void test_numbers(void)
{
    struct pageferry_pages pages;
    char text[2000];

    CHECK(begin(REAL_MEMFD, false, false));
    CHECK(client_arm(&vm));
    read_all(8);
    CHECK(CLIENT_UNTIL(client_state(&vm, SERVER_PAGES - 8) == PAGE_OWNED));
    CHECK(CLIENT_UNTIL(observed() == SERVER_PAGES / 8));
    pageferry_vm_pages(vm.vm, &pages);
    CHECK_EQ(pages.total, SERVER_PAGES);
    CHECK_EQ(pages.state[PAGE_OWNED], SERVER_PAGES / 8);
    CHECK_EQ(pages.state[PAGE_MISSING], SERVER_PAGES - SERVER_PAGES / 8);
    CHECK_EQ(pageferry_vm_states(vm.vm, SERVER_PAGES - 1, 10, (uint8_t *)text), 1);
    CHECK_EQ(pageferry_vm_states(vm.vm, SERVER_PAGES, 10, (uint8_t *)text), 0);
    pageferry_vm_close(vm.vm);
    vm.vm = NULL;
    vm.options.vmm_fd = vm.options.vmm_pidfd = -1;
    end();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(test_names);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_poison);
    if (makes_tmpfs())
        RUN(test_no_room);
    else
        SKIP(test_no_room, "needs root: to make a tmpfs");
    RUN(test_closed_at_every_stage);
    RUN(test_vmm_dies_at_every_stage);
    RUN(test_vmm_dies_unseen);
    RUN(test_handed_on);
    RUN(test_a_removal_that_comes_with_the_end_is_read);
    RUN(test_after_complete_nothing_is_kept);
    RUN(test_four_vms);
    RUN(test_refusals);
    RUN(test_present_pages_are_no_restore);
    RUN(test_numbers);
    return check_done();
}
