/* SPDX-License-Identifier: Apache-2.0 */
/*
 * docs/examples/same_mm.c, as it stands there: a VMM with the pager in its own address space, against a page server in
 * another process. What it says is held against the image. No Python.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "client_vm.h"
#include "pageferry.h"

#define PAGES UINT64_C(2500) /* more than two steps of a zap */
#define WORDS (REAL_PAGE / sizeof(uint64_t))

static char example[4096];

/* Every fifth page is a hole; page 2 is not. */
static uint64_t word_of(uint64_t page)
{
    return page % 5 == 0 ? 0 : page * UINT64_C(0x9e3779b97f4a7c15) >> 2;
}

static uint64_t sum_of_image(void)
{
    uint64_t sum = 0;

    for (uint64_t page = 0; page < PAGES; page++)
        sum += word_of(page) * WORDS * (page + 1);
    return sum;
}

static int make_image(void)
{
    int fd = memfd_create("image", MFD_CLOEXEC);
    uint64_t words[WORDS];

    if (fd < 0 || ftruncate(fd, (off_t)(PAGES * REAL_PAGE)) < 0)
        return -1;
    for (uint64_t page = 0; page < PAGES; page++) {
        if (word_of(page) == 0)
            continue;
        real_fill(words, 1, word_of(page));
        if (pwrite(fd, words, sizeof(words), (off_t)(page * REAL_PAGE)) != (ssize_t)sizeof(words))
            return -1;
    }
    return fd;
}

/* A page server on loopback in a process of its own, for as long as this one lives; it has its image when this returns. */
static pid_t serve(int listen_fd)
{
    struct pageferry_server_options options = {.listen_fds = &listen_fd, .listen_fd_count = 1};
    struct pageferry_server *server;
    struct pageferry_image_facts facts;
    uint64_t region_pages = PAGES;
    char error[PAGEFERRY_TEXT_BYTES];
    pid_t parent = getpid(), pid;
    int image, ends[2];
    char byte = 0;

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    fflush(stdout);
    pid = fork();
    if (pid != 0) {
        close(ends[1]);
        pid = read(ends[0], &byte, 1) == 1 ? pid : -1;
        close(ends[0]);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    image = make_image();
    if (getppid() != parent || image < 0 || pageferry_server_open(&options, &server) < 0 ||
        pageferry_image_inspect(image, NULL, NULL, &facts, error, sizeof(error)) < 0 ||
        pageferry_server_add_file(server, "vm", image, &facts, &region_pages, 1, NULL, 0, error, sizeof(error)) < 0 ||
        write(ends[1], &byte, 1) != 1)
        _exit(1);
    for (;;)
        pause();
}

static int listen_on_loopback(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 16) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return -1;
    *port = ntohs(address.sin_port);
    return fd;
}

/* Its exit status, and all that it said on stdout. */
static int run_example(uint16_t port, char *said, size_t said_bytes)
{
    char address[32], bytes[32];
    size_t used = 0;
    ssize_t got = 1;
    int ends[2], status = -1;
    pid_t pid;

    snprintf(address, sizeof(address), "127.0.0.1:%u", port);
    snprintf(bytes, sizeof(bytes), "%" PRIu64, PAGES * REAL_PAGE);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        execl(example, example, address, "vm", bytes, NULL);
        _exit(127);
    }
    close(ends[1]);
    while (got > 0 && used + 1 < said_bytes) {
        got = read(ends[0], said + used, said_bytes - used - 1);
        used += got > 0 ? (size_t)got : 0;
    }
    said[used] = '\0';
    close(ends[0]);
    waitpid(pid, &status, 0);
    return status;
}

static void test_the_example(void)
{
    char said[8192], sum[64];
    uint16_t port = 0;
    int fd = listen_on_loopback(&port);
    pid_t server = serve(fd);
    const char *first, *lines[] = {
        "by method 1: ",
        "complete, ",
        "faulted again: yes\n",
        "dropped page 1: it reads 0\n",
        "told: page 2 is poisoned, number 1\n",
        "poisoned page 2: it reads -1\n",
        "poisoned page 2, zapped: it reads -1\n",
        "cleared page 2: it reads 0\n",
    };

    CHECK(server > 0);
    CHECK_EQ(run_example(port, said, sizeof(said)), 0);
    snprintf(sum, sizeof(sum), "sum %" PRIu64 "\n", sum_of_image());
    first = strstr(said, sum);
    CHECK(first != NULL && strstr(first + 1, sum) != NULL); /* while pages arrive, and after a zap of all of them */
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        if (strstr(said, lines[i]) == NULL)
            printf("it does not say: %s\n", lines[i]);
        CHECK(strstr(said, lines[i]) != NULL);
    }
    if (check_bad)
        printf("%s\n", said);
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    close(fd);
}

int main(int argc, char **argv)
{
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;

    snprintf(example, sizeof(example), "%.*s/../examples/same_mm", slash == NULL ? 1 : (int)(slash - argv[0]),
             slash == NULL ? "." : argv[0]);
    if (!client_may()) {
        SKIP(test_the_example, "no userfaultfd right");
        return check_done();
    }
    RUN(test_the_example);
    return check_done();
}
