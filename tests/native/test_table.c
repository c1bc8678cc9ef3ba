/* SPDX-License-Identifier: Apache-2.0 */
/* The shared table: made, adopted, refused. */
#include "pager/table.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

static void a_new_table_is_all_missing(void)
{
    struct table table;
    uint64_t counts[PAGE_STATE_COUNT];

    CHECK_EQ(table_create(1000, &table), 0);
    table_count(&table, counts);
    CHECK_EQ(counts[PAGE_MISSING], 1000);
    CHECK_EQ(table_word(&table, 999), 0);
    CHECK_EQ(atomic_load(&table.header->armed), 0);
    CHECK_EQ(atomic_load(&table.header->takeovers), 0);
    table_set(&table, 999, page_word(PAGE_OWNED, false, 5));
    table_count(&table, counts);
    CHECK_EQ(counts[PAGE_OWNED], 1);
    table_close(&table);
    table_close(&table); /* harmless */
}

static void a_table_without_pages_is_refused(void)
{
    struct table table;

    CHECK_EQ(table_create(0, &table), -EINVAL);
    CHECK_EQ(table_create(UINT64_MAX, &table), -EINVAL);
    CHECK_EQ(table_create(UINT64_MAX / 8, &table), -EINVAL);
    CHECK_EQ(table.fd, -1);
}

static void a_successor_sees_words_and_batch(void)
{
    struct table table, next;
    int fd;

    CHECK_EQ(table_create(64, &table), 0);
    table_set(&table, 7, page_word(PAGE_WANTED, true, 3));
    table.header->batch[0].start = 4711;
    atomic_store(&table.header->batch_count, 1);
    fd = fcntl(table.fd, F_DUPFD_CLOEXEC, 0);
    table_close(&table);
    CHECK_EQ(table_adopt(fd, 64, &next), 0);
    CHECK_EQ(table_word(&next, 7), page_word(PAGE_WANTED, true, 3));
    CHECK_EQ(next.header->batch[0].start, 4711);
    CHECK_EQ(atomic_load(&next.header->batch_count), 1);
    CHECK_EQ(atomic_load(&next.header->takeovers), 1);
    table_close(&next);
}

static void what_is_not_ours_is_not_adopted(void)
{
    struct table table, next;
    int fd = memfd_create("test", MFD_CLOEXEC);

    CHECK_EQ(table_adopt(fd, 64, &next), -EPROTO); /* empty */
    CHECK_EQ(table_create(64, &table), 0);
    CHECK_EQ(table_adopt(table.fd, 65, &next), -EPROTO); /* another size */
    CHECK_EQ(ftruncate(fd, (off_t)table.mapped_bytes), 0);
    CHECK_EQ(table_adopt(fd, 64, &next), -EPROTO); /* no magic */
    atomic_store(&table.header->batch_count, TABLE_BATCH_EVENTS + 1);
    CHECK_EQ(table_adopt(table.fd, 64, &next), -EPROTO); /* a batch that is too long */
    CHECK_EQ(atomic_load(&table.header->takeovers), 0);
    CHECK_EQ(table_adopt(-1, 64, &next), -EBADF);
    table_close(&table);
    close(fd);
}

static void a_foreign_word_counts_nowhere(void)
{
    struct table table;
    uint64_t counts[PAGE_STATE_COUNT];

    CHECK_EQ(table_create(8, &table), 0);
    table_set(&table, 1, 7); /* state 7 does not exist */
    table_count(&table, counts);
    CHECK_EQ(counts[PAGE_MISSING], 7);
    table_close(&table);
}

int main(void)
{
    RUN(a_new_table_is_all_missing);
    RUN(a_table_without_pages_is_refused);
    RUN(a_successor_sees_words_and_batch);
    RUN(what_is_not_ours_is_not_adopted);
    RUN(a_foreign_word_counts_nowhere);
    return check_done();
}
