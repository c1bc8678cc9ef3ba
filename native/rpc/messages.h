/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The messages of pages.proto <-> C structs, without allocation: strings and bytes are pointers into the message that
 * was read; runs are written to an array the caller brings. Every length is checked before use; unknown fields are
 * passed over; fields may come in any order, the last of a scalar counts, as proto3 has it. Lists of runs are read
 * packed and unpacked.
 *
 * Readers return 0, or -PF_REASON_BAD_REQUEST for what is no message, has too many runs, a run list of the wrong
 * length, a count of 0, or runs that overlap or wrap. Whether runs lie inside an image is the caller's to check
 * (runs_inside). Writers return the length, or 0 when `capacity` does not suffice.
 */
#ifndef PAGEFERRY_MESSAGES_H
#define PAGEFERRY_MESSAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../gen/contract.h"
#include "grpc.h"

struct run {
    uint64_t first_page;
    uint64_t page_count;
    uint64_t kind;    /* enum pf_run_kind; 0 in requests */
    uint64_t version; /* 0 in requests */
};

struct describe_request {
    struct grpc_bytes image;
};

struct describe_response {
    uint64_t content_id;
    uint64_t page_count;
    uint32_t page_bytes;
    uint32_t unit_pages;
    uint64_t region_pages[PF_LIMIT_REGIONS_MAX];
    uint32_t region_count;
    bool live;
    uint64_t as_of;
    uint32_t batch_bytes_max;
    uint32_t runs_max;
    uint32_t wanted_pages_max;
    uint32_t urgent_calls_max;
    uint32_t encodings;
};

struct get_page_request {
    struct grpc_bytes image;
    uint64_t page;
};

struct fetch_request {
    struct grpc_bytes image;
    uint32_t encodings;
    struct run *runs; /* the caller's */
    uint32_t run_count;
    uint64_t heartbeat;
};

struct stream_request {
    struct grpc_bytes image;
    uint64_t since_version;
    struct run *runs; /* the caller's */
    uint32_t run_count;
    bool versions_only;
    bool open_round;
    uint32_t encodings;
};

struct page_batch {
    uint64_t as_of;
    struct run *runs; /* the caller's */
    uint32_t run_count;
    uint32_t encoding;
    uint64_t digest;
    uint64_t heartbeat;
    uint32_t phase;
    bool cancel_requested;
    struct grpc_bytes manifest_digest;
    struct grpc_bytes data;
};

int read_describe_request(struct grpc_bytes message, struct describe_request *out);
int read_describe_response(struct grpc_bytes message, struct describe_response *out);
int read_get_page_request(struct grpc_bytes message, struct get_page_request *out);
int read_fetch_request(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct fetch_request *out);
int read_stream_request(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct stream_request *out);
int read_page_batch(struct grpc_bytes message, struct run *runs, uint32_t runs_max, struct page_batch *out);

size_t write_describe_request(const struct describe_request *in, uint8_t *out, size_t capacity);
size_t write_describe_response(const struct describe_response *in, uint8_t *out, size_t capacity);
size_t write_get_page_request(const struct get_page_request *in, uint8_t *out, size_t capacity);
size_t write_fetch_request(const struct fetch_request *in, uint8_t *out, size_t capacity);
size_t write_stream_request(const struct stream_request *in, uint8_t *out, size_t capacity);
/*
 * All of a batch but the bytes of `data`, ending with data's tag and length if data.length is not 0 (data.data is not
 * looked at): the bytes follow in memory. So a page is read straight to where it is sent from. page_batch_head_max says
 * how long the head of a batch with so many runs can get.
 */
size_t write_page_batch_head(const struct page_batch *in, uint8_t *out, size_t capacity);
size_t page_batch_head_max(uint32_t run_count);

/* Every run lies within page_count pages. */
bool runs_inside(const struct run *runs, uint32_t run_count, uint64_t page_count);

#endif
