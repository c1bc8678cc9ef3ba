# SPDX-License-Identifier: Apache-2.0
"""RAM files: sparse copies, and the folder on tmpfs in which a run keeps them."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

COPY_BYTES = 1 << 20


def copy_sparse(source: Path, target: Path) -> None:
    """The same bytes and, by whole pages, the same holes; reads only where SEEK_DATA finds something."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        os.ftruncate(writer.fileno(), size)
        at = 0
        while at < size:
            try:
                at = os.lseek(reader.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole to the end
                return
            end = os.lseek(reader.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += os.pwrite(writer.fileno(), os.pread(reader.fileno(), min(end - at, COPY_BYTES), at), at)


@contextmanager
def run_folder() -> Iterator[Path]:
    """A folder on tmpfs for RAM files, images and sockets of one run, gone at its end.

    In it SIGTERM unwinds like an exception, so that contexts are left. What a run killed by SIGKILL has left
    behind is removed by the next one.
    """
    shared = Path("/dev/shm")
    for old in shared.glob("pageferry-*-*"):
        pid = old.name.split("-")[1]
        if old.stat().st_uid == os.getuid() and pid.isdecimal() and not Path("/proc", pid).exists():
            shutil.rmtree(old, ignore_errors=True)
    made = tempfile.TemporaryDirectory(prefix=f"pageferry-{os.getpid()}-", dir=shared)
    with _sigterm_unwinds(), made as folder:
        yield Path(folder)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
