/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of runs on the wire: see runs.h. */
#include "runs.h"

#include "../gen/contract.h"

static bool add_number(struct run_list *list, uint64_t number)
{
    uint64_t index = list->number_count / list->run_numbers;
    struct run *run = &list->runs[index];

    if (index >= list->runs_max)
        return false;
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
    struct pb_reader reader = pb_reader_of(field->bytes);
    uint64_t number;

    if (field->type == PB_VARINT)
        return add_number(list, field->value);
    while (field->type == PB_BYTES && reader.at < reader.end)
        if (!pb_read_varint(&reader, &number) || !add_number(list, number))
            return false;
    return true;
}

/* In order they come mostly, and then one look at each suffices; else each is held against all before it, which is
 * bounded by runs_max squared and so by RUNS_MAX squared: 8 million comparisons, some milliseconds, at the very worst. */
static bool overlaps_earlier(const struct run *runs, uint32_t index)
{
    uint64_t first = runs[index].first_page, end = first + runs[index].page_count;

    for (uint32_t i = 0; i < index; i++)
        if (first < runs[i].first_page + runs[i].page_count && runs[i].first_page < end)
            return true;
    return false;
}

/* 0, or -PF_REASON_BAD_REQUEST. */
int run_list_end(const struct run_list *list, uint32_t *run_count)
{
    uint32_t count = (uint32_t)(list->number_count / list->run_numbers);
    uint64_t highest_end = 0;

    if (list->number_count % list->run_numbers != 0)
        return -PF_REASON_BAD_REQUEST;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t first = list->runs[i].first_page, pages = list->runs[i].page_count;
        if (pages == 0 || first > UINT64_MAX - pages)
            return -PF_REASON_BAD_REQUEST;
        if (first < highest_end && overlaps_earlier(list->runs, i))
            return -PF_REASON_BAD_REQUEST;
        if (first + pages > highest_end)
            highest_end = first + pages;
    }
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
