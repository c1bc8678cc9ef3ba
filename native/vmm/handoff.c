/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-off from inside a VMM: see handoff.h. */
#include "handoff.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "../kernel/create.h"
#include "../kernel/uapi.h"

/* Above what a VMM is likely to name or sweep by number. */
#define FD_HIGH 500
#define CALL(number) (UINT64_C(1) << (number))

/* What a role asks of the kernel, and who is at the other end. */
struct role {
    enum handoff_role role;
    const char *name;
    uint64_t features;
    uint64_t modes;
    uint64_t calls; /* that the registered range must take */
    const char *least_kernel;
    const char *key; /* in the JSON */
    const char *peer;
    const char *start;
};

#define RESTORE_FEATURES (UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_THREAD_ID)
#define RESTORE_MODES (UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR)
#define RESTORE_CALLS (CALL(_UFFDIO_WAKE) | CALL(_UFFDIO_COPY) | CALL(_UFFDIO_CONTINUE)) /* a pool has no zero page */

static const struct role roles[] = {
    {HANDOFF_RESTORE, "restore", RESTORE_FEATURES, RESTORE_MODES, RESTORE_CALLS, "minor faults on shared memory need "
     "Linux 5.14", "", "fault client", "faultclient run"},
    {HANDOFF_TRACK, "track", CREATE_TRACK_FEATURES, UFFDIO_REGISTER_MODE_WP, CALL(_UFFDIO_WRITEPROTECT), "asynchronous write "
     "protection needs Linux 6.7", ",\"pageferry_role\":\"track\"", "page server", "pageserver serve"},
    {HANDOFF_BOTH, "both", RESTORE_FEATURES | CREATE_TRACK_FEATURES, RESTORE_MODES | UFFDIO_REGISTER_MODE_WP,
     RESTORE_CALLS | CALL(_UFFDIO_WRITEPROTECT), "asynchronous write protection needs Linux 6.7",
     ",\"pageferry_role\":\"both\"", "fault client", "faultclient serve"},
};
#define ROLE_COUNT (sizeof(roles) / sizeof(roles[0]))

enum handoff_role handoff_role_named(const char *name)
{
    enum handoff_role found = 0;

    for (size_t i = 0; i < ROLE_COUNT; i++)
        if (strcmp(name, roles[i].name) == 0)
            found = roles[i].role;
    return found;
}

static const struct role *role_of(enum handoff_role role)
{
    size_t i = 0;

    while (i + 1 < ROLE_COUNT && roles[i].role != role)
        i++;
    return &roles[i];
}

static void say(const char *format, va_list arguments)
{
    char line[512] = "pageferry-shim: ";
    size_t length = strlen(line);
    ssize_t written;

    vsnprintf(line + length, sizeof(line) - length - 1, format, arguments);
    length = strlen(line);
    line[length++] = '\n';
    written = write(STDERR_FILENO, line, length);
    (void)written; /* there is nobody else to tell */
}

void shim_say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void shim_die(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    _exit(1);
}

/* A number that the VMM does not meet by chance; where there is none so high, the one it has. */
static int moved_high(int fd)
{
    int high = fcntl(fd, F_DUPFD_CLOEXEC, FD_HIGH);

    if (high < 0)
        return fd;
    close(fd);
    return high;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---------------------------------------------------------------------------------------------------- registration */

/* Before anything else can happen to the mapping. No EVENT_*: a VMM that drops memory would wait for whoever reads the
 * events, and a fork would hand them the child's; DONTFORK keeps children away from memory that is not there yet. */
static void prepare(const struct handoff_request *request)
{
    void *start = (void *)(uintptr_t)request->address;

    if (syscall(SYS_madvise, start, request->length_bytes, MADV_NOHUGEPAGE) < 0 && errno != EINVAL)
        shim_die("cannot keep huge pages off the RAM: %s", strerror(errno));
    if (syscall(SYS_madvise, start, request->length_bytes, MADV_DONTFORK) < 0)
        shim_die("cannot keep the RAM from forked children: %s", strerror(errno));
}

static int registered_uffd(const struct handoff_request *request)
{
    const struct role *role = role_of(request->role);
    struct uffdio_register arg = {
        .range = {.start = request->address, .len = request->length_bytes},
        .mode = role->modes,
    };
    int uffd = create_uffd(request->device_fd, role->features, NULL);

    if (uffd == -EOPNOTSUPP)
        shim_die("this kernel is too old: %s", role->least_kernel);
    if (uffd == -EPERM || uffd == -EACCES)
        shim_die("no userfaultfd right (%s): %s", strerror(-uffd), create_remedy(uffd));
    if (uffd < 0)
        shim_die("no userfaultfd (%s): %s", strerror(-uffd), create_remedy(uffd));
    if (ioctl(uffd, UFFDIO_REGISTER, &arg) < 0)
        shim_die("the RAM cannot be registered for page faults (%s): put it on a tmpfs or memfd file that is open for "
                 "writing", strerror(errno));
    if ((arg.ioctls & role->calls) != role->calls)
        shim_die("the RAM can be registered, but not served (calls 0x%" PRIx64 "): put it on a tmpfs or memfd file",
                 (uint64_t)arg.ioctls);
    return uffd;
}

/* -------------------------------------------------------------------------------------------------------- hand-off */

static int connected(const struct handoff_request *request)
{
    const struct role *role = role_of(request->role);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {request->timeout_ms / 1000, request->timeout_ms % 1000 * 1000};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        shim_die("no socket: %s", strerror(errno));
    if (strlen(request->socket_path) >= sizeof(address.sun_path))
        shim_die("the path in PAGEFERRY_SHIM_SOCKET is longer than %zu bytes: name a shorter one",
                 sizeof(address.sun_path) - 1);
    strcpy(address.sun_path, request->socket_path);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* of connect too: the listener's queue is full */
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        shim_die("nobody takes this VM at %s (%s): start `%s` on that socket first", request->socket_path,
                 strerror(errno), role->start);
    return fd;
}

/* What the kernel maps at once: of a file on a pool of huge pages one of those. */
static uint64_t ram_page_bytes(int fd)
{
    struct statfs system;
    struct stat file;
    bool pool = fstatfs(fd, &system) == 0 && (unsigned long)system.f_type == HUGETLBFS_MAGIC;

    return pool && fstat(fd, &file) == 0 ? (uint64_t)file.st_blksize : 4096;
}

/* One message, two fds: Firecracker's JSON with a key more, which says that frames follow, and one for the role. */
static void send_layout(int socket, int uffd, const struct handoff_request *request)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(2 * sizeof(int))];
    } control = {0};
    char json[256];
    struct iovec data = {.iov_base = json};
    struct msghdr message = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    int fds[2] = {uffd, request->ram_fd};
    uint64_t page_bytes = ram_page_bytes(request->ram_fd);
    ssize_t sent;

    data.iov_len = (size_t)snprintf(json, sizeof(json),
                                    "[{\"base_host_virt_addr\":%" PRIu64 ",\"size\":%" PRIu64 ",\"offset\":0,"
                                    "\"page_size\":%" PRIu64 ",\"page_size_kib\":%" PRIu64
                                    ",\"pageferry_frames\":1%s}]",
                                    request->address, request->length_bytes, page_bytes, page_bytes,
                                    role_of(request->role)->key);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof(fds));
    memcpy(CMSG_DATA(&control.header), fds, sizeof(fds));
    do {
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent != (ssize_t)data.iov_len)
        shim_die("the hand-off could not be sent (%s): see the %s's log", sent < 0 ? strerror(errno) : "cut",
                 role_of(request->role)->peer);
}

static void wait_for_accepted(struct handoff *handoff, const struct handoff_request *request)
{
    const struct role *role = role_of(request->role);
    int64_t deadline_ms = now_ms() + request->timeout_ms;
    struct pollfd readable = {.fd = handoff->socket, .events = POLLIN};
    struct frame frame;
    int rc;

    while ((rc = frame_receive(handoff->socket, &handoff->reader, &frame)) == 0) {
        int64_t left_ms = deadline_ms - now_ms();
        if (left_ms <= 0)
            shim_die("the %s at %s has not accepted this VM in %d ms: see its log", role->peer, request->socket_path,
                     request->timeout_ms);
        poll(&readable, 1, (int)left_ms);
    }
    if (rc == -EPIPE)
        shim_die("the %s at %s has refused this VM: see its log", role->peer, request->socket_path);
    if (rc < 0 || frame.kind != FRAME_ACCEPTED)
        shim_die("what answers at %s is no %s of this version: start `%s` there", request->socket_path, role->peer,
                 role->start);
}

void handoff_make(struct handoff *handoff, const struct handoff_request *request)
{
    memset(handoff, 0, sizeof(*handoff));
    pthread_mutex_init(&handoff->lock, NULL);
    pthread_cond_init(&handoff->changed, NULL);
    handoff->role = request->role;
    handoff->address = request->address;
    handoff->length_bytes = request->length_bytes;
    handoff->pid = getpid();
    handoff->ram_fd = fcntl(request->ram_fd, F_DUPFD_CLOEXEC, FD_HIGH);
    if (handoff->ram_fd < 0)
        shim_die("the RAM file cannot be held open: %s", strerror(errno));
    prepare(request);
    handoff->uffd = moved_high(registered_uffd(request));
    handoff->socket = moved_high(connected(request));
    send_layout(handoff->socket, handoff->uffd, request);
    wait_for_accepted(handoff, request);
}
