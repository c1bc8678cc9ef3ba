/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See reply.h. In the space: the head first, ending where the data begin; the data from
 * page_batch_head_max(runs_max) on. A page that turns out to be zeros gives its place to the next one.
 *
 * How a page stands is asked before it is looked at, for it may not be whole, and once more afterwards, for it may have been
 * lost: its word says so before its bytes go, so whoever has met the hole that they leave is told.
 */
#include "reply.h"

#include <string.h>

#include "../rpc/payload.h"

struct making {
    const struct reply_order *order;
    struct run *runs;
    uint32_t run_count;
    uint8_t *data;
    uint32_t data_pages; /* in `data` */
    uint32_t read_pages; /* tried, whatever came of it */
    uint64_t named_pages;
    uint64_t zero_pages;
    uint64_t poison_pages;
    uint32_t lost_pages;
};

size_t reply_bytes_max(uint32_t pages_max, uint32_t runs_max)
{
    return page_batch_head_max(runs_max) + pages_max * IMAGE_PAGE_BYTES;
}

/* Joins the run before where it can; the caller has seen to it that there is room for one more. */
static void add_run(struct making *making, uint64_t first_page, uint64_t page_count, uint64_t kind,
                    uint64_t version)
{
    struct run *last = making->run_count == 0 ? NULL : &making->runs[making->run_count - 1];

    if (last != NULL && last->first_page + last->page_count == first_page && last->kind == kind &&
        last->version == version)
        last->page_count += page_count;
    else
        making->runs[making->run_count++] = (struct run){first_page, page_count, kind, version};
    making->named_pages += page_count;
    if (kind == PF_RUN_KIND_ZERO)
        making->zero_pages += page_count;
    if (kind == PF_RUN_KIND_POISON)
        making->poison_pages += page_count;
}

static uint8_t *free_place(struct making *making)
{
    return making->data + making->data_pages * IMAGE_PAGE_BYTES;
}

/* The bytes of one page are at `bytes`, at or behind the free place. */
static void add_page(struct making *making, uint64_t page, const uint8_t *bytes, uint64_t version)
{
    if (payload_page_is_zero(bytes)) {
        add_run(making, page, 1, PF_RUN_KIND_ZERO, version);
    } else {
        if (bytes != free_place(making))
            memcpy(free_place(making), bytes, IMAGE_PAGE_BYTES);
        making->data_pages++;
        add_run(making, page, 1, PF_RUN_KIND_DATA, version);
    }
}

/* Pages that cannot be read, here: their version is known all the same. */
static void add_unread(struct making *making, uint64_t page, uint64_t end, enum image_standing standing,
                       uint64_t version)
{
    uint64_t kind = making->order->versions_only ? PF_RUN_KIND_VERSION : PF_RUN_KIND_LATER;

    add_run(making, page, end - page, standing == IMAGE_LOST ? PF_RUN_KIND_POISON : kind, version);
}

/* Pages that were read to `bytes`. */
static void add_read(struct making *making, uint64_t first_page, uint64_t page_count, const uint8_t *bytes,
                     uint64_t version)
{
    uint64_t page = first_page, end = first_page + page_count;

    while (page < end) {
        uint64_t past = end;
        enum image_standing standing = image_standing_since(making->order->image, page, &past);
        if (standing != IMAGE_HERE) {
            add_unread(making, page, past, standing, version);
            page = past;
        }
        for (; page < past; page++)
            add_page(making, page, bytes + (page - first_page) * IMAGE_PAGE_BYTES, version);
    }
}

/* One that cannot be read does not take its neighbours with it, whether for now or for ever. */
static int read_one_by_one(struct making *making, uint64_t first_page, uint64_t page_count, uint64_t version)
{
    struct image *image = making->order->image;

    for (uint64_t page = first_page; page < first_page + page_count; page++) {
        int rc = image->ops->read(image, page, 1, free_place(making));
        if (rc == -PF_REASON_GOING_AWAY)
            add_run(making, page, 1, PF_RUN_KIND_LATER, version);
        else if (rc < 0)
            return rc;
        else if (rc == 0)
            add_read(making, page, 1, free_place(making), version);
        if (rc == IMAGE_READ_LOST) {
            making->lost_pages += (uint32_t)lost_note(&image->lost, page, 1);
            add_run(making, page, 1, PF_RUN_KIND_POISON, version);
        }
    }
    return 0;
}

static int read_pages(struct making *making, uint64_t first_page, uint64_t page_count, uint64_t version)
{
    const struct image *image = making->order->image;
    uint8_t *bytes = free_place(making);
    int rc = image->ops->read(image, first_page, page_count, bytes);

    making->read_pages += (uint32_t)page_count;
    if (rc == -PF_REASON_GOING_AWAY || rc == IMAGE_READ_LOST)
        return read_one_by_one(making, first_page, page_count, version);
    if (rc == 0)
        add_read(making, first_page, page_count, bytes, version);
    return rc;
}

/* Puts pages from `page` on into the batch; *end comes back as where it stopped, at least one page on. */
static int add_pages(struct making *making, uint64_t page, uint64_t *end, uint64_t version)
{
    const struct reply_order *order = making->order;
    const struct image *image = order->image;
    uint64_t room = order->pages_max - making->read_pages;
    enum image_standing standing = image_standing(image, page, end);
    bool hole = standing == IMAGE_HERE && !image->ops->may_hold_data(image, page);

    if (hole) {
        *end = image->ops->alike_end(image, page, *end);
        standing = image_standing_since(image, page, end);
    }
    if (standing != IMAGE_HERE) {
        add_unread(making, page, *end, standing, version);
        return 0;
    }
    if (hole) {
        add_run(making, page, *end - page, PF_RUN_KIND_ZERO, version);
        return 0;
    }
    if (order->versions_only) {
        *end = image->ops->alike_end(image, page, *end);
        add_run(making, page, *end - page, PF_RUN_KIND_VERSION, version);
        return 0;
    }
    if (room > order->runs_max - making->run_count) /* each page may need a run of its own */
        room = order->runs_max - making->run_count;
    if (*end > page + room)
        *end = page + room;
    *end = image->ops->alike_end(image, page, *end);
    return read_pages(making, page, *end - page, version);
}

/* Is `page` in the batch already? *end comes down to where its run ends; if not, to where the next begins. */
static bool has_page(const struct making *making, uint64_t page, uint64_t *end)
{
    for (uint32_t i = 0; i < making->run_count; i++) {
        uint64_t first = making->runs[i].first_page, past = first + making->runs[i].page_count;
        if (page >= first && page < past) {
            *end = past < *end ? past : *end;
            return true;
        }
        if (first > page && first < *end)
            *end = first;
    }
    return false;
}

static bool is_full(const struct making *making)
{
    const struct reply_order *order = making->order;

    return making->run_count == order->runs_max || making->read_pages == order->pages_max ||
           (order->named_pages_max != 0 && making->named_pages >= order->named_pages_max);
}

/* The oldest ask, or its first pages. `page`: the first of them that is news. */
static int take_ask(struct making *making, struct asks *asks)
{
    const struct reply_order *order = making->order;
    const struct image *image = order->image;
    struct asked oldest = asks_oldest(asks);
    uint64_t end = oldest.first_page + oldest.page_count;
    uint64_t page = image->ops->next_above(image, order->since_version, oldest.first_page, end);
    int rc = 0;

    if (page < end && (!order->may_repeat || !has_page(making, page, &end))) {
        uint64_t version = image->ops->version(image, page, &end);
        rc = add_pages(making, page, &end, version);
    }
    asks_answered(asks, end - oldest.first_page);
    return rc;
}

static int take_asks(struct making *making, struct asks *asks)
{
    int rc = 0;

    while (rc == 0 && asks->count > 0 && !is_full(making))
        rc = take_ask(making, asks);
    return rc;
}

static int write_message(const struct making *making, const struct reply_space *space, struct reply *reply)
{
    struct page_batch batch = {
        .as_of = making->order->as_of,
        .runs = making->runs,
        .run_count = making->run_count,
        .encoding = making->data_pages > 0 ? PF_ENCODING_IDENTITY : 0,
        .data = {.data = making->data, .length = making->data_pages * IMAGE_PAGE_BYTES},
    };
    size_t room_bytes = (size_t)(making->data - space->bytes), head_bytes;

    if (batch.run_count > 0)
        batch.digest = payload_digest(making->order->image->content_id, batch.runs, batch.run_count,
                                      batch.data);
    head_bytes = write_page_batch_head(&batch, space->bytes, room_bytes);
    if (head_bytes == 0)
        return -PF_REASON_BUG;
    memmove(making->data - head_bytes, space->bytes, head_bytes);
    reply->message.data = making->data - head_bytes;
    reply->message.length = head_bytes + batch.data.length;
    reply->run_count = batch.run_count;
    reply->lost_pages = making->lost_pages;
    return 0;
}

int reply_make(const struct reply_order *order, struct asks *asks, const struct reply_space *space,
               struct stats *stats, struct reply *reply)
{
    struct making making = {.order = order, .runs = space->runs};
    int rc;

    if (space->capacity_bytes < reply_bytes_max(order->pages_max, order->runs_max))
        return -PF_REASON_BUG;
    making.data = space->bytes + page_batch_head_max(order->runs_max);
    rc = take_asks(&making, asks);
    if (rc == 0)
        rc = write_message(&making, space, reply);
    if (rc == 0) {
        stats_add(stats, STATS_sent_batches_total, 1);
        stats_add(stats, STATS_sent_pages_total, making.data_pages);
        stats_add(stats, STATS_sent_zero_pages_total, making.zero_pages);
        stats_add(stats, STATS_sent_poison_pages_total, making.poison_pages);
        stats_add(stats, STATS_lost_pages_total, making.lost_pages);
    }
    return rc;
}
