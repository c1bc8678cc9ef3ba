# SPDX-License-Identifier: Apache-2.0
"""The data port: C threads that serve pages. The only file here that sees cffi."""

import enum
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from pageferry._native import ffi, lib
from pageferry.host.handoff import Region
from pageferry.phases import Phase
from pageferry.service import native
from pageferry.units import PageRun, from_pairs, to_pairs
from pageserver.images import ImageFile


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one look at all bytes of an image gave."""

    content_id: int
    page_count: int
    data_pages: int  # not all zero
    unreadable: tuple[PageRun, ...] = ()  # lost: the disk has nothing for them; none of the content


# So many places of a file may be lost; one with more of them is on a disk that is dead.
UNREADABLE_RUNS_MAX: Final = 4096
POISONED_RUNS_AT_ONCE: Final = 1024


class Progress:
    """How far a look at an image has come; read on one thread while another one waits for the look."""

    def __init__(self) -> None:
        self.shared: Any = ffi.new("struct pageferry_progress *")

    @property
    def done_bytes(self) -> int:
        return int(self.shared.done_bytes)

    @property
    def total_bytes(self) -> int:
        return int(self.shared.total_bytes)

    def cancel(self) -> None:
        self.shared.cancel = 1


def inspect(image: ImageFile, progress: Progress, left_out: Sequence[PageRun] = ()) -> ImageFacts:
    """Reads the file's data extents once. Blocks, with the interpreter's lock released.

    `left_out`, in order: none of the content, by an earlier look. PageferryError: it cannot be read, or
    CANCELLED.
    """
    known = ffi.new("uint64_t[]", to_pairs(left_out))
    found = ffi.new("uint64_t[]", 2 * UNREADABLE_RUNS_MAX)
    c_left_out = ffi.new("struct pageferry_left_out *", (known, len(left_out), found, UNREADABLE_RUNS_MAX))
    facts = ffi.new("struct pageferry_image_facts *")
    error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
    native.check(
        lib.pageferry_image_inspect(image.fd, progress.shared, c_left_out, facts, error, len(error)), error
    )
    unreadable = tuple(from_pairs(ffi.unpack(found, 2 * c_left_out.found_count)))
    return ImageFacts(facts.content_id, facts.page_count, facts.data_pages, unreadable)


# ---------------------------------------------------------------------------------------------------- a move


@dataclass(frozen=True, slots=True)
class LiveMemory:
    """The memory of a VM that runs; its descriptors stay the caller's. pidfd -1: there is none."""

    name: str
    uffd: int
    ram_fd: int
    pid: int
    pidfd: int
    regions: Sequence[Region]
    content_id: int  # another one for each VM that ever had this name
    incarnation: int  # higher than any before under this content id
    arriving_fd: int = -1  # the page table of the fault client that still brings this memory; -1: all is here
    drops_untold: bool = False  # the VMM may give pages back and say nothing: the final round looks for them


@dataclass(frozen=True, slots=True)
class LiveState:
    """The newest settled round; 0: there is none yet."""

    as_of: int  # its incarnation rises by one with each thaw
    page_count: int
    dirty_pages: int  # that this round has named
    round_ns: int  # between the two newest; 0: there is only one
    round: int
    frozen: bool


@dataclass(frozen=True, slots=True)
class Frozen:
    """The final round, and the map that nothing changes any more."""

    as_of: int
    dirty_pages: int
    manifest_digest: bytes


class Right(enum.IntFlag):
    """What a session's token is good for."""

    NONE = 0  # everything is refused with WRONG_PHASE
    PAGES = lib.PAGEFERRY_RIGHT_PAGES
    ROUNDS = lib.PAGEFERRY_RIGHT_ROUNDS


@dataclass(frozen=True, slots=True)
class SessionGate:
    """What the data port knows of a session; phase, cancel and digest are passed on to its target."""

    session: str
    image: str
    token_sha256: bytes
    rights: Right
    phase: Phase
    cancel_requested: bool = False
    manifest_digest: bytes = b""  # empty: the map is not frozen


class ServerEventKind(enum.IntEnum):
    ATTACHED = lib.PAGEFERRY_SERVER_EVENT_ATTACHED
    SUPERSEDED = lib.PAGEFERRY_SERVER_EVENT_SUPERSEDED
    ROUND = lib.PAGEFERRY_SERVER_EVENT_ROUND
    SILENT = lib.PAGEFERRY_SERVER_EVENT_SILENT
    LOST = lib.PAGEFERRY_SERVER_EVENT_LOST  # of no session: a read has found pages of `image` lost


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """News of a session, the newest of its kind; LOST: of an image."""

    kind: ServerEventKind
    session: str
    target: int
    epoch: int
    value: int  # ATTACHED: 1 for the first ever, 0 for one that is back; ROUND: as_of
    page_count: int  # ROUND: pages that it has named; LOST: that are lost by now
    peer: str  # the address that the target was last seen at
    image: str = ""  # LOST


def accept_handoff(connection_fd: int) -> None:
    """Lets a VMM under the shim go on: its memory is tracked. PageferryError: it is gone."""
    native.check(lib.pageferry_handoff_accept(connection_fd))


def track(pid: int, pidfd: int, regions: Sequence[Region]) -> int:
    """Makes a running process register its memory for dirty tracking, through ptrace. The userfaultfd is the
    caller's, and tracking ends with its last copy. PageferryError: it goes on as it was, untracked."""
    error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
    c_regions = ffi.new("struct pageferry_region[]", _as_c(regions))
    return native.check(lib.pageferry_attach(pid, pidfd, c_regions, len(regions), error, len(error)), error)


def _as_c(regions: Sequence[Region]) -> list[dict[str, int]]:
    return [
        {
            "address": region.address,
            "length_bytes": region.length_bytes,
            "offset_bytes": region.offset_bytes,
        }
        for region in regions
    ]


class DataPlane:
    """Serves on the sockets it is given, from now until close().

    What concerns live memory and sessions may be called on any thread. What blocks does so without the
    interpreter's lock.
    """

    def __init__(self, sockets: Sequence[socket.socket], threads: int) -> None:
        options = ffi.new("struct pageferry_server_options *")
        fds = ffi.new("int[]", [one.fileno() for one in sockets])  # C duplicates them
        options.listen_fds = fds
        options.listen_fd_count = len(sockets)
        options.threads = threads
        out = ffi.new("struct pageferry_server **")
        native.check(lib.pageferry_server_open(options, out), options.error)
        self._server = out[0]

    def add(self, image: ImageFile, facts: ImageFacts, lost: Sequence[PageRun] = ()) -> None:
        """Serves the image under its name from now on, these pages as lost; the file stays the caller's."""
        error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
        c_facts = ffi.new(
            "struct pageferry_image_facts *", (facts.content_id, facts.page_count, facts.data_pages)
        )
        regions = ffi.new("uint64_t[]", list(image.region_pages))
        native.check(
            lib.pageferry_server_add_file(
                self._server,
                image.name.encode(),
                image.fd,
                c_facts,
                regions,
                len(image.region_pages),
                ffi.new("uint64_t[]", to_pairs(lost)),
                len(lost),
                error,
                len(error),
            ),
            error,
        )

    def add_live(self, memory: LiveMemory) -> None:
        """Serves it from now on, to its sessions alone. PageferryError: it cannot be tracked, and why."""
        options = ffi.new("struct pageferry_live_options *")
        name = ffi.new("char[]", memory.name.encode())
        regions = ffi.new("struct pageferry_region[]", _as_c(memory.regions))
        options.name = name
        options.uffd, options.ram_fd = memory.uffd, memory.ram_fd
        options.vmm_pid, options.vmm_pidfd = memory.pid, memory.pidfd
        options.arriving_fd = memory.arriving_fd
        options.regions, options.region_count = regions, len(memory.regions)
        options.content_id, options.incarnation = memory.content_id, memory.incarnation
        options.drops_untold = memory.drops_untold
        native.check(lib.pageferry_server_add_live(self._server, options), options.error)

    def freeze(self, name: str) -> Frozen:
        """The guest stands still: settles the final round. Blocks, some ms a GiB. Again: the same answer."""
        frozen = ffi.new("struct pageferry_frozen *")
        error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
        native.check(
            lib.pageferry_server_freeze(self._server, name.encode(), frozen, error, len(error)), error
        )
        return Frozen(frozen.as_of, frozen.dirty_pages, bytes(frozen.digest))

    def thaw(self, name: str) -> None:
        """The guest runs here again. Its sessions have lost their rights before. Blocks: every page gets a
        new version."""
        native.check(lib.pageferry_server_thaw(self._server, name.encode()))

    def arrived(self, name: str) -> None:
        """Every page of it is here, and its fault client is to go: the memory is registered for write
        protection alone. WRONG_PHASE: pages are missing, or poisoned. Blocks for some ms a GiB."""
        native.check(lib.pageferry_server_arrived(self._server, name.encode()))

    def live_state(self, name: str) -> LiveState:
        state = ffi.new("struct pageferry_live_state *")
        native.check(lib.pageferry_server_live_state(self._server, name.encode(), state))
        return LiveState(
            as_of=state.as_of,
            page_count=state.page_count,
            dirty_pages=state.dirty_pages,
            round_ns=state.round_ns,
            round=state.round,
            frozen=bool(state.frozen),
        )

    def poison(self, name: str, run: PageRun) -> None:
        """These pages are lost: they travel as POISON, never as bytes. A live image: until the freeze, for
        whose time it blocks."""
        error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
        native.check(
            lib.pageferry_server_poison(
                self._server, name.encode(), run.first_page, run.page_count, error, len(error)
            ),
            error,
        )

    def poisoned(self, name: str) -> list[PageRun]:
        """All that is lost of it now, here or before it came here."""
        first = ffi.new("uint64_t *")
        numbers = ffi.new("uint64_t[]", 2 * POISONED_RUNS_AT_ONCE)
        runs: list[PageRun] = []
        while count := native.check(
            lib.pageferry_server_poisoned(self._server, name.encode(), first, numbers, POISONED_RUNS_AT_ONCE)
        ):
            runs.extend(from_pairs(ffi.unpack(numbers, 2 * count)))
        return runs

    def remove(self, name: str) -> None:
        """Serves it no more: calls end with NO_SUCH_IMAGE, its memory is given up after the last of them."""
        native.check(lib.pageferry_server_remove(self._server, name.encode()))

    def set_session(self, gate: SessionGate) -> None:
        """A new session, or what has changed of one; who is attached stays bound to it."""
        told = ffi.new("struct pageferry_session *")
        session = ffi.new("char[]", gate.session.encode())
        image = ffi.new("char[]", gate.image.encode())
        told.session, told.image = session, image
        told.token_sha256 = gate.token_sha256
        told.rights, told.phase = gate.rights, gate.phase
        told.cancel_requested = gate.cancel_requested
        told.frozen = bool(gate.manifest_digest)
        told.manifest_digest = gate.manifest_digest
        error = ffi.new("char[]", lib.PAGEFERRY_TEXT_BYTES)
        native.check(lib.pageferry_server_set_session(self._server, told, error, len(error)), error)

    def drop_session(self, session: str) -> None:
        native.check(lib.pageferry_server_drop_session(self._server, session.encode()))

    def event(self) -> ServerEvent | None:
        """The oldest news, if there is any."""
        told = ffi.new("struct pageferry_server_event *")
        if lib.pageferry_server_event(self._server, told) == 0:
            return None
        of_image = told.kind == ServerEventKind.LOST
        return ServerEvent(
            kind=ServerEventKind(told.kind),
            session=native.text(told.session),
            target=told.target,
            epoch=told.epoch,
            value=told.value,
            page_count=told.page_count,
            peer="" if of_image else native.text(told.text),
            image=native.text(told.text) if of_image else "",
        )

    def event_fd(self) -> int:
        """Readable while there is news; C's own."""
        return int(lib.pageferry_server_event_fd(self._server))

    def health(self, serving: bool) -> None:
        lib.pageferry_server_health(self._server, serving)

    def drain(self) -> None:
        """No new calls; open ones end with GOING_AWAY once what they owe is answered."""
        lib.pageferry_server_drain(self._server)

    def open_calls(self) -> int:
        return int(lib.pageferry_server_open_calls(self._server))

    def counters(self) -> dict[str, int]:
        return native.counters(lambda values, size: lib.pageferry_server_counters(self._server, values, size))

    def histogram(self, name: str) -> native.Histogram:
        return native.histogram(
            lambda index, values, size: lib.pageferry_server_histogram(self._server, index, values, size),
            name,
        )

    def close(self) -> None:
        if self._server != ffi.NULL:
            lib.pageferry_server_close(self._server)
            self._server = ffi.NULL

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
