/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off socket after the hand-off: see vmm.h. */
#include "vmm.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Firecracker up to 1.11 closes at once (facts/firecracker.md section 5); later than this it has exited. */
#define CLOSED_AT_ONCE_NS UINT64_C(1000000000)

void vmm_close_socket(struct vmm *vmm)
{
    if (vmm->fd >= 0)
        close(vmm->fd);
    vmm->fd = -1;
}

/* A frame is one buffer of the socket: where there is room at all it goes in whole, and frame_send does not wait. */
static bool room_in_socket(const struct vmm *vmm)
{
    struct pollfd room = {.fd = vmm->fd, .events = POLLOUT};

    return poll(&room, 1, 0) == 1 && (room.revents & (POLLOUT | POLLERR | POLLHUP)) != 0;
}

static void send_now(struct vmm *vmm, const struct frame *frame)
{
    if (frame_send(vmm->fd, frame) < 0) /* its pidfd, or the kernel, tells the rest */
        vmm_close_socket(vmm);
}

void vmm_flush(struct vmm *vmm)
{
    vmm->wants_room = false;
    while (vmm->waiting_count > 0 && vmm->fd >= 0 && room_in_socket(vmm)) {
        send_now(vmm, &vmm->waiting[vmm->waiting_first]);
        vmm->waiting_first = (vmm->waiting_first + 1) % VMM_WAITING_MAX;
        vmm->waiting_count--;
    }
}

bool vmm_has_room(struct vmm *vmm)
{
    bool room = vmm->waiting_count == 0 && vmm->fd >= 0 && room_in_socket(vmm);

    vmm->wants_room = !room;
    return room;
}

bool vmm_speaks(const struct vmm *vmm)
{
    return vmm->frames && vmm->fd >= 0;
}

uint32_t vmm_watched(const struct vmm *vmm, bool busy)
{
    bool waits = vmm->waiting_count > 0;

    return (busy || waits ? 0 : EPOLLIN) | (waits || vmm->wants_room ? EPOLLOUT : 0);
}

/* What nobody reads waits; each of these is an answer, or said once, so they are few. */
static void say_frame(struct vmm *vmm, const struct frame *frame)
{
    if (!vmm_speaks(vmm))
        return;
    if (vmm_has_room(vmm))
        send_now(vmm, frame);
    else if (vmm->waiting_count < VMM_WAITING_MAX)
        vmm->waiting[(vmm->waiting_first + vmm->waiting_count++) % VMM_WAITING_MAX] = *frame;
    else
        vmm_close_socket(vmm);
}

static void say_span(struct vmm *vmm, enum frame_kind kind, const struct vmm_span *span)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = kind, .sequence = span->sequence,
                          .offset_bytes = span->offset_bytes, .length_bytes = span->length_bytes};

    say_frame(vmm, &frame);
}

static void say(struct vmm *vmm, enum frame_kind kind)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = kind};

    say_frame(vmm, &frame);
}

void vmm_start(struct vmm *vmm, int fd, int pidfd, bool frames, uint64_t now_ns)
{
    memset(vmm, 0, sizeof(*vmm));
    vmm->fd = fd;
    vmm->pidfd = pidfd;
    vmm->frames = frames;
    vmm->opened_ns = now_ns;
}

void vmm_accept(struct vmm *vmm)
{
    if (!vmm->accepted)
        say(vmm, FRAME_ACCEPTED);
    vmm->accepted = true;
}

static enum vmm_said ended(struct vmm *vmm, uint64_t now_ns)
{
    bool at_once = !vmm->frames && now_ns - vmm->opened_ns < CLOSED_AT_ONCE_NS;

    vmm_close_socket(vmm);
    return vmm->pidfd >= 0 || at_once || vmm->completed ? VMM_CLOSED : VMM_GONE;
}

static struct vmm_span span_of(const struct frame *frame)
{
    return (struct vmm_span){frame->sequence, frame->offset_bytes, frame->length_bytes};
}

enum vmm_said vmm_ready(struct vmm *vmm, struct vmm_span *span, uint64_t now_ns)
{
    enum vmm_said said = VMM_NOTHING;
    struct frame frame;
    char bytes[256];
    int rc;

    if (vmm->fd < 0)
        return VMM_NOTHING;
    if (!vmm->frames) { /* it has nothing to say: only its end is of interest */
        ssize_t got = recv(vmm->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
        bool open = got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR));
        return open ? VMM_NOTHING : ended(vmm, now_ns);
    }
    rc = frame_receive(vmm->fd, &vmm->reader, &frame);
    if (rc == -EPROTO) { /* what it says cannot be understood any more; that does not mean that it has exited */
        vmm_close_socket(vmm);
        said = VMM_CLOSED;
    } else if (rc < 0) {
        said = ended(vmm, now_ns);
    } else if (rc == 1 && (frame.kind == FRAME_DISCARD || frame.kind == FRAME_CLEAR || frame.kind == FRAME_ZAPPED)) {
        *span = span_of(&frame);
        said = frame.kind == FRAME_DISCARD ? VMM_DISCARD : frame.kind == FRAME_CLEAR ? VMM_CLEAR : VMM_ZAPPED;
    }
    return said;
}

void vmm_discarded(struct vmm *vmm, const struct vmm_span *discard, bool kept)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARDED, .sequence = discard->sequence};

    if (kept) {
        frame.offset_bytes = discard->offset_bytes;
        frame.length_bytes = discard->length_bytes;
    }
    vmm->discarded |= !kept;
    say_frame(vmm, &frame);
}

void vmm_poisoned(struct vmm *vmm, const struct vmm_span *span, bool held)
{
    say_span(vmm, held ? FRAME_POISON_HELD : FRAME_POISONED, span);
}

void vmm_cleared(struct vmm *vmm, const struct vmm_span *span)
{
    say_span(vmm, FRAME_CLEARED, span);
}

bool vmm_hears(const struct vmm *vmm)
{
    return vmm->frames && vmm->accepted && vmm->fd >= 0;
}

bool vmm_zap(struct vmm *vmm, const struct vmm_span *span)
{
    if (vmm_hears(vmm))
        say_span(vmm, FRAME_ZAP, span);
    return vmm_hears(vmm);
}

void vmm_complete(struct vmm *vmm)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_COMPLETE};

    vmm->completed = true;
    frame.offset_bytes = vmm->huge_pages ? FRAME_COMPLETE_HUGE_PAGES : 0;
    say_frame(vmm, &frame);
}

void vmm_close(struct vmm *vmm)
{
    vmm_close_socket(vmm);
    if (vmm->pidfd >= 0)
        close(vmm->pidfd);
    vmm->pidfd = -1;
}
