# SPDX-License-Identifier: Apache-2.0
"""Every event in every phase of a source: the table's rows happen, and nothing else does."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from pageferry.phases import STEPS, Event, Phase, Side, legal
from pageferry.reasons import PageferryError, Reason
from pageserver import ending
from pageserver.dataplane import ServerEventKind
from pageserver.session import Session
from tests.support.fake_source import (
    ABORTED,
    ACCEPTED,
    ALL_HERE,
    IMAGE,
    OPERATOR,
    PAGES,
    TERMS,
    TOKEN,
    Source,
    attached,
    created,
    play,
    stopped,
    taken,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "RETRY_S", 0.01)


# -------------------------------------------------------------------------------------------------- the table


async def vmm_dies(made: Source, session: Session) -> None:
    made.process.end()
    session.vmm_gone()


async def attaches(made: Source, _: Session) -> None:
    made.plane.tell(ServerEventKind.ATTACHED, value=1)
    made.sessions.catch_up()


async def is_stopped(_: Source, session: Session) -> None:
    await stopped(session)


async def is_handed_over(_: Source, session: Session) -> None:
    await taken(session)


# How each event comes about.
COMES: dict[Event, Callable[[Source, Session], object]] = {
    Event.ATTACHED: attaches,
    Event.STOPPED: is_stopped,
    Event.HANDED_OVER: is_handed_over,
    Event.VMM_GONE: vmm_dies,
    Event.FAILED: lambda _, session: session.fail(Reason.BUG, "it broke"),
    Event.CANCELLED: lambda _, session: session.cancel("", OPERATOR),
    Event.FORCED_BACK: lambda _, session: session.cancel(IMAGE, OPERATOR),
    Event.GIVEN_UP: lambda _, session: session.release(IMAGE, OPERATOR),
    Event.RELEASED: lambda _, session: session.release("", OPERATOR),
    Event.ACCEPTED: lambda _, session: session.hear(ACCEPTED),
    Event.COMPLETE: lambda _, session: session.hear(ALL_HERE),
    Event.ABORT_REPORTED: lambda _, session: session.hear(ABORTED),
}
# Asking for these where they are not legal leads through others first.
IMPLIED = {Event.STOPPED, Event.HANDED_OVER, Event.ATTACHED}
# What is got in another way: the last report tells the first, a forced end is a plain one where that will do.
OTHER_WAYS = {
    (Phase.SWITCHOVER, True, Event.COMPLETE): Phase.COMMITTED,
    (Phase.CREATED, False, Event.FORCED_BACK): Phase.ABORTED,
    (Phase.PRECOPY, False, Event.FORCED_BACK): Phase.ABORTED,
    (Phase.SWITCHOVER, False, Event.FORCED_BACK): Phase.ABORTED,
    (Phase.COMMITTED, True, Event.GIVEN_UP): Phase.RELEASED,
}
PLACES = [
    (Phase.CREATED, False),
    (Phase.PRECOPY, False),
    (Phase.SWITCHOVER, False),
    (Phase.SWITCHOVER, True),
    (Phase.POSTCOPY, True),
    (Phase.COMMITTED, True),
    (Phase.RELEASED, True),
    (Phase.ABORTED, False),
    (Phase.LOST, True),
]


async def brought_to(made: Source, phase: Phase, is_given: bool) -> Session:
    terms = replace(TERMS, hold_source=True)
    session = await (created if phase is Phase.CREATED else attached)(made, terms)
    if phase is Phase.SWITCHOVER and not is_given:
        await stopped(session)
    elif is_given:
        await taken(session)
    if phase in (Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED):
        session.hear(ACCEPTED)
    if phase in (Phase.COMMITTED, Phase.RELEASED):
        session.hear(ALL_HERE)
    if phase is Phase.RELEASED:
        session.release("", OPERATOR)
    if phase is Phase.LOST:
        session.release(IMAGE, OPERATOR)
    if phase is Phase.ABORTED:
        session.cancel("", OPERATOR)
    assert (session.phase, session.record.handed_over) == (phase, is_given)
    return session


@pytest.mark.parametrize("event", list(COMES), ids=attrgetter("name"))
@pytest.mark.parametrize(
    ("phase", "is_given"),
    PLACES,
    ids=lambda value: value.name if isinstance(value, Phase) else ("given" if value else "kept"),
)
def test_every_row_and_no_other(tmp_path: Path, phase: Phase, is_given: bool, event: Event) -> None:
    async def test(made: Source) -> None:
        session = await brought_to(made, phase, is_given)
        may = legal(Side.SOURCE, phase, event, is_given)
        if event in IMPLIED and not may:
            return
        expected = STEPS[Side.SOURCE, phase, event].after if may else phase
        expected = OTHER_WAYS.get((phase, is_given, event), expected)
        try:
            came = COMES[event](made, session)
            if asyncio.iscoroutine(came):
                await came
        except PageferryError as error:
            assert error.reason is Reason.WRONG_PHASE
            assert not may
        assert session.phase is made.on_disk().phase is expected
        if session.ended:
            await session.settled()
            assert ("resume" in made.done) == (
                session.phase is Phase.ABORTED and session.record.stopped and event is not Event.VMM_GONE
            )
            assert ("kill" in made.done) == (
                session.phase in (Phase.RELEASED, Phase.LOST) and event is not Event.VMM_GONE
            )

    play(tmp_path, test)


def test_the_source_s_events_are_all_there() -> None:
    assert {event for side, _, event in STEPS if side is Side.SOURCE} == COMES.keys()


def test_nothing_of_a_token_is_on_disk(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        await attached(made)
        text = (tmp_path / "move.json").read_text()
        assert TOKEN.hex() not in text
        assert hashlib.sha256(TOKEN).hexdigest() in text

    play(tmp_path, test)


def test_pages_of_the_record(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        assert made.on_disk() == session.record
        assert session.state().round == 7
        assert session.record.page_count == PAGES
        assert os.getpid() != session.record.pid

    play(tmp_path, test)
