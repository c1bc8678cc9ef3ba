/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The program of the kernel matrix (matrix.h).
 *
 *   matrix list       a line a row, tabs between: its section, name, what is asked, our rule, the kernel's own test
 *   matrix run ROW    a line a kind: what was expected and what was answered; exit status 1 if they differ
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include "matrix.h"

#define CELL_SECONDS 20

static const struct rows *const sections[] = {
    &handshake_rows, &register_rows, &fault_rows, &fill_rows, &continue_rows, &wake_rows, &zap_rows, &huge_rows,
    &poison_rows, &poison_ends_rows, &event_rows, &fork_rows, &protect_rows, &dirty_rows,
};
#define SECTION_COUNT (sizeof(sections) / sizeof(sections[0]))

static const char *const kind_names[KIND_COUNT] = {"anon",        "memfd",     "tmpfs",       "memfd-private",
                                                   "huge-shared", "huge-anon", "huge-private"};

static const char *either(const char *first, const char *second)
{
    return first != NULL ? first : second;
}

static const char *expected_of(const struct row *row, enum kind kind)
{
    const struct expected *e = &row->expected;
    const char *of_kind[KIND_COUNT] = {
        either(e->anon, e->private_4k), e->shmem, e->shmem, either(e->memfd_private, e->private_4k),
        either(e->huge_shared, e->huge), either(e->huge_anon, e->huge), either(e->huge_private, e->huge),
    };

    return either(either(of_kind[kind], e->all), "(not said)");
}

/* One of several that may be expected, with " or " between. */
static bool agrees(const char *expected, const char *answer)
{
    size_t length = strlen(answer);

    while (expected != NULL && !(strncmp(expected, answer, length) == 0 &&
                                 (expected[length] == '\0' || strncmp(expected + length, " or ", 4) == 0))) {
        expected = strstr(expected, " or ");
        expected = expected != NULL ? expected + 4 : NULL;
    }
    return expected != NULL;
}

static enum kind kinds_of(const struct row *row)
{
    return row->once ? 1 : KIND_COUNT;
}

/* In a process of its own, which may hang, crash, or leave whatever it likes behind. */
static void run_cell(const struct row *row, enum kind kind, char answer[ANSWER_BYTES])
{
    int pipe_of[2], status = 0;
    ssize_t length = 0;
    pid_t child;

    fflush(stdout);
    child = pipe(pipe_of) == 0 ? fork() : -1;
    if (child == 0) {
        struct bed bed;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        alarm(CELL_SECONDS);
        if (bed_open(&bed, kind))
            row->run(&bed);
        else
            say(&bed, "no such memory: %m");
        _exit(write(pipe_of[1], bed.answer, strlen(bed.answer)) < 0);
    }
    close(pipe_of[1]);
    length = child < 0 ? -1 : read(pipe_of[0], answer, ANSWER_BYTES - 1);
    answer[length < 0 ? 0 : length] = '\0';
    close(pipe_of[0]);
    if (child > 0 && waitpid(child, &status, 0) == child && status != 0)
        snprintf(answer, ANSWER_BYTES, "the process ended with status %d", status);
}

/* ------------------------------------------------------------------------------------------------------------ doing */

static const char *or_nothing(const char *text)
{
    return text != NULL ? text : "";
}

static int list(void)
{
    for (size_t s = 0; s < SECTION_COUNT; s++)
        for (size_t i = 0; i < sections[s]->count; i++) {
            const struct row *row = &sections[s]->rows[i];
            printf("%s\t%s\t%s\t%s\t%s\n", sections[s]->title, row->name, row->asks, or_nothing(row->rule),
                   or_nothing(row->selftest));
        }
    return 0;
}

static const struct row *row_named(const char *name)
{
    for (size_t s = 0; s < SECTION_COUNT; s++)
        for (size_t i = 0; i < sections[s]->count; i++)
            if (strcmp(sections[s]->rows[i].name, name) == 0)
                return &sections[s]->rows[i];
    return NULL;
}

static int run(const char *name)
{
    const struct row *row = row_named(name);
    char answer[ANSWER_BYTES];
    int differ = 0;

    if (row == NULL) {
        fprintf(stderr, "no such row: %s\n", name);
        return 64;
    }
    for (enum kind kind = 0; kind < kinds_of(row); kind++) {
        run_cell(row, kind, answer);
        printf("%s\t%s\t%s\n", row->once ? "any" : kind_names[kind], expected_of(row, kind), answer);
        differ |= !agrees(expected_of(row, kind), answer);
    }
    return differ;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "list") == 0)
        return list();
    if (argc == 3 && strcmp(argv[1], "run") == 0)
        return run(argv[2]);
    fprintf(stderr, "matrix list | run ROW\n");
    return 64;
}
