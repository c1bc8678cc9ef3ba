/* SPDX-License-Identifier: Apache-2.0 */
/* Cases in words: see kernel_script.h. */
#include "kernel_script.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNITS_A_CALL 6
#define EVENTS_A_READ 16

/* What is seen of one step. */
struct sight {
    char text[SIGHT_TEXT];
    size_t length;
};

struct step {
    char verb[16];
    uint64_t page, count;
    char letter;
    bool half;        /* of a huge page */
    const char *want; /* behind the arrow, or NULL */
};

__attribute__((format(printf, 2, 3))) static void see(struct sight *sight, const char *format, ...)
{
    va_list list;
    int added;

    va_start(list, format);
    added = vsnprintf(sight->text + sight->length, sizeof(sight->text) - sight->length, format, list);
    va_end(list);
    if (added < 0 || sight->length + (size_t)added >= sizeof(sight->text))
        abort(); /* what is cut off could not differ */
    sight->length += (size_t)added;
}

/* ---------------------------------------------------------------------------------------------------- what is there */

static uint64_t word_of(char letter, uint64_t page)
{
    return (uint64_t)letter << 8 | page;
}

static void see_word(struct sight *sight, int64_t word)
{
    char letter = (char)(word >> 8);

    if (word == 0)
        see(sight, "zeros");
    else if (word == SIDE_HOLE)
        see(sight, "hole");
    else if (word > 0 && letter >= 'a' && letter <= 'z' && word >> 16 == 0)
        see(sight, "%c%u", letter, (unsigned)(word & 0xff));
    else if (word == REAL_TORN)
        see(sight, "torn");
    else
        see(sight, "error %lld", -(long long)word);
}

static void see_access(struct sight *sight, const struct side_access *access)
{
    if (!access->ended) {
        see(sight, "sleeps");
    } else if (access->answer == REAL_SIGBUS || access->answer == REAL_SIGSEGV) {
        see(sight, access->answer == REAL_SIGBUS ? "sigbus" : "sigsegv");
    } else if (access->write) {
        see(sight, "wrote");
    } else {
        see(sight, "reads ");
        see_word(sight, access->answer);
    }
}

static uint64_t page_of(const struct side *side, uint64_t address)
{
    return (address - side->address) / PAGE_BYTES / side->unit_pages;
}

static void see_event(struct sight *sight, const struct side *side, const struct kernel_event *event)
{
    if (sight->length > 0)
        see(sight, ", ");
    if (event->kind == KERNEL_EVENT_REMOVE)
        see(sight, "remove %llu+%llu", (unsigned long long)page_of(side, event->start),
            (unsigned long long)((event->end - event->start) / PAGE_BYTES / side->unit_pages));
    else if (event->kind == KERNEL_EVENT_FAULT)
        see(sight, "%s%s %llu", (event->flags & KERNEL_FAULT_MINOR) != 0 ? "minor" : "missing",
            (event->flags & KERNEL_FAULT_WRITE) != 0 ? "-write" : "",
            (unsigned long long)page_of(side, event->address));
    else
        see(sight, "event %u", event->kind);
}

/* ------------------------------------------------------------------------------------------------------------ verbs */

static const char *const call_verbs[SIM_CALL_COUNT] = {
    [SIM_READ] = "events", [SIM_POPULATE] = "populate", [SIM_MAP] = "map",       [SIM_COPY] = "copy",
    [SIM_ZERO] = "zero",   [SIM_PUNCH] = "punch",       [SIM_POISON] = "poison", [SIM_WAKE] = "wake",
};

static const char *const act_verbs[] = {
    [ACT_DONTNEED] = "dontneed", [ACT_REMOVE] = "remove",   [ACT_DISCARD] = "discard", [ACT_FOREIGN] = "foreign",
    [ACT_ALLOCATE] = "allocate", [ACT_ALIAS] = "alias",     [ACT_CACHE] = "cache",     [ACT_SILENT] = "silent",
    [ACT_RECLAIM] = "reclaim",   [ACT_UNREGISTER] = "unregister", [ACT_UNMAP] = "unmap", [ACT_CUT] = "cut",
    [ACT_EXIT] = "exit",         [ACT_FULL] = "full",       [ACT_ROOM] = "room",
};

static const char *const result_words[] = {
    [KERNEL_MAPPED] = "mapped", [KERNEL_ALREADY] = "already", [KERNEL_ABSENT] = "absent",   [KERNEL_LATER] = "later",
    [KERNEL_FULL] = "full",     [KERNEL_GONE] = "gone",       [KERNEL_REFUSED] = "refused", [KERNEL_BROKEN] = "broken",
};

static struct kernel_outcome call(struct side *side, enum sim_call which, const struct step *step)
{
    static _Alignas(4096) uint8_t bytes[UNITS_A_CALL * REAL_HUGE_BYTES];
    const struct kernel_ops *ops = side->calls->ops;
    uint64_t unit_bytes = side->unit_pages * PAGE_BYTES;
    struct kernel_span span = {.address = side->address + step->page * unit_bytes,
                               .length_bytes = step->half ? unit_bytes / 2 : step->count * unit_bytes,
                               .file_offset = step->page * unit_bytes};

    for (uint64_t i = 0; i < step->count && i < UNITS_A_CALL && (which == SIM_POPULATE || which == SIM_COPY); i++)
        real_fill(bytes + i * unit_bytes, side->unit_pages, word_of(step->letter, step->page + i));
    switch (which) {
    case SIM_POPULATE:
        return ops->populate(side->kernel, &span, bytes);
    case SIM_MAP:
        return ops->map(side->kernel, &span);
    case SIM_COPY:
        return ops->copy(side->kernel, &span, bytes);
    case SIM_ZERO:
        return ops->zero(side->kernel, &span);
    case SIM_PUNCH:
        return ops->punch(side->kernel, &span);
    case SIM_POISON:
        return ops->poison(side->kernel, &span);
    default:
        return ops->wake(side->kernel, &span);
    }
}

static int by_kind_and_address(const void *left, const void *right)
{
    const struct kernel_event *one = left, *other = right;

    if (one->kind != other->kind)
        return one->kind < other->kind ? -1 : 1;
    return one->address < other->address ? -1 : one->address > other->address;
}

/* `sorted`: threads that were woken together fault again in any order. */
static void read_events(struct side *side, int capacity, bool sorted, struct sight *sight)
{
    struct kernel_event events[EVENTS_A_READ] = {{0}};
    int count = side->calls->ops->read_events(side->kernel, events, capacity);

    if (sorted)
        qsort(events, (size_t)count, sizeof(events[0]), by_kind_and_address);
    for (int i = 0; i < count; i++) {
        see_event(sight, side, &events[i]);
        side->removal_read |= events[i].kind == KERNEL_EVENT_REMOVE;
    }
    if (count == 0)
        see(sight, "none");
}

static struct side_access *begin(struct side *side, const struct step *step)
{
    bool write = step->verb[0] == 'w';
    struct side_access *access = &side->accesses[side->access_count];

    if (side->access_count == SIDE_ACCESSES_MAX)
        abort();
    *access = (struct side_access){.write = write, .page = step->page, .last = strcmp(step->verb, "readlast") == 0,
                                   .word = write ? word_of(step->letter, step->page) : 0};
    side->access_count++;
    side->calls->begin(side, access);
    return access;
}

/* Who was not told of and has ended; a thread that began in this very step is told of by it. */
static void see_ended(struct side *side, struct sight *sight, const struct side_access *but)
{
    for (uint32_t i = 0; i < side->access_count; i++) {
        struct side_access *access = &side->accesses[i];
        if (!access->ended || access->told)
            continue;
        access->told = true;
        if (access == but)
            continue;
        see(sight, ", %u ", i);
        see_access(sight, access);
    }
}

/* A thread touches a page, and all is quiet again. */
static struct side_access *touch(struct side *side, const struct step *step, struct sight *sight)
{
    struct side_access *access = begin(side, step);

    if (!side->calls->settle(side))
        see(sight, "neither ends nor sleeps, ");
    see_access(sight, access);
    return access;
}

static int find(const char *const *words, size_t count, const char *word)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(words[i], word) == 0)
            return (int)i;
    return -1;
}

#define FIND(words, word) find(words, sizeof(words) / sizeof(words[0]), word)

static void act(struct side *side, enum side_act which, const struct step *step, struct sight *sight)
{
    int64_t answer = side->calls->act(side, which, step->page, step->count, word_of(step->letter, step->page));

    if (which == ACT_ALIAS || which == ACT_CACHE)
        see_word(sight, answer);
    else if (answer == SIDE_WAITS)
        see(sight, "waits");
    else if (answer == 0)
        see(sight, "done");
    else
        see_word(sight, answer);
}

static void carry_out(struct side *side, const struct step *step, struct sight *sight)
{
    const struct side_access *begun = NULL;
    bool waited = side->removal_waits;
    int which = FIND(call_verbs, step->verb);

    if (strcmp(step->verb, "read") == 0 || strcmp(step->verb, "readlast") == 0 || strcmp(step->verb, "write") == 0) {
        begun = touch(side, step, sight);
    } else if (which == SIM_READ) {
        read_events(side, step->page != 0 ? (int)step->page : EVENTS_A_READ, false, sight);
    } else if (strcmp(step->verb, "unread") == 0) {
        read_events(side, EVENTS_A_READ, true, sight);
    } else if (which >= 0) {
        struct kernel_outcome outcome = call(side, (enum sim_call)which, step);
        see(sight, "%s %llu", result_words[outcome.result],
            (unsigned long long)(outcome.done_bytes * (step->half ? 2 : 1) / PAGE_BYTES / side->unit_pages));
    } else if (FIND(act_verbs, step->verb) >= 0) {
        act(side, (enum side_act)FIND(act_verbs, step->verb), step, sight);
    } else {
        see(sight, "no such step");
    }
    if (!side->calls->settle(side))
        see(sight, ", somebody neither ends nor sleeps");
    see_ended(side, sight, begun);
    if (waited && !side->removal_waits && !side->exited)
        see(sight, ", the removal %s", side->removal_answer == 0 ? "ends" : "fails");
}

/* ------------------------------------------------------------------------------------------------------------ cases */

static void note(struct record *record, const char *step, const struct sight *sight, const char *want)
{
    if (want != NULL && strcmp(want, sight->text) != 0 && record->wrong[0] == '\0')
        snprintf(record->wrong, sizeof(record->wrong), "\"%s\" says \"%s\", not \"%s\"", step, sight->text, want);
    if (record->count == RECORD_LINES)
        abort();
    snprintf(record->lines[record->count++], RECORD_TEXT, "%.40s: %s", step, sight->text);
}

/* One step of `text`, which is cut into pieces. */
static void do_step(struct side *side, char *text, struct record *record)
{
    struct step step = {.count = 1, .letter = 'z'};
    struct sight sight = {.length = 0};
    unsigned long long page = 0, count = 1;
    char *arrow = strstr(text, " -> ");
    int at = 0;

    if (arrow != NULL) {
        *arrow = '\0';
        step.want = arrow + 4;
    }
    sscanf(text, "%15s%n", step.verb, &at);
    sscanf(text + at, " %llu+%llu", &page, &count);
    step.half = strlen(step.verb) > 4 && strcmp(step.verb + strlen(step.verb) - 4, "half") == 0;
    if (step.half)
        step.verb[strlen(step.verb) - 4] = '\0';
    step.page = page;
    step.count = count;
    if (strchr(text + at, ' ') != NULL && strrchr(text, ' ')[1] >= 'a')
        step.letter = strrchr(text, ' ')[1];
    carry_out(side, &step, &sight);
    note(record, text, &sight, step.want);
}

static bool somebody_sleeps_on(const struct side *side, uint64_t page)
{
    bool any = false;

    for (uint32_t i = 0; i < side->access_count; i++)
        any |= !side->accesses[i].ended && side->accesses[i].page == page;
    return any;
}

static void look_at_page(struct side *side, uint64_t page, struct record *record)
{
    struct step step = {.verb = "read", .page = page};
    struct sight sight = {.length = 0}, events = {.length = 0};
    char name[16];

    snprintf(name, sizeof(name), "page %llu", (unsigned long long)page);
    if (!real_is_private(side->memory)) {
        see(&sight, "cache ");
        see_word(&sight, side->calls->act(side, ACT_CACHE, page, 1, 0));
        see(&sight, ", ");
    }
    if (side->exited) {
        see(&sight, "nobody is there");
    } else if (somebody_sleeps_on(side, page)) {
        see(&sight, "somebody sleeps");
    } else if (!touch(side, &step, &sight)->ended) {
        read_events(side, EVENTS_A_READ, false, &events);
        see(&sight, ", %s", events.text);
    }
    note(record, name, &sight, NULL);
}

static void look_at_all(struct side *side, struct record *record)
{
    struct sight sight = {.length = 0};

    read_events(side, EVENTS_A_READ, true, &sight);
    if (!side->calls->settle(side))
        see(&sight, ", somebody neither ends nor sleeps");
    see_ended(side, &sight, NULL);
    note(record, "unread", &sight, NULL);
    for (uint64_t page = 0; page < SIDE_PAGES; page++)
        look_at_page(side, page, record);
}

void script_run(const struct kernel_case *one, const struct side_calls *calls, const struct plant *plant,
                struct record *record)
{
    struct side side = {
        .calls = calls, .memory = one->memory, .announced = one->announced, .small = one->small, .plant = plant};
    char text[CASE_STEPS], *rest = NULL;

    memset(record, 0, sizeof(*record));
    memcpy(text, one->steps, sizeof(text));
    if (calls->open(&side)) {
        for (char *step = strtok_r(text, ";", &rest); step != NULL; step = strtok_r(NULL, ";", &rest)) {
            step += strspn(step, " ");
            if (*step != '\0')
                do_step(&side, step, record);
        }
        look_at_all(&side, record);
    } else {
        snprintf(record->wrong, sizeof(record->wrong), "no memory to try it on");
    }
    calls->close(&side);
}

bool script_agree(const struct record *real, const struct record *sim, char what[WRONG_TEXT])
{
    what[0] = '\0';
    if (real->wrong[0] != '\0')
        snprintf(what, WRONG_TEXT, "Linux: %s", real->wrong);
    for (uint32_t i = 0; i < real->count && what[0] == '\0'; i++)
        if (strcmp(real->lines[i], sim->lines[i]) != 0)
            snprintf(what, WRONG_TEXT, "Linux has \"%s\", the simulation \"%s\"", real->lines[i], sim->lines[i]);
    if (what[0] == '\0' && sim->wrong[0] != '\0')
        snprintf(what, WRONG_TEXT, "simulation: %s", sim->wrong);
    return what[0] == '\0';
}
