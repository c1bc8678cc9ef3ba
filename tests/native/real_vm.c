/* SPDX-License-Identifier: Apache-2.0 */
/* A process that plays a VM on the real kernel: see real_vm.h. */
#include "real_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/create.h"
#include "kernel/uapi.h"

#define PATIENCE_MS 20000
#define MOMENT_MS 40
#define WORDS (REAL_PAGE / sizeof(uint64_t))

struct order {
    uint32_t step;
    uint64_t page;
    uint64_t count;
    int64_t argument;
    uint64_t ticket;
};

struct answer {
    uint64_t ticket;
    int64_t value;
};

/* ---------------------------------------------------------------------------------------------- in the VM process */

/* The VM process has one mapping and one socket; its threads and its signal handler need to find them. */
static struct {
    uint8_t *start;
    uint64_t bytes;
    int control;
    int flags;
    int backing_fd;
    real_own *own;
} guest;
static __thread sigjmp_buf rescue;

static void on_fault_signal(int number)
{
    siglongjmp(rescue, number);
}

static int64_t rescued(int number)
{
    return number == SIGBUS ? REAL_SIGBUS : REAL_SIGSEGV;
}

/* What orders the guest's threads is another process, of which ThreadSanitizer knows nothing. */
#define UNORDERED __attribute__((no_sanitize("thread")))

UNORDERED static int64_t write_pages(volatile uint64_t *words, uint64_t count, uint64_t word)
{
    int number = sigsetjmp(rescue, 1);

    if (number != 0)
        return rescued(number);
    for (uint64_t i = 0; i < count * WORDS; i++)
        words[i] = word;
    return 0;
}

/* The first word that is touched waits for the page. */
UNORDERED static int64_t read_page(const volatile uint64_t *words)
{
    int number = sigsetjmp(rescue, 1);
    uint64_t first;

    if (number != 0)
        return rescued(number);
    first = words[0];
    for (uint64_t i = 1; i < WORDS; i++)
        if (words[i] != first)
            return REAL_TORN;
    return (int64_t)first;
}

int64_t real_guest_read(const uint8_t *at)
{
    return read_page((const volatile uint64_t *)at);
}

static int64_t fork_a_child(void)
{
    pid_t child = fork();

    if (child == 0)
        _exit(0);
    return child < 0 || waitpid(child, NULL, 0) < 0 ? -errno : 0;
}

static int64_t result_of(long rc)
{
    return rc < 0 ? -errno : 0;
}

static int64_t carry_out(const struct order *order)
{
    uint8_t *at = guest.start + order->page * REAL_PAGE;
    size_t bytes = order->count * REAL_PAGE;

    switch (order->step) {
    case REAL_READ:
        return read_page((const volatile uint64_t *)at);
    case REAL_WRITE:
        return write_pages((volatile uint64_t *)at, order->count, (uint64_t)order->argument);
    case REAL_ADVISE:
        return result_of(madvise(at, bytes, (int)order->argument));
    case REAL_PROTECT:
        return result_of(mprotect(at, bytes, (int)order->argument));
    case REAL_UNMAP:
        return result_of(munmap(at, bytes));
    case REAL_LOCK:
        return result_of(syscall(SYS_mlock, at, bytes)); /* sanitizers make the function do nothing */
    case REAL_FORK:
        return fork_a_child();
    case REAL_MOVE:
        return mremap(at, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, guest.start + guest.bytes + REAL_PAGE) ==
                       MAP_FAILED ? -errno : 0;
    case REAL_MAP:
        return mmap(at, bytes, PROT_READ | PROT_WRITE, guest.flags | MAP_FIXED, guest.backing_fd,
                    (off_t)(order->page * REAL_PAGE)) == MAP_FAILED ? -errno : 0;
    case REAL_OWN:
        return guest.own(guest.start, guest.bytes / REAL_PAGE, order->argument);
    }
    return -ENOSYS;
}

static void *step_thread(void *argument)
{
    struct order *order = argument;
    struct answer answer = {.ticket = order->ticket, .value = carry_out(order)};

    if (send(guest.control, &answer, sizeof(answer), MSG_NOSIGNAL) < 0)
        _exit(1);
    free(order);
    return NULL;
}

/* What is left free behind the memory is where MOVE goes to. Huge pages could be mapped where there is room for one. */
static bool map_guest(const struct real_options *options, int backing_fd)
{
    uint64_t bytes = options->pages * REAL_PAGE;
    uint8_t *room = mmap(NULL, 3 * bytes + REAL_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int flags = real_is_private(options->memory) ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;

    if (real_is_huge(options->memory)) /* whether the pool has them shows when they are touched */
        flags |= MAP_NORESERVE | (options->memory == REAL_HUGE_PRIVATE ? MAP_HUGETLB | 21 << MAP_HUGE_SHIFT : 0);
    if (room == MAP_FAILED)
        return false;
    guest.bytes = bytes;
    if (bytes >= REAL_HUGE_BYTES)
        room += (REAL_HUGE_BYTES - (uintptr_t)room % REAL_HUGE_BYTES) % REAL_HUGE_BYTES;
    guest.flags = flags;
    guest.backing_fd = backing_fd;
    guest.own = options->own;
    guest.start = mmap(room, bytes, PROT_READ | PROT_WRITE, flags | MAP_FIXED, backing_fd, 0);
    return guest.start != MAP_FAILED &&
           (madvise(guest.start, bytes, MADV_NOHUGEPAGE) == 0 || real_is_huge(options->memory));
}

static int register_guest(const struct real_options *options)
{
    struct uffdio_register arg = {.range = {(uintptr_t)guest.start, guest.bytes}, .mode = options->modes};
    int uffd = create_uffd(-1, options->features, NULL);

    if (uffd < 0) {
        printf("userfaultfd: %s\n", strerror(-uffd));
        return -1;
    }
    if (arg.mode == 0)
        arg.mode = UFFDIO_REGISTER_MODE_MISSING |
                   (real_is_private(options->memory) ? 0 : UFFDIO_REGISTER_MODE_MINOR);
    if (arg.mode != REAL_UNREGISTERED && ioctl(uffd, UFFDIO_REGISTER, &arg) < 0) {
        perror("UFFDIO_REGISTER");
        return -1;
    }
    return uffd;
}

static bool send_with_fd(int control, uint64_t address, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } room = {.header = {.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec data = {&address, sizeof(address)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};

    memcpy(CMSG_DATA(&room.header), &fd, sizeof(fd));
    return sendmsg(control, &message, 0) == (ssize_t)sizeof(address);
}

__attribute__((noreturn)) static void be_the_vm(int control, const struct real_options *options, int backing_fd)
{
    struct sigaction action = {.sa_handler = on_fault_signal, .sa_flags = SA_NODEFER};
    struct order order;
    int uffd;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    guest.control = control;
    uffd = map_guest(options, backing_fd) ? register_guest(options) : -1;
    if (uffd < 0 || !send_with_fd(control, (uintptr_t)guest.start, uffd))
        _exit(1);
    while (recv(control, &order, sizeof(order), 0) == (ssize_t)sizeof(order)) {
        struct order *own = malloc(sizeof(*own));
        pthread_t thread;
        if (own == NULL)
            _exit(1);
        *own = order;
        if (pthread_create(&thread, NULL, step_thread, own) != 0)
            _exit(1);
        pthread_detach(thread);
    }
    _exit(0);
}

/* --------------------------------------------------------------------------------------------- in the test itself */

static int new_backing(const struct real_options *options)
{
    int fd = -1;

    if (options->memory == REAL_MEMFD)
        fd = memfd_create("real-vm", MFD_CLOEXEC);
    else if (options->memory == REAL_HUGE)
        fd = options->backing_fd != 0 ? options->backing_fd
                                      : memfd_create("real-vm", MFD_CLOEXEC | MFD_HUGETLB | 21u << MAP_HUGE_SHIFT);
    else if (options->memory == REAL_TMPFS)
        fd = options->backing_fd != 0 ? options->backing_fd : open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0 && options->backing_fd == 0 && ftruncate(fd, (off_t)(options->pages * REAL_PAGE)) < 0)
        perror("ftruncate");
    return fd;
}

static bool receive_with_fd(int control, uint64_t *address, int *fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } room;
    struct iovec data = {address, sizeof(*address)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};

    if (recvmsg(control, &message, MSG_CMSG_CLOEXEC) != (ssize_t)sizeof(*address) || CMSG_FIRSTHDR(&message) == NULL)
        return false;
    memcpy(fd, CMSG_DATA(&room.header), sizeof(*fd));
    return true;
}

bool real_start(struct real_vm *vm, const struct real_options *options)
{
    int ends[2];

    *vm = (struct real_vm){.pages = options->pages, .uffd = {.fd = -1, .backing_fd = new_backing(options)}};
    if (real_is_huge(options->memory) &&
        view_open(&vm->uffd.view, vm->uffd.backing_fd, options->pages * REAL_PAGE, REAL_HUGE_BYTES, false) < 0)
        return false;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return false;
    fflush(stdout);
    vm->control = ends[0];
    vm->pid = fork();
    if (vm->pid == 0) {
        close(ends[0]);
        be_the_vm(ends[1], options, vm->uffd.backing_fd);
    }
    close(ends[1]);
    if (vm->pid < 0 || !receive_with_fd(vm->control, &vm->address, &vm->uffd.fd)) {
        printf("no VM process\n");
        return false;
    }
    vm->uffd.vmm_pid = vm->pid;
    return true;
}

void real_kill(struct real_vm *vm)
{
    if (vm->pid > 0) {
        kill(vm->pid, SIGKILL);
        waitpid(vm->pid, NULL, 0);
    }
    vm->pid = 0;
}

void real_end(struct real_vm *vm)
{
    real_kill(vm);
    close(vm->control);
    view_close(&vm->uffd.view);
    if (vm->uffd.fd >= 0)
        close(vm->uffd.fd);
    if (vm->uffd.backing_fd >= 0)
        close(vm->uffd.backing_fd);
}

uint64_t real_begin(struct real_vm *vm, enum real_step step, uint64_t page, uint64_t count, int64_t argument)
{
    struct order order = {
        .step = step, .page = page, .count = count, .argument = argument, .ticket = ++vm->ticket};

    if (send(vm->control, &order, sizeof(order), MSG_NOSIGNAL) != (ssize_t)sizeof(order))
        perror("real_begin");
    return order.ticket;
}

static bool readable(int fd, int wait_ms)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};

    return poll(&one, 1, wait_ms) == 1 && (one.revents & POLLIN) != 0;
}

static bool answered(struct real_vm *vm, int wait_ms, struct answer *answer)
{
    return readable(vm->control, wait_ms) &&
           recv(vm->control, answer, sizeof(*answer), 0) == (ssize_t)sizeof(*answer);
}

int64_t real_answer(struct real_vm *vm)
{
    struct answer answer;

    return answered(vm, PATIENCE_MS, &answer) ? answer.value : REAL_NO_ANSWER;
}

bool real_ended(struct real_vm *vm, uint64_t *ticket, int64_t *value)
{
    struct answer answer;

    if (!answered(vm, 0, &answer))
        return false;
    *ticket = answer.ticket;
    *value = answer.value;
    return true;
}

uint64_t real_asleep(const struct real_vm *vm)
{
    char path[64], text[512] = "";
    unsigned long long total = 0;
    const char *line;
    ssize_t got;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", vm->uffd.fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    got = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    line = got > 0 ? strstr(text, "total:") : NULL;
    if (line == NULL || sscanf(line, "total: %llu", &total) != 1)
        printf("%s says nothing of sleepers\n", path);
    return total;
}

int64_t real_do(struct real_vm *vm, enum real_step step, uint64_t page, uint64_t count, int64_t argument)
{
    real_begin(vm, step, page, count, argument);
    return real_answer(vm);
}

bool real_sleeps(struct real_vm *vm)
{
    return !readable(vm->control, MOMENT_MS);
}

struct kernel_span real_span(const struct real_vm *vm, uint64_t page, uint64_t count)
{
    return (struct kernel_span){.address = vm->address + page * REAL_PAGE, .length_bytes = count * REAL_PAGE,
                                .file_offset = page * REAL_PAGE};
}

struct kernel_outcome real_call(real_op *op, struct real_vm *vm, uint64_t page, uint64_t count)
{
    struct kernel_span span = real_span(vm, page, count);

    return op(&vm->uffd, &span);
}

typedef struct kernel_outcome bytes_op(void *kernel, const struct kernel_span *span, const void *bytes);

static struct kernel_outcome with_bytes(bytes_op *op, struct real_vm *vm, uint64_t page, uint64_t count, uint64_t word)
{
    struct kernel_span span = real_span(vm, page, count);
    struct kernel_outcome outcome = {.result = KERNEL_REFUSED};
    void *bytes = aligned_alloc(REAL_PAGE, count * REAL_PAGE);

    if (bytes != NULL) {
        real_fill(bytes, count, word);
        outcome = op(&vm->uffd, &span, bytes);
    }
    free(bytes);
    return outcome;
}

struct kernel_outcome real_copy(struct real_vm *vm, uint64_t page, uint64_t count, uint64_t word)
{
    return with_bytes(uffd_kernel_ops.copy, vm, page, count, word);
}

struct kernel_outcome real_populate(struct real_vm *vm, uint64_t page, uint64_t count, uint64_t word)
{
    return with_bytes(uffd_kernel_ops.populate, vm, page, count, word);
}

bool real_event_waits(struct real_vm *vm)
{
    return readable(vm->uffd.fd, PATIENCE_MS);
}

bool real_event(struct real_vm *vm, struct kernel_event *event)
{
    return real_event_waits(vm) && uffd_kernel_ops.read_events(&vm->uffd, event, 1) == 1;
}

bool real_faults(struct real_vm *vm, uint64_t page, uint32_t flags)
{
    struct kernel_event event;

    if (!real_event(vm, &event))
        printf("no event came\n");
    else if (event.kind != KERNEL_EVENT_FAULT || event.address / REAL_PAGE != vm->address / REAL_PAGE + page ||
             event.flags != flags)
        printf("event kind %u, page %lld, flags %llu\n", event.kind,
               (long long)(event.address - vm->address) / (long long)REAL_PAGE, (unsigned long long)event.flags);
    else
        return true;
    return false;
}

void real_fill(void *bytes, uint64_t pages, uint64_t word)
{
    uint64_t *words = bytes;

    for (uint64_t i = 0; i < pages * WORDS; i++)
        words[i] = word;
}
