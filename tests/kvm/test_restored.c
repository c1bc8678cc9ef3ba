/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real vCPU whose memory arrives: the small VMM (vmm.c) under the shim, its hand-off taken here, and the real pager
 * behind it. What is right is said by the guest itself, which holds each page against what it must be, and by the
 * kernel: where its thread sleeps, which signal it got. The program is told what cases.h says.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "client_vm.h"
#include "kvm_vm.h"
#include "map_client.h"
#include "serve/image_memory.h"

#define ZAPPED_FAULTS 3000
#define ZAPS_MAX 100000
#define ZAP_ORDERS 300
#define ARRIVING_ROUNDS 100

static struct kvm_vm kvm;
static struct server server;
static struct client_vm vm;

static bool restore_begin_as(const char *role, bool background, bool without_poison)
{
    server_start(&server);
    memset(&vm, 0, sizeof(vm));
    if (!kvm_start(&kvm, role, SERVER_PAGES))
        return false;
    vm = (struct client_vm){
        .server = &server,
        .frames_end = -1,
        .real = {.control = -1, .uffd = {.fd = -1, .backing_fd = -1}},
        .region = {.address = kvm.address, .length_bytes = SERVER_PAGES * KVM_PAGE},
        .options = {.image = CLIENT_IMAGE, .data_address = server.address, .uffd = kvm.uffd, .backing_fd = kvm.ram_fd,
                    .vmm_fd = kvm.handoff, .vmm_pidfd = kvm.pidfd, .vmm_pid = kvm.pid,
                    .memory = PAGEFERRY_MEMORY_SHARED, .frames = 1, .region_count = 1, .background = background,
                    .handed_on = 1 /* COMPLETE leaves it registered */, .without_poison = without_poison},
    };
    vm.options.regions = &vm.region;
    if (client_open(&vm) != 0)
        return false;
    kvm.uffd = kvm.ram_fd = kvm.handoff = kvm.pidfd = -1; /* the VM's now */
    return client_arm(&vm) && kvm_ready(&kvm);
}

static bool restore_begin(bool background)
{
    return restore_begin_as("restore", background, false);
}

static void restore_end(void)
{
    client_drain(&vm);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_ALARM], 0);
    kvm_end(&kvm);
    client_end(&vm);
    server_stop(&server);
}

static void ledger_of_the_image(void)
{
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        kvm.ledger[page] = (uint64_t)client_word(page);
}

static void test_faults_of_a_vcpu_are_resolved(void)
{
    CHECK(restore_begin(false));
    CHECK(kvm_touch(&kvm, 300, (uint64_t)client_word(300)));
    CHECK(CLIENT_UNTIL(client_state(&vm, 300) == PAGE_OWNED)); /* it is claimed after it is mapped */
    CHECK_EQ(client_state(&vm, 301), PAGE_MISSING);
    CHECK(kvm_do(&kvm, "check 1 0"));
    CHECK(kvm_stopped(&kvm, "out 0 %" PRIu64, SERVER_PAGES));
    CHECK_EQ(client_counter(&vm, STATS_asks_total), SERVER_PAGES);
    CHECK_EQ(atomic_load(&server.seen.asked), SERVER_PAGES);
    CHECK(client_counter(&vm, STATS_faults_total) >= SERVER_PAGES);
    restore_end();
}

/* The guest is shown to notice what is wrong: another step of the words than the image has. */
static void test_the_guest_sees_what_is_wrong(void)
{
    CHECK(restore_begin(true));
    CHECK(kvm_do(&kvm, "check 1 1"));
    CHECK(kvm_stopped(&kvm, "out %d %" PRIu64, 362, SERVER_PAGES)); /* all pages with data: 5 times 70, and 12 */
    ledger_of_the_image();
    kvm.ledger[7]++;
    CHECK(kvm_do(&kvm, "work 5000 100000 9"));
    CHECK(kvm_stopped(&kvm, "out 1 5000"));
    restore_end();
}

static void zap_until(uint64_t faults)
{
    for (int i = 0; i < ZAPS_MAX && client_counter(&vm, STATS_faults_minor_total) < faults; i++)
        CHECK(kvm_do(&kvm, "zaps 3 %d", i));
    CHECK(client_counter(&vm, STATS_faults_minor_total) >= faults);
}

/* The guest works on pages that arrive, while the VMM drops mappings under it: each access after that is a fault again,
 * and not a byte is lost. */
static void test_zap_under_a_running_vcpu(void)
{
    struct pageferry_vm_fds fds;
    uint64_t faults, turns;

    CHECK(restore_begin(false));
    ledger_of_the_image();
    CHECK(kvm_do(&kvm, "work %" PRIu64 " 100000 9", KVM_FOREVER));
    zap_until(ZAPPED_FAULTS / 2);
    CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    zap_until(ZAPPED_FAULTS);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    faults = client_counter(&vm, STATS_faults_minor_total);
    CHECK(kvm_do(&kvm, "zap 0 %" PRIu64, SERVER_PAGES)); /* all of it, when all of it is the guest's */
    CHECK(CLIENT_UNTIL(client_counter(&vm, STATS_faults_minor_total) >= faults + SERVER_PAGES / 8));
    CHECK(kvm_do(&kvm, "stop"));
    turns = kvm_turns(&kvm);
    CHECK(turns > 0);
    pageferry_vm_fds(vm.vm, &fds);
    CHECK_EQ(kvm_differs(&kvm, fds.backing_fd), 0);
    kvm.ledger[3]++;
    CHECK_EQ(kvm_differs(&kvm, fds.backing_fd), 1); /* it would be seen */
    printf("zap: %" PRIu64 " turns of the guest, %" PRIu64 " faults on pages that were there\n", turns,
           client_counter(&vm, STATS_faults_minor_total));
    restore_end();
}

/* So many pages from this one on, and how many it has changed; UINT64_MAX: refused. */
static uint64_t order_pages(uint32_t kind, uint32_t flags, uint64_t page, uint64_t count)
{
    struct pageferry_order order = {.kind = kind, .flags = flags, .value = page, .page_count = count, .cookie = 3};
    bool done = pageferry_vm_order(vm.vm, &order) == 0 && client_wait(&vm, PAGEFERRY_EVENT_DONE);

    return done ? vm.event.page : UINT64_MAX;
}

/* The same by order: the pager asks the shim, whose thread drops the mappings while the vCPU runs on. */
static void test_zap_by_order_under_a_running_vcpu(void)
{
    struct pageferry_vm_fds fds;
    uint64_t page, faults;

    CHECK(restore_begin(true));
    ledger_of_the_image();
    CHECK(kvm_do(&kvm, "work %" PRIu64 " 100000 9", KVM_FOREVER));
    for (uint64_t i = 0; i < ZAP_ORDERS; i++) {
        page = i * 37 % (SERVER_PAGES - 64);
        CHECK_EQ(order_pages(PAGEFERRY_ORDER_ZAP, 0, page, 1 + i % 64), 1 + i % 64);
    }
    CHECK(CLIENT_UNTIL((client_drain(&vm), vm.seen[PAGEFERRY_EVENT_COMPLETE] > 0)));
    CHECK(kvm_do(&kvm, "stop"));
    CHECK(kvm_turns(&kvm) > 0);
    faults = client_counter(&vm, STATS_faults_minor_total);
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_ZAP, 0, 0, SERVER_PAGES), SERVER_PAGES);
    CHECK(kvm_do(&kvm, "work 5000 300000000 10"));
    CHECK_EQ(kvm_turns(&kvm), 5000);
    CHECK(client_counter(&vm, STATS_faults_minor_total) >= faults + SERVER_PAGES / 8);
    pageferry_vm_fds(vm.vm, &fds);
    CHECK_EQ(kvm_differs(&kvm, fds.backing_fd), 0);
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_ZAP, PAGEFERRY_ZAP_DROP, 200, 8), 8);
    for (page = 200; page < 208; page++) {
        CHECK(kvm_touch(&kvm, page, 0));
        kvm.ledger[page] = 0;
    }
    CHECK_EQ(kvm_differs(&kvm, fds.backing_fd), 0);
    CHECK(kvm_do(&kvm, "work 5000 500000 10"));
    CHECK_EQ(kvm_turns(&kvm), 5000);
    restore_end();
}

static void test_poison_is_a_machine_check(void)
{
    uint64_t page = 0;

    CHECK(restore_begin(false));
    atomic_store(&server.will.poison_page, 9 + 1);
    CHECK(kvm_touch(&kvm, 8, 9));
    CHECK(kvm_do(&kvm, "touch 9"));
    CHECK(kvm_lost(&kvm, &page));
    CHECK_EQ(page, 9);
    CHECK(kvm_do(&kvm, "go")); /* nobody has done anything about it */
    CHECK(kvm_lost(&kvm, &page));
    CHECK_EQ(page, 9);
    CHECK(kvm_do(&kvm, "zap 9 1")); /* takes the marker away, which the next fault puts back */
    CHECK(kvm_do(&kvm, "go"));
    CHECK(kvm_lost(&kvm, &page));
    CHECK_EQ(page, 9);
    CHECK(kvm_do(&kvm, "fill 9 77")); /* nor can it be written */
    CHECK(kvm_lost(&kvm, &page));
    CHECK_EQ(page, 9);
    CHECK(kvm_touch(&kvm, 10, 11));
    CHECK_EQ(client_state(&vm, 9), PAGE_POISONED);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POISONED));
    CHECK_EQ(vm.event.page, 9);
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_POISONED], 1);
    restore_end();
}

/* Pages that the guest has, and works on, are lost: at the next access there is a machine check. Their bytes are in the
 * file no more; once cleared they are zeros, and the guest works on. */
static void test_poison_under_a_running_vcpu(void)
{
    const uint64_t first = 64, count = 8;
    struct pageferry_vm_fds fds;
    uint64_t page = 0;
    uint8_t byte = 1;

    CHECK(restore_begin(true));
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    ledger_of_the_image();
    pageferry_vm_fds(vm.vm, &fds);
    CHECK(kvm_do(&kvm, "work %" PRIu64 " 100000 9", KVM_FOREVER));
    usleep(5000);
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_POISON, 0, first, count), count);
    CHECK(kvm_lost(&kvm, &page));
    CHECK(page >= first && page < first + count);
    for (uint64_t lost = first; lost < first + count; lost++)
        CHECK(pread(fds.backing_fd, &byte, 1, (off_t)(lost * KVM_PAGE)) == 1 && byte == 0);
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_POISONED], count);
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_CLEAR_POISON, 0, first, count), count);
    for (uint64_t fresh = first; fresh < first + count; fresh++) {
        CHECK(kvm_touch(&kvm, fresh, 0));
        kvm.ledger[fresh] = 0;
    }
    CHECK(kvm_do(&kvm, "work 5000 500000 10"));
    CHECK_EQ(kvm_turns(&kvm), 5000);
    restore_end();
}

/* Where the kernel has no poison the vCPU waits, can be called away, and goes on with zeros once the page is cleared. */
static void test_a_lost_page_holds_a_vcpu(void)
{
    CHECK(restore_begin_as("restore", false, true));
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_POISON, 0, 9, 1), 1);
    CHECK(kvm_touch(&kvm, 8, 9));
    CHECK(kvm_do(&kvm, "touch 9"));
    CHECK(kvm_sleeps(&kvm));
    CHECK(kvm_do(&kvm, "kick"));
    CHECK(kvm_stopped(&kvm, "eintr"));
    CHECK(kvm_do(&kvm, "go"));
    CHECK(kvm_sleeps(&kvm));
    CHECK_EQ(order_pages(PAGEFERRY_ORDER_CLEAR_POISON, 0, 9, 1), 1);
    CHECK(kvm_stopped(&kvm, "out 0 0"));
    restore_end();
}

/* A vCPU that waits for a page can be called away, as QEMU does to stop a VM, and comes back to the same page. */
static void test_a_kick_during_a_held_fault(void)
{
    CHECK(restore_begin(false));
    CHECK(kvm_touch(&kvm, 2, 3));
    server_hold(&server);
    CHECK(kvm_do(&kvm, "touch 3"));
    CHECK(kvm_sleeps(&kvm));
    CHECK(CLIENT_UNTIL(client_state(&vm, 3) == PAGE_WANTED));
    for (int i = 0; i < 3; i++) {
        CHECK(kvm_do(&kvm, "kick"));
        CHECK(kvm_stopped(&kvm, "eintr"));
        CHECK_EQ(client_state(&vm, 3), PAGE_WANTED);
        CHECK(kvm_do(&kvm, "go"));
        CHECK(kvm_sleeps(&kvm));
    }
    CHECK(CLIENT_UNTIL(client_counter(&vm, STATS_faults_again_total) >= 3));
    CHECK(kvm_do(&kvm, "kick"));
    CHECK(kvm_stopped(&kvm, "eintr"));
    atomic_store(&server.will.frozen, 0);
    CHECK(CLIENT_UNTIL(client_state(&vm, 3) == PAGE_OWNED)); /* it comes, though nobody waits just now */
    CHECK(kvm_do(&kvm, "go"));
    CHECK(kvm_stopped(&kvm, "out 4 0"));
    CHECK_EQ(client_counter(&vm, STATS_asks_total), 2); /* each page was asked for once */
    restore_end();
}

/* ------------------------------------------------------------------------------------- and tracked, while it arrives */

static struct image *image;
static struct map_client client;

/* As a page server that the VM is handed on to. */
static bool track_begin(void)
{
    struct pageferry_vm_fds fds;
    struct image_memory_request request = {.name = "vm", .content_id = 9, .incarnation = 1, .versions_fd = -1,
                                           .regions = &vm.region, .region_count = 1, .pid = kvm.pid};
    char error[256] = "";

    pageferry_vm_fds(vm.vm, &fds);
    request.uffd = fds.uffd;
    request.ram_fd = fds.backing_fd;
    request.pidfd = fds.vmm_pidfd;
    request.arriving_fd = fds.table_fd;
    if (image_memory_open(&request, &image, error, sizeof(error)) != 0) {
        printf("image: %s\n", error);
        return false;
    }
    map_client_begin(&client, image);
    return true;
}

static void do_round(void)
{
    uint32_t round;
    int rc = rounds_begin(image->rounds, &round);

    while (rc == 0)
        rc = rounds_step(image->rounds, round);
    CHECK_EQ(rc, 1);
    map_read(&client);
    CHECK(map_fetch_missing(&client));
}

/* The guest works on what has not all arrived, the VMM drops mappings, and the next target already fetches: in the end
 * it holds what the memory holds. */
static void test_rounds_of_a_guest_that_arrives(void)
{
    struct pageferry_vm_fds fds;

    CHECK(restore_begin_as("both", false, false));
    CHECK(track_begin());
    ledger_of_the_image();
    CHECK(kvm_do(&kvm, "work %" PRIu64 " 100000 9", KVM_FOREVER));
    for (int i = 0; i < ARRIVING_ROUNDS; i++) {
        do_round();
        CHECK(kvm_do(&kvm, "zaps 2 %d", i));
        if (i == ARRIVING_ROUNDS / 2)
            CHECK(client_order(&vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    }
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_COMPLETE));
    CHECK(kvm_do(&kvm, "stop"));
    CHECK(kvm_turns(&kvm) > 0);
    CHECK(kvm_do(&kvm, "work 200 1000000000 2")); /* after the last round */
    CHECK_EQ(kvm_turns(&kvm), 200);
    pageferry_vm_fds(vm.vm, &fds);
    CHECK(map_wrong(&client, fds.backing_fd) > 0);
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK(map_read(&client) > 0);
    CHECK(map_fetch_missing(&client));
    CHECK_EQ(map_wrong(&client, fds.backing_fd), 0);
    CHECK_EQ(kvm_differs(&kvm, fds.backing_fd), 0);
    image->ops->close(image);
    restore_end();
}

#define CASES(X) \
    X(test_faults_of_a_vcpu_are_resolved) \
    X(test_the_guest_sees_what_is_wrong) \
    X(test_zap_under_a_running_vcpu) \
    X(test_zap_by_order_under_a_running_vcpu) \
    X(test_poison_is_a_machine_check) \
    X(test_poison_under_a_running_vcpu) \
    X(test_a_lost_page_holds_a_vcpu) \
    X(test_a_kick_during_a_held_fault) \
    X(test_rounds_of_a_guest_that_arrives)

CASES_MAIN(kvm_absent())
