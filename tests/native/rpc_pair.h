/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's and a server's connection over a socketpair in one process, and owners that follow a script, for the tests
 * of native/rpc. Nothing here waits: rpc_pump turns both until nothing moves.
 */
#ifndef PAGEFERRY_RPC_PAIR_H
#define PAGEFERRY_RPC_PAIR_H

#include <stdbool.h>
#include <stdint.h>

#include "rpc/conn.h"

#define RPC_CALLS_MAX 2048
#define RPC_ECHOES_MAX 512

/* What one side does with calls of a path. */
struct rpc_script {
    const char *path;
    uint32_t messages;  /* to send, of so many bytes */
    size_t message_bytes;
    bool echo;          /* instead: as many as come, each as long as what came */
    bool keep_open;     /* no half-close, or no status, afterwards */
    bool finish_early;  /* server: with the first message, and not when asked for the next */
    bool refuse_opened; /* server: finish in opened */
    struct grpc_status finish;
    int message_result; /* what `message` returns */
    uint32_t hesitations; /* pulls that are answered "nothing" first, and resumed from within */
    bool cancel;        /* on the first message */
    bool cancel_in_pull; /* after the first message, with another in hand */
    bool no_memory;     /* gather says NULL */
    uint32_t restarts;  /* client: begin such a call anew, from within ended, so many times in all */
};

struct rpc_call {
    const struct rpc_script *script;
    struct grpc_call *call; /* NULL once it has ended */
    uint32_t sent, got;
    uint64_t got_bytes;
    uint32_t gathered;
    uint32_t hesitated;
    uint32_t wrong; /* messages that were not what was sent */
    bool half_closed;
    uint32_t ended;
    struct grpc_status status;
    uint64_t timeout_ns;
    char authorization[64], session[64], target[64], epoch[64];
    size_t echoes[RPC_ECHOES_MAX];
    uint8_t *sending;
};

struct rpc_side {
    struct conn *conn;
    int result; /* of the last turn that failed */
    const struct rpc_script *scripts;
    struct rpc_call *calls;
    uint32_t call_count, ended_count;
    uint32_t restarted;
    uint8_t *memory; /* gather's, if not NULL */
    char order[4096]; /* one letter a message received: which call of this side, from 'a' on */
    uint32_t order_count;
};

struct rpc_pair {
    struct rpc_side client, server;
    size_t budget_bytes;
};

extern const struct grpc_settings rpc_defaults;

/* Scripts end with a NULL path. NULL settings: rpc_defaults. */
void rpc_open(struct rpc_pair *pair, const struct rpc_script *client, const struct rpc_script *server,
              const struct grpc_settings *client_settings, const struct grpc_settings *server_settings);
/* Only the server, on this descriptor; something else is the client. */
void rpc_open_server(struct rpc_pair *pair, int fd, const struct rpc_script *scripts,
                     const struct grpc_settings *settings);
void rpc_open_client(struct rpc_pair *pair, int fd, const struct rpc_script *scripts,
                     const struct grpc_settings *settings);
/* Its record, also when it was not started (call NULL, ended 0). */
struct rpc_call *rpc_start(struct rpc_pair *pair, const char *path);
/* On a side: what rpc_start does, also from within a callback. */
struct rpc_call *rpc_start_on(struct rpc_side *side, const char *path);
/* One write turn and one read turn of each side. Whether a byte moved. */
bool rpc_turn(struct rpc_pair *pair);
/* Until nothing moves; the turns it took. */
uint32_t rpc_pump(struct rpc_pair *pair);
void rpc_turn_side(struct rpc_side *side, size_t budget_bytes);
void rpc_close(struct rpc_pair *pair);
/* Byte `index` of message `number`. */
uint8_t rpc_byte(uint32_t number, size_t index);

#endif
