/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session's token as it comes in a header: "Bearer " and base64url of 32 bytes, without padding. Only its SHA-256 is
 * kept anywhere, and the two are compared in a time that says nothing.
 */
#ifndef PAGEFERRY_TOKEN_H
#define PAGEFERRY_TOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "../rpc/grpc.h"

#define TOKEN_HASH_BYTES 32

struct token_hasher;

/* A thread's own, so that a call costs no allocation. NULL: no memory. */
struct token_hasher *token_open(void);
/* Harmless on NULL. */
void token_close(struct token_hasher *hasher);

/* The hash of the token in an authorization header. False: there is none in it. */
bool token_hash(struct token_hasher *hasher, struct grpc_bytes authorization, uint8_t hash[TOKEN_HASH_BYTES]);
bool token_same(const uint8_t one[TOKEN_HASH_BYTES], const uint8_t other[TOKEN_HASH_BYTES]);

#endif
