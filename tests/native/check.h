/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The least a C test needs: CHECK notes a failure and goes on, a test is a function, RUN counts it, and main ends with
 * check_done(), which prints "N passed, N failed, N skipped".
 */
#ifndef PAGEFERRY_CHECK_H
#define PAGEFERRY_CHECK_H

#include <stdio.h>

static int check_passed, check_failed, check_skipped, check_bad;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            check_bad = 1; \
        } \
    } while (0)

#define CHECK_EQ(got, want) \
    do { \
        long long got_ = (long long)(got), want_ = (long long)(want); \
        if (got_ != want_) { \
            printf("%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, got_, want_); \
            check_bad = 1; \
        } \
    } while (0)

#define RUN(test) \
    do { \
        check_bad = 0; \
        test(); \
        printf("%s %s\n", check_bad ? "FAIL" : "ok  ", #test); \
        *(check_bad ? &check_failed : &check_passed) += 1; \
    } while (0)

/* `reason` says what is absent here. */
#define SKIP(test, reason) \
    do { \
        printf("SKIP %s: %s\n", #test, reason); \
        check_skipped += 1; \
    } while (0)

static inline int check_done(void)
{
    printf("%d passed, %d failed, %d skipped\n", check_passed, check_failed, check_skipped);
    return check_failed != 0;
}

#endif
