# SPDX-License-Identifier: Apache-2.0
"""Where a process has mapped its RAM file, from what /proc says."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from pageferry.host.handoff import Region
from pageferry.reasons import PageferryError, Reason
from pageserver.attach import find_memory, regions_of

KIB = 1024


@dataclass(frozen=True)
class File:
    st_dev: int = os.makedev(0, 27)
    st_ino: int = 99
    st_size: int = 16 * KIB


def line(start: int, bytes_: int, offset: int, *, inode: int = 99, permissions: str = "rw-s") -> str:
    return f"{start:x}-{start + bytes_:x} {permissions} {offset:08x} 00:1b {inode}      /dev/shm/ram"


def found(*lines: str) -> tuple[Region, ...]:
    maps = "\n".join([line(0x1000, 4 * KIB, 0, inode=98), *lines, "7ffc0-7ffd0 r-xp 00000000 00:00 0 [vdso]"])
    return regions_of(maps, cast(os.stat_result, File()), "/dev/shm/ram")


def test_one_piece_and_two() -> None:
    assert found(line(0x7F0000, 16 * KIB, 0)) == (Region(0x7F0000, 16 * KIB, 0),)
    above, below = line(0x100000, 12 * KIB, 4 * KIB), line(0x900000, 4 * KIB, 0)
    assert found(above, below) == (Region(0x900000, 4 * KIB, 0), Region(0x100000, 12 * KIB, 4 * KIB))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "has 16384 bytes, of which 0 are mapped"),
        ([line(0x10000, 12 * KIB, 0)], "has 16384 bytes, of which 12288 are mapped"),
        ([line(0x10000, 16 * KIB, 0), line(0x90000, 4 * KIB, 0)], "is mapped twice"),
        ([line(0x10000, 8 * KIB, 8 * KIB)], "is not mapped at offset 0x0"),
        ([line(0x10000, 16 * KIB, 0, permissions="rw-p")], "is mapped privately"),
    ],
)
def test_what_cannot_be_tracked(lines: list[str], sentence: str) -> None:
    with pytest.raises(PageferryError, match=sentence) as caught:
        found(*lines)
    assert caught.value.reason is Reason.UNSUPPORTED


def test_memfds_by_name(tmp_path: Path) -> None:
    first, second = os.memfd_create("pf-ram"), os.memfd_create("pf-twice")
    third = os.memfd_create("pf-twice")
    copy = os.dup(first)  # one file, two descriptors
    try:
        for name, count in (("pf-twice", 2), ("pf-none", 0)):
            with pytest.raises(PageferryError, match=f"has {count} open memfds"):
                find_memory(os.getpid(), f"memfd:{name}")
        with pytest.raises(PageferryError, match=r"of which 0 are mapped"):
            os.ftruncate(first, 4 * KIB)
            find_memory(os.getpid(), "memfd:pf-ram")
    finally:
        for fd in (first, second, third, copy):
            os.close(fd)
