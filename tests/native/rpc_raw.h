/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An HTTP/2 peer by hand, frame by frame, that may do what no library would: for tests of native/rpc against broken and
 * hostile ends. It collects what it sends and writes it with rpc_raw_flush.
 */
#ifndef PAGEFERRY_RPC_RAW_H
#define PAGEFERRY_RPC_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RPC_RAW_BYTES (1 << 20)

enum rpc_frame {
    RAW_DATA,
    RAW_HEADERS,
    RAW_PRIORITY,
    RAW_RST,
    RAW_SETTINGS,
    RAW_PUSH,
    RAW_PING,
    RAW_GOAWAY,
    RAW_WINDOW,
    RAW_CONTINUATION
};
enum rpc_flag { RAW_END_STREAM = 1, RAW_ACK = 1, RAW_END_HEADERS = 4 };

struct rpc_raw {
    int fd;
    size_t used; /* of out */
    size_t got;  /* of in */
    uint8_t out[RPC_RAW_BYTES];
    uint8_t in[RPC_RAW_BYTES];
};

/* A frame that came. */
struct rpc_raw_frame {
    uint8_t type, flags;
    uint32_t stream;
    size_t length;
    const uint8_t *payload;
};

void rpc_raw_bytes(struct rpc_raw *raw, const void *bytes, size_t length);
void rpc_raw_preface(struct rpc_raw *raw);
void rpc_raw_frame(struct rpc_raw *raw, uint8_t type, uint8_t flags, uint32_t stream, const void *payload,
                   size_t length);
void rpc_raw_number(struct rpc_raw *raw, uint8_t type, uint32_t stream, uint32_t number);
/* SETTINGS with one entry. */
void rpc_raw_setting(struct rpc_raw *raw, uint16_t id, uint32_t value);
/* Header fields by hand: literal, never indexed, in `block`; the new length. */
size_t rpc_raw_field(uint8_t *block, size_t used, const char *name, const char *value);
/* The fields of a gRPC request, of an answer. */
size_t rpc_raw_request_block(uint8_t *block, const char *path);
size_t rpc_raw_answer_block(uint8_t *block, const char *http_status, const char *content_type);
void rpc_raw_request(struct rpc_raw *raw, uint32_t stream, const char *path, uint8_t flags);
/* A whole gRPC message, as rpc_pair's message `number`, in one DATA frame. */
void rpc_raw_message(struct rpc_raw *raw, uint32_t stream, uint32_t number, size_t length, uint8_t flags);
/* Writes what the socket takes; whether all has left. */
bool rpc_raw_flush(struct rpc_raw *raw);
/* Reads all there is, adding to what it has. */
void rpc_raw_collect(struct rpc_raw *raw);
/* The frames that were collected, from *offset on; false: no whole one is left. */
bool rpc_raw_next(const struct rpc_raw *raw, size_t *offset, struct rpc_raw_frame *frame);
/* The error of the GOAWAY that was collected; -1: there is none. */
int rpc_raw_goaway(const struct rpc_raw *raw);

#endif
