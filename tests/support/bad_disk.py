# SPDX-License-Identifier: Apache-2.0
"""A disk with bad sectors, as the kernel shows one: a file whose reads end in EIO where a test wants that.

A file system of one file, spoken over /dev/fuse, in a mount namespace that ends with its holder: nothing of
it is left however a test ends. Nothing is cached, so a page that goes bad is bad at the next read.

    with BadDisk(content) as disk:
        disk.bad |= {5, 6}
        Process([*disk.prefix, "pageserver", ..., disk.path])
"""

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PAGE_BYTES: Final = 4096
EIO, ENOENT, ENOSYS = 5, 2, 38
ROOT, FILE = 1, 2
NAME: Final = b"image"
FOLDER_MODE, FILE_MODE = 0o40755, 0o100644
(LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET) = (
    1, 2, 3, 14, 15, 18, 25, 26, 36, 38, 42,
)  # fmt: skip
NO_ANSWER: Final = (FORGET, INTERRUPT, BATCH_FORGET)
DIRECT_IO: Final = 1
REQUEST_BYTES: Final = 1 << 18
READ_MAX: Final = 1 << 17
# Mounts it where only its own mount namespace sees it, says so, and stays until its input ends.
HOLDER: Final = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
fd, where = int(sys.argv[1]), sys.argv[2]
CLONE_NEWNS, MS_PRIVATE, MS_REC, MS_RDONLY = 1 << 17, 1 << 18, 1 << 14, 1
libc.unshare(CLONE_NEWNS)
libc.mount(b"none", b"/", None, MS_PRIVATE | MS_REC, None)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"bad", where.encode(), b"fuse", MS_RDONLY, options) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
os.close(fd)
print("mounted", flush=True)
sys.stdin.read()
"""


class NoBadDisk(Exception):
    """What is absent here."""


class BadDisk:
    """`bad`: its pages that cannot be read now."""

    def __init__(self, content: bytes, folder: Path) -> None:
        self.bad: set[int] = set()
        self._content = content
        self._fd = -1
        if os.geteuid() != 0:
            raise NoBadDisk("no right to mount")
        try:
            self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise NoBadDisk(f"no /dev/fuse: {error.strerror}") from error
        where = folder / "bad-disk"
        where.mkdir()
        self.path = where / NAME.decode()
        self._holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(self._fd), str(where)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(self._fd,),
        )
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != b"mounted\n":
            why = self._holder.stderr.read().decode().strip()
            self._end_holder()
            os.close(self._fd)
            raise NoBadDisk(f"no mount of our own: {why}")
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    @property
    def prefix(self) -> list[str]:
        """Of a command that is to see it."""
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--"]

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, REQUEST_BYTES)
            except OSError:  # ENODEV: it is not mounted any more
                return
            opcode, unique, node = struct.unpack_from("=4xIQQ", request)
            if opcode in NO_ANSWER:
                continue
            error, answer = self._answer(opcode, node, request[40:])
            try:
                os.write(self._fd, struct.pack("=IiQ", 16 + len(answer), -error, unique) + answer)
            except OSError:  # who asked is gone
                continue

    def _answer(self, opcode: int, node: int, body: bytes) -> tuple[int, bytes]:
        if opcode == INIT:
            return 0, struct.pack("=4I2H2I2H8I", 7, 31, READ_MAX, 0, 0, 0, READ_MAX, 1, 0, 0, *[0] * 8)
        if opcode == LOOKUP and body.rstrip(b"\0") == NAME:
            return 0, struct.pack("=4Q2I", FILE, 0, 0, 0, 0, 0) + self._attributes(FILE)
        if opcode == LOOKUP:
            return ENOENT, b""
        if opcode == GETATTR:
            return 0, struct.pack("=Q2I", 0, 0, 0) + self._attributes(node)
        if opcode == OPEN:
            return 0, struct.pack("=Q2I", 1, DIRECT_IO, 0)
        if opcode == READ:
            offset, size = struct.unpack_from("=8xQI", body)
            pages = range(offset // PAGE_BYTES, -(-(offset + size) // PAGE_BYTES))
            return (EIO, b"") if self.bad.intersection(pages) else (0, self._content[offset : offset + size])
        return (0, b"") if opcode in (RELEASE, FLUSH, DESTROY) else (ENOSYS, b"")

    def _attributes(self, node: int) -> bytes:
        size = len(self._content) if node == FILE else 0
        mode = FILE_MODE if node == FILE else FOLDER_MODE
        times = (0,) * 6
        blocks = size // 512
        return struct.pack("=3Q3Q3I7I", node, size, blocks, *times, mode, 1, 0, 0, 0, PAGE_BYTES, 0)

    def _end_holder(self) -> None:
        self._holder.communicate()

    def close(self) -> None:
        """After whoever used it has ended."""
        self._end_holder()
        self._serving.join(10)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
