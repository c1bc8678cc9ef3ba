/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small VMM with a real vCPU: KVM (vcpu.h), RAM on a memfd called "kvm-ram", and nothing else. It knows nothing of
 * page servers: it runs under the shim, which registers its RAM and hands it over while it is being mapped.
 *
 *   LD_PRELOAD=pageferry-shim.so PAGEFERRY_SHIM_RAM=memfd:kvm-ram PAGEFERRY_SHIM_SOCKET=... vmm PAGES
 *
 * It says "ready TID FD": the vCPU's thread, and its descriptor of a memfd that holds the ledger (guest.S). Then it reads
 * one order a line, and answers each with one line:
 *
 *   touch PAGE | fill PAGE WORD | check MULTIPLIER STEP | work TURNS FIRST SEED
 *              the vCPU begins that program of guest.S; "ok"
 *   go         the vCPU goes on where it stopped; "ok"
 *   wait       until the vCPU stops: "out RAX RBX", "eintr", "sigbus CODE LSB PAGE", or "other WHAT"
 *   stop       the word that ends `work`; "ok"
 *   kick       a signal to the vCPU's thread; "ok"
 *   zap PAGE COUNT       MADV_DONTNEED of these pages of the RAM; "ok"
 *   zaps TIMES SEED      the same, so many times, of 1 to 64 pages at random; "ok"
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vcpu.h"

#define PAGE UINT64_C(4096)
#define ZAP_PAGES_MAX 64

static struct {
    uint8_t *ram, *own;
    uint64_t pages;
    struct vcpu vcpu;
    pthread_t thread;
    pid_t tid;
    sem_t go, stopped;
    enum vcpu_end end; /* how it stopped, */
    int other;
    volatile sig_atomic_t bus; /* and whether by a SIGBUS: */
    volatile int bus_code, bus_lsb;
    void *volatile bus_address;
} vmm;

static void die(const char *what, int error)
{
    fprintf(stderr, "vmm: %s: %s\n", what, strerror(error));
    exit(1);
}

/* In the vCPU's thread: KVM_RUN ends because the signal is there. */
static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    vmm.bus_code = info->si_code;
    vmm.bus_lsb = info->si_addr_lsb;
    vmm.bus_address = info->si_addr;
    vmm.bus = 1;
}

static void on_kick(int number)
{
    (void)number; /* that it has come ends KVM_RUN */
}

__attribute__((noreturn)) static void *be_the_vcpu(void *nothing)
{
    (void)nothing;
    vmm.tid = gettid();
    sem_post(&vmm.stopped);
    for (;;) {
        while (sem_wait(&vmm.go) != 0)
            ;
        vmm.bus = 0;
        vmm.end = vcpu_run(&vmm.vcpu, &vmm.other);
        sem_post(&vmm.stopped);
    }
}

/* -------------------------------------------------------------------------------------------------------- orders */

static const char *begin(const uint8_t *program, const struct kvm_regs *arguments)
{
    int rc = vcpu_begin(&vmm.vcpu, program, arguments);

    if (rc < 0)
        die("KVM_SET_REGS", -rc);
    sem_post(&vmm.go);
    return "ok";
}

static const char *work(uint64_t turns, uint64_t first, uint64_t seed)
{
    struct kvm_regs arguments = {.rsi = vmm.pages, .r8 = VCPU_LEDGER, .r9 = seed, .r10 = VCPU_STOP, .rdx = turns, .rcx = first};

    atomic_store((_Atomic uint64_t *)(vmm.own + (VCPU_STOP - VCPU_OWN)), 0);
    return begin(guest_work, &arguments);
}

static const char *waited(char *line, size_t size)
{
    struct kvm_regs registers;

    while (sem_wait(&vmm.stopped) != 0)
        ;
    if (vmm.bus) {
        snprintf(line, size, "sigbus %d %d %" PRId64, vmm.bus_code, vmm.bus_lsb,
                 (int64_t)((uint8_t *)vmm.bus_address - vmm.ram) / (int64_t)PAGE);
    } else if (vmm.end == VCPU_OUT) {
        vcpu_registers(&vmm.vcpu, &registers);
        snprintf(line, size, "out %" PRIu64 " %" PRIu64, (uint64_t)registers.rax, (uint64_t)registers.rbx);
    } else if (vmm.end == VCPU_EINTR) {
        snprintf(line, size, "eintr");
    } else {
        snprintf(line, size, "other %d", vmm.other);
    }
    return line;
}

static const char *zap(uint64_t page, uint64_t count)
{
    return page < vmm.pages && count <= vmm.pages - page &&
                   madvise(vmm.ram + page * PAGE, count * PAGE, MADV_DONTNEED) == 0 ? "ok" : "failed";
}

static const char *zaps(uint64_t times, uint64_t seed)
{
    const char *result = "ok";

    for (uint64_t i = 0; i < times && strcmp(result, "ok") == 0; i++) {
        uint64_t page, count;
        seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
        page = (seed >> 33) % vmm.pages;
        count = 1 + (seed >> 20) % ZAP_PAGES_MAX;
        result = zap(page, count < vmm.pages - page ? count : vmm.pages - page);
    }
    return result;
}

static const char *obey(const char *name, uint64_t a, uint64_t b, uint64_t c, char *line, size_t size)
{
    if (strcmp(name, "touch") == 0)
        return begin(guest_touch, &(struct kvm_regs){.rdi = a * PAGE});
    if (strcmp(name, "fill") == 0)
        return begin(guest_fill, &(struct kvm_regs){.rdi = a * PAGE, .rsi = b});
    if (strcmp(name, "check") == 0)
        return begin(guest_check, &(struct kvm_regs){.rsi = vmm.pages, .rdx = a, .rcx = b});
    if (strcmp(name, "work") == 0)
        return work(a, b, c);
    if (strcmp(name, "wait") == 0)
        return waited(line, size);
    if (strcmp(name, "zap") == 0)
        return zap(a, b);
    if (strcmp(name, "zaps") == 0)
        return zaps(a, b);
    if (strcmp(name, "go") == 0)
        sem_post(&vmm.go);
    else if (strcmp(name, "stop") == 0)
        atomic_store((_Atomic uint64_t *)(vmm.own + (VCPU_STOP - VCPU_OWN)), 1);
    else if (strcmp(name, "kick") == 0)
        pthread_kill(vmm.thread, SIGUSR1);
    else
        return "no such order";
    return "ok";
}

/* -------------------------------------------------------------------------------------------------------- start */

static uint8_t *map_memfd(const char *name, uint64_t bytes, int *fd)
{
    uint8_t *memory;

    *fd = memfd_create(name, MFD_CLOEXEC);
    if (*fd < 0 || ftruncate(*fd, (off_t)bytes) < 0)
        die(name, errno);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    if (memory == MAP_FAILED)
        die(name, errno);
    return memory;
}

int main(int argc, char **argv)
{
    struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO}, kick = {.sa_handler = on_kick};
    int ram_fd, own_fd, rc;
    uint64_t own_bytes;
    char order[128];

    vmm.pages = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
    if (vmm.pages == 0 || (vmm.pages & (vmm.pages - 1)) != 0 || vmm.pages * PAGE > VCPU_OWN)
        die("how many pages: a power of two", EINVAL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    own_bytes = VCPU_LEDGER - VCPU_OWN + (vmm.pages * sizeof(uint64_t) + PAGE - 1) / PAGE * PAGE;
    vmm.own = map_memfd("kvm-own", own_bytes, &own_fd);
    vmm.ram = map_memfd("kvm-ram", vmm.pages * PAGE, &ram_fd);
    rc = vcpu_open(&vmm.vcpu, vmm.ram, vmm.pages * PAGE, vmm.own, own_bytes);
    if (rc < 0)
        die("KVM", -rc);
    sem_init(&vmm.go, 0, 0);
    sem_init(&vmm.stopped, 0, 0);
    sigaction(SIGBUS, &bus, NULL);
    sigaction(SIGUSR1, &kick, NULL);
    if ((rc = pthread_create(&vmm.thread, NULL, be_the_vcpu, NULL)) != 0)
        die("the vCPU's thread", rc);
    while (sem_wait(&vmm.stopped) != 0)
        ;
    printf("ready %d %d\n", vmm.tid, own_fd);
    while (fgets(order, sizeof(order), stdin) != NULL) {
        char name[16] = "", line[128];
        uint64_t a = 0, b = 0, c = 0;
        sscanf(order, "%15s %" SCNu64 " %" SCNu64 " %" SCNu64, name, &a, &b, &c);
        puts(obey(name, a, b, c, line, sizeof(line)));
    }
    return 0;
}
