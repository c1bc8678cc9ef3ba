/* SPDX-License-Identifier: Apache-2.0 */
/* Two connections and scripted owners: see rpc_pair.h. */
#include "rpc_pair.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "gen/contract.h"

const struct grpc_settings rpc_defaults = {
    .message_bytes_max = 2 << 20,
    .stream_window_bytes = PF_LIMIT_STREAM_WINDOW_BYTES,
    .connection_window_bytes = PF_LIMIT_CONNECTION_WINDOW_BYTES,
    .streams_max = PF_LIMIT_STREAMS_MAX,
    .header_bytes_max = PF_LIMIT_METADATA_BYTES_MAX,
    .authority = "localhost",
};

uint8_t rpc_byte(uint32_t number, size_t index)
{
    return (uint8_t)(number * 31 + index * 7 + (index >> 8));
}

static void keep_text(struct grpc_bytes from, char *to, size_t capacity)
{
    if (from.length > 0 && from.length < capacity)
        memcpy(to, from.data, from.length);
}

static const struct rpc_script *script_of(const struct rpc_side *side, const char *path, size_t length)
{
    const struct rpc_script *script = side->scripts;

    while (script->path != NULL && (strlen(script->path) != length || memcmp(script->path, path, length) != 0))
        script++;
    return script->path == NULL ? NULL : script;
}

static struct rpc_call *add_call(struct rpc_side *side, const struct rpc_script *script)
{
    struct rpc_call *record = &side->calls[side->call_count++ % RPC_CALLS_MAX];

    free(record->sending);
    memset(record, 0, sizeof(*record));
    record->script = script;
    if (script != NULL)
        record->sending = malloc(script->echo ? 2 << 20 : script->message_bytes + 1);
    return record;
}

struct rpc_call *rpc_start_on(struct rpc_side *side, const char *path)
{
    struct rpc_call *record = add_call(side, script_of(side, path, strlen(path)));
    char server_path[64];

    /* "/c..." is the client's script for what the server calls "/s...". */
    snprintf(server_path, sizeof(server_path), "/s%s", path + 2);
    record->call = grpc_start(conn_session(side->conn), server_path, record);
    return record;
}

static int on_opened(void *owner, struct grpc_call *call, const struct grpc_headers *headers)
{
    struct rpc_side *side = owner;
    const struct rpc_script *script = script_of(side, (const char *)headers->path.data, headers->path.length);
    struct rpc_call *record = add_call(side, script);
    struct grpc_status unknown = {.reason = PF_REASON_UNSUPPORTED};

    grpc_set_user(call, record);
    record->call = call;
    record->timeout_ns = headers->timeout_ns;
    keep_text(headers->authorization, record->authorization, sizeof(record->authorization));
    keep_text(headers->session, record->session, sizeof(record->session));
    keep_text(headers->target, record->target, sizeof(record->target));
    keep_text(headers->epoch, record->epoch, sizeof(record->epoch));
    if (script != NULL && !script->refuse_opened)
        return 0;
    grpc_finish(call, script == NULL ? &unknown : &script->finish);
    return 1;
}

static uint8_t *on_gather(void *owner, struct grpc_call *call, size_t length)
{
    struct rpc_side *side = owner;
    struct rpc_call *record = grpc_user(call);

    (void)length;
    record->gathered++;
    return record->script->no_memory ? NULL : side->memory;
}

static int on_message(void *owner, struct grpc_call *call, struct grpc_bytes message)
{
    struct rpc_side *side = owner;
    struct rpc_call *record = grpc_user(call);
    bool wrong = false;

    for (size_t i = 0; i < message.length; i++)
        wrong |= message.data[i] != rpc_byte(record->got, i);
    record->wrong += wrong;
    record->echoes[record->got++ % RPC_ECHOES_MAX] = message.length;
    record->got_bytes += message.length;
    if (side->order_count < sizeof(side->order))
        side->order[side->order_count++] = (char)('a' + (record - side->calls));
    if (record->script->cancel)
        grpc_cancel(call);
    grpc_resume(call);
    return record->script->message_result;
}

static void on_half_closed(void *owner, struct grpc_call *call)
{
    struct rpc_call *record = grpc_user(call);

    (void)owner;
    record->half_closed = true;
    grpc_resume(call);
}

static enum grpc_pulled on_pull(void *owner, struct grpc_call *call, struct grpc_bytes *message)
{
    struct rpc_call *record = grpc_user(call);
    const struct rpc_script *script = record->script;
    size_t length = script->echo ? record->echoes[record->sent % RPC_ECHOES_MAX] : script->message_bytes;
    bool is_server = script->path[1] == 's';

    (void)owner;
    if (record->hesitated < script->hesitations) {
        record->hesitated++;
        grpc_resume(call);
        return GRPC_PULLED_NOTHING;
    }
    if (record->sent < (script->echo ? record->got : script->messages)) {
        for (size_t i = 0; i < length; i++)
            record->sending[i] = rpc_byte(record->sent, i);
        *message = (struct grpc_bytes){record->sending, length};
        record->sent++;
        if (script->cancel_in_pull && record->sent == 2)
            grpc_cancel(call);
        if (script->finish_early)
            grpc_finish(call, &script->finish);
        return GRPC_PULLED_MESSAGE;
    }
    if (script->keep_open || (script->echo && !record->half_closed))
        return GRPC_PULLED_NOTHING;
    if (is_server)
        grpc_finish(call, &script->finish);
    return GRPC_PULLED_LAST;
}

static void on_ended(void *owner, struct grpc_call *call, const struct grpc_status *status)
{
    struct rpc_side *side = owner;
    struct rpc_call *record = grpc_user(call);

    record->status = *status;
    record->ended++;
    record->call = NULL;
    free(record->sending); /* nothing may be read of it from here on: the sanitizer looks */
    record->sending = NULL;
    side->ended_count++;
    if (record->script != NULL && side->restarted < record->script->restarts) {
        side->restarted++;
        rpc_start_on(side, record->script->path);
    }
}

static const struct grpc_owner owner_plain = {
    .opened = on_opened,
    .message = on_message,
    .half_closed = on_half_closed,
    .pull = on_pull,
    .ended = on_ended,
};

static const struct grpc_owner owner_gathers = {
    .opened = on_opened,
    .gather = on_gather,
    .message = on_message,
    .half_closed = on_half_closed,
    .pull = on_pull,
    .ended = on_ended,
};

static void open_side(struct rpc_side *side, int fd, enum grpc_role role, const struct rpc_script *scripts,
                      const struct grpc_settings *settings)
{
    side->scripts = scripts;
    side->calls = calloc(RPC_CALLS_MAX, sizeof(*side->calls));
    side->result = conn_open(fd, role, settings == NULL ? &rpc_defaults : settings,
                             side->memory == NULL ? &owner_plain : &owner_gathers, side, &side->conn);
    if (side->result != 0)
        abort();
}

void rpc_open_server(struct rpc_pair *pair, int fd, const struct rpc_script *scripts,
                     const struct grpc_settings *settings)
{
    pair->budget_bytes = pair->budget_bytes == 0 ? PF_LIMIT_WRITE_BUDGET_BYTES : pair->budget_bytes;
    open_side(&pair->server, fd, GRPC_SERVER, scripts, settings);
}

void rpc_open_client(struct rpc_pair *pair, int fd, const struct rpc_script *scripts,
                     const struct grpc_settings *settings)
{
    pair->budget_bytes = pair->budget_bytes == 0 ? PF_LIMIT_WRITE_BUDGET_BYTES : pair->budget_bytes;
    open_side(&pair->client, fd, GRPC_CLIENT, scripts, settings);
}

void rpc_open(struct rpc_pair *pair, const struct rpc_script *client, const struct rpc_script *server,
              const struct grpc_settings *client_settings, const struct grpc_settings *server_settings)
{
    int fds[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
        abort();
    rpc_open_client(pair, fds[0], client, client_settings);
    rpc_open_server(pair, fds[1], server, server_settings);
}

struct rpc_call *rpc_start(struct rpc_pair *pair, const char *path)
{
    return rpc_start_on(&pair->client, path);
}

static void note(struct rpc_side *side, int rc)
{
    if (rc < 0)
        side->result = rc;
}

void rpc_turn_side(struct rpc_side *side, size_t budget_bytes)
{
    if (side->conn != NULL && side->result == 0) {
        note(side, conn_read(side->conn));
        if (side->result == 0 && conn_wants_write(side->conn))
            note(side, conn_write(side->conn, budget_bytes));
    }
}

static uint64_t moved(const struct rpc_side *side)
{
    struct conn_traffic traffic = {0};

    if (side->conn != NULL)
        conn_traffic(side->conn, &traffic);
    return traffic.in_bytes + traffic.out_bytes;
}

bool rpc_turn(struct rpc_pair *pair)
{
    uint64_t before = moved(&pair->client) + moved(&pair->server);

    rpc_turn_side(&pair->client, pair->budget_bytes);
    rpc_turn_side(&pair->server, pair->budget_bytes);
    return moved(&pair->client) + moved(&pair->server) != before;
}

uint32_t rpc_pump(struct rpc_pair *pair)
{
    uint32_t turns = 0;

    while (rpc_turn(pair))
        turns++;
    return turns;
}

static void close_side(struct rpc_side *side)
{
    conn_close(side->conn);
    for (uint32_t i = 0; i < RPC_CALLS_MAX && side->calls != NULL; i++)
        free(side->calls[i].sending);
    free(side->calls);
    free(side->memory);
}

void rpc_close(struct rpc_pair *pair)
{
    close_side(&pair->client);
    close_side(&pair->server);
    memset(pair, 0, sizeof(*pair));
}
