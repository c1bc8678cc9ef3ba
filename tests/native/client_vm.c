/* SPDX-License-Identifier: Apache-2.0 */
/* See client_vm.h. */
#include "client_vm.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel/create.h"

#define PATIENCE_MS 20000

struct real_options client_more;

#define LOOK_MS 100

bool client_may(void)
{
    int uffd = create_uffd(-1, 0, NULL);

    if (uffd >= 0)
        close(uffd);
    return uffd >= 0;
}

void client_moment(void)
{
    struct timespec moment = {.tv_nsec = 1000000};

    nanosleep(&moment, NULL);
}

bool client_prepare(struct client_vm *vm, enum real_memory memory, uint64_t pages, struct server *server, bool frames)
{
    struct real_options real = client_more;
    int ends[2] = {-1, -1};

    real.memory = memory;
    real.pages = pages;
    memset(vm, 0, sizeof(*vm));
    vm->frames_end = -1;
    vm->server = server;
    if (!real_start(&vm->real, &real))
        return false;
    if (frames && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
        return false;
    vm->frames_end = ends[1];
    snprintf(vm->address, sizeof(vm->address), "%s", server->address);
    vm->region = (struct pageferry_region){.address = vm->real.address, .length_bytes = pages * REAL_PAGE};
    vm->options = (struct pageferry_vm_options){
        .image = CLIENT_IMAGE,
        .data_address = vm->address,
        .uffd = vm->real.uffd.fd,
        .backing_fd = real_is_private(memory) ? -1 : vm->real.uffd.backing_fd,
        .vmm_fd = ends[0],
        .vmm_pidfd = (int)syscall(SYS_pidfd_open, vm->real.pid, 0),
        .vmm_pid = vm->real.pid,
        .memory = real_is_private(memory) ? PAGEFERRY_MEMORY_PRIVATE : PAGEFERRY_MEMORY_SHARED,
        .frames = frames,
        .unit_bytes = memory >= REAL_HUGE ? UINT64_C(2) << 20 : 0,
        .regions = &vm->region,
        .region_count = 1,
    };
    return true;
}

int client_open(struct client_vm *vm)
{
    struct pageferry_client_options options = {0};
    int rc;

    server_go(vm->server);
    rc = vm->client == NULL ? pageferry_client_open(&options, &vm->client) : 0;

    if (rc == 0)
        rc = pageferry_vm_open(vm->client, &vm->options, &vm->vm);
    if (rc == 0) { /* the fds are the VM's now; the backing file is closed twice else */
        vm->real.uffd.fd = -1;
        vm->real.uffd.backing_fd = -1;
    } else {
        printf("vm_open: %d %s\n", rc, vm->options.error);
    }
    return rc;
}

void client_end(struct client_vm *vm)
{
    pageferry_vm_close(vm->vm);
    pageferry_client_close(vm->client);
    if (vm->vm == NULL && vm->options.vmm_fd >= 0)
        close(vm->options.vmm_fd);
    if (vm->vm == NULL && vm->options.vmm_pidfd >= 0)
        close(vm->options.vmm_pidfd);
    if (vm->frames_end >= 0)
        close(vm->frames_end);
    real_end(&vm->real);
    memset(vm, 0, sizeof(*vm));
}

static bool take(struct client_vm *vm)
{
    bool got = pageferry_vm_event(vm->vm, &vm->event) == 1;

    if (got && vm->event.kind < sizeof(vm->seen) / sizeof(vm->seen[0]))
        vm->seen[vm->event.kind]++;
    return got;
}

bool client_wait(struct client_vm *vm, uint32_t kind)
{
    struct pollfd bell = {.fd = pageferry_vm_event_fd(vm->vm), .events = POLLIN};

    for (int waits = 0; waits < PATIENCE_MS / LOOK_MS; waits++) {
        while (take(vm))
            if (vm->event.kind == kind)
                return true;
        if (poll(&bell, 1, LOOK_MS) < 0)
            break;
    }
    printf("no event %s\n", pageferry_event_name(kind));
    return false;
}

void client_drain(struct client_vm *vm)
{
    while (take(vm))
        ;
}

bool client_order(struct client_vm *vm, uint32_t kind, uint64_t value, uint64_t cookie)
{
    struct pageferry_order order = {.kind = kind, .value = value, .cookie = cookie};

    return pageferry_vm_order(vm->vm, &order) == 0;
}

bool client_arm(struct client_vm *vm)
{
    return client_order(vm, PAGEFERRY_ORDER_ARM, 0, 7) && client_wait(vm, PAGEFERRY_EVENT_ARMED) &&
           vm->event.cookie == 7;
}

uint64_t client_counter(struct client_vm *vm, enum stats_counter which)
{
    uint64_t values[STATS_COUNTER_COUNT] = {0};

    pageferry_vm_counters(vm->vm, values, STATS_COUNTER_COUNT);
    return values[which];
}

uint64_t client_state(struct client_vm *vm, uint64_t page)
{
    uint8_t state = 255;

    pageferry_vm_states(vm->vm, page, 1, &state);
    return state;
}

int64_t client_word(uint64_t page)
{
    return server_holds(page) ? (int64_t)page + 1 : 0;
}

uint32_t client_count(const char *folder)
{
    DIR *dir = opendir(folder);
    uint32_t count = 0;

    while (dir != NULL && readdir(dir) != NULL)
        count++;
    if (dir != NULL)
        closedir(dir);
    return count;
}

bool client_busy(void)
{
    struct timespec before, after, pause = {.tv_nsec = 300000000};

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    nanosleep(&pause, NULL);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    return (after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec > 150000000;
}
