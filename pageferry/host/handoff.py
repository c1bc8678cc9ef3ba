# SPDX-License-Identifier: Apache-2.0
"""The hand-off: a VMM connects to our unix socket and gives us its userfaultfd and the layout of its memory.

One JSON array in one message, with the file descriptors beside it: Firecracker's handshake in all its
generations, and the form with two descriptors, for memory that lies on a file (docs/handoff.md). Everything
that comes in is checked here or, for what only the kernel can show, when the pager opens.

No grpc below this file: a VM is served before that is imported.
"""

import array
import contextlib
import json
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

from pageferry.limits import HANDOFF_BYTES_MAX, HANDOFF_TIMEOUT_MS, PAGE_BYTES, REGIONS_MAX
from pageferry.reasons import PageferryError, Reason

# Firecracker's own handler: a message without its descriptor is waited for, five times 100 ms.
FD_TRIES: Final = 5
FD_PAUSE_S: Final = 0.1
# More than anybody sends; what is above two is refused, but closed first.
FDS_MAX: Final = 16
FRAMES_KEY: Final = "pageferry_frames"
ADDRESS_END: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous piece of guest memory in the VMM's address space. Bytes; multiples of the page size."""

    address: int
    length_bytes: int
    offset_bytes: int  # in the image, and in the backing file if there is one


@dataclass(slots=True)
class Handoff:
    """What a VMM handed over. Closes its descriptors, unless release() gave them away before."""

    connection: socket.socket
    uffd: int
    backing_fd: int  # -1: private anonymous memory
    pidfd: int  # -1: the peer is in another PID namespace
    pid: int  # 0: likewise
    uid: int
    regions: tuple[Region, ...]
    frames: bool  # the VMM speaks frames on the connection from now on
    _released: bool = field(default=False, repr=False)

    @property
    def shared(self) -> bool:
        return self.backing_fd >= 0

    @property
    def length_bytes(self) -> int:
        return sum(region.length_bytes for region in self.regions)

    def release(self) -> int:
        """The pager owns all descriptors from now on. The connection's own is returned."""
        self._released = True
        return self.connection.detach()

    def close(self) -> None:
        if self._released:
            return
        self._released = True
        self.connection.close()
        for fd in (self.uffd, self.backing_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refused(message: str, remedy: str = "", reason: Reason = Reason.BAD_REQUEST) -> PageferryError:
    return PageferryError(reason, message, remedy)


# -------------------------------------------------------------------------------------------------- listening


class Listener:
    """The hand-off socket: mode 0600, in a folder that is there already. Serves one VMM after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._bind()
        except BaseException:
            self._socket.close()
            raise

    def _bind(self) -> None:
        if not self.path.parent.is_dir():
            raise refused(
                f"the folder of the hand-off socket, {self.path.parent}, is not there", "make it first"
            )
        if self.path.exists() and not stat.S_ISSOCK(self.path.lstat().st_mode):
            raise refused(f"{self.path} is there and is no socket", "name another path")
        before = os.umask(0o177)
        try:
            self._remove_dead()
            self._socket.bind(str(self.path))
        except OSError as error:
            raise refused(f"cannot listen on {self.path}: {error.strerror}", "name another path") from error
        finally:
            os.umask(before)
        self._inode = self.path.stat().st_ino
        self._socket.listen(1)

    def _remove_dead(self) -> None:
        """A socket that nobody listens on was left by a process that died."""
        if not self.path.exists():
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
                return
        raise refused(
            f"another fault client listens on {self.path}",
            "stop it, or name another path",
            Reason.ALREADY_ATTACHED,
        )

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self, *, uids: frozenset[int], timeout_s: float | None = None) -> Handoff:
        """Waits for a VMM and takes its hand-off. `uids`: whose VMM it may be.

        PageferryError: TOO_SLOW when nobody came, or the message did not; else what was wrong with it.
        """
        self._socket.settimeout(timeout_s)
        try:
            connection, _ = self._socket.accept()
        except TimeoutError as error:
            raise refused(
                f"no VMM has connected to {self.path} in {timeout_s:g} s", "start the VMM", Reason.TOO_SLOW
            ) from error
        try:
            return receive(connection, uids=uids)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Takes the socket away, if it is still ours."""
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------- receiving


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int
    uid: int
    pidfd: int


def identify(connection: socket.socket, uids: frozenset[int]) -> Peer:
    """Who is at the other end, as of its connect; a pidfd, so that a number used again deceives nobody."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    if uid not in uids:
        raise refused(
            f"the process that connected runs as uid {uid}",
            "name it with --vmm-uid if it is the VMM's",
            Reason.NOT_ALLOWED,
        )
    if pid == 0:
        return Peer(0, uid, -1)
    try:
        return Peer(pid, uid, os.pidfd_open(pid))
    except ProcessLookupError as error:
        raise refused(f"the VMM (process {pid}) has exited", "start it again", Reason.NO_VMM) from error


def complete_value(data: bytes) -> Any | None:
    """The JSON value, once all of it is there; None before that."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":  # cut inside a character
            return None
        raise refused("the hand-off is not UTF-8") from error
    start = len(text) - len(text.lstrip())
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except json.JSONDecodeError as error:
        # Only an end of input can still become a value. A number at the very end of it is no array.
        if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg or _cut_word(text[error.pos :]):
            return None
        raise refused(f"the hand-off is no JSON: {error.msg} at byte {error.pos}") from error
    except RecursionError as error:
        raise refused("the hand-off is nested too deeply") from error
    if text[end:].strip():
        raise refused(
            "the hand-off goes on behind its JSON value", "send nothing until the hand-off is accepted"
        )
    return value


def _cut_word(rest: str) -> bool:
    """A literal or a number of which only the beginning has come."""
    return any(word.startswith(rest) for word in ("true", "false", "null")) or rest == "-"


def receive(connection: socket.socket, *, uids: frozenset[int]) -> Handoff:
    """One hand-off from a connected peer, in HANDOFF_TIMEOUT_MS. On failure the connection stays open."""
    peer = identify(connection, uids)
    fds: list[int] = []
    try:
        value = _receive_value(connection, fds)
        regions, frames = parse(value)
        if not 1 <= len(fds) <= 2:
            raise refused(
                f"{len(fds)} file descriptors were handed over with the memory layout",
                "send the userfaultfd, and for memory on a file that file as the second",
            )
    except BaseException:
        for fd in (*fds, peer.pidfd):
            if fd >= 0:
                os.close(fd)
        raise
    return Handoff(
        connection=connection,
        uffd=fds[0],
        backing_fd=fds[1] if len(fds) == 2 else -1,
        pidfd=peer.pidfd,
        pid=peer.pid,
        uid=peer.uid,
        regions=regions,
        frames=frames,
    )


def _receive_value(connection: socket.socket, fds: list[int]) -> Any:
    deadline = time.monotonic() + HANDOFF_TIMEOUT_MS / 1000
    data = b""
    value = None
    tries = 0
    while value is None or (not fds and tries < FD_TRIES):
        tries += value is not None
        wait_s = deadline - time.monotonic() if value is None else FD_PAUSE_S
        try:
            connection.settimeout(max(wait_s, 0.001))
            more = _receive_part(connection, fds)
        except TimeoutError as error:
            if value is not None:
                continue
            if time.monotonic() >= deadline:
                raise refused(
                    f"the hand-off was not complete in {HANDOFF_TIMEOUT_MS} ms", reason=Reason.TOO_SLOW
                ) from error
            continue
        if not more:
            break
        data += more
        if len(data) > HANDOFF_BYTES_MAX:
            raise refused(f"the hand-off is longer than {HANDOFF_BYTES_MAX} bytes")
        value = complete_value(data)
    if value is None:
        raise refused("the VMM closed the socket before its hand-off was complete")
    connection.settimeout(None)
    return value


def _receive_part(connection: socket.socket, fds: list[int]) -> bytes:
    data, ancillary, flags, _ = connection.recvmsg(
        HANDOFF_BYTES_MAX, socket.CMSG_LEN(FDS_MAX * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds.extend(numbers)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise refused("the hand-off was cut: more file descriptors came than anybody sends")
    return data


# ---------------------------------------------------------------------------------------------------- parsing


def parse(value: Any) -> tuple[tuple[Region, ...], bool]:
    """The regions in image order, and whether the VMM speaks frames. PageferryError: the rule broken."""
    if not isinstance(value, list) or not value:
        raise refused("the hand-off is no array of regions")
    if len(value) > REGIONS_MAX:
        raise refused(f"the hand-off has {len(value)} regions: at most {REGIONS_MAX} can be served")
    sizes = {_page_bytes(index, element) for index, element in enumerate(value)}
    if len(sizes) != 1:
        raise refused(f"the regions have different page sizes: {sorted(sizes)}")
    (page_bytes,) = sizes
    if page_bytes != PAGE_BYTES:
        raise refused(
            f"the memory has pages of {page_bytes} bytes: only {PAGE_BYTES} can be served for now",
            "restore on memory without huge pages",
            Reason.UNSUPPORTED,
        )
    regions = tuple(_region(index, element) for index, element in enumerate(value))
    _check_layout(regions)
    return tuple(sorted(regions, key=lambda region: region.offset_bytes)), bool(value[0].get(FRAMES_KEY))


def _number(index: int, element: Any, key: str) -> int:
    number = element.get(key)
    if type(number) is not int or not 0 <= number < ADDRESS_END:
        raise refused(f"region {index}: {key} is {number!r}, not a whole number from 0 to 2^64 - 1")
    return int(number)


def _page_bytes(index: int, element: Any) -> int:
    """In bytes, in spite of the older key's name (facts of Firecracker: it has always been bytes)."""
    if not isinstance(element, dict):
        raise refused(f"region {index} is no object")
    for key in ("page_size", "page_size_kib"):
        if key in element:
            size = _number(index, element, key)
            if size < PAGE_BYTES or size & (size - 1):
                raise refused(f"region {index}: {key} is {size}, not a power of two from {PAGE_BYTES} up")
            return size
    return PAGE_BYTES


def _region(index: int, element: Any) -> Region:
    region = Region(
        address=_number(index, element, "base_host_virt_addr"),
        length_bytes=_number(index, element, "size"),
        offset_bytes=_number(index, element, "offset"),
    )
    if region.length_bytes == 0:
        raise refused(f"region {index} is empty")
    for name in ("address", "length_bytes", "offset_bytes"):
        if getattr(region, name) % PAGE_BYTES:
            raise refused(
                f"region {index} is unaligned: {name.removesuffix('_bytes')} {getattr(region, name):#x} "
                f"is no multiple of {PAGE_BYTES}"
            )
    if max(region.address, region.offset_bytes) + region.length_bytes > ADDRESS_END:
        raise refused(f"region {index} goes beyond 2^64")
    return region


def _check_layout(regions: tuple[Region, ...]) -> None:
    by_address = sorted(regions, key=lambda region: region.address)
    for lower, upper in pairwise(by_address):
        if lower.address + lower.length_bytes > upper.address:
            raise refused(f"regions overlap at address {upper.address:#x}")
    end = 0
    for region in sorted(regions, key=lambda region: region.offset_bytes):
        if region.offset_bytes < end:
            raise refused(f"regions overlap at offset {region.offset_bytes:#x}")
        if region.offset_bytes > end:
            raise refused(f"the regions leave a gap in the image at offset {end:#x}")
        end += region.length_bytes
