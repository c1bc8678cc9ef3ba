/* SPDX-License-Identifier: Apache-2.0 */
/* See kvm_vm.h. */
#include "kvm_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernel/create.h"
#include "vcpu.h"

#define PATIENCE_MS 20000
#define LOOKS 20000
#define LSB_OF_A_PAGE 12

const char *kvm_absent(void)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), uffd = create_uffd(-1, 0, NULL);
    const char *absent = kvm < 0 ? "no /dev/kvm" : uffd < 0 ? "no userfaultfd right" : NULL;

    if (kvm >= 0)
        close(kvm);
    if (uffd >= 0)
        close(uffd);
    return absent;
}

/* ------------------------------------------------------------------------------------------------------- the start */

/* Beside this program; `name` from there. */
static void path_of(const char *name, char path[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 1);
    char *slash;

    path[length < 0 ? 0 : length] = '\0';
    slash = strrchr(path, '/');
    if (slash != NULL)
        snprintf(slash + 1, (size_t)(PATH_MAX - (slash + 1 - path)), "%s", name);
}

__attribute__((noreturn)) static void become_the_vmm(const char *socket_path, const char *role, uint64_t pages, int in, int out)
{
    char vmm[PATH_MAX], shim[PATH_MAX], count[24];

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    path_of("vmm", vmm);
    path_of("../pageferry-shim.so", shim);
    snprintf(count, sizeof(count), "%" PRIu64, pages);
    setenv("LD_PRELOAD", shim, 1);
    setenv("PAGEFERRY_SHIM_RAM", "memfd:kvm-ram", 1);
    setenv("PAGEFERRY_SHIM_SOCKET", socket_path, 1);
    setenv("PAGEFERRY_SHIM_ROLE", role, 1);
    if (dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0)
        execl(vmm, vmm, count, NULL);
    perror(vmm);
    _exit(127);
}

static bool readable(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};

    return poll(&one, 1, PATIENCE_MS) == 1;
}

/* docs/handoff.md, section 1, as far as a test needs to look: one region. */
static bool take_handoff(struct kvm_vm *vm, int listener)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } room;
    char json[1024];
    struct iovec data = {json, sizeof(json) - 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof(room)};
    int fds[2];
    ssize_t length;

    vm->handoff = readable(listener) ? accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (vm->handoff < 0 || !readable(vm->handoff))
        return false;
    length = recvmsg(vm->handoff, &message, MSG_CMSG_CLOEXEC);
    if (length <= 0 || CMSG_FIRSTHDR(&message) == NULL || room.header.cmsg_len != CMSG_LEN(sizeof(fds)))
        return false;
    json[length] = '\0';
    memcpy(fds, CMSG_DATA(&room.header), sizeof(fds));
    vm->uffd = fds[0];
    vm->ram_fd = fds[1];
    return sscanf(json, "[{\"base_host_virt_addr\":%" SCNu64, &vm->address) == 1;
}

bool kvm_start(struct kvm_vm *vm, const char *role, uint64_t pages)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char folder[] = "/tmp/pageferry-kvm-XXXXXX";
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), in[2], out[2];
    bool started = false;

    *vm = (struct kvm_vm){.pages = pages, .handoff = -1, .uffd = -1, .ram_fd = -1, .pidfd = -1};
    if (listener < 0 || pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || mkdtemp(folder) == NULL)
        return false;
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/handoff", folder);
    fflush(stdout);
    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 1) == 0) {
        vm->pid = fork();
        if (vm->pid == 0)
            become_the_vmm(address.sun_path, role, pages, in[0], out[1]);
        started = vm->pid > 0 && take_handoff(vm, listener);
    }
    vm->pidfd = vm->pid > 0 ? (int)syscall(SYS_pidfd_open, vm->pid, 0) : -1;
    vm->to = fdopen(in[1], "w");
    vm->from = fdopen(out[0], "r");
    close(in[0]);
    close(out[1]);
    close(listener);
    unlink(address.sun_path);
    rmdir(folder);
    if (!started)
        printf("no VMM: %s\n", strerror(errno));
    return started;
}

/* ---------------------------------------------------------------------------------------------------------- orders */

static bool hear(struct kvm_vm *vm)
{
    bool heard = readable(fileno(vm->from)) && fgets(vm->answer, sizeof(vm->answer), vm->from) != NULL;

    if (!heard)
        snprintf(vm->answer, sizeof(vm->answer), "nothing");
    vm->answer[strcspn(vm->answer, "\n")] = '\0';
    return heard;
}

/* One line is answered by one line, so nothing is ever left in the stream's buffer. */
static bool ask(struct kvm_vm *vm, const char *order)
{
    return fprintf(vm->to, "%s\n", order) > 0 && fflush(vm->to) == 0 && hear(vm);
}

bool kvm_do(struct kvm_vm *vm, const char *format, ...)
{
    char order[128];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(order, sizeof(order), format, arguments);
    va_end(arguments);
    if (ask(vm, order) && strcmp(vm->answer, "ok") == 0)
        return true;
    printf("%s: %s\n", order, vm->answer);
    return false;
}

bool kvm_stopped(struct kvm_vm *vm, const char *format, ...)
{
    char wanted[128];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(wanted, sizeof(wanted), format, arguments);
    va_end(arguments);
    if (ask(vm, "wait") && strcmp(vm->answer, wanted) == 0)
        return true;
    printf("the vCPU has stopped with \"%s\", not \"%s\"\n", vm->answer, wanted);
    return false;
}

bool kvm_lost(struct kvm_vm *vm, uint64_t *page)
{
    int code = 0, lsb = 0;

    if (ask(vm, "wait") && sscanf(vm->answer, "sigbus %d %d %" SCNu64, &code, &lsb, page) == 3 &&
        code == BUS_MCEERR_AR && lsb == LSB_OF_A_PAGE)
        return true;
    printf("the vCPU has stopped with \"%s\"\n", vm->answer);
    return false;
}

bool kvm_touch(struct kvm_vm *vm, uint64_t page, uint64_t word)
{
    return kvm_do(vm, "touch %" PRIu64, page) && kvm_stopped(vm, "out %" PRIu64 " 0", word);
}

uint64_t kvm_turns(struct kvm_vm *vm)
{
    uint64_t wrong = 1, turns = 0;

    if (!ask(vm, "wait") || sscanf(vm->answer, "out %" SCNu64 " %" SCNu64, &wrong, &turns) != 2 || wrong != 0) {
        printf("the vCPU has stopped with \"%s\"\n", vm->answer);
        turns = 0;
    }
    return turns;
}

bool kvm_sleeps(const struct kvm_vm *vm)
{
    char path[64], where[64] = "";

    snprintf(path, sizeof(path), "/proc/%d/task/%d/wchan", vm->pid, vm->tid);
    for (int looks = 0; looks < LOOKS && strstr(where, "userfault") == NULL; looks++) {
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = fd < 0 ? -1 : read(fd, where, sizeof(where) - 1);
        where[length < 0 ? 0 : length] = '\0';
        if (fd >= 0)
            close(fd);
        usleep(1000);
    }
    return strstr(where, "userfault") != NULL;
}

uint64_t kvm_differs(const struct kvm_vm *vm, int ram_fd)
{
    uint64_t words[KVM_PAGE / sizeof(uint64_t)], wrong = 0;

    for (uint64_t page = 0; page < vm->pages; page++) {
        bool same = pread(ram_fd, words, sizeof(words), (off_t)(page * KVM_PAGE)) == (ssize_t)sizeof(words);
        for (size_t i = 0; same && i < sizeof(words) / sizeof(words[0]); i++)
            same = words[i] == vm->ledger[page];
        wrong += !same;
    }
    return wrong;
}

bool kvm_ready(struct kvm_vm *vm)
{
    char path[64];
    int own_number, own_fd;
    void *ledger;

    if (!hear(vm) || sscanf(vm->answer, "ready %d %d", &vm->tid, &own_number) != 2) {
        printf("the VMM says \"%s\"\n", vm->answer);
        return false;
    }
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", vm->pid, own_number);
    own_fd = open(path, O_RDWR | O_CLOEXEC);
    ledger = mmap(NULL, vm->pages * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, own_fd,
                  (off_t)(VCPU_LEDGER - VCPU_OWN));
    close(own_fd);
    vm->ledger = ledger == MAP_FAILED ? NULL : ledger;
    return vm->ledger != NULL;
}

void kvm_end(struct kvm_vm *vm)
{
    int fds[] = {vm->pidfd, vm->handoff, vm->uffd, vm->ram_fd};

    if (vm->pid > 0) {
        kill(vm->pid, SIGKILL);
        waitpid(vm->pid, NULL, 0);
    }
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (vm->to != NULL)
        fclose(vm->to);
    if (vm->from != NULL)
        fclose(vm->from);
    if (vm->ledger != NULL)
        munmap(vm->ledger, vm->pages * sizeof(uint64_t));
}
