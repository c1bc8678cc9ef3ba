# SPDX-License-Identifier: Apache-2.0
"""The pager as Python sees it: it looks at what was handed over, takes it, and lets go of all of it."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from faultclient.pager import Client, EventKind, Pager, PagerEvent
from faultclient.vms import Vms
from pageferry.host.handoff import Handoff, receive
from pageferry.reasons import PageferryError, Reason
from tests.support.handoff_client import PAGE_BYTES, Memory, layout, region, send
from tests.support.processes import PATIENCE_S, unchanged
from tests.support.requires import needs_userfaultfd

PAGES = 64
NOBODY = "127.0.0.1:1"  # refuses every connection


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """Descriptors, and threads."""
    with unchanged():
        yield


def handed_over(message: bytes, fds: tuple[int, ...]) -> Handoff:
    ours, theirs = socket.socketpair()
    with theirs:
        send(theirs, message, fds)
        return receive(ours, uids={os.geteuid()})


def take(handoff: Handoff, *, image: str = "vm", data_address: str = NOBODY) -> PageferryError:
    """The refusal. What was handed over is closed by then."""
    with Vms() as vms, pytest.raises(PageferryError) as caught:
        vms.take(handoff, image=image, data_address=data_address, background=True, spin_us=0)
    return caught.value


def next_event(pager: Pager) -> PagerEvent:
    while True:
        for event in pager.events():
            return event
        readable, _, _ = select.select([pager.event_fd()], [], [], PATIENCE_S)
        assert readable, "the pager says nothing"


# -------------------------------------------------------------------------------------------- what is refused


def test_pipes_are_no_userfaultfd() -> None:
    reading, writing = os.pipe()
    for fds in ((reading,), (reading, writing)):
        error = take(handed_over(layout(region(0x7000_0000_0000, PAGES)), fds))
        assert error.reason is Reason.BAD_REQUEST
        assert "first file descriptor" in str(error)
    os.close(reading)
    os.close(writing)


@needs_userfaultfd
def test_the_second_is_no_memory() -> None:
    reading, writing = os.pipe()
    with Memory(PAGES) as memory:
        error = take(handed_over(memory.layout(), (memory.uffd, writing)))
        assert "second file descriptor" in str(error)
    os.close(reading)
    os.close(writing)


@needs_userfaultfd
def test_a_memory_file_that_cannot_be_written() -> None:
    with Memory(PAGES) as memory:
        readable = os.open(f"/proc/self/fd/{memory.file}", os.O_RDONLY)
        assert "open for writing" in str(take(handed_over(memory.layout(), (memory.uffd, readable))))
        os.close(readable)


@needs_userfaultfd
def test_a_region_that_is_not_there() -> None:
    with Memory(PAGES) as memory:
        elsewhere = layout(region(memory.address + PAGES * PAGE_BYTES * 1024, PAGES))
        assert "is not mapped" in str(take(handed_over(elsewhere, memory.fds)))
        longer = layout(region(memory.address, PAGES * 1024))
        assert take(handed_over(longer, memory.fds)).reason is Reason.BAD_REQUEST


@needs_userfaultfd
def test_shared_memory_whose_file_was_kept_back() -> None:
    with Memory(PAGES) as memory:
        assert "is shared, but no RAM file" in str(take(handed_over(memory.layout(), (memory.uffd,))))


@needs_userfaultfd
@pytest.mark.parametrize(
    "address, reason",
    [
        ("nowhere.invalid:7850", Reason.GOING_AWAY),
        ("7850", Reason.BAD_REQUEST),
        ("unix:", Reason.BAD_REQUEST),
    ],
)
def test_an_address_that_leads_nowhere(address: str, reason: Reason) -> None:
    with Memory(PAGES) as memory:
        assert take(handed_over(memory.layout(), memory.fds), data_address=address).reason is reason


@needs_userfaultfd
@pytest.mark.parametrize("image", ["", "a" * 129])
def test_an_image_without_a_name(image: str) -> None:
    with Memory(PAGES) as memory:
        assert "name has" in str(take(handed_over(memory.layout(), memory.fds), image=image))


# ----------------------------------------------------------------------------------------------- a pager runs


@needs_userfaultfd
def test_what_was_handed_over_is_the_pagers_from_then_on() -> None:
    with Memory(PAGES) as memory, Vms() as vms:
        handoff = handed_over(memory.layout(), memory.fds)
        vm = vms.take(handoff, image="vm", data_address=NOBODY, background=True, spin_us=0)
        handoff.close()  # it is not ours any more: nothing happens
        event = next_event(vm.pager)
        assert event.kind is EventKind.PAUSED
        assert event.reason is Reason.GOING_AWAY
        assert NOBODY in event.text
        vms.let_go(vm)


@needs_userfaultfd
def test_its_numbers() -> None:
    with Memory(PAGES) as memory, Vms() as vms:
        handoff = handed_over(memory.layout(), memory.fds)
        pager = vms.take(handoff, image="vm", data_address=NOBODY, background=True, spin_us=0).pager
        next_event(pager)
        pages = pager.pages()
        assert (pages.total, pages.here, pages.states["MISSING"]) == (PAGES, 0, PAGES)
        assert pager.states(0, PAGES) == bytes(PAGES)
        assert pager.states(PAGES - 3, 10) == bytes(3)
        assert pager.states(PAGES, 1) == b""
        counters = pager.counters()
        assert counters["dials_total"] >= 1
        assert counters["faults_total"] == 0
        assert pager.histogram("fault_fetch_ns").total == 0
        assert pager.blocktime_ns() == 0
        assert pager.trace() == []
        pager.background(False)
        pager.arm()


@needs_userfaultfd
def test_several_vms_in_one_process_and_closing_twice() -> None:
    client = Client()
    with Memory(PAGES) as first, Memory(2 * PAGES) as second:
        pagers = [
            client.open(handed_over(memory.layout(), memory.fds), image="vm", data_address=NOBODY)
            for memory in (first, second)
        ]
        assert [pager.pages().total for pager in pagers] == [PAGES, 2 * PAGES]
        for pager in (*pagers, *pagers):
            pager.close()
        assert [pager.pages().total for pager in pagers] == [PAGES, 2 * PAGES]  # as they were
        assert list(pagers[0].events()) == []
        for ask in (pagers[0].arm, pagers[0].event_fd, lambda: pagers[0].states(0, 1)):
            with pytest.raises(ValueError, match="closed"):
                ask()
        assert pagers[0].counters()["faults_total"] == pagers[0].histogram("fault_fetch_ns").total == 0
    client.close()
    client.close()
