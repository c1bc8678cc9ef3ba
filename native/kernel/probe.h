/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this kernel, this user and this container can do for a VM's memory, found by trying it on scratch pages of
 * every kind: never from a version number. One fact a line, with what to do about it.
 *
 * What a kernel lacks and says so is LESS; a call that should work and answers something else is FAILED: the two are
 * never mixed up. docs/operations.md lists every fact with its verdicts.
 */
#ifndef PAGEFERRY_PROBE_H
#define PAGEFERRY_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "create.h"

#define PROBE_TEXT_BYTES 256

#define PROBE_FACTS(X) \
    X(USERFAULTFD, "userfaultfd", "a VMM run by this user can make a userfaultfd") \
    X(KERNEL_FAULTS, "kernel_faults", "it reports the faults that the kernel takes for a VMM: device models, KVM") \
    X(HANDSHAKE, "handshake", "the kernel says which features it has, and enables those and no others") \
    X(SHARED, "shared_memory", "VMs on a memfd: pages missed, filled, mapped, zapped") \
    X(TMPFS, "tmpfs_memory", "VMs on a file in /dev/shm: the same") \
    X(PRIVATE, "private_memory", "VMs on private anonymous memory: the same, without minor faults") \
    X(HUGE_SHARED, "huge_shared_memory", "VMs on 2 MiB pages of a pool, shared") \
    X(HUGE_PRIVATE, "huge_private_memory", "VMs on 2 MiB pages of a pool, private") \
    X(POISON, "poison", "a page that is lost raises SIGBUS") \
    X(DIRTY_TRACKING, "dirty_tracking", "writes are seen from outside: a running VM can be moved away") \
    X(PAGEMAP_SCAN, "pagemap_scan", "mappings are looked at by PAGEMAP_SCAN") \
    X(THP_SHARED, "thp_shared", "transparent huge pages of shared memory: only where asked for") \
    X(THP_PRIVATE, "thp_private", "transparent huge pages of private memory, once it is all here") \
    X(SWAP, "swap", "memory that has arrived stays in memory") \
    X(HEADROOM, "headroom", "memory that this process may still fill: its cgroup's, and the machine's") \
    X(LOCKED, "locked_memory", "memory that is locked can be zapped too") \
    X(USABLE, "usable", "some VM of this user can be served here")

#define PROBE_NAME(name, word, help) PROBE_##name,
enum probe_name { PROBE_FACTS(PROBE_NAME) PROBE_FACT_COUNT };
#undef PROBE_NAME

enum probe_verdict {
    PROBE_GOOD = 0,
    PROBE_LESS,    /* goes without it: slower, or a case that cannot be served; the text says which */
    PROBE_BAD,     /* no VM can be served like that */
    PROBE_UNTRIED, /* a fact before it is bad, or it was to be spared */
    PROBE_FAILED   /* a call that should work answered something unexpected */
};

struct probe_fact {
    enum probe_verdict verdict;
    char text[PROBE_TEXT_BYTES]; /* what was found */
    const char *remedy;          /* what to do; NULL: nothing */
};

struct probe {
    struct probe_fact facts[PROBE_FACT_COUNT];
    enum create_way way;
    uint64_t features;      /* UFFD_FEATURE_*: all that this kernel has */
    uint64_t shared_calls;  /* bits _UFFDIO_*: what REGISTER offers on each kind of memory */
    uint64_t private_calls;
};

/*
 * Some milliseconds, below one for each kind of memory. `device_fd` as in create.h. `spare_pools`: takes no page from
 * a pool of huge pages, not even for a moment: for a start, when a VMM may be counting on the last one.
 */
void probe_run(int device_fd, bool spare_pools, struct probe *probe);
/* What its last fact says, good or less. */
bool probe_usable(const struct probe *probe);
const char *probe_word(enum probe_name name);
const char *probe_help(enum probe_name name);

#endif
