/* SPDX-License-Identifier: Apache-2.0 */
/* See lost.h. Almost every image has no lost page: then nothing but the count is looked at. */
#include "lost.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_PAGES UINT64_C(64)

int lost_open(struct lost *lost, uint64_t page_count, bool live)
{
    memset(lost, 0, sizeof(*lost));
    lost->page_count = page_count;
    lost->pages = calloc(page_count / WORD_PAGES + 1, sizeof(*lost->pages));
    if (live)
        lost->unnamed = calloc(page_count / WORD_PAGES + 1, sizeof(*lost->unnamed));
    if (lost->pages == NULL || (live && lost->unnamed == NULL)) {
        lost_close(lost);
        return -ENOMEM;
    }
    return 0;
}

void lost_close(struct lost *lost)
{
    free((void *)lost->pages);
    free((void *)lost->unnamed);
    memset(lost, 0, sizeof(*lost));
}

static bool note_one(struct lost *lost, uint64_t page)
{
    uint64_t bit = UINT64_C(1) << (page % WORD_PAGES);

    if ((atomic_fetch_or(&lost->pages[page / WORD_PAGES], bit) & bit) != 0)
        return false;
    if (lost->unnamed != NULL)
        atomic_fetch_or(&lost->unnamed[page / WORD_PAGES], bit);
    return true;
}

uint64_t lost_note(struct lost *lost, uint64_t first_page, uint64_t page_count)
{
    uint64_t news = 0;

    atomic_fetch_add(&lost->count, page_count); /* before the bits: who sees one of those does not see zero here */
    for (uint64_t page = first_page; page < first_page + page_count; page++)
        news += note_one(lost, page);
    atomic_fetch_sub(&lost->count, page_count - news);
    return news;
}

/* The first page from `page` on, before `end`, whose bit is not as `set` says. */
static uint64_t other_from(_Atomic uint64_t *words, bool set, uint64_t page, uint64_t end)
{
    uint64_t alike = set ? UINT64_MAX : 0;

    while (page < end) {
        uint64_t others = (atomic_load(&words[page / WORD_PAGES]) ^ alike) >> (page % WORD_PAGES);
        if (others != 0) {
            page += (uint64_t)__builtin_ctzll(others);
            break;
        }
        page = (page / WORD_PAGES + 1) * WORD_PAGES;
    }
    return page < end ? page : end;
}

bool lost_has(const struct lost *lost, uint64_t page, uint64_t *end)
{
    bool has;

    if (atomic_load_explicit(&lost->count, memory_order_relaxed) == 0)
        return false;
    has = (atomic_load(&lost->pages[page / WORD_PAGES]) >> (page % WORD_PAGES) & 1) != 0;
    *end = other_from(lost->pages, has, page + 1, *end);
    return has;
}

uint64_t lost_take_unnamed(struct lost *lost, uint64_t page, uint64_t end)
{
    if (atomic_load(&lost->count) == 0)
        return end;
    page = other_from(lost->unnamed, false, page, end);
    if (page < end)
        atomic_fetch_and(&lost->unnamed[page / WORD_PAGES], ~(UINT64_C(1) << (page % WORD_PAGES)));
    return page;
}
