# SPDX-License-Identifier: Apache-2.0
"""Pagers: the C threads that own a VM's memory, with orders down and events up.

The only file here that sees cffi. Nothing below calls back: events are read when their descriptor is ready.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, Final

from pageferry._native import ffi, lib
from pageferry.host.handoff import Handoff
from pageferry.reasons import Reason
from pageferry.service import native
from pageferry.units import PageRun, merge

TRACE_BYTES: Final = 64 * 1024
STATES_AT_ONCE: Final = 1 << 20
POISONED: Final = native.PAGE_STATES.index("POISONED")
POISONED_STATES: Final = re.compile(re.escape(bytes([POISONED])) + b"+")


class EventKind(IntEnum):
    """As pageferry.h has them."""

    ATTACHED = lib.PAGEFERRY_EVENT_ATTACHED
    ARMED = lib.PAGEFERRY_EVENT_ARMED
    POPULATED = lib.PAGEFERRY_EVENT_POPULATED
    COMPLETE = lib.PAGEFERRY_EVENT_COMPLETE
    PAUSED = lib.PAGEFERRY_EVENT_PAUSED
    RESUMED = lib.PAGEFERRY_EVENT_RESUMED
    FAILED = lib.PAGEFERRY_EVENT_FAILED
    EARLY_FAULT = lib.PAGEFERRY_EVENT_EARLY_FAULT
    POISONED = lib.PAGEFERRY_EVENT_POISONED
    ALARM = lib.PAGEFERRY_EVENT_ALARM
    VMM_GONE = lib.PAGEFERRY_EVENT_VMM_GONE
    ROUND = lib.PAGEFERRY_EVENT_ROUND
    PHASE = lib.PAGEFERRY_EVENT_PHASE
    DONE = lib.PAGEFERRY_EVENT_DONE
    POISON_CLEARED = lib.PAGEFERRY_EVENT_POISON_CLEARED


class Poisoned(IntFlag):
    """Of a POISONED event's value, as pageferry.h has them."""

    WAS_MAPPED = lib.PAGEFERRY_POISONED_WAS_MAPPED
    MAPPED = lib.PAGEFERRY_POISONED_MAPPED
    HELD = lib.PAGEFERRY_POISONED_HELD


@dataclass(frozen=True, slots=True)
class PagerEvent:
    kind: EventKind
    reason: Reason | None = None
    cookie: int = 0
    page: int = 0
    value: int = 0
    text: str = ""
    digest: bytes = b""  # ROUND: of the manifest, 16 bytes

    @property
    def order_refused(self) -> bool:
        """FAILED: only the order with this cookie was refused, and the pager goes on as before."""
        return self.kind is EventKind.FAILED and self.page == 1


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, in the session of a move."""

    session: str
    token: str = field(repr=False)  # base64url of its 32 bytes, without padding
    target: int  # the VM's number, made once for its hand-over
    epoch: int = 1  # counted up for each worker


@dataclass(frozen=True, slots=True)
class PageCounts:
    """Pages in each state, by the states' names, at one moment (or nearly: they move)."""

    total: int
    states: dict[str, int]

    @property
    def here(self) -> int:
        """Nothing is owed by the source for these: acceptable bytes are here, or they read as zeros, or are
        poisoned. Those that are here and not the guest's yet (CACHED) still need us."""
        return sum(self.states.values()) - self.states["MISSING"] - self.states["WANTED"]


@dataclass(frozen=True, slots=True)
class PagerFds:
    """A pager's own descriptors, until it is closed. pidfd -1: there is none."""

    uffd: int
    ram: int
    table: int
    pidfd: int


@dataclass(frozen=True, slots=True)
class Collapsed:
    """Pieces of 2 MiB; those that are huge, by the kernel's own count."""

    extents: int
    full: int  # without poison and holes
    huge_before: int
    huge: int
    why_fewer: str  # than are full; or empty


class CollapseProgress:
    """Of a pass that another thread waits for."""

    def __init__(self) -> None:
        self.shared: Any = ffi.new("struct pageferry_progress *")

    def cancel(self) -> None:
        self.shared.cancel = 1


class ZapMethod(IntEnum):
    """The way that DONE of a zap names. As pageferry.h has them."""

    NONE = 0  # there was nothing to do
    DONTNEED = lib.PAGEFERRY_ZAPPED_BY_DONTNEED
    DONTNEED_LOCKED = lib.PAGEFERRY_ZAPPED_BY_DONTNEED_LOCKED
    REMAP = lib.PAGEFERRY_ZAPPED_BY_REMAP
    PUNCH = lib.PAGEFERRY_ZAPPED_BY_PUNCH


class Client:
    """What the VMs of this process share. Close its pagers first."""

    def __init__(self) -> None:
        options = ffi.new("struct pageferry_client_options *")
        out = ffi.new("struct pageferry_client **")
        native.check(lib.pageferry_client_open(options, out), options.error)
        self._client = out[0]

    def open(
        self,
        handoff: Handoff,
        *,
        image: str,
        data_address: str,
        background: bool = True,
        spin_us: int = 0,
        caller: Caller | None = None,
        bandwidth_bytes_per_s: int = 0,
        handed_on: bool = False,
        huge_pages: bool = False,
        without_poison: bool = False,
    ) -> "Pager":
        """Checks the hand-off and starts its pager, which dials the page server. Takes the hand-off over.

        `handed_on`: COMPLETE ends no registration, for a page server sees by it what the VM writes.
        `without_poison`: as on a kernel that cannot poison: who touches a lost page waits until that is over.
        `bandwidth_bytes_per_s`: of all that comes in, as an interface counts it; 0: paced below the link's
        rate. `huge_pages`: at COMPLETE a VMM under the shim lets them in again, for Pager.collapse.
        PageferryError: what was handed over cannot be served; the hand-off is still the caller's then.
        """
        regions = ffi.new(
            "struct pageferry_region[]",
            [(region.address, region.length_bytes, region.offset_bytes) for region in handoff.regions],
        )
        # C copies the strings; names here only keep them alive until it has.
        image_chars = ffi.new("char[]", image.encode())
        address_chars = ffi.new("char[]", data_address.encode())
        options = ffi.new("struct pageferry_vm_options *")
        options.image = image_chars
        options.data_address = address_chars
        options.uffd = handoff.uffd
        options.backing_fd = handoff.backing_fd
        options.vmm_fd = handoff.connection.fileno()
        options.vmm_pidfd = handoff.pidfd
        options.vmm_pid = handoff.pid
        options.memory = lib.PAGEFERRY_MEMORY_SHARED if handoff.shared else lib.PAGEFERRY_MEMORY_PRIVATE
        options.unit_bytes = handoff.page_bytes
        options.frames = handoff.frames
        options.regions = regions
        options.region_count = len(handoff.regions)
        options.background = background
        options.spin_us = spin_us
        options.handed_on = handed_on
        options.without_poison = without_poison
        options.bandwidth_bytes_per_s = bandwidth_bytes_per_s
        options.huge_pages = huge_pages
        if caller is not None:
            session_chars = ffi.new("char[]", caller.session.encode())
            token_chars = ffi.new("char[]", caller.token.encode())
            options.session = session_chars
            options.token = token_chars
            options.target = caller.target
            options.epoch = caller.epoch
        out = ffi.new("struct pageferry_vm **")
        native.check(lib.pageferry_vm_open(self._client, options, out), options.error)
        handoff.release()
        return Pager(out[0])

    def close(self) -> None:
        if self._client != ffi.NULL:
            lib.pageferry_client_close(self._client)
            self._client = ffi.NULL


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a pager had counted when it was closed."""

    pages: PageCounts
    counters: dict[str, int]
    histograms: dict[str, native.Histogram]
    trace: list[str]


class Pager:
    """One VM. To be used from one thread. A closed one still has its last numbers."""

    def __init__(self, vm: Any) -> None:
        self._vm = vm
        self._last: Numbers | None = None

    @property
    def _running(self) -> Any:
        if self._last is not None:
            raise ValueError("this pager is closed")
        return self._vm

    def _order(
        self, kind: int, value: int = 0, cookie: int = 0, *, page_count: int = 0, flags: int = 0
    ) -> None:
        fields = {"kind": kind, "value": value, "cookie": cookie, "page_count": page_count, "flags": flags}
        order = ffi.new("struct pageferry_order *", fields)
        native.check(lib.pageferry_vm_order(self._running, order))

    def arm(self, cookie: int = 0) -> None:
        """Faults are resolved from now on; answered by ARMED, or by FAILED."""
        self._order(lib.PAGEFERRY_ORDER_ARM, cookie=cookie)

    def background(self, on: bool) -> None:
        """Whether pages move that nobody has asked for."""
        self._order(lib.PAGEFERRY_ORDER_BACKGROUND, value=on)

    def round(self, *, open_new: bool, cookie: int = 0) -> None:
        """Reads from the server which pages are newer than what is here: of a new round, or of its map as it
        is, frozen. Answered by ROUND, or by FAILED. One at a time, before arming."""
        self._order(lib.PAGEFERRY_ORDER_ROUND, value=open_new, cookie=cookie)

    def bandwidth(self, bytes_per_s: int) -> None:
        """As in Client.open."""
        self._order(lib.PAGEFERRY_ORDER_BANDWIDTH, value=bytes_per_s)

    def poison(self, first_page: int, page_count: int, *, cookie: int = 0) -> None:
        """These pages are lost from now on. Answered by DONE (page: how many were not before), or by FAILED;
        each is told by POISONED, once."""
        self._order(lib.PAGEFERRY_ORDER_POISON, first_page, cookie, page_count=page_count)

    def clear_poison(self, first_page: int, page_count: int, *, cookie: int = 0) -> None:
        """Those that are poisoned are fresh memory from now on. Answered by DONE (page: how many), or by
        FAILED; told by POISON_CLEARED."""
        self._order(lib.PAGEFERRY_ORDER_CLEAR_POISON, first_page, cookie, page_count=page_count)

    def zap(self, first_page: int, page_count: int, *, drop: bool = False, cookie: int = 0) -> None:
        """The mappings of these pages go: the next access faults again. With `drop` their data goes too, for
        ever. Answered by DONE (page: how many, value: a ZapMethod), or by FAILED."""
        flags = lib.PAGEFERRY_ZAP_DROP if drop else 0
        self._order(lib.PAGEFERRY_ORDER_ZAP, first_page, cookie, page_count=page_count, flags=flags)

    def unregister(self) -> None:
        """Of a VM that was handed on, after COMPLETE: nobody else has it any more."""
        self._order(lib.PAGEFERRY_ORDER_LET_GO)

    def fds(self) -> PagerFds:
        fds = ffi.new("struct pageferry_vm_fds *")
        lib.pageferry_vm_fds(self._running, fds)
        return PagerFds(fds.uffd, fds.backing_fd, fds.table_fd, fds.vmm_pidfd)

    def event_fd(self) -> int:
        """Readable while there are events."""
        return int(lib.pageferry_vm_event_fd(self._running))

    def events(self) -> Iterator[PagerEvent]:
        """Those that are there now, the oldest first."""
        event = ffi.new("struct pageferry_event *")
        while self._last is None and native.check(lib.pageferry_vm_event(self._vm, event)):
            yield PagerEvent(
                kind=EventKind(event.kind),
                reason=Reason(event.reason) if event.reason else None,
                cookie=event.cookie,
                page=event.page,
                value=event.value,
                text=native.text(event.text),
                digest=bytes(event.digest) if event.kind == EventKind.ROUND else b"",
            )

    def pages(self) -> PageCounts:
        if self._last is not None:
            return self._last.pages
        pages = ffi.new("struct pageferry_pages *")
        lib.pageferry_vm_pages(self._vm, pages)
        return PageCounts(pages.total, dict(zip(native.PAGE_STATES, pages.state, strict=True)))

    def states(self, first_page: int, page_count: int) -> bytes:
        """The number of the state (native.PAGE_STATES) of each page, a byte each."""
        states = ffi.new("uint8_t[]", page_count)
        inside = lib.pageferry_vm_states(self._running, first_page, page_count, states)
        return bytes(ffi.buffer(states, inside))

    def poisoned(self) -> list[PageRun]:
        """What the page table says now, in order. A closed pager: nothing any more."""
        if self._last is not None or not (pages := self.pages()).states["POISONED"]:
            return []
        runs: list[PageRun] = []
        for first_page in range(0, pages.total, STATES_AT_ONCE):
            states = self.states(first_page, min(STATES_AT_ONCE, pages.total - first_page))
            runs += [
                PageRun.between(first_page + found.start(), first_page + found.end())
                for found in POISONED_STATES.finditer(states)
            ]
        return merge(runs)

    def manifest(self) -> bytes:
        """Its digest, summed anew over the page table; after COMPLETE, when nothing changes any more. Blocks
        for some ms a GiB."""
        digest = ffi.new("uint8_t[16]")
        native.check(lib.pageferry_vm_manifest(self._running, digest))
        return bytes(digest)

    def collapse(self, progress: CollapseProgress) -> Collapsed:
        """Full pieces of memory become huge pages again, after COMPLETE. Blocks, about a millisecond a piece:
        on any thread, and the pager is not closed meanwhile. PageferryError: none did."""
        collapse = ffi.new("struct pageferry_collapse *")
        collapse.progress = progress.shared
        native.check(lib.pageferry_vm_collapse(self._running, collapse), collapse.error)
        return Collapsed(
            collapse.extents, collapse.full, collapse.huge_before, collapse.huge, native.text(collapse.error)
        )

    def counters(self) -> dict[str, int]:
        if self._last is not None:
            return self._last.counters
        return native.counters(lambda values, capacity: lib.pageferry_vm_counters(self._vm, values, capacity))

    def histogram(self, name: str) -> native.Histogram:
        if self._last is not None:
            return self._last.histograms[name]
        return native.histogram(
            lambda index, values, capacity: lib.pageferry_vm_histogram(self._vm, index, values, capacity),
            name,
        )

    def blocktime_ns(self) -> int:
        """How long threads of the VM have waited for pages, all together: from the reading of a fault on."""
        return self.histogram("fault_fetch_ns").sum + self.histogram("fault_local_ns").sum

    def trace(self) -> list[str]:
        """The last steps, the oldest first."""
        if self._last is not None:
            return self._last.trace
        text = ffi.new("char[]", TRACE_BYTES)
        used = lib.pageferry_vm_trace(self._vm, text, TRACE_BYTES)
        return bytes(ffi.buffer(text, used)).decode().splitlines()

    def close(self) -> None:
        """Before COMPLETE the VM's threads stay where they are, waiting: the VMM holds the uffd too."""
        if self._last is None:
            histograms = {name: self.histogram(name) for name in native.HISTOGRAMS}
            self._last = Numbers(self.pages(), self.counters(), histograms, self.trace())
            lib.pageferry_vm_close(self._vm)
            self._vm = ffi.NULL


def accept_handoff(connection_fd: int) -> None:
    """Tells a VMM under the shim that its memory is taken: its mmap returns, and its pages come when there is
    a pager. PageferryError NO_VMM: it has gone."""
    native.check(lib.pageferry_handoff_accept(connection_fd))
