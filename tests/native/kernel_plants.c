/* SPDX-License-Identifier: Apache-2.0 */
/* The planted disagreements of kernel_plants.h. */
#include "kernel_plants.h"

#include <string.h>

/* --------------------------------------------------------------------------------------------- results and progress */

static void already_is_success(struct shot *shot)
{
    if (shot->call == SIM_COPY && shot->outcome->result == KERNEL_ALREADY)
        *shot->outcome = (struct kernel_outcome){.result = KERNEL_MAPPED, .done_bytes = shot->count * PAGE_BYTES};
}

static void absent_is_already(struct shot *shot)
{
    if (shot->call == SIM_MAP && shot->outcome->result == KERNEL_ABSENT)
        shot->outcome->result = KERNEL_ALREADY;
}

static void absent_is_refused(struct shot *shot)
{
    if (shot->call != SIM_MAP && shot->outcome->result == KERNEL_ABSENT)
        shot->outcome->result = KERNEL_REFUSED;
}

static void a_gone_vmm_is_absent(struct shot *shot)
{
    if (shot->outcome->result == KERNEL_GONE)
        shot->outcome->result = KERNEL_ABSENT;
}

static void progress_is_forgotten(struct shot *shot)
{
    if (shot->call != SIM_READ && shot->outcome->result != KERNEL_MAPPED)
        shot->outcome->done_bytes = 0;
}

static void progress_is_one_page_more(struct shot *shot)
{
    if (shot->call == SIM_ZERO && shot->outcome->result == KERNEL_ALREADY)
        shot->outcome->done_bytes += PAGE_BYTES;
}

/* --------------------------------------------------------------------------------------------------------- wake-ups */

static void nobody_is_woken(struct shot *shot)
{
    if (shot->call == SIM_MAP || shot->call == SIM_COPY)
        memcpy(shot->sim->threads, shot->threads_before, sizeof(shot->threads_before));
}

static void one_of_two_is_woken(struct shot *shot)
{
    uint32_t woken = 0;

    for (uint32_t i = 0; i < SIM_THREADS; i++) {
        bool wakes = shot->threads_before[i].sleeps && !shot->sim->threads[i].sleeps;
        if (wakes && woken++ > 0)
            shot->sim->threads[i] = shot->threads_before[i];
    }
}

static void already_wakes(struct shot *shot)
{
    for (uint32_t i = 0; i < SIM_THREADS && shot->outcome->result == KERNEL_ALREADY; i++)
        if (shot->sim->threads[i].page >= shot->first && shot->sim->threads[i].page < shot->first + shot->count)
            shot->sim->threads[i].sleeps = false;
}

static void poison_wakes_nobody(struct shot *shot)
{
    if (shot->call == SIM_POISON)
        memcpy(shot->sim->threads, shot->threads_before, sizeof(shot->threads_before));
}

static void wake_wakes_nobody(struct shot *shot)
{
    if (shot->call == SIM_WAKE)
        memcpy(shot->sim->threads, shot->threads_before, sizeof(shot->threads_before));
}

/* ---------------------------------------------------------------------------------------- content, cache, mappings */

static void copied_bytes_are_others(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_COPY && page < shot->first + shot->count; page++)
        if (!shot->pages_before[page].present)
            shot->sim->pages[page].token = 0;
}

static void copy_overwrites_the_cache(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_COPY && page < shot->first + shot->count; page++)
        if (shot->pages_before[page].present)
            shot->sim->pages[page].token ^= 1;
}

static void a_zero_page_is_not_zeros(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_ZERO && page < shot->first + shot->count; page++)
        if (!shot->pages_before[page].present && shot->sim->pages[page].present)
            shot->sim->pages[page].token = 1;
}

static void populate_maps_too(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_POPULATE && page < shot->first + shot->count; page++)
        shot->sim->pages[page].pte = SIM_PTE_MAPPED;
}

static void poison_drops_the_bytes(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_POISON && page < shot->first + shot->count; page++)
        if (shot->sim->pages[page].pte == SIM_PTE_POISON)
            shot->sim->pages[page].present = false;
}

static void a_punch_keeps_the_bytes(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_PUNCH && page < shot->first + shot->count; page++) {
        shot->sim->pages[page].present = shot->pages_before[page].present;
        shot->sim->pages[page].token = shot->pages_before[page].token;
    }
}

static void a_punch_keeps_the_mapping(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_PUNCH && page < shot->first + shot->count; page++)
        shot->sim->pages[page] = shot->pages_before[page];
}

static void a_marker_stays(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_MAP && page < shot->first + shot->count; page++)
        if (shot->pages_before[page].pte == SIM_PTE_POISON)
            shot->sim->pages[page].pte = SIM_PTE_POISON;
}

static void a_marker_goes_with_the_bytes(struct shot *shot)
{
    for (uint64_t page = shot->first; shot->call == SIM_PUNCH && page < shot->first + shot->count; page++)
        shot->sim->pages[page].pte = SIM_PTE_NONE;
}

/* ----------------------------------------------------------------------------------------------------------- events */

static void a_flag_is_lost(struct shot *shot)
{
    for (int i = 0; i < shot->event_count; i++)
        if (shot->events[i].kind == KERNEL_EVENT_FAULT)
            shot->events[i].flags &= ~(uint64_t)KERNEL_FAULT_WRITE;
}

static void a_flag_is_a_verdict(struct shot *shot)
{
    for (int i = 0; i < shot->event_count; i++) {
        uint64_t page;
        if (shot->events[i].kind != KERNEL_EVENT_FAULT ||
            !regions_page(shot->sim->regions, shot->events[i].address, &page))
            continue;
        shot->events[i].flags &= ~(uint64_t)KERNEL_FAULT_MINOR;
        if (shot->sim->pages[page].present)
            shot->events[i].flags |= KERNEL_FAULT_MINOR;
    }
}

static void an_event_is_lost(struct shot *shot)
{
    if (shot->event_count > 1)
        shot->event_count--;
}

static void events_come_in_another_order(struct shot *shot)
{
    for (int i = 0, last = shot->event_count - 1; i < last; i++, last--) {
        struct kernel_event first = shot->events[i];
        shot->events[i] = shot->events[last];
        shot->events[last] = first;
    }
}

static void a_fault_is_told_twice(struct shot *shot)
{
    for (uint32_t i = 0; i < SIM_THREADS && shot->call == SIM_MAP; i++)
        shot->sim->threads[i].event_read = false;
}

static void a_removal_ends_a_page_early(struct shot *shot)
{
    for (int i = 0; i < shot->event_count; i++)
        if (shot->events[i].kind == KERNEL_EVENT_REMOVE)
            shot->events[i].end -= PAGE_BYTES;
}

const struct plant plants[] = {
    {.name = "already_is_success", .spoil = already_is_success},
    {.name = "absent_is_already", .spoil = absent_is_already},
    {.name = "absent_is_refused", .spoil = absent_is_refused},
    {.name = "a_gone_vmm_is_absent", .spoil = a_gone_vmm_is_absent},
    {.name = "progress_is_forgotten", .spoil = progress_is_forgotten},
    {.name = "progress_is_one_page_more", .spoil = progress_is_one_page_more},
    {.name = "unread_events_refuse_nothing", .deaf = true},
    {.name = "nobody_is_woken", .spoil = nobody_is_woken},
    {.name = "one_of_two_is_woken", .spoil = one_of_two_is_woken},
    {.name = "already_wakes", .spoil = already_wakes},
    {.name = "poison_wakes_nobody", .spoil = poison_wakes_nobody},
    {.name = "wake_wakes_nobody", .spoil = wake_wakes_nobody},
    {.name = "copied_bytes_are_others", .spoil = copied_bytes_are_others},
    {.name = "copy_overwrites_the_cache", .spoil = copy_overwrites_the_cache},
    {.name = "a_zero_page_is_not_zeros", .spoil = a_zero_page_is_not_zeros},
    {.name = "populate_maps_too", .spoil = populate_maps_too},
    {.name = "poison_drops_the_bytes", .spoil = poison_drops_the_bytes},
    {.name = "a_punch_keeps_the_bytes", .spoil = a_punch_keeps_the_bytes},
    {.name = "a_punch_keeps_the_mapping", .spoil = a_punch_keeps_the_mapping},
    {.name = "a_marker_stays", .spoil = a_marker_stays},
    {.name = "a_marker_goes_with_the_bytes", .spoil = a_marker_goes_with_the_bytes},
    {.name = "a_flag_is_lost", .spoil = a_flag_is_lost},
    {.name = "a_flag_is_a_verdict", .spoil = a_flag_is_a_verdict},
    {.name = "an_event_is_lost", .spoil = an_event_is_lost},
    {.name = "events_come_in_another_order", .spoil = events_come_in_another_order},
    {.name = "a_fault_is_told_twice", .spoil = a_fault_is_told_twice},
    {.name = "a_removal_ends_a_page_early", .spoil = a_removal_ends_a_page_early},
};
const uint32_t plant_count = sizeof(plants) / sizeof(plants[0]);

/* ------------------------------------------------------------------------------------------------------ the wrapper */

static struct shot shot_of(struct side *side, enum sim_call call, const struct kernel_span *span)
{
    struct shot shot = {.sim = &side->sim, .call = call};

    if (span != NULL && regions_page(&side->regions, span->address, &shot.first)) {
        shot.count = span->length_bytes / PAGE_BYTES;
        if (shot.count > SIDE_PAGES - shot.first)
            shot.count = SIDE_PAGES - shot.first;
    }
    memcpy(shot.pages_before, side->sim.pages, sizeof(shot.pages_before));
    memcpy(shot.threads_before, side->sim.threads, sizeof(shot.threads_before));
    return shot;
}

static struct kernel_outcome call_sim(struct sim_kernel *sim, enum sim_call call, const struct kernel_span *span,
                                      const void *bytes)
{
    switch (call) {
    case SIM_POPULATE:
        return sim_kernel_ops.populate(sim, span, bytes);
    case SIM_MAP:
        return sim_kernel_ops.map(sim, span);
    case SIM_COPY:
        return sim_kernel_ops.copy(sim, span, bytes);
    case SIM_ZERO:
        return sim_kernel_ops.zero(sim, span);
    case SIM_PUNCH:
        return sim_kernel_ops.punch(sim, span);
    case SIM_POISON:
        return sim_kernel_ops.poison(sim, span);
    default:
        return sim_kernel_ops.wake(sim, span);
    }
}

static struct kernel_outcome planted_call(struct side *side, enum sim_call call, const struct kernel_span *span,
                                          const void *bytes)
{
    struct shot shot = shot_of(side, call, span);
    struct sim_removal removals[SIM_REMOVALS];
    bool deaf = side->plant != NULL && side->plant->deaf;
    struct kernel_outcome outcome;

    memcpy(removals, side->sim.removals, sizeof(removals));
    if (deaf)
        memset(side->sim.removals, 0, sizeof(side->sim.removals));
    outcome = call_sim(&side->sim, call, span, bytes);
    memcpy(side->sim.removals, removals, sizeof(removals));
    shot.outcome = &outcome;
    if (side->plant != NULL && side->plant->spoil != NULL)
        side->plant->spoil(&shot);
    return outcome;
}

static int planted_read(void *kernel, struct kernel_event *events, int capacity)
{
    struct side *side = kernel;
    struct shot shot = shot_of(side, SIM_READ, NULL);
    struct kernel_outcome outcome = {.result = KERNEL_MAPPED};

    side->sim.random = 1; /* a whole batch */
    shot.event_count = sim_kernel_ops.read_events(&side->sim, events, capacity);
    shot.events = events;
    shot.outcome = &outcome;
    if (side->plant != NULL && side->plant->spoil != NULL)
        side->plant->spoil(&shot);
    return shot.event_count;
}

static struct kernel_outcome planted_populate(void *kernel, const struct kernel_span *span, const void *bytes)
{
    return planted_call(kernel, SIM_POPULATE, span, bytes);
}

static struct kernel_outcome planted_map(void *kernel, const struct kernel_span *span)
{
    return planted_call(kernel, SIM_MAP, span, NULL);
}

static struct kernel_outcome planted_copy(void *kernel, const struct kernel_span *span, const void *bytes)
{
    return planted_call(kernel, SIM_COPY, span, bytes);
}

static struct kernel_outcome planted_zero(void *kernel, const struct kernel_span *span)
{
    return planted_call(kernel, SIM_ZERO, span, NULL);
}

static struct kernel_outcome planted_punch(void *kernel, const struct kernel_span *span)
{
    return planted_call(kernel, SIM_PUNCH, span, NULL);
}

static struct kernel_outcome planted_poison(void *kernel, const struct kernel_span *span)
{
    return planted_call(kernel, SIM_POISON, span, NULL);
}

static struct kernel_outcome planted_wake(void *kernel, const struct kernel_span *span)
{
    return planted_call(kernel, SIM_WAKE, span, NULL);
}

const struct kernel_ops planted_ops = {
    .read_events = planted_read,
    .populate = planted_populate,
    .map = planted_map,
    .copy = planted_copy,
    .zero = planted_zero,
    .punch = planted_punch,
    .poison = planted_poison,
    .wake = planted_wake,
};
