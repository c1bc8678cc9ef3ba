/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VMM in one address space with its pager: threads that stand for vCPUs, and the library's threads beside them. No
 * hand-off, no shim, no Python; docs/same-mm.md goes through it. Its memory comes from a page server, page by page, as
 * the vCPUs touch it.
 *
 *     same_mm ADDRESS IMAGE BYTES       e.g. 127.0.0.1:7711 vm 16777216
 *
 * One line a step on stdout. Exit status 0: all went as it must.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pageferry.h"

#define PAGE UINT64_C(4096)
#define VCPUS 2
#define ZAPS 20

struct vmm {
    int ram_fd;
    uint64_t bytes;
    uint8_t *ram;
    int uffd; /* our own holder: threads that wait go on waiting if the pager should end */
    struct pageferry_client *client;
    struct pageferry_vm *vm;
    struct pageferry_event event; /* the newest */
};

struct vcpu {
    pthread_t thread;
    const struct vmm *vmm;
    uint32_t number;
    uint64_t sum;
};

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "same_mm: %s: %s\n", what, why);
    exit(1);
}

static void must(bool good, const char *what)
{
    if (!good)
        die(what, strerror(errno));
}

/* ----------------------------------------------------------------------------------------------------------- memory */

/* Shared, on a file of its own, so that its data outlives its mappings. Nothing may touch it before faults are served. */
static void make_ram(struct vmm *vmm)
{
    vmm->ram_fd = memfd_create("ram", MFD_CLOEXEC);
    must(vmm->ram_fd >= 0 && ftruncate(vmm->ram_fd, (off_t)vmm->bytes) == 0, "the RAM file");
    vmm->ram = mmap(NULL, vmm->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vmm->ram_fd, 0);
    must(vmm->ram != MAP_FAILED, "mmap");
    must(madvise(vmm->ram, vmm->bytes, MADV_NOHUGEPAGE) == 0 || errno == EINVAL, "MADV_NOHUGEPAGE");
    must(madvise(vmm->ram, vmm->bytes, MADV_DONTFORK) == 0, "MADV_DONTFORK");
}

/* Not UFFD_USER_MODE_ONLY: KVM faults in the kernel, and so does read(2) into guest memory. Missing and minor faults:
 * with missing alone a vCPU could see a page half written. */
static void register_ram(struct vmm *vmm)
{
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID};
    struct uffdio_register range = {.range = {(uintptr_t)vmm->ram, vmm->bytes},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR};

    vmm->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    must(vmm->uffd >= 0, "userfaultfd (root, or vm.unprivileged_userfaultfd=1)");
    must(ioctl(vmm->uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
    must(ioctl(vmm->uffd, UFFDIO_REGISTER, &range) == 0, "UFFDIO_REGISTER");
}

/* ------------------------------------------------------------------------------------------------------------ pager */

/* Its threads start here: they run in this process, and touch no page of the RAM by its address. */
static void open_pager(struct vmm *vmm, const char *address, const char *image)
{
    struct pageferry_client_options client = {0};
    struct pageferry_region region = {.address = (uintptr_t)vmm->ram, .length_bytes = vmm->bytes};
    struct pageferry_vm_options options = {
        .image = image,
        .data_address = address,
        .uffd = dup(vmm->uffd), /* taken over, like the next */
        .backing_fd = dup(vmm->ram_fd),
        .vmm_fd = -1,    /* there is no hand-off */
        .vmm_pidfd = -1, /* and nobody else to die */
        .vmm_pid = getpid(),
        .memory = PAGEFERRY_MEMORY_SHARED,
        .regions = &region,
        .region_count = 1,
        .background = 1,
        .handed_on = 1, /* the registration outlives the last page: for zaps that are to fault, and for poison */
    };

    if (pageferry_client_open(&client, &vmm->client) < 0)
        die("pageferry_client_open", client.error);
    if (pageferry_vm_open(vmm->client, &options, &vmm->vm) < 0)
        die("pageferry_vm_open", options.error);
}

/* Orders are answered by events. A VMM has the descriptor in its own loop. */
static void await(struct vmm *vmm, enum pageferry_event_kind kind)
{
    struct pollfd ready = {.fd = pageferry_vm_event_fd(vmm->vm), .events = POLLIN};

    for (;;) {
        while (pageferry_vm_event(vmm->vm, &vmm->event) == 1) {
            if (vmm->event.kind == PAGEFERRY_EVENT_POISONED)
                printf("told: page %" PRIu64 " is poisoned, number %" PRIu64 "\n", vmm->event.page, vmm->event.cookie);
            if (vmm->event.kind == kind)
                return;
            if (vmm->event.kind == PAGEFERRY_EVENT_FAILED || vmm->event.kind == PAGEFERRY_EVENT_ALARM)
                die("the pager", vmm->event.text);
        }
        poll(&ready, 1, -1);
    }
}

static void order(struct vmm *vmm, enum pageferry_order_kind kind, uint64_t page, uint64_t page_count, uint32_t flags,
                  enum pageferry_event_kind answer)
{
    struct pageferry_order told = {.kind = kind, .value = page, .page_count = page_count, .flags = flags, .cookie = 1};

    if (pageferry_vm_order(vmm->vm, &told) < 0)
        die("pageferry_vm_order", "too many orders wait");
    await(vmm, answer);
}

/* ------------------------------------------------------------------------------------------------------------- vCPUs */

/* Each goes through all of the memory, one forwards, one backwards; what it reads it waits for. */
static void *run_vcpu(void *argument)
{
    struct vcpu *vcpu = argument;
    const struct vmm *vmm = vcpu->vmm;
    uint64_t pages = vmm->bytes / PAGE;

    for (uint64_t i = 0; i < pages; i++) {
        uint64_t page = vcpu->number % 2 == 0 ? i : pages - 1 - i;
        const volatile uint64_t *words = (const volatile uint64_t *)(vmm->ram + page * PAGE);
        for (uint64_t word = 0; word < PAGE / sizeof(*words); word++)
            vcpu->sum += words[word] * (page + 1);
    }
    return NULL;
}

static void start(struct vcpu *vcpus, const struct vmm *vmm)
{
    for (uint32_t i = 0; i < VCPUS; i++) {
        vcpus[i] = (struct vcpu){.vmm = vmm, .number = i};
        must(pthread_create(&vcpus[i].thread, NULL, run_vcpu, &vcpus[i]) == 0, "pthread_create");
    }
}

static uint64_t joined(struct vcpu *vcpus)
{
    for (uint32_t i = 0; i < VCPUS; i++)
        pthread_join(vcpus[i].thread, NULL);
    for (uint32_t i = 1; i < VCPUS; i++)
        if (vcpus[i].sum != vcpus[0].sum)
            die("vCPUs", "they have read different memory");
    return vcpus[0].sum;
}

static __thread sigjmp_buf rescue;

static void on_sigbus(int number)
{
    siglongjmp(rescue, number);
}

/* Its first word, or -1: the access was answered by SIGBUS. With KVM the vCPU thread gets it, BUS_MCEERR_AR, and the VMM
 * injects a machine check. */
static int64_t word_at(const struct vmm *vmm, uint64_t page)
{
    if (sigsetjmp(rescue, 1) != 0)
        return -1;
    return (int64_t)*(const volatile uint64_t *)(vmm->ram + page * PAGE);
}

/* --------------------------------------------------------------------------------------------------------------- zap */

/* Its mappings go, its data stays: each page faults once more, and is mapped at once. Any thread but the pager's. */
static void zap_all(const struct vmm *vmm, bool say)
{
    struct pageferry_zap zap = {.address = (uintptr_t)vmm->ram, .length_bytes = vmm->bytes, .backing_fd = vmm->ram_fd,
                                .uffd = -1};

    if (pageferry_zap(&zap) < 0)
        die("pageferry_zap", zap.why);
    if (say)
        printf("zapped %" PRIu64 " bytes by method %u: %s\n", zap.done_bytes, zap.method, zap.why);
}

static uint64_t counter(const struct vmm *vmm, const char *name)
{
    uint64_t values[256];
    uint32_t count = pageferry_vm_counters(vmm->vm, values, 256), i = 0;

    while (i < count && i < 256 && strcmp(pageferry_counter_name(i), name) != 0)
        i++;
    return i < count && i < 256 ? values[i] : 0;
}

/* -------------------------------------------------------------------------------------------------------------- main */

/* The vCPUs run while their memory arrives, and is zapped under them. */
static void restore(struct vmm *vmm)
{
    struct vcpu vcpus[VCPUS];

    start(vcpus, vmm);
    for (int i = 0; i < ZAPS; i++)
        zap_all(vmm, i == 0);
    printf("sum %" PRIu64 "\n", joined(vcpus));
    await(vmm, PAGEFERRY_EVENT_COMPLETE);
    printf("complete, %" PRIu64 " pages were waited for\n", counter(vmm, "asks_total"));
}

static void zap(struct vmm *vmm)
{
    struct vcpu vcpus[VCPUS];
    uint64_t before = counter(vmm, "faults_minor_total");

    zap_all(vmm, false);
    start(vcpus, vmm);
    printf("sum %" PRIu64 "\n", joined(vcpus));
    printf("faulted again: %s\n", counter(vmm, "faults_minor_total") > before ? "yes" : "no");
}

/* Page 1 is given away: its data goes too, and does not come back. */
static void drop(struct vmm *vmm)
{
    order(vmm, PAGEFERRY_ORDER_ZAP, 1, 1, PAGEFERRY_ZAP_DROP, PAGEFERRY_EVENT_DONE);
    printf("dropped page 1: it reads %" PRId64 "\n", word_at(vmm, 1));
}

/* Lost: SIGBUS from now on, until it is cleared; then it is fresh memory, and the old bytes never return. */
static void poison(struct vmm *vmm)
{
    order(vmm, PAGEFERRY_ORDER_POISON, 2, 1, 0, PAGEFERRY_EVENT_DONE);
    printf("poisoned page 2: it reads %" PRId64 "\n", word_at(vmm, 2));
    zap_all(vmm, false); /* takes the marker away with the mapping: the fault brings it back */
    printf("poisoned page 2, zapped: it reads %" PRId64 "\n", word_at(vmm, 2));
    order(vmm, PAGEFERRY_ORDER_CLEAR_POISON, 2, 1, 0, PAGEFERRY_EVENT_DONE);
    printf("cleared page 2: it reads %" PRId64 "\n", word_at(vmm, 2));
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};
    struct vmm vmm = {.bytes = argc == 4 ? strtoull(argv[3], NULL, 10) : 0};

    if (vmm.bytes == 0 || vmm.bytes % PAGE != 0) {
        fprintf(stderr, "usage: same_mm ADDRESS IMAGE BYTES\n");
        return 64;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigaction(SIGBUS, &action, NULL);
    make_ram(&vmm);
    register_ram(&vmm);
    open_pager(&vmm, argv[1], argv[2]);
    order(&vmm, PAGEFERRY_ORDER_ARM, 0, 0, 0, PAGEFERRY_EVENT_ARMED); /* from here on the RAM may be touched */
    restore(&vmm);
    zap(&vmm);
    drop(&vmm);
    poison(&vmm);
    pageferry_vm_close(vmm.vm);
    pageferry_client_close(vmm.client);
    return 0;
}
