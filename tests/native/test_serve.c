/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page server through pageferry.h and sockets, spoken to by our own client role. Foreign clients, errors
 * and limits: tests/wire.
 */
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/stats.h"
#include "check.h"
#include "gen/contract.h"
#include "pageferry.h"
#include "serve_client.h"

#define PAGES 5000
#define WINDOW_BYTES PF_LIMIT_STREAM_WINDOW_BYTES

static struct pageferry_server *server;
static uint16_t port;
static struct serve_client client, other;
static struct serve_call call, urgent;

static void start_server(uint32_t threads)
{
    struct pageferry_server_options options = {.listen_fd_count = 1, .threads = threads};
    struct pageferry_image_facts facts;
    char error[PAGEFERRY_TEXT_BYTES];
    int listen_fd = serve_listen(&port), image_fd = serve_image(PAGES);

    options.listen_fds = &listen_fd;
    CHECK_EQ(pageferry_server_open(&options, &server), 0);
    CHECK_EQ(pageferry_image_inspect(image_fd, NULL, NULL, &facts, error, sizeof(error)), 0);
    CHECK_EQ(pageferry_server_add_file(server, "vm", image_fd, &facts, &facts.page_count, 1, NULL, 0, error,
                                       sizeof(error)), 0);
    serve_content_id = facts.content_id;
    pageferry_server_health(server, 1);
    close(listen_fd); /* the server has its own */
    close(image_fd);
}

static void open_client(void)
{
    serve_open(&client, serve_connect(port), WINDOW_BYTES);
}

static void stop(void)
{
    serve_close(&client);
    pageferry_server_close(server);
    server = NULL;
}

static uint64_t counter(enum stats_counter which)
{
    uint64_t values[STATS_COUNTER_COUNT];

    CHECK_EQ(pageferry_server_counters(server, values, STATS_COUNTER_COUNT), STATS_COUNTER_COUNT);
    return values[which];
}

static void ended_well(const struct serve_call *ended)
{
    CHECK(ended->ended);
    CHECK_EQ(ended->status.code, GRPC_OK);
    CHECK_EQ(ended->wrong, 0);
}

/* ------------------------------------------------------------------------------------------- four methods */

static void test_describe_and_get(void)
{
    start_server(0);
    open_client();
    serve_start(&call, &client, PF_PATH_DESCRIBE_IMAGE);
    serve_describe(&call, "vm");
    CHECK(SERVE_UNTIL(&client, call.ended));
    ended_well(&call);
    CHECK_EQ(call.described.page_count, PAGES);
    CHECK(call.described.content_id == serve_content_id);
    for (uint64_t page = 65; page < 75; page++) {
        serve_start(&call, &client, PF_PATH_GET_PAGE);
        serve_get(&call, "vm", page);
        CHECK(SERVE_UNTIL(&client, call.ended));
        ended_well(&call);
        CHECK_EQ(call.pages, 1);
        CHECK_EQ(call.last_run.first_page, page);
    }
    stop();
}

static void test_a_thousand_faults(void)
{
    start_server(0);
    open_client();
    serve_start(&urgent, &client, PF_PATH_FETCH_PAGES);
    serve_ask(&urgent, "vm", 0, 0, 0, false);
    CHECK(SERVE_UNTIL(&client, urgent.batches == 1));
    CHECK_EQ(urgent.last_run_count, 0);
    for (uint64_t i = 1; i <= 1000; i++) {
        uint64_t page = i * 7919 % PAGES;
        serve_ask(&urgent, NULL, page, 1, 0, false);
        if (!SERVE_UNTIL(&client, urgent.pages == i || urgent.ended))
            break;
        CHECK_EQ(urgent.last_run.first_page, page);
    }
    serve_ask(&urgent, NULL, 0, 0, 99, true);
    CHECK(SERVE_UNTIL(&client, urgent.ended));
    ended_well(&urgent);
    CHECK_EQ(urgent.pages, 1000);
    CHECK_EQ(urgent.heartbeat, 99);
    CHECK_EQ(counter(STATS_asked_pages_total), 1000);
    CHECK_EQ(counter(STATS_sent_pages_total) + counter(STATS_sent_zero_pages_total), 1000);
    stop();
}

static void test_the_whole_image(void)
{
    start_server(0);
    open_client();
    serve_start(&call, &client, PF_PATH_STREAM_PAGES);
    serve_stream(&call, "vm", 0, 0);
    CHECK(SERVE_UNTIL(&client, call.ended));
    ended_well(&call);
    CHECK_EQ(call.pages, PAGES);
    CHECK_EQ(counter(STATS_sent_pages_total), PAGES * 7 / 10);
    stop();
}

/* ----------------------------------------------------------------------------------------------- fairness */

/*
 * An urgent page must not wait for what the server could write of bulk in one go, on its connection or on
 * another of the same thread. Bulk has a window that holds the whole image here, so what bounds it is the
 * budget of a turn alone: without it all 55 batches come first.
 */
static void asks_meanwhile(struct serve_client *const *clients, uint32_t count)
{
    uint32_t overtaken = 0;

    for (uint64_t i = 1; i <= 20; i++) {
        uint32_t before = call.batches, turns = 0;
        serve_ask(&urgent, NULL, i * 101, 1, 0, false);
        while (urgent.pages < i && !urgent.ended && turns++ < 2000)
            serve_turn(clients, count, 10);
        CHECK_EQ(urgent.pages, i);
        CHECK(call.batches - before <= 32); /* how many also hangs on when this thread gets to run */
        overtaken += call.batches - before > 8;
    }
    CHECK(overtaken <= 2); /* so one or two may be unlucky, the others wait for a few */
}

static void test_an_urgent_page_overtakes_bulk(bool one_connection)
{
    struct serve_client *clients[] = {&client, &other};

    start_server(1);
    serve_open(&client, serve_connect(port), 16 << 20);
    serve_open(&other, serve_connect(port), WINDOW_BYTES);
    serve_start(&urgent, one_connection ? &client : &other, PF_PATH_FETCH_PAGES);
    serve_ask(&urgent, "vm", 0, 0, 0, false);
    for (int i = 0; i < 2000 && urgent.batches == 0; i++)
        serve_turn(clients, 2, 10);
    serve_start(&call, &client, PF_PATH_STREAM_PAGES);
    serve_stream(&call, "vm", 0, 0);
    for (int i = 0; i < 2000 && call.batches == 0; i++)
        serve_turn(clients, 2, 10);
    asks_meanwhile(clients, 2);
    CHECK_EQ(urgent.wrong + call.wrong, 0);
    serve_close(&other);
    stop();
}

static void test_an_urgent_page_overtakes_bulk_on_its_connection(void)
{
    test_an_urgent_page_overtakes_bulk(true);
}

static void test_an_urgent_page_overtakes_bulk_of_another_connection(void)
{
    test_an_urgent_page_overtakes_bulk(false);
}

static void test_a_stalled_reader_costs_one_batch(void)
{
    start_server(1);
    open_client();
    serve_open(&other, serve_connect(port), 20000);
    serve_start(&call, &other, PF_PATH_STREAM_PAGES);
    serve_stream(&call, "vm", 0, 0);
    serve_turn(&(struct serve_client *){&other}, 1, 0); /* asks, and reads no more */
    serve_start(&urgent, &client, PF_PATH_GET_PAGE);
    serve_get(&urgent, "vm", 5);
    CHECK(SERVE_UNTIL(&client, urgent.ended));
    ended_well(&urgent);
    for (int i = 0; i < 50; i++) {
        serve_start(&urgent, &client, PF_PATH_GET_PAGE);
        serve_get(&urgent, "vm", 5);
        CHECK(SERVE_UNTIL(&client, urgent.ended));
    }
    CHECK(counter(STATS_sent_pages_total) <= 51 + 64);
    serve_close(&other);
    stop();
}

/* ------------------------------------------------------------------------------------- many, broken, gone */

static void test_many_clients_and_workers(void)
{
    static struct serve_client many[40];
    static struct serve_call calls[40];
    struct serve_client *clients[40];
    uint32_t open = 40;

    start_server(4);
    for (int i = 0; i < 40; i++) {
        clients[i] = &many[i];
        serve_open(&many[i], serve_connect(port), WINDOW_BYTES);
        serve_start(&calls[i], &many[i], PF_PATH_STREAM_PAGES);
        serve_stream(&calls[i], "vm", (uint64_t)i * 100, 200);
    }
    for (int turns = 0; turns < 2000 && open > 0; turns++) {
        serve_turn(clients, 40, 10);
        open = 0;
        for (int i = 0; i < 40; i++)
            open += !calls[i].ended;
    }
    for (int i = 0; i < 40; i++) {
        ended_well(&calls[i]);
        CHECK_EQ(calls[i].pages, 200);
        serve_close(&many[i]);
    }
    CHECK_EQ(counter(STATS_connections_total), 40);
    pageferry_server_close(server);
}

/* A name that does not end, a client that is none, one that speaks TLS: closed, and nobody else notices. */
static void test_what_speaks_no_http2(void)
{
    static const char *const words[] = {"GET / HTTP/1.1\r\n\r\n",
                                        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\0\0\0\0"};
    char answer[4096];

    start_server(1);
    open_client();
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        int fd = serve_connect(port);
        char noise[512] = {0};
        memcpy(noise, words[i], strlen(words[i]));
        CHECK(send(fd, noise, sizeof(noise), MSG_NOSIGNAL) == (ssize_t)sizeof(noise));
        while (recv(fd, answer, sizeof(answer), 0) > 0)
            continue;
        close(fd);
    }
    serve_start(&call, &client, PF_PATH_GET_PAGE);
    serve_get(&call, "vm", 5);
    CHECK(SERVE_UNTIL(&client, call.ended));
    ended_well(&call);
    stop();
}

static void test_a_client_that_vanishes(void)
{
    start_server(1);
    open_client();
    for (int i = 0; i < 20; i++) {
        serve_open(&other, serve_connect(port), 20000);
        serve_start(&call, &other, PF_PATH_STREAM_PAGES);
        serve_stream(&call, "vm", 0, 0);
        CHECK(SERVE_UNTIL(&other, pageferry_server_open_calls(server) > 0));
        serve_close(&other);
        CHECK(SERVE_UNTIL(&client, pageferry_server_open_calls(server) == 0));
    }
    CHECK_EQ(counter(STATS_calls_failed_total), 20);
    CHECK_EQ(counter(STATS_calls_open), 0);
    stop();
}

/* ------------------------------------------------------------------------------------------ start and end */

static void test_a_drain(void)
{
    start_server(2);
    open_client();
    serve_start(&urgent, &client, PF_PATH_FETCH_PAGES);
    serve_ask(&urgent, "vm", 0, 3000, 0, false);
    CHECK(SERVE_UNTIL(&client, urgent.pages > 0));
    CHECK_EQ(pageferry_server_open_calls(server), 1);
    pageferry_server_drain(server);
    CHECK(SERVE_UNTIL(&client, urgent.ended));
    CHECK_EQ(urgent.pages, 3000); /* what was owed */
    CHECK_EQ(urgent.status.reason, PF_REASON_GOING_AWAY);
    CHECK(SERVE_UNTIL(&client, grpc_going_away(conn_session(client.conn))));
    CHECK(SERVE_UNTIL(&client, pageferry_server_open_calls(server) == 0));
    serve_open(&other, serve_connect(port), WINDOW_BYTES);
    serve_start(&call, &other, PF_PATH_GET_PAGE);
    serve_get(&call, "vm", 1);
    CHECK(SERVE_UNTIL(&other, call.ended));
    CHECK_EQ(call.status.reason, PF_REASON_GOING_AWAY);
    CHECK_EQ(call.status.code, GRPC_UNAVAILABLE);
    serve_close(&other);
    stop();
}

/* A reader that lags: when the count is 0, closing takes back nothing of what it was owed. */
static void test_after_a_drain_closing_loses_nothing(void)
{
    int fd = 0, small = 32768;

    start_server(1);
    fd = serve_connect(port);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small)), 0);
    serve_open(&client, fd, 16 << 20);
    serve_start(&call, &client, PF_PATH_STREAM_PAGES);
    serve_stream(&call, "vm", 0, 0);
    CHECK(SERVE_UNTIL(&client, call.batches > 0));
    pageferry_server_drain(server);
    CHECK(SERVE_UNTIL(&client, pageferry_server_open_calls(server) == 0));
    pageferry_server_close(server);
    CHECK(SERVE_UNTIL(&client, call.ended));
    ended_well(&call);
    CHECK_EQ(call.pages, PAGES);
    serve_close(&client);
}

static int count_entries(const char *path)
{
    DIR *folder = opendir(path);
    int count = 0;

    while (folder != NULL && readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void test_nothing_is_left_behind(void)
{
    int fds = 0, threads = 0;

    for (int i = 0; i < 20; i++) {
        start_server(3);
        open_client();
        serve_start(&call, &client, PF_PATH_STREAM_PAGES);
        serve_stream(&call, "vm", 0, 0);
        CHECK(SERVE_UNTIL(&client, call.batches > 0));
        pageferry_server_close(server); /* in the middle of it */
        CHECK(SERVE_UNTIL(&client, client.error != 0 || call.ended));
        serve_close(&client);
        CHECK(call.ended);
        CHECK_EQ(call.wrong, 0);
        fds = i == 0 ? count_entries("/proc/self/fd") : fds;
        threads = i == 0 ? count_entries("/proc/self/task") : threads;
    }
    CHECK_EQ(count_entries("/proc/self/fd"), fds);
    CHECK_EQ(count_entries("/proc/self/task"), threads);
}

static void not_opened(const int *fds, uint32_t count, uint32_t threads, const char *words)
{
    struct pageferry_server_options options = {.listen_fds = fds, .listen_fd_count = count,
                                               .threads = threads};
    struct pageferry_server *none = (struct pageferry_server *)1;

    CHECK_EQ(pageferry_server_open(&options, &none), -PF_REASON_BAD_REQUEST);
    CHECK(none == NULL);
    CHECK(strstr(options.error, words) != NULL);
}

static void test_what_cannot_be_opened(void)
{
    uint16_t unused;
    int good = serve_listen(&unused), mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC,
                                                    0), file = serve_image(1);
    int fds = count_entries("/proc/self/fd");

    not_opened(NULL, 0, 1, "1 to 16");
    not_opened(&good, 17, 1, "1 to 16");
    not_opened((int[]){good, mute}, 2, 1, "cannot be used");
    not_opened((int[]){good, file}, 2, 1, "cannot be used");
    not_opened((int[]){-1}, 1, 1, "cannot be used");
    not_opened(&good, 1, 65, "more than make sense");
    CHECK_EQ(count_entries("/proc/self/fd"), fds);
    close(good);
    close(mute);
    close(file);
}

static void test_counters_have_histograms_beside_them(void)
{
    uint64_t values[STATS_HISTOGRAM_VALUES];

    start_server(2);
    open_client();
    CHECK_EQ(pageferry_server_counters(server, NULL, 0), STATS_COUNTER_COUNT);
    CHECK_EQ(pageferry_server_histogram(server, 0, values, STATS_HISTOGRAM_VALUES), STATS_HISTOGRAM_VALUES);
    CHECK_EQ(pageferry_server_histogram(server, STATS_HISTOGRAM_COUNT, values, STATS_HISTOGRAM_VALUES), 0);
    stop();
}

int main(void)
{
    RUN(test_describe_and_get);
    RUN(test_a_thousand_faults);
    RUN(test_the_whole_image);
    RUN(test_an_urgent_page_overtakes_bulk_on_its_connection);
    RUN(test_an_urgent_page_overtakes_bulk_of_another_connection);
    RUN(test_a_stalled_reader_costs_one_batch);
    RUN(test_many_clients_and_workers);
    RUN(test_what_speaks_no_http2);
    RUN(test_a_client_that_vanishes);
    RUN(test_a_drain);
    RUN(test_after_a_drain_closing_loses_nothing);
    RUN(test_nothing_is_left_behind);
    RUN(test_what_cannot_be_opened);
    RUN(test_counters_have_histograms_beside_them);
    return check_done();
}
