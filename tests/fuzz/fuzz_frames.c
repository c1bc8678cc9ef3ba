/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames of the hand-off socket, arbitrary bytes in arbitrary pieces, at each of their readers: the reader itself,
 * the fault client (client/vmm.h) and the shim (vmm/handoff.h). What comes out is held against the bytes that went in.
 *
 * Input: a byte that chooses the reader and the pieces, then the bytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/vmm.h"
#include "fuzz.h"
#include "kernel/frames.h"
#include "vmm/handoff.h"

#define READERS 4
#define FRAME_BYTES sizeof(struct frame)
#define SECOND_NS UINT64_C(1000000000)

static const size_t pieces[] = {1, 7, 32, 33, 4096};

/* What the reader must find: frames one after another, until one is none. */
struct expected {
    const uint8_t *data;
    size_t size; /* of what was sent */
    size_t at;
    bool broken;
};

static bool next_frame(struct expected *expected, struct frame *frame)
{
    if (expected->broken || expected->size - expected->at < FRAME_BYTES)
        return false;
    memcpy(frame, expected->data + expected->at, FRAME_BYTES);
    expected->at += FRAME_BYTES;
    expected->broken = frame->magic != FRAME_MAGIC || frame->kind < FRAME_ACCEPTED;
    return !expected->broken;
}

/* ------------------------------------------------------------------------------------------------ the frame reader */

/* Reads what there is. False: it is over. */
static bool read_frames(int fd, struct frame_reader *reader, struct expected *expected)
{
    struct frame got, must_be;
    int rc = 1;

    while (rc == 1) {
        rc = frame_receive(fd, reader, &got);
        fuzz_check(reader->have_bytes < FRAME_BYTES);
        if (next_frame(expected, &must_be))
            fuzz_check(rc == 1 && memcmp(&got, &must_be, FRAME_BYTES) == 0);
        else
            fuzz_check(rc == (expected->broken ? -EPROTO : 0));
    }
    return rc == 0;
}

static void at_reader(int ends[2], struct expected *expected, size_t size, size_t piece)
{
    struct frame_reader reader = {0};
    struct frame frame;
    bool open = true;

    while (open && expected->size < size) {
        size_t length = size - expected->size < piece ? size - expected->size : piece;
        fuzz_check(send(ends[1], expected->data + expected->size, length, 0) == (ssize_t)length);
        expected->size += length;
        open = read_frames(ends[0], &reader, expected);
    }
    close(ends[1]);
    ends[1] = -1;
    if (open)
        fuzz_check(frame_receive(ends[0], &reader, &frame) == -EPIPE);
}

/* ------------------------------------------------------------------------------------------------- the fault client */

/* What the client says meanwhile must be frames, too. */
static void listen_to_client(int fd)
{
    struct frame_reader reader = {0};
    struct frame frame;
    int rc;

    while ((rc = frame_receive(fd, &reader, &frame)) == 1)
        fuzz_check(frame.kind == FRAME_ACCEPTED || frame.kind == FRAME_DISCARDED || frame.kind == FRAME_COMPLETE ||
                   frame.kind == FRAME_CLEARED || frame.kind == FRAME_POISONED || frame.kind == FRAME_POISON_HELD ||
                   frame.kind == FRAME_ZAP);
    fuzz_check(rc == 0 || rc == -EPIPE);
}

static void turn_client(struct vmm *vmm, struct expected *expected)
{
    struct vmm_span discard;
    struct frame must_be;

    for (;;) {
        bool was_open = vmm->fd >= 0, frame = was_open && vmm->frames && next_frame(expected, &must_be);
        enum vmm_said said = vmm_ready(vmm, &discard, SECOND_NS / 2);
        if (frame && (must_be.kind == FRAME_DISCARD || must_be.kind == FRAME_CLEAR)) {
            fuzz_check(said == (must_be.kind == FRAME_CLEAR ? VMM_CLEAR : VMM_DISCARD) &&
                       discard.sequence == must_be.sequence &&
                       discard.offset_bytes == must_be.offset_bytes && discard.length_bytes == must_be.length_bytes);
            if (said == VMM_CLEAR)
                vmm_cleared(vmm, &discard);
            else
                vmm_discarded(vmm, &discard, discard.sequence % 2 == 0);
        } else if (frame && must_be.kind == FRAME_ZAPPED) {
            fuzz_check(said == VMM_ZAPPED && discard.sequence == must_be.sequence);
        } else {
            fuzz_check(said == (was_open && expected->broken ? VMM_CLOSED : VMM_NOTHING));
            fuzz_check(!expected->broken || vmm->fd < 0);
        }
        if (!frame)
            break;
    }
}

/* What it says by itself, while there is room. */
static void say_as_client(struct vmm *vmm, size_t said)
{
    struct vmm_span span = {.sequence = said, .offset_bytes = said * 4096, .length_bytes = 4096};

    if (vmm_speaks(vmm) && vmm_has_room(vmm))
        vmm_poisoned(vmm, &span, said % 2 == 0);
    if (vmm_hears(vmm))
        vmm_zap(vmm, &span);
    if (vmm_watched(vmm, false) != 0)
        vmm_flush(vmm);
}

static void at_client(int ends[2], struct expected *expected, size_t size, size_t piece, uint8_t choice)
{
    struct vmm_span discard;
    bool frames = (choice & 1) != 0, complete = (choice & 2) != 0, pidfd = (choice & 4) != 0;
    enum vmm_said said;
    struct vmm vmm;

    vmm_start(&vmm, ends[0], pidfd ? dup(ends[0]) : -1, frames, 0);
    ends[0] = -1;
    vmm_accept(&vmm);
    vmm_accept(&vmm);
    while (vmm.fd >= 0 && expected->size < size) {
        size_t length = size - expected->size < piece ? size - expected->size : piece;
        fuzz_check(send(ends[1], expected->data + expected->size, length, 0) == (ssize_t)length);
        expected->size += length;
        turn_client(&vmm, expected);
        listen_to_client(ends[1]);
        say_as_client(&vmm, expected->size);
        listen_to_client(ends[1]);
    }
    if (complete)
        vmm_complete(&vmm);
    close(ends[1]);
    ends[1] = -1;
    for (int i = 0; i < 300 && vmm.fd >= 0; i++) { /* a VMM without frames may have said much that nobody reads */
        said = vmm_ready(&vmm, &discard, 2 * SECOND_NS);
        fuzz_check(said == VMM_NOTHING || said == (pidfd || vmm.completed ? VMM_CLOSED : VMM_GONE));
    }
    vmm_discarded(&vmm, &discard, false); /* into the void */
    fuzz_check(vmm_ready(&vmm, &discard, 0) == VMM_NOTHING);
    vmm_close(&vmm);
}

/* --------------------------------------------------------------------------------------------------------- the shim */

ssize_t __real_write(int fd, const void *bytes, size_t length);
ssize_t __wrap_write(int fd, const void *bytes, size_t length);

/* The shim says on stderr that the other end has gone: each time, here. */
ssize_t __wrap_write(int fd, const void *bytes, size_t length)
{
    static const char line[] = "pageferry-shim: ";
    bool from_shim = fd == STDERR_FILENO && length > sizeof(line) && memcmp(bytes, line, sizeof(line) - 1) == 0;

    return from_shim ? (ssize_t)length : __real_write(fd, bytes, length);
}

/* Until nothing has come that was not heard; the ZAPs among it, in their order. */
static enum handoff_heard hear(struct handoff *handoff, struct expected *expected, bool *complete)
{
    enum handoff_heard heard = HANDOFF_HEARD_ZAP;
    struct frame zap, frame;

    while (heard == HANDOFF_HEARD_ZAP) {
        bool zaps = false;
        heard = handoff_hear(handoff, &zap);
        while (!zaps && next_frame(expected, &frame)) {
            *complete |= frame.kind == FRAME_COMPLETE;
            zaps = frame.kind == FRAME_ZAP;
        }
        fuzz_check((heard == HANDOFF_HEARD_ZAP) == zaps && (!zaps || memcmp(&zap, &frame, FRAME_BYTES) == 0));
    }
    return heard;
}

/* There is no listener: its steps are made here, and nothing may wait. Only COMPLETE, before the end, makes a discard
 * lawful. */
static void at_shim(int ends[2], struct expected *expected, size_t size, size_t piece)
{
    struct handoff handoff = {.role = HANDOFF_RESTORE, .uffd = -1, .socket = ends[0], .pid = getpid(),
                              .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    enum handoff_heard heard = HANDOFF_HEARD_ALL;
    bool complete = false;

    while (expected->size < size && heard != HANDOFF_HEARD_END) {
        size_t length = size - expected->size < piece ? size - expected->size : piece;
        fuzz_check(send(ends[1], expected->data + expected->size, length, 0) == (ssize_t)length);
        expected->size += length;
        heard = hear(&handoff, expected, &complete);
        fuzz_check((heard == HANDOFF_HEARD_END) == expected->broken);
        fuzz_check(handoff.complete == complete && handoff.lost == (!complete && expected->broken));
        fuzz_check(handoff_arriving(&handoff) == !complete);
    }
    close(ends[1]);
    ends[1] = -1;
    if (heard != HANDOFF_HEARD_END)
        fuzz_check(hear(&handoff, expected, &complete) == HANDOFF_HEARD_END);
    fuzz_check(handoff_discard(&handoff, 4096, 4096) == (complete ? 0 : -EIO));
    fuzz_check(handoff_discard(&handoff, 0, 4096) == (complete ? 0 : -EIO));
}

/* ------------------------------------------------------------------------------------------------------ the sender */

static void *read_all(void *argument)
{
    const int *end = argument;
    uint8_t bytes[65536];
    ssize_t length;
    uintptr_t total = 0;

    while ((length = recv(*end, bytes, sizeof(bytes), 0)) > 0)
        total += (uintptr_t)length;
    return (void *)total;
}

/* Into a socket that is full: it waits until somebody reads, and nothing is lost or cut. */
static void at_sender(int ends[2], const uint8_t *data, size_t size)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD};
    uintptr_t filled = 0;
    pthread_t thread;
    ssize_t sent = 1;
    void *total;

    memcpy(&frame.sequence, data, size < 24 ? size : 24);
    for (; sent > 0; filled += sent > 0 ? (uintptr_t)sent : 0)
        sent = send(ends[1], &frame, sizeof(frame) - filled % 7, MSG_DONTWAIT);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    fuzz_check(pthread_create(&thread, NULL, read_all, &ends[0]) == 0);
    fuzz_check(frame_send(ends[1], &frame) == 0 && frame_send(ends[1], &frame) == 0);
    close(ends[1]);
    ends[1] = -1;
    pthread_join(thread, &total);
    fuzz_check((uintptr_t)total == filled + 2 * FRAME_BYTES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int ends[2];

    if (size == 0 || size > 4096 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return 0;
    uint8_t *copy = fuzz_copy(data + 1, size - 1);
    struct expected expected = {.data = copy};
    size_t piece = pieces[data[0] / READERS % (sizeof(pieces) / sizeof(pieces[0]))];
    if (data[0] % READERS == 0)
        at_reader(ends, &expected, size - 1, piece);
    else if (data[0] % READERS == 1)
        at_client(ends, &expected, size - 1, piece, data[0] / READERS / 5);
    else if (data[0] % READERS == 2)
        at_shim(ends, &expected, size - 1, piece);
    else if (data[0] == 3) /* a thread each time: seldom */
        at_sender(ends, copy, size - 1);
    for (int i = 0; i < 2; i++)
        if (ends[i] >= 0)
            close(ends[i]);
    free(copy);
    return 0;
}
