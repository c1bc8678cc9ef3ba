/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page client for tests: our client role on a socket of its own, driven by one thread that waits with poll.
 * Every batch is checked as a client must; a page's bytes are what serve_page says, or zeros.
 */
#ifndef SERVE_CLIENT_H
#define SERVE_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "gen/contract.h"
#include "rpc/conn.h"
#include "rpc/messages.h"
#include "serve/image.h"

#define SERVE_REQUEST_BYTES 66000

struct serve_client {
    struct conn *conn;
    int error; /* of the connection, once it is of no more use */
};

struct serve_call {
    struct serve_client *client;
    struct grpc_call *grpc;
    uint8_t request[SERVE_REQUEST_BYTES];
    size_t request_length; /* 0: nothing to say now */
    bool half_close;       /* after that */
    bool live;             /* of a live image: its pages are whatever they are, only their digest is checked */
    bool ended;
    struct grpc_status status;
    /* What came: */
    uint32_t batches;
    uint32_t wrong; /* batches that a client would drop, pages with other bytes */
    uint64_t pages;
    uint64_t heartbeat; /* the last echo */
    uint32_t last_run_count;
    struct run last_run; /* the first of the last batch */
    struct describe_response described;
    uint64_t as_of;     /* of the last batch */
    uint64_t named[PF_RUN_KIND_VERSION + 1]; /* pages, by kind */
    uint32_t phase;     /* the last that was told */
    bool manifest;      /* a digest was told */
};

/* Whether a page of the test's image holds data, and its bytes. */
bool serve_holds(uint64_t page);
void serve_page(uint64_t page, uint8_t *bytes);
/* A sparse file of them. */
int serve_image(uint64_t page_count);
extern uint64_t serve_content_id; /* checks digests; of the image that is served */

/* On loopback, any free port. */
int serve_listen(uint16_t *port);
int serve_connect(uint16_t port);
void serve_open(struct serve_client *client, int fd, uint32_t window_bytes);
void serve_close(struct serve_client *client);
void serve_start(struct serve_call *call, struct serve_client *client, const char *path);
/* The same in a session, of a live image. */
void serve_start_as(struct serve_call *call, struct serve_client *client, const char *path,
                    const struct grpc_headers *who);
/* To be sent, as soon as it can leave. */
void serve_say(struct serve_call *call, size_t length, bool half_close);
void serve_ask(struct serve_call *call, const char *image, uint64_t first_page, uint64_t page_count,
               uint64_t heartbeat,
               bool half_close);
void serve_stream(struct serve_call *call, const char *image, uint64_t first_page, uint64_t page_count);
/* The version map, above this one. */
void serve_map(struct serve_call *call, const char *image, uint64_t since, bool open_round);
void serve_get(struct serve_call *call, const char *image, uint64_t page);
void serve_describe(struct serve_call *call, const char *image);

/* One turn for each client: writes, waits at most wait_ms for any of them, reads what has come. */
void serve_turn(struct serve_client *const *clients, uint32_t count, int wait_ms);
/* Turns until the condition holds; false: not within 20 s. */
#define SERVE_UNTIL(client, condition) \
    ({ \
        struct serve_client *only_ = (client); \
        int turns_ = 0; \
        while (!(condition) && turns_++ < 2000) \
            serve_turn(&only_, 1, 10); \
        (condition); \
    })

#endif
