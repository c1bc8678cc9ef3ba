# SPDX-License-Identifier: Apache-2.0
"""The sessions of `faultclient serve`: what a predecessor has left, who hears of an end, what blocks a VM's
name, and what becomes of a restore whose driver fails."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from faultclient import house as house_module
from faultclient import sessions as sessions_module
from faultclient.house import Host
from faultclient.pager import EventKind, Pager
from faultclient.request import StartRequest, TargetRecord
from faultclient.session import Postcopy
from faultclient.sessions import Sessions
from faultclient.vms import Ticket, Vm, Vms
from pageferry.host.handoff import Handoff
from pageferry.host.vmspec import VmKind, VmSpec
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records
from tests.support.fake_move import FakeSource, error
from tests.support.fake_pager import PAGES, FakePager

MOVE = StartRequest("move-1", "vm", "vm", "127.0.0.1:1", "127.0.0.1:2")
RESTORE = StartRequest("restore-1", "vm", "vm", "127.0.0.1:1", postcopy=Postcopy.AT_ONCE)
RIGHT, WRONG = b"right", b"wrong"
OPERATOR = "ipv4:10.0.0.9:1"


class Bed:
    """The sessions, what they find on the disk, and what they meet: a source that knows one token, a pager
    that says what it is told to say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.story: list[str] = []
        self.pager = FakePager()
        self.refuses: dict[str, list[Exception]] = {}

    def left(self, phase: Phase, request: StartRequest = MOVE) -> None:
        """By a predecessor that was killed."""
        with Records(self.folder) as records:
            records.write(request.session, TargetRecord(request, 1, 1, phase).to_fields())

    def on_disk(self, name: str = MOVE.session) -> TargetRecord:
        return TargetRecord.from_fields(name, Records.load_all(self._records)[name])

    def play(self, test: Callable[[Sessions], Awaitable[None]]) -> None:
        async def run() -> None:
            with Records(self.folder) as self._records:
                sessions = Sessions(self._host(), self._records, self._connect)
                try:
                    await test(sessions)
                finally:
                    await sessions.close()

        asyncio.run(asyncio.wait_for(run(), 20))

    def _host(self) -> Host:
        spec = VmSpec("vm", Path("unused"), VmKind.PROCESS)
        vms = cast(Vms, self)
        host = Host([spec], vms, vmm_uid=None, spin_us=0, collapse=False, accept=lambda _: None)
        host.give_back("vm", cast(Handoff, _Waiting()))
        return host

    def _connect(self, address: str, ticket: Ticket) -> FakeSource:
        source = FakeSource(self.story, refuses=self.refuses)
        if ticket.token != RIGHT:
            source.refuses = {"ABORTED": [error(Reason.NOT_ALLOWED)], "facts": [error(Reason.NOT_ALLOWED)]}
        return source

    # ---------------------------------------------------------------------------- as the host's VMs

    def take(self, handoff: Handoff, **_: object) -> Vm:
        return Vm(cast(Pager, self.pager), "vm", "127.0.0.1:1", PAGES * 4096, 0)

    def let_go(self, vm: Vm) -> None:
        vm.pager.close()


class _Waiting:
    pidfd = -1
    shared = True

    def close(self) -> None:
        pass


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path / "state")
    yield made
    made.pager.let_go()


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def refusal(sessions: Sessions, request: StartRequest) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        sessions.start(request, RIGHT)
    return caught.value


# -------------------------------------------------------------------------------------------------- who hears


def test_a_wrong_token_does_not_end_the_report(bed: Bed) -> None:
    """That counted as told: the right one was not used any more, and the source's guest stood still."""
    bed.left(Phase.SWITCHOVER)

    async def test(sessions: Sessions) -> None:
        assert sessions.start(MOVE, WRONG).phase is Phase.ABORTED
        await until(lambda: not sessions._entries["move-1"].working)
        assert not bed.on_disk().reported
        sessions.start(MOVE, RIGHT)
        await until(lambda: bed.story == ["report ABORTED"])
        await until(lambda: bed.on_disk().reported)

    bed.play(test)


def test_nor_of_a_move_that_began_with_it(bed: Bed) -> None:
    async def test(sessions: Sessions) -> None:
        session = sessions.start(MOVE, WRONG)
        await until(lambda: session.ended and not sessions._entries["move-1"].working)
        assert session.phase is Phase.ABORTED
        assert not bed.on_disk().reported

    bed.play(test)


@pytest.mark.parametrize("reason", [Reason.WRONG_PHASE, Reason.NO_SUCH_IMAGE, Reason.SUPERSEDED])
def test_a_source_whose_book_is_closed_has_heard(bed: Bed, reason: Reason) -> None:
    bed.left(Phase.SWITCHOVER)
    bed.refuses["ABORTED"] = [error(reason)]

    async def test(sessions: Sessions) -> None:
        sessions.start(MOVE, RIGHT)
        await until(lambda: bed.on_disk().reported)

    bed.play(test)


# --------------------------------------------------------------------------------------------- being given up


def test_a_guest_that_nobody_serves_any_more_is_given_up_by_an_operator(bed: Bed) -> None:
    """Its VM had this session for ever: no other could begin, and none of ours would end it."""
    bed.left(Phase.POSTCOPY)

    async def test(sessions: Sessions) -> None:
        another = replace(MOVE, session="move-2")
        assert refusal(sessions, another).reason is Reason.ALREADY_ATTACHED
        for typed, reason in (("", Reason.WRONG_PHASE), ("another", Reason.BAD_REQUEST)):
            with pytest.raises(PageferryError) as caught:
                await sessions.cancel("move-1", typed, OPERATOR)
            assert caught.value.reason is reason
        (session,) = sessions.all()
        assert session.phase is Phase.POSTCOPY
        assert await sessions.cancel("move-1", "vm", OPERATOR) is session
        assert (session.phase, session.failure, session.paused) == (Phase.LOST, Reason.CANCELLED, None)
        assert OPERATOR in session.message
        assert bed.on_disk().phase is Phase.LOST
        assert await sessions.cancel("move-1", "vm", OPERATOR) is session  # asked again: the same answer
        sessions.start(another, RIGHT)

    bed.play(test)
    bed.play(lambda sessions: until(lambda: sessions.all()[0].phase is Phase.LOST))


def test_not_one_that_is_served(bed: Bed) -> None:
    async def test(sessions: Sessions) -> None:
        session = sessions.start(RESTORE, b"")
        await until(lambda: session.vm is not None)
        bed.pager.tell(EventKind.ATTACHED)
        bed.pager.tell(EventKind.ARMED)
        await until(lambda: session.phase is Phase.POSTCOPY)
        with pytest.raises(PageferryError) as caught:
            await sessions.cancel("restore-1", "vm", OPERATOR)
        assert caught.value.reason is Reason.WRONG_PHASE
        assert session.phase is Phase.POSTCOPY

    bed.play(test)


def test_one_that_was_given_up_and_cannot_be_recorded_is_not(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed.left(Phase.POSTCOPY)

    def full(*_: object) -> None:
        raise error(Reason.NO_MEMORY)

    async def test(sessions: Sessions) -> None:
        monkeypatch.setattr(Records, "write", full)
        with pytest.raises(PageferryError) as caught:
            await sessions.cancel("move-1", "vm", OPERATOR)
        assert caught.value.reason is Reason.NO_MEMORY
        assert sessions.all()[0].phase is Phase.POSTCOPY

    bed.play(test)


# -------------------------------------------------------------------------------------------------- a restore


def begun(bed: Bed, test: Callable[[Sessions], Awaitable[None]]) -> None:
    """The guest runs, and its pages are on their way."""

    async def run(sessions: Sessions) -> None:
        session = sessions.start(RESTORE, b"")
        await until(lambda: session.vm is not None)
        bed.pager.tell(EventKind.ATTACHED)
        bed.pager.tell(EventKind.ARMED)
        await until(lambda: session.phase is Phase.POSTCOPY)
        await test(sessions)

    bed.play(run)


def test_what_stands_beside_a_restore_may_fail(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that looked on took the one that follows the pager with it, and nobody said so."""

    async def broken(_: object) -> None:
        raise ZeroDivisionError("in a report")

    monkeypatch.setattr(house_module, "look_on", broken)

    async def test(sessions: Sessions) -> None:
        await asyncio.sleep(0.02)
        bed.pager.tell(EventKind.COMPLETE)
        await until(lambda: sessions.all()[0].phase is Phase.RELEASED)
        await until(lambda: bed.pager.closed)

    begun(bed, test)


def test_a_restore_whose_driver_fails_says_so_and_can_be_given_up(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept its phase for ever, nothing was logged, and its VM's name was taken."""

    def broken() -> Iterator[object]:
        raise ZeroDivisionError("in the ring")

    async def test(sessions: Sessions) -> None:
        (session,) = sessions.all()
        monkeypatch.setattr(bed.pager, "events", broken)
        bed.pager.tell(EventKind.COMPLETE)
        await until(lambda: session.paused is Reason.BUG)
        assert "ZeroDivisionError: in the ring" in session.message
        assert session.phase is Phase.POSTCOPY
        assert not bed.pager.closed  # its pages still come
        given_up = await sessions.cancel("restore-1", "vm", OPERATOR)
        assert given_up.phase is Phase.LOST
        assert bed.pager.closed

    begun(bed, test)


def test_one_that_cannot_begin_fails(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Vm:
        raise ZeroDivisionError("no pager")

    monkeypatch.setattr(bed, "take", broken)

    async def test(sessions: Sessions) -> None:
        session = sessions.start(RESTORE, b"")
        await until(lambda: session.ended)
        assert (session.phase, session.failure) == (Phase.ABORTED, Reason.BUG)
        assert "ZeroDivisionError: no pager" in session.message

    bed.play(test)


# ------------------------------------------------------------------------------------------------------- room


def test_those_whose_source_never_answers_make_room(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that had failed before it touched anything reported that for ever, and no other could begin."""
    monkeypatch.setattr(sessions_module, "SESSIONS_MAX", 2)
    bed.refuses["facts"] = [error(Reason.UNSUPPORTED)] * 10
    bed.refuses["ABORTED"] = [error(Reason.GOING_AWAY)] * 1000

    async def test(sessions: Sessions) -> None:
        for number in range(4):
            session = sessions.start(replace(MOVE, session=f"move-{number}"), RIGHT)
            await until(lambda session=session: session.ended)  # type: ignore[misc]
        assert [session.name for session in sessions.all()] == ["move-2", "move-3"]
        assert sorted(Records.load_all(bed._records)) == ["move-2", "move-3"]

    bed.play(test)
