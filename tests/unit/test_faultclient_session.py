# SPDX-License-Identifier: Apache-2.0
"""What a session makes of its pager's events: phases, pauses, reasons, and what it must not do any more."""

import asyncio
from collections.abc import Iterator

import pytest
import structlog

from faultclient.pager import EventKind
from faultclient.restore import Restore, follow
from faultclient.session import Postcopy
from pageferry.phases import Phase
from pageferry.reasons import Reason
from tests.support.fake_pager import FakePager, session_of


@pytest.fixture
def pager() -> Iterator[FakePager]:
    made = FakePager()
    yield made
    made.let_go()


@pytest.fixture
def session(pager: FakePager) -> Restore:
    made = session_of(pager)
    made.start()
    return made


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    """The names of the lines that are written."""
    names: list[str] = []

    def note(_: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        names.append(str(event["event"]))
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    yield names
    structlog.reset_defaults()


def phase_of(session: Restore) -> Phase:
    return session.phase


def paused(session: Restore) -> Reason | None:
    return session.paused


def armed(session: Restore, pager: FakePager) -> None:
    pager.tell(EventKind.ATTACHED, value=7)
    pager.tell(EventKind.ARMED)
    session.catch_up()
    assert phase_of(session) is Phase.POSTCOPY


# --------------------------------------------------------------------------------------------------- its way


def test_at_once(session: Restore, pager: FakePager) -> None:
    """The order to arm waits in the pager: nothing depends on when Python hears of the attach."""
    assert pager.orders == ["arm"]
    assert phase_of(session) is Phase.CREATED
    armed(session, pager)
    assert session.attached
    pager.tell(EventKind.COMPLETE)
    session.catch_up()
    assert phase_of(session) is Phase.RELEASED
    assert session.ended
    assert session.error() is None
    assert pager.orders == ["arm"]


def test_only_when_all_pages_are_here(pager: FakePager) -> None:
    session = session_of(pager, Postcopy.FORBID)
    session.start()
    pager.tell(EventKind.ATTACHED)
    session.catch_up()
    assert pager.orders == []
    pager.tell(EventKind.POPULATED)
    session.catch_up()
    assert pager.orders == ["arm"]
    assert phase_of(session) is Phase.CREATED
    pager.tell(EventKind.ARMED)
    pager.tell(EventKind.COMPLETE)
    session.catch_up()
    assert phase_of(session) is Phase.RELEASED


def test_a_vmm_that_exits_right_after_the_last_page_is_nobodys_business(
    session: Restore, pager: FakePager
) -> None:
    """Both events lie in the ring together; the second came to an ended session, and was taken for a bug."""
    armed(session, pager)
    pager.tell(EventKind.COMPLETE)
    pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
    session.catch_up()
    assert phase_of(session) is Phase.RELEASED
    assert session.error() is None


def test_poisoned_pages_keep_it_until_the_vmm_ends(session: Restore, pager: FakePager) -> None:
    armed(session, pager)
    pager.tell(EventKind.POISONED, page=3, value=1, cookie=1)
    pager.tell(EventKind.COMPLETE, value=1)
    session.catch_up()
    assert phase_of(session) is Phase.COMMITTED
    assert not session.ended
    pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
    session.catch_up()
    assert phase_of(session) is Phase.RELEASED
    assert session.error() is None


# --------------------------------------------------------------------------------------------- how it fails


def test_refused_before_arming(session: Restore, pager: FakePager) -> None:
    pager.tell(EventKind.FAILED, Reason.NO_SUCH_IMAGE, "there is no image 'vm'")
    session.catch_up()
    assert phase_of(session) is Phase.ABORTED
    error = session.error()
    assert error is not None
    assert error.reason is Reason.NO_SUCH_IMAGE
    assert "no image" in str(error)


def test_a_failure_after_arming_is_an_alarm_and_ends_nothing(
    session: Restore, pager: FakePager, logged: list[str]
) -> None:
    armed(session, pager)
    pager.tell(EventKind.FAILED, Reason.BUG, "cannot be")
    session.catch_up()
    assert phase_of(session) is Phase.POSTCOPY
    assert session.failure is None
    assert logged[-3:] == ["alarm", "trace", "trace"]


@pytest.mark.parametrize("running, phase", [(False, Phase.ABORTED), (True, Phase.RELEASED)])
def test_the_vmm_ends_while_pages_are_missing(
    session: Restore, pager: FakePager, running: bool, phase: Phase
) -> None:
    if running:
        armed(session, pager)
    pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
    session.catch_up()
    assert phase_of(session) is phase
    error = session.error()
    assert error is not None
    assert error.exit_code == 69


def test_given_up_before_the_guest_runs(session: Restore) -> None:
    assert session.cancel(Reason.CANCELLED, "ended by SIGTERM")
    assert phase_of(session) is Phase.ABORTED
    error = session.error()
    assert error is not None
    assert error.exit_code == 75
    assert not session.cancel(Reason.CANCELLED, "once more")
    assert session.message == "ended by SIGTERM"


def test_not_given_up_after_that_and_no_trace_of_it_stays(session: Restore, pager: FakePager) -> None:
    """The reason was noted although the table said no: a good restore then ended with exit code 75."""
    armed(session, pager)
    revision = session.revision
    assert not session.cancel(Reason.CANCELLED, "ended by SIGTERM")
    assert phase_of(session) is Phase.POSTCOPY
    assert (session.failure, session.message, session.revision) == (None, "", revision)
    pager.tell(EventKind.COMPLETE)
    session.catch_up()
    assert session.error() is None


def test_armed_a_moment_ago_and_not_yet_read(session: Restore, pager: FakePager) -> None:
    pager.tell(EventKind.ATTACHED)
    pager.tell(EventKind.ARMED)
    assert not session.cancel(Reason.CANCELLED, "ended by SIGTERM")
    assert phase_of(session) is Phase.POSTCOPY


# ------------------------------------------------------------------------------------------ what it shows


def test_pauses(session: Restore, pager: FakePager) -> None:
    armed(session, pager)
    pager.tell(EventKind.PAUSED, Reason.GOING_AWAY, "refused")
    pager.tell(EventKind.PAUSED, Reason.NO_MEMORY, "make room")
    session.catch_up()
    assert paused(session) is Reason.NO_MEMORY
    assert session.message == "make room"
    pager.tell(EventKind.RESUMED, Reason.NO_MEMORY, value=5_000_000)
    session.catch_up()
    assert paused(session) is Reason.GOING_AWAY
    assert session.message == "refused"
    pager.tell(EventKind.RESUMED, Reason.GOING_AWAY)
    session.catch_up()
    assert session.paused is None
    assert session.message == ""


def test_an_alarm_brings_the_trace(session: Restore, pager: FakePager, logged: list[str]) -> None:
    armed(session, pager)
    pager.tell(EventKind.ALARM, Reason.BUG, "a page was there already", page=9)
    session.catch_up()
    assert session.message == "a page was there already"
    assert logged[-3:] == ["alarm", "trace", "trace"]


def test_an_early_fault_is_told(session: Restore, pager: FakePager, logged: list[str]) -> None:
    pager.tell(EventKind.EARLY_FAULT, page=9, text="waits")
    session.catch_up()
    assert logged[-1] == "early_fault"


def test_each_change_has_a_revision_and_wakes(session: Restore, pager: FakePager) -> None:
    async def watch() -> None:
        seen = session.revision
        waiting = asyncio.create_task(session.changed(seen))
        ending = asyncio.create_task(session.over())
        await asyncio.sleep(0)
        pager.tell(EventKind.ATTACHED)
        session.catch_up()
        await waiting
        assert session.revision == seen + 1
        await session.changed(seen)  # at once
        assert not ending.done()
        session.cancel(Reason.CANCELLED, "")
        await ending

    asyncio.run(asyncio.wait_for(watch(), 10))


# ------------------------------------------------------------------------------------------------ followed


def test_followed_to_its_end(session: Restore, pager: FakePager) -> None:
    async def run() -> None:
        following = asyncio.create_task(follow(session))
        for kind in (EventKind.ATTACHED, EventKind.ARMED, EventKind.COMPLETE):
            await asyncio.sleep(0.001)
            assert not following.done()
            pager.tell(kind)
        await following

    asyncio.run(asyncio.wait_for(run(), 10))
    assert phase_of(session) is Phase.RELEASED
    assert not pager.closed


def test_following_ends_when_it_is_given_up(session: Restore, pager: FakePager) -> None:
    """The pager says nothing: the follower waited on, for ever."""

    async def run() -> None:
        following = asyncio.create_task(follow(session))
        await asyncio.sleep(0.001)
        session.cancel(Reason.CANCELLED, "ended by SIGTERM")
        await following

    asyncio.run(asyncio.wait_for(run(), 10))
    assert phase_of(session) is Phase.ABORTED
    assert pager.closed  # before anything else is waited for: nobody arms it any more


def test_what_has_been_told_before_is_not_missed(session: Restore, pager: FakePager) -> None:
    for kind in (EventKind.ATTACHED, EventKind.ARMED, EventKind.COMPLETE):
        pager.tell(kind)
    asyncio.run(asyncio.wait_for(follow(session), 10))
    assert phase_of(session) is Phase.RELEASED
