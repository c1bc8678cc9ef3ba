/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in VMM's vCPUs: see guest_work.h. */
#include "guest_work.h"

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#define NOTE_SHIFT 8
#define LOOKS_PER_REWRITE 8u
#define TOLD_MAX 16

static const char *const verdict_names[] = {
#define STAMP_NAME(name, help) #name,
    STAMP_VERDICTS(STAMP_NAME)
#undef STAMP_NAME
};

/* ------------------------------------------------------------------------------------------------------ lost pages */

static _Thread_local sigjmp_buf lost_page;
static _Thread_local volatile sig_atomic_t touching;

static void on_bus(int number)
{
    if (!touching) {
        signal(number, SIG_DFL); /* the access is made again, and ends us */
        return;
    }
    touching = 0;
    siglongjmp(lost_page, 1);
}

/* False: it is poisoned. */
static bool copy_page(struct line *copy, const void *from)
{
    if (sigsetjmp(lost_page, 0) != 0) /* the signal's own mask is as it was: SA_NODEFER */
        return false;
    touching = 1;
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(copy, from, PAGE_BYTES);
    atomic_signal_fence(memory_order_seq_cst);
    touching = 0;
    return true;
}

static void expect_lost_pages(void)
{
    struct sigaction bus = {.sa_handler = on_bus, .sa_flags = SA_NODEFER};

    sigaction(SIGBUS, &bus, NULL);
}

/* --------------------------------------------------------------------------------------------------------- looks */

static void add(_Atomic uint64_t *counter, uint64_t amount)
{
    atomic_fetch_add_explicit(counter, amount, memory_order_relaxed);
}

static void found(struct work *work, uint64_t page, enum stamp_verdict verdict)
{
    add(&work->counts.looks, 1);
    add(&work->counts.verdict[verdict], 1);
    if (atomic_exchange_explicit(&work->seen[page], 1, memory_order_relaxed) == 0)
        add(&work->counts.distinct, 1);
    if (verdict != STAMP_right && atomic_fetch_add(&work->told, 1) < TOLD_MAX)
        fprintf(stderr, "ERR page=%" PRIu64 " kind=%s\n", page, verdict_names[verdict]);
}

static enum stamp_verdict judge(const struct work *work, const struct line *lines, uint64_t page, uint64_t note)
{
    enum stamp_verdict verdict = STAMP_right;

    if ((note & NOTE_ZERO) == 0)
        verdict = stamp_judge(lines, stamp_id(&work->shape, page),
                              note & NOTE_OWN ? INCARNATION_GUEST : INCARNATION_IMAGE, note >> NOTE_SHIFT);
    else if (!stamp_zero(lines, PAGE_BYTES))
        verdict = note & NOTE_REMOVED ? STAMP_removed_back : STAMP_not_zero;
    return verdict;
}

/* While it leaves, each line of a page is zeros or what it was. */
static enum stamp_verdict judge_leaving(const struct work *work, const struct line *lines, uint64_t page)
{
    enum stamp_verdict verdict = STAMP_right;

    for (uint32_t i = 0; i < PAGE_LINES && verdict == STAMP_right; i++) {
        if (stamp_zero(&lines[i], sizeof(lines[i])))
            continue;
        if (stamp_hash(&lines[i]) != lines[i].hash)
            verdict = STAMP_damaged;
        else if (lines[i].page != stamp_id(&work->shape, page) || lines[i].line != i)
            verdict = STAMP_misplaced;
    }
    return verdict;
}

/* `there`: it could be read. */
static enum stamp_verdict judge_poison(struct work *work, const struct line *lines, uint64_t page, uint64_t note,
                                       bool there)
{
    enum stamp_verdict verdict = STAMP_right;

    bool fresh = there && (note & NOTE_LOSING) != 0 && stamp_zero(lines, PAGE_BYTES);

    if (!there)
        add(&work->counts.bus, 1);
    else if (!fresh)
        verdict = (note & NOTE_LOST) != 0 ? STAMP_undead : judge(work, lines, page, note);
    return verdict;
}

static void look(struct work *work, uint64_t page)
{
    struct line copy[PAGE_LINES];
    uint64_t before = atomic_load(&work->notes[page]);
    bool there = copy_page(copy, ram_page(work->ram, page)); /* here it faults */

    atomic_thread_fence(memory_order_acquire);
    if (atomic_load(&work->notes[page]) != before || (before & NOTE_WRITING) != 0)
        add(&work->counts.inconclusive, 1);
    else if ((before & (NOTE_LOSING | NOTE_LOST)) != 0)
        found(work, page, judge_poison(work, copy, page, before, there));
    else if (!there)
        found(work, page, STAMP_lost);
    else if ((before & NOTE_LEAVING) != 0)
        found(work, page, judge_leaving(work, copy, page));
    else
        found(work, page, judge(work, copy, page, before));
}

/* The note as it was; nobody else changes the page until it is written again. */
static uint64_t take(struct work *work, uint64_t page, uint64_t mark)
{
    uint64_t note = atomic_load(&work->notes[page]);

    for (;;) {
        if ((note & (NOTE_WRITING | NOTE_LEAVING)) != 0) {
            sched_yield();
            note = atomic_load(&work->notes[page]);
        } else if (atomic_compare_exchange_weak(&work->notes[page], &note, note | mark)) {
            return note;
        }
    }
}

static void rewrite(struct work *work, uint64_t page)
{
    uint64_t note = take(work, page, NOTE_WRITING), n = (note >> NOTE_SHIFT) + 1;
    struct line *lines = (struct line *)(void *)ram_page(work->ram, page), copy[PAGE_LINES];

    if ((note & (NOTE_LOSING | NOTE_LOST)) != 0) { /* nobody writes what is lost */
        atomic_fetch_and(&work->notes[page], ~(uint64_t)NOTE_WRITING);
        look(work, page);
        return;
    }
    if (!copy_page(copy, lines)) {
        found(work, page, STAMP_lost);
        atomic_store(&work->notes[page], note);
        return;
    }
    found(work, page, judge(work, copy, page, note));
    stamp_page(lines, stamp_id(&work->shape, page), INCARNATION_GUEST, n);
    add(&work->counts.rewrites, 1);
    atomic_store(&work->notes[page], n << NOTE_SHIFT | NOTE_OWN);
}

void work_look(struct work *work, uint64_t page, bool anew)
{
    if (anew)
        rewrite(work, page);
    else
        look(work, page);
}

int work_remove(struct work *work, uint64_t first, uint64_t count, bool punch)
{
    int rc = 0;

    for (uint64_t page = first; page < first + count; page++)
        take(work, page, NOTE_LEAVING);
    if (punch)
        rc = ram_punch(work->ram, first, count);
    else
        ram_give_away(work->ram, first, count);
    for (uint64_t page = first; page < first + count; page++) {
        uint64_t note = atomic_load(&work->notes[page]);
        if (rc == 0) /* what is lost stays so */
            note = ((note >> NOTE_SHIFT) + 1) << NOTE_SHIFT | NOTE_ZERO | NOTE_REMOVED | (note & NOTE_LOST);
        atomic_store(&work->notes[page], note & ~(uint64_t)NOTE_LEAVING);
    }
    if (rc == 0)
        add(&work->counts.given_away, count);
    return rc;
}

void work_losing(struct work *work, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++)
        take(work, page, NOTE_LOSING);
}

void work_lost(struct work *work, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        atomic_fetch_or(&work->notes[page], NOTE_LOST);
        atomic_fetch_and(&work->notes[page], ~(uint64_t)NOTE_LOSING);
    }
}

void work_cleared(struct work *work, uint64_t first, uint64_t count)
{
    for (uint64_t page = first; page < first + count; page++) {
        uint64_t n = (take(work, page, NOTE_WRITING) >> NOTE_SHIFT) + 1;
        atomic_store(&work->notes[page], n << NOTE_SHIFT | NOTE_ZERO | NOTE_REMOVED);
    }
}

/* ---------------------------------------------------------------------------------------------------------- jobs */

static uint64_t next_random(uint64_t *state)
{
    *state += UINT64_C(0x9e3779b97f4a7c15);
    return stamp_mix(*state);
}

/* Each page once, neighbours far apart: a step that shares no factor with the number of pages. */
static uint64_t scattered(uint64_t index, uint64_t pages)
{
    uint64_t stride = pages * 5 / 8 | 1;

    for (;; stride += 2) {
        uint64_t a = stride, b = pages;
        while (b != 0) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return index * stride % pages;
    }
}

/* One step of the job by one thread; false: nothing is left. */
static bool step(struct work *work, uint64_t at, uint64_t *random)
{
    const struct job *job = &work->job;
    bool more = true;

    if (job->kind == JOB_LIST) {
        more = at < job->list_pages;
        if (more)
            look(work, job->list[at]);
    } else if (job->kind == JOB_ALL) {
        more = at < work->shape.pages;
        if (more)
            look(work, scattered(at, work->shape.pages));
    } else {
        more = at < job->steps;
        if (more)
            work_look(work, next_random(random) % work->shape.pages, next_random(random) % LOOKS_PER_REWRITE == 0);
    }
    return more && !atomic_load_explicit(&work->stop, memory_order_relaxed);
}

static void do_job(struct work *work, uint64_t *random)
{
    if (work->job.kind == JOB_STORM) {
        for (uint64_t i = 0; i < work->job.list_pages; i++) {
            pthread_barrier_wait(&work->together);
            look(work, work->job.list[i]);
        }
    } else {
        while (step(work, atomic_fetch_add(&work->cursor, 1), random))
            ;
    }
}

static void *vcpu(void *argument)
{
    struct work *work = argument;
    uint64_t done = 0, random;

    pthread_mutex_lock(&work->lock);
    random = work->shape.seed * WORK_THREADS_MAX + work->next_thread++;
    while (!work->ended) {
        if (work->job_number == done) {
            pthread_cond_wait(&work->changed, &work->lock);
            continue;
        }
        done = work->job_number;
        pthread_mutex_unlock(&work->lock);
        do_job(work, &random);
        pthread_mutex_lock(&work->lock);
        if (--work->at_work == 0)
            pthread_cond_broadcast(&work->changed);
    }
    pthread_mutex_unlock(&work->lock);
    return NULL;
}

bool work_busy(struct work *work)
{
    bool busy;

    pthread_mutex_lock(&work->lock);
    busy = work->at_work != 0;
    pthread_mutex_unlock(&work->lock);
    return busy;
}

void work_begin(struct work *work)
{
    pthread_mutex_lock(&work->lock);
    atomic_store(&work->cursor, 0);
    atomic_store(&work->stop, false);
    work->at_work = work->thread_count;
    work->job_number++;
    pthread_cond_broadcast(&work->changed);
    pthread_mutex_unlock(&work->lock);
}

void work_wait(struct work *work)
{
    pthread_mutex_lock(&work->lock);
    while (work->at_work != 0)
        pthread_cond_wait(&work->changed, &work->lock);
    pthread_mutex_unlock(&work->lock);
}

int work_start(struct work *work, struct ram *ram, const struct image_shape *shape, uint32_t threads)
{
    work->ram = ram;
    work->shape = *shape;
    work->thread_count = threads;
    work->notes = calloc(shape->pages, sizeof(*work->notes));
    work->seen = calloc(shape->pages, sizeof(*work->seen));
    if (work->notes == NULL || work->seen == NULL)
        return -1;
    for (uint64_t page = 0; page < shape->pages; page++)
        work->notes[page] = (uint64_t)N_IMAGE << NOTE_SHIFT | (stamp_is_data(shape, page) ? 0 : NOTE_ZERO);
    expect_lost_pages();
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->changed, NULL);
    if (pthread_barrier_init(&work->together, NULL, threads) != 0)
        return -1;
    for (uint32_t i = 0; i < threads; i++)
        if ((errno = pthread_create(&work->threads[i], NULL, vcpu, work)) != 0)
            return -1;
    return 0;
}
