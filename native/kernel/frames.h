/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between the processes of one host, on a unix stream socket, after the hand-off: fixed 32 bytes, host byte
 * order, no fds in these (later messages may carry some). The only definition of them; Python never speaks frames.
 *
 *   client -> shim   ACCEPTED   the hand-off has been checked and the pager runs: mmap may return to the VMM
 *   shim -> client   DISCARD    the VMM is about to drop [offset, offset + length) of its RAM; it waits
 *   client -> shim   DISCARDED  those pages will read as zeros for ever; the drop may go on
 *   client -> shim   COMPLETE   every page is here: discards need no report any more, the socket may close
 */
#ifndef PAGEFERRY_FRAMES_H
#define PAGEFERRY_FRAMES_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_MAGIC 0x50664d31u /* "1MfP": also says the layout */

enum frame_kind {
    FRAME_ACCEPTED = 1,
    FRAME_DISCARD = 2,
    FRAME_DISCARDED = 3,
    FRAME_COMPLETE = 4
};

struct frame {
    uint32_t magic;
    uint32_t kind;
    uint64_t sequence;     /* of a DISCARD, repeated in its DISCARDED; 0 else */
    uint64_t offset_bytes; /* in the RAM file */
    uint64_t length_bytes;
};

/* Writes one frame whole; waits if it must. 0 or -errno. Never raises SIGPIPE. */
int frame_send(int fd, const struct frame *frame);

/* Gathers frames from a socket without blocking; one reader has one of these. */
struct frame_reader {
    size_t have_bytes;
    uint8_t bytes[sizeof(struct frame)];
};

/* 1 and a frame; 0: none yet; -EPIPE: the other end has closed; -EPROTO: not a frame; or -errno. */
int frame_receive(int fd, struct frame_reader *reader, struct frame *frame);

#endif
