/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The socket to the VMM after the hand-off, and whether the VMM still lives. A VMM without frames (Firecracker) says
 * nothing more; one with the shim reports discards and waits for the answer.
 */
#ifndef PAGEFERRY_VMM_H
#define PAGEFERRY_VMM_H

#include <stdbool.h>
#include <stdint.h>

#include "../kernel/frames.h"

struct vmm {
    int fd;    /* -1: closed, or there is none */
    int pidfd; /* -1: there is none */
    bool frames;
    bool accepted;
    bool completed; /* COMPLETE was said: the other end may close */
    bool huge_pages; /* and says that they are wanted again; set after vmm_start */
    bool discarded; /* one was answered, and not kept */
    uint64_t opened_ns;
    struct frame_reader reader;
};

struct vmm_discard {
    uint64_t sequence;
    uint64_t offset_bytes;
    uint64_t length_bytes;
};

enum vmm_said { VMM_NOTHING = 0, VMM_DISCARD, VMM_CLOSED, VMM_GONE };

void vmm_start(struct vmm *vmm, int fd, int pidfd, bool frames, uint64_t now_ns);
/* The faults of this VM are served from now on. */
void vmm_accept(struct vmm *vmm);
/*
 * The socket is readable: one thing that it says. VMM_CLOSED: it has ended (normal for Firecracker up to 1.11 right
 * after the hand-off, and for a shim after COMPLETE), the fd is closed. VMM_GONE: that can only mean that the VMM has
 * exited; where a pidfd is held, that one decides. No call here waits: a VMM that does not read its frames is taken for
 * closed.
 */
enum vmm_said vmm_ready(struct vmm *vmm, struct vmm_discard *discard, uint64_t now_ns);
/* The answer to a discard. `kept`: nothing is to be dropped. */
void vmm_discarded(struct vmm *vmm, const struct vmm_discard *discard, bool kept);
/* Every page is there: nothing has to be reported any more. */
void vmm_complete(struct vmm *vmm);
void vmm_close(struct vmm *vmm);

#endif
