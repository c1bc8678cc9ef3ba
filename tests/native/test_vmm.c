/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off socket after the hand-off: what a VMM says, how it ends, and what that means. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "client/vmm.h"

#define S_NS UINT64_C(1000000000)

static struct vmm vmm;
static struct vmm_span discard;
static int other;

static void begin(bool frames, bool pidfd)
{
    int ends[2];

    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    other = ends[1];
    vmm_start(&vmm, ends[0], pidfd ? dup(ends[1]) : -1, frames, 10 * S_NS); /* any fd is good enough for one */
}

static void end(void)
{
    if (other >= 0)
        close(other);
    vmm_close(&vmm);
    CHECK_EQ(vmm.fd, -1);
    CHECK_EQ(vmm.pidfd, -1);
}

static void hang_up(void)
{
    shutdown(other, SHUT_RDWR);
    close(other);
    other = -1;
}

static void says(enum frame_kind kind, uint64_t sequence)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = kind, .sequence = sequence, .offset_bytes = 4096,
                          .length_bytes = 8192};

    CHECK_EQ(frame_send(other, &frame), 0);
}

/* Its length. */
static uint64_t hears(enum frame_kind kind, uint64_t sequence)
{
    struct frame frame = {0};

    CHECK_EQ(recv(other, &frame, sizeof(frame), MSG_DONTWAIT), sizeof(frame));
    CHECK_EQ(frame.kind, kind);
    CHECK_EQ(frame.sequence, sequence);
    return frame.length_bytes;
}

static void test_frames(void)
{
    begin(true, true);
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_NOTHING);
    vmm_accept(&vmm);
    vmm_accept(&vmm); /* once is enough */
    hears(FRAME_ACCEPTED, 0);
    says(FRAME_DISCARD, 3);
    says(FRAME_DISCARD, 4);
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_DISCARD);
    CHECK_EQ(discard.sequence, 3);
    CHECK_EQ(discard.offset_bytes, 4096);
    CHECK_EQ(discard.length_bytes, 8192);
    CHECK(!vmm.discarded);
    vmm_discarded(&vmm, &discard, true);
    CHECK_EQ(hears(FRAME_DISCARDED, 3), 8192); /* what is kept */
    CHECK(!vmm.discarded);
    vmm_discarded(&vmm, &discard, false);
    CHECK_EQ(hears(FRAME_DISCARDED, 3), 0);
    CHECK(vmm.discarded);
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_DISCARD);
    CHECK_EQ(discard.sequence, 4);
    says(FRAME_ACCEPTED, 0); /* not for us to hear */
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_NOTHING);
    vmm_complete(&vmm);
    hears(FRAME_COMPLETE, 0);
    end();
}

static void test_zap(void)
{
    struct vmm_span span = {.sequence = 9, .offset_bytes = 8192, .length_bytes = 4096};

    begin(true, true);
    CHECK(!vmm_hears(&vmm)); /* before it is accepted it is told nothing else */
    CHECK(!vmm_zap(&vmm, &span));
    vmm_accept(&vmm);
    hears(FRAME_ACCEPTED, 0);
    CHECK(vmm_zap(&vmm, &span));
    hears(FRAME_ZAP, 9);
    says(FRAME_ZAPPED, 9);
    CHECK_EQ(vmm_ready(&vmm, &span, 11 * S_NS), VMM_ZAPPED);
    CHECK_EQ(span.sequence, 9);
    CHECK_EQ(span.offset_bytes, 4096);
    CHECK_EQ(span.length_bytes, 8192);
    hang_up();
    CHECK(!vmm_zap(&vmm, &span));
    CHECK(!vmm_hears(&vmm));
    end();
    begin(false, true);
    vmm_accept(&vmm);
    CHECK(!vmm_zap(&vmm, &span));
    end();
}

static void test_a_frame_in_pieces(void)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD, .sequence = 8};

    begin(true, true);
    for (size_t i = 0; i < sizeof(frame); i++) {
        CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_NOTHING);
        CHECK_EQ(send(other, (const char *)&frame + i, 1, 0), 1);
    }
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_DISCARD);
    CHECK_EQ(discard.sequence, 8);
    end();
}

/* No frame of ours: the socket is of no more use; the process behind it may be well. */
static void test_no_frame(void)
{
    char bytes[32];

    memset(bytes, 'x', sizeof(bytes));
    for (int pidfd = 0; pidfd < 2; pidfd++) {
        begin(true, pidfd);
        CHECK_EQ(send(other, bytes, sizeof(bytes), 0), sizeof(bytes));
        CHECK_EQ(vmm_ready(&vmm, &discard, 100 * S_NS), VMM_CLOSED);
        CHECK_EQ(vmm.fd, -1);
        CHECK_EQ(vmm_ready(&vmm, &discard, 100 * S_NS), VMM_NOTHING);
        vmm_discarded(&vmm, &discard, false); /* to nobody */
        end();
    }
}

static void test_ends_with_frames(void)
{
    begin(true, true); /* the pidfd decides */
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 10 * S_NS), VMM_CLOSED);
    end();
    begin(true, false); /* a shim closes never before COMPLETE */
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 10 * S_NS), VMM_GONE);
    end();
    begin(true, false); /* and may, after it */
    vmm_complete(&vmm);
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 100 * S_NS), VMM_CLOSED);
    end();
}

static void test_ends_without_frames(void)
{
    begin(false, false); /* Firecracker up to 1.11 */
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 10 * S_NS + 1000), VMM_CLOSED);
    end();
    begin(false, false);
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 20 * S_NS), VMM_GONE);
    end();
    begin(false, true);
    hang_up();
    CHECK_EQ(vmm_ready(&vmm, &discard, 20 * S_NS), VMM_CLOSED);
    end();
}

/* Without frames nothing that it says means anything, and nothing is said to it. */
static void test_words_without_frames(void)
{
    char byte;

    begin(false, true);
    CHECK_EQ(send(other, "hello, is anybody there", 23, 0), 23);
    CHECK_EQ(vmm_ready(&vmm, &discard, 11 * S_NS), VMM_NOTHING);
    CHECK_EQ(recv(vmm.fd, &byte, 1, MSG_DONTWAIT), -1); /* all of it was read */
    vmm_accept(&vmm);
    vmm_complete(&vmm);
    CHECK_EQ(recv(other, &byte, 1, MSG_DONTWAIT), -1);
    end();
}

static void test_one_that_does_not_read(void)
{
    int said = 0;

    begin(true, true);
    while (vmm.fd >= 0 && said++ < 100000) /* comes back each time, and gives up at last */
        vmm_discarded(&vmm, &discard, false);
    CHECK_EQ(vmm.fd, -1);
    CHECK(said > 10);
    end();
}

static void test_no_socket(void)
{
    vmm_start(&vmm, -1, -1, false, 0);
    other = -1;
    vmm_accept(&vmm);
    vmm_discarded(&vmm, &discard, true);
    vmm_complete(&vmm);
    CHECK_EQ(vmm_ready(&vmm, &discard, 1), VMM_NOTHING);
    end();
}

int main(void)
{
    RUN(test_frames);
    RUN(test_zap);
    RUN(test_a_frame_in_pieces);
    RUN(test_no_frame);
    RUN(test_ends_with_frames);
    RUN(test_ends_without_frames);
    RUN(test_words_without_frames);
    RUN(test_one_that_does_not_read);
    RUN(test_no_socket);
    return check_done();
}
