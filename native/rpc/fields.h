/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header fields of gRPC, room-internal: what a block of them says, and the fields that say a status. Blocks never
 * interleave on a connection, so one of these per session does; what it points to is good until the next block begins.
 */
#ifndef PAGEFERRY_FIELDS_H
#define PAGEFERRY_FIELDS_H

#include "grpc.h"
#include "h2.h"

#define FIELDS_STATUS_MAX 8

struct field_block {
    /* Both ways. */
    bool is_grpc;  /* content-type: application/grpc... */
    bool too_long; /* than bytes_max: the rest was not looked at */
    /* A request. */
    bool is_post;
    struct grpc_headers request;
    /* An answer. */
    uint32_t http_status; /* 0: none, so these are trailers */
    bool has_status;      /* grpc-status */
    struct grpc_status status;
    /* How it is read. */
    size_t bytes; /* as HTTP/2 counts: 32 more a field */
    size_t bytes_max;
    size_t kept;
    char *memory; /* bytes_max of them */
};

/* Room for the text of the fields that fields_of_status makes. */
struct field_text {
    char code[12];
    char retry_after[12];
    char message[GRPC_TEXT_BYTES * 3];
};

void field_block_begin(struct field_block *block);
/* 0; -1: this is a flood. */
int field_block_add(struct field_block *block, const char *name, size_t name_length, const char *value,
                    size_t value_length);
/* Fills code from reason and message from the contract's sentence, where they are missing. */
void fields_complete_status(struct grpc_status *status);
/* Trailers for `status`; their number, at most FIELDS_STATUS_MAX. */
size_t fields_of_status(const struct grpc_status *status, struct field_text *text, struct h2_field *fields);
/* gRPC code for an answer without grpc-status, by its HTTP status. */
uint32_t fields_code_of_http(uint32_t http_status);
/* gRPC code for a stream that ended without trailers. */
uint32_t fields_code_of_reset(uint32_t error);

#endif
