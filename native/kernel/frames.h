/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between the processes of one host, on a unix stream socket, after the hand-off: fixed 32 bytes, host byte
 * order, no fds in these (later messages may carry some). The only definition of them; Python never speaks frames.
 *
 *   client -> shim   ACCEPTED   the hand-off has been checked and the pager runs: mmap may return to the VMM
 *   shim -> client   DISCARD    the VMM is about to drop [offset, offset + length) of its RAM; it waits
 *   client -> shim   DISCARDED  length_bytes 0: those pages will read as zeros for ever; the drop may go on. Else the
 *                               length of the DISCARD: they stay what they are, and nothing must be dropped: the VMM
 *                               empties a RAM file before it starts
 *   client -> shim   COMPLETE   every page is here: discards need no report any more. The socket may close, unless pages
 *                               are poisoned. offset_bytes: bits FRAME_COMPLETE_*
 *   client -> VMM    POISONED   [offset, offset + length) is lost from now on. Once a page; sequence counts from 1. A client
 *                               that has taken over from another may say what that one said last once more: the same
 *                               number
 *   client -> VMM    POISON_HELD  the same where the kernel cannot poison: who touches it waits. The VMM is asked what to
 *                               do, and may answer CLEAR
 *   VMM -> client    CLEAR      the poison of these pages is to end: fresh memory, zeros
 *   client -> VMM    CLEARED    so it is; sequence and place of the CLEAR, length_bytes: what was poisoned of it. With
 *                               sequence 0: this page is, by somebody else's word
 *   client -> shim   ZAP        drop the mappings of [offset, offset + length), at most 2 MiB. Shared memory keeps its data;
 *                               that of private memory is not wanted any more, and goes with them. One at a time
 *   shim -> client   ZAPPED     sequence of the ZAP; length_bytes: so much is done, offset_bytes: enum zap_method; or length 0
 *                               and offset_bytes an errno
 *
 * POISONED, POISON_HELD and ZAP are sent after ACCEPTED alone, to whoever speaks frames: a VMM of its own that does not
 * know them ignores them, as it does any kind that it does not know.
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
    FRAME_COMPLETE = 4,
    FRAME_POISONED = 5,
    FRAME_POISON_HELD = 6,
    FRAME_CLEAR = 7,
    FRAME_CLEARED = 8,
    FRAME_ZAP = 9,
    FRAME_ZAPPED = 10
};

#define FRAME_COMPLETE_HUGE_PAGES UINT64_C(1) /* they are wanted again: MADV_NOHUGEPAGE is to be taken back */

struct frame {
    uint32_t magic;
    uint32_t kind;
    uint64_t sequence;     /* of a DISCARD, CLEAR or ZAP, repeated in its answer; of poison, counted; 0 else */
    uint64_t offset_bytes; /* in the image, and in the RAM file */
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
