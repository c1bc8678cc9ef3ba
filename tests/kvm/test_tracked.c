/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real vCPU whose writes are seen from outside: the small VMM (vmm.c) under the shim in the role `track`, and rounds as
 * the page server makes them. What the guest has written is said by its ledger, which it keeps in other memory. The
 * program is told what cases.h says.
 */
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "cases.h"
#include "kvm_vm.h"
#include "map_client.h"
#include "serve/image_memory.h"

#define TRACKED_PAGES UINT64_C(4096)
#define INCARNATION 5
#define NAMING_ROUNDS 300
#define RUNNING_ROUNDS 200

static struct kvm_vm kvm;
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
    CHECK(kvm_do(&kvm, "work 500 1000000000 2")); /* after the last round */
    CHECK_EQ(kvm_turns(&kvm), 500);
    CHECK(map_wrong(&client, kvm.ram_fd) > 0); /* without the last round it holds old pages */
    CHECK_EQ(rounds_freeze(image->rounds), 0);
    CHECK(map_read(&client) > 0);
    CHECK(map_fetch_missing(&client));
    CHECK_EQ(map_wrong(&client, kvm.ram_fd), 0);
    CHECK_EQ(kvm_differs(&kvm, kvm.ram_fd), 0);
    printf("rounds: %d of a running guest, %" PRIu64 " turns, %" PRIu64 " pages named\n", RUNNING_ROUNDS, turns, missing);
    track_end();
}

#define CASES(X) \
    X(test_a_round_names_what_the_guest_wrote) \
    X(test_rounds_of_a_running_guest)

CASES_MAIN(kvm_absent())
