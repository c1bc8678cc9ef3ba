/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ports at the bulk thread, with the test in the place of their loops: what is asked comes, whole and checked; a loop
 * that does not take its slices holds up its own port and no other; a port may leave at any time.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "client/address.h"
#include "client/bulk.h"
#include "client_server.h"
#include "client_vm.h"
#include "gen/contract.h"

#define RANGE UINT64_C(64)

struct side {
    struct port port;
    uint8_t seen[SERVER_PAGES]; /* times */
    uint32_t ended, ended_well, wrong, slices;
};

static struct server server;
static struct address address;
static struct bulk *bulk;
static struct side a, b;

static void open_side(struct side *side, uint32_t slots)
{
    struct port_options options = {.address = &address, .image = CLIENT_IMAGE, .page_count = SERVER_PAGES,
                                   .slots = slots};

    memset(side, 0, sizeof(*side));
    CHECK_EQ(port_open(&side->port, &options), 0);
    CHECK_EQ(bulk_join(bulk, &side->port), 0);
    port_attach(&side->port, SERVER_CONTENT_ID);
}

static void close_side(struct side *side)
{
    bulk_leave(bulk, &side->port);
    port_close(&side->port);
}

static void begin(void)
{
    char error[256];

    server_start(&server);
    server_go(&server);
    CHECK_EQ(address_resolve(server.address, &address, error, sizeof(error)), 0);
    CHECK_EQ(bulk_open(&bulk), 0);
}

static void end(void)
{
    bulk_close(bulk);
    server_stop(&server);
}

static void ask(struct side *side, uint64_t first_page)
{
    struct plan_range range = {.first_page = first_page, .page_count = RANGE};

    CHECK(port_ask(&side->port, &range));
}

static void ask_all(struct side *side)
{
    for (uint64_t page = 0; page < SERVER_PAGES; page += RANGE)
        ask(side, page);
}

/* Of a range that has ended early, as a plan does it: from the first page that has not come. */
static void ask_rest(struct side *side, uint64_t first_page)
{
    uint64_t page = first_page, end = first_page / RANGE * RANGE + RANGE;
    struct plan_range range;

    while (page < end - 1 && side->seen[page] > 0)
        page++;
    range = (struct plan_range){.first_page = page, .page_count = end - page};
    CHECK(port_ask(&side->port, &range));
}

static void look_at(struct side *side, const struct port_slice *slice)
{
    const uint64_t *data = (const uint64_t *)(const void *)slice->data;
    uint64_t word;

    for (uint32_t i = 0; i < slice->run_count; i++)
        for (uint64_t page = slice->runs[i].first_page; page < slice->runs[i].first_page + slice->runs[i].page_count;
             page++) {
            side->seen[page]++;
            if (slice->runs[i].kind == PF_RUN_KIND_DATA) {
                memcpy(&word, data, sizeof(word));
                side->wrong += word != page + 1;
                data += 512;
            }
        }
}

/* One slice, or nothing. */
static bool take(struct side *side)
{
    struct port_slice slice;
    bool got = port_take(&side->port, &slice);

    if (got && slice.slot == PORT_NO_SLOT) {
        side->ended++;
        side->ended_well += slice.reason == 0;
        if (slice.reason != 0)
            ask_rest(side, slice.range_page);
    } else if (got) {
        look_at(side, &slice);
        side->slices++;
        port_give_back(&side->port, slice.slot);
    }
    return got;
}

static bool until_ended_well(struct side *side, uint32_t ranges)
{
    return CLIENT_UNTIL((take(side), side->ended_well >= ranges));
}

static bool has_all(const struct side *side)
{
    bool all = side->wrong == 0;

    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        all = all && side->seen[page] > 0;
    return all;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static void test_ranges(void)
{
    begin();
    open_side(&a, 0);
    ask_all(&a);
    CHECK(until_ended_well(&a, SERVER_PAGES / RANGE));
    CHECK(has_all(&a));
    CHECK_EQ(a.ended, SERVER_PAGES / RANGE);
    CHECK_EQ(atomic_load(&server.seen.connections), 1);
    close_side(&a);
    end();
}

static void test_a_loop_that_does_not_take(void)
{
    begin();
    atomic_store(&server.will.stream_pages, 4); /* 16 messages a range: more than there are slots */
    open_side(&a, 2);
    open_side(&b, 0);
    ask_all(&a);
    CHECK(CLIENT_UNTIL(ring_room(&a.port.slices) <= PORT_SLICES_MAX - 2));
    for (uint32_t round = 1; round <= 5; round++) {
        ask_all(&b);
        CHECK(until_ended_well(&b, round * SERVER_PAGES / RANGE));
    }
    CHECK(has_all(&b));
    CHECK_EQ(a.ended, 0);
    CHECK(until_ended_well(&a, SERVER_PAGES / RANGE)); /* now it does, and goes on from there */
    CHECK(has_all(&a));
    close_side(&a);
    close_side(&b);
    end();
}

static void test_one_slot(void)
{
    begin();
    open_side(&a, 1);
    ask_all(&a);
    CHECK(until_ended_well(&a, SERVER_PAGES / RANGE));
    CHECK(has_all(&a));
    close_side(&a);
    end();
}

static void test_leaving_at_any_time(void)
{
    begin();
    for (int i = 0; i < 20; i++) {
        open_side(&a, i % 3);
        ask_all(&a);
        for (int looks = 0; looks < i; looks++) {
            client_moment();
            take(&a);
        }
        if (i % 4 == 3)
            server_cut(&server);
        close_side(&a);
    }
    end();
}

static void test_resting(void)
{
    uint64_t connections;

    begin();
    open_side(&a, 0);
    atomic_store(&server.will.stream_mute, 1);
    for (uint64_t page = 0; page < 4 * RANGE; page += RANGE)
        ask(&a, page);
    CHECK(CLIENT_UNTIL(atomic_load(&server.seen.streams) == 4));
    port_rest(&a.port);
    CHECK(CLIENT_UNTIL((take(&a), a.ended == 4)));
    CHECK_EQ(a.ended_well, 0);
    connections = atomic_load(&server.seen.connections);
    server_cut(&server);
    for (int i = 0; i < 100; i++)
        client_moment();
    CHECK_EQ(atomic_load(&server.seen.connections), connections);
    close_side(&a);
    end();
}

static void test_lost_links(void)
{
    begin();
    open_side(&a, 0);
    for (int i = 0; i < 10; i++) {
        ask_all(&a);
        server_cut(&server);
        CHECK(until_ended_well(&a, (uint32_t)(i + 1) * SERVER_PAGES / RANGE));
    }
    CHECK(has_all(&a));
    close_side(&a);
    end();
}

static void test_wrong_digests_say_so(void)
{
    struct port_slice slice;

    begin();
    open_side(&a, 0);
    atomic_store(&server.will.stream_bad_digests, 1);
    ask(&a, 0);
    CHECK(CLIENT_UNTIL(port_take(&a.port, &slice)));
    CHECK_EQ(slice.slot, PORT_NO_SLOT);
    CHECK_EQ(slice.reason, PF_REASON_MISMATCH);
    CHECK_EQ(slice.range_page, 0);
    ask(&a, 0);
    CHECK(until_ended_well(&a, 1));
    CHECK_EQ(atomic_load(&server.seen.connections), 1); /* the link stays */
    close_side(&a);
    end();
}

static void test_later_is_told(void)
{
    struct port_slice slice = {0};

    begin();
    open_side(&a, 0);
    atomic_store(&server.will.later_page, 11);
    atomic_store(&server.will.later_times, 1);
    ask(&a, 0);
    CHECK(CLIENT_UNTIL(port_take(&a.port, &slice) && slice.slot == PORT_NO_SLOT));
    CHECK_EQ(slice.reason, 0);
    CHECK_EQ(slice.later, 1);
    close_side(&a);
    end();
}

static void test_too_many_ports(void)
{
    static struct port ports[65];
    struct port_options options = {.address = &address, .image = CLIENT_IMAGE, .page_count = 1, .slots = 1};
    uint32_t fds = client_count("/proc/self/fd");

    begin();
    for (int i = 0; i < 65; i++) {
        CHECK_EQ(port_open(&ports[i], &options), 0);
        CHECK_EQ(bulk_join(bulk, &ports[i]), i < 64 ? 0 : -EMFILE);
    }
    for (int i = 0; i < 65; i++) {
        if (i < 64)
            bulk_leave(bulk, &ports[i]);
        port_close(&ports[i]);
    }
    end();
    CHECK_EQ(client_count("/proc/self/fd"), fds);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    RUN(test_ranges);
    RUN(test_a_loop_that_does_not_take);
    RUN(test_one_slot);
    RUN(test_leaving_at_any_time);
    RUN(test_resting);
    RUN(test_lost_links);
    RUN(test_wrong_digests_say_so);
    RUN(test_later_is_told);
    RUN(test_too_many_ports);
    return check_done();
}
