/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The small VMM (vmm.c) as a process of a test: started under the shim, its hand-off taken, its orders given. Each wait
 * has a limit (20 s) after which the test goes on and fails; none is a measure of time.
 */
#ifndef KVM_VM_H
#define KVM_VM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define KVM_PAGE UINT64_C(4096)
#define KVM_FOREVER UINT64_MAX /* turns of `work` */

struct kvm_vm {
    pid_t pid, tid; /* of the process, and of its vCPU's thread */
    int pidfd;
    int handoff; /* the socket; frames go over it */
    int uffd, ram_fd;
    uint64_t address, pages;
    FILE *to, *from;
    uint64_t *ledger; /* guest.S; mapped here too, a word a page */
    char answer[128];
};

/* NULL, or what is absent here. */
const char *kvm_absent(void);
/* In this role of the shim (restore, track, both). It waits to be accepted then. False: the reason is printed. */
bool kvm_start(struct kvm_vm *vm, const char *role, uint64_t pages);
/* Once it has been accepted. */
bool kvm_ready(struct kvm_vm *vm);
void kvm_end(struct kvm_vm *vm);

/* One order, and whether the answer was "ok". */
__attribute__((format(printf, 2, 3))) bool kvm_do(struct kvm_vm *vm, const char *format, ...);
/* Until the vCPU stops; whether it says this. */
__attribute__((format(printf, 2, 3))) bool kvm_stopped(struct kvm_vm *vm, const char *format, ...);
/* The two together, for a program that ends by itself. */
bool kvm_touch(struct kvm_vm *vm, uint64_t page, uint64_t word);
/* Until the vCPU stops; whether by a machine check as the kernel makes them for KVM, and on which page. */
bool kvm_lost(struct kvm_vm *vm, uint64_t *page);
/* The vCPU's thread comes to wait for a page, as the kernel sees it. */
bool kvm_sleeps(const struct kvm_vm *vm);
/* Whole pages of the RAM file that hold something else than the ledger says, read past the guest and its mapping. */
uint64_t kvm_differs(const struct kvm_vm *vm, int ram_fd);
/* `work` that was stopped: its turns, if it has found nothing wrong. 0 otherwise. */
uint64_t kvm_turns(struct kvm_vm *vm);

#endif
