/* SPDX-License-Identifier: Apache-2.0 */
/* See client_server.h. */
#include "client_server.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/manifest.h"
#include "gen/contract.h"
#include "real_vm.h"
#include "rpc/conn.h"
#include "rpc/messages.h"
#include "rpc/payload.h"
#include "rpc_pair.h"
#include "serve_client.h"

#define CONNECTIONS_MAX 32
#define QUEUE_MAX 16384
#define HEAD_BYTES 8192
#define BATCH_PAGES_MAX 256

enum kind { KIND_DESCRIBE = 1, KIND_FETCH, KIND_STREAM };

struct call {
    enum kind kind;
    struct server *server;
    struct call *next; /* of all */
    bool begun, told, half_closed, finished;
    bool map, open_first;
    uint64_t since, as_of, next_page;
    uint64_t heartbeat;
    uint64_t queue[QUEUE_MAX];
    uint32_t put, taken;
    uint8_t bytes[HEAD_BYTES + BATCH_PAGES_MAX * 4096];
};

struct connection {
    struct server *server;
    struct conn *conn;
};

bool server_holds(uint64_t page)
{
    return page % 100 < 70;
}

/* True so many times as `left` says. */
static bool once_more(_Atomic uint32_t *left)
{
    uint32_t now = atomic_load(left);

    if (now > 0)
        atomic_store(left, now - 1);
    return now > 0;
}

/* ---------------------------------------------------------------------------------------------------- a live image */

static void set_as_of(struct server *server, uint64_t incarnation, uint64_t round)
{
    atomic_store(&server->will.as_of, incarnation << 32 | round);
}

void server_live(struct server *server)
{
    atomic_store(&server->will.live, 1);
    atomic_store(&server->will.phase, PF_PHASE_PRECOPY);
    set_as_of(server, 1, 0);
    for (uint64_t page = 0; page < SERVER_PAGES; page++) {
        atomic_store(&server->pages[page].word, server_holds(page) ? page + 1 : 0);
        atomic_store(&server->pages[page].dirty, 1);
    }
}

void server_write(struct server *server, uint64_t page, uint64_t word)
{
    atomic_store(&server->pages[page].word, word);
    atomic_store(&server->pages[page].dirty, 1);
}

void server_round(struct server *server)
{
    uint64_t as_of = atomic_load(&server->will.as_of) + 1;

    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        if (atomic_exchange(&server->pages[page].dirty, 0))
            atomic_store(&server->pages[page].version, as_of);
    atomic_store(&server->will.as_of, as_of);
}

void server_restarted(struct server *server)
{
    set_as_of(server, (atomic_load(&server->will.as_of) >> 32) + 1, 0);
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        atomic_store(&server->pages[page].dirty, 1);
}

void server_manifest(struct server *server, uint8_t digest[16])
{
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        sum += manifest_of(page, atomic_load(&server->pages[page].version));
    manifest_digest(sum, digest);
}

static bool is_live(const struct server *server)
{
    return atomic_load(&server->will.live) != 0;
}

/* To be had before the bytes. */
static uint64_t version_of(struct server *server, uint64_t page)
{
    return is_live(server) ? atomic_load(&server->pages[page % SERVER_PAGES].version) : PF_LIMIT_IMMUTABLE_VERSION;
}

static uint64_t word_of(struct server *server, uint64_t page)
{
    if (is_live(server))
        return atomic_load(&server->pages[page % SERVER_PAGES].word);
    return server_holds(page) ? page + 1 : 0;
}

static bool says_who(const struct grpc_headers *headers)
{
    char target[17], epoch[21];

    snprintf(target, sizeof(target), "%016llx", (unsigned long long)SERVER_TARGET);
    snprintf(epoch, sizeof(epoch), "%d", SERVER_EPOCH);
    return grpc_is_text(headers->authorization, "Bearer " SERVER_TOKEN) &&
           grpc_is_text(headers->session, SERVER_SESSION) && grpc_is_text(headers->target, target) &&
           grpc_is_text(headers->epoch, epoch);
}

static void finish(struct call *call, struct grpc_call *grpc, uint32_t reason)
{
    struct grpc_status status = {.reason = reason};

    call->finished = true;
    grpc_finish(grpc, &status);
}

/* ------------------------------------------------------------------------------------------------------- batches */

static bool is_poisoned(struct server_will *will, uint64_t page)
{
    return page + 1 == atomic_load(&will->poison_page) || atomic_load(&will->poisoned[page % SERVER_PAGES]) != 0;
}

static enum pf_run_kind kind_of(struct server_will *will, uint64_t page, uint64_t word)
{
    enum pf_run_kind kind = word != 0 ? PF_RUN_KIND_DATA : PF_RUN_KIND_ZERO;

    if (is_poisoned(will, page))
        kind = PF_RUN_KIND_POISON;
    else if (page + 1 == atomic_load(&will->later_page) && once_more(&will->later_times))
        kind = PF_RUN_KIND_LATER;
    return kind;
}

static void send_batch(struct call *call, const uint64_t *pages, uint32_t count, bool bad, struct grpc_bytes *message)
{
    struct run runs[BATCH_PAGES_MAX];
    struct server_will *will = &call->server->will;
    struct page_batch batch = {.as_of = is_live(call->server) ? atomic_load(&will->as_of) : PF_LIMIT_IMMUTABLE_VERSION,
                               .runs = runs, .encoding = PF_ENCODING_IDENTITY, .heartbeat = call->heartbeat};
    uint8_t manifest[16];
    uint64_t content_id = atomic_load(&will->content_id);
    uint8_t *data = call->bytes + HEAD_BYTES;
    size_t head;

    call->heartbeat = 0;
    batch.data.data = data;
    for (uint32_t i = 0; i < count; i++) {
        struct run *last = &runs[batch.run_count == 0 ? 0 : batch.run_count - 1];
        uint64_t version = version_of(call->server, pages[i]), word = word_of(call->server, pages[i]);
        enum pf_run_kind kind = kind_of(will, pages[i], word);
        if (kind == PF_RUN_KIND_DATA) {
            real_fill(data + batch.data.length, 1, word);
            batch.data.length += 4096;
        }
        if (batch.run_count > 0 && last->kind == kind && last->version == version &&
            last->first_page + last->page_count == pages[i])
            last->page_count++;
        else
            runs[batch.run_count++] = (struct run){pages[i], 1, kind, version};
    }
    if (count == 0 && call->kind == KIND_FETCH) {
        batch.phase = atomic_load(&will->phase);
        batch.cancel_requested = atomic_load(&will->cancel) != 0;
        if (atomic_load(&will->manifest) != 0) {
            server_manifest(call->server, manifest);
            manifest[0] ^= atomic_load(&will->manifest) == 2;
            batch.manifest_digest = (struct grpc_bytes){manifest, sizeof(manifest)};
        }
    }
    if (count > 0)
        batch.digest = payload_digest(content_id, runs, batch.run_count, batch.data) + bad;
    head = write_page_batch_head(&batch, call->bytes, HEAD_BYTES);
    memmove(data - head, call->bytes, head);
    *message = (struct grpc_bytes){data - head, head + batch.data.length};
}

/* All pages of the image, with the page that was asked. */
static void send_all(struct call *call, struct grpc_bytes *message)
{
    struct server_will *will = &call->server->will;
    struct run run = {.page_count = atomic_load(&will->page_count), .kind = atomic_load(&will->fetch_all_kind),
                      .version = PF_LIMIT_IMMUTABLE_VERSION};
    struct page_batch batch = {.as_of = PF_LIMIT_IMMUTABLE_VERSION, .runs = &run, .run_count = 1,
                               .encoding = PF_ENCODING_IDENTITY};

    batch.digest = payload_digest(atomic_load(&will->content_id), &run, 1, batch.data);
    *message = (struct grpc_bytes){call->bytes, write_page_batch_head(&batch, call->bytes, HEAD_BYTES)};
}

static uint32_t take_pages(struct call *call, uint64_t *pages, uint32_t most)
{
    uint32_t count = 0;

    while (count < most && call->taken != call->put)
        pages[count++] = call->queue[call->taken++ % QUEUE_MAX];
    return count;
}

/* ------------------------------------------------------------------------------------------------------- methods */

static enum grpc_pulled pull_describe(struct call *call, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct server_will *will = &call->server->will;
    struct describe_response response = {
        .content_id = atomic_load(&will->content_id),
        .page_count = atomic_load(&will->page_count),
        .page_bytes = 4096,
        .unit_pages = 1,
        .region_pages = {atomic_load(&will->page_count)},
        .region_count = 1,
        .live = atomic_load(&will->live) != 0,
        .as_of = atomic_load(&will->as_of),
        .batch_bytes_max = 1 << 20,
        .runs_max = PF_LIMIT_RUNS_MAX,
        .wanted_pages_max = atomic_load(&will->wanted_pages_max),
        .encodings = 2,
    };

    if (atomic_load(&will->describe_mute) || !call->half_closed)
        return GRPC_PULLED_NOTHING;
    if (atomic_load(&will->describe_reason) != 0) {
        finish(call, grpc, atomic_load(&will->describe_reason));
        return GRPC_PULLED_LAST;
    }
    if (call->told || (call->begun && !atomic_load(&will->describe_twice)) || atomic_load(&will->describe_empty)) {
        finish(call, grpc, 0);
        return GRPC_PULLED_LAST;
    }
    call->told = call->begun;
    call->begun = true;
    *message = (struct grpc_bytes){call->bytes, write_describe_response(&response, call->bytes, HEAD_BYTES)};
    return GRPC_PULLED_MESSAGE;
}

static enum grpc_pulled pull_fetch(struct call *call, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct server_will *will = &call->server->will;
    uint64_t pages[2];
    uint32_t count;

    if (atomic_load(&will->fetch_reason) != 0) {
        finish(call, grpc, atomic_load(&will->fetch_reason));
        return GRPC_PULLED_LAST;
    }
    if (!call->begun || (call->heartbeat != 0 && !atomic_load(&will->fetch_no_echo))) {
        call->begun = true;
        send_batch(call, NULL, 0, false, message);
        return GRPC_PULLED_MESSAGE;
    }
    count = atomic_load(&will->fetch_mute) ? 0 : take_pages(call, pages, 1);
    if (count == 0)
        return GRPC_PULLED_NOTHING;
    if (atomic_load(&will->fetch_end_after) == 1) {
        atomic_store(&will->fetch_end_after, 0);
        finish(call, grpc, PF_REASON_BUSY);
        return GRPC_PULLED_LAST;
    }
    once_more(&will->fetch_end_after);
    if (once_more(&will->fetch_all)) {
        send_all(call, message);
        return GRPC_PULLED_MESSAGE;
    }
    if (atomic_load(&will->fetch_unasked) && pages[0] + 1 < SERVER_PAGES)
        pages[count++] = pages[0] + 1;
    if (once_more(&will->fetch_outside))
        pages[0] = atomic_load(&will->page_count) + 5;
    send_batch(call, pages, count, once_more(&will->fetch_bad_digests), message);
    if (once_more(&will->fetch_garbage))
        memset(call->bytes + HEAD_BYTES - 8, 0xff, 8), message->length = 8,
            message->data = call->bytes + HEAD_BYTES - 8;
    return GRPC_PULLED_MESSAGE;
}

/* The map from next_page on, as far as one message goes. */
static void send_map(struct call *call, struct grpc_bytes *message)
{
    struct run runs[SERVER_PAGES];
    struct server_will *will = &call->server->will;
    struct page_batch batch = {.as_of = call->as_of, .runs = runs};
    uint32_t runs_max = atomic_load(&will->map_runs);

    for (; call->next_page < SERVER_PAGES; call->next_page++) {
        struct run *last = &runs[batch.run_count == 0 ? 0 : batch.run_count - 1];
        uint64_t page = call->next_page, version = version_of(call->server, page);
        enum pf_run_kind kind = word_of(call->server, page) != 0 ? PF_RUN_KIND_VERSION : PF_RUN_KIND_ZERO;
        if (is_poisoned(will, page))
            kind = PF_RUN_KIND_POISON;
        if (version <= call->since)
            continue;
        if (batch.run_count > 0 && last->kind == kind && last->version == version &&
            last->first_page + last->page_count == page)
            last->page_count++;
        else if (runs_max != 0 && batch.run_count == runs_max)
            break;
        else
            runs[batch.run_count++] = (struct run){page, 1, kind, version};
    }
    switch (once_more(&will->map_garbage) ? atomic_load(&will->map_garbage) % 3 : 3) {
    case 0:
        batch.as_of = 0;
        break;
    case 1:
        runs[0].kind = PF_RUN_KIND_DATA;
        break;
    case 2:
        call->next_page = 0; /* the next message names it all once more */
        break;
    }
    if (batch.run_count > 0)
        batch.digest = payload_digest(atomic_load(&will->content_id), runs, batch.run_count, batch.data) +
                       once_more(&will->map_bad_digests);
    *message = (struct grpc_bytes){call->bytes, write_page_batch_head(&batch, call->bytes, sizeof(call->bytes))};
}

static enum grpc_pulled pull_map(struct call *call, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct server_will *will = &call->server->will;
    uint32_t reason = atomic_load(&will->round_reason);

    if (!call->half_closed)
        return GRPC_PULLED_NOTHING;
    if (reason != 0 && !call->begun && (reason != PF_REASON_BUSY || once_more(&will->round_times))) {
        finish(call, grpc, reason);
        return GRPC_PULLED_LAST;
    }
    if (!call->begun && call->open_first) {
        server_round(call->server);
        atomic_fetch_add(&call->server->seen.rounds, 1);
    }
    if (!call->begun)
        call->as_of = atomic_load(&will->as_of) - atomic_load(&will->map_lags);
    if (call->begun && call->next_page == SERVER_PAGES) {
        finish(call, grpc, 0);
        return GRPC_PULLED_LAST;
    }
    if (call->begun && once_more(&will->map_cut)) {
        finish(call, grpc, PF_REASON_GOING_AWAY);
        return GRPC_PULLED_LAST;
    }
    call->begun = true;
    send_map(call, message);
    return GRPC_PULLED_MESSAGE;
}

static enum grpc_pulled pull_stream(struct call *call, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct server_will *will = &call->server->will;
    uint32_t most = atomic_load(&will->stream_pages), count;
    uint64_t pages[BATCH_PAGES_MAX];

    if (atomic_load(&will->stream_mute) || !call->half_closed)
        return GRPC_PULLED_NOTHING;
    count = atomic_load(&will->stream_nothing) ? 0 : take_pages(call, pages, most == 0 ? 64 : most);
    if (count == 0 || atomic_load(&will->stream_reason) != 0) {
        finish(call, grpc, atomic_load(&will->stream_reason));
        return GRPC_PULLED_LAST;
    }
    send_batch(call, pages, count, once_more(&will->stream_bad_digests), message);
    return GRPC_PULLED_MESSAGE;
}

/* ------------------------------------------------------------------------------------- callbacks, as grpc.h wants */

static int on_opened(void *owner, struct grpc_call *grpc, const struct grpc_headers *headers)
{
    struct connection *connection = owner;
    struct call *call = calloc(1, sizeof(*call));
    struct grpc_bytes path = headers->path;

    if (call == NULL)
        abort();
    call->server = connection->server;
    if (!says_who(headers))
        atomic_fetch_add(&call->server->seen.strangers, 1);
    call->kind = path.length == strlen(PF_PATH_DESCRIBE_IMAGE) && memcmp(path.data, PF_PATH_DESCRIBE_IMAGE,
                                                                        path.length) == 0 ? KIND_DESCRIBE
                 : path.length == strlen(PF_PATH_FETCH_PAGES) && memcmp(path.data, PF_PATH_FETCH_PAGES,
                                                                       path.length) == 0 ? KIND_FETCH : KIND_STREAM;
    if (call->kind != KIND_STREAM)
        atomic_fetch_add(call->kind == KIND_DESCRIBE ? &call->server->seen.describes : &call->server->seen.fetches, 1);
    grpc_set_user(grpc, call);
    return 0;
}

static void queue_runs(struct call *call, const struct run *runs, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        for (uint64_t page = runs[i].first_page; page < runs[i].first_page + runs[i].page_count; page++)
            call->queue[call->put++ % QUEUE_MAX] = page;
}

static int on_message(void *owner, struct grpc_call *grpc, struct grpc_bytes message)
{
    static struct run runs[PF_LIMIT_RUNS_MAX];
    struct call *call = grpc_user(grpc);
    struct fetch_request fetch = {.runs = runs};
    struct stream_request stream = {.runs = runs};
    int rc = 0;

    (void)owner;
    if (call->kind == KIND_FETCH) {
        rc = read_fetch_request(message, runs, PF_LIMIT_RUNS_MAX, &fetch);
        if (rc == 0) {
            queue_runs(call, runs, fetch.run_count);
            for (uint32_t i = 0; i < fetch.run_count; i++)
                atomic_fetch_add(&call->server->seen.asked, runs[i].page_count);
            if (call->put - call->taken > atomic_load(&call->server->will.wanted_pages_max))
                atomic_fetch_add(&call->server->seen.overlong, 1);
            call->heartbeat = fetch.heartbeat != 0 ? fetch.heartbeat : call->heartbeat;
        }
    } else if (call->kind == KIND_STREAM) {
        rc = read_stream_request(message, runs, PF_LIMIT_RUNS_MAX, &stream);
        if (rc == 0)
            queue_runs(call, runs, stream.run_count);
        call->map = stream.versions_only;
        call->open_first = stream.open_round;
        call->since = stream.since_version;
        if (call->map) {
            atomic_fetch_add(&call->server->seen.maps, 1);
            atomic_store(&call->server->seen.since, call->since);
        } else {
            atomic_fetch_add(&call->server->seen.streams, 1);
        }
    }
    grpc_resume(grpc);
    return rc;
}

static void on_half_closed(void *owner, struct grpc_call *grpc)
{
    (void)owner;
    ((struct call *)grpc_user(grpc))->half_closed = true;
    grpc_resume(grpc);
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *grpc, struct grpc_bytes *message)
{
    struct call *call = grpc_user(grpc);

    (void)owner;
    return call->kind == KIND_DESCRIBE ? pull_describe(call, grpc, message)
           : call->kind == KIND_FETCH  ? pull_fetch(call, grpc, message)
           : call->map                 ? pull_map(call, grpc, message)
                                       : pull_stream(call, grpc, message);
}

static void on_ended(void *owner, struct grpc_call *grpc, const struct grpc_status *status)
{
    (void)owner, (void)status;
    free(grpc_user(grpc));
}

static const struct grpc_owner callbacks = {.opened = on_opened, .message = on_message, .half_closed = on_half_closed,
                                            .pull = on_pull, .ended = on_ended};

/* -------------------------------------------------------------------------------------------------------- thread */

static void accept_one(struct server *server, struct connection *connections)
{
    struct connection *free_one = NULL;
    int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    for (int i = 0; i < CONNECTIONS_MAX && free_one == NULL; i++)
        free_one = connections[i].conn == NULL ? &connections[i] : NULL;
    if (fd < 0 || free_one == NULL)
        abort();
    free_one->server = server;
    atomic_fetch_add(&server->seen.open, 1);
    atomic_fetch_add(&server->seen.connections, 1);
    if (conn_open(fd, GRPC_SERVER, &rpc_defaults, &callbacks, free_one, &free_one->conn) != 0)
        abort();
}

static void drop(struct connection *connection)
{
    if (connection->conn != NULL)
        atomic_fetch_sub(&connection->server->seen.open, 1);
    conn_close(connection->conn);
    connection->conn = NULL;
}

static void serve_turn_of(struct connection *connection, short events)
{
    int rc = 0;

    if ((events & ~POLLOUT) != 0)
        rc = conn_read(connection->conn);
    if (rc >= 0)
        rc = conn_write(connection->conn, 65536);
    if (rc < 0)
        drop(connection);
}

static void *run(void *argument)
{
    struct server *server = argument;
    struct connection connections[CONNECTIONS_MAX] = {0};
    struct pollfd ready[CONNECTIONS_MAX + 1];

    while (!atomic_load(&server->stop)) {
        bool frozen = atomic_load(&server->will.frozen) != 0;
        atomic_store(&server->seen.frozen, frozen);
        ready[CONNECTIONS_MAX] = (struct pollfd){.fd = frozen ? -1 : server->listen_fd, .events = POLLIN};
        for (int i = 0; i < CONNECTIONS_MAX; i++)
            ready[i] = (struct pollfd){.fd = connections[i].conn == NULL || frozen ? -1 : conn_fd(connections[i].conn),
                                       .events = POLLIN};
        for (int i = 0; i < CONNECTIONS_MAX; i++)
            if (connections[i].conn != NULL && conn_wants_write(connections[i].conn))
                ready[i].events |= POLLOUT;
        poll(ready, CONNECTIONS_MAX + 1, 5);
        for (int i = 0; i < CONNECTIONS_MAX; i++)
            if (ready[i].fd >= 0 && ready[i].revents != 0)
                serve_turn_of(&connections[i], ready[i].revents);
        if (ready[CONNECTIONS_MAX].fd >= 0 && ready[CONNECTIONS_MAX].revents != 0)
            accept_one(server, connections);
        if (atomic_load(&server->will.cut)) {
            for (int i = 0; i < CONNECTIONS_MAX; i++)
                drop(&connections[i]);
            atomic_store(&server->will.cut, 0);
        }
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        drop(&connections[i]);
    return NULL;
}

void server_start(struct server *server)
{
    memset(server, 0, sizeof(*server));
    atomic_store(&server->will.content_id, SERVER_CONTENT_ID);
    atomic_store(&server->will.page_count, SERVER_PAGES);
    atomic_store(&server->will.as_of, PF_LIMIT_IMMUTABLE_VERSION);
    atomic_store(&server->will.wanted_pages_max, PF_LIMIT_WANTED_PAGES_MAX);
    server->listen_fd = serve_listen(&server->port);
    snprintf(server->address, sizeof(server->address), "127.0.0.1:%u", server->port);
}

void server_go(struct server *server)
{
    if (server->goes || server->elsewhere)
        return;
    if (pthread_create(&server->thread, NULL, run, server) != 0)
        abort();
    server->goes = true;
}

void server_cut(struct server *server)
{
    atomic_store(&server->will.cut, 1);
    while (atomic_load(&server->will.cut))
        usleep(1000);
}

void server_hold(struct server *server)
{
    atomic_store(&server->seen.frozen, 0);
    atomic_store(&server->will.frozen, 1);
    while (!atomic_load(&server->seen.frozen))
        usleep(1000);
}

void server_stop(struct server *server)
{
    atomic_store(&server->stop, true);
    if (server->goes)
        pthread_join(server->thread, NULL);
    server->goes = false;
    close(server->listen_fd);
}
