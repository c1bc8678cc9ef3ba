# SPDX-License-Identifier: Apache-2.0
"""The fault client's end of a hand-off, as a test plays it: listens, looks at what comes, answers by frames.

The frame is written down here a second time, on purpose, as native/kernel/frames.h has it: 32 bytes,
host order.
"""

import array
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.kernel.vmm import PAGE_BYTES, PATIENCE_S

MAGIC = 0x50664D31
FRAME = struct.Struct("=IIQQQ")
ACCEPTED, DISCARD, DISCARDED, COMPLETE = 1, 2, 3, 4
POISONED, POISON_HELD, CLEAR, CLEARED = 5, 6, 7, 8
ZAP, ZAPPED = 9, 10
COMPLETE_HUGE_PAGES = 1  # in offset_bytes of a COMPLETE

UFFDIO_COPY = 0xC028AA03
UFFDIO_CONTINUE = 0xC020AA07
UFFDIO_POISON = 0xC020AA08
UFFD_EVENT_PAGEFAULT = 0x12


@dataclass(frozen=True)
class Frame:
    kind: int
    sequence: int = 0
    offset_bytes: int = 0
    length_bytes: int = 0


class Resolver:
    """One hand-off, taken from a listening socket. `layout` is its JSON, `fds` what came along."""

    def __init__(self, listener: socket.socket) -> None:
        listener.settimeout(PATIENCE_S)
        self.socket, _ = listener.accept()
        self.socket.settimeout(PATIENCE_S)
        data, ancillary, _, _ = self.socket.recvmsg(65536, 1024, socket.MSG_CMSG_CLOEXEC)
        self.data = data
        self.layout: list[dict[str, Any]] = json.loads(data)
        numbers = array.array("i")
        for _, kind, content in ancillary:
            assert kind == socket.SCM_RIGHTS
            numbers.frombytes(content)
        self.fds = list(numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        for fd in self.fds:
            os.close(fd)

    @property
    def uffd(self) -> int:
        return self.fds[0]

    def say(self, kind: int, sequence: int = 0, offset_bytes: int = 0, length_bytes: int = 0) -> None:
        self.socket.sendall(FRAME.pack(MAGIC, kind, sequence, offset_bytes, length_bytes))

    def hear(self) -> Frame:
        data = self.socket.recv(FRAME.size, socket.MSG_WAITALL)
        assert len(data) == FRAME.size
        magic, kind, sequence, offset, length = FRAME.unpack(data)
        assert magic == MAGIC
        return Frame(kind, sequence, offset, length)

    def silent(self) -> bool:
        """Whether the VMM has said nothing that was not heard yet."""
        return not select.select([self.socket], [], [], 0)[0]

    def fault_page(self) -> int:
        """Waits for a page fault; the page's index."""
        assert select.select([self.uffd], [], [], PATIENCE_S)[0], "no page fault came"
        message = os.read(self.uffd, 32)
        assert message[0] == UFFD_EVENT_PAGEFAULT
        (address,) = struct.unpack_from("=Q", message, 16)
        return int(address - self.layout[0]["base_host_virt_addr"]) // PAGE_BYTES

    def no_fault(self) -> bool:
        return not select.select([self.uffd], [], [], 0)[0]

    def fill(self, page: int, byte: int) -> None:
        """Fills and maps a page, and wakes who waits for it."""
        source = ctypes.create_string_buffer(bytes([byte]) * PAGE_BYTES, PAGE_BYTES)
        address = self.layout[0]["base_host_virt_addr"] + page * PAGE_BYTES
        call = bytearray(struct.pack("=QQQQq", address, ctypes.addressof(source), PAGE_BYTES, 0, 0))
        fcntl.ioctl(self.uffd, UFFDIO_COPY, call)

    def poison(self, page: int) -> None:
        """Who waits for the page, or touches it from now on, gets SIGBUS."""
        address = self.layout[0]["base_host_virt_addr"] + page * PAGE_BYTES
        fcntl.ioctl(self.uffd, UFFDIO_POISON, bytearray(struct.pack("=QQQq", address, PAGE_BYTES, 0, 0)))

    def map(self, page: int) -> None:
        """Maps a page that the file holds, and wakes who waits for it."""
        address = self.layout[0]["base_host_virt_addr"] + page * PAGE_BYTES
        fcntl.ioctl(self.uffd, UFFDIO_CONTINUE, bytearray(struct.pack("=QQQq", address, PAGE_BYTES, 0, 0)))


def listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    return listener
