# SPDX-License-Identifier: Apache-2.0
"""What a process holds, read from outside: descriptors, threads, mappings, bytes of memory files, sockets.

Two footprints of a service, before a session and after it, are to be the same. What has no say in that is
left out: how the allocator cuts its anonymous memory into mappings, and numbers of sockets and files.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Self

from tests.support.processes import PATIENCE_S, POLL_S

MEMORY_FILES: Final = ("/memfd:", "/dev/shm/")
STANDARD: Final = ("0", "1", "2")  # what is written there is kept in a file, and grows
# Threads that come and go as they please: gRPC's, and the interpreter's for work that blocks, so many.
BREATHING: Final = ("event_engine", "grpc_", "lifeguard")
INTERPRETER_MAX: Final = 1 + (os.cpu_count() or 1) + 4
BLOCK_BYTES: Final = 512
# of a mapping: address, rights, offset, device, inode
MAPPING: Final = re.compile(r"^\S+ \S+ \S+ \S+ +(\d+) *(.*)$")


@dataclass(frozen=True)
class Footprint:
    fds: Counter[str]  # by what they lead to
    threads: Counter[str]  # by name
    maps: Counter[str]  # of files, and of memory that is shared
    memory_file_bytes: int  # of memfds and tmpfs files that it can reach, each once
    sockets: Counter[str]  # by kind and state

    @classmethod
    def of(cls, pid: int) -> Self:
        folder = Path(f"/proc/{pid}")
        links = dict(_links(folder / "fd"))
        maps = Counter(name for name in map(_mapped, (folder / "maps").read_text().splitlines()) if name)
        inodes = [match[1] for name in links.values() if (match := re.fullmatch(r"socket:\[(\d+)\]", name))]
        kinds = _socket_kinds(folder)
        return cls(
            fds=Counter(re.sub(r":\[\d+\]$", "", name) for name in links.values()),
            threads=_threads(folder),
            maps=maps,
            memory_file_bytes=sum(_memory_files(folder, links).values()),
            sockets=Counter(kinds.get(inode, "of another kind") for inode in inodes),
        )

    def grown(self, before: Self) -> dict[str, object]:
        """What there is more of than before, by its name."""
        more: dict[str, object] = {}
        for name in (one.name for one in fields(self)):
            now, then = getattr(self, name), getattr(before, name)
            found = dict(now - then) if isinstance(now, Counter) else max(0, now - then)
            if found:
                more[name] = found
        return more


def _threads(folder: Path) -> Counter[str]:
    names = Counter((task / "comm").read_text().strip() for task in (folder / "task").iterdir())
    own = (folder / "comm").read_text().strip()
    names[own] = max(names[own], INTERPRETER_MAX)
    return Counter({name: count for name, count in names.items() if not name.startswith(BREATHING)})


def _links(folder: Path) -> Iterator[tuple[Path, str]]:
    for link in folder.iterdir():
        try:
            yield link, str(link.readlink())
        except FileNotFoundError:
            continue  # closed since


def _mapped(line: str) -> str:
    match = MAPPING.match(line)
    return match[2] if match and match[1] != "0" else ""


def _memory_files(folder: Path, links: dict[Path, str]) -> dict[int, int]:
    """Bytes of each, by its inode."""
    found = {}
    for link, name in [*links.items(), *_links(folder / "map_files")]:
        if name.startswith(MEMORY_FILES) and link.name not in STANDARD:
            try:
                stat = link.stat()
            except FileNotFoundError:
                continue
            found[stat.st_ino] = stat.st_blocks * BLOCK_BYTES
    return found


def _socket_kinds(folder: Path) -> dict[str, str]:
    """By inode."""
    kinds = {}
    for family, state_at, inode_at in (("tcp", 3, 9), ("tcp6", 3, 9), ("unix", 5, 6)):
        for line in (folder / "net" / family).read_text().splitlines()[1:]:
            columns = line.split()
            kinds[columns[inode_at]] = f"{family} {columns[state_at]}"
    return kinds


@contextmanager
def unchanged(*pids: int) -> Iterator[None]:
    """Afterwards each of these processes holds nothing that it did not hold before. What is being let go
    takes a moment, and is waited for."""
    before = {pid: Footprint.of(pid) for pid in pids}
    yield
    wait_no_more(before)


def wait_no_more(before: dict[int, Footprint]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    for pid, then in before.items():
        while more := Footprint.of(pid).grown(then):
            assert time.monotonic() < deadline, f"process {pid} holds more than before: {more}"
            time.sleep(POLL_S)
