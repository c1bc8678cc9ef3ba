/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program inside the real guest: it fills most of the guest's RAM with stamps and looks at them for ever,
 * so that a page which comes back wrong is found by the guest itself and told on its serial console.
 *
 * A page is 64 lines of 64 bytes. Each line says which page and line it is, which start of the workload wrote
 * it (incarnation) and at which rewrite of the page (n), and ends in a hash of all that. A change confined to
 * one 64-bit word of a line is always noticed. One worker a CPU owns a share of the pages, looks at them in
 * order and at random, and writes some anew with n + 1; expected[] keeps the n of each page, so that its own
 * writes are checked for ever after.
 *
 * Every 20 ms one line; its number grows by one and goes on across a save and a restore:
 *     HB <number> verified=<looks> rewritten=<pages> errors=<lines> epoch=<e> distinct=<pages> ms=<monotonic>
 * A wrong line is counted each time it is seen, and a few a second are told:
 *     ERR page=<p> line=<l> kind=zero|damaged|misplaced|stale|torn
 * Input "epoch\n" starts a new epoch: `distinct` counts the different pages looked at since. That is how
 * whoever restored the guest learns how much of its memory has been seen after the restore.
 *
 * Kernel command line: wl.mb=<MiB to fill>, and wl.hot=<MiB of these> for the flat-out writer: it goes over the hot
 * pages alone, in order, and writes each one anew after its look at it. An epoch begins with one look at all pages.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define PAGE_LINES 64u
#define LINE_WORDS 8u
#define PAGES_PER_MIB 256u
#define WORKERS_MAX 16u
#define BEAT_NS 20000000L
#define BEATS_PER_SECOND 50u
#define ERR_LINES_PER_SECOND 16
#define ERR_LINES_PER_LOOK 4u
#define LOOKS_PER_REWRITE 8u

struct line {
    uint64_t page;
    uint64_t incarnation;
    uint64_t n;
    uint64_t line;
    uint64_t filler[3]; /* no line is like another: nothing here shrinks to a run of equal words */
    uint64_t hash;
};

struct worker {
    pthread_t thread;
    uint64_t first_page, page_count, hot_count;
    uint64_t next_in_order; /* of the share */
    uint64_t random_state;
    /* written by this worker, read by the heartbeat */
    _Atomic uint64_t verified, rewritten, errors, distinct, epoch;
} __attribute__((aligned(64)));

struct workload {
    struct line (*pages)[PAGE_LINES];
    uint32_t *expected; /* n of every page */
    uint8_t *seen;      /* 1: looked at in this epoch */
    uint64_t page_count, hot_count, incarnation;
    uint32_t worker_count;
    int console;
    atomic_int err_lines_left;
    _Atomic uint64_t epoch;
    struct worker workers[WORKERS_MAX];
};

static struct workload workload; /* the program is this one object */

static void die(const char *what)
{
    dprintf(workload.console, "DIED %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILURE);
}

static uint64_t mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

/* Each step is a bijection of the word and of what came before: changing one word always changes the hash. */
static uint64_t line_hash(const struct line *line)
{
    const uint64_t *words = (const uint64_t *)line;
    uint64_t hash = 0x243f6a8885a308d3u;

    for (uint32_t at = 0; at < LINE_WORDS - 1; at++) {
        hash = (hash ^ words[at]) * 0x9fb21c651e98df25u;
        hash = hash << 23 | hash >> 41;
    }
    return hash;
}

static void write_page(uint64_t page, uint64_t n)
{
    for (uint32_t at = 0; at < PAGE_LINES; at++) {
        uint64_t filler = mix(page << 40 ^ n << 8 ^ at);
        struct line line = {
            .page = page,
            .incarnation = workload.incarnation,
            .n = n,
            .line = at,
            .filler = {filler, ~filler, filler * 5},
        };
        line.hash = line_hash(&line);
        workload.pages[page][at] = line;
    }
    workload.expected[page] = (uint32_t)n;
}

/* NULL: the line is as it was written. Else what is wrong with it by itself. */
static const char *line_fault(const struct line *line, uint64_t page, uint32_t at)
{
    static const struct line zero;

    if (line_hash(line) != line->hash)
        return memcmp(line, &zero, sizeof(zero)) == 0 ? "zero" : "damaged";
    if (line->page != page || line->line != at)
        return "misplaced";
    if (line->incarnation != workload.incarnation || line->n != workload.expected[page])
        return "stale";
    return NULL;
}

/* How many lines of the page are wrong. One of which only some lines are of another n is torn, not stale. */
static uint32_t look(uint64_t page)
{
    const char *faults[PAGE_LINES];
    uint32_t wrong = 0, stale = 0, told = 0;

    for (uint32_t at = 0; at < PAGE_LINES; at++) {
        faults[at] = line_fault(&workload.pages[page][at], page, at);
        if (faults[at] == NULL)
            continue;
        wrong += 1;
        stale += strcmp(faults[at], "stale") == 0;
    }
    for (uint32_t at = 0; at < PAGE_LINES && wrong != 0 && told < ERR_LINES_PER_LOOK; at++) {
        if (faults[at] == NULL || atomic_fetch_sub(&workload.err_lines_left, 1) <= 0)
            continue;
        told += 1;
        bool torn = stale < PAGE_LINES && strcmp(faults[at], "stale") == 0;
        dprintf(workload.console, "ERR page=%" PRIu64 " line=%" PRIu32 " kind=%s\n", page, at,
                torn ? "torn" : faults[at]);
    }
    return wrong;
}

static void add(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store(counter, atomic_load(counter) + more);
}

/* True: a new one has begun. */
static bool join_epoch(struct worker *worker)
{
    uint64_t epoch = atomic_load(&workload.epoch);

    if (epoch == atomic_load(&worker->epoch))
        return false;
    memset(workload.seen + worker->first_page, 0, worker->page_count);
    atomic_store(&worker->distinct, 0);
    atomic_store(&worker->epoch, epoch);
    return true;
}

/* In order and at random, in turns. */
static uint64_t next_page(struct worker *worker, uint64_t turn)
{
    uint64_t at;

    if (turn % 2 == 0) {
        at = worker->next_in_order;
        worker->next_in_order = at + 1 == worker->page_count ? 0 : at + 1;
    } else {
        worker->random_state += 1;
        at = mix(worker->random_state) % worker->page_count;
    }
    return worker->first_page + at;
}

static void visit(struct worker *worker, uint64_t page, bool rewrite)
{
    uint32_t wrong = look(page);

    add(&worker->verified, 1);
    add(&worker->errors, wrong);
    if (!workload.seen[page]) {
        workload.seen[page] = 1;
        add(&worker->distinct, 1);
    }
    /* A wrong page is left as it is: it stays to be found. */
    if (wrong == 0 && rewrite) {
        write_page(page, workload.expected[page] + 1u);
        add(&worker->rewritten, 1);
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;

    for (uint64_t turn = 0;; turn++) {
        join_epoch(worker);
        visit(worker, next_page(worker, turn), turn % LOOKS_PER_REWRITE == LOOKS_PER_REWRITE - 1);
    }
    return NULL;
}

static void *write_flat_out(void *argument)
{
    struct worker *worker = argument;

    for (;;) {
        bool all = join_epoch(worker);
        for (uint64_t at = 0; at < (all ? worker->page_count : worker->hot_count); at++)
            visit(worker, worker->first_page + at, !all);
    }
    return NULL;
}

static void *listen_to_console(void *argument)
{
    static const char command[] = "epoch\n";
    size_t matched = 0;
    char byte;

    (void)argument;
    for (;;) {
        ssize_t got = read(workload.console, &byte, 1);
        if (got < 0 && errno != EINTR)
            die("read of the console");
        if (got != 1)
            continue;
        matched = byte == command[matched] ? matched + 1 : byte == command[0];
        if (matched == sizeof(command) - 1) {
            atomic_fetch_add(&workload.epoch, 1);
            matched = 0;
        }
    }
    return NULL;
}

static void print_beat(uint64_t number)
{
    uint64_t verified = 0, rewritten = 0, errors = 0, distinct = 0, epoch = atomic_load(&workload.epoch);
    struct timespec now;

    for (uint32_t at = 0; at < workload.worker_count; at++) {
        struct worker *worker = &workload.workers[at];
        verified += atomic_load(&worker->verified);
        rewritten += atomic_load(&worker->rewritten);
        errors += atomic_load(&worker->errors);
        /* A worker that has not heard of the epoch yet has seen nothing in it. */
        distinct += atomic_load(&worker->epoch) == epoch ? atomic_load(&worker->distinct) : 0;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    dprintf(workload.console,
            "HB %" PRIu64 " verified=%" PRIu64 " rewritten=%" PRIu64 " errors=%" PRIu64 " epoch=%" PRIu64
            " distinct=%" PRIu64 " ms=%" PRIu64 "\n",
            number, verified, rewritten, errors, epoch, distinct,
            (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

/* Beats before it sleeps a whole interval: a guest that was stopped does not send the beats it missed. */
static void beat_for_ever(void)
{
    const struct timespec pause = {.tv_nsec = BEAT_NS};

    for (uint64_t number = 0;; number++) {
        if (number % BEATS_PER_SECOND == 0)
            atomic_store(&workload.err_lines_left, ERR_LINES_PER_SECOND);
        print_beat(number);
        nanosleep(&pause, NULL);
    }
}

/* 0: it is not there. */
static uint64_t mib_from_command_line(const char *name)
{
    char text[2048];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        die("/proc/cmdline");
    ssize_t length = read(fd, text, sizeof(text) - 1);
    close(fd);
    if (length < 0)
        die("/proc/cmdline");
    text[length] = '\0';
    const char *word = strstr(text, name);
    return word == NULL ? 0 : strtoull(word + strlen(name), NULL, 10);
}

static void *reserve(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static void open_console(void)
{
    struct termios raw;

    workload.console = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (workload.console < 0 || tcgetattr(workload.console, &raw) < 0)
        die("/dev/ttyS0");
    cfmakeraw(&raw);
    if (tcsetattr(workload.console, TCSANOW, &raw) < 0)
        die("/dev/ttyS0");
}

static void fill(void)
{
    workload.page_count = mib_from_command_line("wl.mb=") * PAGES_PER_MIB;
    workload.hot_count = mib_from_command_line("wl.hot=") * PAGES_PER_MIB;
    if (workload.page_count == 0 || workload.hot_count > workload.page_count) {
        errno = EINVAL;
        die("wl.mb, wl.hot");
    }
    workload.pages = reserve(workload.page_count * PAGE_BYTES);
    workload.expected = reserve(workload.page_count * sizeof(*workload.expected));
    workload.seen = reserve(workload.page_count);
    if (getrandom(&workload.incarnation, sizeof(workload.incarnation), GRND_INSECURE) < 0)
        die("getrandom");
    for (uint64_t page = 0; page < workload.page_count; page++)
        write_page(page, 1);
}

static void start_workers(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    workload.worker_count = cpus < 1 ? 1 : cpus > (long)WORKERS_MAX ? WORKERS_MAX : (uint32_t)cpus;
    uint64_t share = workload.page_count / workload.worker_count;
    for (uint32_t at = 0; at < workload.worker_count; at++) {
        struct worker *worker = &workload.workers[at];
        worker->first_page = at * share;
        worker->page_count = at + 1 == workload.worker_count ? workload.page_count - at * share : share;
        worker->hot_count = workload.hot_count / workload.worker_count;
        worker->random_state = mix(workload.incarnation ^ at);
        errno = pthread_create(&worker->thread, NULL, workload.hot_count ? write_flat_out : work, worker);
        if (errno != 0)
            die("pthread_create");
    }
}

int main(void)
{
    const struct sched_param first = {.sched_priority = 1}; /* the beat does not queue behind the workers */
    pthread_t listener;

    open_console();
    fill();
    start_workers();
    errno = pthread_create(&listener, NULL, listen_to_console, NULL);
    if (errno != 0)
        die("pthread_create");
    if (sched_setscheduler(0, SCHED_FIFO, &first) < 0)
        die("sched_setscheduler");
    beat_for_ever();
}
