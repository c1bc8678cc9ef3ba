/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source of moves for the soak: a page server, the real one, in front of VMs that run. Each VM is a process of its
 * own whose memory is tracked, and which stamps its pages as the stand-in guest does: older stamps (n 0) and right ones
 * (n 1) in turn, all over the place, and never in one go. When it is frozen every page is right. So a target that holds
 * a page of an earlier round, or half of one, shows it to its guest, which knows the difference.
 *
 *     life NAME PAGES SEED PERCENT TOKEN_SHA256    a VM runs, and one session may move it
 *     freeze NAME                                  it stands still; answers as_of and the manifest's digest
 *     end NAME                                     it is gone
 *
 * Prints "ready PORT" first; an order is answered by one line that begins with 0, or with minus a reason and a text.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../support/guest_stamp.h"
#include "gen/contract.h"
#include "kernel/create.h"
#include "pageferry.h"

#define LIVES_MAX 4
#define NAME_BYTES 32
#define LINE_BYTES 512
#define CONTENT_ID UINT64_C(0x50a4000000000000)
#define WRITE_EVERY_NS 20000

enum going { CHURNS = 1, SETTLES, STANDS_STILL };

/* Shared with the VM's process. */
struct box {
    _Atomic uint32_t going;
    _Atomic int32_t uffd; /* there; -1: it could not be had, 0: not yet */
    uint64_t address;     /* there */
};

struct life {
    char name[NAME_BYTES];
    struct image_shape shape;
    struct box *box;
    pid_t pid;
    int ram_fd, pidfd, uffd;
    uint8_t token_sha256[32];
};

static struct life lives[LIVES_MAX];
static uint64_t lives_ever;

/* ------------------------------------------------------------------------------------------------ in that process */

static struct line *page_at(const struct life *life, uint64_t page)
{
    return (struct line *)(uintptr_t)(life->box->address + page * PAGE_BYTES);
}

static void write_page(const struct life *life, uint8_t *old, uint64_t page, bool right)
{
    stamp_page(page_at(life, page), stamp_id(&life->shape, page), INCARNATION_IMAGE, right ? N_IMAGE : 0);
    old[page] = !right;
}

static void run_vm(struct life *life)
{
    const struct timespec pause = {.tv_nsec = WRITE_EVERY_NS};
    uint8_t *old = calloc(life->shape.pages, 1);
    uint64_t random = life->shape.seed;

    for (uint64_t page = 0; page < life->shape.pages; page++)
        if (stamp_is_data(&life->shape, page))
            write_page(life, old, page, true);
    for (;;) {
        uint64_t page;
        random = stamp_mix(random + UINT64_C(0x9e3779b97f4a7c15));
        page = random % (random >> 62 == 0 ? life->shape.pages : life->shape.pages / 8); /* some of it is hot */
        if (atomic_load(&life->box->going) == CHURNS) {
            if (stamp_is_data(&life->shape, page))
                write_page(life, old, page, old[page]);
        } else if (atomic_load(&life->box->going) == SETTLES) {
            for (page = 0; page < life->shape.pages; page++)
                if (old[page])
                    write_page(life, old, page, true);
            atomic_store(&life->box->going, STANDS_STILL);
        }
        nanosleep(&pause, NULL);
    }
}

static void begin_vm(struct life *life)
{
    uint64_t bytes = life->shape.pages * PAGE_BYTES;
    struct uffdio_register range = {.mode = UFFDIO_REGISTER_MODE_WP};
    void *ram = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, life->ram_fd, 0);
    int uffd;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close_range(3, ~0u, 0); /* the server's sockets are the server's */
    uffd = create_uffd(-1, CREATE_TRACK_FEATURES, NULL);
    range.range.start = (uintptr_t)ram;
    range.range.len = bytes;
    life->box->address = (uintptr_t)ram;
    if (ram == MAP_FAILED || madvise(ram, bytes, MADV_NOHUGEPAGE) != 0 || uffd < 0 ||
        ioctl(uffd, UFFDIO_REGISTER, &range) != 0) {
        atomic_store(&life->box->uffd, -1);
        _exit(71);
    }
    atomic_store(&life->box->uffd, uffd);
    run_vm(life);
}

/* ----------------------------------------------------------------------------------------------- in the server's */

static void wait_until(_Atomic uint32_t *value, uint32_t wanted)
{
    const struct timespec moment = {.tv_nsec = 1000000};

    while (atomic_load(value) != wanted)
        nanosleep(&moment, NULL);
}

static void end_life(struct life *life)
{
    int fds[] = {life->ram_fd, life->pidfd, life->uffd};

    if (life->pid > 0) {
        kill(life->pid, SIGKILL);
        waitpid(life->pid, NULL, 0);
    }
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    if (life->box != NULL)
        munmap(life->box, sizeof(*life->box));
    memset(life, 0, sizeof(*life));
}

static bool start_life(struct life *life)
{
    life->ram_fd = life->pidfd = life->uffd = -1;
    life->box = mmap(NULL, sizeof(*life->box), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    life->ram_fd = memfd_create("soak-source", MFD_CLOEXEC);
    if (life->box == MAP_FAILED || life->ram_fd < 0 ||
        ftruncate(life->ram_fd, (off_t)(life->shape.pages * PAGE_BYTES)) != 0)
        return false;
    life->box->going = CHURNS;
    life->pid = fork();
    if (life->pid == 0)
        begin_vm(life);
    while (life->pid > 0 && atomic_load(&life->box->uffd) == 0)
        sched_yield();
    if (life->pid < 0 || atomic_load(&life->box->uffd) < 0)
        return false;
    life->pidfd = (int)syscall(SYS_pidfd_open, life->pid, 0);
    life->uffd = (int)syscall(SYS_pidfd_getfd, life->pidfd, atomic_load(&life->box->uffd), 0);
    return life->uffd >= 0;
}

static int tell_gate(struct pageferry_server *server, const struct life *life, const struct pageferry_frozen *frozen,
                     char *error)
{
    struct pageferry_session session = {
        .session = life->name,
        .image = life->name,
        .rights = PAGEFERRY_RIGHT_PAGES | (frozen == NULL ? PAGEFERRY_RIGHT_ROUNDS : 0),
        .phase = frozen == NULL ? PF_PHASE_PRECOPY : PF_PHASE_SWITCHOVER,
        .frozen = frozen != NULL,
    };

    memcpy(session.token_sha256, life->token_sha256, sizeof(session.token_sha256));
    if (frozen != NULL)
        memcpy(session.manifest_digest, frozen->digest, sizeof(session.manifest_digest));
    return pageferry_server_set_session(server, &session, error, PAGEFERRY_TEXT_BYTES);
}

static int serve_life(struct pageferry_server *server, struct life *life, char *error)
{
    struct pageferry_region region = {life->box->address, life->shape.pages * PAGE_BYTES, 0};
    struct pageferry_live_options options = {
        .name = life->name,
        .uffd = life->uffd,
        .ram_fd = life->ram_fd,
        .vmm_pid = life->pid,
        .vmm_pidfd = life->pidfd,
        .arriving_fd = -1,
        .regions = &region,
        .region_count = 1,
        .content_id = CONTENT_ID + ++lives_ever,
        .incarnation = 1,
    };
    int rc = pageferry_server_add_live(server, &options);

    memcpy(error, options.error, sizeof(options.error));
    return rc == 0 ? tell_gate(server, life, NULL, error) : rc;
}

/* --------------------------------------------------------------------------------------------------------- orders */

static struct life *find(const char *name)
{
    struct life *found = NULL;

    for (int i = 0; i < LIVES_MAX; i++)
        if (strcmp(lives[i].name, name) == 0)
            found = &lives[i];
    return found;
}

static int begin_life(struct pageferry_server *server, char **words, char *error)
{
    struct life *life = find("");

    if (life == NULL || strlen(words[1]) >= NAME_BYTES || strlen(words[5]) != 64)
        return -PF_REASON_BAD_REQUEST;
    snprintf(life->name, sizeof(life->name), "%s", words[1]);
    life->shape.pages = strtoull(words[2], NULL, 10);
    life->shape.seed = strtoull(words[3], NULL, 10);
    life->shape.data_percent = (uint32_t)strtoul(words[4], NULL, 10);
    for (int i = 0; i < 32; i++)
        if (sscanf(words[5] + 2 * i, "%2hhx", &life->token_sha256[i]) != 1)
            return -PF_REASON_BAD_REQUEST;
    if (!start_life(life)) {
        snprintf(error, PAGEFERRY_TEXT_BYTES, "a process whose writes are tracked cannot be had");
        return -PF_REASON_UNSUPPORTED;
    }
    return serve_life(server, life, error);
}

static int freeze_life(struct pageferry_server *server, struct life *life, char *error)
{
    struct pageferry_frozen frozen = {0};
    int rc;

    atomic_store(&life->box->going, SETTLES);
    wait_until(&life->box->going, STANDS_STILL);
    rc = pageferry_server_freeze(server, life->name, &frozen, error, PAGEFERRY_TEXT_BYTES);
    if (rc == 0)
        rc = tell_gate(server, life, &frozen, error);
    if (rc == 0) {
        int used = snprintf(error, PAGEFERRY_TEXT_BYTES, "%" PRIu64 " ", frozen.as_of);
        for (int i = 0; i < 16; i++)
            used += snprintf(error + used, PAGEFERRY_TEXT_BYTES - (size_t)used, "%02x", frozen.digest[i]);
    }
    return rc;
}

static void obey(struct pageferry_server *server, char *line)
{
    char error[PAGEFERRY_TEXT_BYTES] = "", *words[8];
    int count = 0, rc = -PF_REASON_BAD_REQUEST;
    struct life *life;

    for (char *word = strtok(line, " \n"); word != NULL && count < 8; word = strtok(NULL, " \n"))
        words[count++] = word;
    life = count == 2 ? find(words[1]) : NULL;
    if (count == 6 && strcmp(words[0], "life") == 0) {
        rc = begin_life(server, words, error);
    } else if (life != NULL && strcmp(words[0], "freeze") == 0) {
        rc = freeze_life(server, life, error);
    } else if (life != NULL && strcmp(words[0], "end") == 0) {
        pageferry_server_drop_session(server, life->name);
        rc = pageferry_server_remove(server, life->name);
        end_life(life);
    }
    printf("%d %s\n", rc, error);
}

static int listening(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, 16) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0)
        return -1;
    *port = ntohs(address.sin_port);
    return fd;
}

int main(void)
{
    struct pageferry_server_options options = {.listen_fd_count = 1};
    struct pageferry_server *server = NULL;
    char line[LINE_BYTES];
    int port = 0, fd = listening(&port);

    setvbuf(stdout, NULL, _IOLBF, 0);
    options.listen_fds = &fd;
    if (fd < 0 || pageferry_server_open(&options, &server) != 0) {
        fprintf(stderr, "live_source: %s\n", options.error);
        return 71;
    }
    pageferry_server_health(server, 1);
    printf("ready %d\n", port);
    while (fgets(line, sizeof(line), stdin) != NULL)
        obey(server, line);
    pageferry_server_close(server);
    for (int i = 0; i < LIVES_MAX; i++)
        if (lives[i].pid > 0)
            end_life(&lives[i]);
    return 0;
}
