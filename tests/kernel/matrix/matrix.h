/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel matrix: what this kernel answers, by kind of memory, to each thing that our rules rest on. A row is one
 * question, with the answer that is expected for each kind; a cell is a row on one kind, and runs in a process of its
 * own on memory of its own. Nothing of our library is used but the constants: the kernel is asked directly.
 *
 * A row does things to its `bed` and notes what it sees, in words, with say(). The words are compared with the row's.
 */
#ifndef MATRIX_H
#define MATRIX_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kernel/uapi.h"

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR UFFDIO_REGISTER_MODE_MINOR
#define WP UFFDIO_REGISTER_MODE_WP
#define SYNC (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)
#define ASYNC (SYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

#define ROWS(name, title) const struct rows name = {title, name##_table, sizeof(name##_table) / sizeof(name##_table[0])}

enum kind { ANON, MEMFD, TMPFS, MEMFD_PRIVATE, HUGE_SHARED, HUGE_ANON, HUGE_PRIVATE, KIND_COUNT };

#define BED_PAGES 4 /* of what the kernel maps at once: 4 KiB, or 2 MiB */
#define ANSWER_BYTES 128

/* What pages hold, to be told apart: of the file, of a copy that was put there, of a write through the mapping. */
enum { ZEROS = 0, DATA = 0xD1, COPIED = 0xC0, WRITTEN = 0xA7 };

struct bed {
    enum kind kind;
    size_t page;    /* bytes */
    size_t bytes;   /* of the area */
    int fd;         /* the file, or -1 */
    uint8_t *area;  /* what is looked at; free address space of the same size lies behind it */
    uint8_t *alias; /* another mapping of the file, shared; NULL without a file */
    int uffd;       /* -1: none yet */
    char answer[ANSWER_BYTES];
};

/* The words for each kind ("this or that": one of them). A kind that has none of its own has its group's, and then
 * those of all. */
struct expected {
    const char *anon, *shmem /* memfd and tmpfs */, *memfd_private, *huge_shared, *huge_anon, *huge_private;
    const char *private_4k, *huge; /* groups: anon and memfd_private; all three of a pool */
    const char *all;
};

struct row {
    const char *name; /* its first letter and "-": the section of the kernel facts */
    const char *asks; /* what is done, as a line of a table */
    void (*run)(struct bed *bed);
    struct expected expected;
    const char *rule;     /* of ours that rests on it; NULL: none, it is known for its own sake */
    const char *selftest; /* the kernel's own test of the same; NULL: it has none */
    bool once;            /* it has nothing to do with a kind of memory: run on the first alone */
};

struct rows {
    const char *title;
    const struct row *rows;
    size_t count;
};

extern const struct rows handshake_rows, register_rows, fault_rows, fill_rows, continue_rows, wake_rows, zap_rows;
extern const struct rows huge_rows, poison_rows, poison_ends_rows, event_rows, fork_rows, protect_rows, dirty_rows;

/* ------------------------------------------------------------------------------------------------- the bed (bed.c) */

bool bed_open(struct bed *bed, enum kind kind);
bool has_file(const struct bed *bed);
bool is_huge(const struct bed *bed);
bool is_shared(const struct bed *bed);
uint8_t *at(const struct bed *bed, size_t page);

__attribute__((format(printf, 2, 3))) void say(struct bed *bed, const char *format, ...);
/* "ok", or an errno's name. */
const char *word(int rc);
/* "zeros", "data", "copy", "write", or "other". */
const char *holds(uint8_t byte);

/* A page of the file is filled, through another mapping; of memory without a file, through its own. */
void put_data(struct bed *bed, size_t page);
/* What the file has there; ZEROS where it has a hole. */
uint8_t file_has(const struct bed *bed, size_t page);

/* A userfaultfd with these features, and the area registered. False: it was refused, which has been said. */
bool enable(struct bed *bed, uint64_t features);
bool start(struct bed *bed, uint64_t features, uint64_t modes);
/* For whatever faults it can have: MISSING, and with a file MINOR. */
uint64_t its_modes(const struct bed *bed);
/* 0 or -errno, `ioctls` may be NULL. */
int register_range(int uffd, const void *from, size_t bytes, uint64_t modes, uint64_t *ioctls);
int unregister(const struct bed *bed);

/* One call each: 0 or -errno. `done`, which may be NULL: bytes, or -errno, as the kernel writes it. */
int fill_copy(const struct bed *bed, int uffd, size_t page, uint64_t mode, int64_t *done);
int fill_zero(const struct bed *bed, size_t page, int64_t *done);
int fill_continue(const struct bed *bed, size_t page, size_t count, uint64_t mode, int64_t *done);
int poison(const struct bed *bed, size_t page);
int protect(const struct bed *bed, size_t page, bool on);
int wake(const struct bed *bed, size_t page);
int map_again(struct bed *bed);         /* the same memory, mapped anew in its place */
int move_behind(const struct bed *bed); /* mremap to the free space behind it */

/* ---------------------------------------------------------------------------- what a thread does meanwhile (act.c) */

enum act {
    ACT_READ, ACT_WRITE, /* of a page's first byte */
    ACT_SEND,            /* write(2) of it into a pipe: the kernel reads it */
    ACT_DONTNEED, ACT_REMOVE, ACT_PUNCH, ACT_UNMAP,
    ACT_MOVE,            /* mremap of all of it to behind itself */
    ACT_FORK,            /* and the child reads the page, */
    ACT_FORK_MARKED      /* or looks whether it is write-protected there */
};

struct actor {
    struct bed *bed;
    enum act act;
    size_t page;
    pthread_t thread;
    int ended_fd; /* readable once it has ended */
    pid_t tid;
    int signal, code, lsb; /* 0; or the signal it got, at: */
    void *where;
    int value; /* the byte that was read, or 0 or -errno of a call */
};

/* Begins; the name of the event that it waits in, "none" if it has ended without one, "HUNG" if neither comes. */
const char *meets(struct bed *bed, struct actor *actor, enum act act, size_t page);
void begin(struct bed *bed, struct actor *actor, enum act act, size_t page);
/* The next event, read from this fd; the same names. `message` may be NULL. */
const char *next_event(const struct actor *actor, int uffd, struct uffd_msg *message);
/* It ends: "zeros", "data" ..., "SIGBUS", "ok", or an errno's name. "HUNG": it does not. */
const char *ends(struct actor *actor);
/* Though a moment is given to it, it sleeps in a fault, or until an event is read. */
bool still_waits(const struct actor *actor);
/* Without faults to be expected: reads a page, and what came of it. */
const char *reads(struct bed *bed, size_t page);

/* Bits PAGE_IS_* of the page, as PAGEMAP_SCAN of this process has them; -errno. `flags`: PM_SCAN_*. */
int scan_page(const struct bed *bed, size_t page, uint64_t flags);

#endif
