# SPDX-License-Identifier: Apache-2.0
"""Poison of a session: what is ordered of the pager, what its answers are, and the log that all read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from faultclient import poison
from faultclient.pager import EventKind, PagerEvent, Poisoned
from faultclient.poison import FIRST_COOKIE
from faultclient.restore import OneSession, Restore, follow
from faultclient.server import ControlServer
from pageferry.layout import parse_layout
from pageferry.phases import Phase
from pageferry.reasons import REASON_TRAILER, PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.logs import log
from pageferry.units import PageRun
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2
from tests.support.fake_pager import PAGES, FakePager, session_of

Request = migrations_pb2.PoisonRequest
RUNS = [PageRun(3, 2), PageRun(40, 1)]


@pytest.fixture
def pager() -> Iterator[FakePager]:
    made = FakePager()
    yield made
    made.let_go()


@pytest.fixture
def session(pager: FakePager) -> Restore:
    made = session_of(pager)
    made.start()
    pager.tell(EventKind.ATTACHED)
    pager.tell(EventKind.ARMED)
    made.catch_up()
    return made


def lost(pager: FakePager, page: int, number: int, value: int = 0) -> None:
    pager.lost = sorted([*pager.lost, PageRun(page, 1)])
    pager.table["POISONED"] += 1
    pager.tell(EventKind.POISONED, page=page, cookie=number, value=value)


def obeys(pager: FakePager) -> None:
    """Each order is answered at once."""
    pager.on_order = lambda order, cookie: pager.tell(EventKind.DONE, cookie=cookie)


def refuses(pager: FakePager, reason: Reason = Reason.WRONG_PHASE) -> None:
    pager.on_order = lambda order, cookie: pager.tell(
        EventKind.FAILED, reason, "not now", page=1, cookie=cookie
    )


def play(session: Restore, what: Callable[[], Awaitable[None]]) -> None:
    """While somebody feeds the pager's events to the session."""

    async def run() -> None:
        following = asyncio.create_task(follow(session))
        try:
            await what()
        finally:
            following.cancel()
            await asyncio.wait([following])

    asyncio.run(asyncio.wait_for(run(), 30))


# ---------------------------------------------------------------------------------------------------- the log


def test_every_loss_has_a_number_and_wakes_who_watches(session: Restore, pager: FakePager) -> None:
    revision = session.revision
    lost(pager, 7, 1, Poisoned.WAS_MAPPED | Poisoned.MAPPED)
    lost(pager, 3, 2, Poisoned.HELD)
    pager.tell(EventKind.POISON_CLEARED, page=7, value=1, cookie=3)
    session.catch_up()
    assert session.revision == revision + 3
    entries = list(session.poisoning.log.after(0, 10))
    assert [(entry.seq, entry.run, entry.what.name) for entry in entries] == [
        (1, PageRun(7, 1), "WAS_MAPPED|MAPPED"),
        (2, PageRun(3, 1), "HELD"),
        (3, PageRun(7, 1), "CLEARED"),
    ]


def test_many_are_told_and_few_are_said(
    session: Restore, pager: FakePager, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[int] = []
    monkeypatch.setattr(log, "warning", lambda event, **words: said.append(words.get("unsaid", 0)))
    for number in range(1, 101):
        session.poisoning.note(PagerEvent(EventKind.POISONED, cookie=number, page=number))
    assert session.poisoning.log.seq == 100
    assert said == [0] * poison.SAID_MAX
    monkeypatch.setattr(poison, "SAID_IN_S", 0)
    session.poisoning.note(PagerEvent(EventKind.POISONED, cookie=101, page=1))
    assert said[-1] == 84


def test_a_number_that_was_heard_is_not_heard_again(session: Restore, pager: FakePager) -> None:
    for page, number in ((7, 1), (8, 2), (7, 1), (8, 2), (9, 3)):
        lost(pager, page, number)
    session.catch_up()
    assert [entry.run.first_page for entry in session.poisoning.log.after(0, 10)] == [7, 8, 9]


# ------------------------------------------------------------------------------------------------- the orders


def test_orders_are_awaited(session: Restore, pager: FakePager) -> None:
    async def go() -> None:
        ordered = asyncio.create_task(session.poison(RUNS))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pager.orders[1:] == ["poison 3+2", "poison 40+1"]
        pager.tell(EventKind.DONE, cookie=FIRST_COOKIE)
        await asyncio.sleep(0.02)
        assert not ordered.done()
        pager.tell(EventKind.DONE, cookie=FIRST_COOKIE + 1)
        await ordered
        obeys(pager)
        await session.clear_poison([PageRun(3, 1)])
        assert pager.orders[-1] == "clear 3+1"

    play(session, go)


def test_a_refusal_is_the_pager_s_own_and_ends_nothing(session: Restore, pager: FakePager) -> None:
    async def go() -> None:
        refuses(pager, Reason.NO_MEMORY)
        with pytest.raises(PageferryError, match="not now") as caught:
            await session.poison(RUNS)
        assert caught.value.reason is Reason.NO_MEMORY
        assert session.phase is Phase.POSTCOPY
        assert session.failure is None

    play(session, go)


def test_a_full_ring_is_tried_again(session: Restore, pager: FakePager) -> None:
    async def go() -> None:
        left = [3]

        def later(order: str, cookie: int) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise PageferryError(Reason.BUSY, "the ring is full")
            pager.tell(EventKind.DONE, cookie=cookie)

        pager.on_order = later
        await session.poison([PageRun(1, 1)])
        assert pager.orders.count("poison 1+1") == 4

    play(session, go)


def test_a_pager_that_is_slow_goes_on(
    session: Restore, pager: FakePager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poison, "PATIENCE_S", 0.05)

    async def go() -> None:
        with pytest.raises(PageferryError, match="goes on") as caught:
            await session.poison(RUNS)
        assert caught.value.reason is Reason.TOO_SLOW
        pager.tell(EventKind.DONE, cookie=FIRST_COOKIE)  # nobody waits for it any more
        await asyncio.sleep(0.02)

    play(session, go)


def test_the_end_of_the_session_ends_the_waiting(session: Restore, pager: FakePager) -> None:
    async def go() -> None:
        ordered = asyncio.create_task(session.poison(RUNS))
        await asyncio.sleep(0.02)
        pager.tell(EventKind.VMM_GONE)
        with pytest.raises(PageferryError, match="no registration any more") as caught:
            await ordered
        assert caught.value.reason is Reason.WRONG_PHASE

    play(session, go)


def test_before_attaching_and_after_the_end(pager: FakePager) -> None:
    session = session_of(pager)
    session.start()

    async def refused() -> None:
        with pytest.raises(PageferryError) as caught:
            await session.poison(RUNS)
        assert caught.value.reason is Reason.WRONG_PHASE
        assert caught.value.remedy

    asyncio.run(refused())
    pager.tell(EventKind.VMM_GONE)
    session.catch_up()
    asyncio.run(refused())
    assert pager.orders == ["arm"]


# ------------------------------------------------------------------------------------------ how long it stays


def phase_of(session: Restore) -> Phase:
    return session.phase


def test_it_stays_until_the_last_poison_is_cleared(session: Restore, pager: FakePager) -> None:
    lost(pager, 7, 1)
    lost(pager, 8, 2)
    pager.tell(EventKind.COMPLETE, value=2)
    session.catch_up()
    assert phase_of(session) is Phase.COMMITTED
    pager.table["POISONED"] = 1
    pager.tell(EventKind.POISON_CLEARED, page=7, value=1, cookie=3)
    session.catch_up()
    assert phase_of(session) is Phase.COMMITTED
    pager.table["POISONED"] = 0
    pager.tell(EventKind.POISON_CLEARED, page=8, value=1, cookie=4)
    session.catch_up()
    assert phase_of(session) is Phase.RELEASED
    assert pager.orders == ["arm", "unregister"]


def test_a_registration_that_is_kept_stands_until_the_vmm_ends(session: Restore, pager: FakePager) -> None:
    session.taken.keep_registration = True
    pager.tell(EventKind.COMPLETE)
    session.catch_up()
    assert phase_of(session) is Phase.COMMITTED

    async def go() -> None:
        obeys(pager)
        await session.poison(RUNS)

    play(session, go)
    pager.tell(EventKind.VMM_GONE)
    session.catch_up()
    assert session.ended and session.failure is None


# ---------------------------------------------------------------------------------------------- over the port


Stub = Any


def served(session: Restore, test: Callable[[Stub], Awaitable[None]]) -> None:
    @asynccontextmanager
    async def stub() -> AsyncIterator[Stub]:
        async with (
            ControlServer(OneSession(session), Address("127.0.0.1", 0), None, session.taken.pager) as up,
            grpc.aio.insecure_channel(up.addresses["control"]) as channel,
        ):
            yield faultclient_pb2_grpc.FaultClientServiceStub(channel)

    async def run() -> None:
        async with stub() as made:
            await test(made)

    play(session, run)


async def refusal(call: Awaitable[object]) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    (value,) = [value for key, value in caught.value.trailing_metadata() or () if key == REASON_TRAILER]
    return str(value)


def test_poisoned_by_page_and_by_guest_address(session: Restore, pager: FakePager) -> None:
    session.machine_layout = parse_layout(f"0:{50 * 4096}+4G:{50 * 4096}")

    async def test(stub: Stub) -> None:
        obeys(pager)
        request = Request(session="restore", runs=[1, 2], guest_addresses=[(4 << 30) + 5000, 4096])
        await stub.PoisonPages(request)
        assert pager.orders[1:] == ["poison 1+2", "poison 51+1"]
        await stub.ClearPoison(Request(session="restore", guest_addresses=[0]))
        assert pager.orders[-1] == "clear 0+1"

    served(session, test)


def test_what_is_listed(session: Restore, pager: FakePager) -> None:
    for number, page in enumerate((7, 3, 4), start=1):
        lost(pager, page, number, Poisoned.WAS_MAPPED if page == 3 else 0)
    session.catch_up()

    async def test(stub: Stub) -> None:
        whole = await stub.ListPoison(Request(session="restore"))
        assert (whole.seq, list(whole.runs)) == (3, [3, 1, 4, 1, 7, 1])
        assert [(one.seq, one.page, one.was_mapped) for one in whole.entries] == [
            (1, 7, False),
            (2, 3, True),
            (3, 4, False),
        ]
        later = await stub.ListPoison(Request(session="restore", after_seq=2))
        assert [one.seq for one in later.entries] == [3]
        some = await stub.ListPoison(Request(session="restore", runs=[4, 10]))
        assert (list(some.runs), [one.page for one in some.entries]) == ([4, 1, 7, 1], [7, 4])
        shown = await stub.GetSession(migrations_pb2.SessionName(session="restore"))
        assert (shown.poison_seq, shown.pages_poisoned) == (3, 3)

    served(session, test)


def test_more_entries_than_one_answer_takes(session: Restore, pager: FakePager) -> None:
    for number in range(1, 5001):
        session.poisoning.log.add(PageRun(number % PAGES, 1))

    async def test(stub: Stub) -> None:
        first = await stub.ListPoison(Request(session="restore"))
        assert (first.seq, len(first.entries), first.entries[-1].seq) == (5000, 4096, 4096)
        rest = await stub.ListPoison(Request(session="restore", after_seq=4096))
        assert [one.seq for one in rest.entries] == list(range(4097, 5001))

    served(session, test)


def test_what_is_refused(session: Restore) -> None:
    async def test(stub: Stub) -> None:
        for call in (stub.PoisonPages, stub.ClearPoison, stub.ListPoison):
            assert await refusal(call(Request(session="other", runs=[1, 1]))) == "NO_SUCH_IMAGE"
            assert await refusal(call(Request(session="restore", runs=[PAGES, 1]))) == "OUT_OF_IMAGE"
            assert await refusal(call(Request(session="restore", runs=[1]))) == "BAD_REQUEST"
            assert await refusal(call(Request(session="restore", runs=[1, 0]))) == "BAD_REQUEST"
            assert await refusal(call(Request(session="restore", guest_addresses=[0]))) == "UNSUPPORTED"
        assert await refusal(stub.PoisonPages(Request(session="restore"))) == "BAD_REQUEST"
        assert await refusal(stub.ClearPoison(Request(session="restore"))) == "BAD_REQUEST"
        session.machine_layout = parse_layout("0:400K")
        call = stub.PoisonPages(Request(session="restore", guest_addresses=[1 << 20]))
        assert await refusal(call) == "OUT_OF_IMAGE"

    served(session, test)


def test_a_session_that_has_not_attached(pager: FakePager) -> None:
    session = session_of(pager)
    session.start()

    async def test(stub: Stub) -> None:
        assert await refusal(stub.PoisonPages(Request(session="restore", runs=[1, 1]))) == "WRONG_PHASE"
        assert await refusal(stub.ClearPoison(Request(session="restore", runs=[1, 1]))) == "WRONG_PHASE"

    served(session, test)
