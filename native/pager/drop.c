/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zaps, as far as the engine has to do with them. One that keeps the data changes no word: it is announced, so that the
 * REMOVE event of our own doing is told from those of the guest's balloon. One that drops the data removes the pages
 * first: from then on nothing that arrives is taken for them, so that no byte comes back.
 */
#include "engine.h"

#include <stddef.h>

#include "place.h"
#include "wait.h"

void engine_zaps(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    engine->zap_first = first_page;
    engine->zap_count = page_count;
}

void engine_zapped(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    for (uint64_t page = first_page; page < first_page + page_count && !engine->gone; page += engine->regions->unit_pages)
        if (page_state(table_word(engine->table, page)) == PAGE_POISONED && wait_armed(engine))
            wait_settle(engine, page);
}

uint64_t engine_drop(struct engine *engine, uint64_t first_page, uint64_t page_count)
{
    uint64_t total = engine->table->page_count, done = 0;
    struct kernel_outcome outcome = {.result = KERNEL_MAPPED};

    if (!wait_armed(engine) || engine->private_memory || first_page >= total)
        return 0;
    if (page_count > total - first_page)
        page_count = total - first_page;
    engine_removed(engine, first_page, page_count);
    while (done < page_count && outcome.result == KERNEL_MAPPED && !engine->gone) {
        uint64_t pages = place_cut(engine, first_page + done, page_count - done);
        outcome = place_call(engine, CALL_PUNCH, first_page + done, pages, NULL);
        done += outcome.done_bytes / PAGE_BYTES;
    }
    return done;
}
