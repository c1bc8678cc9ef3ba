/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads that race arrivals where the RAM file lies on huge pages: a VM is restored again and again, by the real pager
 * from a real page server, into a file that still holds what its last owner left there, in folios of 2 MiB. Meanwhile
 * somebody else collapses what can be collapsed, through a mapping of its own and, from outside, in the VM.
 *
 *     huge_race SCENARIO FILE PAGES ROUNDS SEED      PAGES: a power of two, from 4096 on; FILE is written over
 *
 *   guarded       registered for missing and minor faults, MADV_NOHUGEPAGE: no wrong byte
 *   pinned        the same, and somebody holds a page of each folio, so that none can be split: what is zeros in the
 *                 image cannot be punched out of one
 *   missing-only  not registered for minor faults: old bytes are read. A control: wrong bytes are seen
 *   unbarred      without MADV_NOHUGEPAGE, collapsed from outside once it is armed: the same. Another control
 *   early         collapsed before it is registered: found when the VM is to run, and refused
 *   early-blind   the same by somebody who does not look: a control again
 *
 * Prints one line of JSON. Exit status 71: the machine does not let it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/stats.h"
#include "huge_race.h"
#include "kernel/collapse.h"
#include "kernel/uapi.h"
#include "pageferry.h"

#define BOTH (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)
#define PATIENCE_S 300
#define READERS 3
#define STUCK_S 60    /* a round takes seconds */
#define BREATH_US 300 /* between two attacks */

struct scenario {
    const char *name;
    uint64_t modes;
    bool barred, early, late, attacked;
    bool pinned;
    bool blind; /* the hand-off does not say which process it is, so nobody looks at its mappings */
};

static const struct scenario scenarios[] = {
    {.name = "guarded", .modes = BOTH, .barred = true, .attacked = true},
    {.name = "pinned", .modes = BOTH, .barred = true, .pinned = true},
    {.name = "missing-only", .modes = UFFDIO_REGISTER_MODE_MISSING, .barred = true, .blind = true},
    {.name = "unbarred", .modes = BOTH, .late = true, .blind = true},
    {.name = "early", .modes = BOTH, .barred = true, .early = true},
    {.name = "early-blind", .modes = BOTH, .barred = true, .early = true, .blind = true},
};

struct race {
    const struct scenario *scenario;
    const char *path;
    uint64_t pages, seed;
    int control; /* to the VM */
    pid_t pid;
    int pidfd;
    int ram;
    int pipe[2];    /* what it holds of the RAM file stays where it is */
    uint8_t *alias; /* the RAM file, mapped by somebody else */
    uint64_t address;
    struct pageferry_server *server;
    struct pageferry_client *client;
    struct pageferry_vm *vm;
    pthread_t attacker;
    atomic_bool over;
    struct {
        uint64_t rounds, armed, alarms, alias_done, alias_refused, remote_done, remote_refused;
        char text[PAGEFERRY_TEXT_BYTES]; /* why it was not armed */
        struct race_counts reads;
    } seen;
};

__attribute__((format(printf, 1, 2), noreturn)) static void give_up(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, " (%s)\n", strerror(errno));
    exit(71);
}

/* ------------------------------------------------------------------------------------------------ image and server */

static int listening_beside(const char *ram, char *path, size_t path_bytes)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(path, path_bytes, "%s.sock", ram);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 8) < 0)
        give_up("cannot listen at %s", path);
    return fd;
}

static int make_image(const struct race *race)
{
    int image = memfd_create("image", MFD_CLOEXEC);
    uint64_t words[RACE_PAGE / sizeof(uint64_t)];

    if (image < 0 || ftruncate(image, (off_t)(race->pages * RACE_PAGE)) < 0)
        give_up("no image");
    for (uint64_t page = 0; page < race->pages; page++) {
        uint64_t word = race_word(page, race->seed);
        for (uint64_t i = 0; i < RACE_PAGE / sizeof(uint64_t); i++)
            words[i] = word;
        if (word != 0 && pwrite(image, words, RACE_PAGE, (off_t)(page * RACE_PAGE)) != (ssize_t)RACE_PAGE)
            give_up("no image");
    }
    return image;
}

static void serve(struct race *race, char *path, size_t path_bytes)
{
    int listener = listening_beside(race->path, path, path_bytes), image = make_image(race);
    struct pageferry_server_options options = {.listen_fds = &listener, .listen_fd_count = 1};
    struct pageferry_client_options client = {0};
    struct pageferry_image_facts facts;
    char error[PAGEFERRY_TEXT_BYTES] = "";

    if (pageferry_server_open(&options, &race->server) < 0 || pageferry_client_open(&client, &race->client) < 0 ||
        pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)) < 0 ||
        pageferry_server_add_file(race->server, "vm", image, &facts, &race->pages, 1, NULL, 0, error,
                                  sizeof(error)) < 0)
        give_up("cannot serve: %s %s", options.error, error);
    close(image);
    close(listener);
}

/* ---------------------------------------------------------------------------------------------------------- the VM */

/* Somebody waits for a page that does not come: all that is known of it. */
static void show_stuck(const struct race *race)
{
    static char text[64 * 1024];
    uint64_t values[STATS_COUNTER_COUNT];
    struct pageferry_event event;
    struct pageferry_vm_fds fds;
    struct pageferry_pages pages;
    char path[64];
    ssize_t length;
    int fd;

    while (pageferry_vm_event(race->vm, &event) == 1)
        fprintf(stderr, "%s page %" PRIu64 " %s\n", pageferry_event_name(event.kind), event.page, event.text);
    pageferry_vm_pages(race->vm, &pages);
    for (uint32_t i = 0; i < PAGEFERRY_PAGE_STATES; i++)
        fprintf(stderr, "%s %" PRIu64 "\n", pageferry_page_state_name(i), pages.state[i]);
    pageferry_vm_counters(race->vm, values, STATS_COUNTER_COUNT);
    for (uint32_t i = 0; i < STATS_COUNTER_COUNT; i++)
        if (values[i] != 0)
            fprintf(stderr, "%s %" PRIu64 "\n", pageferry_counter_name(i), values[i]);
    pageferry_vm_fds(race->vm, &fds);
    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fds.uffd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    length = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
    fprintf(stderr, "%.*s\n", (int)(length > 0 ? length : 0), text);
    pageferry_vm_trace(race->vm, text, sizeof(text));
    fprintf(stderr, "%s\n", text);
}

static struct race_answer ask(struct race *race, enum race_order order, int given, int *taken)
{
    struct race_ask asked = {.order = order, .readers = READERS, .pages = race->pages, .seed = race->seed,
                             .modes = race->scenario->modes};
    struct pollfd answered = {.fd = race->control, .events = POLLIN};
    struct race_answer answer;
    int fd = -1;

    if (!race_send(race->control, &asked, sizeof(asked), given))
        give_up("the VM has gone before order %d", order);
    if (poll(&answered, 1, STUCK_S * 1000) != 1) {
        show_stuck(race);
        give_up("the VM is stuck in order %d, round %" PRIu64, order, race->seen.rounds);
    }
    if (!race_receive(race->control, &answer, sizeof(answer), &fd))
        give_up("the VM has gone at order %d", order);
    errno = -answer.rc;
    if (answer.rc < 0)
        give_up("the VM cannot do order %d", order);
    if (taken != NULL)
        *taken = fd;
    return answer;
}

/* The file as its last owner has left it: full of other bytes, on huge pages where the mount allows for them. */
static void make_old(struct race *race)
{
    uint64_t bytes = race->pages * RACE_PAGE;

    race->ram = open(race->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (race->ram < 0 || ftruncate(race->ram, (off_t)bytes) < 0)
        give_up("no RAM file at %s", race->path);
    race->alias = mmap(race_place(bytes), bytes, PROT_READ | PROT_WRITE, MAP_SHARED, race->ram, 0);
    for (int times = 0; times < 2; times++) /* khugepaged looks at what it was before */
        if (race->alias == MAP_FAILED || madvise(race->alias, bytes, MADV_HUGEPAGE) < 0)
            give_up("no second mapping");
    for (uint64_t piece = 0; piece < race->pages / RACE_PIECE_PAGES; piece++)
        if (race_piece_is_old(piece))
            memset(race->alias + piece * RACE_PIECE, (int)(RACE_OLD & 0xff), RACE_PIECE);
    madvise(race->alias, bytes, MADV_DONTNEED);
}

/* One page of each old piece goes into a pipe, without being copied: the kernel can neither move nor split its folio. */
static void pin(struct race *race)
{
    if (pipe2(race->pipe, O_CLOEXEC) < 0 || fcntl(race->pipe[1], F_SETPIPE_SZ, 1 << 20) < 0)
        give_up("no pipe");
    for (uint64_t piece = 0; piece < race->pages / RACE_PIECE_PAGES; piece++) {
        loff_t at = (loff_t)(piece * RACE_PIECE);
        if (race_piece_is_old(piece) && splice(race->ram, &at, race->pipe[1], NULL, RACE_PAGE, 0) != (ssize_t)RACE_PAGE)
            give_up("nothing is spliced");
    }
}

static void unpin(struct race *race)
{
    close(race->pipe[0]);
    close(race->pipe[1]);
}

static void collapse_all_from_outside(struct race *race)
{
    for (uint64_t at = 0; at < race->pages * RACE_PAGE; at += RACE_PIECE)
        race->seen.remote_done += collapse_piece(race->pidfd, race->address + at) == COLLAPSE_DONE;
}

/* ---------------------------------------------------------------------------------------------------------- attack */

static void *attack(void *argument)
{
    struct race *race = argument;
    uint64_t pieces = race->pages / RACE_PIECE_PAGES;

    for (uint64_t i = 0; !atomic_load(&race->over); i++) {
        uint64_t at = i * 7 % pieces * RACE_PIECE;
        bool done = madvise(race->alias + at, RACE_PIECE, MADV_COLLAPSE) == 0;
        *(done ? &race->seen.alias_done : &race->seen.alias_refused) += 1;
        done = collapse_piece(race->pidfd, race->address + at) == COLLAPSE_DONE;
        *(done ? &race->seen.remote_done : &race->seen.remote_refused) += 1;
        usleep(BREATH_US);
    }
    return NULL;
}

/* ----------------------------------------------------------------------------------------------------------- round */

static bool wait_event(struct race *race, uint32_t kind)
{
    struct pollfd bell = {.fd = pageferry_vm_event_fd(race->vm), .events = POLLIN};
    struct pageferry_event event;

    while (poll(&bell, 1, PATIENCE_S * 1000) == 1)
        while (pageferry_vm_event(race->vm, &event) == 1) {
            if (event.kind == kind)
                return true;
            if (event.kind == PAGEFERRY_EVENT_ALARM || event.kind == PAGEFERRY_EVENT_PAUSED)
                fprintf(stderr, "%s: page %" PRIu64 ": %s\n", pageferry_event_name(event.kind), event.page, event.text);
            if (event.kind == PAGEFERRY_EVENT_FAILED) {
                snprintf(race->seen.text, sizeof(race->seen.text), "%s", event.text);
                return false;
            }
        }
    give_up("the pager says nothing");
}

static void hand_over(struct race *race, int uffd, const char *server)
{
    struct pageferry_region region = {.address = race->address, .length_bytes = race->pages * RACE_PAGE};
    char address[128];
    struct pageferry_vm_options options = {
        .image = "vm",
        .data_address = address,
        .uffd = uffd,
        .backing_fd = dup(race->ram),
        .vmm_fd = -1,
        .vmm_pidfd = dup(race->pidfd),
        .vmm_pid = race->scenario->blind ? 0 : race->pid,
        .memory = PAGEFERRY_MEMORY_SHARED,
        .regions = &region,
        .region_count = 1,
        .background = !race->scenario->blind && race->seen.rounds % 2 == 0, /* else a page comes when it is touched */
    };

    snprintf(address, sizeof(address), "unix:%s", server);
    if (pageferry_vm_open(race->client, &options, &race->vm) < 0)
        give_up("not taken: %s", options.error);
}

static void run(struct race *race)
{
    struct pageferry_order arm = {.kind = PAGEFERRY_ORDER_ARM};
    uint64_t values[STATS_COUNTER_COUNT];
    struct race_counts *all = &race->seen.reads;
    struct race_answer answer;

    pageferry_vm_order(race->vm, &arm);
    if (!wait_event(race, PAGEFERRY_EVENT_ARMED))
        return;
    race->seen.armed++;
    if (race->scenario->late)
        collapse_all_from_outside(race);
    atomic_store(&race->over, false);
    if (race->scenario->attacked && pthread_create(&race->attacker, NULL, attack, race) != 0)
        give_up("no thread");
    answer = ask(race, RACE_READ, -1, NULL);
    if (!race->scenario->blind) /* what was mapped around us is never asked for */
        wait_event(race, PAGEFERRY_EVENT_COMPLETE);
    atomic_store(&race->over, true);
    if (race->scenario->attacked)
        pthread_join(race->attacker, NULL);
    pageferry_vm_counters(race->vm, values, STATS_COUNTER_COUNT);
    race->seen.alarms += values[STATS_alarms_total];
    if (all->wrong == 0) {
        all->wrong_page = answer.counts.wrong_page;
        all->wrong_word = answer.counts.wrong_word;
    }
    all->tries += answer.counts.tries;
    all->huge += answer.counts.huge;
    all->wrong += answer.counts.wrong;
}

static void one_round(struct race *race, const char *server)
{
    int uffd;

    make_old(race);
    if (race->scenario->pinned)
        pin(race);
    race->address = ask(race, RACE_MAP, race->ram, NULL).address;
    if (race->scenario->early)
        collapse_all_from_outside(race);
    if (race->scenario->barred)
        ask(race, RACE_BAR, -1, NULL);
    ask(race, RACE_REGISTER, -1, &uffd);
    hand_over(race, uffd, server);
    run(race);
    pageferry_vm_close(race->vm);
    ask(race, RACE_UNMAP, -1, NULL);
    if (race->scenario->pinned)
        unpin(race);
    munmap(race->alias, race->pages * RACE_PAGE);
    close(race->ram);
    race->seen.rounds++;
}

static void print(const struct race *race)
{
    const struct race_counts *reads = &race->seen.reads;

    printf("{\"rounds\": %" PRIu64 ", \"armed\": %" PRIu64 ", \"tries\": %" PRIu64 ", \"huge\": %" PRIu64
           ", \"wrong\": %" PRIu64 ", \"wrong_page\": %" PRIu64 ", \"wrong_word\": %" PRIu64 ", \"old\": %s"
           ", \"alarms\": %" PRIu64 ", \"alias_done\": %" PRIu64 ", \"alias_refused\": %" PRIu64
           ", \"remote_done\": %" PRIu64 ", \"remote_refused\": %" PRIu64 ", \"text\": \"%s\"}\n",
           race->seen.rounds, race->seen.armed, reads->tries, reads->huge, reads->wrong, reads->wrong_page,
           reads->wrong_word, reads->wrong_word == RACE_OLD ? "true" : "false", race->seen.alarms,
           race->seen.alias_done, race->seen.alias_refused, race->seen.remote_done, race->seen.remote_refused,
           race->seen.text);
}

static const struct scenario *scenario_named(const char *name)
{
    for (size_t i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return &scenarios[i];
    give_up("there is no scenario %s", name);
}

int main(int argc, char **argv)
{
    struct race race = {.pid = -1};
    char server[108];
    int ends[2];

    if (argc != 6)
        give_up("huge_race SCENARIO FILE PAGES ROUNDS SEED");
    race.scenario = scenario_named(argv[1]);
    race.path = argv[2];
    race.pages = strtoull(argv[3], NULL, 10);
    race.seed = strtoull(argv[5], NULL, 10);
    alarm(PATIENCE_S);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        give_up("no socket");
    race.pid = fork(); /* before there are threads */
    if (race.pid == 0) {
        close(ends[0]);
        race_vm(ends[1]);
    }
    close(ends[1]);
    race.control = ends[0];
    race.pidfd = (int)syscall(SYS_pidfd_open, race.pid, 0);
    serve(&race, server, sizeof(server));
    for (uint64_t round = strtoull(argv[4], NULL, 10); round > 0; round--)
        one_round(&race, server);
    print(&race);
    pageferry_client_close(race.client);
    pageferry_server_close(race.server);
    unlink(server);
    return 0;
}
