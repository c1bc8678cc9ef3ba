/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The conversation after the hand-off: see handoff.h. One thread listens for as long as the VMM lives, and nobody else
 * reads the socket; who waits for an answer, or asks how far the other end has come, waits for that thread.
 *
 * It drops mappings when it is told to (ZAP), and says so to nobody but who has asked: on shared memory their data
 * stays, and a report of it as a discard would make zeros of pages that have not arrived.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../kernel/zap.h"
#include "handoff.h"

#define STACK_BYTES (UINT64_C(256) << 10)

/* With the lock held, as all that follows. */
static bool over(const struct handoff *handoff)
{
    return handoff->complete || handoff->lost;
}

static void went_lost(struct handoff *handoff)
{
    if (over(handoff))
        return;
    if (handoff->role == HANDOFF_TRACK)
        shim_say("the page server has gone: the VM runs on, and cannot be moved any more; to move it, start it again");
    else
        shim_say("the fault client has gone before all pages were here: memory can no longer be given back (balloon, "
                 "discard), reads of absent pages wait; start it again");
    handoff->lost = true;
}

/* Every page is here. What kept huge pages away is taken back, if the VMM has asked for them or the client does; the
 * kernel knows no other way for that than to ask for them. Where writes are tracked they stay away for good. */
static void let_huge_pages_in(const struct handoff *handoff, const struct frame *complete)
{
    bool asked = handoff->huge_advice == MADV_HUGEPAGE ||
                 (handoff->huge_advice == 0 && (complete->offset_bytes & FRAME_COMPLETE_HUGE_PAGES) != 0);
    void *start = (void *)(uintptr_t)handoff->address;

    if (asked && (handoff->role & HANDOFF_TRACK) == 0 &&
        syscall(SYS_madvise, start, handoff->length_bytes, MADV_HUGEPAGE) < 0)
        shim_say("the RAM stays on small pages: %s", strerror(errno));
}

/* An unmodified VMM has no use for this; whoever reads its log has. Of many, the first and every doubling. */
static void note_poison(const struct frame *frame)
{
    const char *then = frame->kind == FRAME_POISON_HELD ? "whoever touches it waits until its poison is cleared"
                                                        : "an access to it raises SIGBUS";

    if (frame->sequence <= 16 || (frame->sequence & (frame->sequence - 1)) == 0)
        shim_say("the page at offset %" PRIu64 " of the RAM is lost, number %" PRIu64 ": %s", frame->offset_bytes,
                 frame->sequence, then);
}

static enum handoff_heard take(struct handoff *handoff, const struct frame *frame)
{
    enum handoff_heard heard = HANDOFF_HEARD_ALL;

    if (frame->kind == FRAME_COMPLETE) {
        handoff->complete = true;
        let_huge_pages_in(handoff, frame);
    } else if (frame->kind == FRAME_DISCARDED && frame->sequence == handoff->sequence) {
        handoff->answered = frame->sequence;
        handoff->keep = frame->length_bytes != 0;
    } else if (frame->kind == FRAME_POISONED || frame->kind == FRAME_POISON_HELD) {
        note_poison(frame);
    } else if (frame->kind == FRAME_ZAP) {
        heard = HANDOFF_HEARD_ZAP;
    }
    return heard;
}

enum handoff_heard handoff_hear(struct handoff *handoff, struct frame *zap)
{
    enum handoff_heard heard = HANDOFF_HEARD_ALL;
    int rc = 1;

    pthread_mutex_lock(&handoff->lock);
    while (rc == 1 && heard == HANDOFF_HEARD_ALL) {
        rc = frame_receive(handoff->socket, &handoff->reader, zap);
        if (rc == 1)
            heard = take(handoff, zap);
    }
    if (rc < 0) {
        went_lost(handoff);
        heard = HANDOFF_HEARD_END;
    }
    pthread_cond_broadcast(&handoff->changed);
    pthread_mutex_unlock(&handoff->lock);
    return heard;
}

/* -------------------------------------------------------------------------------------------------------- the listener */

static void say(struct handoff *handoff, const struct frame *frame)
{
    pthread_mutex_lock(&handoff->lock);
    frame_send(handoff->socket, frame); /* if there is nobody any more, the next word that is heard is the end */
    pthread_mutex_unlock(&handoff->lock);
}

/* Without the lock: where somebody reads events of removals, this waits for them. */
static void zap(struct handoff *handoff, const struct frame *told)
{
    struct frame answer = {.magic = FRAME_MAGIC, .kind = FRAME_ZAPPED, .sequence = told->sequence};
    struct zap_request request = {.address = handoff->address + told->offset_bytes,
                                  .length_bytes = told->length_bytes, .backing_fd = handoff->ram_fd,
                                  .offset_bytes = told->offset_bytes, .uffd = -1};
    struct zap_done done = {.why = "it lies outside of the RAM, or is more than 2 MiB"};
    int rc = -EINVAL;

    if (told->length_bytes <= ZAP_STEP_BYTES && told->offset_bytes <= handoff->length_bytes &&
        told->length_bytes <= handoff->length_bytes - told->offset_bytes)
        rc = zap_here(&request, &done);
    if (rc < 0)
        shim_say("mappings of the RAM could not be dropped (%s): %s", strerror(-rc), done.why);
    answer.length_bytes = done.done_bytes;
    answer.offset_bytes = done.done_bytes > 0 ? (uint64_t)done.method : (uint64_t)-rc;
    say(handoff, &answer);
}

static void *listen_on(void *argument)
{
    struct handoff *handoff = argument;
    struct pollfd readable = {.fd = handoff->socket, .events = POLLIN};
    enum handoff_heard heard = HANDOFF_HEARD_ALL;
    struct frame told;

    prctl(PR_SET_NAME, "pageferry-shim");
    while (heard != HANDOFF_HEARD_END) {
        poll(&readable, 1, -1);
        heard = handoff_hear(handoff, &told);
        if (heard == HANDOFF_HEARD_ZAP)
            zap(handoff, &told);
    }
    return NULL;
}

void handoff_listen(struct handoff *handoff)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    int rc;

    sigfillset(&all); /* signals are the VMM's */
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&thread, &attributes, listen_on, handoff);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (rc != 0)
        shim_die("no thread to listen to the %s: %s", handoff->role == HANDOFF_TRACK ? "page server" : "fault client",
                 strerror(rc));
}

/* ----------------------------------------------------------------------------------------------------------- discards */

/* A forked child has no listener, may have the lock as somebody held it, and has no RAM. */
static bool in_child(const struct handoff *handoff)
{
    return getpid() != handoff->pid;
}

/* With the lock held: what was said before now has been heard. The listener holds the lock from the reading of a frame
 * until it counts. */
static bool needed(struct handoff *handoff)
{
    struct pollfd readable = {.fd = handoff->socket, .events = POLLIN};

    while (!over(handoff) && poll(&readable, 1, 0) == 1)
        pthread_cond_wait(&handoff->changed, &handoff->lock);
    return (handoff->role & HANDOFF_RESTORE) != 0 && !handoff->complete;
}

bool handoff_arriving(struct handoff *handoff)
{
    bool absent;

    if (in_child(handoff))
        return (handoff->role & HANDOFF_RESTORE) != 0 && !handoff->complete;
    pthread_mutex_lock(&handoff->lock);
    absent = needed(handoff);
    pthread_mutex_unlock(&handoff->lock);
    return absent;
}

bool handoff_huge_pages(struct handoff *handoff, int advice)
{
    bool later;

    if (in_child(handoff))
        return true;
    pthread_mutex_lock(&handoff->lock);
    later = needed(handoff);
    handoff->huge_advice = advice;
    pthread_mutex_unlock(&handoff->lock);
    return later;
}

/* Waits for as long as it takes, as an access to an absent page would. A client that has said COMPLETE may close
 * without an answer; then it needs none. */
int handoff_discard(struct handoff *handoff, uint64_t offset_bytes, uint64_t length_bytes)
{
    struct frame frame = {.magic = FRAME_MAGIC, .kind = FRAME_DISCARD, .offset_bytes = offset_bytes,
                          .length_bytes = length_bytes};
    int rc = 0;

    if (in_child(handoff))
        return handoff->complete ? 0 : -EIO;
    pthread_mutex_lock(&handoff->lock);
    if (needed(handoff)) {
        frame.sequence = ++handoff->sequence;
        if (!handoff->lost)
            frame_send(handoff->socket, &frame); /* to somebody who is gone: the listener meets the end as well */
        while (!over(handoff) && handoff->answered != frame.sequence)
            pthread_cond_wait(&handoff->changed, &handoff->lock);
        if (handoff->answered == frame.sequence)
            rc = handoff->keep ? HANDOFF_KEEP : 0;
        else
            rc = handoff->complete ? 0 : -EIO;
    }
    pthread_mutex_unlock(&handoff->lock);
    return rc;
}

void handoff_dropped(const struct handoff *handoff, uint64_t address, uint64_t length_bytes)
{
    int before = errno, rc = 0;

    if ((handoff->role & HANDOFF_TRACK) != 0)
        rc = zap_count_written(handoff->uffd, address, length_bytes);
    if (rc < 0)
        shim_say("cannot see to it that dropped memory counts as written (%s): do not move this VM", strerror(-rc));
    errno = before;
}
