/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a program as on another kernel: system calls that a seccomp filter answers in the kernel's place.
 *
 *     filtered CALL:COMMAND:ERROR... -- PROGRAM ARGUMENT...
 *
 * ioctl (16) with the command UFFDIO_POISON answers EINVAL, as before Linux 6.6: filtered 16:0xc020aa08:22 -- doctor
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define RULE_STEPS 5
#define RULES_MAX 16

int main(int argc, char **argv)
{
    struct sock_filter filter[RULES_MAX * RULE_STEPS + 1];
    struct sock_fprog program = {.filter = filter};
    unsigned call, command, error;
    int i;

    for (i = 1; i < argc && i <= RULES_MAX && sscanf(argv[i], "%u:%x:%u", &call, &command, &error) == 3; i++) {
        const struct sock_filter rule[RULE_STEPS] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args) + 8),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, command, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        };
        memcpy(&filter[program.len], rule, sizeof(rule));
        program.len += RULE_STEPS;
    }
    filter[program.len++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    if (i + 1 >= argc || strcmp(argv[i], "--") != 0)
        return 64;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0)
        execvp(argv[i + 1], &argv[i + 1]);
    fprintf(stderr, "filtered: %s: %s\n", argv[i + 1], strerror(errno));
    return 126;
}
