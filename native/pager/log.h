/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The poison log: one entry for each page that was lost or cleared, in that order, numbered from 1 without a gap. It has
 * two readers, the owner of the pager and the VMM. Each takes every entry once, at its own pace; the slower of them
 * keeps entries in the log, and a full log makes poison wait to be told, never to be done: what is owed stays in the
 * page's word (PAGE_OWED).
 *
 * It lies in the table's memfd, and how far each reader has come too. After a worker's death its successor tells again
 * what the dead one may have told and not noted: the same entry, with the same number.
 */
#ifndef PAGEFERRY_LOG_H
#define PAGEFERRY_LOG_H

#include <stdbool.h>

#include "table.h"

enum log_kind { LOG_POISONED = 1, LOG_CLEARED };

#define LOG_WAS_MAPPED 1u /* as PAGEFERRY_POISONED_*, bit by bit */
#define LOG_MAPPED 2u
#define LOG_HELD 4u

/* How many entries more there is room for. */
uint64_t log_room(const struct table *table);
/* Where there is room. */
void log_put(struct table *table, enum log_kind kind, uint64_t page, uint8_t flags);
/* The newest one; false: there was none. */
bool log_newest(const struct table *table, struct table_log_entry *entry);
/* The oldest that this reader has not taken, and its number; false: it has all. */
bool log_next(const struct table *table, enum table_log_reader reader, struct table_log_entry *entry,
              uint64_t *number);
/* It has the one that log_next gave. */
void log_taken(struct table *table, enum table_log_reader reader);

#endif
