# SPDX-License-Identifier: Apache-2.0
"""What the kernel says, whoever claims something else: interface counters, blocks of a file, what a
process can reach.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class InterfaceCounters:
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int


def interface_counters(pid: int, interface: str) -> InterfaceCounters:
    """Of an interface in the network namespace that `pid` lives in."""
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, colon, figures = line.partition(":")
        if colon and name.strip() == interface:
            columns = [int(figure) for figure in figures.split()]
            return InterfaceCounters(columns[0], columns[1], columns[8], columns[9])
    raise LookupError(f"process {pid} sees no interface {interface}")


def allocated_bytes(path: Path) -> int:
    """What a sparse file holds, by its blocks."""
    return path.stat().st_blocks * 512


def reaches(pid: int, path: Path) -> list[str]:
    """The ways by which a process has, or could open, the very file `path` of ours: by its name, an fd or
    a mapping.
    """
    wanted = path.stat()
    process = Path(f"/proc/{pid}")
    ways = [process / "root" / path.resolve().relative_to("/")]
    ways += [entry for folder in ("fd", "map_files") for entry in (process / folder).iterdir()]
    return [str(way) for way in ways if _is_file(way, wanted)]


def _is_file(way: Path, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(way.stat(), wanted)
    except FileNotFoundError:  # not there, or closed meanwhile
        return False


def same_namespace(pid: int, other_pid: int, kind: str) -> bool:
    """`kind`: net, mnt, pid... as in /proc/PID/ns."""
    return Path(f"/proc/{pid}/ns/{kind}").readlink() == Path(f"/proc/{other_pid}/ns/{kind}").readlink()


def open_fds(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
