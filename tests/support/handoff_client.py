# SPDX-License-Identifier: Apache-2.0
"""The VMM's side of a hand-off: messages as Firecracker's generations write them, and memory to hand over.

with Vmm(path) as vmm:
    vmm.send(layout(region(0x7000_0000, 16)), fds=[uffd])
"""

import array
import ctypes
import fcntl
import json
import mmap
import os
import platform
import socket
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

from tests.support.requires import USERFAULTFD

PAGE_BYTES: Final = 4096
# What each generation says of a region, in its order (facts: three keys, then the misnamed one, then both).
GENERATIONS: Final = {
    "1.1": ("base_host_virt_addr", "size", "offset"),
    "1.7": ("base_host_virt_addr", "size", "offset", "page_size_kib"),
    "1.12": ("base_host_virt_addr", "size", "offset", "page_size", "page_size_kib"),
}


def region(
    address: int, page_count: int, first_page: int = 0, *, generation: str = "1.12", **more: Any
) -> dict[str, Any]:
    values = {
        "base_host_virt_addr": address,
        "size": page_count * PAGE_BYTES,
        "offset": first_page * PAGE_BYTES,
        "page_size": PAGE_BYTES,
        "page_size_kib": PAGE_BYTES,
    }
    return {key: values[key] for key in GENERATIONS[generation]} | more


def layout(*regions: Any) -> bytes:
    """Compact, as it is on the wire."""
    return json.dumps(regions, separators=(",", ":")).encode()


def send(connection: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    connection.sendmsg([data], rights)


class Vmm:
    """Connected to a hand-off socket from entering on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        send(self._socket, data, fds)

    def __enter__(self) -> Self:
        self._socket.connect(str(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


# ------------------------------------------------------------------------------------------------ real memory

LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long)
for _name in ("munmap", "madvise", "mlock2"):
    getattr(LIBC, _name).argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

MADV_NOHUGEPAGE: Final = 15
MLOCK_ONFAULT: Final = 1
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
UFFD_API: Final = 0xAA
MISSING_SHMEM, MINOR_SHMEM = 1 << 5, 1 << 10
MODE_MISSING, MODE_MINOR = 1 << 0, 1 << 2


def checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


class Memory:
    """Guest memory of this process, on a file (an open one is taken over, else a memfd), registered as by a
    VMM that knows its duty. Nothing touches it."""

    def __init__(self, page_count: int, *, file: int | None = None, locked: bool = False) -> None:
        self.page_count = page_count
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.file = os.memfd_create("guest-ram") if file is None else file
            stack.callback(os.close, self.file)
            os.ftruncate(self.file, self.length_bytes)
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            where = LIBC.mmap(None, self.length_bytes, protection, mmap.MAP_SHARED, self.file, 0)
            self.address = int(where)
            stack.callback(LIBC.munmap, self.address, self.length_bytes, 0)
            LIBC.madvise(self.address, self.length_bytes, MADV_NOHUGEPAGE)  # without huge pages: not needed
            if locked:  # as they come: else this very call would wait for them
                checked(LIBC.mlock2(self.address, self.length_bytes, MLOCK_ONFAULT), "mlock2")
            self.uffd = checked(
                LIBC.syscall(USERFAULTFD[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK), "userfaultfd"
            )
            stack.callback(os.close, self.uffd)
            fcntl.ioctl(self.uffd, UFFDIO_API, struct.pack("=3Q", UFFD_API, MISSING_SHMEM | MINOR_SHMEM, 0))
            span = struct.pack("=4Q", self.address, self.length_bytes, MODE_MISSING | MODE_MINOR, 0)
            fcntl.ioctl(self.uffd, UFFDIO_REGISTER, span)
            self._stack = stack.pop_all()

    @property
    def length_bytes(self) -> int:
        return self.page_count * PAGE_BYTES

    def layout(self) -> bytes:
        return layout(region(self.address, self.page_count))

    @property
    def fds(self) -> tuple[int, int]:
        return self.uffd, self.file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
