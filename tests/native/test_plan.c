/* SPDX-License-Identifier: Apache-2.0 */
/* Which range bulk fetches next. */
#include "pager/plan.h"

#include "check.h"

#define PAGES 100

static struct table table;
static struct plan plan;
static struct plan_range range;
static bool exhausted;

static void begin(void)
{
    table_close(&table);
    CHECK_EQ(table_create(PAGES, &table), 0);
    plan_start(&plan, &table);
}

static void set(uint64_t first, uint64_t count, enum page_state state)
{
    for (uint64_t i = 0; i < count; i++)
        table_set(&table, first + i, page_word(state, false, 1));
}

static void ranges_follow_one_another_and_wrap(void)
{
    begin();
    set(10, 10, PAGE_OWNED);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 0);
    CHECK_EQ(range.page_count, 10);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 20);
    CHECK_EQ(range.page_count, 16);
    plan_hint(&plan, 93);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 94);
    CHECK_EQ(range.page_count, 6); /* to the end */
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 36); /* wrapped: 0..9 and 20..35 are under way */
    CHECK_EQ(plan.flight_count, 4);
}

static void only_missing_pages_count(void)
{
    begin();
    set(0, PAGES, PAGE_WANTED);
    set(50, 1, PAGE_MISSING);
    set(52, 2, PAGE_MISSING);
    table_set(&table, 53, table_word(&table, 53) | PAGE_HELD);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 50);
    CHECK_EQ(range.page_count, 1);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 52);
    CHECK_EQ(range.page_count, 1);
    CHECK(!plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK(exhausted);
}

static void a_look_is_bounded_and_goes_on(void)
{
    begin();
    set(0, PAGES, PAGE_OWNED);
    set(70, 1, PAGE_MISSING);
    CHECK(!plan_next(&plan, 16, 40, &range, &exhausted));
    CHECK(!exhausted);
    CHECK(plan_next(&plan, 16, 40, &range, &exhausted));
    CHECK_EQ(range.first_page, 70);
    set(70, 1, PAGE_OWNED);
    CHECK(!plan_next(&plan, 16, 60, &range, &exhausted));
    CHECK(!exhausted);
    CHECK(!plan_next(&plan, 16, 60, &range, &exhausted));
    CHECK(exhausted);
}

static void what_landed_or_was_lost_is_planned_again(void)
{
    begin();
    set(16, PAGES - 16, PAGE_OWNED);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK(!plan_next(&plan, 16, PAGES, &range, &exhausted));
    plan_landed(&plan, 1); /* no such flight */
    CHECK(!plan_next(&plan, 16, PAGES, &range, &exhausted));
    set(0, 8, PAGE_OWNED);
    plan_landed(&plan, 0);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 8);
    CHECK_EQ(range.page_count, 8);
}

static void flights_are_bounded(void)
{
    begin();
    for (int i = 0; i < PLAN_FLIGHTS_MAX; i++)
        CHECK(plan_next(&plan, 1, PAGES, &range, &exhausted));
    CHECK(!plan_next(&plan, 1, PAGES, &range, &exhausted));
    CHECK(!exhausted);
    plan_landed(&plan, 5);
    CHECK(plan_next(&plan, 1, PAGES, &range, &exhausted));
}

/* Else each fault would leave a half of one behind. */
static void a_unit_is_ended_before_a_fault_is_followed(void)
{
    begin();
    plan.unit_pages = 20;
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    plan_hint(&plan, 67); /* it has asked for 60 to 79 */
    set(60, 20, PAGE_WANTED);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 16);
    CHECK_EQ(range.page_count, 4); /* never into the next */
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 80);
    set(96, 4, PAGE_ZERO);
    plan_hint(&plan, 99);
    CHECK(!plan_next(&plan, 16, 3, &range, &exhausted)); /* looks on to the end of this one, and goes to the front */
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 20);
    CHECK_EQ(range.page_count, 16);
    plan_landed(&plan, 20);
    plan_hint(&plan, 5);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 36);
    CHECK(plan_next(&plan, 16, PAGES, &range, &exhausted));
    CHECK_EQ(range.first_page, 20); /* behind the fault's unit */
}

int main(void)
{
    table.fd = -1;
    RUN(ranges_follow_one_another_and_wrap);
    RUN(only_missing_pages_count);
    RUN(a_look_is_bounded_and_goes_on);
    RUN(what_landed_or_was_lost_is_planned_again);
    RUN(flights_are_bounded);
    RUN(a_unit_is_ended_before_a_fault_is_followed);
    table_close(&table);
    return check_done();
}
