/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HTTP/2 bytes at the data port: one connection of a worker, its calls and all methods, over a socketpair. The worker's
 * own turns are made, so its file is included; only its thread and epoll_wait are missing.
 *
 * Input: a byte of manner (how the bytes are cut, how the peer reads, what happens meanwhile), a byte for what becomes of
 * the live image and its session (live_source.h), then what a client says, from its preface on. Whatever it says: the
 * answers are whole frames of lawful size, no call is left behind, and none holds an image, a round or a session's place.
 */
#include "serve/listener.c"

#include "fuzz.h"
#include "h2_mutator.h"
#include "live_source.h"

#define IMAGE_PAGES 700
#define OUT_BYTES (4 << 20)

enum manner { CUT_MASK = 3, READS_LATE = 4, DRAINS = 8, EXPIRES = 16, SMALL_SOCKET = 32, HEALTH_CHANGES = 64 };

const size_t h2_own_bytes = 2;
const size_t h2_introduction_bytes = sizeof(H2_MAGIC) - 1;

void h2_mend_message(uint8_t *message, size_t length)
{
    (void)message, (void)length; /* requests carry no digest */
}

/* ------------------------------------------------------------------------------------------------------- the image */

static int read_pages(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    fuzz_check(first_page < image->page_count && page_count <= image->page_count - first_page);
    if (first_page <= 600 && 600 < first_page + page_count)
        return -PF_REASON_GOING_AWAY;
    if (first_page <= 650 && 650 < first_page + page_count)
        return -PF_REASON_MISMATCH;
    for (uint64_t i = 0; i < page_count; i++)
        memset(bytes + i * IMAGE_PAGE_BYTES, (first_page + i) % 5 == 0 ? 0 : (int)(first_page + i) % 251 + 1,
               IMAGE_PAGE_BYTES);
    return 0;
}

static bool may_hold_data(const struct image *image, uint64_t page)
{
    fuzz_check(page < image->page_count);
    return page / 50 % 2 == 0;
}

static uint64_t alike_end(const struct image *image, uint64_t page, uint64_t end)
{
    uint64_t next = (page / 50 + 1) * 50;

    fuzz_check(page < end && end <= image->page_count);
    return next < end ? next : end;
}

static uint64_t version_of(const struct image *image, uint64_t page, uint64_t *end)
{
    fuzz_check(page < *end && *end <= image->page_count);
    return image->as_of;
}

static uint64_t next_above(const struct image *image, uint64_t version, uint64_t page, uint64_t end)
{
    fuzz_check(page <= end && end <= image->page_count);
    return image->as_of > version ? page : end;
}

static void keep_image(struct image *image)
{
    (void)image;
}

static const struct image_ops image_ops = {
    .read = read_pages,
    .may_hold_data = may_hold_data,
    .alike_end = alike_end,
    .version = version_of,
    .next_above = next_above,
    .close = keep_image,
};

static struct image image = {
    .ops = &image_ops,
    .name = "vm",
    .content_id = 7,
    .page_count = IMAGE_PAGES,
    .region_pages = {300, 400},
    .region_count = 2,
    .as_of = PF_LIMIT_IMMUTABLE_VERSION,
    .fd = -1,
};

/* ------------------------------------------------------------------------------------------------------- the peer */

static struct service service;
static struct worker worker = {.service = &service};
static uint8_t out[OUT_BYTES];
static size_t out_bytes;

/* NULL: it has been closed. */
static struct connection *only(void)
{
    return LIST_FIRST(&worker.connections);
}

static void hear(int fd)
{
    ssize_t length = 1;

    while (length > 0 && out_bytes < sizeof(out)) {
        length = recv(fd, out + out_bytes, sizeof(out) - out_bytes, MSG_DONTWAIT);
        out_bytes += length > 0 ? (size_t)length : 0;
    }
}

/* Frames one after another; the last may be cut, where the connection ended. */
static void check_out(void)
{
    size_t at = 0;

    while (out_bytes - at >= H2_HEAD_BYTES) {
        size_t length = (size_t)out[at] << 16 | (size_t)out[at + 1] << 8 | out[at + 2];
        fuzz_check(length <= PF_LIMIT_FRAME_BYTES_MAX && out[at + 3] <= 9);
        fuzz_check(at > 0 || out[at + 3] == H2_SETTINGS);
        if (out_bytes - at - H2_HEAD_BYTES < length)
            break;
        at += H2_HEAD_BYTES + length;
    }
}

/* How much is sent next: all, byte by byte at first, frame by frame, or odd pieces. */
static size_t next_piece(const uint8_t *data, size_t size, size_t at, uint8_t manner)
{
    static const size_t odd[] = {3, 40, 9, 1000, 17, 1};
    struct h2_frame frame;
    size_t piece = size - at;

    if ((manner & CUT_MASK) == 1)
        piece = at < 200 ? 1 : 50;
    else if ((manner & CUT_MASK) == 2 && h2_frames(data, size, at, &frame, 1) == 1)
        piece = H2_HEAD_BYTES + frame.payload_bytes;
    else if ((manner & CUT_MASK) == 3)
        piece = odd[at % (sizeof(odd) / sizeof(odd[0]))];
    return piece < size - at ? piece : size - at;
}

static void happen(uint8_t manner, uint8_t story)
{
    live_happen(&service, story);
    if ((manner & DRAINS) != 0)
        atomic_store(&service.draining, 1);
    if ((manner & HEALTH_CHANGES) != 0)
        atomic_store(&service.serving, 0);
    look_up(&worker);
}

/* What the worker's loop does between the turns of connections: steps of rounds, the bell that a call may ring. */
static void between_turns(void)
{
    struct connection *connection = opening_step(&worker);
    uint64_t rung;

    if (connection != NULL)
        turn(connection, 0);
    if (read(worker.bell.fd, &rung, sizeof(rung)) == (ssize_t)sizeof(rung))
        look_up(&worker);
}

static void talk(int fd, const uint8_t *data, size_t size, uint8_t manner, uint8_t story)
{
    size_t at = 0;
    int stalls = 0;

    while (at < size && only() != NULL && stalls < 3) {
        ssize_t sent = send(fd, data + at, next_piece(data, size, at, manner), MSG_DONTWAIT | MSG_NOSIGNAL);
        stalls = sent > 0 ? 0 : stalls + 1;
        if (at < size / 2 && sent > 0 && at + (size_t)sent >= size / 2)
            happen(manner, story);
        at += sent > 0 ? (size_t)sent : 0;
        if (only() != NULL)
            turn(only(), EPOLLIN | EPOLLOUT);
        between_turns();
        if ((manner & READS_LATE) == 0)
            hear(fd);
    }
    for (int i = 0; i < 40 && only() != NULL && (conn_wants_write(only()->conn) || !TAILQ_EMPTY(&worker.openings)); i++) {
        hear(fd);
        turn(only(), EPOLLOUT);
        between_turns();
    }
    for (int i = 0; i < 2 && (manner & EXPIRES) != 0 && only() != NULL; i++) {
        calls_expire(only(), serve_now_ns() + (uint64_t)i * 20000 * MS_NS);
        turn(only(), EPOLLOUT);
    }
    hear(fd);
}

static void prepare(void)
{
    if (worker.runs != NULL)
        return;
    worker.runs = malloc(PF_LIMIT_RUNS_MAX * sizeof(*worker.runs));
    worker.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker.bell.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    worker.timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    worker.accept_due_ns = NEVER_NS;
    TAILQ_INIT(&worker.openings);
    service.workers = &worker;
    atomic_store(&service.worker_count, 1);
    fuzz_check(worker.runs != NULL && sessions_open(&service.sessions) == 0);
    fuzz_check(images_add(&service.images, &image) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int ends[2], small = 4096;

    prepare();
    if (size < h2_own_bytes || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
        return 0;
    if ((data[0] & SMALL_SOCKET) != 0)
        setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    worker.due_ns = NEVER_NS;
    out_bytes = 0;
    atomic_store(&service.draining, 0);
    atomic_store(&service.serving, 1);
    worker.hasher = token_open();
    live_begin(&service, data[1]);
    fuzz_check(take_place(&service) && open_connection(&worker, ends[0]) == 0);
    talk(ends[1], data + h2_own_bytes, size - h2_own_bytes, data[0], data[1]);
    close(ends[1]);
    while (only() != NULL) /* it reads to the end, and finds it */
        turn(only(), EPOLLIN | EPOLLHUP);
    check_out();
    fuzz_check(stats_get(&worker.stats, STATS_calls_open) == 0);
    fuzz_check(atomic_load(&worker.owing) == 0 && atomic_load(&service.connections) == 0);
    fuzz_check(TAILQ_EMPTY(&worker.openings) && atomic_load(&image.users) == 1);
    live_end(&service);
    token_close(worker.hasher);
    calls_close(&worker); /* memory that is kept for the next call would hide a use after its end */
    return 0;
}
