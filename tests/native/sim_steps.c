/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of sim_steps.h. A step may be left in the middle of an engine call, when the worker is killed there: what
 * the world notes is noted before the call, or read off the table after it.
 */
#include "sim_steps.h"

#include "sim_told.h"

static uint64_t below(struct world *world, uint64_t limit)
{
    return sim_below(&world->random, limit);
}

static bool many(const struct world *world)
{
    return world->regions.unit_pages > 1;
}

/* Some page; now and then one that a thread waits for, if there is one. */
static uint64_t page_in_need(struct world *world)
{
    uint64_t page = below(world, WORLD_PAGES), passed = 0;

    if (below(world, 3) == 0)
        while (passed++ < WORLD_PAGES && page_state(table_word(&world->table, page)) != PAGE_WANTED)
            page = (page + 1) % WORLD_PAGES;
    return page;
}

static uint64_t version_for(const struct world *world, uint64_t page, enum world_lie lie)
{
    const struct world_page *facts = &world->pages[page];
    uint64_t version = facts->version;

    if (lie == LIE_STALE)
        version = facts->version_before;
    else if (lie == LIE_OTHER)
        version = world->round;
    else if (lie == LIE_ABOVE)
        version = world->round + 1 + page % 3;
    return version;
}

/* What the server says of these pages: runs of one kind and version each. An answer that was under way when a page
 * was lost still has its bytes. */
static void tell_pages(struct world *world, uint64_t first, uint64_t count, enum world_lie lie)
{
    bool zeros_as_bytes = below(world, 5) == 0, before_loss = below(world, 4) == 0;
    uint64_t page = first, end = first + count < WORLD_PAGES ? first + count : WORLD_PAGES;

    while (page < end) {
        uint64_t version = version_for(world, page, lie), pages = 0;
        enum engine_kind kind = 0;
        while (page + pages < end && version_for(world, page + pages, lie) == version) {
            bool zero = told_content(page + pages, version) == 0 && !zeros_as_bytes;
            enum engine_kind next = world->pages[page + pages].server_lost && !before_loss ? ENGINE_POISON
                                    : zero ? ENGINE_ZEROS
                                           : ENGINE_DATA;
            if (pages > 0 && next != kind)
                break;
            kind = next;
            pages++;
        }
        told_news(world, kind, page, pages, version);
        page += pages;
    }
}

/* ---------------------------------------------------------------------------------------------------------- server */

static void post(struct world *world, const struct world_answer *answer)
{
    uint32_t i = 0;

    while (i < WORLD_ANSWERS && world->answers[i].used)
        i++;
    if (i == WORLD_ANSWERS)
        world_failed(world, answer->first_page, "the world has no room for an answer");
    world->answers[i] = *answer;
    world->answers[i].used = true;
}

static bool may_lie(const struct world *world, uint64_t page)
{
    return !world->healing && world_armed(world) && world->pages[page].version_before < world->pages[page].version;
}

void steps_server_asked(struct world *world, uint64_t page)
{
    struct world_answer answer = {.urgent = true, .first_page = page, .page_count = 1};
    uint64_t dice = below(world, 100);

    answer.due_ns = world->now_ns + below(world, 20) * 100000;
    if (world->healing)
        dice = 99;
    if (dice < 8)
        answer.later = true;
    else if (dice < 12 && may_lie(world, page))
        answer.lie = dice % 2 == 0 ? LIE_STALE : LIE_OTHER;
    else if (dice < 13 && may_lie(world, page))
        answer.lie = LIE_ABOVE;
    else if (dice < 20)
        answer.page_count += below(world, 4); /* neighbours come along */
    post(world, &answer);
    if (dice >= 20 && dice < 25)
        post(world, &answer); /* twice */
    if (answer.lie != LIE_NONE && below(world, 2) == 0) {
        answer.lie = LIE_NONE; /* and the truth after it, perhaps before it is asked again; else only then */
        answer.due_ns += below(world, 100) * 1000000;
        post(world, &answer);
    }
}

static void deliver(struct world *world, struct world_answer *slot)
{
    struct world_answer answer = *slot;

    slot->used = false;
    if (answer.later) {
        world->pages[answer.first_page].again = true;
        engine_ask_later(&world->engine, answer.first_page, world->now_ns + below(world, 4) * 1000000);
    } else {
        tell_pages(world, answer.first_page, answer.page_count, answer.lie);
    }
}

/* In any order: what is due overtakes what is not. */
static void deliver_one(struct world *world)
{
    uint32_t start = (uint32_t)below(world, WORLD_ANSWERS);

    for (uint32_t i = 0; i < WORLD_ANSWERS; i++) {
        struct world_answer *answer = &world->answers[(start + i) % WORLD_ANSWERS];
        if (answer->used && answer->due_ns <= world->now_ns) {
            deliver(world, answer);
            break;
        }
    }
}

/* Pages that nobody asked for; a few are under way while the guest goes on. */
static void bulk(struct world *world)
{
    struct world_answer answer = {.first_page = below(world, WORLD_PAGES), .page_count = 1 + below(world, 16)};
    uint32_t used = 0;

    for (uint32_t i = 0; i < WORLD_ANSWERS; i++)
        used += world->answers[i].used;
    answer.due_ns = world->now_ns + below(world, 30) * 100000;
    if (world_armed(world) && below(world, 8) == 0)
        answer.lie = LIE_STALE; /* sent before the map was frozen */
    if (used < WORLD_ANSWERS / 4)
        post(world, &answer);
}

static void lose_link(struct world *world, bool comes_back_at_once)
{
    for (uint32_t i = 0; i < WORLD_ANSWERS; i++)
        if (world->answers[i].urgent)
            world->answers[i].used = false;
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        world->pages[page].again = true;
    world->link_up = comes_back_at_once;
    if (comes_back_at_once)
        engine_asks_lost(&world->engine);
}

static void find_link(struct world *world)
{
    if (!world->link_up) {
        world->link_up = true;
        engine_asks_lost(&world->engine);
    }
}

/* In the units of these pages. */
static bool any_drops(const struct world *world, uint64_t first, uint64_t count)
{
    uint64_t end = regions_unit(&world->regions, first + count - 1) + world->regions.unit_pages;
    bool any = false;

    for (uint64_t page = regions_unit(&world->regions, first); page < end; page++)
        any |= world->pages[page].drops > 0;
    return any;
}

static void lose_page(struct world *world)
{
    uint64_t page = page_in_need(world), lost = 0;
    bool dropped = any_drops(world, page, 1);

    for (uint64_t i = 0; i < WORLD_PAGES; i++)
        lost += world->pages[i].server_lost;
    if (lost >= (many(world) ? 2 : 12) || dropped)
        return;
    world->pages[page].server_lost = true;
    if (below(world, 2) == 0)
        told_news(world, ENGINE_POISON, page, 1, world->pages[page].version);
}

/* Somebody here says that pages are lost, or that they are fresh memory from now on. */
static void order_poison(struct world *world)
{
    uint64_t first = page_in_need(world), count = 1 + below(world, 3), lost = 0;
    bool dropped;

    if (count > WORLD_PAGES - first)
        count = WORLD_PAGES - first;
    for (uint64_t i = 0; i < WORLD_PAGES; i++)
        lost += world->pages[i].lost;
    dropped = any_drops(world, first, count); /* zero already, and lost too: both would be right */
    if (lost < 16 && !dropped)
        told_lost(world, first, count);
}

static void order_clear(struct world *world)
{
    uint64_t first = below(world, WORLD_PAGES), passed = 0, count;

    while (passed++ < WORLD_PAGES && page_state(table_word(&world->table, first)) != PAGE_POISONED)
        first = (first + 1) % WORLD_PAGES;
    count = 1 + below(world, 3);
    told_cleared(world, first, count < WORLD_PAGES - first ? count : WORLD_PAGES - first);
}

static void order_something(struct world *world)
{
    if (below(world, 5) > 1)
        order_poison(world);
    else
        order_clear(world);
}

static void tell_log(struct world *world)
{
    told_log(world, (enum table_log_reader)below(world, TABLE_LOG_READERS));
}

/* ---------------------------------------------------------------------------------------------------- before arming */

static void change_source(struct world *world)
{
    uint64_t count = 1 + below(world, 6);

    if (!world->live || world->frozen)
        return;
    world->round++;
    while (count-- > 0) {
        uint64_t page = below(world, WORLD_PAGES);
        if (world->pages[page].version == world->round)
            continue;
        world->pages[page].version_before = world->pages[page].version;
        world->pages[page].version = world->round;
        if (below(world, 2) == 0)
            told_news(world, ENGINE_FLOOR, page, 1, world->round);
    }
}

/* What the server's map has of pages that are alike from this one on. */
static enum engine_kind map_kind(const struct world *world, uint64_t page)
{
    enum engine_kind kind = ENGINE_FLOOR;

    if (world->pages[page].server_lost)
        kind = ENGINE_POISON;
    else if (told_content(page, world->pages[page].version) == 0 && page % 2 == 0)
        kind = ENGINE_ZEROS; /* a hole; other pages of zeros are not known to be any */
    return kind;
}

static uint64_t map_run(const struct world *world, uint64_t page, uint64_t end)
{
    uint64_t pages = 1;

    while (page + pages < end && world->pages[page + pages].version == world->pages[page].version &&
           map_kind(world, page + pages) == map_kind(world, page))
        pages++;
    return pages;
}

/* The map of a round: every page that is newer than what was read before is named, and raises the floor whatever its
 * kind is. It may be cut off; then it is read once more from where the last one began. */
static void read_map(struct world *world, bool whole)
{
    uint64_t end = whole ? WORLD_PAGES : below(world, WORLD_PAGES), page = 0, pages = 1;

    world->maps++;
    world->maps_cut += !whole;
    for (; page < end; page += pages) {
        pages = 1;
        if (world->pages[page].version <= world->since)
            continue;
        pages = map_run(world, page, end);
        told_news(world, ENGINE_FLOOR, page, pages, world->pages[page].version);
        if (map_kind(world, page) != ENGINE_FLOOR)
            told_news(world, map_kind(world, page), page, pages, world->pages[page].version);
    }
    if (whole)
        world->since = world->round;
}

/* Both ends of a move have the same versions, in whatever order they came. */
static void check_manifest(struct world *world)
{
    manifest_sum sum = 0;

    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        sum += manifest_of(page, world->pages[page].version);
    /* A page that was held back has taken no news, not even of its version; it may be lost since. */
    if (sum != world->engine.sum && !world->refusals && !world->dead)
        world_failed(world, WORLD_PAGES, "the map was read, and the manifest is another than the server's");
}

static void precopy(struct world *world)
{
    uint64_t first = below(world, WORLD_PAGES), count = 1 + below(world, 8);
    uint64_t dice = below(world, 20);

    if (world->live && below(world, 16) == 0)
        read_map(world, below(world, 4) != 0);
    else if (dice == 0)
        tell_pages(world, first, count, LIE_STALE); /* a late answer */
    else if (dice == 1)
        told_news(world, ENGINE_FLOOR, first, 1, world->pages[first].version);
    else
        tell_pages(world, first, count, LIE_NONE);
}

/* Switch-over: the map is frozen, what is older is invalidated, then faults are resolved. */
void steps_arm(struct world *world)
{
    world->frozen = true;
    for (uint32_t i = 0; i < SIM_REMOVALS; i++) /* the VMM stands still by now */
        while (world->sim.removals[i].stage == SIM_REMOVAL_READ ||
               world->sim.removals[i].stage == SIM_REMOVAL_COMPLETED)
            sim_removal_step(&world->sim, i);
    if (world->live) {
        read_map(world, true);
        check_manifest(world);
    }
    for (uint64_t page = 0; page < WORLD_PAGES; page++) {
        bool fresh = page_fresh(table_word(&world->table, page));
        world->pages[page].expected = fresh ? 0 : told_content(page, world->pages[page].version);
        world->pages[page].drops = 0;
    }
    for (uint32_t i = 0; i < SIM_REMOVALS; i++) /* but may have announced something */
        if (world->sim.removals[i].stage == SIM_REMOVAL_POSTED && world->sim.removals[i].drops_data) {
            uint64_t start = world->sim.removals[i].start, first, count;
            while ((count = regions_pages(&world->regions, &start, world->sim.removals[i].end, &first)) > 0)
                for (uint64_t page = first; page < first + count; page++)
                    world->pages[page].drops++;
        }
    world->frozen_version = world->round;
    world->engine.frozen_version = world->round;
    engine_arm(&world->engine);
}

/* ----------------------------------------------------------------------------------------------------------- guest */

static void check_read(struct world *world, uint64_t page, uint64_t token)
{
    const struct world_page *facts = &world->pages[page];

    if (!world_armed(world))
        world_failed(world, page, "the guest reads before arming");
    if (facts->lost && !facts->lost_mapped)
        world_failed(world, page, "the guest reads a lost page");
    if (token == SIM_TORN)
        world_failed(world, page, "the guest reads a torn page");
    if (token != facts->expected && !(token == 0 && facts->drops > 0))
        world_failed(world, page, "the guest reads the wrong bytes");
}

/* Cleared, and what fills the page was refused, for now or for good. */
static bool marked_still(const struct world *world, uint64_t page)
{
    uint64_t first = regions_unit(&world->regions, page);
    bool still = false;

    for (uint64_t i = first; i < first + world->regions.unit_pages; i++) {
        uint64_t word = table_word(&world->table, i);
        still |= page_fresh(word) && (page_owed(word) || page_held(word));
    }
    return still;
}

static void run_thread(struct world *world, uint32_t thread, bool new_targets)
{
    uint64_t token = 0, page;

    if (world->sim.threads[thread].sleeps)
        return;
    if (world->targets[thread] == 0 && new_targets) {
        page = below(world, 3) == 0 ? below(world, WORLD_PAGES) : below(world, 12) * 7 % WORLD_PAGES;
        world->targets[thread] = page + 1;
        world->writes[thread] = below(world, 3) == 0;
    }
    if (world->targets[thread] == 0)
        return;
    page = world->targets[thread] - 1;
    switch (sim_touch(&world->sim, thread, page, world->writes[thread], &token)) {
    case SIM_READS_TOKEN:
        check_read(world, page, token);
        if (world->writes[thread] && world->pages[page].drops == 0 && !world->pages[page].lost) {
            token = sim_random(&world->random);
            world->sim.pages[page].token = token;
            world->pages[page].expected = token;
        }
        world->targets[thread] = 0;
        break;
    case SIM_SIGBUS:
        if (!world->pages[page].lost && !marked_still(world, page))
            world_failed(world, page, "SIGBUS on a page that is not lost");
        world->targets[thread] = 0;
        break;
    case SIM_SLEEPS:
        break;
    }
}

/* ------------------------------------------------------------------------------------------------------------- VMM */

static uint64_t address_of(const struct world *world, uint64_t page)
{
    struct kernel_span span;

    regions_span(&world->regions, page, 1, &span);
    return span.address;
}

static void count_drops(struct world *world, uint64_t start, uint64_t end, int change)
{
    uint64_t first, count;

    while ((count = regions_pages(&world->regions, &start, end, &first)) > 0)
        for (uint64_t page = first; page < first + count; page++)
            world->pages[page].drops += (uint32_t)change;
}

/* Some of it may lie outside of every region, or in two. */
static void madvise_something(struct world *world, bool drops_data)
{
    uint64_t start = address_of(world, below(world, WORLD_PAGES)), end = start + (1 + below(world, 6)) * PAGE_BYTES;

    if (below(world, 4) == 0)
        start -= below(world, 20) * PAGE_BYTES;
    if (many(world)) { /* the kernel takes whole ones only */
        start -= start % (WORLD_UNIT_PAGES * PAGE_BYTES);
        end = start + (1 + below(world, 2)) * WORLD_UNIT_PAGES * PAGE_BYTES;
    }
    if (sim_remove(&world->sim, start, end, drops_data) && drops_data)
        count_drops(world, start, end, 1);
}

/* Where it has no thread for it just now, it is asked again. */
void steps_vmm_drops(struct world *world, uint64_t first_page, uint64_t page_count)
{
    uint64_t start = address_of(world, first_page), end = start + page_count * PAGE_BYTES;

    if (!sim_remove(&world->sim, start, end, true))
        return;
    count_drops(world, start, end, 1);
    for (uint64_t page = first_page; page < first_page + page_count; page++)
        world->pages[page].to_drop = true;
}

static void removal_goes_on(struct world *world, uint32_t index)
{
    const struct sim_removal *done = sim_removal_step(&world->sim, index);
    uint64_t start, first, count;

    if (done == NULL || !done->drops_data)
        return;
    start = done->start;
    while (world_armed(world) && (count = regions_pages(&world->regions, &start, done->end, &first)) > 0)
        for (uint64_t page = first; page < first + count; page++) {
            world->pages[page].expected = 0;
            world->pages[page].lost_mapped &= world->sim.pages[page].pte == SIM_PTE_MAPPED;
            if (world->pages[page].to_drop) /* the VMM's answer */
                engine_dropped(&world->engine, page, 1);
            world->pages[page].to_drop = false;
        }
    count_drops(world, done->start, done->end, -1);
}

/* Our own zap: announced, told to the VMM, and its event may come at any time after that. No word changes. */
static void zap(struct world *world)
{
    uint64_t first = page_in_need(world), count = 1 + below(world, 12), start;

    if (many(world)) {
        first = regions_unit(&world->regions, first);
        count = world->regions.unit_pages;
    }
    start = address_of(world, first);
    engine_zaps(&world->engine, first, count);
    sim_remove(&world->sim, start, start + count * PAGE_BYTES, false);
}

static void report_discard(struct world *world, bool ordered)
{
    struct world_drop drop = {.used = true, .ordered = ordered, .first_page = page_in_need(world),
                              .page_count = 1 + below(world, 6)};
    uint32_t i = 0;

    while (i < WORLD_DROPS && world->drops[i].used)
        i++;
    if (i == WORLD_DROPS)
        return;
    if (many(world) && (world->private_memory || below(world, 2) == 0)) { /* of which only whole ones can be zapped */
        drop.first_page = regions_unit(&world->regions, drop.first_page);
        drop.page_count = (1 + below(world, 2)) * WORLD_UNIT_PAGES;
    }
    if (ordered && many(world)) { /* whole units */
        drop.first_page = regions_unit(&world->regions, drop.first_page);
        drop.page_count = world->regions.unit_pages;
    }
    if (drop.page_count > WORLD_PAGES - drop.first_page)
        drop.page_count = WORLD_PAGES - drop.first_page;
    for (uint64_t page = 0; page < drop.page_count; page++)
        world->pages[drop.first_page + page].drops++;
    world->drops[i] = drop;
}

/* A hole of whole units gives them back, of less it zeroes. */
static void punch(struct world *world, const struct world_drop *drop, uint64_t page)
{
    uint64_t first = regions_unit(&world->regions, page), end = first + world->regions.unit_pages;

    if (first < drop->first_page || end > drop->first_page + drop->page_count)
        sim_discard(&world->sim, page);
    else if (page == first)
        sim_discard_unit(&world->sim, page);
}

static void dropped(struct world *world, struct world_drop *drop)
{
    for (uint64_t page = drop->first_page; page < drop->first_page + drop->page_count; page++) {
        if (!drop->ordered) /* else the engine has done it */
            punch(world, drop, page);
        world->pages[page].expected = 0;
        /* of a unit of which only this is dropped the mapping stays */
        world->pages[page].lost_mapped &= world->sim.pages[page].pte == SIM_PTE_MAPPED;
        world->pages[page].drops--;
    }
    drop->used = false;
}

static void discard_goes_on(struct world *world, uint32_t index)
{
    struct world_drop *drop = &world->drops[index];
    uint64_t start = address_of(world, drop->first_page);

    if (!drop->used)
        return;
    if (drop->ordered && !drop->reported) {
        drop->reported = told_drop(world, drop->first_page, drop->page_count) == drop->page_count;
    } else if (drop->ordered) {
        dropped(world, drop);
    } else if (!drop->reported) {
        told_removed(world, drop->first_page, drop->page_count);
        drop->reported = true;
    } else if (below(world, 2) == 0 || world->healing) {
        dropped(world, drop);
    } else if (drop->page_count == 1 && !many(world) && sim_remove(&world->sim, start, start + PAGE_BYTES, true)) {
        drop->used = false; /* MADV_REMOVE: its event comes first */
    }
}

/* What of it is not here yet comes as if nothing had been. */
static void discard_unit_silently(struct world *world, uint64_t first)
{
    bool quiet = true;

    for (uint64_t page = first; page < first + WORLD_UNIT_PAGES; page++)
        quiet = quiet && world->pages[page].drops == 0 &&
                page_state(table_word(&world->table, page)) != PAGE_POISONED;
    if (!quiet)
        return;
    sim_discard_unit(&world->sim, first);
    for (uint64_t page = first; page < first + WORLD_UNIT_PAGES; page++) {
        enum page_state state = page_state(table_word(&world->table, page));
        if (state == PAGE_OWNED || state == PAGE_CACHED)
            world->pages[page].expected = 0;
    }
}

/* No report and no event: only what is the guest's, or claimed, can be discarded like that. */
static void discard_silently(struct world *world)
{
    uint64_t page = below(world, WORLD_PAGES);
    enum page_state state = page_state(table_word(&world->table, page));

    if (many(world)) {
        discard_unit_silently(world, regions_unit(&world->regions, page));
    } else if ((state == PAGE_OWNED || state == PAGE_CACHED) && world->pages[page].drops == 0) {
        sim_discard(&world->sim, page);
        world->pages[page].expected = 0;
    }
}

/* Of the guest's, and rather one that a thread sleeps on: whoever resolves it next must wake that thread. */
static void map_silently(struct world *world, uint64_t page)
{
    const struct sim_thread *thread = &world->sim.threads[below(world, SIM_THREADS)];

    if (thread->sleeps)
        page = thread->page;
    for (uint64_t i = regions_unit(&world->regions, page), end = i + world->regions.unit_pages; i < end; i++)
        if (page_state(table_word(&world->table, i)) != PAGE_OWNED)
            return;
    sim_map_silently(&world->sim, page);
}

/* By another process. After a kill it could not be told from what the worker before has placed. */
static void make_room(struct world *world)
{
    if (!world->crashes)
        sim_make_room(&world->sim, page_in_need(world));
}

static void vmm(struct world *world)
{
    uint64_t page = below(world, WORLD_PAGES), dice = below(world, 17);

    if (!world->private_memory && dice == 16) {
        make_room(world);
    } else if (world->private_memory && dice < 3) {
        map_silently(world, page);
    } else if (world->private_memory && dice < 6 && world_armed(world)) {
        report_discard(world, false); /* an order: the words first, then the VMM is told to zap */
    } else if (world->private_memory) {
        madvise_something(world, true);
    } else if (dice < 1) {
        madvise_something(world, false);
    } else if (dice < 2) {
        zap(world);
    } else if (!world_armed(world)) {
        told_removed(world, page, 1); /* changes nothing, and nothing is dropped */
    } else if (dice < 5) {
        report_discard(world, below(world, 3) == 0);
    } else if (dice < 6) {
        discard_silently(world);
    } else if (dice < 14) {
        sim_drop_mapping(&world->sim, page);
    } else {
        map_silently(world, page);
    }
}

/* ----------------------------------------------------------------------------------------------------------- steps */

/* The next call of some kind, or one page of it, is refused for good. */
static void refuse_something(struct world *world)
{
    static const enum sim_call calls[] = {SIM_POPULATE, SIM_MAP, SIM_COPY, SIM_ZERO};

    world->sim.force[calls[below(world, 4)]] =
        (struct sim_force){.times = 1, .result = KERNEL_REFUSED, .done_pages = below(world, 3)};
}

static void trouble(struct world *world)
{
    uint64_t dice = below(world, 10);

    if (world->refusals && below(world, 3) == 0)
        refuse_something(world);
    else if (dice < 2)
        world->sim.full = !world->private_memory || below(world, 2) == 0;
    else if (dice < 6)
        world->sim.full = false;
    else if (dice == 6)
        lose_link(world, false);
    else if (dice == 7)
        lose_link(world, true);
    else
        find_link(world);
}

static void step_unarmed(struct world *world)
{
    uint64_t dice = below(world, 100);

    if (dice < 35)
        precopy(world);
    else if (dice < 45)
        change_source(world);
    else if (dice < 60)
        run_thread(world, (uint32_t)below(world, SIM_THREADS), true);
    else if (dice < 75)
        told_turn(world);
    else if (dice < 80)
        vmm(world);
    else if (dice < 86)
        removal_goes_on(world, (uint32_t)below(world, SIM_REMOVALS));
    else if (dice < 89)
        engine_tick(&world->engine, world->now_ns);
    else if (dice < 91)
        lose_page(world);
    else if (dice < 92 && below(world, 2) == 0)
        order_something(world);
    else if (dice < 92)
        tell_log(world);
    else if (dice < 93)
        trouble(world);
    else if (dice < 94 && below(world, 4) == 0)
        steps_arm(world);
    else if (dice < 97)
        bulk(world);
    else
        deliver_one(world);
}

static void step_armed(struct world *world)
{
    uint64_t dice = below(world, 1000);

    if (dice < 360)
        run_thread(world, (uint32_t)below(world, SIM_THREADS), true);
    else if (dice < 520)
        told_turn(world);
    else if (dice < 600)
        engine_tick(&world->engine, world->now_ns);
    else if (dice < 760)
        deliver_one(world);
    else if (dice < 770)
        bulk(world);
    else if (dice < 860)
        vmm(world);
    else if (dice < 910)
        removal_goes_on(world, (uint32_t)below(world, SIM_REMOVALS));
    else if (dice < 960)
        discard_goes_on(world, (uint32_t)below(world, WORLD_DROPS));
    else if (dice < 965)
        told_sweep(world, below(world, WORLD_PAGES), 1 + below(world, 24));
    else if (dice < 985)
        trouble(world);
    else if (dice < 989)
        lose_page(world);
    else if (dice < 990)
        told_news(world, ENGINE_FLOOR, below(world, WORLD_PAGES), 1, world->round); /* cannot be: an alarm */
    else if (dice < 993)
        order_something(world);
    else if (dice < 996)
        tell_log(world);
    else if (dice < 998)
        lose_link(world, true); /* a batch with a wrong digest, too: all is asked again, nothing is down */
    else
        run_thread(world, (uint32_t)below(world, SIM_THREADS), true);
}

void steps_random(struct world *world)
{
    if (world_armed(world))
        step_armed(world);
    else
        step_unarmed(world);
}

void steps_heal(struct world *world)
{
    find_link(world);
    if (!world_armed(world))
        steps_arm(world);
    for (uint32_t i = 0; i < WORLD_ANSWERS; i++)
        if (world->answers[i].used) {
            world->answers[i].lie = LIE_NONE;
            world->answers[i].later = false;
            deliver(world, &world->answers[i]);
        }
    while (sim_unread(&world->sim) > 0)
        told_turn(world);
    for (int i = 0; i < 8; i++)
        for (int reader = 0; reader < TABLE_LOG_READERS; reader++)
            told_log(world, (enum table_log_reader)reader);
    engine_tick(&world->engine, world->now_ns);
    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        removal_goes_on(world, i);
    for (uint32_t i = 0; i < WORLD_DROPS; i++)
        discard_goes_on(world, i);
    for (uint32_t i = 0; i < SIM_THREADS; i++)
        run_thread(world, i, false);
    for (uint64_t page = 0; page < WORLD_PAGES; page++)
        if (page_state(table_word(&world->table, page)) == PAGE_MISSING)
            tell_pages(world, page, 1, LIE_NONE);
    told_sweep(world, 0, WORLD_PAGES);
}
