/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes as an interface counts them: see wire.h. */
#include "wire.h"

#include <linux/tcp.h> /* struct tcp_info in full, where <netinet/tcp.h> has an older one */
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>

#define ETHERNET_BYTES 14
#define IPV4_BYTES 20
#define IPV6_BYTES 40
#define TCP_BYTES 20
#define TIMESTAMP_BYTES 12

/* A socket of family AF_INET6 may speak IPv4 all the same. */
static uint32_t ip_bytes(int fd)
{
    struct sockaddr_storage peer = {0};
    socklen_t length = sizeof(peer);
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&peer;
    bool four = getpeername(fd, (struct sockaddr *)&peer, &length) < 0 || peer.ss_family == AF_INET ||
                IN6_IS_ADDR_V4MAPPED(&six->sin6_addr);

    return four ? IPV4_BYTES : IPV6_BYTES;
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void wire_look(struct wire *wire, int fd, uint64_t payload_bytes)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof(info);
    bool tcp = getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
               length >= offsetof(struct tcp_info, tcpi_segs_in) + sizeof(info.tcpi_segs_in);

    wire->looked_ns = clock_ns();
    wire->bytes = payload_bytes;
    if (!tcp)
        return;
    if (wire->header_bytes == 0)
        wire->header_bytes = ETHERNET_BYTES + ip_bytes(fd) + TCP_BYTES +
                             ((info.tcpi_options & TCPI_OPT_TIMESTAMPS) != 0 ? TIMESTAMP_BYTES : 0);
    wire->segments += info.tcpi_segs_in - wire->segments_told;
    wire->segments_told = info.tcpi_segs_in;
    wire->bytes = info.tcpi_bytes_received + wire->segments * wire->header_bytes;
}

void wire_over(struct wire *wire, int fd, uint64_t payload_bytes)
{
    wire_look(wire, fd, payload_bytes);
    *wire = (struct wire){.past_bytes = wire_bytes(wire), .looked_ns = wire->looked_ns};
}
