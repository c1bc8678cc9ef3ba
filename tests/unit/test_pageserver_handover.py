# SPDX-License-Identifier: Apache-2.0
"""The hand-over at the source: each order in its place, each error on the way, and what is on disk then."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from pageferry.host.vmspec import VmKind
from pageferry.limits import DEVICE_STATE_PIECE_BYTES
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageserver import ending, handover
from pageserver.dataplane import Right, ServerEventKind
from tests.support.fake_source import (
    ACCEPTED,
    ALL_HERE,
    AS_OF,
    DIGEST,
    MACHINE,
    OPERATOR,
    STATE,
    TARGET,
    TERMS,
    Source,
    attached,
    broken,
    created,
    play,
    stopped,
    taken,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "RETRY_S", 0.01)


SWITCH = ["pause", "save", "freeze", "stop"]
BACK = ["thaw", "go on", "resume", "close"]


# ---------------------------------------------------------------------------------------------- the whole way


def test_a_move(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await created(made)
        assert made.done == ["attach", "record CREATED"]
        assert (session.phase, session.record.machine) == (Phase.CREATED, MACHINE)
        assert made.plane.gates["move"].rights == Right.PAGES | Right.ROUNDS
        made.plane.tell(ServerEventKind.ATTACHED, value=1)
        made.sessions.catch_up()
        assert session.phase is Phase.PRECOPY
        assert session.peer == f"10.0.0.2:5 target={TARGET:016x} epoch=1"
        made.done.clear()
        pieces = await taken(session)
        assert made.done == [
            "record SWITCHOVER",
            *SWITCH,
            "record SWITCHOVER",
            "record SWITCHOVER handed over",
        ]
        first, *middle, last = pieces
        assert (first.as_of, first.manifest_digest) == (AS_OF, DIGEST)
        assert 0 < first.stopped_us <= last.stopped_us
        assert b"".join(piece.device_state for piece in middle) == STATE
        assert max(len(piece.device_state) for piece in middle) == DEVICE_STATE_PIECE_BYTES
        assert (last.last, last.device_state_digest) == (True, xxhash.xxh3_64_intdigest(STATE))
        assert not any(piece.last for piece in (first, *middle))
        gate = made.plane.gates["move"]
        assert (gate.rights, gate.phase, gate.manifest_digest) == (Right.PAGES, Phase.SWITCHOVER, DIGEST)
        assert made.on_disk().handed_over
        session.hear(ACCEPTED)
        assert session.phase is made.on_disk().phase is Phase.POSTCOPY
        assert session.downtime_us() >= last.stopped_us
        made.done.clear()
        session.hear(ALL_HERE)
        assert session.phase is made.on_disk().phase is Phase.RELEASED
        await session.settled()
        assert made.done == [
            "record COMMITTED handed over",
            "record RELEASED handed over",
            "remove",
            "kill",
            "close",
            "record RELEASED handed over settled",
            "let go",
        ]
        assert session.record.pages_poisoned == 2
        assert made.plane.gates["move"].rights == Right.NONE

    play(tmp_path, test)


def test_no_message_leaves_before_the_map_is_frozen_and_none_with_last_before_the_record(
    tmp_path: Path,
) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.done.clear()
        session.ask()
        pieces = session.hand_over()
        first = await anext(pieces)
        assert first.manifest_digest == DIGEST
        assert made.done[-2:] == ["stop", "record SWITCHOVER"]
        while not (await anext(pieces)).last:
            assert not made.on_disk().handed_over
        assert made.on_disk().handed_over

    play(tmp_path, test)


def test_asked_again_it_is_the_same_answer(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        leave, first = await stopped(session)
        leave()
        pieces = await taken(session)
        again = await taken(session)
        both = await asyncio.gather(taken(session), taken(session))
        for one in (pieces, again, *both):
            assert replace(one[0], stopped_us=0) == replace(first, stopped_us=0)
            assert [replace(piece, stopped_us=0) for piece in one] == [
                replace(piece, stopped_us=0) for piece in pieces
            ]
        assert [what for what in made.done if what in SWITCH] == SWITCH

    play(tmp_path, test)


def test_two_that_ask_at_once_stop_the_guest_once(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.script.hold("save")
        asking = asyncio.gather(taken(session), taken(session))
        while "save" not in made.done:
            await asyncio.sleep(0)
        made.script.let_go("save")
        one, other = await asking
        assert len(one) == len(other)
        assert made.done.count("pause") == made.done.count("record SWITCHOVER handed over") == 1

    play(tmp_path, test)


def test_a_state_of_nothing(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)

        async def save_state() -> bytes:
            return b""

        made.vm.vmm.save_state = save_state  # type: ignore[method-assign]
        first, last = await taken(session)
        assert first.manifest_digest == DIGEST
        assert last.device_state_digest == xxhash.xxh3_64_intdigest(b"")

    play(tmp_path, test)


# -------------------------------------------------------------------------------- errors before the hand-over


@pytest.mark.parametrize("step", [*SWITCH[:2], "freeze", "stop"])
def test_any_step_of_the_switch_over_may_fail_and_the_guest_runs(tmp_path: Path, step: str) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.script.faults[step] = broken(Reason.UNSUPPORTED, "no, says the VMM")
        made.done.clear()
        with pytest.raises(PageferryError, match="no, says the VMM") as caught:
            await taken(session)
        assert caught.value.reason is Reason.WRONG_PHASE
        assert session.phase is made.on_disk().phase is Phase.ABORTED
        assert session.record.failure is Reason.UNSUPPORTED
        await session.settled()
        way = SWITCH[: SWITCH.index(step) + 1]
        assert made.done == ["record SWITCHOVER", *way, "record ABORTED", *BACK, "record ABORTED settled"]
        assert not made.process.stopped
        assert made.plane.gates["move"].rights == Right.NONE
        assert session.downtime_us() > 0

    play(tmp_path, test)


def test_a_fault_of_ours_in_it_lets_the_guest_run_too(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)

        def fault() -> None:
            raise ZeroDivisionError

        made.script.faults["save"] = fault
        with pytest.raises(PageferryError, match="ZeroDivisionError"):
            await taken(session)
        await session.settled()
        assert session.record.failure is Reason.BUG
        assert "resume" in made.done

    play(tmp_path, test)


@pytest.mark.parametrize("step", ["pause", "save"])
def test_cancelled_in_the_middle_of_it(tmp_path: Path, step: str) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.script.hold(step)
        asking = asyncio.create_task(taken(session))
        while step not in made.done:
            await asyncio.sleep(0)
        made.done.clear()
        session.cancel("", OPERATOR)
        with pytest.raises(PageferryError, match="cancelled by"):
            await asking
        await session.settled()
        assert made.done == ["record ABORTED", *BACK, "record ABORTED settled"]

    play(tmp_path, test)


def test_cancelled_between_two_pieces(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        session.ask()
        pieces = session.hand_over()
        await anext(pieces)
        await anext(pieces)
        session.cancel("", OPERATOR)
        with pytest.raises(PageferryError) as caught:
            await anext(pieces)
        assert caught.value.reason is Reason.WRONG_PHASE
        await session.settled()
        assert not made.on_disk().handed_over

    play(tmp_path, test)


@pytest.mark.parametrize("count", range(1, 5))
def test_a_stream_that_breaks_and_is_not_asked_for_again(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each message but the last: the guest stands still for a while, then it runs here."""

    async def test(made: Source) -> None:
        monkeypatch.setattr(handover, "ASK_AGAIN_S", 0.05)
        session = await attached(made)
        leave = session.ask()
        pieces = session.hand_over()
        for _ in range(count):
            await anext(pieces)
        leave()
        leave()  # once is enough
        await session.settled()
        assert (session.phase, session.record.failure) == (Phase.ABORTED, Reason.GOING_AWAY)
        assert made.done[-6:] == ["record ABORTED", *BACK, "record ABORTED settled"]
        with pytest.raises(PageferryError, match="not asked again"):
            await taken(session)

    play(tmp_path, test)


def test_a_stream_that_breaks_while_the_state_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(made: Source) -> None:
        monkeypatch.setattr(handover, "ASK_AGAIN_S", 0.05)
        session = await attached(made)
        made.script.hold("save")
        asking = asyncio.create_task(taken(session))
        while "save" not in made.done:
            await asyncio.sleep(0)
        asking.cancel()
        await session.settled()
        assert session.phase is Phase.ABORTED
        assert "freeze" not in made.done

    play(tmp_path, test)


def test_a_stream_that_is_asked_for_again_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(made: Source) -> None:
        monkeypatch.setattr(handover, "ASK_AGAIN_S", 0.05)
        session = await attached(made)
        leave, _ = await stopped(session)
        leave()
        leave = session.ask()
        await asyncio.sleep(0.1)
        assert session.phase is Phase.SWITCHOVER
        await taken(session)
        leave()
        await asyncio.sleep(0.1)
        assert made.on_disk().handed_over

    play(tmp_path, test)


def test_a_target_that_asks_and_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(made: Source) -> None:
        monkeypatch.setattr(handover, "TAKE_S", 0.05)
        session = await attached(made)
        await stopped(session)
        await session.settled()
        assert (session.phase, session.record.failure) == (Phase.ABORTED, Reason.TOO_SLOW)

    play(tmp_path, test)


def test_a_hand_over_that_cannot_be_recorded(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.script.faults["record SWITCHOVER handed over"] = broken(Reason.NO_MEMORY, "the disk is full")
        with pytest.raises(PageferryError, match="the disk is full"):
            await taken(session)
        await session.settled()
        assert (session.phase, session.record.handed_over) == (Phase.ABORTED, False)
        assert (made.on_disk().phase, made.on_disk().handed_over) == (Phase.ABORTED, False)
        assert "resume" in made.done

    play(tmp_path, test)


def test_a_full_disk_keeps_no_guest_standing_still(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        leave, _ = await stopped(session)
        for what in ("record ABORTED", "record ABORTED settled", "record SWITCHOVER handed over"):
            made.script.faults[what] = broken(Reason.NO_MEMORY, "the disk is full")
        session.cancel("", OPERATOR)
        leave()
        await session.settled()
        assert made.done[-1] == "record ABORTED settled"
        assert "resume" in made.done
        assert not made.on_disk().handed_over, "a restart would let it run too"

    play(tmp_path, test)


def test_a_guest_that_does_not_run_at_once_is_told_again(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        leave, _ = await stopped(session)
        made.script.faults["resume"] = broken(Reason.TOO_SLOW, "QEMU is silent")
        session.cancel("", OPERATOR)
        leave()
        while made.done.count("resume") < 3:
            await asyncio.sleep(0.01)
        assert session.paused is Reason.TOO_SLOW
        assert "QEMU is silent" in session.message
        assert not made.on_disk().settled
        del made.script.faults["resume"]
        await session.settled()
        assert session.paused is None

    play(tmp_path, test)


def test_an_image_that_does_not_thaw_keeps_no_guest(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        leave, _ = await stopped(session)
        made.script.faults["thaw"] = broken(Reason.BUG)
        session.cancel("", OPERATOR)
        leave()
        await session.settled()
        assert made.done.index("thaw") < made.done.index("resume")

    play(tmp_path, test)


def test_a_guest_that_its_owner_had_paused_stays_so(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        made.vm.vmm.facts = replace(made.vm.vmm.facts, running=False)
        session = await attached(made)
        leave, _ = await stopped(session)
        session.cancel("", OPERATOR)
        leave()
        await session.settled()
        assert "resume" not in made.done
        assert "go on" not in made.done

    play(tmp_path, test, VmKind.PROCESS)


def test_given_up_before_it_has_begun_touches_no_guest(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await attached(made)
        made.done.clear()
        session.cancel("", OPERATOR)
        await session.settled()
        assert made.done == ["record ABORTED", "close", "record ABORTED settled"]

    play(tmp_path, test)


def test_nobody_attaches(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        terms = replace(TERMS, attach_within_s=0)  # the service makes 600 of it
        session = await created(made, terms)
        await session.settled()
        assert (session.phase, session.record.failure) == (Phase.ABORTED, Reason.TOO_SLOW)

    play(tmp_path, test)
