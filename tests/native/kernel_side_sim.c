/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated kernel as one side of the comparison: see kernel_side.h. */
#include <errno.h>
#include <string.h>

#include "kernel_plants.h"
#include "kernel_side.h"

#define SIM_ADDRESS UINT64_C(0x7f0000000000)

/* The simulation complains of what the engine must never do; here it is done on purpose. */
static void let_it_be(void *owner, uint64_t page, const char *text)
{
    (void)owner;
    (void)page;
    (void)text;
}

static bool open_sim(struct side *side)
{
    struct region region = {.address = SIM_ADDRESS};

    side->unit_pages = region.unit_pages = real_is_huge(side->memory) ? SIDE_SIM_UNIT_PAGES : 1;
    region.page_count = SIDE_PAGES * side->unit_pages;
    if (regions_set(&side->regions, &region, 1) != 0)
        return false;
    sim_open(&side->sim, &side->regions, real_is_private(side->memory), 1);
    side->sim.failed = let_it_be;
    side->kernel = side;
    side->address = SIM_ADDRESS;
    return true;
}

static void close_sim(struct side *side)
{
    sim_close(&side->sim);
}

/* --------------------------------------------------------------------------------------------------------- threads */

static void touch(struct side *side, struct side_access *access)
{
    uint64_t at = access->page * side->unit_pages + (access->last ? side->unit_pages - 1 : 0), token = 0;
    struct sim_page *page = &side->sim.pages[at];
    enum sim_access got = sim_touch(&side->sim, (uint32_t)access->thread, at, access->write, &token);

    if (got == SIM_SLEEPS)
        return;
    access->ended = true;
    if (got == SIM_SIGBUS) {
        access->answer = page->mapping == SIM_UNMAPPED ? REAL_SIGSEGV : REAL_SIGBUS;
    } else if (access->write) {
        for (uint64_t i = 0; i < side->unit_pages; i++)
            page[i].token = access->word;
    } else {
        access->answer = token == SIM_TORN ? REAL_TORN : (int64_t)token;
    }
}

/* A thread that neither sleeps nor is anybody else's. */
static void begin_sim(struct side *side, struct side_access *access)
{
    uint64_t thread = 0;

    while (thread < SIM_THREADS - 1 && side->sim.threads[thread].sleeps)
        thread++;
    access->thread = thread;
    touch(side, access);
}

static bool settle_sim(struct side *side)
{
    for (uint32_t i = 0; i < side->access_count && !side->exited; i++)
        if (!side->accesses[i].ended && !side->sim.threads[side->accesses[i].thread].sleeps)
            touch(side, &side->accesses[i]);
    if (side->removal_read) {
        sim_removal_step(&side->sim, 0);
        sim_removal_step(&side->sim, 0);
        side->removal_waits = side->removal_read = false;
        side->removal_answer = 0;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------------ acts */

static int64_t remove_pages(struct side *side, uint64_t page, uint64_t count, bool drops_data)
{
    uint64_t start = side->address + page * side->unit_pages * PAGE_BYTES;

    if (!sim_remove(&side->sim, start, start + count * side->unit_pages * PAGE_BYTES, drops_data))
        return -ENOBUFS;
    if (side->announced) {
        side->removal_waits = true;
        return SIDE_WAITS;
    }
    side->sim.removals[0].stage = SIM_REMOVAL_COMPLETED; /* nobody waits for a reader */
    return sim_removal_step(&side->sim, 0) != NULL ? 0 : -EIO;
}

static int64_t look_up(const struct side *side, uint64_t page)
{
    const struct sim_page *facts = &side->sim.pages[page * side->unit_pages];

    if (!facts->present)
        return side->unit_pages > 1 ? 0 : SIDE_HOLE; /* a file on a pool does not tell its holes from zeros */
    return facts->token == SIM_TORN ? REAL_TORN : (int64_t)facts->token;
}

static int64_t act_on_page(struct side *side, enum side_act act, uint64_t page, uint64_t word)
{
    struct sim_kernel *sim = &side->sim;
    uint64_t number = page;

    page *= side->unit_pages;
    switch (act) {
    case ACT_DISCARD:
        sim_discard_unit(sim, page);
        break;
    case ACT_FOREIGN:
        for (uint64_t i = 0; i < side->unit_pages; i++)
            sim_foreign(sim, page + i, word);
        break;
    case ACT_ALIAS:
    case ACT_ALLOCATE:
        if (!sim->pages[page].present)
            sim_foreign(sim, page, 0);
        return act == ACT_ALIAS ? look_up(side, number) : 0;
    case ACT_SILENT:
        sim_map_silently(sim, page);
        break;
    case ACT_RECLAIM:
        sim_drop_mapping(sim, page);
        break;
    case ACT_UNREGISTER:
        for (uint64_t i = 0; i < side->unit_pages; i++)
            sim_change_mapping(sim, page + i, SIM_UNREGISTERED);
        break;
    case ACT_UNMAP:
        for (uint64_t i = 0; i < side->unit_pages; i++)
            sim_change_mapping(sim, page + i, SIM_UNMAPPED);
        break;
    default:
        return -ENOSYS;
    }
    return 0;
}

static int64_t act_sim(struct side *side, enum side_act act, uint64_t page, uint64_t count, uint64_t word)
{
    int64_t answer = 0;

    switch (act) {
    case ACT_DONTNEED:
        return remove_pages(side, page, count, real_is_private(side->memory));
    case ACT_REMOVE:
        return remove_pages(side, page, count, true);
    case ACT_CACHE:
        return look_up(side, page);
    case ACT_CUT:
        for (uint64_t i = page * side->unit_pages; i < SIDE_PAGES * side->unit_pages; i++)
            sim_change_mapping(&side->sim, i, SIM_CUT);
        return 0;
    case ACT_EXIT:
        side->sim.gone = side->exited = true;
        return 0;
    case ACT_FULL:
    case ACT_ROOM:
        side->sim.full = act == ACT_FULL;
        return 0;
    default:
        for (uint64_t i = 0; i < count; i++)
            answer = act_on_page(side, act, page + i, word + i);
        return answer;
    }
}

const struct side_calls side_simulated = {
    .open = open_sim,
    .close = close_sim,
    .ops = &planted_ops,
    .begin = begin_sim,
    .settle = settle_sim,
    .act = act_sim,
};
