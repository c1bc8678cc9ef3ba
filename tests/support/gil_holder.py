# SPDX-License-Identifier: Apache-2.0
"""A console script of ours whose interpreter can be held still from outside, for as long as a test wants.

    gil_holder.py LIBRARY GO_FD HELD_FD RELEASE_FD MODULE OPTION...

A thread waits for a byte on GO_FD (without the GIL), then calls into gil_holder.c, which takes the GIL and
keeps it: until a byte comes on RELEASE_FD no line of Python runs in this process, on any thread.
"""

import ctypes
import importlib
import os
import sys
import threading


def hold_when_told(library: str, go_fd: int, held_fd: int, release_fd: int) -> None:
    holder = ctypes.PyDLL(library)  # not CDLL: that lets the GIL go
    while os.read(go_fd, 1):
        holder.hold(held_fd, release_fd)


def main() -> None:
    library, go_fd, held_fd, release_fd, module, *options = sys.argv[1:]
    fds = (int(go_fd), int(held_fd), int(release_fd))
    threading.Thread(target=hold_when_told, args=(library, *fds), daemon=True).start()
    sys.argv = [module.partition(".")[0], *options]
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
