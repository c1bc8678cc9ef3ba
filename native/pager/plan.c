/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of plan.h: a cursor that goes round the table, and the ranges that are under way. */
#include "plan.h"

#include <string.h>

/* The flight that a page is part of, or NULL. */
static const struct plan_range *flight_of(const struct plan *plan, uint64_t page)
{
    const struct plan_range *found = NULL;

    for (uint32_t i = 0; plan->flight_count > 0 && i < PLAN_FLIGHTS_MAX; i++)
        if (plan->flights[i].page_count > 0 && page - plan->flights[i].first_page < plan->flights[i].page_count)
            found = &plan->flights[i];
    return found;
}

static bool lacking(const struct plan *plan, uint64_t page)
{
    uint64_t word = table_word(plan->table, page);

    return page_state(word) == PAGE_MISSING && !page_held(word) && flight_of(plan, page) == NULL;
}

static void note_flight(struct plan *plan, const struct plan_range *range)
{
    uint32_t place = 0;

    while (plan->flights[place].page_count > 0)
        place++;
    plan->flights[place] = *range;
    plan->flight_count++;
}

void plan_start(struct plan *plan, const struct table *table)
{
    memset(plan, 0, sizeof(*plan));
    plan->table = table;
}

static bool within_unit(const struct plan *plan, uint64_t page)
{
    return plan->unit_pages > 1 && page % plan->unit_pages != 0;
}

void plan_hint(struct plan *plan, uint64_t page)
{
    uint64_t next = page + 1;

    if (within_unit(plan, next)) /* the fault has asked for the rest of it */
        next += plan->unit_pages - next % plan->unit_pages;
    next = next < plan->table->page_count ? next : 0;
    plan->hinted_plus_1 = within_unit(plan, plan->cursor) ? next + 1 : 0;
    if (plan->hinted_plus_1 == 0)
        plan->cursor = next;
    plan->passed_pages = 0;
}

static void go_on_at(struct plan *plan, uint64_t page)
{
    plan->cursor = page < plan->table->page_count ? page : 0;
    if (plan->hinted_plus_1 != 0 && !within_unit(plan, plan->cursor)) {
        plan->cursor = plan->hinted_plus_1 - 1;
        plan->hinted_plus_1 = 0;
        plan->passed_pages = 0;
    }
}

bool plan_next(struct plan *plan, uint64_t pages_max, uint64_t look_pages, struct plan_range *range, bool *exhausted)
{
    uint64_t page_count = plan->table->page_count;
    bool found = false;

    *exhausted = false;
    if (plan->flight_count == PLAN_FLIGHTS_MAX || pages_max == 0)
        return false;
    while (!found && look_pages > 0 && plan->passed_pages < page_count) {
        found = lacking(plan, plan->cursor);
        look_pages--;
        if (!found) {
            plan->passed_pages++;
            go_on_at(plan, plan->cursor + 1);
        }
    }
    if (found) {
        range->first_page = plan->cursor;
        range->page_count = 1;
        while (range->page_count < pages_max && range->first_page + range->page_count < page_count &&
               (plan->unit_pages <= 1 || within_unit(plan, range->first_page + range->page_count)) &&
               lacking(plan, range->first_page + range->page_count))
            range->page_count++;
        go_on_at(plan, range->first_page + range->page_count);
        plan->passed_pages = 0;
        note_flight(plan, range);
    } else if (plan->passed_pages >= page_count) {
        *exhausted = true;
        plan->passed_pages = 0; /* words change: the next call begins a new pass */
    }
    return found;
}

void plan_landed(struct plan *plan, uint64_t first_page)
{
    for (uint32_t i = 0; i < PLAN_FLIGHTS_MAX; i++)
        if (plan->flights[i].page_count > 0 && plan->flights[i].first_page == first_page) {
            plan->flights[i].page_count = 0;
            plan->flight_count--;
            plan->passed_pages = 0;
        }
}
