# SPDX-License-Identifier: Apache-2.0
"""RAM files side by side, read by nothing of ours: which pages differ, what the workload wrote in them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = 4096
READ_BYTES: Final = 1 << 20
# workload.c: a page is 64 lines of page, incarnation, n, line, filler[3], hash
LINE: Final = struct.Struct("<8Q")
LINES: Final = PAGE_BYTES // LINE.size


def differing_pages(one: Path, other: Path) -> list[int]:
    """By number. Every byte of both is read."""
    assert one.stat().st_size == other.stat().st_size
    found = []
    with one.open("rb") as first, other.open("rb") as second:
        at = 0
        while piece := first.read(READ_BYTES):
            twin = second.read(READ_BYTES)
            if piece != twin:
                found += [at + page for page in _pages(len(piece)) if _page(piece, page) != _page(twin, page)]
            at += len(piece) // PAGE_BYTES
    return found


def _pages(length_bytes: int) -> range:
    return range(length_bytes // PAGE_BYTES)


def _page(piece: bytes, page: int) -> bytes:
    return piece[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]


def stamped_pages(ram: Path) -> Iterator[int]:
    """Those that the guest's workload has written whole, wherever the guest's kernel has put them."""
    with ram.open("rb") as file:
        for page in range(ram.stat().st_size // PAGE_BYTES):
            content = file.read(PAGE_BYTES)
            if LINE.unpack_from(content)[3] == 0 and _is_stamped(content):
                yield page


def _is_stamped(content: bytes) -> bool:
    lines = [LINE.unpack_from(content, at * LINE.size) for at in range(LINES)]
    page, incarnation, n, *_ = lines[0]
    return n > 0 and all(line[:4] == (page, incarnation, n, at) for at, line in enumerate(lines))
