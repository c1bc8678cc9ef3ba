/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A mutator for HTTP/2 bytes that keeps frames whole: most of what it makes gets past the frame layer, so that what
 * lies behind it is met. Input: a few bytes that belong to the fuzzer, the bytes that introduce a peer, then frames.
 */
#ifndef PAGEFERRY_H2_MUTATOR_H
#define PAGEFERRY_H2_MUTATOR_H

#include <stddef.h>
#include <stdint.h>

#define H2_MAGIC "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define H2_HEAD_BYTES 9

enum h2_frame_type { H2_DATA = 0, H2_HEADERS, H2_PRIORITY, H2_RST, H2_SETTINGS, H2_PUSH, H2_PING, H2_GOAWAY, H2_WINDOW };

struct h2_frame {
    size_t at; /* of its head */
    size_t payload_bytes;
    uint8_t type;
};

/* The whole frames from offset `at` on; their number. */
size_t h2_frames(const uint8_t *data, size_t size, size_t at, struct h2_frame *frames, size_t frames_max);

/* Each fuzzer's own: its bytes, and how long what then comes before the frames is; and a last touch to a gRPC message (its digest). */
extern const size_t h2_own_bytes, h2_introduction_bytes;
void h2_mend_message(uint8_t *message, size_t length);

#endif
