/* SPDX-License-Identifier: Apache-2.0 */
/* Frames on a unix stream socket: see frames.h. Used inside a VMM too, so libc alone and no state. */
#include "frames.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct frame) == 32, "a frame is 32 bytes on every machine");

int frame_send(int fd, const struct frame *frame)
{
    const uint8_t *bytes = (const uint8_t *)frame;
    size_t sent_bytes = 0;

    while (sent_bytes < sizeof(*frame)) {
        ssize_t rc = send(fd, bytes + sent_bytes, sizeof(*frame) - sent_bytes, MSG_NOSIGNAL);
        if (rc > 0) {
            sent_bytes += (size_t)rc;
        } else if (rc < 0 && errno == EAGAIN) {
            struct pollfd room = {.fd = fd, .events = POLLOUT};
            if (poll(&room, 1, -1) < 0 && errno != EINTR)
                return -errno;
        } else if (rc < 0 && errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/* A peer that closed with something of ours unread shows as ECONNRESET: closed all the same. */
static int receive_error(void)
{
    int rc = -errno;

    if (errno == EAGAIN || errno == EINTR)
        rc = 0;
    else if (errno == ECONNRESET)
        rc = -EPIPE;
    return rc;
}

int frame_receive(int fd, struct frame_reader *reader, struct frame *frame)
{
    while (reader->have_bytes < sizeof(reader->bytes)) {
        ssize_t rc = recv(fd, reader->bytes + reader->have_bytes, sizeof(reader->bytes) - reader->have_bytes,
                          MSG_DONTWAIT);
        if (rc == 0)
            return -EPIPE;
        if (rc < 0)
            return receive_error();
        reader->have_bytes += (size_t)rc;
    }
    reader->have_bytes = 0;
    memcpy(frame, reader->bytes, sizeof(*frame));
    if (frame->magic != FRAME_MAGIC || frame->kind < FRAME_ACCEPTED)
        return -EPROTO;
    return 1;
}
