# SPDX-License-Identifier: Apache-2.0
"""`pageserver attach`: a VM that runs already, and not under the shim, is made one that can be moved away.

Finds where the process has mapped its RAM file, makes it register that memory for dirty tracking, and hands
it over to the page server in its place. The right to trace the process is needed here alone.
"""

import os
import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pageferry.host.handoff import Region, Role
from pageferry.host.onward import Lines, Word, message
from pageferry.limits import PAGE_BYTES
from pageferry.reasons import PageferryError, Reason
from pageferry.service.abilities import check_leaving
from pageserver.dataplane import track

MEMFD: Final = "memfd:"
# address-address permissions offset device inode path
MAPPING: Final = re.compile(
    r"(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) (?P<permissions>\S{4}) (?P<offset>[0-9a-f]+) "
    r"(?P<device>[0-9a-f]+:[0-9a-f]+) (?P<inode>\d+)"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, on one file. The descriptor is the caller's."""

    ram_fd: int
    regions: tuple[Region, ...]


def find_memory(pid: int, ram: str) -> Memory:
    """`ram`: the path of the RAM file, or memfd:NAME. PageferryError: it is not mapped as it has to be."""
    ram_fd = _open_ram(pid, ram)
    try:
        return Memory(ram_fd, regions_of(_read(pid, "maps"), os.fstat(ram_fd), ram))
    except BaseException:
        os.close(ram_fd)
        raise


def _open_ram(pid: int, ram: str) -> int:
    path = _memfd(pid, ram.removeprefix(MEMFD)) if ram.startswith(MEMFD) else Path(ram)
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PageferryError(
            Reason.BAD_REQUEST,
            f"the RAM file {ram} cannot be opened: {error.strerror}",
            "name the file of the VM's memory, mem-path= of QEMU, or memfd:NAME",
        ) from error


def _memfd(pid: int, name: str) -> Path:
    """The link of the process's own descriptor, through which the file can be opened."""
    wanted = {f"/memfd:{name}", f"/memfd:{name} (deleted)"}
    found: dict[int, Path] = {}
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(link.readlink()) in wanted:
                    found[link.stat().st_ino] = link
            except FileNotFoundError:
                continue  # closed since
    except OSError as error:
        raise _cannot_look(pid, error) from error
    if len(found) != 1:
        raise PageferryError(
            Reason.BAD_REQUEST,
            f"process {pid} has {len(found)} open memfds of the name {name!r}",
            "`ls -l /proc/PID/fd` lists them; give each VM one of its own name",
        )
    return next(iter(found.values()))


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError as error:
        raise _cannot_look(pid, error) from error


def _cannot_look(pid: int, error: OSError) -> PageferryError:
    if isinstance(error, FileNotFoundError | ProcessLookupError):
        return PageferryError(Reason.NO_VMM, f"there is no process {pid}", "give the number of the VMM")
    return PageferryError(
        Reason.NOT_ALLOWED,
        f"process {pid} cannot be looked at: {error.strerror}",
        "run as root, or as its user with CAP_SYS_PTRACE",
    )


def regions_of(maps: str, file: os.stat_result, ram: str) -> tuple[Region, ...]:
    """In image order, of a file that is mapped whole, shared, and once."""
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    found: list[Region] = []
    for line in maps.splitlines():
        mapping = MAPPING.match(line)
        if mapping is None or (mapping["device"], int(mapping["inode"])) != (device, file.st_ino):
            continue
        if mapping["permissions"][3] != "s":
            raise _not_so(ram, "is mapped privately", "it needs share=on")
        start, end = int(mapping["start"], 16), int(mapping["end"], 16)
        found.append(Region(start, end - start, int(mapping["offset"], 16)))
    found.sort(key=lambda region: region.offset_bytes)
    at = 0
    for region in found:
        if region.offset_bytes < at:
            raise _not_so(ram, "is mapped twice: writes through one of them would not be seen")
        if region.offset_bytes > at:
            raise _not_so(ram, f"is not mapped at offset {at:#x}")
        at += region.length_bytes
    if at != file.st_size:
        raise _not_so(ram, f"has {file.st_size} bytes, of which {at} are mapped")
    return tuple(found)


def _not_so(ram: str, what: str, remedy: str = "the VMM must map the whole file, once") -> PageferryError:
    return PageferryError(Reason.UNSUPPORTED, f"the RAM file {ram} {what}", remedy)


# ---------------------------------------------------------------------------------------------- the hand-over


def attach(pid: int, ram: str, path: Path, timeout_s: float) -> int:
    """How many pages can be moved now. PageferryError: none, and the VM goes on as it was."""
    check_leaving()
    with ExitStack() as stack:
        pidfd = _hold(pid)
        stack.callback(os.close, pidfd)
        _check_seccomp(pid)
        memory = find_memory(pid, ram)
        stack.callback(os.close, memory.ram_fd)
        connection = stack.enter_context(_connected(path, timeout_s))
        uffd = track(pid, pidfd, memory.regions)
        stack.callback(os.close, uffd)
        socket.send_fds(connection, [message(memory.regions, pid, Role.TRACK)], [uffd, memory.ram_fd, pidfd])
        _wait_accepted(connection)
    return sum(region.length_bytes for region in memory.regions) // PAGE_BYTES


def _hold(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise _cannot_look(pid, error) from error


def _check_seccomp(pid: int) -> None:
    """A system call that a filter forbids may end the process. QEMU's -sandbox forbids none of those that are
    injected: it lists what it forbids. PageferryError: what another filter does is not known."""
    filtered = re.search(r"^Seccomp:\s*[12]$", _read(pid, "status"), re.MULTILINE) is not None
    name = _read(pid, "comm").strip()
    if filtered and not name.startswith("qemu"):
        raise PageferryError(
            Reason.UNSUPPORTED,
            f"process {pid} ({name}) has a seccomp filter, which may end it for an injected system call",
            "start the VM under the shim",
        )


def _connected(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise PageferryError(
            Reason.GOING_AWAY,
            f"no page server takes a VM at {path}: {error.strerror or error}",
            "start `pageserver serve --vm NAME,handoff=SOCKET,...` first",
        ) from error
    return connection


def _wait_accepted(connection: socket.socket) -> None:
    lines = Lines()
    words: list[Word] = []
    try:
        while not words and (part := connection.recv(len(Word.ACCEPTED.line))):
            words = lines.take(part)
    except TimeoutError as error:
        raise PageferryError(Reason.TOO_SLOW, "the page server has not answered", "see its log") from error
    except (OSError, ValueError) as error:
        raise PageferryError(
            Reason.GOING_AWAY, f"the page server has gone: {error}", "see its log"
        ) from error
    if words != [Word.ACCEPTED]:
        raise PageferryError(Reason.UNSUPPORTED, "the page server has refused this VM", "see its log")
