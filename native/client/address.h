/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where to dial: "host:port", "[v6]:port", "dns:///host:port" or "unix:/path", resolved once, because a name look-up
 * blocks and the threads that dial may not.
 */
#ifndef PAGEFERRY_ADDRESS_H
#define PAGEFERRY_ADDRESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define ADDRESS_ENTRIES_MAX 8
#define ADDRESS_TEXT_BYTES 256

struct address_entry {
    struct sockaddr_storage storage;
    socklen_t length;
};

struct address {
    char text[ADDRESS_TEXT_BYTES];      /* as it was given: for messages */
    char authority[ADDRESS_TEXT_BYTES]; /* for HTTP/2's :authority */
    uint32_t count;
    struct address_entry entries[ADDRESS_ENTRIES_MAX];
};

/* 0; -PF_REASON_BAD_REQUEST: not an address; -PF_REASON_GOING_AWAY: the name does not resolve. `error` says it. */
int address_resolve(const char *text, struct address *address, char *error, size_t error_bytes);

#endif
