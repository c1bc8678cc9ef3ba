/* SPDX-License-Identifier: Apache-2.0 */
/* See vcpu.h. */
#include "vcpu.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* Where things lie in VCPU_OWN. The last page before the ledger is the guest's to be told things in. */
#define AT_PML4 0x0000
#define AT_PDPT 0x1000
#define AT_PD_RAM 0x2000
#define AT_PD_OWN 0x3000
#define AT_CODE 0x4000
#define CODE_BYTES_MAX 0x1000
#define AT_TSS 0x5000
#define TSS_BYTES 0x68
#define TSS_PORTS_AT 0x66 /* in it: where its bitmap of ports begins; a bit that is 0 lets the port be used */
#define PORTS_BYTES 0x20

#define PTE_OF_GUEST UINT64_C(0x67) /* present, writable, user; accessed and dirty already: nobody writes it */
#define PTE_HUGE UINT64_C(0x80)
#define HUGE_BYTES UINT64_C(0x200000)
#define CPUID_ENTRIES 128

#define CR0_PE_MP_NE_PG UINT64_C(0x80000023)
#define CR4_PAE UINT64_C(0x20)
#define CR4_OSFXSR UINT64_C(0x200)
#define EFER_LME_LMA UINT64_C(0x500)
#define RFLAGS_IOPL3 UINT64_C(0x3002)

static void make_page_tables(uint8_t *own)
{
    uint64_t *pml4 = (uint64_t *)(own + AT_PML4), *pdpt = (uint64_t *)(own + AT_PDPT);
    uint64_t *ram = (uint64_t *)(own + AT_PD_RAM), *its_own = (uint64_t *)(own + AT_PD_OWN);

    pml4[0] = (VCPU_OWN + AT_PDPT) | PTE_OF_GUEST;
    pdpt[0] = (VCPU_OWN + AT_PD_RAM) | PTE_OF_GUEST;
    pdpt[1] = (VCPU_OWN + AT_PD_OWN) | PTE_OF_GUEST;
    for (uint64_t i = 0; i < 512; i++) {
        ram[i] = i * HUGE_BYTES | PTE_OF_GUEST | PTE_HUGE;
        its_own[i] = (VCPU_OWN + i * HUGE_BYTES) | PTE_OF_GUEST | PTE_HUGE;
    }
}

/* IOPL 3 lets the guest use its port. A KVM without hardware behind it may drop IOPL; then the task's bitmap of ports is
 * looked at, which would otherwise be whatever the RAM holds. */
static void make_task(uint8_t *own)
{
    uint16_t ports_at = TSS_BYTES;

    memset(own + AT_TSS, 0, TSS_BYTES + PORTS_BYTES);
    memcpy(own + AT_TSS + TSS_PORTS_AT, &ports_at, sizeof(ports_at));
}

static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){.limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .dpl = 3, .s = 1,
                                .g = 1};
}

static int set_mode(const struct vcpu *vcpu)
{
    struct kvm_sregs sregs;

    if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
        return -errno;
    sregs.cs = segment(0x33, 11); /* code: executed, readable, accessed */
    sregs.cs.l = 1;
    sregs.ss = sregs.ds = sregs.es = sregs.fs = sregs.gs = segment(0x2b, 3); /* data: writable, accessed */
    sregs.ss.db = 1;
    sregs.tr = (struct kvm_segment){.base = VCPU_OWN + AT_TSS, .limit = TSS_BYTES + PORTS_BYTES - 1, .selector = 0x40,
                                     .type = 11, .present = 1};
    sregs.ldt = (struct kvm_segment){.unusable = 1};
    sregs.gdt = sregs.idt = (struct kvm_dtable){0}; /* an exception is the end: KVM_EXIT_SHUTDOWN */
    sregs.cr0 = CR0_PE_MP_NE_PG;
    sregs.cr3 = VCPU_OWN + AT_PML4;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR;
    sregs.efer = EFER_LME_LMA;
    return ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) < 0 ? -errno : 0;
}

static int set_cpuid(const struct vcpu *vcpu)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + CPUID_ENTRIES * sizeof(cpuid->entries[0]));
    int rc = 0;

    if (cpuid == NULL)
        return -ENOMEM;
    cpuid->nent = CPUID_ENTRIES;
    if (ioctl(vcpu->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0 || ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid) < 0)
        rc = -errno;
    free(cpuid);
    return rc;
}

static int set_memory(const struct vcpu *vcpu, uint32_t slot, uint64_t at, void *memory, uint64_t bytes)
{
    struct kvm_userspace_memory_region region = {.slot = slot, .guest_phys_addr = at, .memory_size = bytes,
                                                 .userspace_addr = (uintptr_t)memory};

    return ioctl(vcpu->vm, KVM_SET_USER_MEMORY_REGION, &region) < 0 ? -errno : 0;
}

int vcpu_open(struct vcpu *vcpu, void *ram, uint64_t ram_bytes, uint8_t *own, uint64_t own_bytes)
{
    int run_bytes, rc;

    if (guest_end - guest_begin > CODE_BYTES_MAX)
        return -E2BIG;
    memcpy(own + AT_CODE, guest_begin, (size_t)(guest_end - guest_begin));
    make_page_tables(own);
    make_task(own);
    vcpu->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    vcpu->vm = vcpu->kvm < 0 ? -1 : ioctl(vcpu->kvm, KVM_CREATE_VM, 0);
    if (vcpu->vm < 0 || ioctl(vcpu->vm, KVM_SET_TSS_ADDR, 0xfffbd000) < 0)
        return -errno;
    if ((rc = set_memory(vcpu, 0, 0, ram, ram_bytes)) < 0 || (rc = set_memory(vcpu, 1, VCPU_OWN, own, own_bytes)) < 0)
        return rc;
    vcpu->fd = ioctl(vcpu->vm, KVM_CREATE_VCPU, 0);
    run_bytes = ioctl(vcpu->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (vcpu->fd < 0 || run_bytes < 0)
        return -errno;
    vcpu->run = mmap(NULL, (size_t)run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
    if (vcpu->run == MAP_FAILED)
        return -errno;
    rc = set_cpuid(vcpu);
    return rc < 0 ? rc : set_mode(vcpu);
}

int vcpu_begin(struct vcpu *vcpu, const uint8_t *program, const struct kvm_regs *arguments)
{
    struct kvm_regs registers = *arguments;

    registers.rip = VCPU_OWN + AT_CODE + (uint64_t)(program - guest_begin);
    registers.rflags = RFLAGS_IOPL3;
    return ioctl(vcpu->fd, KVM_SET_REGS, &registers) < 0 ? -errno : 0;
}

enum vcpu_end vcpu_run(struct vcpu *vcpu, int *other)
{
    if (ioctl(vcpu->fd, KVM_RUN, 0) < 0) {
        *other = -errno;
        return errno == EINTR ? VCPU_EINTR : VCPU_OTHER;
    }
    *other = (int)vcpu->run->exit_reason;
    return vcpu->run->exit_reason == KVM_EXIT_IO ? VCPU_OUT : VCPU_OTHER;
}

int vcpu_registers(struct vcpu *vcpu, struct kvm_regs *registers)
{
    return ioctl(vcpu->fd, KVM_GET_REGS, registers) < 0 ? -errno : 0;
}
