/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/2 bytes at the fault client: its urgent link, or the port of bulk, dials a socket of ours and is answered by the
 * input; behind it lie the real engine and the simulated kernel. The clock is ours. When the link is dropped and
 * dialled again, the input goes on.
 *
 * Input: a byte of manner (bit 0: bulk, bit 1: unarmed, bit 2: private memory, bits 3-4: how the bytes are cut, bit 5:
 * time flies, bit 6: a move, with the maps of rounds, which is armed once its map is frozen), then what a server says.
 * Whatever it says: nothing but the pages of batches with the right digest comes into memory, and the simulated kernel
 * audits how.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/port.h"
#include "client/urgent.h"
#include "fuzz.h"
#include "h2_mutator.h"
#include "rpc/payload.h"
#include "rpc/pb.h"
#include "sim_kernel.h"

#define PAGES 40
#define FIRST 13
#define CONTENT_ID 7
#define MS_NS UINT64_C(1000000)
#define TURNS_MAX 150

enum manner { BULK = 1, UNARMED = 2, PRIVATE = 4, CUT_SHIFT = 3, CUT_MASK = 3, TIME_FLIES = 32, MOVE = 64 };

const size_t h2_own_bytes = 1, h2_introduction_bytes = 0;

/* The digest becomes what it must be, if the message has one. */
void h2_mend_message(uint8_t *message, size_t length)
{
    static struct run runs[PF_LIMIT_RUNS_MAX];
    struct pb_reader reader = pb_reader_of((struct grpc_bytes){message, length});
    struct page_batch batch;
    struct pb_field field;

    if (read_page_batch((struct grpc_bytes){message, length}, runs, PF_LIMIT_RUNS_MAX, &batch) != 0 ||
        batch.run_count == 0)
        return;
    batch.digest = payload_digest(CONTENT_ID, batch.runs, batch.run_count, batch.data);
    while (pb_read_field(&reader, &field) > 0)
        if (field.number == PF_FIELD_PAGE_BATCH_DIGEST && field.type == PB_FIXED64)
            for (int i = 0; i < 8; i++)
                message[(size_t)(reader.at - message) - 8 + (size_t)i] = (uint8_t)(batch.digest >> (8 * i));
}

/* ------------------------------------------------------------------------------------------------------- the client */

static const struct region layout[] = {
    {.address = UINT64_C(0x7f0000100000), .first_page = 0, .page_count = FIRST},
    {.address = UINT64_C(0x7f0000000000), .first_page = FIRST, .page_count = PAGES - FIRST},
};

static struct bed {
    struct table table;
    struct regions regions;
    struct sim_kernel sim;
    struct engine engine;
    struct stats stats;
    struct trace trace;
    struct address address;
    struct urgent urgent;
    struct port port;
    int listener, epoll_fd, server_fd; /* server_fd: -1 while nobody has dialled */
    uint64_t now_ns;
    uint32_t refused;
    uint32_t rounds; /* that were ordered */
} bed = {.server_fd = -1};

static void on_ask(void *owner, uint64_t page)
{
    (void)owner;
    urgent_ask(&bed.urgent, page);
}

static void on_report(void *owner, enum engine_report report, uint64_t page, uint64_t value, const char *text)
{
    (void)owner, (void)page, (void)value;
    fuzz_check(report >= ENGINE_REPORT_ALARM && report <= ENGINE_REPORT_GONE && text != NULL);
}

static void on_failed(void *owner, uint64_t page, const char *text)
{
    (void)owner;
    fprintf(stderr, "the simulated kernel, page %llu: %s\n", (unsigned long long)page, text);
    abort();
}

static void on_attached(void *owner)
{
    (void)owner;
    fuzz_check(bed.urgent.content_id != 0 && bed.urgent.as_of != 0);
    bed.engine.frozen_version = bed.urgent.live ? bed.urgent.final_as_of : bed.urgent.as_of;
}

static void on_unreachable(void *owner, uint32_t reason, const char *why)
{
    (void)owner;
    fuzz_check(reason != 0 && why[0] != 0);
}

static void on_refused(void *owner, uint32_t reason, const char *why)
{
    (void)owner;
    fuzz_check(reason != 0 && strlen(why) < GRPC_TEXT_BYTES);
    bed.refused++;
}

static const struct urgent_events events = {
    .attached = on_attached, .unreachable = on_unreachable, .refused = on_refused};

static void prepare(void)
{
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    struct address_entry *entry = &bed.address.entries[0];

    if (bed.table.header != NULL)
        return;
    fuzz_check(table_create(PAGES, &bed.table) == 0 && regions_set(&bed.regions, layout, 2) == 0);
    bed.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bed.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    /* a name in no file system, of the kernel's choice */
    fuzz_check(bind(bed.listener, (struct sockaddr *)&any, sizeof(any.sun_family)) == 0 && listen(bed.listener, 8) == 0);
    entry->length = sizeof(entry->storage);
    fuzz_check(getsockname(bed.listener, (struct sockaddr *)&entry->storage, &entry->length) == 0);
    bed.address.count = 1;
    strcpy(bed.address.authority, "localhost");
}

static void begin_engine(uint8_t manner)
{
    struct engine_options options = {
        .table = &bed.table,
        .regions = &bed.regions,
        .ops = &sim_kernel_ops,
        .kernel = &bed.sim,
        .out = {.ask = on_ask, .report = on_report},
        .stats = &bed.stats,
        .trace = &bed.trace,
        .private_memory = (manner & PRIVATE) != 0,
    };

    for (uint64_t page = 0; page < PAGES; page++)
        table_set(&bed.table, page, 0);
    atomic_store(&bed.table.header->armed, 0);
    atomic_store(&bed.table.header->batch_count, 0);
    memset(bed.table.header->batch, 0, sizeof(bed.table.header->batch));
    sim_open(&bed.sim, &bed.regions, options.private_memory, 1);
    bed.sim.table = &bed.table;
    bed.sim.failed = on_failed;
    engine_start(&bed.engine, &options, bed.now_ns);
}

static struct grpc_bytes text(const char *word)
{
    return (struct grpc_bytes){(const uint8_t *)word, strlen(word)};
}

static void begin(uint8_t manner)
{
    static struct grpc_headers who;
    struct urgent_options urgent = {
        .address = &bed.address,
        .image = "vm",
        .engine = &bed.engine,
        .regions = &bed.regions,
        .events = &events,
        .now_ns = &bed.now_ns,
        .stats = &bed.stats,
        .epoll_fd = bed.epoll_fd,
    };
    struct port_options port = {.address = &bed.address, .image = "vm", .page_count = PAGES, .slots = 2};
    struct plan_range ranges[] = {{.first_page = 0, .page_count = 16}, {.first_page = 16, .page_count = 8}};
    uint64_t token;

    who = (struct grpc_headers){.authorization = text("Bearer x"), .session = text("move"),
                                .target = text("00000000000000ff"), .epoch = text("1")};
    urgent.who = (manner & MOVE) != 0 ? &who : NULL;
    bed.now_ns = UINT64_C(1000000000);
    bed.rounds = 0;
    memset(&bed.urgent, 0, sizeof(bed.urgent));
    begin_engine(manner);
    if ((manner & (UNARMED | MOVE)) == 0)
        engine_arm(&bed.engine);
    urgent_start(&bed.urgent, &urgent);
    for (uint32_t thread = 0; thread < 5; thread++) /* they wait for pages */
        sim_touch(&bed.sim, thread, thread * 7, thread % 2 == 1, &token);
    engine_turn(&bed.engine, bed.now_ns);
    if ((manner & BULK) != 0) {
        fuzz_check(port_open(&bed.port, &port) == 0);
        port_attach(&bed.port, CONTENT_ID);
        for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++)
            fuzz_check(port_ask(&bed.port, &ranges[i]));
    }
}

/* A dial that nobody has taken must not be met by the next input. */
static void refuse_pending(void)
{
    int fd;

    while ((fd = accept4(bed.listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
        close(fd);
}

static void end(uint8_t manner)
{
    if ((manner & BULK) != 0) {
        port_stop(&bed.port, bed.epoll_fd);
        port_close(&bed.port);
    }
    urgent_close(&bed.urgent);
    if (bed.server_fd >= 0)
        close(bed.server_fd);
    bed.server_fd = -1;
    refuse_pending();
    sim_close(&bed.sim);
}

/* Slices of bulk go to the engine, as the loop has it. */
static void take_slices(void)
{
    static const enum engine_kind kinds[] = {[PF_RUN_KIND_DATA] = ENGINE_DATA, [PF_RUN_KIND_ZERO] = ENGINE_ZEROS};
    struct port_slice slice;

    while (port_take(&bed.port, &slice)) {
        const uint8_t *bytes = slice.data;
        for (uint32_t i = 0; i < slice.run_count && slice.slot != PORT_NO_SLOT; i++) {
            const struct run *run = &slice.runs[i];
            bool data = run->kind == PF_RUN_KIND_DATA;
            struct engine_news news = {.first_page = run->first_page, .page_count = run->page_count,
                                       .version = run->version, .bytes = data ? bytes : NULL};
            fuzz_check(run->first_page < PAGES && run->page_count <= PAGES - run->first_page);
            if (data)
                bytes += run->page_count * PAGE_BYTES;
            if (run->kind > PF_RUN_KIND_ZERO)
                continue;
            news.kind = kinds[run->kind];
            engine_news(&bed.engine, &news, bed.now_ns);
        }
        if (slice.slot != PORT_NO_SLOT)
            port_give_back(&bed.port, slice.slot);
    }
}

static bool armed(void)
{
    return atomic_load(&bed.table.header->armed) != 0;
}

static void look_at_round(const struct round_outcome_of *ended)
{
    fuzz_check(!armed());
    if (ended->outcome == ROUND_REFUSED) {
        fuzz_check(ended->reason != 0 && strlen(ended->why) < GRPC_TEXT_BYTES);
        return;
    }
    fuzz_check((uint32_t)ended->as_of != 0 && ended->as_of == bed.urgent.round.since && ended->newer_pages <= PAGES);
    if (ended->frozen && urgent_agrees(&bed.urgent)) {
        bed.engine.frozen_version = bed.urgent.final_as_of = ended->as_of;
        engine_arm(&bed.engine);
    }
}

/* As orders.c does: a round at a time, every third without a new one; when that was read, faults are resolved. */
static void go_on_with_move(void)
{
    struct round *round = &bed.urgent.round;
    struct round_outcome_of ended;

    if (round_ended_as(round, &ended))
        look_at_round(&ended);
    if (!armed() && bed.urgent.attached && bed.urgent.live && !round->wanted)
        round_order(round, bed.rounds++ % 3 != 2);
    round_next_ns(round);
}

/* Both are never dialled in one run: the input is one server's word. */
static void turn(uint8_t manner, uint32_t ready)
{
    const struct port_watch watch = {.epoll_fd = bed.epoll_fd, .link_tag = 1, .back_tag = 2};
    char heard[4096];

    if ((manner & BULK) != 0) {
        if (ready != 0)
            port_ready(&bed.port, ready, bed.now_ns);
        port_turn(&bed.port, &watch, bed.now_ns);
        take_slices();
        port_next_ns(&bed.port);
    } else {
        if (ready != 0)
            urgent_ready(&bed.urgent, ready);
        if ((manner & MOVE) != 0)
            go_on_with_move();
        urgent_turn(&bed.urgent);
        engine_tick(&bed.engine, bed.now_ns);
        urgent_next_ns(&bed.urgent);
    }
    engine_turn(&bed.engine, bed.now_ns);
    if (bed.server_fd < 0)
        bed.server_fd = accept4(bed.listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (bed.server_fd >= 0 && recv(bed.server_fd, heard, sizeof(heard), 0) > 0)
        ;
}

static const struct link *link_of(uint8_t manner)
{
    return (manner & BULK) != 0 ? &bed.port.link : &bed.urgent.link;
}

static size_t next_piece(const uint8_t *data, size_t size, size_t at, uint8_t manner)
{
    static const size_t cuts[] = {SIZE_MAX, 60, 1000};
    uint8_t cut = manner >> CUT_SHIFT & CUT_MASK;
    struct h2_frame frame;
    size_t piece = size - at;

    if (cut < 3)
        piece = cuts[cut];
    else if (h2_frames(data, size, at, &frame, 1) == 1)
        piece = H2_HEAD_BYTES + frame.payload_bytes;
    return piece < size - at ? piece : size - at;
}

static void check_words(void)
{
    uint64_t counts[PAGE_STATE_COUNT], kept[PAGE_STATE_COUNT];

    table_count(&bed.table, counts);
    counts_read(&bed.engine.counts, kept);
    fuzz_check(memcmp(counts, kept, sizeof(counts)) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 1;

    if (size == 0)
        return 0;
    prepare();
    begin(data[0]);
    for (int turns = 0; turns < TURNS_MAX && at < size; turns++) {
        ssize_t sent = -1;
        turn(data[0], 0);
        if (bed.server_fd >= 0 && link_of(data[0])->conn != NULL)
            sent = send(bed.server_fd, data + at, next_piece(data, size, at, data[0]), MSG_NOSIGNAL);
        at += sent > 0 ? (size_t)sent : 0;
        turn(data[0], EPOLLIN);
        if (link_of(data[0])->conn == NULL && bed.server_fd >= 0) { /* dropped: the next dial gets the rest */
            close(bed.server_fd);
            bed.server_fd = -1;
        }
        bed.now_ns += (data[0] & TIME_FLIES) != 0 ? 700 * MS_NS : 60 * MS_NS;
        check_words();
    }
    for (int i = 0; i < 12; i++) { /* silence, and then the end of the connection */
        bed.now_ns += 1000 * MS_NS;
        turn(data[0], i == 8 ? EPOLLIN : 0);
    }
    check_words();
    end(data[0]);
    return 0;
}
