/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One real vCPU: a KVM guest in long mode at CPL 3 with IOPL 3, which runs natively here also where KVM itself is nested
 * (at CPL 0 each instruction would be emulated, and page faults are taken by an emulator). No firmware, no devices,
 * no interrupts: it runs a program of guest.S until that writes to its port.
 *
 * Guest-physical memory, which the guest sees as it is:
 *   0          the RAM, which is whoever's maps it, and is never touched here
 *   VCPU_OWN   page tables, code, and the ledger: memory that is always there
 */
#ifndef VCPU_H
#define VCPU_H

#include <stdint.h>
#include <linux/kvm.h>

#define VCPU_OWN UINT64_C(0x40000000)
#define VCPU_LEDGER (VCPU_OWN + UINT64_C(0x10000))
#define VCPU_STOP (VCPU_OWN + UINT64_C(0xf000)) /* a word */

extern const uint8_t guest_begin[], guest_touch[], guest_fill[], guest_check[], guest_work[], guest_end[];

struct vcpu {
    int kvm, vm, fd;
    struct kvm_run *run;
};

enum vcpu_end {
    VCPU_OUT = 1, /* the program has ended */
    VCPU_EINTR,   /* a signal has come */
    VCPU_OTHER    /* run->exit_reason, or an errno below zero: the guest is broken */
};

/* `own`: VCPU_LEDGER - VCPU_OWN bytes and then the ledger. 0 or -errno. */
int vcpu_open(struct vcpu *vcpu, void *ram, uint64_t ram_bytes, uint8_t *own, uint64_t own_bytes);
/* Begins a program anew: `arguments` has its registers, all others are 0. 0 or -errno. */
int vcpu_begin(struct vcpu *vcpu, const uint8_t *program, const struct kvm_regs *arguments);
/* KVM_RUN once. `other` says more of VCPU_OTHER. */
enum vcpu_end vcpu_run(struct vcpu *vcpu, int *other);
int vcpu_registers(struct vcpu *vcpu, struct kvm_regs *registers);

#endif
