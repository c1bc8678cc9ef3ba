/* SPDX-License-Identifier: Apache-2.0 */
/* See asks.h. The runs lie in a row; what was answered at the front is closed up when the end is reached. */
#include "asks.h"

#include <stdlib.h>
#include <string.h>

void asks_open(struct asks *asks)
{
    asks->pages = 0;
    asks->first = asks->count = 0;
    asks->runs = asks->few;
    asks->capacity = ASKS_FEW;
}

void asks_close(struct asks *asks)
{
    if (asks->runs != asks->few)
        free(asks->runs);
    asks_open(asks);
}

/* A free place behind the last run. */
static bool make_room(struct asks *asks)
{
    struct asked *more;

    if (asks->first + asks->count < asks->capacity)
        return true;
    if (asks->first >= asks->capacity / 4) {
        memmove(asks->runs, asks->runs + asks->first, asks->count * sizeof(*asks->runs));
        asks->first = 0;
        return true;
    }
    more = malloc(2 * asks->capacity * sizeof(*more));
    if (more == NULL)
        return false;
    memcpy(more, asks->runs + asks->first, asks->count * sizeof(*more));
    if (asks->runs != asks->few)
        free(asks->runs);
    asks->runs = more;
    asks->capacity *= 2;
    asks->first = 0;
    return true;
}

bool asks_add(struct asks *asks, uint64_t first_page, uint64_t page_count)
{
    struct asked *last = asks->count == 0 ? NULL : &asks->runs[asks->first + asks->count - 1];

    if (last != NULL && last->first_page + last->page_count == first_page) {
        last->page_count += page_count;
    } else {
        if (!make_room(asks))
            return false;
        asks->runs[asks->first + asks->count++] = (struct asked){first_page, page_count};
    }
    asks->pages += page_count;
    return true;
}

struct asked asks_oldest(const struct asks *asks)
{
    return asks->runs[asks->first];
}

void asks_answered(struct asks *asks, uint64_t page_count)
{
    struct asked *oldest = &asks->runs[asks->first];

    oldest->first_page += page_count;
    oldest->page_count -= page_count;
    asks->pages -= page_count;
    if (oldest->page_count == 0) {
        asks->count--;
        asks->first = asks->count == 0 ? 0 : asks->first + 1;
    }
}
