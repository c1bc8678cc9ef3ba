/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holds the interpreter of the process that loads it: called by ctypes.PyDLL, which keeps the GIL during the call. It
 * says so by a byte to `held_fd`, and returns when a byte can be read from `release_fd`, or its other end is closed.
 */
#include <unistd.h>

int hold(int held_fd, int release_fd);

int hold(int held_fd, int release_fd)
{
    char byte = 'h';

    if (write(held_fd, &byte, 1) != 1)
        return -1;
    return (int)read(release_fd, &byte, 1);
}
