/* SPDX-License-Identifier: Apache-2.0 */
/* What all fuzzers need: the entry that libFuzzer calls, a check that is a finding, memory of just the right size. */
#ifndef PAGEFERRY_FUZZ_H
#define PAGEFERRY_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define fuzz_check(expression) \
    do { \
        if (!(expression)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #expression); \
            abort(); \
        } \
    } while (0)

/* The sanitizer sees a read beyond either end. Free it. */
static inline uint8_t *fuzz_copy(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size == 0 ? 1 : size);

    if (copy == NULL)
        abort();
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

/* The input as a tape: bytes are taken from its front, zeros come after its end. */
struct fuzz_tape {
    const uint8_t *at, *end;
};

static inline struct fuzz_tape fuzz_tape_of(const uint8_t *data, size_t size)
{
    static const uint8_t nothing[1];
    const uint8_t *at = size == 0 ? nothing : data;

    return (struct fuzz_tape){at, at + size};
}

static inline uint8_t fuzz_byte(struct fuzz_tape *tape)
{
    return tape->at < tape->end ? *tape->at++ : 0;
}

#endif
