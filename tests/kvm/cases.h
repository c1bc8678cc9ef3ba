/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A test program whose cases are run one at a time by somebody who knows their names:
 *
 *   PROGRAM          every case
 *   PROGRAM list     their names
 *   PROGRAM CASE     that one
 *
 * CASES(X) lists them; CASES_MAIN takes what is absent here, or NULL.
 */
#ifndef CASES_H
#define CASES_H

#include <stdio.h>
#include <string.h>

#include "check.h"

#define CASES_PRINT(name) puts(#name);
#define CASES_RUN(name) \
    if (argc < 2 || strcmp(argv[1], #name) == 0) \
        RUN(name);
#define CASES_SKIP(name) \
    if (argc < 2 || strcmp(argv[1], #name) == 0) \
        SKIP(name, missing);

#define CASES_MAIN(absent) \
    int main(int argc, char **argv) \
    { \
        const char *missing = absent; \
        setvbuf(stdout, NULL, _IOLBF, 0); \
        if (argc == 2 && strcmp(argv[1], "list") == 0) { \
            CASES(CASES_PRINT) \
            return 0; \
        } \
        if (missing != NULL) { \
            CASES(CASES_SKIP) \
        } else { \
            CASES(CASES_RUN) \
        } \
        return check_done(); \
    }

#endif
