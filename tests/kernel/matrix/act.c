/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that access the memory, or drop it, while the row looks on: see matrix.h. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "matrix.h"

#define PATIENCE_MS 5000
#define MOMENT_MS 30
#define PAGEMAP_UFFD_WP 57 /* a bit of its entries */
#define CHILD_GOT_SIGBUS 0x55 /* no page holds it */

static __thread sigjmp_buf rescue;
static __thread struct actor *me;

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    me->signal = number;
    me->code = info->si_code;
    me->lsb = info->si_addr_lsb;
    me->where = info->si_addr;
    siglongjmp(rescue, 1);
}

static int send_page(const uint8_t *page)
{
    int ends_of_it[2], rc;

    if (pipe2(ends_of_it, O_CLOEXEC) < 0)
        return -errno;
    rc = write(ends_of_it[1], page, 1) < 0 ? -errno : 0;
    close(ends_of_it[0]);
    close(ends_of_it[1]);
    return rc;
}

/* Of the calling process: the page is protected, or marked to be. */
static bool is_marked(const uint8_t *page)
{
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    uint64_t entry = 0;

    if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)page / 4096 * sizeof(entry))) < 0)
        abort();
    close(pagemap);
    return (entry >> PAGEMAP_UFFD_WP & 1) != 0;
}

static int look_in_a_child(const uint8_t *page, bool at_its_mark)
{
    pid_t child = fork();
    int status = -1;

    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (at_its_mark)
            _exit(is_marked(page));
        _exit(sigsetjmp(rescue, 1) != 0 ? CHILD_GOT_SIGBUS : *(const volatile uint8_t *)page);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return -ECHILD;
    if (WEXITSTATUS(status) == CHILD_GOT_SIGBUS)
        me->signal = SIGBUS;
    return WEXITSTATUS(status);
}

static int result(int rc)
{
    return rc < 0 ? -errno : 0;
}

static int carry_out(struct actor *actor)
{
    struct bed *bed = actor->bed;
    uint8_t *page = at(bed, actor->page);

    switch (actor->act) {
    case ACT_READ:
        return *(volatile uint8_t *)page;
    case ACT_WRITE:
        *(volatile uint8_t *)page = WRITTEN;
        return 0;
    case ACT_SEND:
        return send_page(page);
    case ACT_DONTNEED:
        return result(madvise(page, bed->page, MADV_DONTNEED));
    case ACT_REMOVE:
        return result(madvise(page, bed->page, MADV_REMOVE));
    case ACT_PUNCH:
        return result(fallocate(bed->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(actor->page * bed->page),
                                (off_t)bed->page));
    case ACT_UNMAP:
        return result(munmap(page, bed->page));
    case ACT_MOVE:
        return move_behind(bed);
    case ACT_FORK:
        return look_in_a_child(page, false);
    case ACT_FORK_MARKED:
        return look_in_a_child(page, true);
    }
    return -ENOSYS;
}

static void *run(void *argument)
{
    struct actor *actor = argument;

    me = actor;
    actor->tid = gettid();
    if (sigsetjmp(rescue, 1) == 0)
        actor->value = carry_out(actor);
    eventfd_write(actor->ended_fd, 1);
    return NULL;
}

void begin(struct bed *bed, struct actor *actor, enum act act, size_t page)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};

    *actor = (struct actor){.bed = bed, .act = act, .page = page, .ended_fd = eventfd(0, EFD_CLOEXEC)};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    if (pthread_create(&actor->thread, NULL, run, actor) != 0)
        abort();
}

static const char *event_name(const struct uffd_msg *message)
{
    switch (message->event) {
    case UFFD_EVENT_PAGEFAULT:
        return (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0      ? "WP"
               : (message->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0 ? "MINOR"
                                                                                 : "MISSING";
    case UFFD_EVENT_FORK:
        return "FORK";
    case UFFD_EVENT_REMAP:
        return "REMAP";
    case UFFD_EVENT_REMOVE:
        return "REMOVE";
    case UFFD_EVENT_UNMAP:
        return "UNMAP";
    }
    return "other";
}

const char *next_event(const struct actor *actor, int uffd, struct uffd_msg *message)
{
    struct pollfd both[] = {{.fd = uffd, .events = POLLIN}, {.fd = actor->ended_fd, .events = POLLIN}};
    struct uffd_msg own;

    if (poll(both, 2, PATIENCE_MS) <= 0)
        return "HUNG";
    if (message == NULL)
        message = &own;
    if (uffd >= 0 && read(uffd, message, sizeof(*message)) == (ssize_t)sizeof(*message))
        return event_name(message);
    return (both[1].revents & POLLIN) != 0 ? "none" : "HUNG";
}

const char *meets(struct bed *bed, struct actor *actor, enum act act, size_t page)
{
    begin(bed, actor, act, page);
    return next_event(actor, bed->uffd, NULL);
}

const char *ends(struct actor *actor)
{
    struct pollfd end = {.fd = actor->ended_fd, .events = POLLIN};

    if (poll(&end, 1, PATIENCE_MS) != 1)
        return "HUNG";
    pthread_join(actor->thread, NULL);
    if (actor->signal != 0)
        return actor->signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
    if (actor->value < 0)
        return word(actor->value);
    if (actor->act == ACT_FORK_MARKED)
        return actor->value != 0 ? "protected" : "not protected";
    return actor->act == ACT_READ || actor->act == ACT_FORK ? holds((uint8_t)actor->value) : "ok";
}

/* Where the kernel says that it sleeps: one that has been woken, and has not had its turn yet, sleeps nowhere. */
static bool sleeps_in_a_fault(pid_t tid)
{
    char path[64], where[64] = "";
    ssize_t length;
    int fd;

    snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", tid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    length = fd < 0 ? -1 : read(fd, where, sizeof(where) - 1);
    if (fd >= 0)
        close(fd);
    return length > 0 && strstr(where, "userfault") != NULL;
}

bool still_waits(const struct actor *actor)
{
    struct pollfd end = {.fd = actor->ended_fd, .events = POLLIN};
    bool ended = false, asleep = false;

    for (int looks = 0; !ended && !asleep && looks < PATIENCE_MS / MOMENT_MS; looks++) {
        ended = poll(&end, 1, MOMENT_MS) == 1;
        asleep = !ended && sleeps_in_a_fault(actor->tid);
    }
    return asleep;
}

const char *reads(struct bed *bed, size_t page)
{
    struct actor actor;

    begin(bed, &actor, ACT_READ, page);
    return ends(&actor);
}
