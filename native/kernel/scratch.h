/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A piece of memory of one kind, our own, and what can be asked of the kernel about it: what a trial is made on. Each
 * call is the system call of its name and nothing more; it returns 0 or -errno, as it is (trial.h says why).
 */
#ifndef PAGEFERRY_SCRATCH_H
#define PAGEFERRY_SCRATCH_H

#include <stdbool.h>
#include <stdint.h>

#define SCRATCH_PAGE_BYTES UINT64_C(4096)
#define SCRATCH_HUGE_BYTES (UINT64_C(2) << 20)

struct scratch_kind {
    uint64_t unit_bytes; /* a page of it; one of 2 MiB is taken from the pool */
    uint64_t features;   /* of the userfaultfd */
    bool shared;
    bool in_tmpfs;       /* a file in /dev/shm, in place of a memfd */
};

/* Calls speak of its first unit. Small pages have a second one behind it. */
struct scratch {
    const struct scratch_kind *kind;
    int uffd;
    int file_fd;
    uint8_t *start;
    uint8_t *alias; /* of shared memory: mapped a second time */
    uint64_t length_bytes;
};

void scratch_init(struct scratch *scratch, const struct scratch_kind *kind);
/* Also of one that is there in part. The userfaultfd is closed too. */
void scratch_close(struct scratch *scratch);
bool scratch_is_huge(const struct scratch *scratch);

int scratch_map(struct scratch *scratch);
int scratch_uffd(struct scratch *scratch, int device_fd);
int scratch_register(const struct scratch *scratch, uint64_t mode, uint64_t *calls);
/* COPY: the first byte is 'c'. */
int scratch_copy(const struct scratch *scratch);
int scratch_continue(const struct scratch *scratch);
/* The same 'c' into the file, through the alias, then CONTINUE. */
int scratch_fill_by_alias(const struct scratch *scratch);
/* ZEROPAGE on the second page. */
int scratch_zeropage(const struct scratch *scratch);
int scratch_poison(const struct scratch *scratch);
int scratch_zap(const struct scratch *scratch);
/* Ends the registration: who waits there reads on, as if nothing had ever been registered. */
void scratch_let_go(const struct scratch *scratch);

#endif
