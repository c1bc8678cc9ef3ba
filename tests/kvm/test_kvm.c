/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real vCPU over our memory: the small VMM (vmm.c) under the shim, its hand-off taken here, the real pager and the
 * real rounds behind it. What is right is said by the guest itself, which holds each page against what it must be, and
 * by the kernel: where its thread sleeps, which signal it got.
 *
 *   test_kvm          every case
 *   test_kvm list     their names
 *   test_kvm CASE     that one
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "kvm_vm.h"
#include "map_client.h"
#include "serve/image_memory.h"

#define BUS_OF_A_MACHINE_CHECK 4 /* BUS_MCEERR_AR */
#define LSB_OF_A_PAGE 12

#define TRACKED_PAGES UINT64_C(4096)
#define INCARNATION 5
#define NAMING_ROUNDS 300
#define RUNNING_ROUNDS 200

#define ZAPPED_FAULTS 3000
#define ZAPS_MAX 100000

static struct kvm_vm kvm;

/* -------------------------------------------------------------------------------------------- restored by the pager */

static struct server server;
static struct client_vm vm;

static bool restore_begin(bool background)
{
    server_start(&server);
    memset(&vm, 0, sizeof(vm));
    if (!kvm_start(&kvm, "restore", SERVER_PAGES))
        return false;
    vm = (struct client_vm){
        .server = &server,
        .frames_end = -1,
        .real = {.control = -1, .uffd = {.fd = -1, .backing_fd = -1}},
        .region = {.address = kvm.address, .length_bytes = SERVER_PAGES * KVM_PAGE},
        .options = {.image = CLIENT_IMAGE, .data_address = server.address, .uffd = kvm.uffd, .backing_fd = kvm.ram_fd,
                    .vmm_fd = kvm.handoff, .vmm_pidfd = kvm.pidfd, .vmm_pid = kvm.pid,
                    .memory = PAGEFERRY_MEMORY_SHARED, .frames = 1, .region_count = 1, .background = background,
                    .handed_on = 1 /* COMPLETE leaves it registered */},
    };
    vm.options.regions = &vm.region;
    if (client_open(&vm) != 0)
        return false;
    kvm.uffd = kvm.ram_fd = kvm.handoff = kvm.pidfd = -1; /* the VM's now */
    return client_arm(&vm) && kvm_ready(&kvm);
}

static void restore_end(void)
{
    client_drain(&vm);
    CHECK_EQ(client_counter(&vm, STATS_alarms_total), 0);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_ALARM], 0);
    client_end(&vm);
    server_stop(&server);
    kvm_end(&kvm);
}

/* Whole pages of the RAM file that hold something else than the ledger says, read past the guest and its mapping. */
static uint64_t file_differs(int ram_fd)
{
    uint64_t words[KVM_PAGE / sizeof(uint64_t)], wrong = 0;

    for (uint64_t page = 0; page < kvm.pages; page++) {
        bool same = pread(ram_fd, words, sizeof(words), (off_t)(page * KVM_PAGE)) == (ssize_t)sizeof(words);
        for (size_t i = 0; same && i < sizeof(words) / sizeof(words[0]); i++)
            same = words[i] == kvm.ledger[page];
        wrong += !same;
    }
    return wrong;
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
    CHECK_EQ(client_state(&vm, 300), PAGE_OWNED);
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
    CHECK(CLIENT_UNTIL(client_counter(&vm, STATS_faults_minor_total) >= faults + SERVER_PAGES / 2));
    CHECK(kvm_do(&kvm, "stop"));
    turns = kvm_turns(&kvm);
    CHECK(turns > 0);
    pageferry_vm_fds(vm.vm, &fds);
    CHECK_EQ(file_differs(fds.backing_fd), 0);
    kvm.ledger[3]++;
    CHECK_EQ(file_differs(fds.backing_fd), 1); /* it would be seen */
    printf("zap: %" PRIu64 " turns of the guest, %" PRIu64 " faults on pages that were there\n", turns,
           client_counter(&vm, STATS_faults_minor_total));
    restore_end();
}

static void test_poison_is_a_machine_check(void)
{
    CHECK(restore_begin(false));
    atomic_store(&server.will.poison_page, 9 + 1);
    CHECK(kvm_touch(&kvm, 8, 9));
    CHECK(kvm_do(&kvm, "touch 9"));
    CHECK(kvm_stopped(&kvm, "sigbus %d %d 9", BUS_OF_A_MACHINE_CHECK, LSB_OF_A_PAGE));
    CHECK(kvm_do(&kvm, "go")); /* nobody has done anything about it */
    CHECK(kvm_stopped(&kvm, "sigbus %d %d 9", BUS_OF_A_MACHINE_CHECK, LSB_OF_A_PAGE));
    CHECK(kvm_do(&kvm, "zap 9 1")); /* takes the marker away, which the next fault puts back */
    CHECK(kvm_do(&kvm, "go"));
    CHECK(kvm_stopped(&kvm, "sigbus %d %d 9", BUS_OF_A_MACHINE_CHECK, LSB_OF_A_PAGE));
    CHECK(kvm_do(&kvm, "fill 9 77")); /* nor can it be written */
    CHECK(kvm_stopped(&kvm, "sigbus %d %d 9", BUS_OF_A_MACHINE_CHECK, LSB_OF_A_PAGE));
    CHECK(kvm_touch(&kvm, 10, 11));
    CHECK_EQ(client_state(&vm, 9), PAGE_POISONED);
    CHECK(client_wait(&vm, PAGEFERRY_EVENT_POISONED));
    CHECK_EQ(vm.event.page, 9);
    client_drain(&vm);
    CHECK_EQ(vm.seen[PAGEFERRY_EVENT_POISONED], 1);
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

/* -------------------------------------------------------------------------------------------------- tracked by rounds */

static struct image *image;
static struct map_client client;
static uint64_t before[TRACKED_PAGES]; /* the ledger, then */

static bool track_begin(void)
{
    struct pageferry_region region = {.length_bytes = TRACKED_PAGES * KVM_PAGE};
    struct image_memory_request request = {.name = "vm", .content_id = 9, .incarnation = INCARNATION, .versions_fd = -1,
                                           .arriving_fd = -1, .regions = &region, .region_count = 1};
    char error[256] = "";

    if (!kvm_start(&kvm, "track", TRACKED_PAGES))
        return false;
    region.address = kvm.address;
    request.uffd = kvm.uffd;
    request.ram_fd = kvm.ram_fd;
    request.pid = kvm.pid;
    request.pidfd = kvm.pidfd;
    if (image_memory_open(&request, &image, error, sizeof(error)) != 0) {
        printf("image: %s\n", error);
        return false;
    }
    map_client_begin(&client, image);
    return pageferry_handoff_accept(kvm.handoff) == 0 && kvm_ready(&kvm);
}

static void track_end(void)
{
    image->ops->close(image);
    kvm_end(&kvm);
}

static uint32_t do_round(void)
{
    uint32_t round = 0;
    int rc = rounds_begin(image->rounds, &round);

    while (rc == 0)
        rc = rounds_step(image->rounds, round);
    CHECK_EQ(rc, 1);
    return round;
}

/* Pages that the guest has written since `before`, or the newest round names, but not both. */
static uint64_t mismatches(uint32_t round, uint64_t *written)
{
    uint64_t wrong = 0;

    *written = 0;
    for (uint64_t page = 0; page < TRACKED_PAGES; page++) {
        uint64_t past = page + 1;
        bool named = (uint32_t)image->ops->version(image, page, &past) == round;
        bool wrote = kvm.ledger[page] != before[page];
        *written += wrote;
        wrong += named != wrote;
    }
    return wrong;
}

static void test_a_round_names_what_the_guest_wrote(void)
{
    uint64_t first = 1, sum = 0, written, wrong;
    uint32_t round;

    CHECK(track_begin());
    do_round(); /* names every page */
    for (uint64_t i = 0; i < NAMING_ROUNDS; i++) {
        uint64_t turns = i % 50 == 49 ? 0 : 1 + i * i % 700;
        memcpy(before, kvm.ledger, sizeof(before));
        if (turns > 0) {
            CHECK(kvm_do(&kvm, "work %" PRIu64 " %" PRIu64 " %" PRIu64, turns, first, i + 1));
            CHECK_EQ(kvm_turns(&kvm), turns);
        }
        first += turns;
        round = do_round();
        wrong = mismatches(round, &written);
        CHECK_EQ(wrong, 0);
        CHECK_EQ(rounds_settled_pages(image->rounds), written);
        CHECK(written <= turns);
        sum += written;
    }
    CHECK(sum > NAMING_ROUNDS * 100);
    kvm.ledger[17]++;
    CHECK_EQ(mismatches(round, &written), 1); /* it would be seen */
    printf("rounds: %d of a guest that stands still, %" PRIu64 " pages written and named, 0 mismatches\n", NAMING_ROUNDS, sum);
    track_end();
}

/* The same of a guest that never stops, as a target sees it: it keeps what no round calls old. */
static void test_rounds_of_a_running_guest(void)
{
    uint64_t missing = 0, turns;

    CHECK(track_begin());
    CHECK(kvm_do(&kvm, "work %" PRIu64 " 1 1", KVM_FOREVER));
    for (int i = 0; i < RUNNING_ROUNDS; i++) {
        do_round();
        missing += map_read(&client);
        CHECK(map_fetch_missing(&client));
        usleep(500);
    }
    CHECK(kvm_do(&kvm, "stop"));
    turns = kvm_turns(&kvm);
    CHECK(turns > 0);
    CHECK(map_wrong(&client, kvm.ram_fd) > 0); /* without the last round it holds old pages */
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK(map_read(&client) > 0);
    CHECK(map_fetch_missing(&client));
    CHECK_EQ(map_wrong(&client, kvm.ram_fd), 0);
    CHECK_EQ(file_differs(kvm.ram_fd), 0);
    printf("rounds: %d of a running guest, %" PRIu64 " turns, %" PRIu64 " pages named\n", RUNNING_ROUNDS, turns, missing);
    track_end();
}

/* ------------------------------------------------------------------------------------------------------------ cases */

#define CASES(X) \
    X(test_faults_of_a_vcpu_are_resolved) \
    X(test_the_guest_sees_what_is_wrong) \
    X(test_zap_under_a_running_vcpu) \
    X(test_poison_is_a_machine_check) \
    X(test_a_kick_during_a_held_fault) \
    X(test_a_round_names_what_the_guest_wrote) \
    X(test_rounds_of_a_running_guest)

#define RUN_IF_CHOSEN(name) \
    if (argc < 2 || strcmp(argv[1], #name) == 0) \
        RUN(name);
#define SKIP_IF_CHOSEN(name) \
    if (argc < 2 || strcmp(argv[1], #name) == 0) \
        SKIP(name, absent);
#define PRINT(name) puts(#name);

int main(int argc, char **argv)
{
    const char *absent = kvm_absent();

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 2 && strcmp(argv[1], "list") == 0) {
        CASES(PRINT)
        return 0;
    }
    if (absent != NULL) {
        CASES(SKIP_IF_CHOSEN)
    } else {
        CASES(RUN_IF_CHOSEN)
    }
    return check_done();
}
