/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that plays a VM on the real kernel: it maps memory, registers it, hands its userfaultfd over, and then does
 * to it what it is told. Each step runs in a thread of its own and answers when it is done, so that any number of them
 * may be asleep in page faults.
 *
 * Every wait has a limit (20 s) after which the test goes on and fails; none is a measure of time.
 */
#ifndef PAGEFERRY_REAL_VM_H
#define PAGEFERRY_REAL_VM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "kernel/kernel_ops.h"
#include "kernel/uffd.h"

#define REAL_PAGE UINT64_C(4096)
#define REAL_HUGE_BYTES (UINT64_C(2) << 20)
#define REAL_HUGE_PAGES (REAL_HUGE_BYTES / REAL_PAGE)

enum real_memory {
    REAL_MEMFD,
    REAL_TMPFS,
    REAL_PRIVATE,
    REAL_MEMORY_COUNT, /* of small pages; there are also huge ones of 2 MiB, which have to be in the pool: */
    REAL_HUGE,
    REAL_HUGE_PRIVATE
};

static inline bool real_is_private(enum real_memory memory)
{
    return memory == REAL_PRIVATE || memory == REAL_HUGE_PRIVATE;
}

static inline bool real_is_huge(enum real_memory memory)
{
    return memory == REAL_HUGE || memory == REAL_HUGE_PRIVATE;
}

enum real_step {
    REAL_READ = 1, /* answers the page's word, or one of the values below */
    REAL_WRITE,    /* fills the page with `argument`: 0, or one of the values below */
    REAL_ADVISE,   /* madvise(pages, argument): 0 or -errno; the others below too */
    REAL_PROTECT,  /* mprotect(pages, argument) */
    REAL_UNMAP,
    REAL_LOCK,
    REAL_FORK,     /* a child that does nothing, waited for */
    REAL_MOVE,     /* mremap of the pages to somewhere else */
    REAL_MAP,      /* maps the pages anew where they were; they are not registered then */
    REAL_OWN       /* the test's own doing: answers what it does */
};

/* Answers of READ and WRITE that are no word: no test writes these. */
#define REAL_SIGBUS INT64_C(-7)
#define REAL_SIGSEGV INT64_C(-11)
#define REAL_TORN INT64_C(-1000) /* the page's words differ */
#define REAL_NO_ANSWER INT64_C(-1001)

/* What a test does inside the VM: REAL_OWN, with its argument. */
typedef int64_t real_own(uint8_t *start, uint64_t pages, int64_t argument);

struct real_options {
    enum real_memory memory;
    uint64_t pages;
    uint64_t features;  /* of the userfaultfd */
    uint64_t modes;     /* of REGISTER; 0: MISSING, and MINOR on shared memory; REAL_UNREGISTERED: not at all */
    int backing_fd;     /* TMPFS, POOL: this file, long enough, closed by real_end; 0: a new one in /dev/shm */
    real_own *own;
};
#define REAL_UNREGISTERED (UINT64_C(1) << 63)

struct real_vm {
    pid_t pid;
    int control;
    struct uffd uffd;
    uint64_t address;
    uint64_t pages;
    uint64_t ticket; /* of the newest step */
};

/* In the VM: what READ answers. */
int64_t real_guest_read(const uint8_t *at);
/* False: it could not be had; the reason is printed. */
bool real_start(struct real_vm *vm, const struct real_options *options);
void real_end(struct real_vm *vm);
/* SIGKILL, and gone when this returns. The fds stay open. */
void real_kill(struct real_vm *vm);

/* Returns a ticket, which real_ended gives back. */
uint64_t real_begin(struct real_vm *vm, enum real_step step, uint64_t page, uint64_t count, int64_t argument);
/* The answer of some step that has ended, or REAL_NO_ANSWER. */
int64_t real_answer(struct real_vm *vm);
/* One step, and its answer. */
int64_t real_do(struct real_vm *vm, enum real_step step, uint64_t page, uint64_t count, int64_t argument);
/* Without waiting: whether some step has ended, and which. */
bool real_ended(struct real_vm *vm, uint64_t *ticket, int64_t *answer);
/* Threads that sleep in page faults just now, by the kernel's own count. */
uint64_t real_asleep(const struct real_vm *vm);
/* No step ends, though a moment is given to it. */
bool real_sleeps(struct real_vm *vm);

/* For programs that include check.h. */
#define CHECK_OUTCOME(outcome, want_result, want_pages) \
    do { \
        struct kernel_outcome outcome_ = (outcome); \
        CHECK_EQ(outcome_.result, want_result); \
        CHECK_EQ(outcome_.done_bytes, (want_pages) * REAL_PAGE); \
    } while (0)

struct kernel_span real_span(const struct real_vm *vm, uint64_t page, uint64_t count);
/* The calls of uffd_kernel_ops on pages, those that take bytes with `word` all over them. */
typedef struct kernel_outcome real_op(void *kernel, const struct kernel_span *span);
struct kernel_outcome real_call(real_op *op, struct real_vm *vm, uint64_t page, uint64_t count);
struct kernel_outcome real_copy(struct real_vm *vm, uint64_t page, uint64_t count, uint64_t word);
struct kernel_outcome real_populate(struct real_vm *vm, uint64_t page, uint64_t count, uint64_t word);
/* Waits until an event can be read, and reads it: false when none came. */
bool real_event(struct real_vm *vm, struct kernel_event *event);
/* The same without reading. */
bool real_event_waits(struct real_vm *vm);
/* A page fault on this page, and nothing else, is read. */
bool real_faults(struct real_vm *vm, uint64_t page, uint32_t flags);

/* Every word of `pages` pages is set to `word`. */
void real_fill(void *bytes, uint64_t pages, uint64_t word);
/* A tmpfs of its own that nobody mounts anywhere: a new file on it, or -errno. `option` may be NULL ("huge"). */
int real_tmpfs_file(const char *size, const char *option, const char *value);

/* The same of a hugetlbfs that may take `size` of the pool of 2 MiB. */
int real_hugetlbfs_file(const char *size);

/* From now on, and for ever in this process, ioctl(fd, request) fails with `error`: a kernel that lacks it, or one
 * whose memory is broken. */
bool real_deny_ioctl(unsigned request, int error);
/* The same of madvise(..., advice). */
bool real_deny_advice(int advice, int error);
/* Runs `check` in a process of its own; it returns 0 when all is well. */
bool real_apart(int (*check)(void));

#endif
