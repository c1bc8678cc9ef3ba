# SPDX-License-Identifier: Apache-2.0
#
# What runs on the vCPU: long mode, CPL 3, no interrupts, no stack. Each program begins at a label with its arguments in
# registers and ends with a byte to PORT, which is an exit of KVM_RUN; its answer stands in registers then. Code, page
# tables and the ledger lie in memory of their own (vcpu.c): what these programs touch of the RAM is what they say.
#
# `vmm.c` copies all from guest_begin to guest_end to where the guest has its code; nothing in here depends on where.

#define PORT 0x50
#define HOLES_OF 100
#define HOLES_FROM 70

    .section .rodata
    .globl guest_begin, guest_touch, guest_fill, guest_check, guest_work, guest_end
guest_begin:

# rdi: an address. Reads the word there into rax.
guest_touch:
    mov     (%rdi), %rax
    out     %al, $PORT

# rdi: a page's address, rsi: the word to be written all over it.
guest_fill:
    mov     %rsi, %rax
    mov     $512, %ecx
    cld
    rep stosq
    out     %al, $PORT

# Is every word of every page what the image has? rdi: the RAM, rsi: its pages (a power of two), rdx: multiplier,
# rcx: step. Word W of page P is (P + 1) * multiplier + W * step; a page with P % 100 from 70 on is all zeros. Pages are
# visited out of order. rax: pages that are wrong, rbx: pages that were looked at.
guest_check:
    mov     %rdx, %r13
    xor     %r12d, %r12d
    xor     %r8d, %r8d
1:  imul    $0x9e3779b1 - 0x100000000, %r8, %r9     # odd, so every page comes once
    mov     %rsi, %rax
    dec     %rax
    and     %rax, %r9
    mov     %r9, %rax
    xor     %edx, %edx
    mov     $HOLES_OF, %ebx
    div     %rbx
    lea     1(%r9), %r10
    imul    %r13, %r10
    mov     %rcx, %r11
    cmp     $HOLES_FROM, %rdx
    jb      2f
    xor     %r10d, %r10d
    xor     %r11d, %r11d
2:  shl     $12, %r9
    add     %rdi, %r9
    mov     $512, %ebx
3:  cmp     %r10, (%r9)
    jne     4f
    add     %r11, %r10
    add     $8, %r9
    dec     %ebx
    jnz     3b
    jmp     5f
4:  inc     %r12
5:  inc     %r8
    cmp     %rsi, %r8
    jb      1b
    mov     %r12, %rax
    mov     %r8, %rbx
    out     %al, $PORT

# Works on pages at random, and holds the RAM to account. The ledger has a word for each page: what is written all over
# it. Each turn takes a page, compares all of it with the ledger, and in three of four cases writes the turn's number
# all over it, and then into the ledger. rdi: the RAM, rsi: its pages (a power of two), r8: the ledger, r9: a seed,
# r10: address of a word that ends it unless it is 0, rdx: how many turns at most, rcx: the number of the first one.
# rax: turns that found another word than they had left there, rbx: turns.
guest_work:
    mov     %rdi, %r13
    mov     %rcx, %r14
    xor     %r12d, %r12d
    xor     %ebx, %ebx
    mov     %rdx, %rbp
    cld
1:  mov     %r9, %rax
    shl     $13, %rax
    xor     %rax, %r9
    mov     %r9, %rax
    shr     $7, %rax
    xor     %rax, %r9
    mov     %r9, %rax
    shl     $17, %rax
    xor     %rax, %r9
    lea     -1(%rsi), %r11
    and     %r9, %r11
    mov     (%r8,%r11,8), %rax      # what was left there
    mov     %r11, %rdi
    shl     $12, %rdi
    add     %r13, %rdi
    mov     $512, %ecx
    repe scasq
    je      2f
    inc     %r12
2:  bt      $50, %r9
    jc      3f
    bt      $51, %r9
    jc      3f
    jmp     4f                      # this turn looks and does not write
3:  mov     %r11, %rdi
    shl     $12, %rdi
    add     %r13, %rdi
    mov     %r14, %rax
    mov     $512, %ecx
    rep stosq
    mov     %r14, (%r8,%r11,8)
4:  inc     %r14
    inc     %rbx
    cmpq    $0, (%r10)
    jne     5f
    cmp     %rbp, %rbx
    jb      1b
5:  mov     %r12, %rax
    out     %al, $PORT
guest_end:
    .section .note.GNU-stack, "", @progbits
