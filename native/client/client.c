/* SPDX-License-Identifier: Apache-2.0 */
/* pageferry.h's client half: checks what was handed over, opens loops, and passes orders, events and counts. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../kernel/mapping.h"
#include "../pageferry.h"
#include "handle.h"

_Static_assert(PAGE_STATE_COUNT == PAGEFERRY_PAGE_STATES, "pageferry.h counts the states of page.h");

#define UNIT_2M_BYTES (UINT64_C(1) << 21)
#define UNIT_1G_BYTES (UINT64_C(1) << 30)

struct pageferry_client {
    struct bulk *bulk;
    uint32_t bulk_slots;
};

__attribute__((format(printf, 3, 4))) static int refuse(char *error, int reason, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(error, PAGEFERRY_TEXT_BYTES, format, arguments);
    va_end(arguments);
    return -reason;
}

static int reason_of(int rc)
{
    int reason = PF_REASON_BUG;

    if (rc == -ENOMEM || rc == -ENOSPC)
        reason = PF_REASON_NO_MEMORY;
    else if (rc == -EINVAL)
        reason = PF_REASON_BAD_REQUEST;
    else if (rc == -EMFILE || rc == -ENFILE || rc == -EAGAIN) /* fds, threads, VMs of one client */
        reason = PF_REASON_BUSY;
    return reason;
}

/* -------------------------------------------------------------------------------------------- the hand-off's checks */

/* epoll would call one without its handshake ready for ever. */
static bool is_initialised(int uffd)
{
    struct pollfd ready = {.fd = uffd, .events = POLLIN};

    return poll(&ready, 1, 0) >= 0 && (ready.revents & (POLLERR | POLLNVAL)) == 0;
}

/* What is mapped already may still be written, but nothing through the descriptor: no page, and no hole in its place. */
static bool is_sealed(int file)
{
    int seals = fcntl(file, F_GET_SEALS); /* -1: a file that knows of none */

    return seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
}

static int check_fds(struct pageferry_vm_options *options)
{
    bool shared = options->memory == PAGEFERRY_MEMORY_SHARED;
    enum fd_kind kind;
    int flags, rc = 0;

    if (!shared && options->memory != PAGEFERRY_MEMORY_PRIVATE)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST, "memory kind %u is unknown", options->memory);
    else if (mapping_fd_kind(options->uffd, &kind) < 0 || kind != FD_KIND_UFFD)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the first file descriptor that was handed over is no userfaultfd: the VMM must send its uffd first");
    else if ((flags = fcntl(options->uffd, F_GETFL)) < 0 || (flags & O_NONBLOCK) == 0)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the userfaultfd blocks: the VMM must open it with O_NONBLOCK, or its faults hold up everything else");
    else if (!is_initialised(options->uffd))
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the userfaultfd that was handed over has had no UFFDIO_API yet");
    else if (!shared && options->backing_fd >= 0)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST, "private memory has no RAM file, but one was handed over");
    else if (shared && (mapping_fd_kind(options->backing_fd, &kind) < 0 || kind == FD_KIND_OTHER))
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the second file descriptor that was handed over is no memfd or tmpfs file open for writing: "
                    "put the VM's RAM on one (share=on)");
    else if (shared && is_sealed(options->backing_fd))
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the RAM file is sealed against writing: the VMM must not set F_SEAL_WRITE or F_SEAL_FUTURE_WRITE on it");
    return rc;
}

/* What the kernel maps at once. A RAM file knows best; of private memory the hand-off says it, and check_region looks. */
static int check_unit(struct pageferry_vm_options *options, struct file_pages *pages)
{
    bool shared = options->memory == PAGEFERRY_MEMORY_SHARED;
    unsigned long long said_bytes = options->unit_bytes;
    int rc = 0;

    *pages = (struct file_pages){.unit_bytes = said_bytes != 0 ? said_bytes : PAGE_BYTES};
    if (shared && mapping_file_pages(options->backing_fd, pages) < 0)
        rc = refuse(options->error, PF_REASON_BUG, "cannot look at the RAM file: %s", strerror(errno));
    else if (shared && said_bytes != 0 && said_bytes != pages->unit_bytes)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the hand-off says pages of %llu bytes, but the RAM file has pages of %llu: let the VMM say what "
                    "the kernel maps at once", said_bytes,
                    (unsigned long long)pages->unit_bytes);
    else if (pages->unit_bytes != PAGE_BYTES && pages->unit_bytes != UNIT_2M_BYTES &&
             pages->unit_bytes != UNIT_1G_BYTES)
        rc = refuse(options->error, PF_REASON_UNSUPPORTED,
                    "the memory has pages of %llu bytes: 4096, 2 MiB and 1 GiB can be served",
                    (unsigned long long)pages->unit_bytes);
    else if (!shared && pages->unit_bytes == UNIT_1G_BYTES)
        rc = refuse(options->error, PF_REASON_UNSUPPORTED,
                    "private memory in huge pages of 1 GiB cannot be served, since it is filled only while the guest "
                    "waits: use pages of 2 MiB, or put the RAM on a file of that pool (share=on)");
    return rc;
}

/* What the kernel shows of one region in the VMM. Not being allowed to look is no error: the VMM vouches. */
static int check_region(struct pageferry_vm_options *options, const struct pageferry_region *region,
                        uint64_t unit_bytes)
{
    bool shared = options->memory == PAGEFERRY_MEMORY_SHARED;
    unsigned long long address = region->address;
    struct mapping_facts facts;
    int rc = options->vmm_pid > 0
                 ? mapping_look(options->vmm_pid, region->address, region->length_bytes, &facts)
                 : -EACCES;

    if (rc == -EACCES || rc == -EPERM)
        return 0;
    if (rc == -ESRCH)
        return refuse(options->error, PF_REASON_NO_VMM, "the VMM (process %d) has exited", options->vmm_pid);
    if (rc == -EFAULT) /* no address of a process at all */
        facts = (struct mapping_facts){.mapped = false};
    else if (rc < 0)
        return refuse(options->error, PF_REASON_BUG, "cannot look at process %d: %s", options->vmm_pid, strerror(-rc));
    if (!facts.mapped)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST, "the region at 0x%llx is not mapped in process %d", address,
                    options->vmm_pid);
    else if (shared != facts.shared)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST, "the region at 0x%llx is %s, but %s RAM file was handed over",
                    address, facts.shared ? "shared" : "private", shared ? "a" : "no");
    else if (facts.unit_bytes != unit_bytes)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the region at 0x%llx was handed over with pages of %llu bytes, but is mapped in pages of %llu",
                    address, (unsigned long long)unit_bytes, (unsigned long long)facts.unit_bytes);
    else if (!facts.registered_missing || (shared && !facts.registered_minor))
        rc = refuse(options->error, PF_REASON_BAD_REQUEST,
                    "the region at 0x%llx is not registered for %s faults: a page could be seen half written", address,
                    shared ? "missing and minor" : "missing");
    else if (facts.locked)
        rc = refuse(options->error, PF_REASON_UNSUPPORTED,
                    "the region at 0x%llx is locked in memory: start the VMM without mlock (-overcommit mem-lock=off)",
                    address);
    else if (shared && unit_bytes == PAGE_BYTES && !facts.huge_pages_barred)
        rc = refuse(options->error, PF_REASON_UNSUPPORTED,
                    "the region at 0x%llx may become huge pages: the VMM must set MADV_NOHUGEPAGE on it", address);
    return rc;
}

static int copy_regions(struct pageferry_vm_options *options, struct region *regions, uint64_t unit_bytes)
{
    if (options->regions == NULL || options->region_count == 0 || options->region_count > PF_LIMIT_REGIONS_MAX)
        return refuse(options->error, PF_REASON_BAD_REQUEST, "%u regions were handed over: 1 to %d can be served",
                      options->region_count, PF_LIMIT_REGIONS_MAX);
    for (uint32_t i = 0; i < options->region_count; i++) {
        const struct pageferry_region *region = &options->regions[i];
        if (((region->address | region->length_bytes | region->offset_bytes) & (unit_bytes - 1)) != 0)
            return refuse(options->error, PF_REASON_BAD_REQUEST,
                          "region %u (address 0x%llx, %llu bytes, offset %llu) is not a multiple of %llu bytes", i,
                          (unsigned long long)region->address, (unsigned long long)region->length_bytes,
                          (unsigned long long)region->offset_bytes, (unsigned long long)unit_bytes);
        regions[i].address = region->address;
        regions[i].first_page = region->offset_bytes / PAGE_BYTES;
        regions[i].page_count = region->length_bytes / PAGE_BYTES;
        regions[i].unit_pages = unit_bytes / PAGE_BYTES;
    }
    return 0;
}

static int check_regions(struct pageferry_vm_options *options, struct region *regions, uint64_t unit_bytes)
{
    struct regions sorted;
    struct stat file = {0};
    int rc = copy_regions(options, regions, unit_bytes);

    if (rc < 0)
        return rc;
    if (regions_set(&sorted, regions, options->region_count) < 0)
        return refuse(options->error, PF_REASON_BAD_REQUEST,
                      "the regions are empty, overlap, or leave gaps in the image");
    if (sorted.page_count > PF_LIMIT_IMAGE_PAGES_MAX)
        return refuse(options->error, PF_REASON_BAD_REQUEST, "the regions have %llu pages: at most %d can be served",
                      (unsigned long long)sorted.page_count, PF_LIMIT_IMAGE_PAGES_MAX);
    if (options->memory == PAGEFERRY_MEMORY_SHARED &&
        (fstat(options->backing_fd, &file) < 0 || (uint64_t)file.st_size < sorted.page_count * PAGE_BYTES))
        return refuse(options->error, PF_REASON_BAD_REQUEST,
                      "the RAM file has %lld bytes, the regions %llu: pages behind its end could never be mapped",
                      (long long)file.st_size, (unsigned long long)(sorted.page_count * PAGE_BYTES));
    for (uint32_t i = 0; rc == 0 && i < options->region_count; i++)
        rc = check_region(options, &options->regions[i], unit_bytes);
    return rc;
}

static int check_names(struct pageferry_vm_options *options, struct pageferry_vm *vm)
{
    size_t length = options->image == NULL ? 0 : strlen(options->image);
    int rc = 0;

    if (length == 0 || length > PF_LIMIT_IMAGE_NAME_BYTES_MAX)
        rc = refuse(options->error, PF_REASON_BAD_REQUEST, "the image's name has %zu bytes: 1 to %d are allowed", length,
                    PF_LIMIT_IMAGE_NAME_BYTES_MAX);
    else
        memcpy(vm->image, options->image, length + 1);
    return rc;
}

/* -------------------------------------------------------------------------------------------------------- handles */

int pageferry_client_open(struct pageferry_client_options *options, struct pageferry_client **out)
{
    struct pageferry_client *client = calloc(1, sizeof(*client));
    int rc = client == NULL ? -ENOMEM : bulk_open(&client->bulk);

    if (rc < 0) {
        rc = refuse(options->error, reason_of(rc), "cannot start the bulk thread: %s", strerror(-rc));
        free(client);
        client = NULL;
    } else {
        client->bulk_slots = options->bulk_slots;
    }
    *out = client;
    return rc;
}

void pageferry_client_close(struct pageferry_client *client)
{
    if (client != NULL)
        bulk_close(client->bulk);
    free(client);
}

int pageferry_vm_open(struct pageferry_client *client, struct pageferry_vm_options *options, struct pageferry_vm **out)
{
    /* Rings keep their two ends on cache lines of their own: calloc knows nothing of that. */
    struct pageferry_vm *vm = aligned_alloc(_Alignof(struct pageferry_vm), sizeof(*vm));
    struct loop_options loop = {.vm = options, .bulk = client->bulk, .bulk_slots = client->bulk_slots};
    int rc;

    if (vm == NULL) {
        rc = refuse(options->error, PF_REASON_NO_MEMORY, "no memory for a VM");
        goto out;
    }
    memset(vm, 0, sizeof(*vm));
    rc = check_names(options, vm);
    if (rc == 0)
        rc = caller_set(&vm->caller, options);
    if (rc == 0)
        rc = check_fds(options);
    if (rc == 0)
        rc = check_unit(options, &loop.pages);
    if (rc == 0)
        rc = check_regions(options, vm->regions, loop.pages.unit_bytes);
    if (rc == 0)
        rc = address_resolve(options->data_address, &vm->address, options->error, sizeof(options->error));
    if (rc < 0)
        goto out;
    loop.address = &vm->address;
    loop.image = vm->image;
    loop.who = vm->caller.who;
    loop.regions = vm->regions;
    rc = loop_open(&vm->loop, &loop);
    if (rc < 0)
        rc = refuse(options->error, reason_of(rc), "cannot start the pager: %s", strerror(-rc));
out:
    if (rc < 0 && vm != NULL) {
        caller_forget(&vm->caller);
        free(vm);
        vm = NULL;
    }
    *out = vm;
    return rc;
}

void pageferry_vm_close(struct pageferry_vm *vm)
{
    if (vm != NULL) {
        loop_close(&vm->loop);
        caller_forget(&vm->caller);
    }
    free(vm);
}

int pageferry_vm_order(struct pageferry_vm *vm, const struct pageferry_order *order)
{
    int rc = 0;

    if (order->kind < PAGEFERRY_ORDER_ARM || order->kind > PAGEFERRY_ORDER_ZAP)
        rc = -PF_REASON_BAD_REQUEST;
    else if (!ring_put(&vm->loop.orders, order))
        rc = -PF_REASON_BUSY;
    return rc;
}

int pageferry_vm_event(struct pageferry_vm *vm, struct pageferry_event *event)
{
    int got = ring_take(&vm->loop.tell.events, event);

    if (!got) { /* silent first, then a last look: an event in between rings again */
        ring_silence(&vm->loop.tell.events);
        got = ring_take(&vm->loop.tell.events, event);
        if (got) /* there may be more behind it, and their bell was just silenced */
            tell_ring(&vm->loop.tell);
    }
    return got;
}

int pageferry_vm_event_fd(struct pageferry_vm *vm)
{
    return vm->loop.tell.events.bell_fd;
}

/* ---------------------------------------------------------------------------------------------------------- numbers */

uint32_t pageferry_vm_counters(struct pageferry_vm *vm, uint64_t *values, uint32_t capacity)
{
    const struct stats *bulk = &vm->loop.port.stats;

    for (uint32_t i = 0; i < STATS_COUNTER_COUNT && i < capacity; i++)
        values[i] = stats_get(&vm->loop.stats, (enum stats_counter)i) + stats_get(bulk, (enum stats_counter)i);
    return STATS_COUNTER_COUNT;
}

uint32_t pageferry_vm_histogram(struct pageferry_vm *vm, uint32_t index, uint64_t *values, uint32_t capacity)
{
    return stats_copy_histogram(&vm->loop.stats, index, values, capacity);
}

void pageferry_vm_pages(struct pageferry_vm *vm, struct pageferry_pages *pages)
{
    pages->total = vm->loop.table.page_count;
    counts_read(&vm->loop.engine.counts, pages->state);
}

uint64_t pageferry_vm_states(struct pageferry_vm *vm, uint64_t first, uint64_t count, uint8_t *states)
{
    uint64_t total = vm->loop.table.page_count;
    uint64_t inside = first >= total ? 0 : count < total - first ? count : total - first;

    for (uint64_t i = 0; i < inside; i++)
        states[i] = (uint8_t)page_state(table_word(&vm->loop.table, first + i));
    return inside;
}

void pageferry_vm_fds(struct pageferry_vm *vm, struct pageferry_vm_fds *fds)
{
    *fds = (struct pageferry_vm_fds){
        .uffd = vm->loop.uffd.fd,
        .backing_fd = vm->loop.uffd.backing_fd,
        .table_fd = vm->loop.table.fd,
        .vmm_pidfd = vm->loop.vmm.pidfd,
    };
}

int pageferry_vm_manifest(struct pageferry_vm *vm, uint8_t digest[16])
{
    manifest_digest(table_manifest(&vm->loop.table), digest);
    return 0;
}

size_t pageferry_vm_trace(struct pageferry_vm *vm, char *text, size_t capacity)
{
    const struct trace *trace = &vm->loop.trace;
    uint64_t count = trace->count, first = count > TRACE_STEPS ? count - TRACE_STEPS : 0;
    size_t used = 0;

    for (uint64_t i = first; i < count && used < capacity; i++) {
        const struct trace_step *step = &trace->steps[i % TRACE_STEPS];
        const char *state = page_state_name((enum page_state)step->state);
        const char *event = page_event_name((enum page_event)step->event);
        const char *action = page_action_name((enum page_action)step->action);
        int length = snprintf(text + used, capacity - used, "%llu page=%llu %s + %s: %s result=%u\n",
                              (unsigned long long)step->now_ns, (unsigned long long)step->page,
                              state == NULL ? "?" : state, event == NULL ? "?" : event, action == NULL ? "?" : action,
                              step->result);
        if (length < 0 || (size_t)length >= capacity - used)
            break; /* a cut line is left out */
        used += (size_t)length;
    }
    if (capacity > 0)
        text[used < capacity ? used : capacity - 1] = 0;
    return used;
}

/* ------------------------------------------------------------------------------------------------------------ names */

int pageferry_api(void)
{
    return PAGEFERRY_API;
}

const char *pageferry_page_state_name(uint32_t state)
{
    return state < PAGE_STATE_COUNT ? page_state_name((enum page_state)state) : NULL;
}

const char *pageferry_event_name(uint32_t kind)
{
    static const char *const names[] = {"attached", "armed",       "populated", "complete", "paused",   "resumed",
                                        "failed",   "early_fault", "poisoned",  "alarm",    "vmm_gone", "round",
                                        "phase",    "done",        "poison_cleared"};

    return kind >= 1 && kind <= sizeof(names) / sizeof(names[0]) ? names[kind - 1] : NULL;
}

const char *pageferry_counter_name(uint32_t index)
{
    return stats_counter_name(index);
}

const char *pageferry_counter_help(uint32_t index)
{
    return stats_counter_help(index);
}

const char *pageferry_histogram_name(uint32_t index)
{
    return stats_histogram_name(index);
}

const char *pageferry_histogram_help(uint32_t index)
{
    return stats_histogram_help(index);
}

uint32_t pageferry_histogram_buckets(void)
{
    return STATS_BUCKETS;
}

uint64_t pageferry_histogram_limit(uint32_t bucket)
{
    return stats_bucket_limit(bucket);
}
