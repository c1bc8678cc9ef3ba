/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pageferry_vm_collapse: once all of a VM's memory is its own, its full pieces of 2 MiB become huge pages again, from
 * outside. Runs on the caller's thread beside the loop, of which it reads what never changes, the table's words, and
 * one flag. docs/huge-pages.md says what has to be true of the VMM.
 */
#include <errno.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>

#include "../kernel/collapse.h"
#include "../kernel/mapping.h"
#include "handle.h"

#define PIECE_PAGES (COLLAPSE_BYTES / PAGE_BYTES)
/* How long a VMM that was told to let huge pages in again is waited for. */
#define LET_IN_NS UINT64_C(2000000000)
#define LOOK_NS 10000000L
/* So many pieces in a row for which there was no memory: the next ones would fare no better. */
#define NO_MEMORY_IN_A_ROW 16

struct pass {
    struct loop *loop;
    struct pageferry_collapse *out;
    struct kernel_span spans[REGIONS_MAX]; /* each region cut to whole pieces; empty: it has none */
    uint32_t span_count;
    uint32_t askew;     /* regions whose addresses and file offsets are not a multiple of 2 MiB apart */
    uint64_t results[COLLAPSE_GONE + 1];
    uint32_t without_memory; /* in a row */
};

__attribute__((format(printf, 3, 4))) static int refuse(struct pass *pass, int reason, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(pass->out->error, sizeof(pass->out->error), format, arguments);
    va_end(arguments);
    return -reason;
}

/* ---------------------------------------------------------------------------------------------------- which pieces */

/* A file's huge page can only be mapped where address and offset agree. */
static void cut(struct pass *pass)
{
    const struct regions *regions = &pass->loop->regions;
    bool shared = pass->loop->uffd.backing_fd >= 0;

    pass->span_count = regions->count;
    for (uint32_t i = 0; i < regions->count; i++) {
        struct kernel_span *span = &pass->spans[i];
        const struct region *region = &regions->by_page[i];
        uint64_t start = (region->address + COLLAPSE_BYTES - 1) / COLLAPSE_BYTES * COLLAPSE_BYTES;
        uint64_t end = (region->address + region->page_count * PAGE_BYTES) / COLLAPSE_BYTES * COLLAPSE_BYTES;
        bool askew = shared && (region->address - region->first_page * PAGE_BYTES) % COLLAPSE_BYTES != 0;
        *span = (struct kernel_span){.address = start};
        if (start < end && askew) {
            pass->askew++;
        } else if (start < end) {
            span->length_bytes = end - start;
            span->file_offset = region->first_page * PAGE_BYTES + (start - region->address);
            pass->out->extents += span->length_bytes / COLLAPSE_BYTES;
        }
    }
}

/* Every page of it is the guest's, and nothing has been given back since. On private memory only the process's own page
 * table knows that. */
static bool is_full(const struct pass *pass, uint64_t address, uint64_t offset_bytes)
{
    const struct loop *loop = pass->loop;
    uint64_t first = offset_bytes / PAGE_BYTES, present = 0;

    for (uint64_t i = 0; i < PIECE_PAGES; i++)
        if (page_state(table_word(&loop->table, first + i)) == PAGE_POISONED)
            return false;
    if (loop->uffd.backing_fd >= 0)
        return collapse_is_whole(loop->uffd.backing_fd, offset_bytes);
    return mapping_present(loop->vmm_pid, address, COLLAPSE_BYTES, &present) == 0 && present == PIECE_PAGES;
}

/* ----------------------------------------------------------------------------------------------------------- looks */

static int look(struct pass *pass, struct collapse_facts *facts)
{
    int rc = collapse_look(pass->loop->vmm_pid, pass->spans, pass->span_count, facts);

    if (rc == -ESRCH)
        rc = refuse(pass, PF_REASON_NO_VMM, "the VMM has exited");
    else if (rc == -EACCES || rc == -EPERM)
        rc = refuse(pass, PF_REASON_NOT_ALLOWED, "process %d cannot be looked at: run as its user, or with "
                    "CAP_SYS_PTRACE", pass->loop->vmm_pid);
    else if (rc < 0)
        rc = refuse(pass, PF_REASON_BUG, "cannot look at process %d: %s", pass->loop->vmm_pid, strerror(-rc));
    return rc;
}

/* A VMM that speaks frames has been told with COMPLETE, and answers to nobody. */
static int let_in(struct pass *pass, struct collapse_facts *facts)
{
    struct timespec moment = {.tv_nsec = LOOK_NS};
    uint64_t until_ns = loop_clock_ns() + LET_IN_NS;
    bool told = pass->loop->vmm.frames && pass->loop->vmm.huge_pages;
    int rc = look(pass, facts);

    while (rc == 0 && facts->barred && told && loop_clock_ns() < until_ns) {
        nanosleep(&moment, NULL);
        rc = look(pass, facts);
    }
    return rc;
}

static bool lies_in_a_pool(const struct loop *loop)
{
    struct statfs system;

    return loop->uffd.backing_fd >= 0 && fstatfs(loop->uffd.backing_fd, &system) == 0 &&
           (unsigned long)system.f_type == HUGETLBFS_MAGIC;
}

/* Before anything is tried: what is known to be of no use. */
static int check(struct pass *pass)
{
    struct loop *loop = pass->loop;
    struct collapse_facts facts = {0};
    int rc;

    if (!atomic_load(&loop->may_collapse))
        return refuse(pass, PF_REASON_WRONG_PHASE, "pages of this VM are missing, or a page server tracks what it "
                      "writes: huge pages have to wait");
    if (loop->vmm_pid <= 0 || loop->vmm.pidfd < 0)
        return refuse(pass, PF_REASON_NOT_ALLOWED, "it is not known which process the VMM is");
    rc = let_in(pass, &facts);
    if (rc < 0)
        return rc;
    pass->out->huge_before = pass->out->huge = facts.huge_bytes / COLLAPSE_BYTES;
    if (facts.pool || lies_in_a_pool(loop))
        rc = refuse(pass, PF_REASON_UNSUPPORTED, "the memory lies on huge pages of a pool: it has been huge all the "
                    "time");
    else if (pass->out->extents == 0 && pass->askew > 0)
        rc = refuse(pass, PF_REASON_UNSUPPORTED, "the VMM has mapped its RAM file askew: address and offset must be a "
                    "multiple of 2 MiB apart (QEMU: memory-backend-file,align=2M)");
    else if (facts.barred)
        rc = refuse(pass, PF_REASON_UNSUPPORTED, "the VMM keeps MADV_NOHUGEPAGE on its memory: start it under the shim, "
                    "or let it ask for MADV_HUGEPAGE after COMPLETE");
    return rc;
}

/* ------------------------------------------------------------------------------------------------------------ pass */

static bool cancelled(const struct pass *pass)
{
    const struct pageferry_progress *progress = pass->out->progress;

    return progress != NULL && __atomic_load_n(&progress->cancel, __ATOMIC_RELAXED) != 0;
}

static void show(struct pass *pass, uint64_t pieces)
{
    struct pageferry_progress *progress = pass->out->progress;

    if (progress != NULL) {
        __atomic_store_n(&progress->total_bytes, pass->out->extents * COLLAPSE_BYTES, __ATOMIC_RELAXED);
        __atomic_store_n(&progress->done_bytes, pieces * COLLAPSE_BYTES, __ATOMIC_RELAXED);
    }
}

/* 0: go on; or what ends the pass. */
static int one(struct pass *pass, uint64_t address, uint64_t offset_bytes)
{
    enum collapse_result result;
    int rc = 0;

    if (cancelled(pass))
        return refuse(pass, PF_REASON_CANCELLED, "it was cancelled");
    if (!is_full(pass, address, offset_bytes))
        return 0;
    pass->out->full++;
    if (pass->without_memory >= NO_MEMORY_IN_A_ROW) {
        pass->results[COLLAPSE_NO_MEMORY]++;
        return 0;
    }
    result = collapse_piece(pass->loop->vmm.pidfd, address);
    pass->results[result]++;
    pass->without_memory = result == COLLAPSE_NO_MEMORY ? pass->without_memory + 1 : 0;
    if (result == COLLAPSE_GONE)
        rc = refuse(pass, PF_REASON_NO_VMM, "the VMM has exited");
    else if (result == COLLAPSE_NOT_ALLOWED)
        rc = refuse(pass, PF_REASON_NOT_ALLOWED,
                    "another process's pages are made huge with CAP_SYS_NICE, and as its user or with CAP_SYS_PTRACE");
    return rc;
}

static int all_pieces(struct pass *pass)
{
    uint64_t pieces = 0;
    int rc = 0;

    show(pass, 0);
    for (uint32_t i = 0; i < pass->span_count && rc == 0; i++) {
        const struct kernel_span *span = &pass->spans[i];
        for (uint64_t done = 0; done < span->length_bytes && rc == 0; done += COLLAPSE_BYTES) {
            rc = one(pass, span->address + done, span->file_offset + done);
            show(pass, ++pieces);
        }
    }
    return rc;
}

/* Why fewer became huge than are full; an error where none did and none ever will. */
static int judge(struct pass *pass)
{
    const uint64_t *results = pass->results;
    unsigned long long refused = results[COLLAPSE_REFUSED], memory = results[COLLAPSE_NO_MEMORY];
    enum collapse_bar bar = refused > 0 ? collapse_bar(pass->loop->vmm_pid) : COLLAPSE_BAR_NONE;
    int reason = results[COLLAPSE_DONE] == 0 && refused > 0 ? PF_REASON_UNSUPPORTED : 0;

    if (bar == COLLAPSE_BAR_PROCESS)
        refuse(pass, 0, "%llu pieces: huge pages are switched off for the VMM (PR_SET_THP_DISABLE)", refused);
    else if (bar == COLLAPSE_BAR_SYSTEM)
        refuse(pass, 0, "%llu pieces: set /sys/kernel/mm/transparent_hugepage/shmem_enabled to another value than deny",
               refused);
    else if (refused > 0)
        refuse(pass, 0, "the kernel refuses %llu of %llu pieces: MADV_COLLAPSE needs Linux 6.1",
               refused, (unsigned long long)pass->out->full);
    else if (memory > 0)
        refuse(pass, 0, "no memory in pieces of 2 MiB for %llu of %llu: free some, or raise the VMM's memory limit",
               memory, (unsigned long long)pass->out->full);
    else if (results[COLLAPSE_BUSY] > 0)
        refuse(pass, 0, "%llu of %llu pieces were in use: try again", (unsigned long long)results[COLLAPSE_BUSY],
               (unsigned long long)pass->out->full);
    return -reason;
}

int pageferry_vm_collapse(struct pageferry_vm *vm, struct pageferry_collapse *collapse)
{
    struct pass pass = {.loop = &vm->loop, .out = collapse};
    struct collapse_facts after;
    int rc;

    collapse->extents = collapse->full = collapse->huge_before = collapse->huge = 0;
    collapse->error[0] = '\0';
    cut(&pass);
    rc = check(&pass);
    if (rc == 0)
        rc = all_pieces(&pass);
    if (rc == 0)
        rc = judge(&pass);
    if ((rc == 0 || rc == -PF_REASON_CANCELLED) &&
        collapse_look(vm->loop.vmm_pid, pass.spans, pass.span_count, &after) == 0)
        collapse->huge = after.huge_bytes / COLLAPSE_BYTES;
    return rc;
}
