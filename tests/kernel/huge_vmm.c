/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The VM's half of huge_race: maps its RAM, registers it, and reads every page of it while they arrive. What it must
 * find it knows from race_word; what lies behind a page the kernel says, /proc/self/pagemap and /proc/kpageflags.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

#include "huge_race.h"
#include "kernel/create.h"
#include "kernel/uapi.h"

#define READERS_MAX 8
#define PRESENT (UINT64_C(1) << 63)
#define PFN_MASK ((UINT64_C(1) << 55) - 1)
#define KPF_COMPOUND_HEAD (UINT64_C(1) << 15)
#define KPF_COMPOUND_TAIL (UINT64_C(1) << 16)
#define KPF_THP (UINT64_C(1) << 22)

struct vm {
    int ram, uffd, pagemap, kpageflags;
    uint8_t *start;
    struct race_ask ask;
};

struct reader {
    struct vm *vm;
    uint32_t number;
    struct race_counts counts;
    pthread_t thread;
};

/* -------------------------------------------------------------------------------------------------------- messages */

bool race_send(int control, const void *bytes, size_t size, int fd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } extra = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec data = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

    if (fd >= 0) {
        memcpy(CMSG_DATA(&extra.header), &fd, sizeof(fd));
        message.msg_control = &extra;
        message.msg_controllen = sizeof(extra);
    }
    return sendmsg(control, &message, MSG_NOSIGNAL) == (ssize_t)size;
}

bool race_receive(int control, void *bytes, size_t size, int *fd)
{
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } extra;
    struct iovec data = {.iov_base = bytes, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &extra, .msg_controllen = sizeof(extra)};
    struct cmsghdr *header;

    if (recvmsg(control, &message, MSG_CMSG_CLOEXEC) != (ssize_t)size)
        return false;
    header = CMSG_FIRSTHDR(&message);
    *fd = -1;
    if (header != NULL && header->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(header), sizeof(*fd));
    return true;
}

void *race_place(uint64_t bytes)
{
    uintptr_t room = (uintptr_t)mmap(NULL, bytes + RACE_PIECE, PROT_NONE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    munmap((void *)room, bytes + RACE_PIECE);
    return (void *)((room + RACE_PIECE - 1) / RACE_PIECE * RACE_PIECE);
}

/* --------------------------------------------------------------------------------------------------------- reading */

/* The entry of a page in our own page table. */
static uint64_t entry_of(const struct vm *vm, uint64_t page)
{
    uint64_t entry = 0;

    if (pread(vm->pagemap, &entry, sizeof(entry),
              (off_t)(((uintptr_t)vm->start / RACE_PAGE + page) * sizeof(entry))) != (ssize_t)sizeof(entry))
        entry = 0;
    return entry;
}

/* The folio behind it is one of 2 MiB: a head, and 511 that follow it. */
static bool is_huge(const struct vm *vm, uint64_t entry)
{
    uint64_t first = (entry & PFN_MASK) / RACE_PIECE_PAGES * RACE_PIECE_PAGES;
    uint64_t flags[RACE_PIECE_PAGES];
    ssize_t got = pread(vm->kpageflags, flags, sizeof(flags), (off_t)(first * sizeof(flags[0])));
    bool huge = (entry & PRESENT) != 0 && got == (ssize_t)sizeof(flags);

    for (uint64_t i = 0; i < RACE_PIECE_PAGES && huge; i++)
        huge = (flags[i] & KPF_THP) != 0 && (flags[i] & (i == 0 ? KPF_COMPOUND_HEAD : KPF_COMPOUND_TAIL)) != 0;
    return huge;
}

static void read_page(struct reader *reader, uint64_t page)
{
    const struct vm *vm = reader->vm;
    const volatile uint64_t *words = (const volatile uint64_t *)(vm->start + page * RACE_PAGE);
    uint64_t want = race_word(page, vm->ask.seed);
    bool absent = (entry_of(vm, page) & PRESENT) == 0;

    for (uint64_t i = 0; i < RACE_PAGE / sizeof(uint64_t); i++) {
        uint64_t got = words[i];
        if (got != want && reader->counts.wrong++ == 0) {
            reader->counts.wrong_page = page;
            reader->counts.wrong_word = got;
        }
    }
    if (absent) {
        reader->counts.tries++;
        reader->counts.huge += is_huge(vm, entry_of(vm, page));
    }
}

/* Every page once: a step that has no divisor in common with a power of two, another one for each reader. */
static void *read_all(void *argument)
{
    struct reader *reader = argument;
    uint64_t pages = reader->vm->ask.pages;
    uint64_t step = ((reader->vm->ask.seed + reader->number) * 2 + 1) * 2654435761u | 1;

    for (uint64_t i = 0; i < pages; i++)
        read_page(reader, (i * step + reader->number * pages / READERS_MAX) % pages);
    return NULL;
}

static int read_by_all(struct vm *vm, struct race_counts *counts)
{
    struct reader readers[READERS_MAX];
    int rc = 0;

    memset(readers, 0, sizeof(readers));
    for (uint32_t i = 0; i < vm->ask.readers && i < READERS_MAX; i++) {
        readers[i].vm = vm;
        readers[i].number = i;
        if (pthread_create(&readers[i].thread, NULL, read_all, &readers[i]) != 0)
            _exit(71);
    }
    for (uint32_t i = 0; i < vm->ask.readers && i < READERS_MAX; i++) {
        pthread_join(readers[i].thread, NULL);
        if (counts->wrong == 0) {
            counts->wrong_page = readers[i].counts.wrong_page;
            counts->wrong_word = readers[i].counts.wrong_word;
        }
        counts->tries += readers[i].counts.tries;
        counts->huge += readers[i].counts.huge;
        counts->wrong += readers[i].counts.wrong;
    }
    return rc;
}

/* ---------------------------------------------------------------------------------------------------------- orders */

static int map_ram(struct vm *vm)
{
    uint64_t bytes = vm->ask.pages * RACE_PAGE;

    vm->start = mmap(race_place(bytes), bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm->ram, 0);
    return vm->start == MAP_FAILED ? -errno : 0;
}

static int register_ram(struct vm *vm)
{
    struct uffdio_register arg = {.range = {(uintptr_t)vm->start, vm->ask.pages * RACE_PAGE}, .mode = vm->ask.modes};

    vm->uffd = create_uffd(-1, UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM, NULL);
    if (vm->uffd < 0)
        return vm->uffd;
    return ioctl(vm->uffd, UFFDIO_REGISTER, &arg) < 0 ? -errno : 0;
}

static int unmap_ram(struct vm *vm)
{
    munmap(vm->start, vm->ask.pages * RACE_PAGE);
    close(vm->ram);
    close(vm->uffd);
    return 0;
}

static void obey(struct vm *vm, struct race_answer *answer)
{
    switch (vm->ask.order) {
    case RACE_MAP:
        answer->rc = map_ram(vm);
        answer->address = (uintptr_t)vm->start;
        break;
    case RACE_BAR:
        answer->rc = madvise(vm->start, vm->ask.pages * RACE_PAGE, MADV_NOHUGEPAGE) < 0 ? -errno : 0;
        break;
    case RACE_REGISTER:
        answer->rc = register_ram(vm);
        break;
    case RACE_READ:
        answer->rc = read_by_all(vm, &answer->counts);
        break;
    case RACE_UNMAP:
        answer->rc = unmap_ram(vm);
        break;
    }
}

void race_vm(int control)
{
    struct vm vm = {.uffd = -1};
    struct race_answer answer;
    int fd;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    vm.pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    vm.kpageflags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
    while (race_receive(control, &vm.ask, sizeof(vm.ask), &fd)) {
        if (vm.ask.order == RACE_MAP)
            vm.ram = fd;
        memset(&answer, 0, sizeof(answer));
        obey(&vm, &answer);
        if (!race_send(control, &answer, sizeof(answer), vm.ask.order == RACE_REGISTER ? vm.uffd : -1))
            break;
    }
    _exit(vm.pagemap >= 0 && vm.kpageflags >= 0 ? 0 : 71);
}
