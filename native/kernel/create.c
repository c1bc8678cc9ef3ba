/* SPDX-License-Identifier: Apache-2.0 */
/* The ways to a userfaultfd, and its handshake: see create.h. Used inside a VMM too, so libc alone and no state. */
#include "create.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "uapi.h"

#define UFFD_FLAGS (O_CLOEXEC | O_NONBLOCK)

static int from_device(int device_fd)
{
    int fd = ioctl(device_fd, USERFAULTFD_IOC_NEW, UFFD_FLAGS);

    return fd < 0 ? -errno : fd;
}

static int from_own_device(void)
{
    int device_fd = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    int fd;

    if (device_fd < 0)
        return -errno;
    fd = from_device(device_fd);
    close(device_fd);
    return fd;
}

static int from_syscall(void)
{
    int fd = (int)syscall(SYS_userfaultfd, UFFD_FLAGS);

    return fd < 0 ? -errno : fd;
}

int create_bare(int device_fd, enum create_way *way)
{
    enum create_way taken = CREATE_WAY_GIVEN;
    int fd, device;

    if (device_fd >= 0) {
        fd = from_device(device_fd);
    } else {
        taken = CREATE_WAY_SYSCALL;
        fd = from_syscall();
        if (fd == -EPERM || fd == -ENOSYS) { /* the sysctl or seccomp; the device may be open to us all the same */
            device = from_own_device();
            taken = CREATE_WAY_DEVICE;
            fd = device >= 0 ? device : fd;
        }
    }
    if (way != NULL)
        *way = fd >= 0 ? taken : CREATE_WAY_NONE;
    return fd;
}

static int handshake(int fd, uint64_t wanted, uint64_t *features)
{
    struct uffdio_api arg = {.api = UFFD_API, .features = wanted};

    if (ioctl(fd, UFFDIO_API, &arg) < 0)
        return -errno;
    *features = arg.features;
    return 0;
}

/* Early 6.1 kernels accepted bits that they do not know: what they say they have is compared, twice. */
int create_uffd(int device_fd, uint64_t wanted, uint64_t *features)
{
    uint64_t have = 0;
    int fd = create_bare(device_fd, NULL);
    int rc;

    if (fd < 0)
        return fd;
    rc = handshake(fd, 0, &have);
    close(fd);
    if (rc < 0)
        return rc;
    if (features != NULL)
        *features = have;
    if ((have & wanted) != wanted)
        return -EOPNOTSUPP;
    fd = create_bare(device_fd, NULL);
    if (fd < 0)
        return fd;
    rc = handshake(fd, wanted, &have);
    if (rc == 0 && (have & wanted) != wanted)
        rc = -EOPNOTSUPP;
    if (rc < 0) {
        close(fd);
        fd = rc;
    }
    return fd;
}

const char *create_remedy(int rc)
{
    const char *remedy = "see what the kernel says";

    if (rc == -EPERM || rc == -EACCES)
        remedy = "give the process CAP_SYS_PTRACE, or set vm.unprivileged_userfaultfd=1, or let it open "
                 "/dev/userfaultfd, or pass an open fd of it by PAGEFERRY_SHIM_UFFD_FD";
    else if (rc == -ENOSYS)
        remedy = "use a kernel with CONFIG_USERFAULTFD, and let the seccomp profile allow userfaultfd";
    else if (rc == -EOPNOTSUPP)
        remedy = "use a newer kernel: minor faults on shared memory need Linux 5.14";
    else if (rc == -EMFILE || rc == -ENFILE)
        remedy = "raise the limit on open files";
    return remedy;
}
