/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What this kernel, this user and this container can do for a VM's memory, found by trying it on a scratch page of
 * every kind: never from a version number. One fact a line, with what to do about it.
 */
#ifndef PAGEFERRY_PROBE_H
#define PAGEFERRY_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "create.h"

#define PROBE_FACTS(X) \
    X(USERFAULTFD, "userfaultfd", "a userfaultfd can be made, and it reports kernel-mode faults too") \
    X(SHARED, "shared_memory", "memfd and tmpfs: missing and minor faults are reported, pages filled and mapped") \
    X(PRIVATE, "private_memory", "private anonymous memory: missing faults are reported, pages filled") \
    X(POISON, "poison", "a page that is lost can be made to raise SIGBUS") \
    X(PAGEMAP_SCAN, "pagemap_scan", "mappings are looked at by PAGEMAP_SCAN") \
    X(HUGE_PAGES, "huge_pages", "transparent huge pages are not forced on for shared memory")

#define PROBE_NAME(name, word, help) PROBE_##name,
enum probe_name { PROBE_FACTS(PROBE_NAME) PROBE_FACT_COUNT };
#undef PROBE_NAME

enum probe_verdict {
    PROBE_GOOD = 0,
    PROBE_LESS,     /* goes without it: slower, or a case that cannot be served; the text says which */
    PROBE_BAD,      /* no VM can be served like that */
    PROBE_UNTRIED   /* a fact before it is bad */
};

struct probe_fact {
    enum probe_verdict verdict;
    char text[128];     /* what was found */
    const char *remedy; /* what to do; NULL: nothing */
};

struct probe {
    struct probe_fact facts[PROBE_FACT_COUNT];
    enum create_way way;
    uint64_t features;      /* UFFD_FEATURE_*: all that this kernel has */
    uint64_t shared_calls;  /* bits _UFFDIO_*: what REGISTER offers on each kind of memory */
    uint64_t private_calls;
};

/* Takes well under a millisecond. `device_fd` as in create.h. */
void probe_run(int device_fd, struct probe *probe);
/* No fact is bad. */
bool probe_usable(const struct probe *probe);
const char *probe_word(enum probe_name name);
const char *probe_help(enum probe_name name);

#endif
