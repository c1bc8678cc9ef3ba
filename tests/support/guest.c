/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in VMM that knows what every page of its memory must hold, and the maker of its images.
 *
 *     guest image PATH --pages N [--seed S] [--data-percent P] [--n N]    --n 0: an older one, for errors
 *     guest run --pages N[,N...] --memory memfd[-2M|-1G]|file:PATH|private[-2M|-1G] --handoff SOCKET [--seed S] [--data-percent P]
 *               [--threads T] [--generation 1.1|1.7|1.12|2.0] [--event-remove] [--reverse] [--early P,...] [--bare] [--unreserved]
 *
 * `run` makes its RAM, registers it, hands it over, touches the pages of --early itself as a VMM does while it loads
 * its state, prints {"ready":true,...}, and obeys its standard input, one line an order, one line of JSON an answer:
 *     touch P...      each page once                   storm P...   every thread each page, all at once
 *     all             every page once, in no order     run N        N looks at random, one in eight rewrites; 0: on
 *     stop            the job ends soon                wait         until it has ended; a report
 *     report          at any time                      balloon FIRST COUNT   pages leave, for ever
 *     flood FIRST COUNT TIMES [STEP]   the same, one page (or STEP) a call, TIMES calls in turn
 *     punch FIRST COUNT         the same by a hole in the RAM file
 *     losing|lost|cleared FIRST COUNT   what becomes of pages that somebody poisons: guest_work.h
 *     zap FIRST COUNT TIMES     on shared memory: their mappings go, and nothing else, TIMES times
 * It ends with its input. --bare: no userfaultfd and no hand-off of its own (a preloaded library has both).
 * Exit codes: 0, 64 usage, 71 the system refuses something. Wrong pages are counted, and the first told on stderr.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "guest_work.h"

#define ORDER_BYTES (WORK_LIST_PAGES * 12)
#define EARLY_MAX 64u

struct options {
    struct ram_options ram;
    struct image_shape shape;
    uint32_t threads;
    uint64_t n;
    uint64_t early[EARLY_MAX];
    uint32_t early_count;
};

static _Noreturn void usage(const char *why)
{
    fprintf(stderr, "guest: %s\n", why);
    exit(64);
}

static uint64_t number(const char *text)
{
    char *end = NULL;
    uint64_t value;

    errno = 0;
    value = text == NULL ? 0 : strtoull(text, &end, 10);
    if (text == NULL || errno != 0 || end == text || *end != '\0' || text[0] == '-')
        usage("not a number");
    return value;
}

static uint32_t numbers(char *text, uint64_t *values, uint32_t capacity)
{
    uint32_t count = 0;

    for (char *part = strtok(text, ","); part != NULL; part = strtok(NULL, ",")) {
        if (count == capacity)
            usage("too many numbers");
        values[count++] = number(part);
    }
    return count;
}

static void set_memory(struct ram_options *ram, const char *text)
{
    size_t length = strcspn(text, "-:");

    if (strcmp(text + length, "-2M") == 0)
        ram->huge_bytes = UINT64_C(2) << 20;
    else if (strcmp(text + length, "-1G") == 0)
        ram->huge_bytes = UINT64_C(1) << 30;
    else if (text[length] == '-')
        usage("huge pages are -2M or -1G");
    if (strncmp(text, "memfd", length) == 0 && length == 5) {
        ram->kind = RAM_MEMFD;
    } else if (strncmp(text, "private", length) == 0 && length == 7) {
        ram->kind = RAM_PRIVATE;
    } else if (strncmp(text, "file:", 5) == 0) {
        ram->kind = RAM_FILE;
        ram->path = text + 5;
    } else {
        usage("--memory is memfd, private (each with -2M or -1G, too), or file:PATH");
    }
}

static void parse(struct options *options, int argc, char **argv)
{
    static const struct option known[] = {
        {"pages", required_argument, NULL, 'p'},      {"seed", required_argument, NULL, 's'},
        {"data-percent", required_argument, NULL, 'd'}, {"memory", required_argument, NULL, 'm'},
        {"handoff", required_argument, NULL, 'h'},    {"threads", required_argument, NULL, 't'},
        {"generation", required_argument, NULL, 'g'}, {"event-remove", no_argument, NULL, 'e'},
        {"reverse", no_argument, NULL, 'r'},          {"early", required_argument, NULL, 'y'},
        {"bare", no_argument, NULL, 'b'},             {"n", required_argument, NULL, 'n'},
        {"unreserved", no_argument, NULL, 'u'},
        {NULL, 0, NULL, 0},
    };
    int name;

    *options = (struct options){
        .threads = 1, .n = N_IMAGE, .shape = {.seed = 1, .data_percent = 75}, .ram = {.generation = "1.12"}};
    while ((name = getopt_long(argc, argv, "", known, NULL)) != -1) {
        switch (name) {
        case 'p': options->ram.region_count = numbers(optarg, options->ram.region_pages, RAM_REGIONS_MAX); break;
        case 's': options->shape.seed = number(optarg); break;
        case 'd': options->shape.data_percent = (uint32_t)number(optarg); break;
        case 'm': set_memory(&options->ram, optarg); break;
        case 'h': options->ram.handoff = optarg; break;
        case 't': options->threads = (uint32_t)number(optarg); break;
        case 'g': options->ram.generation = optarg; break;
        case 'e': options->ram.event_remove = true; break;
        case 'r': options->ram.reverse = true; break;
        case 'y': options->early_count = numbers(optarg, options->early, EARLY_MAX); break;
        case 'b': options->ram.bare = true; break;
        case 'u': options->ram.unreserved = true; break;
        case 'n': options->n = number(optarg); break;
        default: usage("unknown option");
        }
    }
    for (uint32_t i = 0; i < options->ram.region_count; i++)
        options->shape.pages += options->ram.region_pages[i];
    if (options->shape.pages == 0 || options->threads == 0 || options->threads > WORK_THREADS_MAX)
        usage("--pages and --threads are 1 or more");
}

/* --------------------------------------------------------------------------------------------------------- image */

static int make_image(const char *path, const struct image_shape *shape, uint64_t n)
{
    struct line lines[PAGE_LINES];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600), status = 71;

    if (fd < 0 || ftruncate(fd, (off_t)(shape->pages * PAGE_BYTES)) < 0)
        goto out;
    for (uint64_t page = 0; page < shape->pages; page++) {
        if (!stamp_is_data(shape, page))
            continue;
        stamp_page(lines, stamp_id(shape, page), INCARNATION_IMAGE, n);
        if (pwrite(fd, lines, sizeof(lines), (off_t)(page * PAGE_BYTES)) != (ssize_t)sizeof(lines))
            goto out;
    }
    status = 0;
out:
    if (status != 0)
        perror(path);
    if (fd >= 0)
        close(fd);
    return status;
}

/* -------------------------------------------------------------------------------------------------------- orders */

static void report(struct work *work)
{
    static const char *const names[] = {
#define STAMP_NAME(name, help) #name,
        STAMP_VERDICTS(STAMP_NAME)
#undef STAMP_NAME
    };
    uint64_t errors = 0;

    for (uint32_t i = 0; i < STAMP_VERDICT_COUNT; i++)
        errors += i == STAMP_right ? 0 : work->counts.verdict[i];
    printf("{\"busy\":%s,\"pages\":%" PRIu64 ",\"looks\":%" PRIu64 ",\"inconclusive\":%" PRIu64
           ",\"rewrites\":%" PRIu64 ",\"distinct\":%" PRIu64 ",\"given_away\":%" PRIu64 ",\"bus\":%" PRIu64
           ",\"errors\":%" PRIu64,
           work_busy(work) ? "true" : "false", work->shape.pages, work->counts.looks, work->counts.inconclusive,
           work->counts.rewrites, work->counts.distinct, work->counts.given_away, work->counts.bus, errors);
    for (uint32_t i = 0; i < STAMP_VERDICT_COUNT; i++)
        printf(",\"%s\":%" PRIu64, names[i], work->counts.verdict[i]);
    printf("}\n");
}

static void begin(struct work *work, enum job_kind kind)
{
    char *word;

    if (work_busy(work))
        usage("a job is under way");
    work->job.kind = kind;
    work->job.list_pages = 0;
    if (kind == JOB_RUN) {
        work->job.steps = number(strtok(NULL, " \n"));
        work->job.steps = work->job.steps == 0 ? UINT64_MAX : work->job.steps;
    } else if (kind != JOB_ALL) {
        while ((word = strtok(NULL, " \n")) != NULL && work->job.list_pages < WORK_LIST_PAGES) {
            uint64_t page = number(word);
            if (page >= work->shape.pages)
                usage("no such page");
            work->job.list[work->job.list_pages++] = page;
        }
    }
    work_begin(work);
    printf("{\"begun\":true}\n");
}

static void give_away(struct work *work, bool punch, bool one_by_one)
{
    uint64_t first = number(strtok(NULL, " \n")), count = number(strtok(NULL, " \n")), calls = 0;
    uint64_t times = one_by_one ? number(strtok(NULL, " \n")) : 1, step = one_by_one ? 1 : count;
    char *word = one_by_one ? strtok(NULL, " \n") : NULL;
    int rc = 0;

    if (word != NULL)
        step = number(word);
    if (step == 0 || count % step != 0)
        usage("no such step");
    if (count == 0 || first >= work->shape.pages || count > work->shape.pages - first)
        usage("no such pages");
    errno = 0;
    for (; calls < times && rc == 0; calls++)
        rc = work_remove(work, first + calls % (count / step) * step, step, punch);
    printf("{\"calls\":%" PRIu64 ",\"errno\":%d}\n", calls, rc == 0 ? 0 : errno);
}

static void zap(struct work *work)
{
    const struct timespec moment = {.tv_nsec = 50000};
    uint64_t first = number(strtok(NULL, " \n")), count = number(strtok(NULL, " \n"));
    uint64_t times = number(strtok(NULL, " \n"));

    if (work->ram->fd < 0 || count == 0 || first >= work->shape.pages || count > work->shape.pages - first)
        usage("no such pages");
    for (uint64_t i = 0; i < times; i++) {
        ram_give_away(work->ram, first, count); /* which gives nothing away here */
        nanosleep(&moment, NULL);
    }
    printf("{\"zapped\":%" PRIu64 "}\n", count * times);
}

static void note_poison(struct work *work, void (*note)(struct work *work, uint64_t first, uint64_t count))
{
    uint64_t first = number(strtok(NULL, " \n")), count = number(strtok(NULL, " \n"));

    if (count == 0 || first >= work->shape.pages || count > work->shape.pages - first)
        usage("no such pages");
    note(work, first, count);
    printf("{\"noted\":%" PRIu64 "}\n", count);
}

static void obey(struct work *work, char *line)
{
    char *order = strtok(line, " \n");

    if (order == NULL) {
        usage("an empty order");
    } else if (strcmp(order, "touch") == 0) {
        begin(work, JOB_LIST);
    } else if (strcmp(order, "storm") == 0) {
        begin(work, JOB_STORM);
    } else if (strcmp(order, "all") == 0) {
        begin(work, JOB_ALL);
    } else if (strcmp(order, "run") == 0) {
        begin(work, JOB_RUN);
    } else if (strcmp(order, "stop") == 0) {
        atomic_store(&work->stop, true);
        printf("{\"stopping\":true}\n");
    } else if (strcmp(order, "wait") == 0) {
        work_wait(work);
        report(work);
    } else if (strcmp(order, "report") == 0) {
        report(work);
    } else if (strcmp(order, "balloon") == 0) {
        give_away(work, false, false);
    } else if (strcmp(order, "flood") == 0) {
        give_away(work, false, true);
    } else if (strcmp(order, "punch") == 0) {
        give_away(work, true, false);
    } else if (strcmp(order, "losing") == 0) {
        note_poison(work, work_losing);
    } else if (strcmp(order, "lost") == 0) {
        note_poison(work, work_lost);
    } else if (strcmp(order, "cleared") == 0) {
        note_poison(work, work_cleared);
    } else if (strcmp(order, "zap") == 0) {
        zap(work);
    } else {
        usage("unknown order");
    }
}

static int run(const struct options *options)
{
    static struct ram ram;
    static struct work work;
    static char line[ORDER_BYTES];

    ram_make(&ram, &options->ram);
    if (!options->ram.bare)
        ram_hand_over(&ram);
    if (work_start(&work, &ram, &options->shape, options->threads) < 0) {
        perror("guest: threads");
        return 71;
    }
    for (uint32_t i = 0; i < options->early_count; i++)
        work_look(&work, options->early[i] % options->shape.pages, true);
    printf("{\"ready\":true,\"pid\":%d,\"base\":%" PRIu64 "}\n", getpid(), (uint64_t)(uintptr_t)ram.region_at[0]);
    while (fgets(line, sizeof(line), stdin) != NULL)
        obey(&work, line);
    return 0;
}

int main(int argc, char **argv)
{
    struct options options;
    int status = 64;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 2 && strcmp(argv[1], "image") == 0) {
        parse(&options, argc - 2, argv + 2);
        status = make_image(argv[2], &options.shape, options.n);
    } else if (argc > 1 && strcmp(argv[1], "run") == 0) {
        parse(&options, argc - 1, argv + 1);
        if (options.ram.handoff == NULL && !options.ram.bare)
            usage("--handoff is needed");
        status = run(&options);
    } else {
        usage("first word: image or run");
    }
    return status;
}
