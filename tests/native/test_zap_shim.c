/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Zaps under a running guest, all of it real but the page server: a process with two guest threads that know every word,
 * a balloon that takes other pages away, and the shim's half of the conversation (vmm/talk.c); the pager zaps at random,
 * over pages in every state. No word may be lost, and no removed page come back.
 *
 * Page N of the memory: N % 4 is 0 or 1: the guest thread of that number's, read and written; 2: nobody's until the end;
 * 3: the balloon's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "kernel/create.h"
#include "kernel/uapi.h"
#include "vmm/handoff.h"

#define ZAPS 400
#define ZAPS_MOST 20000
#define WORDS (REAL_PAGE / sizeof(uint64_t))
#define SHARED_BYTES UINT64_C(65536)

/* Seen by both processes. */
struct seen {
    _Atomic uint64_t stop;
    _Atomic uint64_t looks, writes, removals, refused;
    _Atomic uint64_t lost, back; /* wrong words; removed pages that are not zero */
    _Atomic uint64_t page, word; /* of the first wrong one */
};

/* ------------------------------------------------------------------------------------------------- the VM's process */

static struct {
    struct handoff handoff;
    struct seen *seen;
    volatile uint64_t *ram;
    uint64_t expected[SERVER_PAGES]; /* each page's belongs to the thread that owns the page */
    bool removed[SERVER_PAGES];
} guest;

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 33;
}

static void look(uint64_t page)
{
    volatile uint64_t *words = guest.ram + page * WORDS;
    _Atomic uint64_t *wrong = guest.removed[page] ? &guest.seen->back : &guest.seen->lost;

    for (uint64_t i = 0; i < WORDS; i++) {
        uint64_t word = words[i];
        if (word != guest.expected[page] && atomic_fetch_add(wrong, 1) == 0) {
            atomic_store(&guest.seen->page, page);
            atomic_store(&guest.seen->word, word);
        }
    }
    atomic_fetch_add(&guest.seen->looks, 1);
}

static void *guest_thread(void *argument)
{
    uint64_t number = (uint64_t)(uintptr_t)argument, random = number + 1;

    while (atomic_load(&guest.seen->stop) == 0) {
        uint64_t page = next_random(&random) % (SERVER_PAGES / 4) * 4 + number;
        look(page);
        if (next_random(&random) % 8 == 0) {
            guest.expected[page] = UINT64_C(1000000) + next_random(&random);
            for (uint64_t i = 0; i < WORDS; i++)
                guest.ram[page * WORDS + i] = guest.expected[page];
            atomic_fetch_add(&guest.seen->writes, 1);
        }
    }
    return NULL;
}

/* As the wrapped calls do: reported, and then dropped, one way or the other. */
static void take_away(uint64_t page, bool punch)
{
    void *at = (void *)(uintptr_t)(guest.ram + page * WORDS);
    int rc = handoff_discard(&guest.handoff, page * REAL_PAGE, REAL_PAGE);

    if (rc == 0 && punch)
        rc = fallocate(guest.handoff.ram_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * REAL_PAGE),
                       (off_t)REAL_PAGE);
    else if (rc == 0)
        rc = madvise(at, REAL_PAGE, MADV_REMOVE);
    if (rc != 0) {
        atomic_fetch_add(&guest.seen->refused, 1);
        return;
    }
    guest.removed[page] = true;
    guest.expected[page] = 0;
    atomic_fetch_add(&guest.seen->removals, 1);
}

static void *balloon_thread(void *argument)
{
    uint64_t random = 77;

    (void)argument;
    while (atomic_load(&guest.seen->stop) == 0) {
        uint64_t page = next_random(&random) % (SERVER_PAGES / 4) * 4 + 3, dice = next_random(&random) % 8;
        if (dice < 3)
            look(page);
        else if (dice < 5)
            take_away(page, dice == 3);
        else
            client_moment();
    }
    return NULL;
}

static bool send_fds(int socket, uint64_t address, const int fds[2])
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } room = {.header = {.cmsg_len = CMSG_LEN(2 * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec data = {&address, sizeof(address)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};

    memcpy(CMSG_DATA(&room.header), fds, 2 * sizeof(int));
    return sendmsg(socket, &message, 0) == (ssize_t)sizeof(address);
}

/* What handoff_make does, with features of our own; and what the client says first. */
static bool hand_over(int socket, uint64_t features)
{
    uint64_t bytes = SERVER_PAGES * REAL_PAGE;
    struct handoff *handoff = &guest.handoff;
    struct uffdio_register arg = {.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR};
    struct pollfd readable = {.fd = socket, .events = POLLIN};
    struct frame frame = {.kind = 0};

    *handoff = (struct handoff){.role = HANDOFF_RESTORE, .socket = socket, .length_bytes = bytes, .pid = getpid(),
                                .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    handoff->ram_fd = memfd_create("zap", MFD_CLOEXEC);
    handoff->uffd = create_uffd(-1, features, NULL);
    if (handoff->ram_fd < 0 || handoff->uffd < 0 || ftruncate(handoff->ram_fd, (off_t)bytes) < 0)
        return false;
    guest.ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, handoff->ram_fd, 0);
    handoff->address = (uintptr_t)guest.ram;
    arg.range.start = handoff->address;
    arg.range.len = bytes;
    if (guest.ram == MAP_FAILED || madvise((void *)(uintptr_t)guest.ram, bytes, MADV_NOHUGEPAGE) < 0 ||
        ioctl(handoff->uffd, UFFDIO_REGISTER, &arg) < 0 ||
        !send_fds(socket, handoff->address, (int[2]){handoff->uffd, handoff->ram_fd}))
        return false;
    while (frame_receive(socket, &handoff->reader, &frame) == 0)
        poll(&readable, 1, -1);
    handoff_listen(handoff);
    return frame.kind == FRAME_ACCEPTED;
}

static _Noreturn void be_the_vm(int socket, struct seen *seen, uint64_t features)
{
    pthread_t threads[3];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    guest.seen = seen;
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        guest.expected[page] = (uint64_t)client_word(page);
    if (!hand_over(socket, features))
        _exit(1);
    for (uintptr_t i = 0; i < 3; i++)
        if (pthread_create(&threads[i], NULL, i < 2 ? guest_thread : balloon_thread, (void *)i) != 0)
            _exit(1);
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    for (uint64_t page = 0; page < SERVER_PAGES; page++)
        look(page);
    _exit(0);
}

/* ------------------------------------------------------------------------------------------------------ the test itself */

static struct server server;
static struct pageferry_client *client;
static struct pageferry_vm *vm;
static struct seen *seen;
static pid_t vmm_pid;
static uint64_t covered[PAGE_STATE_COUNT]; /* pages in each state that a zap was over */

static bool receive_fds(int socket, uint64_t *address, int fds[2])
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } room;
    struct iovec data = {address, sizeof(*address)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};

    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*address) || CMSG_FIRSTHDR(&message) == NULL)
        return false;
    memcpy(fds, CMSG_DATA(&room.header), 2 * sizeof(int));
    return true;
}

static bool begin(uint64_t features)
{
    struct pageferry_client_options client_options = {0};
    struct pageferry_vm_options options = {.image = CLIENT_IMAGE, .memory = PAGEFERRY_MEMORY_SHARED, .frames = 1,
                                           .background = 1, .bandwidth_bytes_per_s = 1 << 20};
    struct pageferry_region region = {.length_bytes = SERVER_PAGES * REAL_PAGE};
    int ends[2], fds[2];

    memset(covered, 0, sizeof(covered));
    seen = mmap(NULL, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    server_start(&server);
    if (seen == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return false;
    fflush(stdout);
    vmm_pid = fork();
    if (vmm_pid == 0) {
        close(ends[0]);
        be_the_vm(ends[1], seen, features);
    }
    close(ends[1]);
    if (vmm_pid < 0 || !receive_fds(ends[0], &region.address, fds))
        return false;
    server_go(&server);
    options.data_address = server.address;
    options.uffd = fds[0];
    options.backing_fd = fds[1];
    options.vmm_fd = ends[0];
    options.vmm_pid = vmm_pid;
    options.vmm_pidfd = (int)syscall(SYS_pidfd_open, vmm_pid, 0);
    options.regions = &region;
    options.region_count = 1;
    return pageferry_client_open(&client_options, &client) == 0 && pageferry_vm_open(client, &options, &vm) == 0;
}

static void end(void)
{
    pageferry_vm_close(vm);
    pageferry_client_close(client);
    server_stop(&server);
    munmap(seen, SHARED_BYTES);
}

static uint64_t pages_in(enum page_state state)
{
    struct pageferry_pages pages;

    pageferry_vm_pages(vm, &pages);
    return pages.state[state];
}

static bool order(const struct pageferry_order *told, uint32_t answer)
{
    struct pageferry_event event = {.kind = 0};

    if (pageferry_vm_order(vm, told) < 0)
        return false;
    if (answer != 0 && !CLIENT_UNTIL(pageferry_vm_event(vm, &event) == 1 &&
                                     (event.kind == answer || event.kind == PAGEFERRY_EVENT_FAILED)))
        return false;
    if (event.kind != answer)
        printf("%s: %s\n", pageferry_event_name(event.kind), event.text);
    return event.kind == answer && event.cookie == told->cookie;
}

static bool zap(uint64_t first, uint64_t count, uint64_t cookie)
{
    struct pageferry_order told = {.kind = PAGEFERRY_ORDER_ZAP, .value = first, .page_count = count, .cookie = cookie};
    uint8_t states[SERVER_PAGES];
    uint64_t inside = pageferry_vm_states(vm, first, count, states);

    for (uint64_t i = 0; i < inside; i++)
        covered[states[i]]++;
    return order(&told, PAGEFERRY_EVENT_DONE);
}

/* Some pages in every state: cached before arming, and then nothing comes that is not asked for. */
static bool arm(void)
{
    struct pageferry_order off = {.kind = PAGEFERRY_ORDER_BACKGROUND}, told = {.kind = PAGEFERRY_ORDER_ARM, .cookie = 9};

    return CLIENT_UNTIL(pages_in(PAGE_CACHED) >= 100) && order(&off, 0) && order(&told, PAGEFERRY_EVENT_ARMED);
}

static bool all_covered(void)
{
    bool all = true;

    for (int state = PAGE_MISSING; state <= PAGE_OWNED; state++)
        all &= covered[state] > 0;
    return all;
}

static void zaps_under_a_guest(uint64_t features)
{
    uint64_t random = 5, values[STATS_COUNTER_COUNT];
    int status = -1;

    CHECK(begin(features));
    CHECK(arm());
    for (uint64_t i = 0; i < ZAPS || (!all_covered() && i < ZAPS_MOST); i++) {
        uint64_t first = next_random(&random) % SERVER_PAGES, count = 1 + next_random(&random) % 128;
        bool held_up = i % 16 == 0; /* threads wait for the server, and are zapped under */
        if (count > SERVER_PAGES - first)
            count = SERVER_PAGES - first;
        atomic_store(&server.will.fetch_mute, held_up);
        for (int looks = 0; held_up && looks < 20 && pages_in(PAGE_WANTED) == 0; looks++)
            client_moment();
        CHECK(zap(held_up ? 0 : first, held_up ? SERVER_PAGES : count, i));
        if (i >= ZAPS) /* a machine that has other things to do: the guest has hardly begun */
            client_moment();
    }
    atomic_store(&server.will.fetch_mute, 0);
    CHECK(CLIENT_UNTIL(atomic_load(&seen->removals) >= 100));
    atomic_store(&seen->stop, 1);
    CHECK_EQ(waitpid(vmm_pid, &status, 0), vmm_pid);
    CHECK_EQ(status, 0);
    if (atomic_load(&seen->lost) + atomic_load(&seen->back) != 0)
        printf("page %llu: word %llu\n", (unsigned long long)atomic_load(&seen->page),
               (unsigned long long)atomic_load(&seen->word));
    CHECK_EQ(atomic_load(&seen->lost), 0);
    CHECK_EQ(atomic_load(&seen->back), 0);
    CHECK_EQ(atomic_load(&seen->refused), 0);
    CHECK(all_covered());
    pageferry_vm_counters(vm, values, STATS_COUNTER_COUNT);
    CHECK(values[STATS_zapped_pages_total] > ZAPS);
    CHECK_EQ(values[STATS_alarms_total], 0);
    if (features != 0)
        CHECK(values[STATS_removes_total] > ZAPS);
    printf("case zaps over missing %llu wanted %llu cached %llu zero %llu owned %llu pages; looks %llu, writes %llu, "
           "removals %llu, minor faults %llu\n", (unsigned long long)covered[PAGE_MISSING],
           (unsigned long long)covered[PAGE_WANTED], (unsigned long long)covered[PAGE_CACHED],
           (unsigned long long)covered[PAGE_ZERO], (unsigned long long)covered[PAGE_OWNED],
           (unsigned long long)atomic_load(&seen->looks), (unsigned long long)atomic_load(&seen->writes),
           (unsigned long long)atomic_load(&seen->removals), (unsigned long long)values[STATS_faults_minor_total]);
    end();
}

static void test_zaps_under_a_guest(void)
{
    zaps_under_a_guest(0);
}

static void test_where_removals_are_reported_too(void)
{
    zaps_under_a_guest(UFFD_FEATURE_EVENT_REMOVE);
}

int main(void)
{
    if (!client_may()) {
        SKIP(test_zap_shim, "no userfaultfd right");
        return check_done();
    }
    RUN(test_zaps_under_a_guest);
    RUN(test_where_removals_are_reported_too);
    return check_done();
}
