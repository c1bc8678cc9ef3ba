# SPDX-License-Identifier: Apache-2.0
"""The driver of a move: its way, and what becomes of it when anything fails or somebody cancels, at any step.

Two rules are looked at in every story: what is recorded comes before the act that it announces, and a guest
that was given up never runs here.
"""

import asyncio
import errno
import os
from collections.abc import Callable

import pytest

from faultclient import move as move_module
from faultclient.pager import EventKind
from faultclient.session import Postcopy
from pageferry.phases import Event, Phase
from pageferry.reasons import PageferryError, Reason
from tests.support.fake_move import DIGEST, STATE, Stage, error
from tests.support.fake_pager import PAGES

# Each step at which a story may be cut, and nothing is accepted yet.
BEFORE_ACCEPTED = ("attach", "open", "new round", "HandOver", "frozen round", "arm", "load")


def ended_well(stage: Stage) -> None:
    assert stage.session.phase is Phase.RELEASED
    assert stage.session.failure is None
    assert stage.story.index("record POSTCOPY") < stage.story.index("resume")
    assert stage.story.index("record POSTCOPY") < stage.story.index("report COMMITTED")
    assert stage.story.index("report COMMITTED") < stage.story.index("record RELEASED")
    assert stage.vmm.state == STATE
    assert "kill" not in stage.story
    all_let_go(stage)


def all_let_go(stage: Stage) -> None:
    assert stage.source.closed
    assert stage.vmm.closed or "attach" not in stage.story
    assert stage.pager.closed == ("open" in stage.story)


def aborted(stage: Stage, reason: Reason) -> None:
    """The documented end: recorded, then the VMM killed if it was touched, then the source told."""
    assert stage.session.phase is Phase.ABORTED
    assert stage.session.failure is reason
    assert stage.disk[-1] == (Phase.ABORTED, reason)
    recorded = stage.story.index("record ABORTED")
    assert "resume" not in stage.story
    assert "report POSTCOPY" not in stage.story
    if "open" in stage.story:
        assert recorded < stage.story.index("kill")
        assert stage.given_back == 0
    else:
        assert "kill" not in stage.story
    assert recorded < stage.story.index("report ABORTED")
    all_let_go(stage)


def completing(stage: Stage, poisoned: int = 0) -> Stage:
    """Once the guest runs the last page comes."""
    stage.at["resume"] = lambda: stage.complete(poisoned)
    return stage


def test_the_source_is_told_while_the_vmm_is_still_being_killed() -> None:
    """Its guest stands still until then, and an orchestrator may take its time."""
    stage = Stage()
    stage.vmm.refuses["load"] = [error(Reason.MISMATCH)]
    stage.vmm.hangs = "kill"

    def killed() -> None:
        stage.vmm.let_go.set()

    stage.at["report ABORTED"] = killed
    stage.play()
    aborted(stage, Reason.MISMATCH)


# ---------------------------------------------------------------------------------------------------- its way


def test_precopy_then_postcopy() -> None:
    stage = completing(Stage())
    stage.play()
    ended_well(stage)
    way = ["attach", "open", "new round", "new round", "HandOver", "frozen round", "arm", "load"]
    assert stage.story[: len(way)] == way
    assert stage.source.counts == {"owned": PAGES - 30, "zero": 30, "poisoned": 0}
    assert stage.session.machine == "qemu 7.2.0, pc-i440fx-7.2"


def test_nothing_is_asked_for_before_the_source_has_let_us_in() -> None:
    """The image is described first. HandOver goes another way than FetchPages and may be there before it:
    nobody has attached then, and the move would be over."""
    stage = completing(Stage(Postcopy.AT_ONCE))
    stage.lets_in = False

    def let_in() -> None:
        stage.story.append("let in")
        stage.let_in()

    stage.at["open"] = lambda: asyncio.get_running_loop().call_later(0.05, let_in)
    stage.play()
    ended_well(stage)
    assert stage.story[:4] == ["attach", "open", "let in", "HandOver"]


def test_at_once() -> None:
    stage = completing(Stage(Postcopy.AT_ONCE))
    stage.comes_all = False
    stage.play()
    ended_well(stage)
    assert stage.story[:4] == ["attach", "open", "HandOver", "frozen round"]


def test_forbidden_arms_when_every_page_is_here() -> None:
    stage = completing(Stage(Postcopy.FORBID))
    missing: list[int] = []
    order = stage.pager.on_order

    def watch(what: str, cookie: int) -> None:
        if what == "arm":
            missing.append(stage.pager.table["MISSING"])
        order(what, cookie)
        if what == "frozen round":
            stage.pager.table |= {"MISSING": 3, "CACHED": PAGES - 3}
            stage.at["frozen round"] = lambda: stage.pager.table.update(MISSING=0, CACHED=PAGES)

    stage.pager.on_order = watch
    stage.play()
    ended_well(stage)
    assert missing == [0]


def test_forbidden_and_never_good_enough() -> None:
    stage = Stage(Postcopy.FORBID, rounds_max=2, max_downtime_s=0.01)
    stage.named = [PAGES] * 5
    stage.play()
    aborted(stage, Reason.TOO_SLOW)
    assert "HandOver" not in stage.story
    assert "2 rounds have not been enough" in stage.session.message


def test_figures() -> None:
    stage = completing(Stage())
    stage.play()
    figures = stage.session.figures
    assert (figures.round, figures.dirty_pages) == (7, 10)
    assert figures.dirty_pages_per_second > 0
    assert figures.downtime_us >= 7000


def test_poisoned_pages_keep_it_until_the_vmm_ends() -> None:
    stage = completing(Stage(), poisoned=1)
    stage.at["report COMMITTED"] = lambda: stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")
    stage.play()
    assert stage.session.phase is Phase.RELEASED
    assert stage.session.failure is None
    assert stage.source.counts["poisoned"] == 1


# ---------------------------------------------------------------------------------------------- hand over now


def test_manual_goes_round_until_it_is_told() -> None:
    stage = completing(Stage(manual=True))

    def soon() -> None:
        if stage.story.count("new round") < 4:
            stage.at["new round"] = soon
        else:
            stage.move.switch_over()

    stage.at["new round"] = soon
    stage.play()
    ended_well(stage)
    assert stage.story.count("new round") >= 4


def test_not_converged_and_told_to() -> None:
    """Pages are missing, and do not come."""
    stage = completing(Stage())
    stage.comes_all = False
    stage.at["new round"] = lambda: stage.move.switch_over()
    stage.play()
    ended_well(stage)
    assert stage.story.count("new round") == 1


@pytest.mark.parametrize("when", ["attach", "HandOver", "resume"])
def test_only_a_precopy_can_be_told(when: str) -> None:
    stage = Stage(Postcopy.AT_ONCE)
    refused: list[Reason] = []

    def ask() -> None:
        try:
            stage.move.switch_over()
        except PageferryError as told:
            refused.append(told.reason)

    stage.at["record POSTCOPY"] = stage.complete
    stage.at[when] = ask
    stage.play()
    assert refused == [Reason.WRONG_PHASE]
    ended_well(stage)


# ------------------------------------------------------------------------------ refused before anything moves


@pytest.mark.parametrize(
    "here, there, remedy",
    [
        ("pc-i440fx-7.2", "qemu 10.0.2, pc-i440fx-10.0", "-machine pc-i440fx-10.0"),
        ("", "qemu 10.0.2, pc-i440fx-10.0", "-machine pc-i440fx-10.0"),
        ("pc-i440fx-7.2", "process 12", "same kind"),
        ("pc-i440fx-7.2", "", "same kind"),
    ],
)
def test_another_machine_type(here: str, there: str, remedy: str) -> None:
    stage = Stage()
    stage.vmm.machine, stage.source.machine = here, there
    stage.play()
    aborted(stage, Reason.MISMATCH)
    assert remedy in stage.session.message
    assert stage.given_back == 1
    assert stage.story == ["attach", "record ABORTED", "report ABORTED"]


def test_two_plain_processes() -> None:
    stage = completing(Stage())
    stage.vmm.machine, stage.source.machine = "", "process 12"
    stage.play()
    ended_well(stage)


def test_the_adapter_refuses() -> None:
    stage = Stage()
    stage.vmm.refuses["attach"] = [error(Reason.UNSUPPORTED, "share=off")]
    stage.play()
    aborted(stage, Reason.UNSUPPORTED)
    assert stage.given_back == 1


def test_the_session_has_ended_at_the_source() -> None:
    stage = Stage()
    stage.source.phase = Phase.ABORTED
    stage.play()
    aborted(stage, Reason.WRONG_PHASE)


def test_the_source_knows_no_such_session() -> None:
    stage = Stage()
    stage.source.refuses = {
        "facts": [error(Reason.NOT_ALLOWED)],
        "ABORTED": [error(Reason.NOT_ALLOWED)],
    }
    stage.play()
    assert stage.session.phase is Phase.ABORTED
    assert stage.story == ["attach", "record ABORTED"]  # it has nothing to hear the report with


def test_a_source_that_answers_late() -> None:
    stage = completing(Stage())
    stage.source.refuses["facts"] = [error(Reason.GOING_AWAY), error(Reason.TOO_SLOW)]
    stage.play()
    ended_well(stage)


def test_a_source_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_module, "PATIENCE_S", 0.1)
    stage = Stage()
    stage.source.refuses["facts"] = [error(Reason.GOING_AWAY, "nobody there")] * 3
    stage.play()
    aborted(stage, Reason.GOING_AWAY)
    assert "nobody there" in stage.session.message


def test_a_source_that_never_answers_keeps_nobody_from_the_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report goes on for ever. The adapter stayed connected meanwhile, and a QEMU takes one client: each
    later session failed of that."""
    monkeypatch.setattr(move_module, "PATIENCE_S", 0.1)
    stage = Stage()
    stage.source.refuses["facts"] = [error(Reason.GOING_AWAY, "nobody there")] * 3
    stage.source.refuses["ABORTED"] = [error(Reason.GOING_AWAY)] * 1000
    closed_when_given_back: list[bool] = []

    def give_back(_: object) -> None:
        closed_when_given_back.append(stage.vmm.closed)

    monkeypatch.setattr(stage, "give_back", give_back)

    async def run() -> None:
        playing = asyncio.create_task(stage._play())
        while not stage.session.ended:
            await asyncio.sleep(0.01)
        assert closed_when_given_back == [True]
        assert not playing.done()
        playing.cancel()
        await asyncio.wait({playing})

    asyncio.run(asyncio.wait_for(run(), 20))
    stage.pager.let_go()


# ------------------------------------------------------------------------------------------ at each phase


def cancel(stage: Stage) -> Callable[[], object]:
    return lambda: stage.move.give_up(Event.CANCELLED, Reason.CANCELLED, "somebody has asked")


@pytest.mark.parametrize("when", BEFORE_ACCEPTED)
def test_cancelled(when: str) -> None:
    stage = Stage()
    stage.comes_all = False  # it does not hand over by itself
    stage.at["new round"] = lambda: stage.move.switch_over()
    stage.vmm.hangs = when if when in ("attach", "load") else ""
    stage.mute = when if when in ("new round", "frozen round", "arm") else ""
    stage.source.silent = when == "HandOver"
    stage.at[when] = cancel(stage)
    stage.play()
    aborted(stage, Reason.CANCELLED)
    assert stage.session.message == "somebody has asked"


@pytest.mark.parametrize("when", ["record POSTCOPY", "resume", "report POSTCOPY"])
def test_not_cancelled_once_accepted(when: str) -> None:
    stage = Stage()
    answers: list[object] = []

    def ask() -> None:
        answers.append(cancel(stage)())
        stage.complete()

    stage.at[when] = ask
    stage.play()
    assert answers == [False]
    ended_well(stage)


@pytest.mark.parametrize("when", [step for step in BEFORE_ACCEPTED if step not in ("attach", "open")])
def test_the_pager_cannot_go_on(when: str) -> None:
    stage = Stage()
    stage.vmm.hangs = "load"
    stage.mute = when
    stage.source.silent = when == "HandOver"
    stage.at[when] = lambda: stage.pager.tell(EventKind.FAILED, Reason.MISMATCH, "another image")
    stage.play()
    aborted(stage, Reason.MISMATCH)
    assert stage.session.message == "another image"


@pytest.mark.parametrize("when", [step for step in BEFORE_ACCEPTED if step not in ("attach", "open")])
def test_the_vmm_dies_before_it_is_accepted(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_module, "LAST_WORDS_S", 0.05)
    stage = Stage()
    stage.vmm.hangs = "load"
    stage.mute = when
    stage.source.silent = when == "HandOver"
    stage.at[when] = lambda: stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
    stage.play()
    aborted(stage, Reason.NO_VMM)


def test_a_vmm_that_dies_of_what_it_loads_may_say_so() -> None:
    """QEMU before 9.1 exits when it cannot load: that it has exited is known before why."""
    stage = Stage()
    stage.vmm.hangs = "load"
    stage.vmm.refuses["load"] = [error(Reason.MISMATCH, "another machine")]

    def die() -> None:
        stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
        asyncio.get_running_loop().call_later(0.05, stage.vmm.let_go.set)

    stage.at["load"] = die
    stage.play()
    aborted(stage, Reason.MISMATCH)
    assert stage.session.message == "another machine"


def test_a_vmm_that_has_died_is_not_accepted_whatever_its_adapter_says() -> None:
    stage = Stage()
    stage.vmm.hangs = "load"

    def die() -> None:
        stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "the VMM has exited")
        asyncio.get_running_loop().call_later(0.05, stage.vmm.let_go.set)

    stage.at["load"] = die
    stage.play()
    aborted(stage, Reason.NO_VMM)


@pytest.mark.parametrize("when", ["new round", "HandOver", "load"])
def test_the_source_s_operator_asks_to_cancel(when: str) -> None:
    stage = Stage()
    stage.vmm.hangs = "load"
    stage.mute = when
    stage.source.silent = when == "HandOver"
    stage.at[when] = lambda: stage.pager.tell(EventKind.PHASE, value=Phase.SWITCHOVER, page=1)
    stage.play()
    aborted(stage, Reason.CANCELLED)
    assert stage.session.cancel_requested


def test_the_source_has_given_it_up() -> None:
    stage = Stage()
    stage.mute = "new round"
    stage.at["new round"] = lambda: stage.pager.tell(EventKind.PHASE, value=Phase.ABORTED)
    stage.play()
    aborted(stage, Reason.WRONG_PHASE)


def test_one_order_is_refused() -> None:
    stage = Stage()
    stage.mute = "new round"
    refused = {"reason": Reason.WRONG_PHASE, "text": "no rounds any more", "page": 1, "cookie": 1}
    stage.at["new round"] = lambda: stage.pager.tell(EventKind.FAILED, **refused)  # type: ignore[arg-type]
    stage.play()
    aborted(stage, Reason.WRONG_PHASE)
    assert stage.session.message == "no rounds any more"


def test_a_fault_of_ours() -> None:
    stage = Stage()

    async def broken(state: bytes) -> None:
        raise ZeroDivisionError("in the adapter")

    stage.vmm.load_state = broken  # type: ignore[method-assign]
    stage.play()
    aborted(stage, Reason.BUG)


# ---------------------------------------------------------------------------------------------- the hand-over


def test_a_stream_that_breaks_is_asked_for_again() -> None:
    stage = completing(Stage())
    stage.source.breaks = 2
    stage.play()
    ended_well(stage)
    assert stage.story.count("HandOver") == 3
    assert stage.story.count("frozen round") == stage.story.count("arm") == 1


def test_a_damaged_state_is_asked_for_again() -> None:
    stage = completing(Stage())
    stage.source.spoils = 1
    stage.play()
    ended_well(stage)
    assert stage.story.count("HandOver") == 2


def test_the_source_does_not_hand_over() -> None:
    stage = Stage()
    stage.source.refuses["hand over"] = [error(Reason.UNSUPPORTED, "its state cannot be saved")]
    stage.play()
    aborted(stage, Reason.UNSUPPORTED)
    assert "load" not in stage.story


def test_another_manifest_than_the_source_has() -> None:
    stage = Stage()
    stage.source.digest = bytes(16)
    stage.play()
    aborted(stage, Reason.MISMATCH)
    assert "arm" not in stage.story
    assert "load" not in stage.story


def test_a_state_without_end() -> None:
    stage = Stage()
    stage.source.state = bytes(40 << 20)
    stage.play()
    aborted(stage, Reason.MISMATCH)
    assert "load" not in stage.story


def test_an_empty_state_is_one() -> None:
    stage = completing(Stage())
    stage.source.state = b""
    stage.play()
    assert stage.session.phase is Phase.RELEASED
    assert stage.vmm.state == b""


def test_the_state_does_not_load() -> None:
    stage = Stage()
    stage.vmm.refuses["load"] = [error(Reason.MISMATCH, "another device")]
    stage.play()
    aborted(stage, Reason.MISMATCH)


# ------------------------------------------------------------------------------------------------- the record


def test_a_full_disk_at_accepted() -> None:
    """The guest may not run: after a restart nobody would know that it does."""
    stage = Stage()
    stage.at["load"] = lambda: stage.disk_errors.append(error(Reason.NO_MEMORY, "disk full"))
    stage.play()
    aborted(stage, Reason.NO_MEMORY)


def test_an_end_that_cannot_be_recorded_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move_module, "RECORD_AGAIN_S", 0.01)
    stage = Stage()
    stage.vmm.refuses["load"] = [error(Reason.MISMATCH)]
    stage.disk_errors = [error(Reason.NO_MEMORY)] * 3
    stage.play()
    aborted(stage, Reason.MISMATCH)


# ------------------------------------------------------------------------------------------------ the reports


def test_the_report_of_accepted_is_lost() -> None:
    stage = Stage()
    stage.source.refuses["POSTCOPY"] = [error(Reason.GOING_AWAY), error(Reason.TOO_SLOW)]
    stage.at["report POSTCOPY"] = stage.complete
    stage.play()
    ended_well(stage)
    assert stage.session.paused is None


@pytest.mark.parametrize("phase", ["POSTCOPY", "COMMITTED"])
def test_an_answer_that_is_not_understood(phase: str) -> None:
    stage = completing(Stage())
    stage.source.refuses[phase] = [ValueError("99 is not a valid Phase")]
    stage.play()
    ended_well(stage)


def test_committed_tells_accepted_too() -> None:
    stage = completing(Stage())
    stage.source.refuses["POSTCOPY"] = [error(Reason.GOING_AWAY)] * 1000
    stage.play()
    ended_well(stage)
    assert "report POSTCOPY" not in stage.story


@pytest.mark.parametrize("reason", [Reason.GOING_AWAY, Reason.MISMATCH, Reason.WRONG_PHASE, Reason.BUG])
def test_committed_is_repeated_whatever_comes(reason: Reason) -> None:
    stage = completing(Stage())
    stage.source.refuses["COMMITTED"] = [error(reason)] * 2
    stage.play()
    ended_well(stage)


def test_aborted_is_repeated() -> None:
    stage = Stage()
    stage.vmm.refuses["load"] = [error(Reason.MISMATCH)]
    stage.source.refuses["ABORTED"] = [error(Reason.GOING_AWAY), error(Reason.BUSY)]
    stage.play()
    aborted(stage, Reason.MISMATCH)


# ------------------------------------------------------------------------------------------------ after that


def test_a_guest_that_does_not_run_at_once() -> None:
    """Its disk is still locked by the source."""
    stage = Stage()
    stage.vmm.refuses["resume"] = [error(Reason.UNSUPPORTED, "image is locked")] * 2
    stage.at["resume"] = stage.complete
    stage.play()
    ended_well(stage)
    assert stage.story.count("resume") == 3


def test_a_fault_of_ours_does_not_keep_the_guest_from_running() -> None:
    """No descriptor is left, for instance: everything ended by that, and the guest stood still for ever."""
    stage = Stage()
    resume, errors = stage.vmm.resume, [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    async def fails_once() -> None:
        if errors:
            raise errors.pop()
        await resume()

    stage.vmm.resume = fails_once  # type: ignore[method-assign]
    stage.at["resume"] = stage.complete
    stage.play()
    assert not errors
    ended_well(stage)


def test_the_guest_ends_with_pages_missing() -> None:
    stage = Stage(Postcopy.AT_ONCE)

    def gone() -> None:
        stage.pager.table |= {"MISSING": 1, "CACHED": PAGES - 1}
        stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")

    stage.at["resume"] = gone
    stage.source.refuses["POSTCOPY"] = [error(Reason.GOING_AWAY)] * 2
    stage.play()
    assert stage.session.phase is Phase.RELEASED
    assert stage.session.failure is Reason.NO_VMM
    assert stage.disk[-1] == (Phase.RELEASED, Reason.NO_VMM)
    assert stage.story[-1] == "report POSTCOPY"  # after its end too
    assert "report COMMITTED" not in stage.story
    all_let_go(stage)


def test_the_guest_ends_with_a_page_that_is_here_and_was_not_mapped() -> None:
    """It has moved on, and nobody will ever touch that page here. The source need not keep it."""
    stage = Stage()
    stage.at["resume"] = lambda: stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")
    stage.play()
    assert stage.session.phase is Phase.RELEASED
    assert stage.session.failure is None
    assert "report COMMITTED" in stage.story
    assert stage.source.counts == {"owned": PAGES, "zero": 0, "poisoned": 0}
    all_let_go(stage)


def test_the_guest_ends_when_all_is_here() -> None:
    """The source is told that all is here, though nobody needs it any more."""
    stage = Stage()

    def both() -> None:
        stage.complete()
        stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")

    stage.at["resume"] = both
    stage.source.refuses["COMMITTED"] = [error(Reason.GOING_AWAY)] * 2
    stage.play()
    assert stage.session.phase is Phase.RELEASED
    assert stage.session.failure is None
    assert stage.story[-1] == "report COMMITTED"


def test_a_failure_after_accepted_ends_nothing() -> None:
    stage = Stage()

    def both() -> None:
        stage.pager.tell(EventKind.FAILED, Reason.BUG, "cannot be")
        stage.pager.tell(EventKind.PAUSED, Reason.GOING_AWAY, "the link is down")
        stage.complete()

    stage.at["resume"] = both
    stage.play()
    ended_well(stage)


def test_all_pages_are_here_before_the_guest_is_accepted() -> None:
    stage = Stage()
    stage.at["load"] = stage.complete
    stage.play()
    ended_well(stage)


def test_the_digest_is_what_the_source_has_frozen() -> None:
    stage = completing(Stage())
    told: list[tuple[Phase, bytes]] = []
    record = stage.source.record

    async def noted(phase: Phase, **given: object) -> object:
        told.append((phase, given["digest"]))  # type: ignore[arg-type]
        return await record(phase, **given)  # type: ignore[arg-type]

    stage.source.record = noted  # type: ignore[assignment,method-assign]
    stage.play()
    assert set(told) == {(Phase.POSTCOPY, DIGEST), (Phase.COMMITTED, DIGEST)}


def test_the_process_ends_where_it_is() -> None:
    """Cancelled from outside, it is no abort: nothing is recorded, nobody is told."""
    stage = Stage()
    stage.mute = "new round"

    async def run() -> None:
        playing = asyncio.create_task(stage._play())
        while "new round" not in stage.story:
            await asyncio.sleep(0)
        playing.cancel()
        await asyncio.wait({playing})
        assert playing.cancelled()

    asyncio.run(run())
    stage.pager.let_go()
    assert stage.disk == []
