/* SPDX-License-Identifier: Apache-2.0 */
/* See serve_client.h. */
#include "serve_client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gen/contract.h"
#include "rpc/payload.h"

#define BUDGET_BYTES 65536
#define CLIENTS_MAX 80

uint64_t serve_content_id;

static void must(bool good, const char *what)
{
    if (!good) {
        printf("%s: %s\n", what, strerror(errno));
        exit(1);
    }
}

/* ---------------------------------------------------------------------------------------------- the image */

bool serve_holds(uint64_t page)
{
    return page % 100 < 70; /* and thirty pages of hole */
}

void serve_page(uint64_t page, uint8_t *bytes)
{
    for (size_t i = 0; i < IMAGE_PAGE_BYTES; i += sizeof(page))
        memcpy(bytes + i, &(uint64_t){page + 1 + i}, sizeof(page));
}

int serve_image(uint64_t page_count)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    uint8_t bytes[IMAGE_PAGE_BYTES];

    must(fd >= 0 && ftruncate(fd, (off_t)(page_count * IMAGE_PAGE_BYTES)) == 0, "image");
    for (uint64_t page = 0; page < page_count; page++) {
        serve_page(page, bytes);
        if (serve_holds(page))
            must(pwrite(fd, bytes, sizeof(bytes),
                        (off_t)(page * IMAGE_PAGE_BYTES)) == (ssize_t)sizeof(bytes), "image");
    }
    return fd;
}

/* ---------------------------------------------------------------------------------------------- callbacks */

static void check_run(struct serve_call *call, const struct run *run, const uint8_t **data)
{
    uint8_t want[IMAGE_PAGE_BYTES];

    call->pages += run->page_count;
    call->wrong += run->version != PF_LIMIT_IMMUTABLE_VERSION;
    for (uint64_t page = run->first_page; page < run->first_page + run->page_count; page++) {
        if (run->kind == PF_RUN_KIND_DATA) {
            serve_page(page, want);
            call->wrong += !serve_holds(page) || memcmp(*data, want, sizeof(want)) != 0;
            *data += IMAGE_PAGE_BYTES;
        } else {
            call->wrong += run->kind != PF_RUN_KIND_ZERO || serve_holds(page);
        }
    }
}

static void note_live(struct serve_call *call, struct grpc_bytes message, struct run *runs)
{
    struct page_batch batch = {.runs = runs};
    uint64_t data_pages;

    if (read_page_batch(message, runs, PF_LIMIT_RUNS_MAX, &batch) != 0 || batch.as_of == 0 ||
        (batch.run_count > 0 && payload_check(serve_content_id, &batch, &data_pages) != 0)) {
        call->wrong++;
        return;
    }
    call->batches++;
    call->as_of = batch.as_of;
    call->phase = batch.phase != 0 ? batch.phase : call->phase;
    call->manifest = call->manifest || batch.manifest_digest.length > 0;
    for (uint32_t i = 0; i < batch.run_count; i++)
        call->named[runs[i].kind] += runs[i].page_count;
}

static int on_message(void *owner, struct grpc_call *grpc, struct grpc_bytes message)
{
    static struct run runs[PF_LIMIT_RUNS_MAX];
    struct serve_call *call = grpc_user(grpc);
    struct page_batch batch = {.runs = runs};
    uint64_t data_pages;
    const uint8_t *data;

    (void)owner;
    if (call->live) {
        note_live(call, message, runs);
        return 0;
    }
    if (read_page_batch(message, runs, PF_LIMIT_RUNS_MAX, &batch) != 0 ||
        batch.as_of != PF_LIMIT_IMMUTABLE_VERSION) {
        call->wrong += read_describe_response(message, &call->described) != 0;
        return 0;
    }
    call->batches++;
    call->last_run_count = batch.run_count;
    if (batch.heartbeat != 0)
        call->heartbeat = batch.heartbeat;
    if (batch.run_count > 0) {
        call->last_run = runs[0];
        call->wrong += payload_check(serve_content_id, &batch, &data_pages) != 0;
        data = batch.data.data;
        for (uint32_t i = 0; i < batch.run_count; i++)
            check_run(call, &runs[i], &data);
    }
    return 0;
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct serve_call *call = grpc_user(grpc);

    (void)owner;
    if (call->request_length > 0) {
        *message = (struct grpc_bytes){call->request, call->request_length};
        call->request_length = 0;
        return GRPC_PULLED_MESSAGE;
    }
    return call->half_close ? GRPC_PULLED_LAST : GRPC_PULLED_NOTHING;
}

static void on_ended(void *owner, struct grpc_call *grpc, const struct grpc_status *status)
{
    struct serve_call *call = grpc_user(grpc);

    (void)owner;
    call->ended = true;
    call->status = *status;
    call->grpc = NULL;
}

static const struct grpc_owner callbacks = {.message = on_message, .pull = on_pull, .ended = on_ended};

/* -------------------------------------------------------------------------------------------- connections */

int serve_listen(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    must(fd >= 0 && bind(fd, (struct sockaddr *)&address, length) == 0 && listen(fd, 64) == 0, "listen");
    must(getsockname(fd, (struct sockaddr *)&address, &length) == 0, "getsockname");
    *port = ntohs(address.sin_port);
    return fd;
}

int serve_connect(uint16_t port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    address.sin_port = htons(port);
    must(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0, "connect");
    return fd;
}

void serve_open(struct serve_client *client, int fd, uint32_t window_bytes)
{
    uint32_t least = PF_LIMIT_CONNECTION_WINDOW_BYTES, larger = window_bytes > least ? window_bytes : least;
    struct grpc_settings settings = {
        .message_bytes_max = PF_LIMIT_BATCH_MESSAGE_BYTES_MAX,
        .stream_window_bytes = window_bytes,
        .connection_window_bytes = larger,
        .header_bytes_max = PF_LIMIT_METADATA_BYTES_MAX,
        .authority = "test",
    };

    client->error = 0;
    must(fcntl(fd, F_SETFL, O_NONBLOCK) == 0, "fcntl");
    must(conn_open(fd, GRPC_CLIENT, &settings, &callbacks, client, &client->conn) == 0, "conn_open");
}

void serve_close(struct serve_client *client)
{
    conn_close(client->conn);
    client->conn = NULL;
}

void serve_turn(struct serve_client *const *clients, uint32_t count, int wait_ms)
{
    struct pollfd ready[CLIENTS_MAX];

    must(count <= CLIENTS_MAX, "too many clients");
    for (uint32_t i = 0; i < count; i++) {
        int rc = clients[i]->error == 0 ? conn_write(clients[i]->conn, BUDGET_BYTES) : 0;
        clients[i]->error = rc < 0 ? rc : clients[i]->error;
        ready[i] = (struct pollfd){.fd = clients[i]->error == 0 ? conn_fd(clients[i]->conn) : -1,
                                   .events = (short)(rc == 1 ? POLLIN | POLLOUT : POLLIN)};
    }
    must(poll(ready, count, wait_ms) >= 0, "poll");
    for (uint32_t i = 0; i < count; i++) {
        int rc = (ready[i].revents & ~POLLOUT) != 0 ? conn_read(clients[i]->conn) : 0;
        clients[i]->error = rc < 0 ? rc : clients[i]->error;
    }
}

/* -------------------------------------------------------------------------------------------------- calls */

void serve_start_as(struct serve_call *call, struct serve_client *client, const char *path,
                    const struct grpc_headers *who)
{
    memset(call, 0, sizeof(*call));
    call->client = client;
    call->live = who != NULL;
    call->grpc = grpc_start_as(conn_session(client->conn), path, who, call);
    must(call->grpc != NULL, "grpc_start");
}

void serve_start(struct serve_call *call, struct serve_client *client, const char *path)
{
    serve_start_as(call, client, path, NULL);
}

void serve_say(struct serve_call *call, size_t length, bool half_close)
{
    call->request_length = length;
    call->half_close = half_close;
    if (call->grpc != NULL)
        grpc_resume(call->grpc);
}

static struct grpc_bytes text(const char *name)
{
    return (struct grpc_bytes){(const uint8_t *)name, name == NULL ? 0 : strlen(name)};
}

void serve_ask(struct serve_call *call, const char *image, uint64_t first_page, uint64_t page_count,
               uint64_t heartbeat,
               bool half_close)
{
    struct run run = {.first_page = first_page, .page_count = page_count};
    struct fetch_request request = {.image = text(image), .runs = &run, .run_count = page_count > 0,
                                    .heartbeat = heartbeat};

    serve_say(call, write_fetch_request(&request, call->request, sizeof(call->request)), half_close);
}

void serve_stream(struct serve_call *call, const char *image, uint64_t first_page, uint64_t page_count)
{
    struct run run = {.first_page = first_page, .page_count = page_count};
    struct stream_request request = {.image = text(image), .runs = &run, .run_count = page_count > 0};

    serve_say(call, write_stream_request(&request, call->request, sizeof(call->request)), true);
}

void serve_map(struct serve_call *call, const char *image, uint64_t since, bool open_round)
{
    struct stream_request request = {.image = text(image), .since_version = since, .versions_only = true,
                                     .open_round = open_round};

    serve_say(call, write_stream_request(&request, call->request, sizeof(call->request)), true);
}

void serve_get(struct serve_call *call, const char *image, uint64_t page)
{
    struct get_page_request request = {.image = text(image), .page = page};

    serve_say(call, write_get_page_request(&request, call->request, sizeof(call->request)), true);
}

void serve_describe(struct serve_call *call, const char *image)
{
    struct describe_request request = {.image = text(image)};

    serve_say(call, write_describe_request(&request, call->request, sizeof(call->request)), true);
}
