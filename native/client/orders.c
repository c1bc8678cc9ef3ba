/* SPDX-License-Identifier: Apache-2.0 */
/* Orders and their answers: see orders.h. */
#include "orders.h"

#include <stdio.h>

#include "../kernel/mapping.h"

#define UNIT_BEHIND_PAGES_MAX 512 /* 2 MiB */

/* Nothing may be mapped before the first fault is served (DESIGN 3.4). Where we may not look, the hand-off's own
 * check stands. */
static bool nothing_present(struct loop *loop, char *text, size_t text_bytes)
{
    uint64_t present = 0;
    bool fine = true;

    for (uint32_t i = 0; fine && loop->vmm_pid > 0 && i < loop->regions.count; i++) {
        const struct region *region = &loop->regions.by_page[i];
        if (mapping_present(loop->vmm_pid, region->address, region->page_count * PAGE_BYTES, &present) == 0 &&
            present != 0) {
            snprintf(text, text_bytes, "%llu pages of the VM are mapped already: something has touched its memory "
                     "around the userfaultfd (prealloc? another mapper?)", (unsigned long long)present);
            fine = false;
        }
    }
    return fine;
}

void orders_refuse(struct loop *loop, uint64_t cookie, uint32_t reason, const char *why)
{
    struct pageferry_event event = {
        .kind = PAGEFERRY_EVENT_FAILED,
        .reason = reason,
        .cookie = cookie,
        .page = 1,
    };

    tell(&loop->tell, &event, why);
}

/* Nothing can be done for this VM any more: neither can this. */
static void tell_end_again(struct loop *loop, uint64_t cookie)
{
    struct pageferry_event event = loop->end;

    event.kind = PAGEFERRY_EVENT_FAILED;
    event.cookie = cookie;
    tell(&loop->tell, &event, NULL);
}

/* The guest may only run on a map that nothing changes any more, and that the table knows to its end. */
static bool map_is_final(struct loop *loop, uint64_t cookie)
{
    bool final = false;

    if (!loop->urgent.live)
        final = true;
    else if (loop->frozen_as_of == 0 || loop->urgent.round.wanted)
        orders_refuse(loop, cookie, PF_REASON_WRONG_PHASE,
                     "the image is live: its frozen map has to be read first, by a ROUND of value 0");
    else if (!urgent_agrees(&loop->urgent))
        orders_refuse(loop, cookie, PF_REASON_MISMATCH,
                     "the server's frozen map has other versions than the one that was read");
    else
        final = true;
    return final;
}

/* A fault on a huge page of 1 GiB would wait for all of it to come, seconds at least. */
static bool may_come_behind(struct loop *loop, uint64_t cookie)
{
    bool may = loop->regions.unit_pages <= UNIT_BEHIND_PAGES_MAX ||
               counts_of(&loop->engine.counts, PAGE_MISSING) + counts_of(&loop->engine.counts, PAGE_WANTED) == 0;

    if (!may)
        orders_refuse(loop, cookie, PF_REASON_UNSUPPORTED,
                      "huge pages of 1 GiB cannot come while a guest waits for them: arm when all is here (POPULATED)");
    return may;
}

static void arm(struct loop *loop, uint64_t cookie)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_ARMED, .cookie = cookie};
    char text[PAGEFERRY_TEXT_BYTES];

    loop->arm_wanted = loop->stage == LOOP_OPEN;
    loop->arm_cookie = cookie;
    if (loop->stage == LOOP_OPEN) {
        return; /* as soon as the page server has described the image */
    } else if (loop->stage == LOOP_ENDED) {
        tell_end_again(loop, cookie);
    } else if (loop->stage >= LOOP_ARMED) {
        tell(&loop->tell, &event, NULL);
    } else if (!map_is_final(loop, cookie) || !may_come_behind(loop, cookie)) {
        return;
    } else if (!nothing_present(loop, text, sizeof(text))) {
        loop_end(loop, PAGEFERRY_EVENT_FAILED, PF_REASON_MISMATCH, text);
    } else {
        loop->stage = LOOP_ARMED;
        if (loop->urgent.live)
            loop->engine.frozen_version = loop->urgent.final_as_of = loop->frozen_as_of;
        engine_arm(&loop->engine);
        vmm_accept(&loop->vmm);
        tell(&loop->tell, &event, NULL);
    }
}

static void order_round(struct loop *loop, const struct pageferry_order *order)
{
    if (loop->stage == LOOP_ENDED) {
        tell_end_again(loop, order->cookie);
    } else if (loop->stage >= LOOP_ARMED) {
        orders_refuse(loop, order->cookie, PF_REASON_WRONG_PHASE, "faults are resolved: there are no rounds any more");
    } else if (loop->urgent.round.wanted) {
        orders_refuse(loop, order->cookie, PF_REASON_BUSY, "a round is under way: one at a time");
    } else {
        loop->round_cookie = order->cookie;
        loop->frozen_as_of = 0;
        round_order(&loop->urgent.round, order->value != 0);
    }
}

bool orders_take(struct loop *loop)
{
    struct pageferry_order order;
    bool go_on = true;

    ring_silence(&loop->orders);
    while (go_on && ring_take(&loop->orders, &order)) {
        switch (order.kind) {
        case LOOP_ORDER_STOP:
            go_on = false;
            break;
        case PAGEFERRY_ORDER_ARM:
            arm(loop, order.cookie);
            break;
        case PAGEFERRY_ORDER_BACKGROUND:
            loop->background = order.value != 0;
            break;
        case PAGEFERRY_ORDER_ROUND:
            order_round(loop, &order);
            break;
        case PAGEFERRY_ORDER_LET_GO:
            if (loop->stage == LOOP_COMPLETE)
                loop->handed_on = false;
            loop_let_go_perhaps(loop);
            atomic_store(&loop->may_collapse, loop->stage == LOOP_COMPLETE);
            break;
        case PAGEFERRY_ORDER_BANDWIDTH:
            pace_cap(&loop->fill.pace, order.value);
            break;
        case PAGEFERRY_ORDER_POISON:
        case PAGEFERRY_ORDER_CLEAR_POISON:
            poison_order(loop, &order);
            break;
        case PAGEFERRY_ORDER_ZAP:
            zapper_order(loop, &order);
            break;
        default:
            orders_refuse(loop, order.cookie, PF_REASON_UNSUPPORTED, "this order is unknown here");
            break;
        }
    }
    return go_on;
}

static void look_at_round(struct loop *loop)
{
    struct pageferry_event event = {.kind = PAGEFERRY_EVENT_ROUND, .cookie = loop->round_cookie};
    struct round_outcome_of ended;

    if (loop->stage == LOOP_ATTACHED && loop->urgent.round.wanted && !loop->urgent.live)
        round_refuse(&loop->urgent.round, PF_REASON_WRONG_PHASE, "the image never changes: it has no rounds");
    if (loop->stage >= LOOP_ARMED || !round_ended_as(&loop->urgent.round, &ended))
        return;
    if (ended.outcome == ROUND_REFUSED) {
        orders_refuse(loop, loop->round_cookie, ended.reason, ended.why);
        return;
    }
    loop->frozen_as_of = ended.frozen ? ended.as_of : 0;
    loop->populated = loop->populated && engine_settled(&loop->engine);
    event.value = ended.as_of;
    event.page = ended.newer_pages;
    manifest_digest(loop->engine.sum, event.digest);
    tell(&loop->tell, &event, NULL);
}

void orders_look(struct loop *loop)
{
    look_at_round(loop);
    if (loop->arm_wanted && loop->stage == LOOP_ATTACHED)
        arm(loop, loop->arm_cookie);
}
