/* SPDX-License-Identifier: Apache-2.0 */
/* The poison log of log.h. An entry counts from the moment that log_count says so, and is whole by then. */
#include "log.h"

static struct table_log_entry *entry_at(const struct table *table, uint64_t index)
{
    return &table->log[index & (table->header->log_capacity - 1)];
}

uint64_t log_room(const struct table *table)
{
    const struct table_header *header = table->header;
    uint64_t most = 0;

    for (int reader = 0; reader < TABLE_LOG_READERS; reader++) {
        uint64_t kept = atomic_load(&header->log_count) - atomic_load(&header->log_taken[reader]);
        most = kept > most ? kept : most;
    }
    return header->log_capacity - most;
}

bool log_newest(const struct table *table, struct table_log_entry *entry)
{
    uint64_t count = atomic_load(&table->header->log_count);

    if (count > 0)
        *entry = *entry_at(table, count - 1);
    return count > 0;
}

void log_put(struct table *table, enum log_kind kind, uint64_t page, uint8_t flags)
{
    uint64_t count = atomic_load(&table->header->log_count);
    struct table_log_entry entry = {0};

    log_newest(table, &entry);
    *entry_at(table, count) = (struct table_log_entry){
        .page = page,
        .sequence = entry.sequence + (kind == LOG_POISONED),
        .kind = (uint8_t)kind,
        .flags = flags,
    };
    atomic_store_explicit(&table->header->log_count, count + 1, memory_order_release);
}

bool log_next(const struct table *table, enum table_log_reader reader, struct table_log_entry *entry,
              uint64_t *number)
{
    uint64_t taken = atomic_load(&table->header->log_taken[reader]);
    bool more = taken < atomic_load_explicit(&table->header->log_count, memory_order_acquire);

    if (more) {
        *entry = *entry_at(table, taken);
        *number = taken + 1;
    }
    return more;
}

void log_taken(struct table *table, enum table_log_reader reader)
{
    atomic_fetch_add(&table->header->log_taken[reader], 1);
}
