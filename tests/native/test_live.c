/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Live memory through pageferry.h and a socket: rounds on calls, between the turns of a worker, and what comes between
 * the steps of one: others who want a round, a target that goes, a freeze, rights that end, an image that is removed, a
 * VMM that dies. The linker has the worker's steps pass through here (native/Makefile), where a test holds them.
 *
 * Who is let in is in test_gate.c, what a round finds in test_rounds.c, both by somebody else's client in
 * tests/wire/test_sessions.py.
 */
#include <dirent.h>
#include <openssl/evp.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "pageferry.h"
#include "serve_client.h"
#include "serve/rounds.h"
#include "tracked.h"

#define PAGES 64
#define WINDOW_BYTES PF_LIMIT_STREAM_WINDOW_BYTES
#define INCARNATION 7
#define BITS ((uint64_t)INCARNATION << 32)
#define ALL_RIGHTS (PAGEFERRY_RIGHT_PAGES | PAGEFERRY_RIGHT_ROUNDS)

static struct tracked vmm;
static struct pageferry_server *server;
static uint16_t port;
static struct serve_client client, other;
static struct serve_call urgent, first, second, get;
static char error[PAGEFERRY_TEXT_BYTES];
static atomic_bool held; /* steps do nothing */
static _Atomic uint32_t steps;

int __real_rounds_step(struct rounds *rounds, uint32_t round);
int __wrap_rounds_step(struct rounds *rounds, uint32_t round);
int __wrap_rounds_step(struct rounds *rounds, uint32_t round)
{
    bool now = atomic_load(&held);

    atomic_fetch_add(&steps, 1);
    return now ? 0 : __real_rounds_step(rounds, round);
}

/* ------------------------------------------------------------------------------------------------ what it runs on */

static struct grpc_bytes text(const char *word)
{
    return (struct grpc_bytes){(const uint8_t *)word, strlen(word)};
}

static const struct grpc_headers *me(void)
{
    static struct grpc_headers who;

    who = (struct grpc_headers){.authorization = text("Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"),
                                .session = text("s"), .target = text("00000000000000ff"), .epoch = text("1")};
    return &who;
}

static int set(uint32_t rights, uint32_t phase)
{
    struct pageferry_session told = {.session = "s", .image = "live", .rights = rights, .phase = phase};
    uint8_t token[32];

    for (uint8_t i = 0; i < sizeof(token); i++)
        token[i] = i;
    CHECK(EVP_Digest(token, sizeof(token), told.token_sha256, NULL, EVP_sha256(), NULL) == 1);
    return pageferry_server_set_session(server, &told, error, sizeof(error));
}

static void fill(struct pageferry_live_options *options, struct pageferry_region *region)
{
    *region = (struct pageferry_region){.address = vmm.address, .length_bytes = PAGES * TRACKED_PAGE};
    *options = (struct pageferry_live_options){
        .name = "live",
        .uffd = vmm.uffd,
        .ram_fd = vmm.ram_fd,
        .vmm_pid = vmm.pid,
        .vmm_pidfd = vmm.pidfd,
        .arriving_fd = -1,
        .regions = region,
        .region_count = 1,
        .content_id = 99,
        .incarnation = INCARNATION,
    };
}

static int add(void)
{
    struct pageferry_live_options options;
    struct pageferry_region region;

    fill(&options, &region);
    return pageferry_server_add_live(server, &options);
}

/* A target has attached. */
static void begin(void)
{
    struct pageferry_server_options options = {.listen_fd_count = 1};
    int listen_fd = serve_listen(&port);

    atomic_store(&held, false);
    CHECK(tracked_start(&vmm, PAGES, PAGES, false)); /* before there are threads */
    options.listen_fds = &listen_fd;
    CHECK_EQ(pageferry_server_open(&options, &server), 0);
    close(listen_fd);
    serve_content_id = 99;
    CHECK_EQ(add(), 0);
    CHECK_EQ(set(ALL_RIGHTS, PF_PHASE_PRECOPY), 0);
    serve_open(&client, serve_connect(port), WINDOW_BYTES);
    serve_open(&other, serve_connect(port), WINDOW_BYTES);
    serve_start_as(&urgent, &client, PF_PATH_FETCH_PAGES, me());
    serve_ask(&urgent, "live", 0, 0, 0, false);
    CHECK(SERVE_UNTIL(&client, urgent.batches == 1));
    CHECK_EQ(urgent.phase, PF_PHASE_PRECOPY);
}

static void end(void)
{
    CHECK_EQ(urgent.wrong + first.wrong + second.wrong + get.wrong, 0);
    serve_close(&client);
    serve_close(&other);
    pageferry_server_close(server);
    tracked_end(&vmm);
}

static void open_round(struct serve_call *call, struct serve_client *by)
{
    serve_start_as(call, by, PF_PATH_STREAM_PAGES, me());
    serve_map(call, "live", 0, true);
}

/* One is under way, and its worker goes round and round. */
static void hold_a_round(struct serve_client *by)
{
    uint32_t before;

    atomic_store(&held, true);
    before = atomic_load(&steps);
    open_round(&first, by);
    CHECK(SERVE_UNTIL(by, atomic_load(&steps) > before + 2));
    CHECK(!first.ended);
}

static bool ended_by(struct serve_call *call, struct serve_client *by, uint32_t reason)
{
    bool ended = SERVE_UNTIL(by, call->ended);

    if (call->status.reason != reason)
        printf("it ended with %u, %u: %s\n", call->status.code, call->status.reason, call->status.message);
    return ended && call->status.reason == reason && (call->status.code == GRPC_OK) == (reason == 0);
}

/* A round of the second call, whole. */
static void another_round(uint64_t as_of)
{
    open_round(&second, &other);
    CHECK(ended_by(&second, &other, 0));
    CHECK_EQ(second.as_of, as_of);
}

static struct pageferry_live_state state(void)
{
    struct pageferry_live_state now;

    CHECK_EQ(pageferry_server_live_state(server, "live", &now), 0);
    return now;
}

/* ----------------------------------------------------------------------------------------------- rounds, on calls */

static void test_a_round_goes_on_between_the_turns(void)
{
    begin();
    hold_a_round(&other);
    serve_start_as(&get, &client, PF_PATH_GET_PAGE, me());
    serve_get(&get, "live", 3);
    CHECK(ended_by(&get, &client, 0));
    serve_ask(&urgent, NULL, 5, 1, 77, false);
    CHECK(SERVE_UNTIL(&client, urgent.batches == 3)); /* the echo, and the page */
    CHECK(!first.ended);
    atomic_store(&held, false);
    CHECK(ended_by(&first, &other, 0));
    CHECK_EQ(first.as_of, BITS | 1);
    CHECK_EQ(first.named[PF_RUN_KIND_ZERO], PAGES); /* nothing was ever written */
    end();
}

static void test_a_second_round_meanwhile_is_refused(void)
{
    begin();
    hold_a_round(&other);
    open_round(&second, &other);
    CHECK(ended_by(&second, &other, PF_REASON_BUSY));
    CHECK(second.status.retry_after_ms > 0);
    serve_start_as(&second, &other, PF_PATH_STREAM_PAGES, me()); /* the map as it is waits for nobody */
    serve_map(&second, "live", 0, false);
    CHECK(ended_by(&second, &other, 0));
    CHECK_EQ(second.as_of, BITS);
    atomic_store(&held, false);
    CHECK(ended_by(&first, &other, 0));
    another_round(BITS | 2);
    end();
}

static void test_who_leaves_a_round_leaves_it_to_the_next(void)
{
    begin();
    hold_a_round(&other);
    grpc_cancel(first.grpc);
    CHECK(SERVE_UNTIL(&other, first.ended));
    CHECK_EQ(first.status.code, GRPC_CANCELLED);
    atomic_store(&held, false);
    another_round(BITS | 1);
    end();
}

static void test_a_connection_that_is_lost_leaves_it_too(void)
{
    begin();
    hold_a_round(&other);
    serve_close(&other);
    serve_open(&other, serve_connect(port), WINDOW_BYTES);
    serve_start_as(&get, &other, PF_PATH_GET_PAGE, me());
    serve_get(&get, "live", 3);
    CHECK(ended_by(&get, &other, 0)); /* its worker has seen the end of the old one */
    atomic_store(&held, false);
    another_round(BITS | 1);
    end();
}

/* The guest is stopped while a call has a round open: that call is answered from the final map. */
static void test_a_freeze_in_the_middle(void)
{
    struct pageferry_frozen frozen;

    begin();
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 9, 1));
    hold_a_round(&other);
    CHECK_EQ(pageferry_server_freeze(server, "live", &frozen, error, sizeof(error)), 0);
    CHECK_EQ(frozen.dirty_pages, PAGES);
    CHECK(state().frozen && state().as_of == frozen.as_of);
    atomic_store(&held, false);
    CHECK(ended_by(&first, &other, 0));
    CHECK_EQ(first.as_of, frozen.as_of);
    open_round(&second, &other);
    CHECK(ended_by(&second, &other, PF_REASON_WRONG_PHASE));
    end();
}

static void test_rights_that_end_in_the_middle(void)
{
    begin();
    hold_a_round(&other);
    CHECK_EQ(set(PAGEFERRY_RIGHT_PAGES, PF_PHASE_SWITCHOVER), 0);
    CHECK(ended_by(&first, &other, PF_REASON_WRONG_PHASE));
    CHECK(SERVE_UNTIL(&client, urgent.phase == PF_PHASE_SWITCHOVER)); /* that one goes on */
    CHECK(!urgent.ended);
    open_round(&second, &other);
    CHECK(ended_by(&second, &other, PF_REASON_WRONG_PHASE));
    serve_start_as(&second, &other, PF_PATH_STREAM_PAGES, me()); /* to read the map needs no such right */
    serve_map(&second, "live", 0, false);
    CHECK(ended_by(&second, &other, 0));
    atomic_store(&held, false);
    CHECK_EQ(set(ALL_RIGHTS, PF_PHASE_PRECOPY), 0);
    another_round(BITS | 1);
    end();
}

static void test_a_vmm_that_dies_in_the_middle(void)
{
    begin();
    hold_a_round(&other);
    tracked_kill(&vmm);
    atomic_store(&held, false);
    CHECK(ended_by(&first, &other, PF_REASON_NO_VMM));
    open_round(&second, &other);
    CHECK(ended_by(&second, &other, PF_REASON_NO_VMM));
    end();
}

static uint32_t open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    uint32_t count = 0;

    while (dir != NULL && readdir(dir) != NULL)
        count++;
    if (dir != NULL)
        closedir(dir);
    return count;
}

static void test_an_image_that_is_removed_in_the_middle(void)
{
    uint32_t before;

    begin();
    CHECK_EQ(pageferry_server_remove(server, "live"), 0);
    CHECK(ended_by(&urgent, &client, PF_REASON_NO_SUCH_IMAGE));
    before = open_fds();
    CHECK_EQ(add(), 0); /* its name is free again */
    hold_a_round(&other);
    CHECK_EQ(pageferry_server_remove(server, "live"), 0);
    CHECK_EQ(pageferry_server_remove(server, "live"), -PF_REASON_NO_SUCH_IMAGE);
    CHECK(ended_by(&first, &other, PF_REASON_NO_SUCH_IMAGE));
    CHECK(SERVE_UNTIL(&other, open_fds() == before)); /* nothing of it is kept */
    atomic_store(&held, false);
    end();
}

/* ------------------------------------------------------------------------------------------------------ pageferry.h */

static void test_what_is_told_of_it(void)
{
    struct pageferry_frozen frozen, again;
    struct pageferry_server_event event;

    begin();
    CHECK_EQ(state().round, 0);
    CHECK_EQ(state().page_count, PAGES);
    CHECK_EQ(pageferry_server_event(server, &event), 1);
    CHECK_EQ(event.kind, PAGEFERRY_SERVER_EVENT_ATTACHED);
    another_round(BITS | 1);
    CHECK_EQ(pageferry_server_event(server, &event), 1);
    CHECK_EQ(event.kind, PAGEFERRY_SERVER_EVENT_ROUND);
    CHECK_EQ(event.value, BITS | 1);
    CHECK_EQ(event.page_count, PAGES);
    CHECK(tracked_do(&vmm, TRACKED_WRITE, 9, 1));
    another_round(BITS | 2);
    CHECK_EQ(state().dirty_pages, 1);
    CHECK_EQ(state().round, 2);
    serve_start_as(&first, &other, PF_PATH_STREAM_PAGES, me());
    serve_map(&first, "live", BITS | 1, false);
    CHECK(ended_by(&first, &other, 0));
    CHECK_EQ(first.named[PF_RUN_KIND_VERSION], 1); /* what is newer than that, and no more */
    CHECK_EQ(first.named[PF_RUN_KIND_ZERO], 0);
    serve_start_as(&first, &other, PF_PATH_STREAM_PAGES, me());
    serve_map(&first, "live", BITS | 3, false);
    CHECK(ended_by(&first, &other, PF_REASON_MISMATCH)); /* than what never was */
    CHECK(state().round_ns > 0 && !state().frozen);
    CHECK_EQ(pageferry_server_freeze(server, "live", &frozen, error, sizeof(error)), 0);
    CHECK_EQ(frozen.as_of, BITS | 3);
    CHECK_EQ(frozen.dirty_pages, 0);
    CHECK_EQ(pageferry_server_freeze(server, "live", &again, error, sizeof(error)), 0);
    CHECK(memcmp(&frozen, &again, sizeof(frozen)) == 0);
    CHECK_EQ(pageferry_server_thaw(server, "live"), 0);
    CHECK(!state().frozen);
    another_round((UINT64_C(1) << 32) + (BITS | 1));
    end();
}

static void test_what_is_no_live_image(void)
{
    struct pageferry_frozen frozen;
    struct pageferry_live_state now;
    struct pageferry_image_facts facts;
    int image_fd;

    begin();
    image_fd = serve_image(10);
    CHECK_EQ(pageferry_image_inspect(image_fd, NULL, NULL, &facts, error, sizeof(error)), 0);
    CHECK_EQ(pageferry_server_add_file(server, "file", image_fd, &facts, &facts.page_count, 1, NULL, 0, error,
                                       sizeof(error)), 0);
    close(image_fd);
    CHECK_EQ(pageferry_server_freeze(server, "file", &frozen, error, sizeof(error)), -PF_REASON_BAD_REQUEST);
    CHECK(strstr(error, "file") != NULL);
    CHECK_EQ(pageferry_server_freeze(server, "nobody", &frozen, error, sizeof(error)), -PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(pageferry_server_thaw(server, "nobody"), -PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(pageferry_server_live_state(server, "file", &now), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(pageferry_server_drop_session(server, "nobody"), -PF_REASON_NO_SUCH_IMAGE);
    tracked_kill(&vmm);
    CHECK_EQ(pageferry_server_freeze(server, "live", &frozen, error, sizeof(error)), -PF_REASON_NO_VMM);
    CHECK(error[0] != 0);
    end();
}

/* Each refusal of a VMM whose writes could not be seen; nothing of it is kept. */
static void test_what_cannot_be_tracked(void)
{
    struct pageferry_live_options good, options;
    struct pageferry_region region, elsewhere;
    uint32_t before;
    int disk = -1, hugetlb = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
    char path[] = "/var/tmp/pageferry-test-XXXXXX";

    begin();
    CHECK_EQ(add(), -PF_REASON_ALREADY_ATTACHED);
    before = open_fds();
    fill(&good, &region);
    good.name = "more";
#define REFUSED(reason, change) \
    do { \
        options = good; \
        change; \
        CHECK_EQ(pageferry_server_add_live(server, &options), -(reason)); \
        CHECK(options.error[0] != 0); \
    } while (0)
    REFUSED(PF_REASON_BAD_REQUEST, options.content_id = 0);
    REFUSED(PF_REASON_BAD_REQUEST, options.incarnation = 0);
    REFUSED(PF_REASON_BAD_REQUEST, options.incarnation = PF_LIMIT_INCARNATION_MAX + 1);
    REFUSED(PF_REASON_BAD_REQUEST, options.name = "");
    REFUSED(PF_REASON_BAD_REQUEST, options.region_count = 0);
    elsewhere = region;
    elsewhere.length_bytes -= TRACKED_PAGE;
    REFUSED(PF_REASON_BAD_REQUEST, options.regions = &elsewhere);
    elsewhere.length_bytes -= 1;
    REFUSED(PF_REASON_BAD_REQUEST, options.regions = &elsewhere);
    elsewhere = region;
    elsewhere.address += UINT64_C(1) << 40;
    REFUSED(PF_REASON_MISMATCH, options.regions = &elsewhere);
    REFUSED(PF_REASON_UNSUPPORTED, options.vmm_pid = 0);
    REFUSED(PF_REASON_NO_VMM, options.vmm_pid = 1 << 30);
    disk = mkstemp(path);
    CHECK(disk >= 0 && unlink(path) == 0 && ftruncate(disk, PAGES * TRACKED_PAGE) == 0);
    REFUSED(PF_REASON_UNSUPPORTED, options.ram_fd = disk);
    close(disk);
    if (hugetlb >= 0)
        REFUSED(PF_REASON_UNSUPPORTED, (void)!ftruncate(hugetlb, 2 << 20); options.ram_fd = hugetlb);
    CHECK_EQ(open_fds(), before);
    CHECK(tracked_do(&vmm, TRACKED_MAP_AGAIN, 3, 0)); /* writes through that would not be seen */
    REFUSED(PF_REASON_UNSUPPORTED, );
    CHECK(tracked_do(&vmm, TRACKED_UNREGISTER, 0, 0));
    REFUSED(PF_REASON_MISMATCH, );
    CHECK_EQ(open_fds(), before);
    if (hugetlb >= 0)
        close(hugetlb);
    end();
}

int main(void)
{
    const char *absent = tracked_absent();

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (absent != NULL) {
        SKIP(all, absent);
        return check_done();
    }
    RUN(test_a_round_goes_on_between_the_turns);
    RUN(test_a_second_round_meanwhile_is_refused);
    RUN(test_who_leaves_a_round_leaves_it_to_the_next);
    RUN(test_a_connection_that_is_lost_leaves_it_too);
    RUN(test_a_freeze_in_the_middle);
    RUN(test_rights_that_end_in_the_middle);
    RUN(test_a_vmm_that_dies_in_the_middle);
    RUN(test_an_image_that_is_removed_in_the_middle);
    RUN(test_what_is_told_of_it);
    RUN(test_what_is_no_live_image);
    RUN(test_what_cannot_be_tracked);
    return check_done();
}
