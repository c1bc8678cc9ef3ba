/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints as Markdown what is written once in C: the page machine (docs/page-machine.md) and the counters
 * (docs/metrics.md). A test holds the files in docs against what this prints.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/stats.h"
#include "pager/page.h"

#define HELP(name, help) help,
static const char *const state_help[] = {PAGE_STATES(HELP)};
static const char *const event_help[] = {PAGE_EVENTS(HELP)};
static const char *const action_help[] = {PAGE_ACTIONS(HELP)};

static void print_made_by(const char *what)
{
    printf("<!-- printed by native/describe.c from %s; do not edit: make generate -->\n", what);
}

static void print_words(const char *title, const char *(*name)(uint32_t), const char *const *help, uint32_t count)
{
    printf("\n| %s | meaning |\n|---|---|\n", title);
    for (uint32_t i = 0; i < count; i++)
        printf("| %s | %s |\n", name(i), help[i]);
}

static const char *state_name(uint32_t i)
{
    return page_state_name((enum page_state)i);
}

static const char *event_name(uint32_t i)
{
    return page_event_name((enum page_event)i);
}

static const char *action_name(uint32_t i)
{
    return page_action_name((enum page_action)i);
}

static void print_cell(enum page_state state, enum page_event event, bool armed)
{
    struct page_step step = page_step(state, event, armed);

    if (step.action == PAGE_ACTION_NOTHING)
        printf(" - |");
    else if (step.next == (uint8_t)state)
        printf(" %s |", action_name(step.action));
    else
        printf(" %s -> %s |", action_name(step.action), state_name(step.next));
}

static void print_steps(bool armed)
{
    printf("\n## %s\n\n| |", armed ? "Armed: faults are resolved" : "Before arming: nothing is mapped");
    for (uint32_t event = 0; event < PAGE_EVENT_COUNT; event++)
        printf(" %s |", event_name(event));
    printf("\n|---|");
    for (uint32_t event = 0; event < PAGE_EVENT_COUNT; event++)
        printf("---|");
    printf("\n");
    for (uint32_t state = 0; state < PAGE_STATE_COUNT; state++) {
        if (!armed && (state == PAGE_WANTED || state == PAGE_OWNED))
            continue; /* no page is either, before arming */
        printf("| %s |", state_name(state));
        for (uint32_t event = 0; event < PAGE_EVENT_COUNT; event++)
            print_cell((enum page_state)state, (enum page_event)event, armed);
        printf("\n");
    }
}

static void print_machine(void)
{
    print_made_by("native/pager/page.h");
    printf("\n# The page machine\n\n"
           "What happens to one page of guest memory at the fault client. Each page is one 64-bit word in a table\n"
           "that outlives the process: a state, a version, and two bits. *stale*: the page cache may hold something\n"
           "that is not this page. *held*: what cannot be was found there, and nothing is done to the page any more.\n"
           "\n"
           "An entry reads *action -> next state*; without an arrow the state stays, `-` is no step at all. Which\n"
           "news is accepted is decided before: its version must be no older than the floor and newer than what is\n"
           "held before arming, and the one of the frozen map afterwards.\n");
    print_words("state", state_name, state_help, PAGE_STATE_COUNT);
    print_words("event", event_name, event_help, PAGE_EVENT_COUNT);
    print_words("action", action_name, action_help, PAGE_ACTION_COUNT);
    print_steps(false);
    print_steps(true);
}

static void print_metrics(void)
{
    print_made_by("native/base/stats.h");
    printf("\n# Metrics\n\n"
           "The counters of the data plane, by the names they have in C, in `faultclient run --json` and, behind\n"
           "`pageferry_`, in Prometheus. A name that ends in `_total` only grows. Values are read while threads write\n"
           "them: each is right by itself, no two are of the same instant. What the control plane counts itself is in\n"
           "`pageferry/service/metrics.py`.\n"
           "\n| counter | meaning |\n|---|---|\n");
    for (uint32_t i = 0; stats_counter_name(i) != NULL; i++)
        printf("| `%s` | %s |\n", stats_counter_name(i), stats_counter_help(i));
    printf("\n## Histograms\n\n"
           "Log-linear, eight buckets for each power of two.\n"
           "\n| histogram | meaning |\n|---|---|\n");
    for (uint32_t i = 0; stats_histogram_name(i) != NULL; i++)
        printf("| `%s` | %s |\n", stats_histogram_name(i), stats_histogram_help(i));
}

int main(int argc, char **argv)
{
    int rc = 0;

    if (argc == 2 && strcmp(argv[1], "machine") == 0) {
        print_machine();
    } else if (argc == 2 && strcmp(argv[1], "metrics") == 0) {
        print_metrics();
    } else {
        fprintf(stderr, "usage: describe machine|metrics\n");
        rc = 64;
    }
    return rc;
}
