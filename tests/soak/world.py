# SPDX-License-Identifier: Apache-2.0
"""Where the VMs of the soak get their pages from, and what happens to it: page servers that are killed, links
that break. One page server, as a user starts it, has the images; another one, live_source.c, has VMs that run
and are moved.
"""

import hashlib
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.build import ROOT
from tests.support.guest import Shape
from tests.support.pair import serve
from tests.support.processes import Process

BUILD: Final = ROOT / "build" / "soak"
FLAGS: Final = ("-std=gnu17", "-Wall", "-Wextra", "-Werror", "-O2", "-g", "-D_GNU_SOURCE", "-pthread")
LIBRARIES: Final = ("-lnghttp2", "-lxxhash", "-lcrypto", "-lm")
NATIVE_TESTS: Final = ("real_vm.c", "real_kernel.c")


class SoakError(Exception):
    """What must not happen, or could not be had."""


def program(name: str) -> Path:
    """NAME.c of this folder against the C library, compiled when it is older. For one thread at a time."""
    subprocess.run(["make", "-s", "-C", "native", "lib"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    source = Path(__file__).with_name(f"{name}.c")
    extra = [ROOT / "tests/native" / part for part in NATIVE_TESTS] if name == "deaths" else []
    parts = [source, *extra, ROOT / "native/build/libpageferry.a"]
    target = BUILD / name
    headers = [ROOT / "tests/support/guest_stamp.h", ROOT / "tests/native/real_vm.h"]
    if not target.exists() or target.stat().st_mtime < max(p.stat().st_mtime for p in [*parts, *headers]):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(f".{os.getpid()}")
        subprocess.run(["gcc", *FLAGS, "-Inative", "-o", fresh, *parts, *LIBRARIES], cwd=ROOT, check=True)
        fresh.rename(target)
    return target


# --------------------------------------------------------------------------------------- the server of images


class ImageServer:
    """`pageserver serve`. One that is killed comes back at the same address, with the same images."""

    def __init__(self, folder: Path, images: Mapping[str, Path]) -> None:
        self._folder = folder
        self._images = images
        self._process = self._start("127.0.0.1:0")
        self.address = str(self._process.ready["data"])
        self.kills = 0

    def _start(self, listen: str) -> Process:
        return serve(self._folder, self._images, listen=listen)

    def kill(self) -> None:
        self._process.close()  # by SIGKILL
        self.kills += 1
        self._process = self._start(self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()


# ----------------------------------------------------------------------------------------- VMs that are moved


class LiveSource:
    """live_source.c. Used by one thread."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [program("live_source")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        word, port = self._hear().split()
        assert word == "ready"
        self.address = f"127.0.0.1:{port}"

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SoakError(f"the source of moves has ended with {self._process.wait()}")
        return line

    def _order(self, *words: object) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        status, *answer = self._hear().split()
        if status != "0":
            raise SoakError(f"{words[0]} {words[1]}: {status} {' '.join(answer)}")
        return answer

    def begin(self, name: str, shape: Shape, token: bytes) -> None:
        """A VM of this shape runs, and who has the token may move it."""
        digest = hashlib.sha256(token).hexdigest()
        self._order("life", name, shape.page_count, shape.seed, shape.data_percent, digest)

    def freeze(self, name: str) -> bytes:
        """It stands still; the manifest's digest."""
        _, digest = self._order("freeze", name)
        return bytes.fromhex(digest)

    def end(self, name: str) -> None:
        self._order("end", name)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


# ------------------------------------------------------------------------------------------------------ links


def cut_links(address: str) -> int:
    """Ends every connection of this process to that address, as a network does that has lost it."""
    host, _, port = address.rpartition(":")
    return sum(_cut(int(fd.name), (host, int(port))) for fd in Path("/proc/self/fd").iterdir())


def _cut(fd: int, peer: tuple[str, int]) -> bool:
    try:
        copy = os.dup(fd)
    except OSError:  # it was the listing's own
        return False
    if not stat.S_ISSOCK(os.fstat(copy).st_mode):
        os.close(copy)
        return False
    with socket.socket(fileno=copy) as link:
        try:
            ours = link.family == socket.AF_INET and link.getpeername() == peer
            if ours:
                link.shutdown(socket.SHUT_RDWR)
        except OSError:  # it listens, or has ended by itself
            ours = False
    return ours


@contextmanager
def closing(close: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        close()
