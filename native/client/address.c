/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: see address.h. */
#include "address.h"

#include <netdb.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "../gen/contract.h"

static int resolve_unix(const char *path, struct address *address, char *error, size_t error_bytes)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&address->entries[0].storage;
    size_t length = strlen(path);
    int rc = 0;

    if (length == 0 || length >= sizeof(un->sun_path)) {
        snprintf(error, error_bytes, "\"%s\" is no path of a unix socket: 1 to %zu bytes", path,
                 sizeof(un->sun_path) - 1);
        rc = -PF_REASON_BAD_REQUEST;
    } else {
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, path, length + 1);
        address->entries[0].length = sizeof(*un);
        address->count = 1;
        snprintf(address->authority, sizeof(address->authority), "localhost");
    }
    return rc;
}

/* 1 to 65535, in digits: a name look-up takes what is larger for something else. */
static bool is_port(const char *text)
{
    uint32_t number = 0;
    size_t length = strspn(text, "0123456789");

    for (size_t i = 0; i < length && i < 6; i++)
        number = number * 10 + (uint32_t)(text[i] - '0');
    return text[length] == 0 && number >= 1 && number <= 65535 && length <= 5;
}

/* Splits "host:port" or "[host]:port". */
static bool split_host(const char *text, char *host, size_t host_bytes, const char **port)
{
    const char *start = text, *end, *colon;

    if (text[0] == '[') {
        start = text + 1;
        end = strchr(start, ']');
        colon = end != NULL && end[1] == ':' ? end + 1 : NULL;
    } else {
        colon = strrchr(text, ':');
        end = colon;
    }
    if (colon == NULL || end == start || !is_port(colon + 1) || (size_t)(end - start) >= host_bytes)
        return false;
    memcpy(host, start, (size_t)(end - start));
    host[end - start] = 0;
    *port = colon + 1;
    return true;
}

static int resolve_host(const char *text, struct address *address, char *error, size_t error_bytes)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    char host[ADDRESS_TEXT_BYTES];
    const char *port;
    int rc = 0, failure;

    if (!split_host(text, host, sizeof(host), &port)) {
        snprintf(error, error_bytes,
                 "\"%s\" is no address: give host:port (1 to 65535), dns:///host:port or unix:/path", text);
        rc = -PF_REASON_BAD_REQUEST;
        goto out;
    }
    failure = getaddrinfo(host, port, &hints, &found);
    if (failure != 0) {
        snprintf(error, error_bytes, "cannot resolve \"%s\": %s", host, gai_strerror(failure));
        rc = -PF_REASON_GOING_AWAY;
        goto out;
    }
    for (struct addrinfo *one = found; one != NULL && address->count < ADDRESS_ENTRIES_MAX; one = one->ai_next) {
        struct address_entry *entry = &address->entries[address->count++];
        memcpy(&entry->storage, one->ai_addr, one->ai_addrlen);
        entry->length = one->ai_addrlen;
    }
    snprintf(address->authority, sizeof(address->authority), "%s", text);
out:
    if (found != NULL)
        freeaddrinfo(found);
    return rc;
}

int address_resolve(const char *text, struct address *address, char *error, size_t error_bytes)
{
    int rc;

    memset(address, 0, sizeof(*address));
    if (text == NULL || strlen(text) >= sizeof(address->text)) {
        snprintf(error, error_bytes, "the address of the page server is missing or too long");
        rc = -PF_REASON_BAD_REQUEST;
    } else {
        snprintf(address->text, sizeof(address->text), "%s", text);
        if (strncmp(text, "unix:", 5) == 0)
            rc = resolve_unix(text + 5, address, error, error_bytes);
        else
            rc = resolve_host(strncmp(text, "dns:///", 7) == 0 ? text + 7 : text, address, error, error_bytes);
    }
    return rc;
}
