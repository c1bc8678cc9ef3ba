# SPDX-License-Identifier: Apache-2.0
"""A move at its source after and beside the hand-over: the target's reports, the VMM's end, operators."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageserver import ending
from pageserver.dataplane import ServerEventKind
from pageserver.session import Report, Session
from tests.support.fake_source import (
    ABORTED,
    ACCEPTED,
    ALL_HERE,
    DIGEST,
    IMAGE,
    OPERATOR,
    TARGET,
    TERMS,
    Source,
    accepted,
    attached,
    broken,
    created,
    handed_over,
    play,
    refused,
    stopped,
    taken,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "RETRY_S", 0.01)


def assert_phase(session: Session, phase: Phase) -> None:
    """(A plain assert would narrow the property for the rest of the test.)"""
    assert session.phase is phase


# --------------------------------------------------------------------------------------------- VMM and target


@pytest.mark.parametrize("when", ["created", "attached", "stopped"])
def test_a_vmm_that_dies_before_the_hand_over(tmp_path: Path, when: str) -> None:
    async def test(made: Source) -> None:
        session = await created(made) if when == "created" else await attached(made)
        if when == "stopped":
            await stopped(session)
        made.done.clear()
        made.process.end()
        made.sessions.vmm_gone(made.vm)
        await session.settled()
        assert (session.phase, session.record.failure) == (Phase.ABORTED, Reason.NO_VMM)
        assert made.done == ["record ABORTED", "close", "record ABORTED settled", "let go"]
        with pytest.raises(PageferryError) as caught:
            await taken(session)
        assert caught.value.reason is Reason.NO_VMM

    play(tmp_path, test)


def test_a_vmm_that_dies_after_it_is_needed_no_more(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        made.process.end()
        made.done.clear()
        made.sessions.vmm_gone(made.vm)
        assert session.phase is Phase.SWITCHOVER
        session.hear(ACCEPTED)
        session.hear(ALL_HERE)
        await session.settled()
        assert "kill" not in made.done
        assert made.done[-2:] == ["record RELEASED handed over settled", "let go"]

    play(tmp_path, test)


def test_a_silent_target_ends_nothing(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.plane.tell(ServerEventKind.SILENT)
        made.sessions.catch_up()
        assert (session.phase, session.paused) == (Phase.PRECOPY, Reason.GOING_AWAY)
        made.plane.tell(ServerEventKind.ATTACHED, epoch=4)
        made.sessions.catch_up()
        assert session.paused is None
        assert made.on_disk().epoch == 4
        made.plane.tell(ServerEventKind.SUPERSEDED, epoch=5)
        made.sessions.catch_up()
        assert session.record.epoch == 5

    play(tmp_path, test)


def test_who_is_the_target(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await created(made)
        refused(Reason.WRONG_PHASE, lambda: session.check_target(TARGET, 1))
        made.plane.tell(ServerEventKind.ATTACHED, value=1, epoch=3)
        made.sessions.catch_up()
        session.check_target(TARGET, 3)
        session.check_target(TARGET, 4)
        refused(Reason.SUPERSEDED, lambda: session.check_target(TARGET, 2))
        refused(Reason.ALREADY_ATTACHED, lambda: session.check_target(TARGET + 1, 9))

    play(tmp_path, test)


# ---------------------------------------------------------------------------------------------------- reports


def test_reports_repeat(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        session.hear(ACCEPTED)
        made.done.clear()
        session.hear(ACCEPTED)
        assert made.done == []
        session.hear(ALL_HERE)
        await session.settled()
        made.done.clear()
        session.hear(ALL_HERE)
        session.hear(ACCEPTED)
        assert made.done == []
        refused(Reason.WRONG_PHASE, lambda: session.hear(ABORTED))

    play(tmp_path, test)


def test_the_last_report_tells_the_first_too(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        made.done.clear()
        session.hear(ALL_HERE)
        assert made.done[:3] == [
            "record POSTCOPY handed over",
            "record COMMITTED handed over",
            "record RELEASED handed over",
        ]
        await session.settled()

    play(tmp_path, test)


def test_a_target_that_gives_up(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        assert not session.fail(Reason.BUG, "too late")
        made.done.clear()
        session.hear(ABORTED)
        session.hear(ABORTED)
        await session.settled()
        assert made.done == [
            "record ABORTED handed over",
            "thaw",
            "go on",
            "resume",
            "close",
            "record ABORTED handed over settled",
        ]
        refused(Reason.WRONG_PHASE, lambda: session.hear(ACCEPTED))

    play(tmp_path, test)


@pytest.mark.parametrize("make", [attached, stopped])
def test_a_target_that_gives_up_before_the_hand_over(
    tmp_path: Path, make: Callable[..., Awaitable[object]]
) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        if make is stopped:
            await stopped(session)
        session.hear(ABORTED)
        await session.settled()
        assert session.phase is Phase.ABORTED
        assert ("resume" in made.done) == (make is stopped)

    play(tmp_path, test)


@pytest.mark.parametrize(
    "report",
    [
        replace(ALL_HERE, manifest_digest=bytes(16)),
        replace(ALL_HERE, manifest_digest=b""),
        replace(ALL_HERE, pages_owned=61),
        replace(ALL_HERE, pages_zero=37),
        replace(ALL_HERE, pages_poisoned=0),
        replace(ACCEPTED, manifest_digest=bytes(16)),
    ],
)
def test_a_report_that_does_not_agree_releases_nothing(tmp_path: Path, report: Report) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        made.done.clear()
        refused(Reason.MISMATCH, lambda: session.hear(report))
        assert (session.phase, session.paused) == (Phase.SWITCHOVER, Reason.MISMATCH)
        assert made.done == []
        session.hear(ALL_HERE)
        assert session.paused is None
        await session.settled()

    play(tmp_path, test)


@pytest.mark.parametrize(
    "phase", [Phase.CREATED, Phase.PRECOPY, Phase.SWITCHOVER, Phase.RELEASED, Phase.LOST]
)
def test_what_no_target_reports(tmp_path: Path, phase: Phase) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        refused(Reason.BAD_REQUEST, lambda: session.hear(Report(phase, DIGEST)))

    play(tmp_path, test)


def test_a_report_that_comes_too_early(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        for report in (ACCEPTED, ALL_HERE):
            refused(Reason.WRONG_PHASE, partial(session.hear, report))
        leave, _ = await stopped(session)
        for report in (ACCEPTED, ALL_HERE):
            refused(Reason.WRONG_PHASE, partial(session.hear, report))
        assert session.phase is Phase.SWITCHOVER
        leave()

    play(tmp_path, test)


@pytest.mark.parametrize(
    ("report", "what"),
    [
        (ACCEPTED, "record POSTCOPY handed over"),
        (ABORTED, "record ABORTED handed over"),
        (ALL_HERE, "record POSTCOPY handed over"),
    ],
)
def test_a_report_that_cannot_be_recorded_is_not_answered(tmp_path: Path, report: Report, what: str) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        made.script.faults[what] = broken(Reason.NO_MEMORY, "the disk is full")
        refused(Reason.NO_MEMORY, lambda: session.hear(report))
        await asyncio.sleep(0)
        assert session.phase is made.on_disk().phase is Phase.SWITCHOVER
        assert made.done[-1] == what, "nothing has followed"
        del made.script.faults[what]
        session.hear(report)
        if session.ended:
            await session.settled()

    play(tmp_path, test)


def test_a_release_that_cannot_be_recorded_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(made: Source) -> None:
        monkeypatch.setattr("pageserver.session.RETRY_S", 0.01)
        session = await accepted(made)
        made.script.faults["record RELEASED handed over"] = broken(Reason.NO_MEMORY, "the disk is full")
        session.hear(ALL_HERE)
        assert (session.phase, session.paused) == (Phase.COMMITTED, Reason.NO_MEMORY)
        while made.done.count("record RELEASED handed over") < 3:
            await asyncio.sleep(0.01)
        assert "kill" not in made.done
        del made.script.faults["record RELEASED handed over"]
        await session.settled()
        assert (session.phase, session.paused) == (Phase.RELEASED, None)

    play(tmp_path, test)


def test_a_vmm_that_does_not_end(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await accepted(made)
        made.script.faults["kill"] = broken(Reason.TOO_SLOW, "it hangs")
        session.hear(ALL_HERE)
        while made.done.count("kill") < 3:
            await asyncio.sleep(0.01)
        assert not session.record.settled
        del made.script.faults["kill"]
        await session.settled()

    play(tmp_path, test)


# -------------------------------------------------------------------------------------------------- operators


def test_a_held_source_waits_for_its_operator(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await accepted(made, replace(TERMS, hold_source=True))
        session.hear(ALL_HERE)
        assert_phase(session, Phase.COMMITTED)
        assert "remove" not in made.done
        refused(Reason.WRONG_PHASE, lambda: session.cancel("", OPERATOR))
        session.release("", OPERATOR)
        session.release("", OPERATOR)
        await session.settled()
        assert session.phase is Phase.RELEASED

    play(tmp_path, test)


def test_cancelled_after_the_hand_over_is_a_request(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        session.cancel("", OPERATOR)
        session.cancel("", OPERATOR)
        assert_phase(session, Phase.SWITCHOVER)
        assert made.plane.gates["move"].cancel_requested
        assert made.on_disk().cancel_requested
        assert "resume" not in made.done
        session.hear(ABORTED)
        await session.settled()
        assert "resume" in made.done

    play(tmp_path, test)


def test_forced_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        refused(Reason.BAD_REQUEST, lambda: session.cancel("web-2", OPERATOR))
        assert_phase(session, Phase.SWITCHOVER)
        session.cancel(IMAGE, OPERATOR)
        await session.settled()
        assert session.phase is Phase.ABORTED
        assert OPERATOR in session.message
        assert made.done.index("record ABORTED handed over") < made.done.index("resume")
        session.cancel("", OPERATOR)
        session.cancel(IMAGE, OPERATOR)

    play(tmp_path, test)


@pytest.mark.parametrize("make", [handed_over, accepted])
def test_memory_given_up(tmp_path: Path, make: Callable[[Source], Awaitable[Session]]) -> None:
    async def test(made: Source) -> None:
        session = await make(made)
        refused(Reason.WRONG_PHASE, lambda: session.release("", OPERATOR))
        refused(Reason.BAD_REQUEST, lambda: session.release("web-2", OPERATOR))
        made.done.clear()
        session.release(IMAGE, OPERATOR)
        await session.settled()
        assert session.phase is made.on_disk().phase is Phase.LOST
        assert made.done == [
            "record LOST handed over",
            "remove",
            "kill",
            "close",
            "record LOST handed over settled",
            "let go",
        ]
        for report in (ACCEPTED, ALL_HERE, ABORTED):
            session.hear(report)  # an answer, so that nobody waits for one
        session.release("", OPERATOR)
        refused(Reason.WRONG_PHASE, lambda: session.cancel("", OPERATOR))

    play(tmp_path, test)


@pytest.mark.parametrize("make", [accepted, handed_over])
def test_what_an_operator_cannot(tmp_path: Path, make: Callable[[Source], Awaitable[Session]]) -> None:
    async def test(made: Source) -> None:
        session = await created(made)
        refused(Reason.WRONG_PHASE, lambda: session.release("", OPERATOR))
        refused(Reason.WRONG_PHASE, lambda: session.release(IMAGE, OPERATOR))
        session.cancel(IMAGE, OPERATOR)  # its name may always be typed
        await session.settled()
        refused(Reason.WRONG_PHASE, lambda: session.release(IMAGE, OPERATOR))
        made.script.done.clear()
        other = await make_other(made)
        refused(Reason.WRONG_PHASE, lambda: other.cancel(IMAGE, OPERATOR))
        refused(Reason.WRONG_PHASE, lambda: other.cancel("", OPERATOR))

    async def make_other(made: Source) -> Session:
        session = await made.sessions.create(replace(TERMS, session="other"), made.as_vms())
        made.plane.tell(ServerEventKind.ATTACHED, "other", value=1)
        made.sessions.catch_up()
        await taken(session)
        session.hear(ACCEPTED)
        return session

    play(tmp_path, test)


def test_the_image_can_be_moved_again_after_an_abort(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        leave, _ = await stopped(session)
        session.cancel("", OPERATOR)
        leave()
        with pytest.raises(PageferryError) as caught:
            await made.sessions.create(replace(TERMS, session="again"), made.as_vms())
        assert caught.value.reason is Reason.BUSY, "its guest is just being given back"
        await session.settled()
        again = await made.sessions.create(replace(TERMS, session="again"), made.as_vms())
        assert again.phase is Phase.CREATED

    play(tmp_path, test)
