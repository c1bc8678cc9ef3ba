/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of runs on the wire: see runs.h. */
#include "runs.h"

#include "../gen/contract.h"

static bool add_number(struct run_list *list, uint64_t number)
{
    uint64_t index = list->number_count / list->run_numbers;
    struct run *run;

    if (index >= list->runs_max || index >= PF_LIMIT_RUNS_MAX)
        return false;
    run = &list->runs[index];
    switch (list->number_count++ % list->run_numbers) {
    case 0:
        *run = (struct run){.first_page = number};
        break;
    case 1:
        run->page_count = number;
        break;
    case 2:
        run->kind = number;
        break;
    default:
        run->version = number;
        break;
    }
    return true;
}

bool run_list_add(struct run_list *list, const struct pb_field *field)
{
    struct pb_reader reader;
    uint64_t number;

    if (field->type != PB_BYTES)
        return field->type != PB_VARINT || add_number(list, field->value);
    reader = pb_reader_of(field->bytes);
    while (reader.at < reader.end)
        if (!pb_read_varint(&reader, &number) || !add_number(list, number))
            return false;
    return true;
}

/* One step of a heap sort: the number at `root` sinks to its place among the first `count`. */
static void sink(const struct run *runs, uint16_t *order, uint32_t root, uint32_t count)
{
    uint32_t child;

    while ((child = 2 * root + 1) < count) {
        uint16_t moved = order[root];
        if (child + 1 < count && runs[order[child]].first_page < runs[order[child + 1]].first_page)
            child++;
        if (runs[moved].first_page >= runs[order[child]].first_page)
            return;
        order[root] = order[child];
        order[child] = moved;
        root = child;
    }
}

/* Sorted on the side, without allocation and never in more than n log n steps: the sender chooses their order. */
static bool any_overlap(const struct run *runs, uint32_t count)
{
    uint16_t order[PF_LIMIT_RUNS_MAX], last;

    for (uint32_t i = 0; i < count; i++)
        order[i] = (uint16_t)i;
    for (uint32_t root = count / 2; root-- > 0;)
        sink(runs, order, root, count);
    for (uint32_t left = count; left-- > 1;) {
        last = order[left];
        order[left] = order[0];
        order[0] = last;
        sink(runs, order, 0, left);
    }
    for (uint32_t i = 1; i < count; i++)
        if (runs[order[i]].first_page - runs[order[i - 1]].first_page < runs[order[i - 1]].page_count)
            return true;
    return false;
}

/* 0, or -PF_REASON_BAD_REQUEST. */
int run_list_end(const struct run_list *list, uint32_t *run_count)
{
    uint32_t count = (uint32_t)(list->number_count / list->run_numbers);
    uint64_t highest_end = 0;
    bool ordered = true; /* as they mostly are: then one look at each suffices */

    if (list->number_count % list->run_numbers != 0)
        return -PF_REASON_BAD_REQUEST;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t first = list->runs[i].first_page, pages = list->runs[i].page_count;
        if (pages == 0 || first > UINT64_MAX - pages)
            return -PF_REASON_BAD_REQUEST;
        ordered = ordered && first >= highest_end;
        highest_end = first + pages;
    }
    if (!ordered && any_overlap(list->runs, count))
        return -PF_REASON_BAD_REQUEST;
    *run_count = count;
    return 0;
}

static uint64_t number_of(const struct run *run, uint32_t index)
{
    const uint64_t numbers[RUN_FOUR] = {run->first_page, run->page_count, run->kind, run->version};

    return numbers[index];
}

void run_list_write(struct pb_writer *writer, uint32_t field, const struct run *runs, uint32_t run_count,
                    uint32_t run_numbers)
{
    uint64_t length = 0;

    if (run_count == 0)
        return;
    for (uint32_t i = 0; i < run_count; i++)
        for (uint32_t j = 0; j < run_numbers; j++)
            length += pb_varint_bytes(number_of(&runs[i], j));
    pb_write_tag(writer, field, PB_BYTES);
    pb_write_varint(writer, length);
    for (uint32_t i = 0; i < run_count; i++)
        for (uint32_t j = 0; j < run_numbers; j++)
            pb_write_varint(writer, number_of(&runs[i], j));
}

bool runs_inside(const struct run *runs, uint32_t run_count, uint64_t page_count)
{
    for (uint32_t i = 0; i < run_count; i++)
        if (runs[i].first_page >= page_count || runs[i].page_count > page_count - runs[i].first_page)
            return false;
    return true;
}
