/* SPDX-License-Identifier: Apache-2.0 */
/* See token.h. The only file that hashes for secrecy, by OpenSSL. */
#include "token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "../gen/contract.h"

#define SCHEME "Bearer "
#define SCHEME_BYTES (sizeof(SCHEME) - 1)
#define TEXT_BYTES ((PF_LIMIT_TOKEN_BYTES * 8 + 5) / 6)

struct token_hasher {
    EVP_MD *sha256; /* looked for once: that takes longer than hashing */
    EVP_MD_CTX *context;
};

struct token_hasher *token_open(void)
{
    struct token_hasher *hasher = calloc(1, sizeof(*hasher));

    if (hasher == NULL)
        return NULL;
    hasher->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    hasher->context = EVP_MD_CTX_new();
    if (hasher->sha256 == NULL || hasher->context == NULL) {
        token_close(hasher);
        hasher = NULL;
    }
    return hasher;
}

void token_close(struct token_hasher *hasher)
{
    if (hasher == NULL)
        return;
    EVP_MD_CTX_free(hasher->context);
    EVP_MD_free(hasher->sha256);
    free(hasher);
}

/* Its six bits, or -1. */
static int bits_of(uint8_t letter)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const char *found = letter == 0 ? NULL : strchr(alphabet, letter);

    return found == NULL ? -1 : (int)(found - alphabet);
}

static bool decode(const uint8_t *text, uint8_t *bytes)
{
    uint32_t held = 0, held_bits = 0;
    size_t done = 0;

    for (size_t i = 0; i < TEXT_BYTES; i++) {
        int bits = bits_of(text[i]);
        if (bits < 0)
            return false;
        held = (held << 6 | (uint32_t)bits) & 0xffff;
        held_bits += 6;
        if (held_bits >= 8) {
            held_bits -= 8;
            bytes[done++] = (uint8_t)(held >> held_bits);
        }
    }
    return (held & ((1u << held_bits) - 1)) == 0; /* one token has one spelling */
}

bool token_hash(struct token_hasher *hasher, struct grpc_bytes authorization, uint8_t hash[TOKEN_HASH_BYTES])
{
    uint8_t token[PF_LIMIT_TOKEN_BYTES];
    bool good = false;

    if (authorization.length == SCHEME_BYTES + TEXT_BYTES &&
        memcmp(authorization.data, SCHEME, SCHEME_BYTES) == 0 &&
        decode(authorization.data + SCHEME_BYTES, token))
        good = EVP_DigestInit_ex(hasher->context, hasher->sha256, NULL) == 1 &&
               EVP_DigestUpdate(hasher->context, token, sizeof(token)) == 1 &&
               EVP_DigestFinal_ex(hasher->context, hash, NULL) == 1;
    OPENSSL_cleanse(token, sizeof(token));
    return good;
}

bool token_same(const uint8_t one[TOKEN_HASH_BYTES], const uint8_t other[TOKEN_HASH_BYTES])
{
    return CRYPTO_memcmp(one, other, TOKEN_HASH_BYTES) == 0;
}
