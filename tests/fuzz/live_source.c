/* SPDX-License-Identifier: Apache-2.0 */
/* See live_source.h. */
#include "live_source.h"

#include <errno.h>
#include <openssl/evp.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "serve/rounds.h"
#include "serve/sparse.h"

#define PAGE_SHIFT_BITS 12
#define INCARNATION 5
#define AWAY_FIRST 20 /* these arrive in the middle of it all, */
#define LOST_PAGE 30  /* and this one never */
#define LOOK_PAGES 300 /* of one look: the first round is settled in several steps */

static struct {
    struct image image;
    struct versions versions;
    struct holes holes;
    struct rounds rounds;
    bool open;
    bool arrived;
    int scan_error; /* 0: the kernel says what it should */
    uint64_t dice;
    uint32_t other_round; /* somebody else's; 0: there is none */
} live;

static int ram_fd = -1;

/* ------------------------------------------------------------------------------------------------- what a kernel says */

static uint64_t throw_dice(uint64_t sides)
{
    live.dice = live.dice * UINT64_C(6364136223846793005) + 1442695040888963407;
    return (live.dice >> 33) % sides;
}

static int dirty(int pagemap_fd, uint64_t start, uint64_t end, struct scan_range *ranges, uint64_t *looked_end)
{
    uint64_t page = start >> PAGE_SHIFT_BITS, last = end >> PAGE_SHIFT_BITS;
    int count = 0;

    (void)pagemap_fd;
    fuzz_check(start < end && last <= LIVE_PAGES);
    if (live.scan_error != 0)
        return live.scan_error;
    if (last - page > LOOK_PAGES)
        last = page + LOOK_PAGES;
    *looked_end = last << PAGE_SHIFT_BITS;
    while (count < SCAN_RANGES_MAX) {
        uint64_t first = page + throw_dice(60), behind = first + 1 + throw_dice(9);
        if (behind > last)
            break;
        ranges[count++] = (struct scan_range){first << PAGE_SHIFT_BITS, behind << PAGE_SHIFT_BITS};
        page = behind + 1;
    }
    return count;
}

static int reset(int pagemap_fd, uint64_t start, uint64_t end)
{
    (void)pagemap_fd;
    fuzz_check(start < end && end >> PAGE_SHIFT_BITS <= LIVE_PAGES);
    return live.scan_error;
}

static const struct scan_calls calls = {.dirty = dirty, .reset = reset};

/* ---------------------------------------------------------------------------------------------------------- the image */

static int read_pages(const struct image *image, uint64_t first_page, uint64_t page_count, uint8_t *bytes)
{
    fuzz_check(first_page < image->page_count && page_count <= image->page_count - first_page);
    fuzz_check(first_page > LOST_PAGE || first_page + page_count <= (live.arrived ? LOST_PAGE : AWAY_FIRST));
    return sparse_read(ram_fd, first_page * IMAGE_PAGE_BYTES, page_count * IMAGE_PAGE_BYTES, bytes) == 0
               ? 0 : -PF_REASON_GOING_AWAY;
}

static bool may_hold_data(const struct image *image, uint64_t page)
{
    fuzz_check(page < image->page_count);
    return holes_may_hold_data(&live.holes, page);
}

static uint64_t alike_end(const struct image *image, uint64_t page, uint64_t end)
{
    fuzz_check(page < end && end <= image->page_count);
    return holes_alike_end(&live.holes, page, end);
}

static uint64_t version_of(const struct image *image, uint64_t page, uint64_t *end)
{
    fuzz_check(page < *end && *end <= image->page_count);
    return versions_of(&live.versions, page, end);
}

static uint64_t next_above(const struct image *image, uint64_t version, uint64_t page, uint64_t end)
{
    fuzz_check(page <= end && end <= image->page_count);
    return versions_next_above(&live.versions, version, page, end);
}

static enum image_standing standing(const struct image *image, uint64_t page, uint64_t *end)
{
    static const uint64_t ends[] = {AWAY_FIRST, LOST_PAGE, LOST_PAGE + 1};
    enum image_standing how = IMAGE_HERE;

    fuzz_check(page < *end && *end <= image->page_count);
    if (page == LOST_PAGE)
        how = IMAGE_LOST;
    else if (page >= AWAY_FIRST && page < LOST_PAGE && !live.arrived)
        how = IMAGE_AWAY;
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (page < ends[i] && ends[i] < *end)
            *end = ends[i];
    return how;
}

static void close_image(struct image *image)
{
    fuzz_check(image == &live.image && live.open && atomic_load(&image->users) == 0);
    rounds_close(&live.rounds);
    holes_close(&live.holes);
    versions_close(&live.versions);
    live.open = false;
}

static const struct image_ops ops = {
    .read = read_pages,
    .may_hold_data = may_hold_data,
    .alike_end = alike_end,
    .version = version_of,
    .next_above = next_above,
    .standing = standing,
    .close = close_image,
};

static void make_ram(void)
{
    uint8_t page[IMAGE_PAGE_BYTES];

    ram_fd = memfd_create("live", MFD_CLOEXEC);
    fuzz_check(ram_fd >= 0 && ftruncate(ram_fd, LIVE_PAGES * IMAGE_PAGE_BYTES) == 0);
    for (uint64_t i = 0; i < LIVE_PAGES; i++) {
        memset(page, i % 7 == 0 ? 0 : (int)(i % 255) + 1, sizeof(page));
        if (i / 50 % 2 == 0)
            fuzz_check(pwrite(ram_fd, page, sizeof(page), (off_t)(i * sizeof(page))) == (ssize_t)sizeof(page));
    }
}

static void open_image(struct service *service)
{
    static const struct rounds_region regions[] = {{0, 0, 300}, {300 << PAGE_SHIFT_BITS, 300, LIVE_PAGES - 300}};

    if (ram_fd < 0)
        make_ram();
    memset(&live.image, 0, sizeof(live.image));
    live.image.ops = &ops;
    live.image.live = true;
    live.image.content_id = 9;
    live.image.page_count = LIVE_PAGES;
    live.image.region_count = 2;
    live.image.region_pages[0] = 300;
    live.image.region_pages[1] = LIVE_PAGES - 300;
    live.image.rounds = &live.rounds;
    snprintf(live.image.name, sizeof(live.image.name), "%s", LIVE_IMAGE);
    fuzz_check(versions_create(LIVE_PAGES, live.image.content_id, INCARNATION, &live.versions) == 0);
    fuzz_check(holes_open(&live.holes, ram_fd, LIVE_PAGES) == 0);
    fuzz_check(rounds_open(&live.rounds, &calls, -1, regions, 2, &live.versions, &live.holes, &live.image.as_of) == 0);
    live.open = true;
    fuzz_check(images_add(&service->images, &live.image) == 0);
}

/* -------------------------------------------------------------------------------------------------------- the session */

static void set_session(struct service *service, uint32_t rights, uint32_t phase, uint8_t digest)
{
    static uint8_t hash[TOKEN_HASH_BYTES];
    static bool hashed;
    struct pageferry_session told = {
        .session = LIVE_SESSION,
        .image = LIVE_IMAGE,
        .rights = rights,
        .phase = phase,
        .cancel_requested = phase == PF_PHASE_SWITCHOVER,
        .frozen = digest != 0,
    };
    uint8_t token[TOKEN_HASH_BYTES];

    for (uint8_t i = 0; i < sizeof(token); i++)
        token[i] = i;
    if (!hashed)
        fuzz_check(EVP_Digest(token, sizeof(token), hash, NULL, EVP_sha256(), NULL) == 1);
    hashed = true;
    memcpy(told.token_sha256, hash, sizeof(hash));
    memset(told.manifest_digest, digest, sizeof(told.manifest_digest));
    fuzz_check(sessions_set(&service->sessions, &told, NULL, 0) == 0);
}

static void set_all(struct service *service)
{
    set_session(service, PAGEFERRY_RIGHT_PAGES | PAGEFERRY_RIGHT_ROUNDS, PF_PHASE_PRECOPY, 0);
}

/* ----------------------------------------------------------------------------------------------------- what happens */

void live_begin(struct service *service, uint8_t story)
{
    uint32_t round;

    live.scan_error = 0;
    live.arrived = false;
    live.dice = story;
    open_image(service);
    if ((story & LIVE_NO_SESSION) == 0)
        set_all(service);
    if ((story & LIVE_ROUND_FIRST) != 0) {
        fuzz_check(rounds_begin(&live.rounds, &round) == 0);
        while (rounds_step(&live.rounds, round) == 0)
            ;
    }
    live.other_round = 0;
    if ((story & LIVE_BUSY) != 0)
        fuzz_check(rounds_begin(&live.rounds, &live.other_round) == 0);
}

static void freeze(struct service *service, uint8_t digest)
{
    if (live.open && rounds_freeze(&live.rounds) == 0)
        set_session(service, PAGEFERRY_RIGHT_PAGES, PF_PHASE_SWITCHOVER, digest);
}

void live_happen(struct service *service, uint8_t story)
{
    struct grpc_bytes name = {(const uint8_t *)LIVE_IMAGE, sizeof(LIVE_IMAGE) - 1};

    live.arrived = true;
    if ((story & LIVE_SCAN_FAILS) != 0)
        live.scan_error = (story & 1) != 0 ? -ESRCH : -EPERM;
    if (live.other_round != 0)
        rounds_leave(&live.rounds, live.other_round);
    switch (story & LIVE_STORY_MASK) {
    case LIVE_NO_RIGHTS:
        set_session(service, 0, PF_PHASE_ABORTED, 0);
        break;
    case LIVE_NO_ROUNDS:
        set_session(service, PAGEFERRY_RIGHT_PAGES, PF_PHASE_PRECOPY, 0);
        break;
    case LIVE_PHASE:
        set_session(service, PAGEFERRY_RIGHT_PAGES, PF_PHASE_SWITCHOVER, 0);
        break;
    case LIVE_FROZEN:
    case LIVE_FROZEN_ANEW:
        freeze(service, 7);
        if ((story & LIVE_STORY_MASK) == LIVE_FROZEN_ANEW)
            freeze(service, 8);
        break;
    case LIVE_THAWED:
        freeze(service, 7);
        set_session(service, 0, PF_PHASE_ABORTED, 0);
        if (live.open)
            fuzz_check(rounds_thaw(&live.rounds) == 0);
        set_all(service);
        break;
    case LIVE_REMOVED:
        images_remove(&service->images, name);
        break;
    case LIVE_DROPPED:
    case LIVE_DROPPED_ANEW:
        sessions_drop(&service->sessions, LIVE_SESSION);
        if ((story & LIVE_STORY_MASK) == LIVE_DROPPED_ANEW)
            set_all(service);
        break;
    }
}

static void check_session(const struct sessions *sessions, struct session *session)
{
    fuzz_check(session->urgent_count == 0 && session->serial <= sessions->last_serial);
    fuzz_check((session->target == 0) == (session->epoch == 0));
}

void live_end(struct service *service)
{
    struct grpc_bytes name = {(const uint8_t *)LIVE_IMAGE, sizeof(LIVE_IMAGE) - 1};
    struct session *session = sessions_find(&service->sessions, (struct grpc_bytes){(const uint8_t *)LIVE_SESSION, 4});
    struct pageferry_server_event event;

    if (session != NULL)
        check_session(&service->sessions, session);
    for (int i = 0; sessions_event(&service->sessions, &event) != 0; i++) {
        fuzz_check(i < SESSIONS_NEWS_KINDS && strcmp(event.session, LIVE_SESSION) == 0);
        fuzz_check(event.kind >= 1 && event.kind <= SESSIONS_NEWS_KINDS && event.target != 0 && event.epoch != 0);
        fuzz_check(event.kind != PAGEFERRY_SERVER_EVENT_ROUND || (uint32_t)event.value != 0);
    }
    sessions_drop(&service->sessions, LIVE_SESSION);
    if (images_remove(&service->images, name))
        fuzz_check(!live.rounds.held || live.other_round != 0);
    fuzz_check(!live.open);
}
