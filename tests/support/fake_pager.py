# SPDX-License-Identifier: Apache-2.0
"""A pager without a thread: a test says what it tells, and reads what it was ordered."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

from faultclient.pager import EventKind, PageCounts, Pager, PagerEvent, PagerFds
from faultclient.restore import Restore
from faultclient.session import Postcopy
from faultclient.vms import Vm
from pageferry.reasons import Reason
from pageferry.service import native
from pageferry.units import PageRun

PAGES = 100


@dataclass
class FakePager:
    """`let_go` when the test is over: it has descriptors, its bell among them."""

    told: list[PagerEvent] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)
    table: dict[str, int] = field(default_factory=lambda: dict.fromkeys(native.PAGE_STATES, 0))
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(native.COUNTERS, 0))
    bell: int = field(default_factory=lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
    memory: int = field(default_factory=lambda: os.memfd_create("fake", os.MFD_CLOEXEC))
    closed: bool = False
    lost: list[PageRun] = field(default_factory=list)
    digest: bytes = bytes(16)
    on_order: Callable[[str, int], None] = lambda order, cookie: None

    # ------------------------------------------------------------------------------------- what the test says

    def tell(
        self,
        kind: EventKind,
        reason: Reason | None = None,
        text: str = "",
        *,
        value: int = 0,
        page: int = 0,
        cookie: int = 0,
        digest: bytes = b"",
    ) -> None:
        self.told.append(PagerEvent(kind, reason, cookie, page, value, text, digest))
        os.eventfd_write(self.bell, 1)

    def let_go(self) -> None:
        os.close(self.bell)
        os.close(self.memory)

    # --------------------------------------------------------------------------------- what a session may ask

    def arm(self, cookie: int = 0) -> None:
        self.orders.append("arm")
        self.on_order("arm", cookie)

    def round(self, *, open_new: bool, cookie: int = 0) -> None:
        order = "new round" if open_new else "frozen round"
        self.orders.append(order)
        self.on_order(order, cookie)

    def unregister(self) -> None:
        self.orders.append("unregister")

    def poison(self, first_page: int, page_count: int, *, cookie: int = 0) -> None:
        self.orders.append(f"poison {first_page}+{page_count}")
        self.on_order("poison", cookie)

    def clear_poison(self, first_page: int, page_count: int, *, cookie: int = 0) -> None:
        self.orders.append(f"clear {first_page}+{page_count}")
        self.on_order("clear", cookie)

    def poisoned(self) -> list[PageRun]:
        return self.lost

    def fds(self) -> PagerFds:
        """As many as there are to be."""
        assert not self.closed
        return PagerFds(self.memory, self.memory, self.memory, self.memory)

    def manifest(self) -> bytes:
        return self.digest

    def event_fd(self) -> int:
        return self.bell

    def events(self) -> Iterator[PagerEvent]:
        while self.told:
            yield self.told.pop(0)
        try:
            os.eventfd_read(self.bell)
        except BlockingIOError:  # it was silent already
            return

    def pages(self) -> PageCounts:
        return PageCounts(PAGES, self.table)

    def states(self, first_page: int, page_count: int) -> bytes:
        """In the order of their numbers: what is missing lies at the front."""
        numbers = [native.PAGE_STATES.index(name) for name, count in self.table.items() for _ in range(count)]
        return bytes(sorted(numbers)[first_page : first_page + page_count])

    def counters(self) -> dict[str, int]:
        return self.count

    def blocktime_ns(self) -> int:
        return 5_000_000

    def histogram(self, name: str) -> native.Histogram:
        return native.Histogram((0,) * native.BUCKETS, 0)

    def trace(self) -> list[str]:
        return ["1 page=1 MISSING + FAULT: ASK result=0", "2 page=1 WANTED + DATA: PLACE result=0"]

    def close(self) -> None:
        self.closed = True


def session_of(pager: FakePager, postcopy: Postcopy = Postcopy.AT_ONCE, name: str = "restore") -> Restore:
    vm = Vm(cast(Pager, pager), image="vm", data_address="127.0.0.1:1", length_bytes=PAGES * 4096, vmm_pid=0)
    return Restore.of(name, vm, postcopy)
