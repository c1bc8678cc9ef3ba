/* SPDX-License-Identifier: Apache-2.0 */
/*
 * News of the server: which of it is accepted, and what is done with it. Before arming a version is taken when it is
 * no older than the floor and newer than what is held; afterwards only the version of the frozen map, which the floor
 * of a page names: a lower one is stale, a higher one cannot be. A page without a floor is one of an image that never
 * changes. A page whose poison was cleared here takes no news at all: only its version goes on being counted. Nor does
 * a page that is here take the news that the server has lost it since: it may be the guest's, who has written to it. What
 * is refused and waited for is asked again; bytes that cannot be placed now are not kept.
 */
#include "engine.h"
#include "place.h"
#include "unit.h"
#include "wait.h"

enum verdict {
    VERDICT_ACT = 0,
    VERDICT_NOTHING,
    VERDICT_DROP,  /* the page has no use for it any more */
    VERDICT_STALE, /* the version is refused */
    VERDICT_ABOVE, /* a version higher than there is, of this page or of any */
    VERDICT_ILLEGAL
};

struct judgement {
    enum verdict verdict;
    enum page_action action;
    bool doubt; /* the page cache is in doubt: another way of placing */
};

static enum page_event event_of(enum engine_kind kind)
{
    static const enum page_event events[] = {
        [ENGINE_DATA] = PAGE_EVENT_DATA,
        [ENGINE_ZEROS] = PAGE_EVENT_ZEROS,
        [ENGINE_POISON] = PAGE_EVENT_LOST,
        [ENGINE_FLOOR] = PAGE_EVENT_FLOOR,
    };

    return events[kind];
}

/* The version of news that the table has an action for. */
static enum verdict judge_version(const struct engine *engine, const struct engine_news *news, uint64_t word)
{
    bool lacking = page_state(word) == PAGE_MISSING || page_state(word) == PAGE_WANTED;
    uint64_t held = page_version(word);
    enum verdict verdict = VERDICT_ACT;

    if (news->kind == ENGINE_FLOOR)
        verdict = news->version > held ? VERDICT_ACT : VERDICT_NOTHING;
    else if (news->version < held)
        verdict = VERDICT_STALE;
    else if (wait_armed(engine) && held != 0 && news->version > held)
        verdict = VERDICT_ABOVE;
    else if (wait_armed(engine) && held == 0 && news->version < engine->frozen_version)
        verdict = VERDICT_STALE;
    else if (!lacking && (news->version == held || (news->kind == ENGINE_POISON && wait_armed(engine))))
        verdict = VERDICT_DROP;
    return verdict;
}

static struct judgement judge(const struct engine *engine, const struct engine_news *news, uint64_t page)
{
    uint64_t word = table_word(engine->table, page);
    struct page_step step = page_step(page_state(word), event_of(news->kind), wait_armed(engine));
    struct judgement judgement = {.action = (enum page_action)step.action, .doubt = place_in_doubt(word)};

    if (news->version == 0)
        judgement.verdict = VERDICT_STALE;
    else if (engine->frozen_version != 0 && news->version > engine->frozen_version)
        judgement.verdict = VERDICT_ABOVE;
    else if (step.action == PAGE_ACTION_ILLEGAL)
        judgement.verdict = VERDICT_ILLEGAL;
    else if (step.action == PAGE_ACTION_NOTHING)
        judgement.verdict = VERDICT_NOTHING;
    else if (step.action == PAGE_ACTION_DROP || (page_fresh(word) && news->kind != ENGINE_FLOOR) ||
             (page_held(word) && page_state(word) != PAGE_POISONED && news->kind != ENGINE_POISON) ||
             (engine->private_memory && step.action == PAGE_ACTION_POPULATE))
        judgement.verdict = VERDICT_DROP;
    else
        judgement.verdict = judge_version(engine, news, word);
    return judgement;
}

static bool alike(const struct judgement *a, const struct judgement *b)
{
    return a->verdict == b->verdict && a->action == b->action && a->doubt == b->doubt;
}

/* ---------------------------------------------------------------------------------------------------------- acting */

static void ask_later(struct engine *engine, uint64_t page, uint64_t count, uint64_t due_ns)
{
    for (uint64_t i = 0; i < count && counts_of(&engine->counts, PAGE_WANTED) > 0; i++)
        engine_ask_later(engine, page + i, due_ns);
}

static void refuse(struct engine *engine, uint64_t page, uint64_t count, const struct judgement *judgement)
{
    switch (judgement->verdict) {
    case VERDICT_DROP:
        stats_add(engine->stats, STATS_dropped_pages_total, count);
        break;
    case VERDICT_STALE:
        stats_add(engine->stats, STATS_stale_dropped_pages_total, count);
        break;
    case VERDICT_ABOVE:
        stats_add(engine->stats, STATS_stale_dropped_pages_total, count);
        wait_alarm(engine, page, count, "the server sent a version higher than there is");
        break;
    case VERDICT_ILLEGAL:
        wait_alarm(engine, page, count, "the server has newer bytes although the map is frozen");
        break;
    default:
        break;
    }
    if (judgement->verdict == VERDICT_STALE || judgement->verdict == VERDICT_ABOVE)
        ask_later(engine, page, count, engine->now_ns + ENGINE_ASK_AGAIN_NS);
}

/* Actions that are done page by page and cannot be refused by the kernel: what waits is parked. */
static void act_on_page(struct engine *engine, uint64_t page, uint64_t version, enum page_action action)
{
    uint64_t word = table_word(engine->table, page);

    switch (action) {
    case PAGE_ACTION_MAP_ZERO: /* an answer: ZERO is a lawful claim, and it waits in the table if it must */
        place_word(engine, page, PAGE_ZERO, page_stale(word), version);
        if (wait_settle(engine, page) && !unit_many(engine))
            wait_observe(engine, page, 1);
        break;
    case PAGE_ACTION_POISON:
        place_lost(engine, page, version);
        break;
    default:
        wait_alarm(engine, page, action, "news met an action that is none of its");
        break;
    }
}

/* FORGET: what the cache holds is older, so stale. */
static void raise_floor(struct engine *engine, uint64_t page, uint64_t count, uint64_t version, bool forget)
{
    for (uint64_t i = page; i < page + count; i++) {
        uint64_t word = table_word(engine->table, i);
        enum page_state state = page_state(word);
        /* What was punched may be there still, as zeros (clear.c): COPY would find something. */
        bool clings = state == PAGE_ZERO && !engine->private_memory && !page_fresh(word);
        if (state != PAGE_POISONED && !page_fresh(word))
            state = PAGE_MISSING;
        place_word(engine, i, state, forget || clings || page_stale(word), version);
    }
}

static struct placed act(struct engine *engine, const struct engine_news *news, uint64_t page, uint64_t count,
                         enum page_action action)
{
    const uint8_t *bytes = news->bytes;
    struct placed placed = {.pages = count, .status = PLACING_DONE};
    uint64_t word = table_word(engine->table, page);

    if (bytes != NULL)
        bytes += (page - news->first_page) * PAGE_BYTES;
    switch (action) {
    case PAGE_ACTION_POPULATE:
        placed = place_cached(engine, page, count, bytes, news->version);
        break;
    case PAGE_ACTION_PLACE:
        placed = place_data(engine, page, count, bytes, news->version);
        if (!unit_many(engine)) /* else it is, as soon as its unit is mapped */
            wait_observe(engine, page, placed.pages);
        break;
    case PAGE_ACTION_CLEAR:
        placed = place_zeros(engine, page, count, news->version);
        unit_arrived(engine, page);
        break;
    case PAGE_ACTION_RAISE:
    case PAGE_ACTION_FORGET:
        raise_floor(engine, page, count, news->version, action == PAGE_ACTION_FORGET);
        break;
    default:
        placed.pages = 1;
        act_on_page(engine, page, news->version, action);
        break;
    }
    if (placed.status != PLACING_LATER || placed.pages > 0)
        wait_note(engine, page, count, word, event_of(news->kind), action);
    if (news->kind == ENGINE_ZEROS)
        stats_add(engine->stats, STATS_zero_pages_total, placed.pages);
    return placed;
}

/* ------------------------------------------------------------------------------------------------------------ runs */

/* Pages from `page` on that are judged alike and can be done in one call. */
static uint64_t run_of(const struct engine *engine, const struct engine_news *news, uint64_t page, uint64_t count,
                       const struct judgement *judgement)
{
    uint64_t most = place_cut(engine, page, count), pages = 1;

    while (pages < most) {
        struct judgement next = judge(engine, news, page + pages);
        if (!alike(&next, judgement))
            break;
        pages++;
    }
    return pages;
}

uint64_t engine_news(struct engine *engine, const struct engine_news *news, uint64_t now_ns)
{
    uint64_t page = news->first_page, end = engine->table->page_count, taken = 0;
    int tries = 0;

    engine->now_ns = now_ns;
    if (page < end && news->page_count < end - page)
        end = page + news->page_count;
    while (page < end && !engine->gone) {
        struct judgement judgement = judge(engine, news, page);
        uint64_t pages = run_of(engine, news, page, end - page, &judgement);
        struct placed placed = {.pages = pages, .status = PLACING_DONE};
        if (judgement.verdict == VERDICT_ACT) {
            placed = act(engine, news, page, pages, judgement.action);
            taken += placed.pages;
        } else {
            refuse(engine, page, pages, &judgement);
        }
        page += placed.pages + (placed.status == PLACING_HELD);
        tries = placed.pages > 0 ? 0 : tries;
        if (placed.status == PLACING_FULL || (placed.status == PLACING_LATER && !wait_drain(engine, &tries))) {
            if (placed.status == PLACING_LATER)
                wait_note(engine, page, end - page, table_word(engine->table, page), event_of(news->kind),
                          judgement.action);
            ask_later(engine, page, end - page,
                      placed.status == PLACING_FULL ? wait_full_due_ns(engine) : now_ns + ENGINE_LATER_NS);
            break;
        }
    }
    return taken;
}
