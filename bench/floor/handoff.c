/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "handoff.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define JSON_BYTES_MAX 1024

void fail(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    exit(71);
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        fail("socket");
    if (strlen(path) >= sizeof(address.sun_path)) {
        errno = ENAMETOOLONG;
        fail(path);
    }
    strcpy(address.sun_path, path);
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0)
        fail(path);
    return fd;
}

static uint64_t json_number(const char *json, const char *key)
{
    const char *found = strstr(json, key);
    char *end = NULL;

    if (found != NULL) {
        uint64_t value = strtoull(found + strlen(key), &end, 10);
        if (end != found + strlen(key) && value != 0 && value % FLOOR_PAGE_BYTES == 0)
            return value;
    }
    errno = EBADMSG;
    fail(key);
}

struct handoff handoff_take(const char *path)
{
    char json[JSON_BYTES_MAX + 1];
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = json, .iov_len = JSON_BYTES_MAX};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    struct handoff handoff = {0};
    int fds[2];

    int listener = listen_at(path);
    handoff.socket_fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (handoff.socket_fd < 0)
        fail("accept");
    ssize_t length = recvmsg(handoff.socket_fd, &message, MSG_CMSG_CLOEXEC);
    if (length < 0)
        fail("recvmsg");
    json[length] = '\0';
    const struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    if (rights == NULL || rights->cmsg_type != SCM_RIGHTS || rights->cmsg_len != CMSG_LEN(sizeof(fds))) {
        errno = EBADMSG;
        fail("two fds were expected");
    }
    memcpy(fds, CMSG_DATA(rights), sizeof(fds));
    handoff.uffd = fds[0];
    handoff.memfd = fds[1];
    handoff.base = json_number(json, "\"base_host_virt_addr\":");
    handoff.bytes = json_number(json, "\"size\":");
    close(listener);
    return handoff;
}
