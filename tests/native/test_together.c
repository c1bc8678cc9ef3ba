/* SPDX-License-Identifier: Apache-2.0 */
/*
 * All our threads at once, for ThreadSanitizer above all: a page server with two workers and a client with two VMs,
 * so two pager loops and the bulk thread, in one process over loopback. Threads of the VMs fault while bulk streams,
 * orders come from outside, every reading function is called meanwhile, and the links are cut. What each half does by
 * itself: test_client*.c, test_serve.c.
 */
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "gen/contract.h"

#define PAGES UINT64_C(4096)
#define VMS 2
#define ROUNDS 48
#define THREADS 6 /* of each VM that fault at once, in each round */
#define CUT_EVERY 16
#define FDS_MAX 256

static struct server address; /* where the page server listens; our own serves there */
static struct pageferry_server *server;
static struct client_vm vms[VMS];
static int image;

static bool serve(void)
{
    struct pageferry_server_options options = {.listen_fds = &address.listen_fd, .listen_fd_count = 1, .threads = 2};
    struct pageferry_image_facts facts;
    char error[PAGEFERRY_TEXT_BYTES];
    uint8_t bytes[4096];
    bool good;

    image = memfd_create("image", MFD_CLOEXEC);
    good = ftruncate(image, PAGES * 4096) == 0;
    for (uint64_t page = 0; page < PAGES; page++) {
        real_fill(bytes, 1, page + 1);
        if (server_holds(page))
            good = good && pwrite(image, bytes, sizeof(bytes), (off_t)(page * 4096)) == sizeof(bytes);
    }
    return good && pageferry_server_open(&options, &server) == 0 &&
           pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)) == 0 &&
           pageferry_server_add_file(server, CLIENT_IMAGE, image, &facts, &facts.page_count, 1, NULL, 0, error,
                                     sizeof(error)) == 0;
}

/* Private and shared memory, side by side. */
static bool begin(void)
{
    bool good = true;

    server_start(&address);
    address.elsewhere = true;
    for (int i = 0; i < VMS; i++)
        good = good && client_prepare(&vms[i], i == 0 ? REAL_MEMFD : REAL_PRIVATE, PAGES, &address, false);
    good = good && serve();
    for (int i = 0; good && i < VMS; i++) {
        vms[i].client = vms[0].client;
        good = client_open(&vms[i]) == 0 && client_arm(&vms[i]);
    }
    return good;
}

static void end(void)
{
    for (int i = VMS - 1; i >= 0; i--) {
        if (i > 0)
            vms[i].client = NULL; /* the first one's */
        client_end(&vms[i]);
    }
    pageferry_server_close(server);
    close(image);
    server_stop(&address);
}

/* The network takes the links away: connections of this process to the server's port are shut down, from neither
 * end's thread. By raw calls: an fd may be closed meanwhile, which is this test's doing and nobody's race. */
static void cut_links(void)
{
    for (long fd = 3; fd < FDS_MAX; fd++) {
        struct sockaddr_in peer = {0};
        socklen_t length = sizeof(peer);
        if (syscall(SYS_getpeername, fd, &peer, &length) == 0 && peer.sin_family == AF_INET &&
            ntohs(peer.sin_port) == address.port)
            syscall(SYS_shutdown, fd, SHUT_RDWR);
    }
}

/* Whatever can be read is, while all of it moves. */
static void read_everything(struct client_vm *vm)
{
    uint64_t values[1024];
    struct pageferry_pages pages;
    uint8_t states[PAGES];
    char text[8192];

    pageferry_vm_counters(vm->vm, values, 1024);
    pageferry_vm_pages(vm->vm, &pages);
    CHECK_EQ(pages.total, PAGES);
    CHECK_EQ(pageferry_vm_states(vm->vm, 0, PAGES, states), PAGES);
    CHECK(pageferry_vm_trace(vm->vm, text, sizeof(text)) < sizeof(text));
    for (uint32_t i = 0; pageferry_histogram_name(i) != NULL; i++) {
        pageferry_vm_histogram(vm->vm, i, values, 1024);
        pageferry_server_histogram(server, i, values, 1024);
    }
    CHECK_EQ(pageferry_server_counters(server, values, 1024), STATS_COUNTER_COUNT);
    pageferry_server_open_calls(server);
    client_drain(vm);
}

/* Six threads of each VM fault; bulk streams in every other round. */
static void run_round(uint64_t round)
{
    uint64_t pages[VMS][THREADS], sum[VMS] = {0};

    for (int i = 0; i < VMS; i++) {
        CHECK(client_order(&vms[i], PAGEFERRY_ORDER_BACKGROUND, round % 2, round));
        for (uint64_t thread = 0; thread < THREADS; thread++) {
            pages[i][thread] = (round * 523 + thread * 701 + (uint64_t)i * 17) % PAGES;
            sum[i] += (uint64_t)client_word(pages[i][thread]);
            real_begin(&vms[i].real, REAL_READ, pages[i][thread], 1, 0);
        }
    }
    if (round % CUT_EVERY == CUT_EVERY - 1)
        cut_links();
    pageferry_server_health(server, round % 3 != 0);
    for (int i = 0; i < VMS; i++) {
        read_everything(&vms[i]);
        for (int thread = 0; thread < THREADS; thread++)
            sum[i] -= (uint64_t)real_answer(&vms[i].real); /* in any order */
        CHECK_EQ(sum[i], 0);
    }
}

static void test_all_threads_at_once(void)
{
    CHECK(begin());
    for (uint64_t round = 0; round < ROUNDS && !check_bad; round++)
        run_round(round);
    for (int i = 0; i < VMS; i++)
        CHECK(client_order(&vms[i], PAGEFERRY_ORDER_BACKGROUND, 1, ROUNDS));
    for (int i = 0; i < VMS && !check_bad; i++) {
        CHECK(vms[i].seen[PAGEFERRY_EVENT_COMPLETE] > 0 || client_wait(&vms[i], PAGEFERRY_EVENT_COMPLETE));
        for (uint64_t page = 0; page < PAGES; page += 3)
            CHECK_EQ(real_do(&vms[i].real, REAL_READ, page, 1, 0), client_word(page));
        CHECK(client_counter(&vms[i], STATS_bulk_pages_total) > 0);
        CHECK(client_counter(&vms[i], STATS_asks_total) > 0);
        CHECK(client_counter(&vms[i], STATS_links_lost_total) > 0);
        CHECK_EQ(client_counter(&vms[i], STATS_asks_outstanding), 0);
        CHECK_EQ(client_counter(&vms[i], STATS_alarms_total), 0);
        CHECK_EQ(client_counter(&vms[i], STATS_digest_failures_total), 0);
        printf("together: asks %llu, bulk pages %llu, links lost %llu\n",
               (unsigned long long)client_counter(&vms[i], STATS_asks_total),
               (unsigned long long)client_counter(&vms[i], STATS_bulk_pages_total),
               (unsigned long long)client_counter(&vms[i], STATS_links_lost_total));
    }
    end();
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!client_may()) {
        SKIP(all, "no userfaultfd right");
        return check_done();
    }
    RUN(test_all_threads_at_once);
    return check_done();
}
