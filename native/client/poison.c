/* SPDX-License-Identifier: Apache-2.0 */
/* Poison told and ordered: see poison.h. */
#include "poison.h"

#include "../pager/log.h"

#define OWNER_AGAIN_NS UINT64_C(2000000) /* nothing tells that the owner has taken events */

_Static_assert(LOG_WAS_MAPPED == PAGEFERRY_POISONED_WAS_MAPPED && LOG_MAPPED == PAGEFERRY_POISONED_MAPPED &&
               LOG_HELD == PAGEFERRY_POISONED_HELD, "the log's flags are those of the event");

static bool tell_owner(struct loop *loop, const struct table_log_entry *entry, uint64_t number)
{
    bool lost = entry->kind == LOG_POISONED;
    struct pageferry_event event = {
        .kind = lost ? PAGEFERRY_EVENT_POISONED : PAGEFERRY_EVENT_POISON_CLEARED,
        .page = entry->page,
        .value = lost ? entry->flags : 1,
        .cookie = number,
    };

    return tell(&loop->tell, &event, NULL);
}

void poison_look(struct loop *loop)
{
    struct table_log_entry entry;
    uint64_t number;

    while (log_next(&loop->table, TABLE_LOG_OWNER, &entry, &number) && tell_owner(loop, &entry, number))
        log_taken(&loop->table, TABLE_LOG_OWNER);
    while (log_next(&loop->table, TABLE_LOG_VMM, &entry, &number))
        log_taken(&loop->table, TABLE_LOG_VMM);
}

uint64_t poison_next_ns(const struct loop *loop)
{
    struct table_log_entry entry;
    uint64_t number;

    return log_next(&loop->table, TABLE_LOG_OWNER, &entry, &number) ? loop->now_ns + OWNER_AGAIN_NS : UINT64_MAX;
}
