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

#define VMM_WAITING_MAX 16

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
    struct frame waiting[VMM_WAITING_MAX]; /* answers for which the socket had no room: a ring */
    uint32_t waiting_first, waiting_count;
    bool wants_room; /* something else waits, too */
};

/* What a frame is about. */
struct vmm_span {
    uint64_t sequence;
    uint64_t offset_bytes;
    uint64_t length_bytes;
};

enum vmm_said { VMM_NOTHING = 0, VMM_DISCARD, VMM_CLEAR, VMM_ZAPPED, VMM_CLOSED, VMM_GONE };

void vmm_start(struct vmm *vmm, int fd, int pidfd, bool frames, uint64_t now_ns);
/* The faults of this VM are served from now on. */
void vmm_accept(struct vmm *vmm);
/*
 * The socket is readable: one thing that it says. VMM_CLOSED: it has ended (normal for Firecracker up to 1.11 right
 * after the hand-off, and for a shim after COMPLETE), the fd is closed. VMM_GONE: that can only mean that the VMM has
 * exited; where a pidfd is held, that one decides. No call here waits: what a VMM does not read waits for it, and what
 * it says meanwhile is not read either.
 */
enum vmm_said vmm_ready(struct vmm *vmm, struct vmm_span *span, uint64_t now_ns);
/* What to watch the socket for: EPOLLIN, EPOLLOUT. `busy`: the next thing it says can wait. */
uint32_t vmm_watched(const struct vmm *vmm, bool busy);
/* There is room in the socket. */
void vmm_flush(struct vmm *vmm);
/* There is room, and no answer waits for some. Where there is none, it is watched for. */
bool vmm_has_room(struct vmm *vmm);
/* It takes frames, if not yet, then as soon as it is accepted. */
bool vmm_speaks(const struct vmm *vmm);
/* The answer to a discard. `kept`: nothing is to be dropped. */
void vmm_discarded(struct vmm *vmm, const struct vmm_span *discard, bool kept);
/* These bytes are lost. `held`: whoever touches them waits, and it may answer CLEAR. */
void vmm_poisoned(struct vmm *vmm, const struct vmm_span *span, bool held);
/* These are fresh memory: the answer to its CLEAR, or, with sequence 0, by somebody else's word. */
void vmm_cleared(struct vmm *vmm, const struct vmm_span *span);
/* It takes frames: what it is told now may be answered. */
bool vmm_hears(const struct vmm *vmm);
/* Tells it to drop the mappings of these bytes, at most 2 MiB; its answer is a ZAPPED of this sequence. On private memory
 * their data goes with them. False: it does not hear that any more. */
bool vmm_zap(struct vmm *vmm, const struct vmm_span *span);
/* Every page is there: nothing has to be reported any more. */
void vmm_complete(struct vmm *vmm);
void vmm_close_socket(struct vmm *vmm);
void vmm_close(struct vmm *vmm);

#endif
