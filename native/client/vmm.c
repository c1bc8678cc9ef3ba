/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off socket after the hand-off: see vmm.h. */
#include "vmm.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Firecracker up to 1.11 closes at once (facts/firecracker.md section 5); later than this it has exited. */
#define CLOSED_AT_ONCE_NS UINT64_C(1000000000)

static void end_socket(struct vmm *vmm)
{
    if (vmm->fd >= 0)
        close(vmm->fd);
    vmm->fd = -1;
}

static void say_frame(struct vmm *vmm, const struct frame *frame)
{
    struct pollfd room = {.fd = vmm->fd, .events = POLLOUT};

    if (!vmm->frames || vmm->fd < 0)
        return;
    /* A frame is one buffer of the socket: where there is room at all it goes in whole, and frame_send does not wait.
     * Otherwise the other end is gone, or mad: its pidfd, or the kernel, tells the rest. */
    if (poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0 || frame_send(vmm->fd, frame) < 0)
        end_socket(vmm);
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

    end_socket(vmm);
    return vmm->pidfd >= 0 || at_once || vmm->completed ? VMM_CLOSED : VMM_GONE;
}

enum vmm_said vmm_ready(struct vmm *vmm, struct vmm_discard *discard, uint64_t now_ns)
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
        end_socket(vmm);
        said = VMM_CLOSED;
    } else if (rc < 0) {
        said = ended(vmm, now_ns);
    } else if (rc == 1 && frame.kind == FRAME_DISCARD) {
        discard->sequence = frame.sequence;
        discard->offset_bytes = frame.offset_bytes;
        discard->length_bytes = frame.length_bytes;
        said = VMM_DISCARD;
    }
    return said;
}

void vmm_discarded(struct vmm *vmm, const struct vmm_discard *discard, bool kept)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARDED, .sequence = discard->sequence};

    if (kept) {
        frame.offset_bytes = discard->offset_bytes;
        frame.length_bytes = discard->length_bytes;
    }
    vmm->discarded |= !kept;
    say_frame(vmm, &frame);
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
    end_socket(vmm);
    if (vmm->pidfd >= 0)
        close(vmm->pidfd);
    vmm->pidfd = -1;
}
