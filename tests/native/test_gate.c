/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may do what: tokens, sessions, targets, epochs and rights, without a wire; and the news of them. The same rules
 * from outside, by somebody else's client: tests/wire/test_sessions.py.
 */
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "serve/serve.h"

#define TOKEN "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" /* bytes 0 to 31 */
#define OTHER_TOKEN "Bearer AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
#define ONE "0000000000000001"
#define TWO "00000000000000ff"

static struct service service;
static struct worker worker = {.service = &service};
static char error[PAGEFERRY_TEXT_BYTES];
static const char *why;
static int sockets[2];

static struct grpc_bytes text(const char *word)
{
    return (struct grpc_bytes){(const uint8_t *)word, word == NULL ? 0 : strlen(word)};
}

static void keep(struct image *image)
{
    (void)image;
}

static const struct image_ops ops = {.close = keep};
static struct image file = {.ops = &ops, .name = "file"}, live = {.ops = &ops, .name = "live", .live = true},
                    other = {.ops = &ops, .name = "other", .live = true};

static void token_sha256(uint8_t hash[32])
{
    uint8_t token[32];

    for (int i = 0; i < 32; i++)
        token[i] = (uint8_t)i;
    CHECK(EVP_Digest(token, sizeof(token), hash, NULL, EVP_sha256(), NULL) == 1);
}

static int set(const char *name, const char *image, uint32_t rights)
{
    struct pageferry_session told = {.session = name, .image = image, .rights = rights, .phase = PF_PHASE_PRECOPY};

    token_sha256(told.token_sha256);
    error[0] = 0;
    return sessions_set(&service.sessions, &told, error, sizeof(error));
}

static void begin(void)
{
    memset(&service, 0, sizeof(service));
    atomic_store(&service.serving, 1);
    CHECK_EQ(sessions_open(&service.sessions), 0);
    CHECK_EQ(images_add(&service.images, &file), 0);
    CHECK_EQ(images_add(&service.images, &live), 0);
    CHECK_EQ(images_add(&service.images, &other), 0);
    worker.hasher = token_open();
    CHECK(worker.hasher != NULL);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), 0);
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_PAGES), 0);
}

static void end(void)
{
    close(sockets[0]);
    close(sockets[1]);
    token_close(worker.hasher);
    images_close(&service.images);
    sessions_close(&service.sessions);
}

/* A call of this wish, by these headers; NULL: absent. */
static uint32_t call(struct gate_pass *pass, enum gate_wish wish, const char *token, const char *target, const char *epoch)
{
    struct grpc_headers headers = {.authorization = text(token), .session = text("s"), .target = text(target),
                                   .epoch = text(epoch)};

    why = "";
    return gate_call(&worker, &headers, wish, sockets[0], pass, &why);
}

static uint32_t attach(struct gate_pass *pass, const char *target, const char *epoch)
{
    return call(pass, GATE_ATTACH, TOKEN, target, epoch);
}

static uint32_t look(const struct gate_pass *pass)
{
    return gate_look(&service, pass, PAGEFERRY_RIGHT_PAGES, &why);
}

static void is_event(uint32_t kind, uint64_t value, uint64_t epoch)
{
    struct pageferry_server_event event = {0};

    CHECK_EQ(sessions_event(&service.sessions, &event), 1);
    CHECK_EQ(event.kind, kind);
    CHECK_EQ(event.value, value);
    CHECK_EQ(event.epoch, epoch);
    CHECK(strcmp(event.session, "s") == 0);
}

static void no_event(void)
{
    struct pageferry_server_event event;
    struct pollfd ready = {.fd = service.sessions.event_fd, .events = POLLIN};

    CHECK_EQ(sessions_event(&service.sessions, &event), 0);
    CHECK_EQ(poll(&ready, 1, 0), 0);
}

/* ------------------------------------------------------------------------------------------------------ tokens */

static void test_a_token_has_one_spelling(void)
{
    static const char *const wrong[] = {
        "", "Bearer", "Bearer ", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
        "bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", TOKEN "=", TOKEN "8",
        "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh",  /* 31 bytes and a bit */
        "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh9", /* bits behind the last byte */
        "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+", "Bearer AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh ",
    };
    uint8_t want[32], got[32];

    begin();
    token_sha256(want);
    CHECK(token_hash(worker.hasher, text(TOKEN), got));
    CHECK(token_same(got, want));
    CHECK(token_hash(worker.hasher, text(OTHER_TOKEN), got));
    CHECK(!token_same(got, want));
    CHECK(token_hash(worker.hasher, text("Bearer __________________________________________8"), got)); /* all ones */
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        CHECK(!token_hash(worker.hasher, text(wrong[i]), got));
    CHECK(!token_hash(worker.hasher, (struct grpc_bytes){(const uint8_t *)TOKEN "\0", sizeof(TOKEN)}, got));
    end();
}

/* -------------------------------------------------------------------------------------------------- who is let in */

static void test_without_a_session(void)
{
    struct grpc_headers headers = {.target = text(ONE)};
    struct gate_pass pass;
    struct image *image;

    begin();
    CHECK_EQ(gate_call(&worker, &headers, GATE_PAGES, sockets[0], &pass, &why), 0);
    CHECK_EQ(gate_image(&service, &pass, text("file"), &image, &why), 0);
    CHECK(image == &file);
    images_release(image);
    CHECK_EQ(gate_image(&service, &pass, text("live"), &image, &why), PF_REASON_NOT_ALLOWED);
    CHECK(image == NULL);
    CHECK_EQ(gate_image(&service, &pass, text("nobody"), &image, &why), PF_REASON_NO_SUCH_IMAGE);
    atomic_store(&service.serving, 0); /* it may come still */
    CHECK_EQ(gate_image(&service, &pass, text("nobody"), &image, &why), PF_REASON_GOING_AWAY);
    CHECK_EQ(gate_image(&service, &pass, text("file"), &image, &why), 0);
    images_release(image);
    CHECK_EQ(gate_call(&worker, &headers, GATE_LOOK, sockets[0], &pass, &why), 0);
    CHECK_EQ(gate_image(&service, &pass, text("live"), &image, &why), 0);
    images_release(image);
    CHECK_EQ(atomic_load(&live.users), 1);
    CHECK_EQ(look(&pass), 0);
    atomic_store(&service.draining, 1);
    CHECK_EQ(gate_call(&worker, &headers, GATE_LOOK, sockets[0], &pass, &why), PF_REASON_GOING_AWAY);
    end();
}

static void test_strangers_learn_nothing(void)
{
    static const char *const tokens[] = {NULL, "", "Bearer x", OTHER_TOKEN};
    struct grpc_headers unknown = {.authorization = text(TOKEN), .session = text("t"), .target = text(ONE),
                                   .epoch = text("1")};
    struct gate_pass pass;
    const char *sentence = NULL;

    begin();
    CHECK_EQ(gate_call(&worker, &unknown, GATE_ATTACH, sockets[0], &pass, &sentence), PF_REASON_NOT_ALLOWED);
    unknown.session.length = 0;
    CHECK_EQ(gate_call(&worker, &unknown, GATE_ATTACH, sockets[0], &pass, &why), PF_REASON_NOT_ALLOWED);
    CHECK(strcmp(why, sentence) == 0);
    for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++) {
        for (uint32_t wish = GATE_LOOK; wish <= GATE_ATTACH; wish++) {
            CHECK_EQ(call(&pass, wish, tokens[i], "x", "x"), PF_REASON_NOT_ALLOWED);
            CHECK(strcmp(why, sentence) == 0);
            CHECK(pass.session == NULL);
        }
    }
    no_event();
    end();
}

static void test_target_and_epoch_are_needed(void)
{
    static const char *const targets[] = {NULL, "", "1", "000000000000000g", "0000000000000000", "00000000000000001"};
    static const char *const epochs[] = {NULL, "", "0", "-1", "1x", "18446744073709551616", "99999999999999999999"};
    struct gate_pass pass;

    begin();
    for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
        CHECK_EQ(attach(&pass, targets[i], "1"), PF_REASON_BAD_REQUEST);
    for (size_t i = 0; i < sizeof(epochs) / sizeof(epochs[0]); i++)
        CHECK_EQ(attach(&pass, ONE, epochs[i]), PF_REASON_BAD_REQUEST);
    CHECK_EQ(call(&pass, GATE_LOOK, TOKEN, NULL, NULL), 0); /* describes, and is nobody */
    CHECK_EQ(call(&pass, GATE_LOOK, TOKEN, ONE, NULL), PF_REASON_BAD_REQUEST);
    no_event();
    CHECK_EQ(attach(&pass, "ABCDEFabcdef0123", "18446744073709551615"), 0);
    CHECK(pass.target == UINT64_C(0xabcdefabcdef0123) && pass.epoch == UINT64_MAX);
    end();
}

static void test_the_first_target_has_it_for_ever(void)
{
    struct gate_pass pass, second, third;

    begin();
    CHECK_EQ(call(&pass, GATE_PAGES, TOKEN, ONE, "1"), PF_REASON_WRONG_PHASE); /* nobody has attached */
    CHECK_EQ(call(&pass, GATE_LOOK, TOKEN, TWO, "1"), 0);                     /* does not attach either */
    CHECK_EQ(attach(&pass, ONE, "3"), 0);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 1, 3);
    CHECK_EQ(call(&second, GATE_PAGES, TOKEN, ONE, "3"), 0);
    CHECK_EQ(attach(&second, TWO, "9"), PF_REASON_ALREADY_ATTACHED);
    CHECK_EQ(call(&second, GATE_PAGES, TOKEN, TWO, "9"), PF_REASON_ALREADY_ATTACHED);
    CHECK_EQ(call(&second, GATE_LOOK, TOKEN, TWO, "9"), PF_REASON_ALREADY_ATTACHED);
    gate_leave(&service, &pass);
    is_event(PAGEFERRY_SERVER_EVENT_SILENT, 0, 3);
    CHECK_EQ(attach(&second, TWO, "9"), PF_REASON_ALREADY_ATTACHED);
    CHECK_EQ(set("s", "live", 0), 0); /* nor once it is over */
    CHECK_EQ(attach(&second, TWO, "9"), PF_REASON_ALREADY_ATTACHED);
    CHECK_EQ(attach(&second, ONE, "3"), PF_REASON_WRONG_PHASE);
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_PAGES), 0);
    CHECK_EQ(attach(&third, ONE, "3"), 0);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 0, 3);
    no_event();
    end();
}

static void test_a_newer_worker_ends_the_older(void)
{
    struct gate_pass urgent, bulk, newer, late;

    begin();
    CHECK_EQ(attach(&urgent, ONE, "1"), 0);
    CHECK_EQ(call(&bulk, GATE_PAGES, TOKEN, ONE, "1"), 0);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 1, 1);
    CHECK_EQ(call(&newer, GATE_LOOK, TOKEN, ONE, "2"), 0); /* to look is to change nothing */
    CHECK_EQ(look(&urgent), 0);
    CHECK_EQ(call(&newer, GATE_PAGES, TOKEN, ONE, "2"), 0);
    is_event(PAGEFERRY_SERVER_EVENT_SUPERSEDED, 0, 2);
    is_event(PAGEFERRY_SERVER_EVENT_SILENT, 0, 2);
    CHECK_EQ(look(&urgent), PF_REASON_SUPERSEDED);
    CHECK_EQ(look(&bulk), PF_REASON_SUPERSEDED);
    CHECK_EQ(look(&newer), 0);
    CHECK_EQ(attach(&late, ONE, "1"), PF_REASON_SUPERSEDED);
    CHECK_EQ(call(&late, GATE_LOOK, TOKEN, ONE, "1"), PF_REASON_SUPERSEDED);
    gate_leave(&service, &urgent); /* that is no silence of the newer one */
    no_event();
    CHECK_EQ(attach(&urgent, ONE, "7"), 0);
    is_event(PAGEFERRY_SERVER_EVENT_SUPERSEDED, 0, 7);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 0, 7);
    CHECK_EQ(look(&newer), PF_REASON_SUPERSEDED);
    no_event();
    end();
}

static void test_the_oldest_of_too_many_ends(void)
{
    struct gate_pass passes[PF_LIMIT_URGENT_CALLS_MAX + 2];
    uint32_t most = PF_LIMIT_URGENT_CALLS_MAX;

    begin();
    for (uint32_t i = 0; i < most; i++)
        CHECK_EQ(attach(&passes[i], ONE, "1"), 0);
    CHECK_EQ(look(&passes[0]), 0);
    CHECK_EQ(attach(&passes[most], ONE, "1"), 0);
    CHECK_EQ(look(&passes[0]), PF_REASON_GOING_AWAY);
    for (uint32_t i = 1; i <= most; i++)
        CHECK_EQ(look(&passes[i]), 0);
    gate_leave(&service, &passes[4]);
    CHECK_EQ(attach(&passes[most + 1], ONE, "1"), 0); /* there was room again */
    CHECK_EQ(look(&passes[1]), 0);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 1, 1);
    for (uint32_t i = 0; i < most + 2; i++) {
        no_event();
        if (i != 4)
            gate_leave(&service, &passes[i]);
    }
    is_event(PAGEFERRY_SERVER_EVENT_SILENT, 0, 1);
    end();
}

/* ------------------------------------------------------------------------------------------------ rights, images */

static void test_rights_come_and_go(void)
{
    struct gate_pass pass;

    begin();
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_ROUNDS), 0);
    CHECK_EQ(attach(&pass, ONE, "1"), PF_REASON_WRONG_PHASE);
    no_event(); /* and is bound to nobody */
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_PAGES), 0);
    CHECK_EQ(attach(&pass, ONE, "1"), 0);
    CHECK_EQ(gate_look(&service, &pass, PAGEFERRY_RIGHT_ROUNDS, &why), PF_REASON_WRONG_PHASE);
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_PAGES | PAGEFERRY_RIGHT_ROUNDS), 0);
    CHECK_EQ(gate_look(&service, &pass, PAGEFERRY_RIGHT_ROUNDS, &why), 0);
    CHECK_EQ(set("s", "live", 0), 0);
    CHECK_EQ(look(&pass), PF_REASON_WRONG_PHASE);
    CHECK_EQ(call(&pass, GATE_LOOK, TOKEN, ONE, "1"), 0);
    CHECK_EQ(look(&pass), 0);
    end();
}

static void test_a_session_opens_its_own_image_only(void)
{
    struct gate_pass pass;
    struct image *image;

    begin();
    CHECK_EQ(attach(&pass, ONE, "1"), 0);
    CHECK_EQ(gate_image(&service, &pass, text("live"), &image, &why), 0);
    images_release(image);
    CHECK_EQ(gate_image(&service, &pass, text("other"), &image, &why), PF_REASON_NOT_ALLOWED);
    CHECK_EQ(gate_image(&service, &pass, text("file"), &image, &why), PF_REASON_NOT_ALLOWED);
    CHECK_EQ(gate_image(&service, &pass, text("nobody"), &image, &why), PF_REASON_NOT_ALLOWED);
    CHECK(images_remove(&service.images, text("live")));
    CHECK_EQ(gate_image(&service, &pass, text("live"), &image, &why), PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(sessions_drop(&service.sessions, "s"), 0);
    CHECK_EQ(gate_image(&service, &pass, text("live"), &image, &why), PF_REASON_NOT_ALLOWED);
    end();
}

static void test_a_dropped_session_is_none(void)
{
    struct gate_pass pass, late;
    struct session_state state;

    begin();
    CHECK_EQ(attach(&pass, ONE, "1"), 0);
    CHECK(gate_state(&service, &pass, &state));
    CHECK_EQ(state.phase, PF_PHASE_PRECOPY);
    CHECK_EQ(sessions_drop(&service.sessions, "s"), 0);
    CHECK_EQ(sessions_drop(&service.sessions, "s"), -PF_REASON_NO_SUCH_IMAGE);
    CHECK_EQ(look(&pass), PF_REASON_NOT_ALLOWED);
    CHECK(!gate_state(&service, &pass, &state));
    CHECK_EQ(set("s", "live", PAGEFERRY_RIGHT_PAGES), 0); /* the same name, the same place, another session */
    CHECK_EQ(look(&pass), PF_REASON_NOT_ALLOWED);
    CHECK_EQ(attach(&late, TWO, "1"), 0);
    gate_settled(&service, &pass, 5, 5);
    gate_leave(&service, &pass);
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 1, 1);
    no_event();
    end();
}

static void test_what_is_no_session(void)
{
    struct pageferry_session told = {.session = "x", .image = "live"};
    char name[PF_LIMIT_SESSION_NAME_BYTES_MAX + 2];

    begin();
    CHECK_EQ(set("", "live", 0), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(set("S", "live", 0), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(set("a b", "live", 0), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(set("x", "", 0), -PF_REASON_BAD_REQUEST);
    CHECK(error[0] != 0);
    memset(name, 'a', sizeof(name));
    name[sizeof(name) - 1] = 0;
    CHECK_EQ(set(name, "live", 0), -PF_REASON_BAD_REQUEST);
    name[sizeof(name) - 2] = 0;
    CHECK_EQ(set(name, "live", 0), 0);
    CHECK_EQ(set("s", "other", 0), -PF_REASON_ALREADY_ATTACHED);
    CHECK(strstr(error, "live") != NULL);
    for (uint32_t i = 2; i < PF_LIMIT_SESSIONS_MAX; i++) {
        snprintf(name, sizeof(name), "n%u", i);
        CHECK_EQ(set(name, "live", 0), 0);
    }
    CHECK_EQ(set("one-more", "live", 0), -PF_REASON_BUSY);
    CHECK_EQ(sessions_drop(&service.sessions, "n7"), 0);
    CHECK_EQ(sessions_set(&service.sessions, &told, NULL, 0), 0);
    end();
}

/* --------------------------------------------------------------------------------------------------------- news */

static void test_news_are_kept_in_order_and_never_lost(void)
{
    struct gate_pass pass, again;

    begin();
    CHECK_EQ(attach(&pass, ONE, "1"), 0);
    for (uint64_t round = 1; round < 1000; round++)
        gate_settled(&service, &pass, round, round * 2);
    gate_leave(&service, &pass);
    CHECK_EQ(attach(&again, ONE, "2"), 0); /* it is not silent any more, and was the first and is told so */
    is_event(PAGEFERRY_SERVER_EVENT_ATTACHED, 1, 2);
    is_event(PAGEFERRY_SERVER_EVENT_ROUND, 999, 1);
    is_event(PAGEFERRY_SERVER_EVENT_SUPERSEDED, 0, 2);
    no_event();
    gate_leave(&service, &again);
    is_event(PAGEFERRY_SERVER_EVENT_SILENT, 0, 2);
    no_event();
    end();
}

static void test_the_bell_rings_while_there_is_news(void)
{
    struct gate_pass pass;
    struct pollfd ready = {.events = POLLIN};
    struct pageferry_server_event event;

    begin();
    ready.fd = service.sessions.event_fd;
    CHECK_EQ(attach(&pass, ONE, "1"), 0);
    gate_settled(&service, &pass, 7, 3);
    CHECK_EQ(poll(&ready, 1, 0), 1);
    CHECK_EQ(sessions_event(&service.sessions, &event), 1);
    CHECK_EQ(event.target, 1);
    CHECK(strcmp(event.text, "unix") == 0);
    CHECK_EQ(poll(&ready, 1, 0), 1);
    CHECK_EQ(sessions_event(&service.sessions, &event), 1);
    CHECK_EQ(event.page_count, 3);
    no_event();
    end();
}

int main(void)
{
    RUN(test_a_token_has_one_spelling);
    RUN(test_without_a_session);
    RUN(test_strangers_learn_nothing);
    RUN(test_target_and_epoch_are_needed);
    RUN(test_the_first_target_has_it_for_ever);
    RUN(test_a_newer_worker_ends_the_older);
    RUN(test_the_oldest_of_too_many_ends);
    RUN(test_rights_come_and_go);
    RUN(test_a_session_opens_its_own_image_only);
    RUN(test_a_dropped_session_is_none);
    RUN(test_what_is_no_session);
    RUN(test_news_are_kept_in_order_and_never_lost);
    RUN(test_the_bell_rings_while_there_is_news);
    return check_done();
}
