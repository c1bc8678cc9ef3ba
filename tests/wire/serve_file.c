/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A page server without Python, for tests that must not depend on it: pageferry.h's server half on a loopback
 * port and, if asked, on a unix socket.
 *
 *     serve_file [-t THREADS] [-u SOCKET] [-l NAME=PAGES]... NAME=FILE...
 *
 * Prints "ready PORT", then obeys its standard input, a line an order, answered by a line:
 *     health 0|1    drain    open_calls    counters    inspect FILE    add NAME FILE
 *     poison NAME FIRST COUNT
 * -l serves the memory of a process that runs, which has orders of its own (live_vms.h). It ends with its input.
 * Exit status 65: what was asked at the start was refused.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../native/base/stats.h"
#include "../../native/pageferry.h"
#include "live_vms.h"

#define LINE_BYTES 1024

static int listen_tcp(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&address, length) != 0 || listen(fd, 64) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
        perror("listen");
        exit(71);
    }
    *port = ntohs(address.sin_port);
    return fd;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 64) != 0) {
        perror(path);
        exit(71);
    }
    return fd;
}

/* 0 or minus a reason; the text is for people. */
static int inspect(const char *path, struct pageferry_image_facts *facts, int *fd, char *error)
{
    int rc = 0;

    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0) {
        snprintf(error, PAGEFERRY_TEXT_BYTES, "%s: %s", path, strerror(errno));
        return -1;
    }
    rc = pageferry_image_inspect(*fd, NULL, NULL, facts, error, PAGEFERRY_TEXT_BYTES);
    if (rc != 0)
        close(*fd);
    return rc;
}

static int add(struct pageferry_server *server, const char *name, const char *path, char *error)
{
    struct pageferry_image_facts facts;
    int fd, rc = inspect(path, &facts, &fd, error);

    if (rc == 0) {
        rc = pageferry_server_add_file(server, name, fd, &facts, &facts.page_count, 1, NULL, 0, error,
                                       PAGEFERRY_TEXT_BYTES);
        close(fd);
    }
    return rc;
}

static void print_counters(struct pageferry_server *server)
{
    uint64_t values[STATS_COUNTER_COUNT];
    uint32_t count = pageferry_server_counters(server, values, STATS_COUNTER_COUNT);

    for (uint32_t i = 0; i < count; i++)
        printf("%s=%" PRIu64 " ", stats_counter_name(i), values[i]);
    printf("\n");
}

static void print_facts(const char *path)
{
    struct pageferry_image_facts facts;
    char error[PAGEFERRY_TEXT_BYTES] = "";
    int fd, rc = inspect(path, &facts, &fd, error);

    if (rc == 0) {
        printf("ok %016" PRIx64 " %" PRIu64 " %" PRIu64 "\n", facts.content_id, facts.page_count,
               facts.data_pages);
        close(fd);
    } else {
        printf("%d %s\n", rc, error);
    }
}

static int split(char *line, char **words)
{
    int count = 0;

    for (char *word = strtok(line, " \n"); word != NULL && count < LIVE_WORDS_MAX; word = strtok(NULL, " \n"))
        words[count++] = word;
    return count;
}

static void obey(struct pageferry_server *server, char *line)
{
    char error[PAGEFERRY_TEXT_BYTES] = "", *words[LIVE_WORDS_MAX];
    int count = split(line, words);
    const char *order = count > 0 ? words[0] : "";

    if (count == 0)
        return;
    if (strcmp(order, "health") == 0 && count == 2) {
        pageferry_server_health(server, (uint32_t)atoi(words[1]));
        printf("ok\n");
    } else if (strcmp(order, "drain") == 0) {
        pageferry_server_drain(server);
        printf("ok\n");
    } else if (strcmp(order, "open_calls") == 0) {
        printf("%u\n", pageferry_server_open_calls(server));
    } else if (strcmp(order, "counters") == 0) {
        print_counters(server);
    } else if (strcmp(order, "inspect") == 0 && count == 2) {
        print_facts(words[1]);
    } else if (strcmp(order, "add") == 0 && count == 3) {
        int rc = add(server, words[1], words[2], error);
        printf("%d %s\n", rc, error);
    } else if (strcmp(order, "poison") == 0 && count == 4) {
        int rc = pageferry_server_poison(server, words[1], strtoull(words[2], NULL, 10), strtoull(words[3], NULL, 10),
                                         error, sizeof(error));
        printf("%d %s\n", rc, error);
    } else if (!live_vms_obey(server, words, count)) {
        printf("unknown order\n");
    }
}

static void add_all(struct pageferry_server *server, int count, char **images)
{
    for (int i = 0; i < count; i++) {
        char error[PAGEFERRY_TEXT_BYTES] = "", *path = strchr(images[i], '=');
        if (path != NULL)
            *path++ = 0;
        if (path == NULL || add(server, images[i], path, error) != 0) {
            fprintf(stderr, "%s: %s\n", images[i], error);
            exit(65);
        }
    }
}

int main(int argc, char **argv)
{
    struct pageferry_server_options options = {0};
    struct pageferry_server *server = NULL;
    int fds[2], port = 0, option;
    char line[LINE_BYTES], error[PAGEFERRY_TEXT_BYTES] = "";

    setvbuf(stdout, NULL, _IOLBF, 0);
    fds[0] = listen_tcp(&port);
    options.listen_fds = fds;
    options.listen_fd_count = 1;
    while ((option = getopt(argc, argv, "t:u:l:")) != -1) {
        if (option == 't')
            options.threads = (uint32_t)atoi(optarg);
        else if (option == 'u')
            fds[options.listen_fd_count++] = listen_unix(optarg);
        else if (option != 'l' || !live_vms_start(optarg))
            return option == 'l' ? 65 : 64;
    }
    if (pageferry_server_open(&options, &server) != 0) {
        fprintf(stderr, "%s\n", options.error);
        return 65;
    }
    for (uint32_t i = 0; i < options.listen_fd_count; i++)
        close(fds[i]);
    add_all(server, argc - optind, argv + optind);
    if (live_vms_add(server, error) != 0) {
        fprintf(stderr, "%s\n", error);
        return 65;
    }
    pageferry_server_health(server, 1);
    printf("ready %d\n", port);
    while (fgets(line, sizeof(line), stdin) != NULL)
        obey(server, line);
    pageferry_server_close(server);
    live_vms_end();
    return 0;
}
