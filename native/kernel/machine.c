/* SPDX-License-Identifier: Apache-2.0 */
/* The facts that are settings of the machine, or of this process's place in it: see probe.h. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "headroom.h"
#include "mapping.h"
#include "probe_facts.h"

#define MIB (UINT64_C(1) << 20)
#ifndef MADV_DONTNEED_LOCKED /* 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

static void probe_pagemap_scan(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_PAGEMAP_SCAN];
    struct pm_scan_arg arg = {.size = sizeof(arg)};
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int rc = fd < 0 || ioctl(fd, PAGEMAP_SCAN, &arg) < 0 ? -errno : 0;

    if (fd < 0)
        probe_found(fact, PROBE_LESS, "mount /proc", "no /proc/self/pagemap: the VMM's word must do");
    else if (rc == -ENOTTY || rc == -EINVAL)
        probe_found(fact, PROBE_LESS, NEWER_KERNEL, "no PAGEMAP_SCAN (Linux 6.7): read word by word");
    else if (rc < 0)
        probe_found(fact, PROBE_FAILED, SEE_LOG, "failed: %s", strerror(-rc));
    else
        probe_found(fact, PROBE_GOOD, NULL, "there");
    if (fd >= 0)
        close(fd);
}

static void probe_thp(struct probe *probe)
{
    struct probe_fact *shared = &probe->facts[PROBE_THP_SHARED], *private = &probe->facts[PROBE_THP_PRIVATE];
    enum thp_shmem setting;
    int rc = mapping_thp_shmem(&setting);

    if (rc < 0)
        probe_found(shared, PROBE_LESS, "mount /sys", "cannot be read: %s", strerror(-rc));
    else if (setting == THP_SHMEM_FORCED)
        probe_found(shared, PROBE_LESS,
                    "set /sys/kernel/mm/transparent_hugepage/shmem_enabled, and each hugepages-*/shmem_enabled, to "
                    "advise or never",
                    "forced on: a write of one page brings in its neighbours");
    else
        probe_found(shared, PROBE_GOOD, NULL, "%s", setting == THP_SHMEM_ADVISE ? "where asked for" : "never");
    rc = mapping_thp_private(&setting);
    if (rc < 0)
        probe_found(private, PROBE_LESS, "mount /sys", "cannot be read: %s", strerror(-rc));
    else if (setting == THP_SHMEM_NEVER)
        probe_found(private, PROBE_LESS,
                    "set /sys/kernel/mm/transparent_hugepage/enabled to madvise, if VMs run on private memory",
                    "never: private memory stays on 4 KiB pages, and is slower for it");
    else
        probe_found(private, PROBE_GOOD, NULL, "%s", setting == THP_SHMEM_ADVISE ? "where asked for" : "everywhere");
}

static void probe_swap(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_SWAP];
    struct sysinfo info;
    uint64_t mib;

    if (sysinfo(&info) < 0) {
        probe_found(fact, PROBE_FAILED, SEE_LOG, "cannot be read: %s", strerror(errno));
        return;
    }
    mib = (uint64_t)info.totalswap * info.mem_unit / MIB;
    if (info.totalswap == 0)
        probe_found(fact, PROBE_GOOD, NULL, "there is none");
    else
        probe_found(fact, PROBE_LESS, "set memory.swap.max=0 for VMs whose faults must stay short",
                    "%" PRIu64 " MiB: a page that was here may have to be read again", mib);
}

static void probe_headroom(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_HEADROOM];
    struct headroom room;
    int rc = headroom_look("", &room);

    if (rc < 0)
        probe_found(fact, PROBE_LESS, "mount /proc", "cannot be read: %s", strerror(-rc));
    else if (room.limited && room.free_bytes < room.available_bytes)
        probe_found(fact, PROBE_LESS,
                    "raise the limit to the guests' memory and 64 MiB more, if pages are to come before a guest runs "
                    "(a move, --postcopy forbid): what is written then is charged to this process",
                    "%" PRIu64 " MiB: the limit of %.120s is %" PRIu64 " MiB; the machine has %" PRIu64 " MiB",
                    room.free_bytes / MIB, room.group, room.limit_bytes / MIB, room.available_bytes / MIB);
    else
        probe_found(fact, PROBE_GOOD, NULL, "%" PRIu64 " MiB of the machine's memory%s", room.available_bytes / MIB,
                    room.limited   ? "; the cgroup's limit is above that"
                    : room.grouped ? "; no cgroup limits it"
                                   : "; no memory cgroup can be seen");
}

static void probe_locked(struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_LOCKED];
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct rlimit limit = {0};
    char most[32];
    int rc;

    if (page == MAP_FAILED) {
        probe_found(fact, PROBE_FAILED, SEE_LOG, "no page to lock: %s", strerror(errno));
        return;
    }
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (limit.rlim_cur == RLIM_INFINITY)
        strcpy(most, "without limit");
    else
        snprintf(most, sizeof(most), "up to %" PRIu64 " KiB", (uint64_t)limit.rlim_cur / 1024);
    if (syscall(SYS_mlock, page, 4096) < 0) /* mlock(3) does nothing under a sanitizer */
        probe_found(fact, PROBE_GOOD, NULL, "this user can lock none: %s", strerror(errno));
    else if (madvise(page, 4096, MADV_DONTNEED) == 0)
        probe_found(fact, PROBE_FAILED, SEE_LOG, "a locked page can be zapped as if it were none");
    else if ((rc = madvise(page, 4096, MADV_DONTNEED_LOCKED) < 0 ? -errno : 0) == 0)
        probe_found(fact, PROBE_GOOD, NULL, "by MADV_DONTNEED_LOCKED; this user may lock %s", most);
    else if (rc == -EINVAL)
        probe_found(fact, PROBE_LESS, NEWER_KERNEL, "no MADV_DONTNEED_LOCKED (Linux 5.18); this user may lock %s",
                    most);
    else
        probe_found(fact, PROBE_FAILED, SEE_LOG, "failed: MADV_DONTNEED_LOCKED: %s", strerror(-rc));
    munmap(page, 4096);
}

void probe_machine(struct probe *probe)
{
    probe_pagemap_scan(probe);
    probe_thp(probe);
    probe_swap(probe);
    probe_headroom(probe);
    probe_locked(probe);
}
