# SPDX-License-Identifier: Apache-2.0
"""The control port of a fault client, over a real port, with sessions whose pager is a test's."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import pytest

from faultclient.pager import EventKind
from faultclient.restore import OneSession, Restore
from faultclient.server import ControlServer
from faultclient.service import as_message
from pageferry.phases import Phase
from pageferry.reasons import REASON_TRAILER, Reason
from pageferry.service.addresses import Address
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2, pages_pb2
from tests.support.fake_pager import PAGES, FakePager, session_of
from tests.support.processes import unchanged

Stub: TypeAlias = "faultclient_pb2_grpc.FaultClientServiceAsyncStub"
Watch = migrations_pb2.WatchSessionsRequest


@pytest.fixture
def pager() -> Iterator[FakePager]:
    made = FakePager()
    yield made
    made.let_go()


@pytest.fixture
def session(pager: FakePager) -> Restore:
    return session_of(pager)


def served(session: Restore, test: Callable[[Stub], Awaitable[None]], *, metrics: bool = False) -> None:
    """Runs the test against a port that serves this session."""

    @asynccontextmanager
    async def stub() -> AsyncIterator[Stub]:
        async with (
            ControlServer(OneSession(session), Address("127.0.0.1", 0), None, session.taken.pager) as up,
            grpc.aio.insecure_channel(up.addresses["control"]) as channel,
        ):
            yield faultclient_pb2_grpc.FaultClientServiceStub(channel)  # type: ignore[misc]

    async def run() -> None:
        async with stub() as made:
            await test(made)

    asyncio.run(asyncio.wait_for(run(), 30))


def reason(error: grpc.aio.AioRpcError) -> str:
    (value,) = [value for key, value in error.trailing_metadata() or () if key == REASON_TRAILER]
    return str(value)


# ------------------------------------------------------------------------------------------------ the words


def test_all_that_is_shown(session: Restore, pager: FakePager) -> None:
    pager.table |= {"MISSING": 20, "WANTED": 2, "CACHED": 5, "ZERO": 30, "OWNED": 42, "POISONED": 1}
    pager.count |= {"faults_total": 9, "asks_outstanding": 2, "wire_in_bytes_total": 70}
    pager.count["wire_out_bytes_total"] = 7
    pager.tell(EventKind.PAUSED, Reason.NO_MEMORY, "make room")
    session.catch_up()
    message = as_message(session)
    assert message.session == "restore"
    assert message.image == "vm"
    assert message.revision == session.revision
    assert int(message.phase) == Phase.CREATED
    assert abs(message.phase_since.ToSeconds() - session.phase_since) <= 1
    assert int(message.paused) == Reason.NO_MEMORY
    assert message.failure == 0
    assert message.message == "make room"
    assert message.peer == "127.0.0.1:1"
    assert (message.pages_total, message.pages_settled, message.pages_poisoned) == (PAGES, 78, 1)
    assert (message.faults, message.faults_waiting) == (9, 2)
    assert message.wire_bytes == 77
    assert message.blocktime_us == 5000


# ------------------------------------------------------------------------------------------------ the calls


def test_by_name(session: Restore) -> None:
    async def test(stub: Stub) -> None:
        found = await stub.GetSession(migrations_pb2.SessionName(session="restore"))
        assert found.image == "vm"

    served(session, test)


@pytest.mark.parametrize("name", ["", "other"])
def test_no_such_session(session: Restore, name: str) -> None:
    async def test(stub: Stub) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSession(migrations_pb2.SessionName(session=name))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert reason(caught.value) == "NO_SUCH_IMAGE"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchSessions(Watch(session="other")):
                pass
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    served(session, test)


@pytest.mark.parametrize("name", ["", "restore"])
def test_once_is_a_list(session: Restore, name: str) -> None:
    async def test(stub: Stub) -> None:
        listed = [message.session async for message in stub.WatchSessions(Watch(session=name, once=True))]
        assert listed == ["restore"]

    served(session, test)


def test_watched_to_its_end(session: Restore, pager: FakePager) -> None:
    """Each change at once, although an interval is an hour; the newest is never missed."""

    async def test(stub: Stub) -> None:
        seen = []
        async for message in stub.WatchSessions(Watch(interval_ms=3_600_000)):
            seen.append(pages_pb2.Phase.Name(message.phase))
            if len(seen) == 1:
                pager.tell(EventKind.ATTACHED)
                pager.tell(EventKind.ARMED)
            else:
                pager.tell(EventKind.COMPLETE)
            session.catch_up()
        assert seen[0] == "PHASE_CREATED"
        assert seen[-1] == "PHASE_RELEASED"
        assert len(seen) <= 3

    served(session, test)


def test_numbers_that_move_come_once_an_interval(session: Restore, pager: FakePager) -> None:
    """An interval below the least is raised to it."""

    async def test(stub: Stub) -> None:
        settled = []
        async for message in stub.WatchSessions(Watch(interval_ms=1)):
            settled.append(message.pages_settled)
            if len(settled) == 3:
                return
            pager.table["OWNED"] += 10
        pytest.fail("it ended")

    served(session, test)
    assert pager.table["OWNED"] == 20


def test_an_ended_session_is_told_once(session: Restore) -> None:
    session.cancel(Reason.CANCELLED, "ended by SIGTERM")

    async def test(stub: Stub) -> None:
        (message,) = [one async for one in stub.WatchSessions(Watch())]
        assert int(message.failure) == Reason.CANCELLED

    served(session, test)


def test_nothing_stays_behind(session: Restore) -> None:
    async def test(stub: Stub) -> None:
        await stub.GetSession(migrations_pb2.SessionName(session="restore"))

    served(session, test)  # what a first use makes stays: grpc's own threads
    with unchanged():
        served(session, test)
