/* SPDX-License-Identifier: Apache-2.0 */
/* The page machine: its table, its names, its word. */
#include "pager/page.h"

#include <stddef.h>
#include <string.h>

#include "check.h"

static void names_end_where_the_table_ends(void)
{
    CHECK(strcmp(page_state_name(PAGE_MISSING), "MISSING") == 0);
    CHECK(strcmp(page_state_name(PAGE_POISONED), "POISONED") == 0);
    CHECK(page_state_name((enum page_state)PAGE_STATE_COUNT) == NULL);
    CHECK(strcmp(page_event_name(PAGE_EVENT_LOST), "LOST") == 0);
    CHECK(page_event_name((enum page_event)PAGE_EVENT_COUNT) == NULL);
    CHECK(strcmp(page_action_name(PAGE_ACTION_MAP_ZERO), "MAP_ZERO") == 0);
    CHECK(page_action_name((enum page_action)PAGE_ACTION_COUNT) == NULL);
}

static void a_word_keeps_its_parts(void)
{
    uint64_t version = UINT64_C(1) << 32 | 77, word = page_word(PAGE_CACHED, true, version);

    CHECK_EQ(page_state(word), PAGE_CACHED);
    CHECK(page_stale(word));
    CHECK(!page_held(word));
    CHECK_EQ(page_version(word), version);
    CHECK(page_held(word | PAGE_HELD));
    CHECK_EQ(page_version(word | PAGE_HELD), version);
    CHECK_EQ(page_word(PAGE_MISSING, false, 0), 0); /* a fresh table is all MISSING */
}

static void a_cell_that_is_not_named_does_nothing(void)
{
    struct page_step step = page_step(PAGE_OWNED, PAGE_EVENT_SWEEP, true);

    CHECK_EQ(step.action, PAGE_ACTION_NOTHING);
    CHECK_EQ(step.next, PAGE_OWNED);
    CHECK(!step.legal);
}

static void an_illegal_cell_changes_nothing(void)
{
    for (int state = PAGE_MISSING; state <= PAGE_OWNED; state++) {
        struct page_step step = page_step((enum page_state)state, PAGE_EVENT_FLOOR, true);
        CHECK_EQ(step.action, PAGE_ACTION_ILLEGAL);
        CHECK_EQ(step.next, state);
        CHECK(!step.legal);
    }
}

static void any_names_both_columns(void)
{
    for (int armed = 0; armed < 2; armed++) {
        struct page_step step = page_step(PAGE_MISSING, PAGE_EVENT_LOST, armed);
        CHECK_EQ(step.action, PAGE_ACTION_POISON);
        CHECK_EQ(step.next, PAGE_POISONED);
        CHECK(step.legal);
    }
}

/* What must hold of the table as a whole, whatever is changed in it. */
static void nothing_leaves_owned_but_poison(void)
{
    for (int event = 0; event < PAGE_EVENT_COUNT; event++)
        for (int armed = 0; armed < 2; armed++) {
            struct page_step owned = page_step(PAGE_OWNED, (enum page_event)event, armed);
            struct page_step poisoned = page_step(PAGE_POISONED, (enum page_event)event, armed);
            CHECK(owned.next == PAGE_OWNED || event == PAGE_EVENT_LOST);
            CHECK(poisoned.next == PAGE_POISONED || event == PAGE_EVENT_CLEARED);
        }
}

static void nothing_is_owned_or_asked_before_arming(void)
{
    for (int state = 0; state < PAGE_STATE_COUNT; state++)
        for (int event = 0; event < PAGE_EVENT_COUNT; event++) {
            struct page_step step = page_step((enum page_state)state, (enum page_event)event, false);
            CHECK(step.next != PAGE_OWNED || state == PAGE_OWNED);
            CHECK(step.next != PAGE_WANTED || state == PAGE_WANTED);
            CHECK(step.action != PAGE_ACTION_MAP && step.action != PAGE_ACTION_MAP_ZERO);
            CHECK(step.action != PAGE_ACTION_PLACE && step.action != PAGE_ACTION_ASK);
        }
}

int main(void)
{
    RUN(names_end_where_the_table_ends);
    RUN(a_word_keeps_its_parts);
    RUN(a_cell_that_is_not_named_does_nothing);
    RUN(an_illegal_cell_changes_nothing);
    RUN(any_names_both_columns);
    RUN(nothing_leaves_owned_but_poison);
    RUN(nothing_is_owned_or_asked_before_arming);
    return check_done();
}
