/* SPDX-License-Identifier: Apache-2.0 */
/* The page machine of page.h, laid out once as an array: state x event x armed. */
#include "page.h"

#include <stddef.h>

/* Columns of the last index. */
#define STEP_UNARMED(state, event, action_, next_) \
    [PAGE_##state][PAGE_EVENT_##event][0] = \
        {.action = PAGE_ACTION_##action_, .next = PAGE_##next_, .legal = PAGE_ACTION_##action_ != PAGE_ACTION_ILLEGAL},
#define STEP_ARMED(state, event, action_, next_) \
    [PAGE_##state][PAGE_EVENT_##event][1] = \
        {.action = PAGE_ACTION_##action_, .next = PAGE_##next_, .legal = PAGE_ACTION_##action_ != PAGE_ACTION_ILLEGAL},
#define STEP_ANY(state, event, action, next) \
    STEP_UNARMED(state, event, action, next) STEP_ARMED(state, event, action, next)
#define STEP(state, event, armed, action, next) STEP_##armed(state, event, action, next)

static const struct page_step page_steps[PAGE_STATE_COUNT][PAGE_EVENT_COUNT][2] = {PAGE_STEPS(STEP)};

#define NAME(name, help) #name,
static const char *const state_names[] = {PAGE_STATES(NAME)};
static const char *const event_names[] = {PAGE_EVENTS(NAME)};
static const char *const action_names[] = {PAGE_ACTIONS(NAME)};

struct page_step page_step(enum page_state state, enum page_event event, bool armed)
{
    struct page_step step = page_steps[state][event][armed];

    if (!step.legal)
        step.next = (uint8_t)state; /* a cell that is not named says so by being all zeros */
    return step;
}

const char *page_state_name(enum page_state state)
{
    return (unsigned)state < PAGE_STATE_COUNT ? state_names[state] : NULL;
}

const char *page_event_name(enum page_event event)
{
    return (unsigned)event < PAGE_EVENT_COUNT ? event_names[event] : NULL;
}

const char *page_action_name(enum page_action action)
{
    return (unsigned)action < PAGE_ACTION_COUNT ? action_names[action] : NULL;
}
