# SPDX-License-Identifier: Apache-2.0
"""The hand-off: what a VMM sends when it gives us its userfaultfd and the layout of its memory.

One JSON array in one message, with the file descriptors beside it: Firecracker's handshake in all its
generations, and the form with two descriptors, for memory that lies on a file (docs/handoff.md). Who sends it
in a VMM's place adds that one's pidfd, and a fault client that hands a VM on its page table. Everything that
comes in is checked here or, for what only the kernel can show, when the pager opens.

No grpc below this file: a VM is served before that is imported.
"""

import array
import json
import os
import select
import socket
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, Final, Self

from pageferry.host.process import HeldProcess
from pageferry.layout import Layout, layout_of
from pageferry.limits import HANDOFF_BYTES_MAX, HANDOFF_TIMEOUT_MS, PAGE_BYTES, REGIONS_MAX
from pageferry.reasons import PageferryError, Reason

# Firecracker's own handler: a message without its descriptor is waited for, five times 100 ms.
FD_TRIES: Final = 5
FD_PAUSE_S: Final = 0.1
# What the kernel can map at once: a page, or a huge page of a pool.
UNIT_BYTES: Final = (PAGE_BYTES, 2 << 20, 1 << 30)
# The largest of them that may come while a guest waits for it: some milliseconds.
BEHIND_BYTES_MAX: Final = 2 << 20
# More than anybody sends; what is above two is refused, and closed.
FDS_MAX: Final = 16
FRAMES_KEY: Final = "pageferry_frames"
ROLE_KEY: Final = "pageferry_role"
# In the first region, if it is not the VMM that sends: the process that it is.
PID_KEY: Final = "pageferry_pid"
# In every region or in none: where it lies in the guest. Firecracker's own name for it.
GUEST_KEY: Final = "gpa_start"
ADDRESS_END: Final = 1 << 64
PID_END: Final = 1 << 31
# What of JSON tells where a value ends.
QUOTE, BACKSLASH, ARRAY = b'"\\['
BLANKS: Final = frozenset(b" \t\r\n")
OPENING: Final = frozenset(b"[{")
CLOSING: Final = frozenset(b"]}")


class Role(Enum):
    """What the memory was registered for, and so who can take it."""

    RESTORE = "restore"  # its pages come when they are touched: a fault client
    TRACK = "track"  # its writes are seen from outside: a page server
    BOTH = "both"  # a fault client, and the VM is to move on from there

    @property
    def restores(self) -> bool:
        return self is not Role.TRACK

    @property
    def tracks(self) -> bool:
        return self is not Role.RESTORE


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous piece of guest memory in the VMM's address space. Bytes; multiples of the page size."""

    address: int
    length_bytes: int
    offset_bytes: int  # in the image, and in the backing file if there is one
    guest_address: int | None = None  # where it lies in the guest; None: the VMM has not said so


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
    role: Role = Role.RESTORE
    page_bytes: int = PAGE_BYTES  # of the memory, of whatever size the image's are; one of UNIT_BYTES
    in_its_place: bool = False  # somebody else has sent it, and hears words: onward.py
    table_fd: int = -1  # the page table of the fault client that hands it on; -1: all of it is here
    _released: bool = field(default=False, repr=False)

    @property
    def shared(self) -> bool:
        return self.backing_fd >= 0

    @property
    def lands_first(self) -> bool:
        """Its pages are so large that nobody can wait for one: the guest runs when all are here."""
        return self.page_bytes > BEHIND_BYTES_MAX

    @property
    def handed_on(self) -> bool:
        return self.table_fd >= 0

    @property
    def layout(self) -> Layout | None:
        """None: the VMM has not said where its memory lies in the guest."""
        return layout_of([(region.guest_address, region.length_bytes) for region in self.regions])

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
        for fd in (self.uffd, self.backing_fd, self.pidfd, self.table_fd):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refused(
    message: str,
    remedy: str = "let the VMM send what docs/handoff.md says",
    reason: Reason = Reason.BAD_REQUEST,
) -> PageferryError:
    return PageferryError(reason, message, remedy)


# -------------------------------------------------------------------------------------------------- receiving


@dataclass(frozen=True, slots=True)
class Peer:
    pid: int
    uid: int
    pidfd: int


def identify(connection: socket.socket, uids: Collection[int]) -> Peer:
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
    except OSError as error:
        raise refused(
            f"cannot hold the VMM (process {pid}) by a pidfd: {error.strerror}",
            "let the seccomp profile allow pidfd_open, and raise the limit on open files if it is that",
            Reason.UNSUPPORTED,
        ) from error


class Message:
    """The bytes of one JSON array, as they come in. Each is looked at once: only brackets and strings count
    here, what they hold is judged when the last bracket is there."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.complete = False

    def take(self, part: bytes) -> None:
        """PageferryError: it is too long, begins with something else, or goes on behind its end."""
        if len(self._data) + len(part) > HANDOFF_BYTES_MAX:
            raise refused(f"the hand-off is longer than {HANDOFF_BYTES_MAX} bytes")
        self._data += part
        for byte in part:
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = byte == BACKSLASH
                self._in_string = byte != QUOTE
            elif byte not in BLANKS:
                self._take_structure(byte)

    def _take_structure(self, byte: int) -> None:
        if self.complete:
            raise refused(
                "the hand-off goes on behind its JSON value", "send nothing until the hand-off is accepted"
            )
        if self._depth == 0 and byte != ARRAY:
            raise refused("the hand-off is no JSON array of regions")
        self._in_string = byte == QUOTE
        self._depth += (byte in OPENING) - (byte in CLOSING)
        self.complete = self._depth == 0

    def value(self) -> Any:
        """PageferryError: it is no JSON."""
        try:
            return json.loads(self._data.decode(), parse_constant=_no_number)
        except UnicodeDecodeError as error:
            raise refused("the hand-off is not UTF-8") from error
        except json.JSONDecodeError as error:
            raise refused(f"the hand-off is no JSON: {error.msg} at character {error.pos}") from error
        except ValueError as error:  # a number of thousands of digits
            raise refused(f"the hand-off is no JSON: {error}") from error
        except RecursionError as error:
            raise refused("the hand-off is nested too deeply") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def receive(connection: socket.socket, *, uids: Collection[int], in_its_place: bool = False) -> Handoff:
    """One hand-off from a connected peer, in HANDOFF_TIMEOUT_MS. On failure the connection stays open.

    `in_its_place`: somebody may send it for the VMM."""
    peer = identify(connection, uids)
    fds: list[int] = []
    try:
        value = _receive_value(connection, fds)
        regions, frames = parse(value)
        role = parse_role(value)
        page_bytes = parse_page_bytes(value)
        _check_tracked(role, page_bytes)
        pid = parse_pid(value)
        if pid is None:
            _check_count(len(fds))
        else:
            _check_in_its_place(fds, pid, role, allowed=in_its_place)
    except BaseException:
        for fd in (*fds, peer.pidfd):
            if fd >= 0:
                os.close(fd)
        raise
    if pid is not None and peer.pidfd >= 0:  # of the sender, which may go before the VMM does
        os.close(peer.pidfd)
    return Handoff(
        connection=connection,
        uffd=fds[0],
        backing_fd=fds[1] if len(fds) >= 2 else -1,
        in_its_place=pid is not None,
        table_fd=fds[2] if len(fds) == 4 else -1,
        pidfd=peer.pidfd if pid is None else fds[-1],
        pid=peer.pid if pid is None else pid,
        uid=peer.uid,
        regions=regions,
        frames=frames,
        role=role,
        page_bytes=page_bytes,
    )


def _check_tracked(role: Role, page_bytes: int) -> None:
    if role.tracks and page_bytes != PAGE_BYTES:
        raise refused(
            f"the memory has pages of {page_bytes} bytes: what is written to it is followed in pages of "
            f"{PAGE_BYTES} alone",
            "run a VM that is to be moved on memory without huge pages of a pool",
            Reason.UNSUPPORTED,
        )


def _check_count(fd_count: int) -> None:
    if fd_count == 3:
        raise refused(
            "3 file descriptors were handed over: memory hidden in a guest_memfd cannot be served",
            "restore without secret hiding",
            Reason.UNSUPPORTED,
        )
    if not 1 <= fd_count <= 2:
        raise refused(
            f"{fd_count} file descriptors were handed over with the memory layout",
            "send the userfaultfd, and for memory on a file that file as the second",
        )


def _check_in_its_place(fds: list[int], pid: int, role: Role, *, allowed: bool) -> None:
    if not allowed:
        raise refused(
            "this VM is handed over by somebody else: only a page server takes it",
            "name the page server's hand-off socket, with onward= or --socket",
        )
    if (len(fds), role) not in ((3, Role.TRACK), (4, Role.BOTH)):
        raise refused(
            f"a VM is handed over in its place with {len(fds)} file descriptors and the role {role.value}",
            "send userfaultfd, RAM file, of the role both the page table, and the VMM's pidfd",
        )
    held = HeldProcess(fds[-1])
    try:
        held_pid = held.pid
    finally:
        held.close()
    if held_pid != pid:
        raise refused(
            f"the pidfd that was handed over is of process {held_pid}, not of the VMM (process {pid})",
            "run fault client, page server and VMM in one PID namespace",
            Reason.NO_VMM if held_pid == -1 else Reason.MISMATCH,
        )


def _receive_value(connection: socket.socket, fds: list[int]) -> Any:
    """The JSON value; what comes beside it is added to fds."""
    deadline = time.monotonic() + HANDOFF_TIMEOUT_MS / 1000
    message = Message()
    while not message.complete:
        part = _receive_part(connection, fds, deadline - time.monotonic())
        if part is None:
            raise refused(f"the hand-off was not complete in {HANDOFF_TIMEOUT_MS} ms", reason=Reason.TOO_SLOW)
        if not part:
            raise refused("the VMM closed the socket before its hand-off was complete")
        message.take(part)
    for _ in range(FD_TRIES):
        if fds:
            break
        message.take(_receive_part(connection, fds, FD_PAUSE_S) or b"")
    return message.value()


def _receive_part(connection: socket.socket, fds: list[int], wait_s: float) -> bytes | None:
    """What has come; empty at the end of the stream, None when nothing came in time."""
    if not wait_readable(connection, wait_s):
        return None
    space = socket.CMSG_LEN(FDS_MAX * array.array("i").itemsize)
    try:
        data, ancillary, flags, _ = connection.recvmsg(HANDOFF_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return b""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds.extend(numbers)
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise refused("the hand-off was cut: more file descriptors came than anybody sends")
    return data


def wait_readable(connection: socket.socket, wait_s: float) -> bool:
    """Past descriptor number 1023 too, where select() ends."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return wait_s > 0 and bool(poll.poll(wait_s * 1000))


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
    if page_bytes not in UNIT_BYTES:
        raise refused(
            f"the memory has pages of {page_bytes} bytes: {', '.join(map(str, UNIT_BYTES))} can be served",
            "restore on memory with pages of one of these sizes",
            Reason.UNSUPPORTED,
        )
    regions = tuple(_region(index, element, page_bytes) for index, element in enumerate(value))
    _check_layout(regions)
    return tuple(sorted(regions, key=lambda region: region.offset_bytes)), value[0].get(FRAMES_KEY) == 1


def parse_role(value: Any) -> Role:
    """Of a value whose regions have been parsed. PageferryError: it is none."""
    name = value[0].get(ROLE_KEY, Role.RESTORE.value)
    try:
        return Role(name)
    except ValueError as error:
        raise refused(
            f"the hand-off has the role {name!r:.40}, which nobody knows",
            "set PAGEFERRY_SHIM_ROLE to restore, track or both",
            Reason.UNSUPPORTED,
        ) from error


def parse_page_bytes(value: Any) -> int:
    """Of a value whose regions have been parsed: they have one page size."""
    return _page_bytes(0, value[0])


def parse_pid(value: Any) -> int | None:
    """Of a value whose regions have been parsed: the VMM, if it is not the one that sends. PageferryError."""
    if PID_KEY not in value[0]:
        return None
    pid = _number(0, value[0], PID_KEY)
    if not 0 < pid < PID_END:
        raise refused(f"the hand-off names process {pid}, which cannot be")
    return pid


def _number(index: int, element: Any, key: str) -> int:
    number = element.get(key)
    if type(number) is not int or not 0 <= number < ADDRESS_END:
        raise refused(f"region {index}: {key} is {number!r:.40}, not a whole number from 0 to 2^64 - 1")
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


def _region(index: int, element: Any, page_bytes: int) -> Region:
    region = Region(
        address=_number(index, element, "base_host_virt_addr"),
        length_bytes=_number(index, element, "size"),
        offset_bytes=_number(index, element, "offset"),
        guest_address=_guest_address(element),
    )
    if region.length_bytes == 0:
        raise refused(f"region {index} is empty")
    for name in ("address", "length_bytes", "offset_bytes"):
        if getattr(region, name) % page_bytes:
            raise refused(
                f"region {index} is unaligned: {name.removesuffix('_bytes')} {getattr(region, name):#x} "
                f"is no multiple of {page_bytes}"
            )
    if max(region.address, region.offset_bytes) + region.length_bytes > ADDRESS_END:
        raise refused(f"region {index} goes beyond 2^64")
    return region


def _guest_address(element: Any) -> int | None:
    """Nothing rests on it but the naming of pages: one that cannot be is none."""
    number = element.get(GUEST_KEY)
    return number if type(number) is int and 0 <= number < ADDRESS_END else None


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
