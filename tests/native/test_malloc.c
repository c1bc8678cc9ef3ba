/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Our own way of a page calls malloc 0 times (DESIGN 3.12): on the loop's thread, the bulk thread and the page server's
 * worker, over 100,000 faults and more on the real kernel.
 *
 * This program defines malloc and its kin, counts each call by thread and by caller (the return address: our text, that
 * of nghttp2, any other), and passes it on to libc. Whose thread is whose is known by what was opened when it appeared.
 * It defines epoll_wait, too, in which all three threads sleep: that is where a test can plant calls on them, which
 * shows that what is counted as 0 would be seen. Sanitizers have a malloc of their own: under them there is nothing to
 * see here.
 */
#include "check.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

int main(void)
{
    SKIP(all, "a sanitizer has malloc to itself");
    return check_done() | check_bad;
}

#else

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <link.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "client_vm.h"

#define ROUNDS 4
#define PAGES UINT64_C(32768)
#define GUEST_THREADS 16
#define WARM_PAGES UINT64_C(1024)   /* faulted before counting begins */
#define ALONE_PAGES UINT64_C(25600) /* then these, without background */
#define MIXED_PAGES UINT64_C(4096)  /* then these, with bulk, which also brings all that is left */
#define FAULTS_MIN 100000
#define PLANTED 3

/* ------------------------------------------------------------------------------------------------ interposition */

#define THREADS_MAX 64
enum caller { CALLER_OURS, CALLER_NGHTTP2, CALLER_OTHER, CALLER_COUNT };

struct counts {
    _Atomic int tid;
    _Atomic uint64_t calls[CALLER_COUNT];
    _Atomic uint32_t plant; /* calls to be made by its next epoll_wait */
};

/* The program has one malloc, which finds all it needs here; no thread writes to another's counts. */
static struct {
    uintptr_t nghttp2_start, nghttp2_end;
    _Atomic uint32_t used;
    struct counts threads[THREADS_MAX];
} counted;
static __thread struct counts *mine;
extern char __executable_start, etext; /* by the linker: our text, and this file's */

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *__libc_memalign(size_t alignment, size_t bytes);

static struct counts *my_counts(void)
{
    if (mine == NULL) {
        uint32_t place = atomic_fetch_add(&counted.used, 1);
        if (place >= THREADS_MAX)
            abort();
        mine = &counted.threads[place];
        atomic_store(&mine->tid, gettid());
    }
    return mine;
}

static void count(const void *caller)
{
    uintptr_t at = (uintptr_t)caller;
    enum caller who = CALLER_OTHER;

    if (at >= (uintptr_t)&__executable_start && at < (uintptr_t)&etext)
        who = CALLER_OURS;
    else if (at >= counted.nghttp2_start && at < counted.nghttp2_end)
        who = CALLER_NGHTTP2;
    atomic_fetch_add_explicit(&my_counts()->calls[who], 1, memory_order_relaxed);
}

#define COUNT() count(__builtin_return_address(0))

void *malloc(size_t bytes)
{
    COUNT();
    return __libc_malloc(bytes);
}

void *calloc(size_t number, size_t bytes)
{
    COUNT();
    return __libc_calloc(number, bytes);
}

void *realloc(void *old, size_t bytes)
{
    COUNT();
    return __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t alignment, size_t bytes)
{
    COUNT();
    return __libc_memalign(alignment, bytes);
}

int posix_memalign(void **out, size_t alignment, size_t bytes)
{
    COUNT();
    *out = __libc_memalign(alignment, bytes);
    return *out == NULL ? ENOMEM : 0;
}

int epoll_wait(int epoll_fd, struct epoll_event *events, int events_max, int timeout_ms)
{
    struct counts *counts = my_counts();

    while (atomic_load(&counts->plant) > 0) {
        void *volatile planted = malloc(24); /* volatile: or the pair would be left out */
        free(planted);
        atomic_fetch_sub(&counts->plant, 1);
    }
    return (int)syscall(SYS_epoll_pwait, epoll_fd, events, events_max, timeout_ms, NULL, 8);
}

static int find_nghttp2(struct dl_phdr_info *object, size_t size, void *found)
{
    (void)size;
    for (int i = 0; strstr(object->dlpi_name, "libnghttp2") != NULL && i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) != 0) {
            counted.nghttp2_start = object->dlpi_addr + part->p_vaddr;
            counted.nghttp2_end = counted.nghttp2_start + part->p_memsz;
            *(bool *)found = true;
        }
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------------------- threads */

struct tids {
    uint32_t number;
    int tid[THREADS_MAX];
};

static void list_threads(struct tids *tids)
{
    DIR *folder = opendir("/proc/self/task");
    struct dirent *entry;

    tids->number = 0;
    while (folder != NULL && (entry = readdir(folder)) != NULL)
        if (entry->d_name[0] != '.' && tids->number < THREADS_MAX)
            tids->tid[tids->number++] = atoi(entry->d_name);
    if (folder != NULL)
        closedir(folder);
}

/* The counts of the one thread that appeared since; it has slept in epoll_wait by then. NULL: there is no such one. */
static struct counts *the_new_one(const struct tids *before)
{
    struct counts *found = NULL;
    struct tids now;
    int new_tid = 0;

    list_threads(&now);
    for (uint32_t i = 0; i < now.number; i++) {
        bool old = false;
        for (uint32_t j = 0; j < before->number; j++)
            old |= now.tid[i] == before->tid[j];
        CHECK(old || new_tid == 0);
        new_tid = old ? new_tid : now.tid[i];
    }
    for (int looks = 0; found == NULL && new_tid != 0 && looks < 10000; looks++) {
        for (uint32_t i = 0; i < THREADS_MAX; i++)
            if (atomic_load(&counted.threads[i].tid) == new_tid)
                found = &counted.threads[i];
        client_moment();
    }
    CHECK(found != NULL);
    return found;
}

/* --------------------------------------------------------------------------------------------------- the restore */

enum role { ROLE_LOOP, ROLE_BULK, ROLE_SERVER, ROLE_COUNT };
static const char *const role_names[] = {"loop", "bulk", "server"};

static struct server listening; /* its socket alone: our own server serves on it */
static struct pageferry_server *page_server;
static struct client_vm vms[ROUNDS];
static struct counts *of[ROLE_COUNT]; /* of the round's VM */

static uint64_t calls_of(enum role role, enum caller who)
{
    return atomic_load(&of[role]->calls[who]);
}

static uint64_t connections_open(void)
{
    uint64_t values[STATS_COUNTER_COUNT] = {0};

    pageferry_server_counters(page_server, values, STATS_COUNTER_COUNT);
    return values[STATS_connections_open];
}

/* VM processes are forked before there are threads. */
static bool start(void)
{
    struct pageferry_server_options options = {.listen_fds = &listening.listen_fd, .listen_fd_count = 1};
    struct pageferry_image_facts facts;
    char error[PAGEFERRY_TEXT_BYTES];
    int image = memfd_create("image", MFD_CLOEXEC);
    struct tids before;
    uint64_t words[512];
    bool good = image >= 0 && ftruncate(image, PAGES * 4096) == 0;

    server_start(&listening);
    listening.elsewhere = true;
    for (uint64_t page = 0; good && page < PAGES; page++) {
        real_fill(words, 1, page + 1);
        good = !server_holds(page) || pwrite(image, words, 4096, (off_t)(page * 4096)) == 4096;
    }
    for (int i = 0; i < ROUNDS; i++)
        good = good && client_prepare(&vms[i], REAL_MEMFD, PAGES, &listening, false);
    list_threads(&before);
    good = good && pageferry_server_open(&options, &page_server) == 0;
    good = good && pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)) == 0;
    good = good && pageferry_server_add_file(page_server, CLIENT_IMAGE, image, &facts, &facts.page_count, 1, NULL, 0,
                                             error, sizeof(error)) == 0;
    of[ROLE_SERVER] = good ? the_new_one(&before) : NULL;
    if (image >= 0)
        close(image);
    return of[ROLE_SERVER] != NULL;
}

/* Opens, arms, and has both connections up. What they needed for that was allocated on these threads. */
static bool open_round(struct client_vm *vm)
{
    struct pageferry_client_options options = {0};
    struct tids before;

    list_threads(&before);
    if (pageferry_client_open(&options, &vm->client) != 0)
        return false;
    of[ROLE_BULK] = the_new_one(&before);
    list_threads(&before);
    if (client_open(vm) != 0)
        return false;
    of[ROLE_LOOP] = the_new_one(&before);
    if (of[ROLE_BULK] == NULL || of[ROLE_LOOP] == NULL || !client_arm(vm))
        return false;
    return CLIENT_UNTIL(connections_open() == 2 && calls_of(ROLE_BULK, CALLER_OURS) > 0 &&
                        calls_of(ROLE_LOOP, CALLER_OURS) > 0);
}

/* Writes to every page of these, in as many threads: each page is a fault, and whole before the guest has it. */
static void touch(struct client_vm *vm, uint64_t first_page, uint64_t page_count)
{
    uint64_t share = page_count / GUEST_THREADS;

    for (uint64_t i = 0; i < GUEST_THREADS; i++)
        real_begin(&vm->real, REAL_WRITE, first_page + i * share, share, 1);
}

static void touched(struct client_vm *vm)
{
    for (int i = 0; i < GUEST_THREADS; i++)
        CHECK_EQ(real_answer(&vm->real), 0);
}

static void snapshot(uint64_t calls[ROLE_COUNT][CALLER_COUNT])
{
    for (int role = 0; role < ROLE_COUNT; role++)
        for (int who = 0; who < CALLER_COUNT; who++)
            calls[role][who] = calls_of((enum role)role, (enum caller)who);
}

/* ------------------------------------------------------------------------------------------------------ the tests */

struct sum {
    uint64_t faults, bulk_pages;
    uint64_t calls[ROLE_COUNT][CALLER_COUNT];
};

static void one_round(struct client_vm *vm, struct sum *sum)
{
    uint64_t before[ROLE_COUNT][CALLER_COUNT], after[ROLE_COUNT][CALLER_COUNT], asks;

    CHECK(open_round(vm));
    if (check_bad)
        return;
    touch(vm, 0, WARM_PAGES);
    touched(vm);
    asks = client_counter(vm, STATS_asks_total);
    snapshot(before);
    touch(vm, WARM_PAGES, ALONE_PAGES);
    touched(vm);
    CHECK(client_order(vm, PAGEFERRY_ORDER_BACKGROUND, 1, 0));
    touch(vm, WARM_PAGES + ALONE_PAGES, MIXED_PAGES);
    touched(vm);
    CHECK(client_wait(vm, PAGEFERRY_EVENT_COMPLETE));
    snapshot(after);
    for (int role = 0; role < ROLE_COUNT; role++)
        for (int who = 0; who < CALLER_COUNT; who++)
            sum->calls[role][who] += after[role][who] - before[role][who];
    sum->faults += client_counter(vm, STATS_asks_total) - asks;
    sum->bulk_pages += client_counter(vm, STATS_bulk_pages_total);
    for (uint64_t page = PAGES - 200; page < PAGES; page++) /* bulk alone has brought these */
        CHECK_EQ(real_do(&vm->real, REAL_READ, page, 1, 0), client_word(page));
    CHECK_EQ(client_counter(vm, STATS_alarms_total), 0);
    CHECK_EQ(client_counter(vm, STATS_links_lost_total), 0);
    CHECK_EQ(client_counter(vm, STATS_asks_again_total), 0);
}

static void test_no_page_costs_a_malloc(void)
{
    struct sum sum = {0};
    uint64_t nghttp2 = 0;

    for (int i = 0; i < ROUNDS; i++) {
        one_round(&vms[i], &sum);
        if (i < ROUNDS - 1)
            client_end(&vms[i]);
        CHECK(i == ROUNDS - 1 || CLIENT_UNTIL(connections_open() == 0));
    }
    CHECK(sum.faults >= FAULTS_MIN);
    CHECK(sum.bulk_pages > 0);
    for (int role = 0; role < ROLE_COUNT; role++) {
        nghttp2 += sum.calls[role][CALLER_NGHTTP2];
        printf("malloc on %s: nghttp2 %" PRIu64 ", others %" PRIu64 "\n", role_names[role],
               sum.calls[role][CALLER_NGHTTP2], sum.calls[role][CALLER_OTHER]);
        CHECK_EQ(sum.calls[role][CALLER_OURS], 0);
        CHECK_EQ(sum.calls[role][CALLER_OTHER], 0);
    }
    printf("malloc: faults %" PRIu64 ", bulk pages %" PRIu64 ", ours loop %" PRIu64 " bulk %" PRIu64 " server %" PRIu64
           ", nghttp2 %.4f a page\n", sum.faults, sum.bulk_pages, sum.calls[ROLE_LOOP][CALLER_OURS],
           sum.calls[ROLE_BULK][CALLER_OURS], sum.calls[ROLE_SERVER][CALLER_OURS],
           (double)nghttp2 / (double)(sum.faults + sum.bulk_pages));
}

/* On the last round's threads, which are still there. */
static void test_planted_calls_are_counted(void)
{
    uint64_t before[ROLE_COUNT][CALLER_COUNT];

    snapshot(before);
    for (int role = 0; role < ROLE_COUNT; role++)
        atomic_store(&of[role]->plant, PLANTED);
    client_order(&vms[ROUNDS - 1], PAGEFERRY_ORDER_BACKGROUND, 1, 0); /* wakes the loop */
    pageferry_server_health(page_server, 1);                          /* and the server */
    CHECK(CLIENT_UNTIL(atomic_load(&of[ROLE_LOOP]->plant) == 0 && atomic_load(&of[ROLE_SERVER]->plant) == 0));
    client_end(&vms[ROUNDS - 1]); /* and bulk: a VM leaves */
    for (int role = 0; role < ROLE_COUNT; role++) {
        CHECK_EQ(atomic_load(&of[role]->plant), 0);
        CHECK_EQ(calls_of((enum role)role, CALLER_OURS) - before[role][CALLER_OURS], PLANTED);
    }
}

int main(void)
{
    bool found = false;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    dl_iterate_phdr(find_nghttp2, &found);
    if (!found || !start()) {
        printf("no libnghttp2 in this program, or no server\n");
        return 1;
    }
    RUN(test_no_page_costs_a_malloc);
    if (check_failed == 0)
        RUN(test_planted_calls_are_counted);
    pageferry_server_close(page_server);
    server_stop(&listening);
    return check_done();
}

#endif
