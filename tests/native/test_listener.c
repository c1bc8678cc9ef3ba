/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server whose machine has run out of something. The two system calls that say so are played here, once each:
 * a static library takes them from the program.
 */
#include <errno.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"
#include "gen/contract.h"
#include "pageferry.h"
#include "serve_client.h"

static atomic_int accepts_to_fail;
static atomic_int adds_until_failure; /* of listening sockets; 0: none fails */

int accept4(int fd, struct sockaddr *peer, socklen_t *length, int flags)
{
    if (atomic_load(&accepts_to_fail) > 0 && atomic_fetch_sub(&accepts_to_fail, 1) > 0) {
        errno = EMFILE;
        return -1;
    }
    return (int)syscall(SYS_accept4, fd, peer, length, flags);
}

int epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
    bool listens = operation == EPOLL_CTL_ADD && (event->events & EPOLLEXCLUSIVE) != 0;

    if (listens && atomic_load(&adds_until_failure) > 0 && atomic_fetch_sub(&adds_until_failure, 1) == 1) {
        errno = ENOSPC;
        return -1;
    }
    return (int)syscall(SYS_epoll_ctl, epoll_fd, operation, fd, event);
}

static bool is_answered(uint16_t port)
{
    static struct serve_client client;
    static struct serve_call call;
    bool answered;

    serve_open(&client, serve_connect(port), PF_LIMIT_STREAM_WINDOW_BYTES);
    serve_start(&call, &client, PF_PATH_DESCRIBE_IMAGE);
    serve_describe(&call, "none"); /* an error is an answer */
    answered = SERVE_UNTIL(&client, call.ended);
    serve_close(&client);
    return answered;
}

/* No file for a connection: accepting pauses. When it went on, one of two sockets could not be watched for want of
 * memory; at the next try the other one was "there already", and the first was never watched again. */
static void test_accepting_goes_on_at_every_socket(void)
{
    uint16_t ports[2];
    int fds[2] = {serve_listen(&ports[0]), serve_listen(&ports[1])};
    struct pageferry_server_options options = {.listen_fds = fds, .listen_fd_count = 2, .threads = 1};
    struct pageferry_server *server;

    CHECK_EQ(pageferry_server_open(&options, &server), 0);
    adds_until_failure = 2;
    accepts_to_fail = 1;
    CHECK(is_answered(ports[0]));
    CHECK_EQ(atomic_load(&accepts_to_fail), 0);
    CHECK(is_answered(ports[1]));
    CHECK_EQ(atomic_load(&adds_until_failure), 0);
    pageferry_server_close(server);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    RUN(test_accepting_goes_on_at_every_socket);
    return check_done();
}
