# SPDX-License-Identifier: Apache-2.0
"""PAGEMAP_SCAN from a third process: which pages of a file's mapping were written, and a thief of that news.

A page whose news is stolen looks clean to whoever asks after us: it is called fresh, and is stale.
"""

import ctypes
import fcntl
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PAGE_BYTES: Final = 4096
# linux/fs.h: struct pm_scan_arg, _IOWR('f', 16, struct pm_scan_arg), struct page_region
SCAN_ARG: Final = struct.Struct("<12Q")
REGION: Final = struct.Struct("<3Q")
PAGEMAP_SCAN: Final = 3 << 30 | SCAN_ARG.size << 16 | ord("f") << 8 | 16
WP_MATCHING: Final = 1 << 0
CHECK_WPASYNC: Final = 1 << 1
PAGE_IS_WRITTEN: Final = 1 << 1
THEFTS_EVERY_S: Final = 0.001


class Tracked:
    """The one mapping of `file` in process `pid`, which is registered for asynchronous write protection."""

    def __init__(self, pid: int, file: Path) -> None:
        line = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if str(file) in line)
        self._start = int(line.split("-")[0], 16)
        self._pagemap = Path(f"/proc/{pid}/pagemap").open("rb", buffering=0)  # noqa: SIM115  # close() does

    def steal(self, page: int) -> bool:
        """Whether it was written since somebody last asked; the next one who asks hears that it was not."""
        start = self._start + page * PAGE_BYTES
        region = bytearray(REGION.size)
        memory = (_address(region), 1)
        argument = bytearray(
            SCAN_ARG.pack(
                SCAN_ARG.size,
                WP_MATCHING | CHECK_WPASYNC,
                start,
                start + PAGE_BYTES,
                0,
                *memory,
                0,  # no limit of pages
                0,
                PAGE_IS_WRITTEN,
                0,
                PAGE_IS_WRITTEN,
            )
        )
        found: int = fcntl.ioctl(self._pagemap, PAGEMAP_SCAN, argument)
        return found > 0

    def close(self) -> None:
        self._pagemap.close()


def _address(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


class Thief:
    """Steals the news of some pages while it is entered, again and again, and once more when told to."""

    def __init__(self, tracked: Tracked, pages: Iterable[int]) -> None:
        self._tracked = tracked
        self._pages = tuple(pages)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="thief")

    def _run(self) -> None:
        while not self._over.wait(THEFTS_EVERY_S):
            self.steal_all()

    def steal_all(self) -> None:
        for page in self._pages:
            self._tracked.steal(page)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._tracked.close()
