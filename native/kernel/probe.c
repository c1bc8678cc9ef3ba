/* SPDX-License-Identifier: Apache-2.0 */
/* One fact after the other, each tried: see probe.h. The trials of memory themselves are in trial.c. */
#include "probe_facts.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mapping.h"
#include "trial.h"
#include "uapi.h"

#define UNKNOWN_FEATURE (UINT64_C(1) << 63)
#define POOL "/sys/kernel/mm/hugepages/hugepages-2048kB/"

static const char *const grow_pool = "raise vm.nr_hugepages, if VMs are to run on them";

void probe_found(struct probe_fact *fact, enum probe_verdict verdict, const char *remedy, const char *format, ...)
{
    va_list arguments;

    fact->verdict = verdict;
    fact->remedy = remedy;
    va_start(arguments, format);
    vsnprintf(fact->text, sizeof(fact->text), format, arguments);
    va_end(arguments);
}

/* ----------------------------------------------------------------------------------------------------- userfaultfd */

/* Everybody may have one that is blind to faults of the kernel. No VM can be served by it, and nothing about the fd
 * shows it: so it is tried. */
static void probe_blind(struct probe_fact *fact)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    int rc = fd < 0 ? -errno : trial_kernel_fault(fd);

    if (fd >= 0 && rc == -EFAULT)
        probe_found(fact, PROBE_BAD, "as for userfaultfd",
                    "only a userfaultfd for faults of user mode can be had: a read by the kernel of an absent page is "
                    "EFAULT");
    else
        probe_found(fact, PROBE_UNTRIED, NULL, "there is no userfaultfd");
    if (fd >= 0)
        close(fd);
}

static void not_the_device(struct probe_fact *fact, int device_fd, int rc)
{
    static const char *const pass = "pass an open /dev/userfaultfd";
    enum fd_kind kind;

    if (fcntl(device_fd, F_GETFD) < 0)
        probe_found(fact, PROBE_BAD, pass, "descriptor %d is not open", device_fd);
    else if (mapping_fd_kind(device_fd, &kind) == 0 && kind == FD_KIND_UFFD)
        probe_found(fact, PROBE_BAD, pass,
                    "descriptor %d is a userfaultfd: it serves whoever made it, perhaps in user mode alone",
                    device_fd);
    else
        probe_found(fact, PROBE_BAD, pass, "descriptor %d is no /dev/userfaultfd: %s", device_fd, strerror(-rc));
}

static bool probe_userfaultfd(int device_fd, struct probe *probe)
{
    static const char *const ways[] = {[CREATE_WAY_GIVEN] = "by the device that was passed on",
                                       [CREATE_WAY_SYSCALL] = "by the system call",
                                       [CREATE_WAY_DEVICE] = "by /dev/userfaultfd"};
    struct probe_fact *fact = &probe->facts[PROBE_USERFAULTFD], *blind = &probe->facts[PROBE_KERNEL_FAULTS];
    int fd = create_bare(device_fd, &probe->way);
    int rc;

    if (fd < 0 && device_fd >= 0) {
        not_the_device(fact, device_fd, fd);
    } else if (fd < 0) {
        bool refused = fd == -EPERM || fd == -EACCES || fd == -ENOSYS;
        probe_found(fact, refused ? PROBE_BAD : PROBE_FAILED, create_remedy(fd), "refused: %s", strerror(-fd));
        probe_blind(blind);
    } else {
        probe_found(fact, PROBE_GOOD, NULL, "%s", ways[probe->way]);
        rc = trial_kernel_fault(fd);
        if (rc == 0)
            probe_found(blind, PROBE_GOOD, NULL, "a read by the kernel of an absent page was reported");
        else if (rc == -EFAULT)
            probe_found(blind, PROBE_BAD, "let it be made without UFFD_USER_MODE_ONLY",
                        "a read by the kernel is EFAULT");
        else
            probe_found(blind, PROBE_FAILED, SEE_LOG, "%s", trial_error_text(rc));
        close(fd);
    }
    return fd >= 0;
}

/* 0, or -errno: what the kernel says to these features on an fd of their own. */
static int asked_for(int device_fd, uint64_t features, uint64_t *answered)
{
    struct uffdio_api arg = {.api = UFFD_API, .features = features};
    int fd = create_bare(device_fd, NULL), rc;

    if (fd < 0)
        return fd;
    rc = ioctl(fd, UFFDIO_API, &arg) < 0 ? -errno : 0;
    *answered = arg.features;
    close(fd);
    return rc;
}

static void probe_handshake(int device_fd, struct probe *probe)
{
    static const uint64_t used = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_POISON |
                                 UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MINOR_HUGETLBFS | CREATE_TRACK_FEATURES;
    struct probe_fact *fact = &probe->facts[PROBE_HANDSHAKE];
    uint64_t again = 0, beyond = 0;
    int rc = asked_for(device_fd, 0, &probe->features), rc_again, rc_beyond;
    uint64_t wanted = probe->features & used;

    rc_again = rc == 0 ? asked_for(device_fd, wanted, &again) : rc;
    rc_beyond = rc == 0 ? asked_for(device_fd, UNKNOWN_FEATURE, &beyond) : rc;
    if (rc_again < 0 || (again & wanted) != wanted)
        probe_found(fact, PROBE_FAILED, SEE_LOG, "has 0x%" PRIx64 ", and refuses 0x%" PRIx64 " of them: %s",
                    probe->features, wanted, rc_again < 0 ? strerror(-rc_again) : "they do not come back");
    else if (rc_beyond == 0)
        probe_found(fact, PROBE_LESS, NEWER_KERNEL,
                    "has 0x%" PRIx64 "; takes bits that it does not know (early Linux 6.1): what comes back is compared",
                    probe->features);
    else
        probe_found(fact, PROBE_GOOD, NULL,
                    "has 0x%" PRIx64 "; what is asked comes back, what it does not know is refused", probe->features);
}

/* ------------------------------------------------------------------------------------------------ kinds of memory */

static const char *calls_of(const struct trial *trial, char text[PROBE_TEXT_BYTES / 2])
{
    trial_call_names(trial->calls, text, PROBE_TEXT_BYTES / 2);
    return text;
}

/* Poison is a fact of its own. */
static void judge_memory(struct probe_fact *fact, const struct trial *trial, const char *remedy)
{
    char calls[PROBE_TEXT_BYTES / 2];

    if (trial->end == TRIAL_WORKS)
        probe_found(fact, PROBE_GOOD, NULL, "works; offers %s", calls_of(trial, calls));
    else if (trial->end == TRIAL_UNTRIED)
        probe_found(fact, PROBE_UNTRIED, grow_pool, "the pool has no page free");
    else if (trial->end == TRIAL_ABSENT)
        probe_found(fact, PROBE_LESS, remedy, "cannot be served here: %s: %s", trial->step,
                    trial_error_text(trial->error));
    else
        probe_found(fact, PROBE_FAILED, SEE_LOG, "failed: %s: %s", trial->step, trial_error_text(trial->error));
}

static uint64_t pool_count(const char *path)
{
    FILE *file = fopen(path, "re");
    uint64_t count = 0;

    if (file != NULL) {
        if (fscanf(file, "%" SCNu64, &count) != 1)
            count = 0;
        fclose(file);
    }
    return count;
}

static void probe_pools(int device_fd, bool spare, struct probe *probe, struct trial trials[TRIAL_KIND_COUNT])
{
    uint64_t total = pool_count(POOL "nr_hugepages"), unused = pool_count(POOL "free_hugepages");
    uint64_t reserved = pool_count(POOL "resv_hugepages");
    struct probe_fact *facts[] = {&probe->facts[PROBE_HUGE_SHARED], &probe->facts[PROBE_HUGE_PRIVATE]};

    for (uint32_t i = 0; i < 2; i++) {
        struct trial *trial = &trials[TRIAL_HUGE_SHARED + i];
        if (total == 0) {
            probe_found(facts[i], PROBE_LESS, grow_pool, "there is no pool of them");
        } else if (spare || unused <= reserved) {
            probe_found(facts[i], PROBE_UNTRIED, spare ? NULL : grow_pool,
                        "%" PRIu64 " pages in the pool, %" PRIu64 " of them free%s", total,
                        unused > reserved ? unused - reserved : 0, spare ? ": left alone" : "");
        } else {
            trial_run((enum trial_kind)(TRIAL_HUGE_SHARED + i), device_fd, trial);
            judge_memory(facts[i], trial, NEWER_KERNEL);
        }
    }
}

/* Of all kinds that work. One where it fails counts, for lost pages may lie there. */
static void judge_poison(struct probe_fact *fact, const struct trial trials[TRIAL_KIND_COUNT])
{
    const struct trial *told = NULL;

    for (int i = 0; i < TRIAL_KIND_COUNT; i++) {
        const struct trial *trial = &trials[i];
        if (trial->step != NULL && trial->end == TRIAL_WORKS && (told == NULL || trial->poison > told->poison))
            told = trial;
    }
    if (told == NULL)
        probe_found(fact, PROBE_UNTRIED, NULL, "there is no memory to try it on");
    else if (told->poison == TRIAL_ABSENT)
        probe_found(fact, PROBE_LESS, NEWER_KERNEL,
                    "no UFFDIO_POISON (Linux 6.6): who reads a lost page waits, and the VMM is asked what to do");
    else if (told->poison == TRIAL_FAILED)
        probe_found(fact, PROBE_FAILED, SEE_LOG, "failed: %s", trial_error_text(told->poison_error));
    else
        probe_found(fact, PROBE_GOOD, NULL, "SIGBUS with %s, lsb %u (a KVM vCPU gets BUS_MCEERR_AR, lsb 12)",
                    told->signal.code == BUS_MCEERR_AR ? "BUS_MCEERR_AR"
                    : told->signal.code == BUS_ADRERR  ? "BUS_ADRERR"
                                                       : "another code",
                    told->signal.lsb);
}

static void probe_dirty(int device_fd, struct probe *probe)
{
    struct probe_fact *fact = &probe->facts[PROBE_DIRTY_TRACKING];
    char calls[PROBE_TEXT_BYTES / 2];
    struct trial trial;

    trial_dirty(device_fd, &trial);
    if (trial.end == TRIAL_WORKS)
        probe_found(fact, PROBE_GOOD, NULL, "a written page was found, and no other; offers %s",
                    calls_of(&trial, calls));
    else if (trial.end == TRIAL_UNTRIED)
        probe_found(fact, PROBE_UNTRIED, NULL, "not tried: %s: %s", trial.step, trial_error_text(trial.error));
    else if (trial.end == TRIAL_ABSENT)
        probe_found(fact, PROBE_LESS, NEWER_KERNEL, "no VM can be moved away from here: %s: %s (Linux 6.7)",
                    trial.step, trial_error_text(trial.error));
    else
        probe_found(fact, PROBE_FAILED, SEE_LOG, "failed: %s: %s", trial.step, trial_error_text(trial.error));
}

static bool works(const struct probe *probe, enum probe_name name)
{
    return probe->facts[name].verdict == PROBE_GOOD;
}

/* Where one of the two works, the other is a case less; where neither does, there is none. */
static void judge_kinds(struct probe *probe)
{
    static const enum probe_name both[] = {PROBE_SHARED, PROBE_PRIVATE};
    bool none = !works(probe, PROBE_SHARED) && !works(probe, PROBE_PRIVATE);

    for (int i = 0; i < 2; i++)
        if (none && probe->facts[both[i]].verdict == PROBE_LESS)
            probe->facts[both[i]].verdict = PROBE_BAD;
}

static void probe_memory(int device_fd, bool spare_pools, struct probe *probe)
{
    static const char *const needs = "use a newer kernel: minor faults on shared memory need Linux 5.14";
    static const char *const mount = "mount a tmpfs on /dev/shm that this user may write to, if RAM files lie there";
    struct trial trials[TRIAL_KIND_COUNT] = {0};

    trial_run(TRIAL_MEMFD, device_fd, &trials[TRIAL_MEMFD]);
    trial_run(TRIAL_TMPFS, device_fd, &trials[TRIAL_TMPFS]);
    trial_run(TRIAL_PRIVATE, device_fd, &trials[TRIAL_PRIVATE]);
    judge_memory(&probe->facts[PROBE_SHARED], &trials[TRIAL_MEMFD], needs);
    judge_memory(&probe->facts[PROBE_TMPFS], &trials[TRIAL_TMPFS], mount);
    judge_memory(&probe->facts[PROBE_PRIVATE], &trials[TRIAL_PRIVATE], NEWER_KERNEL);
    judge_kinds(probe);
    probe_pools(device_fd, spare_pools, probe, trials);
    judge_poison(&probe->facts[PROBE_POISON], trials);
    probe->shared_calls = trials[TRIAL_MEMFD].calls;
    probe->private_calls = trials[TRIAL_PRIVATE].calls;
}

/* ------------------------------------------------------------------------------------------------------ all of it */

/* The sum of those that a VM cannot do without. */
static void judge_all(struct probe *probe)
{
    static const enum probe_name before[] = {PROBE_USERFAULTFD, PROBE_KERNEL_FAULTS, PROBE_SHARED, PROBE_PRIVATE};
    struct probe_fact *usable = &probe->facts[PROBE_USABLE];
    bool shared = works(probe, PROBE_SHARED), private = works(probe, PROBE_PRIVATE);

    if (shared && private) {
        probe_found(usable, PROBE_GOOD, NULL, "yes, on shared and on private memory");
    } else if (shared || private) {
        probe_found(usable, PROBE_LESS, probe->facts[shared ? PROBE_PRIVATE : PROBE_SHARED].remedy,
                    "on %s memory alone", shared ? "shared" : "private");
    }
    for (int i = 0; i < 4 && !shared && !private; i++) {
        const struct probe_fact *fact = &probe->facts[before[i]];
        if (fact->verdict == PROBE_BAD || fact->verdict == PROBE_FAILED) {
            probe_found(usable, fact->verdict, fact->remedy, "no: %s", probe_word(before[i]));
            break;
        }
    }
}

void probe_run(int device_fd, bool spare_pools, struct probe *probe)
{
    memset(probe, 0, sizeof(*probe));
    for (int i = 0; i < PROBE_FACT_COUNT; i++)
        probe_found(&probe->facts[i], PROBE_UNTRIED, NULL, "not tried");
    if (probe_userfaultfd(device_fd, probe)) {
        probe_handshake(device_fd, probe);
        probe_memory(device_fd, spare_pools, probe);
        probe_dirty(device_fd, probe);
    }
    probe_machine(probe);
    judge_all(probe);
}

bool probe_usable(const struct probe *probe)
{
    return probe->facts[PROBE_USABLE].verdict <= PROBE_LESS;
}

#define PROBE_WORD(name, word, help) [PROBE_##name] = word,
static const char *const words[] = {PROBE_FACTS(PROBE_WORD)};
#undef PROBE_WORD
#define PROBE_HELP(name, word, help) [PROBE_##name] = help,
static const char *const helps[] = {PROBE_FACTS(PROBE_HELP)};
#undef PROBE_HELP

const char *probe_word(enum probe_name name)
{
    return (unsigned)name < PROBE_FACT_COUNT ? words[name] : NULL;
}

const char *probe_help(enum probe_name name)
{
    return (unsigned)name < PROBE_FACT_COUNT ? helps[name] : NULL;
}
