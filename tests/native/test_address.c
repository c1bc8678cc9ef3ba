/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of page servers: every form that is understood, and what is no address. Nothing is looked up abroad. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdbool.h>
#include <string.h>
#include <sys/un.h>

#include "check.h"
#include "client/address.h"
#include "gen/contract.h"

static struct address address;
static char error[256];

static int resolve(const char *text)
{
    error[0] = 0;
    return address_resolve(text, &address, error, sizeof(error));
}

static void is_v4(const char *text, const char *host, uint16_t port, const char *authority)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)&address.entries[0].storage;
    char name[64];

    CHECK_EQ(resolve(text), 0);
    CHECK_EQ(address.count, 1);
    CHECK_EQ(in->sin_family, AF_INET);
    CHECK_EQ(ntohs(in->sin_port), port);
    CHECK(strcmp(inet_ntop(AF_INET, &in->sin_addr, name, sizeof(name)), host) == 0);
    CHECK(strcmp(address.authority, authority) == 0);
    CHECK(strcmp(address.text, text) == 0);
}

static void test_host_and_port(void)
{
    is_v4("127.0.0.1:7850", "127.0.0.1", 7850, "127.0.0.1:7850");
    is_v4("dns:///127.0.0.2:1", "127.0.0.2", 1, "127.0.0.2:1");
    is_v4("10.0.0.1:65535", "10.0.0.1", 65535, "10.0.0.1:65535");
}

static void test_name(void)
{
    CHECK_EQ(resolve("localhost:80"), 0);
    CHECK(address.count >= 1 && address.count <= ADDRESS_ENTRIES_MAX);
}

/* A bare root may lack /etc/hosts. */
static bool knows_localhost(void)
{
    struct addrinfo *found = NULL;
    bool known = getaddrinfo("localhost", NULL, NULL, &found) == 0;

    if (known)
        freeaddrinfo(found);
    return known;
}

static void test_v6(void)
{
    const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)&address.entries[0].storage;

    CHECK_EQ(resolve("[::1]:7850"), 0);
    CHECK_EQ(in->sin6_family, AF_INET6);
    CHECK_EQ(ntohs(in->sin6_port), 7850);
    CHECK(strcmp(address.authority, "[::1]:7850") == 0);
    CHECK_EQ(resolve("dns:///[fe80::1]:9"), 0);
}

static void test_unix(void)
{
    const struct sockaddr_un *un = (const struct sockaddr_un *)&address.entries[0].storage;
    char path[120];

    CHECK_EQ(resolve("unix:/run/pages.sock"), 0);
    CHECK_EQ(un->sun_family, AF_UNIX);
    CHECK(strcmp(un->sun_path, "/run/pages.sock") == 0);
    CHECK(strcmp(address.authority, "localhost") == 0);
    CHECK_EQ(resolve("unix:///run/pages.sock"), 0); /* as gRPC writes absolute ones */
    CHECK(strcmp(un->sun_path, "///run/pages.sock") == 0);
    memset(path, 'x', sizeof(path));
    memcpy(path, "unix:", 5);
    path[5 + 107] = 0;
    CHECK_EQ(resolve(path), 0); /* the longest */
    path[5 + 107] = 'x';
    path[5 + 108] = 0;
    CHECK_EQ(resolve(path), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(resolve("unix:"), -PF_REASON_BAD_REQUEST);
}

static void test_what_is_none(void)
{
    static const char *const wrong[] = {
        "", ":", "host", "host:", ":7850", "[]:1", "[::1]", "[::1]7850", "[::1:7850", "127.0.0.1:0", "127.0.0.1:65536",
        "127.0.0.1:99999999999", "127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:+1", "127.0.0.1: 1", "127.0.0.1:1 ",
        "dns:///", "dns:///:1",
    };
    char long_one[ADDRESS_TEXT_BYTES + 10];

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        if (resolve(wrong[i]) != -PF_REASON_BAD_REQUEST)
            printf("taken: \"%s\"\n", wrong[i]);
        CHECK_EQ(resolve(wrong[i]), -PF_REASON_BAD_REQUEST);
        CHECK(error[0] != 0);
    }
    memset(long_one, 'a', sizeof(long_one));
    memcpy(long_one + sizeof(long_one) - 4, ":12", 4);
    CHECK_EQ(resolve(long_one), -PF_REASON_BAD_REQUEST);
    CHECK_EQ(resolve(NULL), -PF_REASON_BAD_REQUEST);
}

/* A name that does not resolve (this one is too long for any name server to be asked): that may pass. */
static void test_unknown_name(void)
{
    char name[90];

    memset(name, 'n', sizeof(name));
    memcpy(name + 70, ".invalid:7850", 14);
    CHECK_EQ(resolve(name), -PF_REASON_GOING_AWAY);
    CHECK(strstr(error, ".invalid") != NULL);
}

int main(void)
{
    RUN(test_host_and_port);
    if (knows_localhost())
        RUN(test_name);
    else
        SKIP(test_name, "this system cannot resolve localhost");
    RUN(test_v6);
    RUN(test_unix);
    RUN(test_what_is_none);
    RUN(test_unknown_name);
    return check_done();
}
