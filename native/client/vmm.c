/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off socket after the hand-off: see vmm.h. */
#include "vmm.h"

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

static void say(struct vmm *vmm, enum frame_kind kind, uint64_t sequence)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = kind, .sequence = sequence};

    if (vmm->frames && vmm->fd >= 0 && frame_send(vmm->fd, &frame) < 0)
        end_socket(vmm); /* the other end is gone: its pidfd, or the kernel, tells the rest */
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
        say(vmm, FRAME_ACCEPTED, 0);
    vmm->accepted = true;
}

static enum vmm_said ended(struct vmm *vmm, uint64_t now_ns)
{
    bool at_once = !vmm->frames && now_ns - vmm->opened_ns < CLOSED_AT_ONCE_NS;

    end_socket(vmm);
    return vmm->pidfd >= 0 || at_once ? VMM_CLOSED : VMM_GONE;
}

enum vmm_said vmm_ready(struct vmm *vmm, struct vmm_discard *discard, uint64_t now_ns)
{
    enum vmm_said said = VMM_NOTHING;
    struct frame frame;
    char byte;
    int rc;

    if (vmm->fd < 0)
        return VMM_NOTHING;
    if (!vmm->frames) { /* it has nothing to say: only its end is of interest */
        ssize_t got = recv(vmm->fd, &byte, 1, MSG_DONTWAIT);
        return got == 0 ? ended(vmm, now_ns) : VMM_NOTHING;
    }
    rc = frame_receive(vmm->fd, &vmm->reader, &frame);
    if (rc < 0) {
        said = ended(vmm, now_ns);
    } else if (rc == 1 && frame.kind == FRAME_DISCARD) {
        discard->sequence = frame.sequence;
        discard->offset_bytes = frame.offset_bytes;
        discard->length_bytes = frame.length_bytes;
        said = VMM_DISCARD;
    }
    return said;
}

void vmm_discarded(struct vmm *vmm, uint64_t sequence)
{
    say(vmm, FRAME_DISCARDED, sequence);
}

void vmm_complete(struct vmm *vmm)
{
    say(vmm, FRAME_COMPLETE, 0);
}

void vmm_close(struct vmm *vmm)
{
    end_socket(vmm);
    if (vmm->pidfd >= 0)
        close(vmm->pidfd);
    vmm->pidfd = -1;
}
