/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated kernel of sim_kernel.h. */
#include "sim_kernel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t sim_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15); /* splitmix64 */

    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

void sim_open(struct sim_kernel *sim, const struct regions *regions, bool private_memory, uint64_t seed)
{
    memset(sim, 0, sizeof(*sim));
    sim->regions = regions;
    sim->private_memory = private_memory;
    sim->random = seed;
    sim->pages = calloc(regions->page_count, sizeof(*sim->pages));
    if (sim->pages == NULL)
        abort();
}

void sim_close(struct sim_kernel *sim)
{
    free(sim->pages);
    sim->pages = NULL;
}

static void failed(struct sim_kernel *sim, uint64_t page, const char *text)
{
    if (sim->failed == NULL) {
        printf("page %llu: %s\n", (unsigned long long)page, text);
        abort();
    }
    sim->failed(sim->owner, page, text);
}

void sim_stamp(uint8_t *page, uint64_t token)
{
    memcpy(page, &token, sizeof(token));
    memcpy(page + PAGE_BYTES - sizeof(token), &token, sizeof(token));
}

static uint64_t token_of(const uint8_t *page)
{
    uint64_t first, last;

    memcpy(&first, page, sizeof(first));
    memcpy(&last, page + PAGE_BYTES - sizeof(last), sizeof(last));
    return first == last ? first : SIM_TORN;
}

/* Room for all of a unit, zeros. */
static void allocate(struct sim_kernel *sim, uint64_t page)
{
    uint64_t first = regions_unit(sim->regions, page);

    for (uint64_t i = first; i < first + sim->regions->unit_pages; i++) {
        if (!sim->pages[i].present)
            sim->pages[i].token = 0;
        sim->pages[i].present = true;
    }
}

void sim_foreign(struct sim_kernel *sim, uint64_t page, uint64_t token)
{
    allocate(sim, page);
    sim->pages[page].token = token;
}

void sim_make_room(struct sim_kernel *sim, uint64_t page)
{
    if (!sim->pages[page].present) {
        allocate(sim, page);
        sim->pages[page].room = true;
    }
}

void sim_lose_staging(struct sim_kernel *sim)
{
    for (uint64_t page = 0; page < sim->regions->page_count; page++) {
        sim->pages[page].staged = false;
        sim->pages[page].staged_token = 0;
    }
}

static bool many(const struct sim_kernel *sim)
{
    return sim->regions->unit_pages > 1;
}

static bool stages(const struct sim_kernel *sim)
{
    return many(sim) && sim->private_memory;
}

/* -------------------------------------------------------------------------------------------------------- threads */

/* As the kernel does without us; `fills`: with zeros where nothing is. */
static void map_present(struct sim_kernel *sim, uint64_t page, bool fills)
{
    struct sim_page *facts = &sim->pages[page];
    uint64_t first = regions_unit(sim->regions, page);

    if (facts->pte != SIM_PTE_NONE || !(facts->present || fills))
        return;
    allocate(sim, page);
    for (uint64_t i = first; i < first + sim->regions->unit_pages; i++) {
        sim->pages[i].pte = SIM_PTE_MAPPED;
        sim->pages[i].ever_mapped = true;
    }
}

enum sim_access sim_touch(struct sim_kernel *sim, uint32_t thread, uint64_t page, bool write, uint64_t *token)
{
    struct sim_page *facts = &sim->pages[page];
    enum sim_access access = SIM_SLEEPS;

    if (facts->mapping == SIM_UNREGISTERED)
        map_present(sim, page, true);
    if (facts->pte == SIM_PTE_POISON || facts->mapping == SIM_UNMAPPED || facts->mapping == SIM_CUT) {
        access = SIM_SIGBUS;
    } else if (facts->pte == SIM_PTE_MAPPED) {
        *token = facts->token;
        access = SIM_READS_TOKEN;
    } else {
        sim->threads[thread] = (struct sim_thread){
            .sleeps = true, .write = write, .minor = facts->present, .page = page, .fault = ++sim->faults};
    }
    return access;
}

static void wake_page(struct sim_kernel *sim, uint64_t page)
{
    for (uint32_t i = 0; i < SIM_THREADS; i++)
        if (regions_unit(sim->regions, sim->threads[i].page) == page) /* the kernel knows the unit by its start */
            sim->threads[i].sleeps = false;
}

uint32_t sim_unread(const struct sim_kernel *sim)
{
    uint32_t unread = 0;

    for (uint32_t i = 0; i < SIM_THREADS; i++)
        unread += sim->threads[i].sleeps && !sim->threads[i].event_read;
    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        unread += sim->removals[i].stage == SIM_REMOVAL_POSTED;
    return unread;
}

/* ------------------------------------------------------------------------------------------------------- removals */

bool sim_remove(struct sim_kernel *sim, uint64_t start, uint64_t end, bool drops_data)
{
    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        if (sim->removals[i].stage == SIM_REMOVAL_FREE) {
            sim->removals[i] = (struct sim_removal){
                .stage = SIM_REMOVAL_POSTED, .drops_data = drops_data, .start = start, .end = end};
            return true;
        }
    return false;
}

static void drop_data(struct sim_kernel *sim, uint64_t page)
{
    struct sim_page *facts = &sim->pages[page];

    facts->present = facts->room = false;
    facts->ever_mapped = false;
    facts->token = 0;
    if (facts->pte == SIM_PTE_MAPPED)
        facts->pte = SIM_PTE_NONE;
}

const struct sim_removal *sim_removal_step(struct sim_kernel *sim, uint32_t index)
{
    struct sim_removal *removal = &sim->removals[index];
    uint64_t start = removal->start, first_page, count;

    if (removal->stage == SIM_REMOVAL_READ) { /* its thread runs on: calls that map are allowed again */
        removal->stage = SIM_REMOVAL_COMPLETED;
    } else if (removal->stage == SIM_REMOVAL_COMPLETED) { /* and only then do the mappings go */
        while ((count = regions_pages(sim->regions, &start, removal->end, &first_page)) > 0)
            for (uint64_t page = first_page; page < first_page + count; page++) {
                if (removal->drops_data)
                    drop_data(sim, page);
                if (!removal->drops_data || sim->private_memory || many(sim)) /* MADV_REMOVE leaves a poison marker */
                    sim->pages[page].pte = SIM_PTE_NONE;
            }
        removal->stage = SIM_REMOVAL_FREE;
        return removal;
    }
    return NULL;
}

void sim_discard(struct sim_kernel *sim, uint64_t page)
{
    if (many(sim))
        sim->pages[page].token = 0;
    else
        drop_data(sim, page); /* a poison marker survives this on shared memory */
}

void sim_discard_unit(struct sim_kernel *sim, uint64_t page)
{
    uint64_t first = regions_unit(sim->regions, page);

    for (uint64_t i = first; i < first + sim->regions->unit_pages; i++) {
        drop_data(sim, i);
        if (many(sim)) /* and not on a pool */
            sim->pages[i].pte = SIM_PTE_NONE;
    }
}

void sim_drop_mapping(struct sim_kernel *sim, uint64_t page)
{
    uint64_t first = regions_unit(sim->regions, page);

    for (uint64_t i = first; i < first + sim->regions->unit_pages; i++)
        if (sim->pages[i].pte == SIM_PTE_MAPPED)
            sim->pages[i].pte = SIM_PTE_NONE;
}

static bool any_removal(const struct sim_kernel *sim, enum sim_removal_stage stage)
{
    bool any = false;

    for (uint32_t i = 0; i < SIM_REMOVALS; i++)
        any |= sim->removals[i].stage == stage;
    return any;
}

static bool changing(const struct sim_kernel *sim)
{
    return any_removal(sim, SIM_REMOVAL_POSTED) || any_removal(sim, SIM_REMOVAL_READ);
}

void sim_map_silently(struct sim_kernel *sim, uint64_t page)
{
    if (!changing(sim))
        map_present(sim, page, sim->private_memory);
}

void sim_change_mapping(struct sim_kernel *sim, uint64_t page, enum sim_mapping mapping)
{
    sim->pages[page].mapping = (uint8_t)mapping;
    if (mapping == SIM_UNREGISTERED) {
        wake_page(sim, page);
    } else {
        sim->pages[page].pte = SIM_PTE_NONE;
        if (mapping == SIM_CUT || sim->private_memory)
            drop_data(sim, page);
    }
}

/* --------------------------------------------------------------------------------------------------------- events */

static bool armed(const struct sim_kernel *sim)
{
    return sim->table == NULL || atomic_load(&sim->table->header->armed) != 0;
}

static uint64_t address_of(const struct sim_kernel *sim, uint64_t page)
{
    struct kernel_span span;

    regions_span(sim->regions, regions_unit(sim->regions, page), 1, &span);
    return span.address;
}

static struct sim_thread *oldest_fault(struct sim_kernel *sim)
{
    struct sim_thread *oldest = NULL;

    for (uint32_t i = 0; i < SIM_THREADS; i++) {
        struct sim_thread *thread = &sim->threads[i];
        if (thread->sleeps && !thread->event_read && (oldest == NULL || thread->fault < oldest->fault))
            oldest = thread;
    }
    return oldest;
}

static int read_faults(struct sim_kernel *sim, struct kernel_event *events, int capacity)
{
    struct sim_thread *thread;
    int count = 0;

    while (count < capacity && (thread = oldest_fault(sim)) != NULL) {
        thread->event_read = true;
        sim->faults_unarmed += !armed(sim);
        events[count++] = (struct kernel_event){
            .kind = KERNEL_EVENT_FAULT,
            .flags = (thread->write ? KERNEL_FAULT_WRITE : 0) | (thread->minor ? KERNEL_FAULT_MINOR : 0),
            .address = address_of(sim, thread->page),
        };
    }
    return count;
}

static int read_removals(struct sim_kernel *sim, struct kernel_event *events, int capacity)
{
    int count = 0;

    for (uint32_t i = 0; i < SIM_REMOVALS && count < capacity; i++)
        if (sim->removals[i].stage == SIM_REMOVAL_POSTED) {
            sim->removals[i].stage = SIM_REMOVAL_READ;
            sim->removals[i].read_armed = armed(sim);
            events[count++] = (struct kernel_event){
                .kind = KERNEL_EVENT_REMOVE, .start = sim->removals[i].start, .end = sim->removals[i].end};
        }
    return count;
}

static void hook(struct sim_kernel *sim, void (*function)(void *, enum sim_call), enum sim_call call)
{
    if (function != NULL)
        function(sim->owner, call);
}

static int sim_read_events(void *kernel, struct kernel_event *events, int capacity)
{
    struct sim_kernel *sim = kernel;
    int count = 0, most = capacity;

    sim->calls[SIM_READ]++;
    hook(sim, sim->before, SIM_READ);
    sim->refused_page_plus_1 = 0;
    if (sim->table != NULL && atomic_load(&sim->table->header->batch_count) < (uint32_t)capacity)
        failed(sim, 0, "events are read while the table does not say that a batch is there");
    for (int i = 0; sim->table != NULL && i < capacity; i++)
        if (events[i].kind != 0)
            failed(sim, 0, "an old event lies where the next batch is read");
    if (!sim->gone) {
        if (sim->random % 3 == 0 && capacity > 1) /* a batch may end anywhere */
            most = 1 + (int)sim_below(&sim->random, 3);
        sim_random(&sim->random);
        count = read_faults(sim, events, most); /* the kernel gives faults first, whatever came first */
        count += read_removals(sim, events + count, most - count);
    }
    memcpy(sim->newest_batch, events, (size_t)count * sizeof(*events));
    sim->newest_batch_count = count;
    sim->events_read += (uint64_t)count;
    hook(sim, sim->after, SIM_READ);
    return count;
}

/* ---------------------------------------------------------------------------------------------------------- calls */

/* What one page answers, when nothing else is in the way. */
typedef enum kernel_result page_call(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes);

static bool is_state(const struct sim_kernel *sim, uint64_t page, enum page_state state)
{
    return page_state(table_word(sim->table, page)) == state;
}

static bool is_stale(const struct sim_kernel *sim, uint64_t page)
{
    return page_stale(table_word(sim->table, page));
}

/* Its poison was cleared: what fills the page takes the place of the marker. */
static bool is_cleared(const struct sim_kernel *sim, uint64_t page)
{
    return sim->table != NULL && page_owed(table_word(sim->table, page)) && page_fresh(table_word(sim->table, page)) &&
           (is_state(sim, page, PAGE_ZERO) || is_state(sim, page, PAGE_OWNED));
}

static void map_page(struct sim_kernel *sim, uint64_t page)
{
    if (!armed(sim))
        failed(sim, page, "mapped before arming");
    if (sim->pages[page].pte == SIM_PTE_POISON && !is_cleared(sim, page))
        failed(sim, page, "a poison marker is overwritten");
    sim->pages[page].pte = SIM_PTE_MAPPED;
    sim->pages[page].ever_mapped = true;
    wake_page(sim, page);
}

static enum kernel_result refused(struct sim_kernel *sim, uint64_t page, const char *text)
{
    failed(sim, page, text);
    return KERNEL_REFUSED;
}

/* Over a page that is claimed as zeros, zeros may be written: what is there cannot be punched away. */
static void audit_write(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    if (sim->table != NULL && (!is_stale(sim, page) || page_held(table_word(sim->table, page)) ||
                               (!is_state(sim, page, PAGE_MISSING) && !is_state(sim, page, PAGE_WANTED) &&
                                !(is_state(sim, page, PAGE_ZERO) && token_of(bytes) == 0))))
        failed(sim, page, "a page is written that is not marked stale, or claimed");
}

static enum kernel_result stage_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    struct sim_page *facts = &sim->pages[page];

    audit_write(sim, page, bytes);
    facts->staged = true;
    facts->staged_token = SIM_TORN;
    hook(sim, sim->middle, SIM_POPULATE);
    facts->staged_token = token_of(bytes);
    return KERNEL_MAPPED;
}

static enum kernel_result populate_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    struct sim_page *facts = &sim->pages[page];

    if (stages(sim))
        return stage_page(sim, page, bytes);
    if (sim->private_memory)
        return refused(sim, page, "populate on private memory");
    if (facts->ever_mapped || facts->pte == SIM_PTE_MAPPED || (facts->pte == SIM_PTE_POISON && !is_cleared(sim, page)))
        failed(sim, page, "a page is written that may be mapped");
    audit_write(sim, page, bytes);
    allocate(sim, page);
    facts->token = SIM_TORN; /* for as long as the write takes */
    hook(sim, sim->middle, SIM_POPULATE);
    facts->token = token_of(bytes);
    return KERNEL_MAPPED;
}

/* What was gathered is forgotten once it is taken. */
static enum kernel_result map_staged_page(struct sim_kernel *sim, uint64_t page)
{
    struct sim_page *facts = &sim->pages[page];

    if (sim->table != NULL && !is_state(sim, page, PAGE_CACHED) && !is_state(sim, page, PAGE_ZERO))
        failed(sim, page, "a unit is copied that is not whole");
    if (facts->pte == SIM_PTE_MAPPED)
        return KERNEL_ALREADY;
    map_page(sim, page);
    facts->present = true;
    facts->token = facts->staged ? facts->staged_token : 0;
    facts->staged = false;
    facts->staged_token = 0;
    return KERNEL_MAPPED;
}

static enum kernel_result continue_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    struct sim_page *facts = &sim->pages[page];

    (void)bytes;
    if (stages(sim))
        return map_staged_page(sim, page);
    if (sim->private_memory)
        return refused(sim, page, "CONTINUE on private memory");
    if (sim->table != NULL && !is_state(sim, page, PAGE_OWNED))
        failed(sim, page, "CONTINUE before the page is claimed");
    if (facts->pte == SIM_PTE_MAPPED)
        return KERNEL_ALREADY;
    if (!facts->present)
        return KERNEL_ABSENT;
    map_page(sim, page);
    return KERNEL_MAPPED;
}

static enum kernel_result copy_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    struct sim_page *facts = &sim->pages[page];

    if (sim->table != NULL && !is_state(sim, page, PAGE_MISSING) && !is_state(sim, page, PAGE_WANTED) &&
        !(sim->private_memory && is_cleared(sim, page)))
        failed(sim, page, "COPY to a page that is claimed");
    if (sim->table != NULL && is_stale(sim, page))
        failed(sim, page, "COPY to a page whose cache is in doubt");
    if (facts->pte == SIM_PTE_MAPPED || facts->present)
        return KERNEL_ALREADY;
    map_page(sim, page);
    facts->present = true;
    facts->token = token_of(bytes);
    return KERNEL_MAPPED;
}

static enum kernel_result zero_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    struct sim_page *facts = &sim->pages[page];

    (void)bytes;
    if (sim->table != NULL && !is_state(sim, page, PAGE_ZERO) && !is_state(sim, page, PAGE_OWNED))
        failed(sim, page, "ZEROPAGE for a page that is not claimed as zeros");
    if (sim->table != NULL && is_stale(sim, page))
        failed(sim, page, "ZEROPAGE while the stale bit would let it be punched again");
    if (many(sim) && !sim->private_memory && facts->pte != SIM_PTE_MAPPED) { /* what is there, or room */
        allocate(sim, page);
        map_page(sim, page);
        return KERNEL_MAPPED;
    }
    if (facts->pte == SIM_PTE_MAPPED || facts->present ||
        (facts->pte == SIM_PTE_POISON && sim->private_memory && !many(sim)))
        return KERNEL_ALREADY; /* on shared memory a hole behind a marker is filled, and the marker goes; COPY does so */
    map_page(sim, page);
    facts->present = true;
    facts->token = 0;
    return KERNEL_MAPPED;
}

static enum kernel_result punch_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    bool ordered = page - sim->drop_first < sim->drop_count;

    (void)bytes;
    if (stages(sim)) {
        sim->pages[page].staged = false;
        sim->pages[page].staged_token = 0;
        return KERNEL_MAPPED;
    }
    if (sim->private_memory)
        return refused(sim, page, "punch on private memory");
    if (sim->table != NULL && ordered && (is_state(sim, page, PAGE_MISSING) || is_state(sim, page, PAGE_CACHED)))
        failed(sim, page, "a page is dropped that is not removed: its bytes would come back");
    if (sim->table != NULL && !ordered && !is_stale(sim, page))
        failed(sim, page, "punched without the stale bit");
    if (sim->table != NULL && !ordered && sim->pages[page].ever_mapped && !is_state(sim, page, PAGE_POISONED))
        failed(sim, page, "a page is punched that may be the guest's");
    if (many(sim)) {
        allocate(sim, page);
        sim->pages[page].token = 0;
    } else {
        bool clings = sim->pages[page].present && sim_below(&sim->random, 1000) < sim->clings_permille;
        drop_data(sim, page);
        sim->pages[page].present = sim->pages[page].room = clings;
    }
    return KERNEL_MAPPED;
}

/* A whole unit of a pool. Its marker goes too. */
static enum kernel_result punch_unit(struct sim_kernel *sim, uint64_t first)
{
    for (uint64_t page = first; page < first + sim->regions->unit_pages; page++)
        punch_page(sim, page, NULL);
    if (!stages(sim))
        sim_discard_unit(sim, first);
    return KERNEL_MAPPED;
}

static enum kernel_result poison_page(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    (void)bytes;
    if (sim->table != NULL && !is_state(sim, page, PAGE_POISONED))
        failed(sim, page, "poisoned before it is claimed so");
    if (!armed(sim))
        failed(sim, page, "poisoned before arming");
    if (sim->pages[page].pte != SIM_PTE_NONE)
        return KERNEL_ALREADY;
    sim->pages[page].pte = SIM_PTE_POISON;
    wake_page(sim, page);
    return KERNEL_MAPPED;
}

static enum kernel_result wake_one(struct sim_kernel *sim, uint64_t page, const uint8_t *bytes)
{
    (void)bytes;
    wake_page(sim, page);
    return KERNEL_MAPPED;
}


static page_call *const page_calls[SIM_CALL_COUNT] = {
    [SIM_POPULATE] = populate_page, [SIM_MAP] = continue_page, [SIM_COPY] = copy_page, [SIM_ZERO] = zero_page,
    [SIM_PUNCH] = punch_page,       [SIM_POISON] = poison_page, [SIM_WAKE] = wake_one,
};

/* Of one unit: at once, and alike for all its pages. */
static enum kernel_result unit_call(struct sim_kernel *sim, enum sim_call call, uint64_t first, const uint8_t *bytes)
{
    enum kernel_result result = KERNEL_MAPPED, other;

    if (call == SIM_PUNCH)
        return punch_unit(sim, first);
    for (uint64_t i = 0; i < sim->regions->unit_pages; i++) {
        other = page_calls[call](sim, first + i, bytes == NULL ? NULL : bytes + i * PAGE_BYTES);
        result = i == 0 ? other : result;
        if (other != result)
            failed(sim, first + i, "a unit is no unit any more");
    }
    return result;
}

static bool takes_memory(const struct sim_kernel *sim, enum sim_call call)
{
    if (stages(sim))
        return call == SIM_MAP || call == SIM_ZERO;
    return call == SIM_POPULATE || call == SIM_COPY || call == SIM_ZERO;
}

static bool maps(enum sim_call call)
{
    return call == SIM_MAP || call == SIM_COPY || call == SIM_ZERO || call == SIM_POISON;
}

/* What stops a call at its page number `at`, whatever the page says; MAPPED: nothing does. */
static enum kernel_result stopped(struct sim_kernel *sim, enum sim_call call, uint64_t page, uint64_t at)
{
    struct sim_force *force = &sim->force[call];

    if (force->times > 0 && at == force->done_pages) {
        force->times--;
        return (enum kernel_result)force->result;
    }
    if (call == SIM_POISON && sim->without_poison)
        return KERNEL_REFUSED;
    if (call == SIM_ZERO && many(sim) && !sim->private_memory && !sim->pages[page].present) { /* room comes first */
        if (sim->full)
            return KERNEL_FULL;
        allocate(sim, page);
    }
    if (maps(call) && changing(sim))
        return KERNEL_LATER;
    if (maps(call) && sim->later_permille > 0 && sim_below(&sim->random, 1000) < sim->later_permille)
        return KERNEL_LATER;
    if (maps(call) && sim->pages[page].mapping != SIM_REGISTERED) {
        wake_page(sim, page); /* nobody else would */
        return KERNEL_ABSENT;
    }
    if (takes_memory(sim, call) && sim->full && !(call == SIM_POPULATE && sim->pages[page].present))
        return KERNEL_FULL;
    if ((takes_memory(sim, call) || call == SIM_PUNCH) && sim->full_permille > 0 &&
        sim_below(&sim->random, 1000) < sim->full_permille)
        return KERNEL_FULL;
    return KERNEL_MAPPED;
}

/* What is refused in the middle of a batch waits for the end of it, and may be tried again before the next is read. */
static bool in_batch(const struct sim_kernel *sim)
{
    return sim->table == NULL || atomic_load(&sim->table->header->batch_count) != 0;
}

/* Pages of the span from its start on that lie in one region: no call of the engine may go any further. */
static uint64_t pages_inside(const struct sim_kernel *sim, const struct kernel_span *span, uint64_t *page)
{
    uint64_t start = span->address;

    if (!regions_page(sim->regions, start, page))
        return 0;
    return regions_pages(sim->regions, &start, start + span->length_bytes, page);
}

/* Pages that a call does in one go. */
static uint64_t at_once(const struct sim_kernel *sim, enum sim_call call, uint64_t page, uint64_t left)
{
    uint64_t unit_pages = sim->regions->unit_pages;
    bool punch = call == SIM_PUNCH && page % unit_pages == 0 && left >= unit_pages;

    return maps(call) || punch ? unit_pages : 1;
}

static enum kernel_result call_pages(struct sim_kernel *sim, enum sim_call call, uint64_t page, uint64_t count,
                                     const uint8_t *bytes)
{
    return count > 1 ? unit_call(sim, call, page, bytes) : page_calls[call](sim, page, bytes);
}

static void audit_held(struct sim_kernel *sim, enum sim_call call, uint64_t page, uint64_t count)
{
    for (uint64_t i = page; i < page + count && sim->table != NULL && (maps(call) || call == SIM_POPULATE); i++)
        if (page_held(table_word(sim->table, i)))
            failed(sim, i, "a page that is held back is filled or mapped");
}

static struct kernel_outcome run_call(struct sim_kernel *sim, enum sim_call call, const struct kernel_span *span,
                                      const uint8_t *bytes)
{
    struct kernel_outcome outcome = {.result = KERNEL_MAPPED};
    uint64_t page = 0, count = span->length_bytes / PAGE_BYTES, inside = pages_inside(sim, span, &page);

    sim->calls[call]++;
    hook(sim, sim->before, call);
    if (count == 0 || inside < count)
        failed(sim, page, "a call outside the regions, or across the end of one");
    if (page * PAGE_BYTES != span->file_offset)
        failed(sim, page, "a call with the wrong file offset");
    if (maps(call) && sim->refused_page_plus_1 > page && sim->refused_page_plus_1 <= page + count)
        failed(sim, page, "tried again, and the events that refused it are still unread");
    if (sim->gone && maps(call)) /* its file is there, and a WAKE looks at no mapping */
        outcome.result = KERNEL_GONE;
    if (many(sim) && maps(call) && (page | count) % sim->regions->unit_pages != 0)
        outcome.result = refused(sim, page, "a part of a unit is to be mapped");
    for (uint64_t i = 0, pages; i < inside && outcome.result == KERNEL_MAPPED; i += pages) {
        pages = at_once(sim, call, page + i, inside - i);
        if (i > 0 && call != SIM_WAKE)
            hook(sim, sim->middle, call); /* a signal ends a call between two pages, too */
        outcome.result = stopped(sim, call, page + i, i);
        audit_held(sim, call, page + i, pages);
        if (outcome.result == KERNEL_MAPPED)
            outcome.result = call_pages(sim, call, page + i, pages, bytes == NULL ? NULL : bytes + i * PAGE_BYTES);
        if (outcome.result == KERNEL_MAPPED)
            outcome.done_bytes += pages * PAGE_BYTES;
    }
    if (outcome.result == KERNEL_MAPPED && inside < count && maps(call))
        outcome.result = changing(sim) ? KERNEL_LATER : KERNEL_ABSENT;
    else if (outcome.result == KERNEL_MAPPED)
        outcome.done_bytes = span->length_bytes;
    if (maps(call) && outcome.result == KERNEL_LATER && any_removal(sim, SIM_REMOVAL_POSTED) && !in_batch(sim))
        sim->refused_page_plus_1 = page + outcome.done_bytes / PAGE_BYTES + 1;
    sim->troubles += outcome.result == KERNEL_LATER || outcome.result == KERNEL_FULL ||
                      outcome.result == KERNEL_GONE || outcome.result == KERNEL_REFUSED;
    hook(sim, sim->after, call);
    return outcome;
}

static struct kernel_outcome sim_populate(void *kernel, const struct kernel_span *span, const void *bytes)
{
    return run_call(kernel, SIM_POPULATE, span, bytes);
}

static struct kernel_outcome sim_map(void *kernel, const struct kernel_span *span)
{
    return run_call(kernel, SIM_MAP, span, NULL);
}

static struct kernel_outcome sim_copy(void *kernel, const struct kernel_span *span, const void *bytes)
{
    return run_call(kernel, SIM_COPY, span, bytes);
}

static struct kernel_outcome sim_zero(void *kernel, const struct kernel_span *span)
{
    return run_call(kernel, SIM_ZERO, span, NULL);
}

static struct kernel_outcome sim_punch(void *kernel, const struct kernel_span *span)
{
    return run_call(kernel, SIM_PUNCH, span, NULL);
}

static struct kernel_outcome sim_poison(void *kernel, const struct kernel_span *span)
{
    return run_call(kernel, SIM_POISON, span, NULL);
}

static struct kernel_outcome sim_wake(void *kernel, const struct kernel_span *span)
{
    return run_call(kernel, SIM_WAKE, span, NULL);
}

const struct kernel_ops sim_kernel_ops = {
    .read_events = sim_read_events,
    .populate = sim_populate,
    .map = sim_map,
    .copy = sim_copy,
    .zero = sim_zero,
    .punch = sim_punch,
    .poison = sim_poison,
    .wake = sim_wake,
};
