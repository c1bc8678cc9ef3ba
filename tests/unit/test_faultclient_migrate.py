# SPDX-License-Identifier: Apache-2.0
"""`faultclient migrate` against two control ports that do what the test says: what it asks, in which order,
what it does when an end refuses or is silent, and how it ends."""

import asyncio
import base64
import hashlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from faultclient.commands import control
from faultclient.commands.moving import Moving, Sample
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import faultclient_pb2
from tests.support.fake_ends import PAGES, Ends
from tests.support.processes import finished, unchanged

PATIENCE_S = 30.0


class Seen:
    """A view that keeps what it is shown."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.said_all: list[str] = []
        self.on: dict[str, Callable[[], object]] = {}  # by what is seen: done once

    def _happen(self, what: str) -> None:
        self.story.append(what)
        act = self.on.pop(what, None)
        if act is not None:
            act()

    def started(self, moving: Moving) -> None:
        self._happen("started")

    def sampled(self, moving: Moving, sample: Sample) -> None:
        what = f"{sample.side} {Phase(int(sample.session.phase)).name}"
        if not self.story or self.story[-1] != what:
            self._happen(what)

    def said(self, text: str) -> None:
        self.said_all.append(text)
        self._happen("said")

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        self._happen("ended" if error is None else f"ended {error.reason.name}")

    def close(self) -> None:
        self._happen("closed")


def played(folder: Path, test: Callable[[Ends, Seen], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE_S), Ends(folder) as ends:
            await test(ends, Seen())

    asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WATCH_AGAIN_S", 0.02)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# ---------------------------------------------------------------------------------------------- it goes well


def test_what_is_asked_and_in_which_order(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", ends.goes_well)
        assert await ends.migrate(seen) is None
        begun = ["target GetSession", "source CreateSession", "target StartSession"]
        assert ends.story[:3] == begun
        assert sorted(ends.story[3:5]) == ["source WatchSessions", "target WatchSessions"]
        assert ends.story[5:] == ["target GetArrivals"]
        assert seen.story[0] == "started"
        assert {"source RELEASED", "target RELEASED"} < set(seen.story)
        assert seen.story[-2:] == ["ended", "closed"]

    played(tmp_path, test)


def test_the_start_comes_before_the_first_call(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        seen.on["started"] = lambda: seen.story.append(f"calls so far: {len(ends.story)}")
        ends.when("target StartSession", ends.goes_well)
        await ends.migrate(seen)
        assert "calls so far: 0" in seen.story

    played(tmp_path, test)


def test_both_ends_get_the_token_the_source_its_digest_alone(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", ends.goes_well)
        await ends.migrate(seen)
        encoded = ends.target.metadata["authorization"].removeprefix("Bearer ")
        token = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
        assert ends.source.requests["CreateSession"].token_sha256 == hashlib.sha256(token).digest()
        assert encoded not in str(ends.source.requests["CreateSession"])
        assert encoded not in "".join([*seen.story, *seen.said_all, repr(ends.migration)])

    played(tmp_path, test)


def test_every_option_arrives(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", ends.goes_well)
        await ends.migrate(
            seen,
            source_for_target="10.0.0.1:7851",
            image="at-the-source",
            postcopy="at-once",
            max_downtime_ms=50,
            bandwidth=125_000_000,
            rounds_max=7,
            completion_timeout_per_gib=11,
            progress_timeout=12,
        )
        assert ends.source.requests["CreateSession"].image == "at-the-source"
        assert ends.target.requests["StartSession"] == faultclient_pb2.StartSessionRequest(
            session="move-1",
            image="at-the-source",
            vm="web-1",
            data_address="127.0.0.1:7850",
            control_address="10.0.0.1:7851",
            postcopy=faultclient_pb2.POSTCOPY_AT_ONCE,
            max_downtime_ms=50,
            bandwidth_per_migration=125_000_000,
            completion_timeout_per_gib_s=11,
            progress_timeout_s=12,
            rounds_max=7,
        )

    played(tmp_path, test)


def test_the_figures(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.arrivals = faultclient_pb2.Arrivals(cell_pages=1, whole_after_ms=[3])
        ends.when("target StartSession", ends.goes_well)
        await ends.migrate(seen)
        assert ends.migration is not None
        moving = ends.migration.moving
        figures = moving.figures()
        assert {name: figures[name] for name in ("downtime_ms", "blocktime_ms", "faults", "rounds")} == {
            "downtime_ms": 42.1,
            "blocktime_ms": 9.0,
            "faults": 77,
            "rounds": 3,
        }
        assert (figures["pages"], figures["wire_bytes"]) == (PAGES, 5 << 20)
        assert figures["runs_there_ms"] <= figures["all_here_ms"] <= figures["total_ms"]
        assert moving.arrivals is not None and list(moving.arrivals.whole_after_ms) == [3]
        assert figures == moving.figures(), "after the end the time stands still"

    played(tmp_path, test)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", ends.goes_well)
        await ends.migrate(seen)

    played(tmp_path, test)  # what a first use makes stays: grpc's own threads
    with unchanged():
        played(tmp_path, test)


# --------------------------------------------------------------------------------------------- an end refuses


def test_a_source_that_refuses(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.source.refuses["CreateSession"] = [PageferryError(Reason.UNSUPPORTED, "share=off", "share=on")]
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.UNSUPPORTED
        assert "share=off" in str(error)
        assert ends.story == ["target GetSession", "source CreateSession"]
        assert seen.story[-2:] == ["ended UNSUPPORTED", "closed"]

    played(tmp_path, test)


def test_a_target_that_refuses_leaves_no_session_at_the_source(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.refuses["StartSession"] = [PageferryError(Reason.NO_VMM, "there is no VM web-1")]
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.NO_VMM
        assert ends.story[-2:] == ["target StartSession", "source CancelSession"]
        assert ends.source.phase() is Phase.ABORTED

    played(tmp_path, test)


def test_a_target_that_gives_up_before_it_attaches_leaves_no_session_at_the_source(tmp_path: Path) -> None:
    """The source knows of no target yet, so none could tell it."""

    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", lambda: ends.target.end(Phase.ABORTED, Reason.MISMATCH, "an alias"))
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.MISMATCH
        assert ends.story.count("source CancelSession") == 1
        assert ends.source.phase() is Phase.ABORTED

    played(tmp_path, test)


def restarts(ends: Ends, seen: Seen, phase: Phase) -> None:
    """The fault client's successor knows that the guest never came, and has no token to say so."""
    over = (Phase.ABORTED, Reason.GOING_AWAY, "the fault client was started again")
    seen.on[f"source {phase.name}"] = lambda: ends.target.end(*over)
    ends.when("source WatchSessions", lambda: ends.source.change(phase=int(phase)))


@pytest.mark.parametrize("phase", [Phase.PRECOPY, Phase.SWITCHOVER])
def test_a_target_that_was_restarted_is_given_the_token_again(tmp_path: Path, phase: Phase) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        tokens: list[str] = []

        def begun() -> None:
            tokens.append(ends.target.metadata["authorization"])
            ends.when("target StartSession", told)

        def told() -> None:
            tokens.append(ends.target.metadata["authorization"])
            ends.source.end(Phase.ABORTED, Reason.CANCELLED, "the target has given up")

        ends.when("target StartSession", begun)
        restarts(ends, seen, phase)
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.GOING_AWAY
        assert len(tokens) == 2 and tokens[0] == tokens[1]
        assert "source CancelSession" not in ends.story

    played(tmp_path, test)


def test_a_target_that_was_restarted_and_refuses_is_told(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        refusal = PageferryError(Reason.NO_VMM, "there is no VM web-1")
        ends.when("target WatchSessions", lambda: ends.target.refuses.update({"StartSession": [refusal]}))
        restarts(ends, seen, Phase.SWITCHOVER)
        error = await ends.migrate(seen, other_end_s=0.2)
        assert error is not None and error.reason is Reason.GOING_AWAY
        assert ends.story.count("target StartSession") == 2
        assert any("the source has not heard" in text for text in seen.said_all)

    played(tmp_path, test)


def test_who_only_watches_has_no_token_to_give(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.source.begin("move-1", "web-1")
        ends.target.begin("move-1", "web-1")
        restarts(ends, seen, Phase.SWITCHOVER)
        error = await ends.migrate(seen, other_end_s=0.2)
        assert error is not None and error.reason is Reason.GOING_AWAY
        assert "target StartSession" not in ends.story

    played(tmp_path, test)


def test_a_session_that_could_not_be_taken_back_is_told(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.refuses["StartSession"] = [PageferryError(Reason.BUSY, "full")]
        ends.source.refuses["CancelSession"] = [PageferryError(Reason.GOING_AWAY, "it ends")]
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.BUSY
        assert any("could not be taken back" in text for text in seen.said_all)

    played(tmp_path, test)


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_end_that_is_not_there(tmp_path: Path, side: str) -> None:
    """Nothing is begun at the other one."""

    async def test(ends: Ends, seen: Seen) -> None:
        await getattr(ends, side).down()
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.GOING_AWAY
        assert error.exit_code == 69
        assert not ends.source.sessions and not ends.target.sessions

    played(tmp_path, test)


@pytest.mark.parametrize(
    ("reason", "exit_code"), [(Reason.MISMATCH, 65), (Reason.CANCELLED, 75), (Reason.NO_VMM, 69)]
)
def test_a_move_that_fails(tmp_path: Path, reason: Reason, exit_code: int) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        def fails() -> None:
            ends.target.change(phase=int(Phase.PRECOPY))
            ends.target.end(Phase.ABORTED, reason, "it does not fit")
            ends.source.end(Phase.ABORTED, Reason.CANCELLED, "the target has given up")

        ends.when("target StartSession", fails)
        error = await ends.migrate(seen)
        assert error is not None and (error.reason, error.exit_code) == (reason, exit_code)
        assert "it does not fit" in str(error), "the target's word is the cause"

    played(tmp_path, test)


# ------------------------------------------------------------------------------------------- an end is silent


def test_an_end_that_does_not_answer_for_a_while(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        async def away() -> None:
            await ends.source.down()
            while not any("the source does not answer" in text for text in seen.said_all):
                await asyncio.sleep(0.01)
            assert ends.migration is not None and "source" in ends.migration.moving.silent
            await ends.source.up()
            while not any("answers again" in text for text in seen.said_all):
                await asyncio.sleep(0.01)
            ends.goes_well()

        tasks: list[asyncio.Task[None]] = []
        ends.when("source WatchSessions", lambda: tasks.append(asyncio.create_task(away())))
        assert await ends.migrate(seen) is None
        await tasks[0]
        assert sum("does not answer" in text for text in seen.said_all) == 1

    played(tmp_path, test)


def test_an_end_that_forgets_is_waited_for_no_longer(tmp_path: Path) -> None:
    """The page server is gone for good after it has let its memory go: the target has all there is."""

    async def test(ends: Ends, seen: Seen) -> None:
        def ended_there() -> None:
            for phase in (Phase.PRECOPY, Phase.SWITCHOVER, Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED):
                ends.target.change(phase=int(phase))

        ends.source.refuses["WatchSessions"] = [PageferryError(Reason.NO_SUCH_IMAGE, "no such session")]
        ends.when("target StartSession", ended_there)
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.GOING_AWAY
        assert "whether the source may go was not heard" in str(error)

    played(tmp_path, test)


def test_the_other_end_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        def fails() -> None:
            ends.source.change(phase=int(Phase.PRECOPY))
            ends.target.end(Phase.ABORTED, Reason.TOO_SLOW, "too slow")

        # asked only if the target's end is seen before the source's beginning
        ends.source.refuses["CancelSession"] = [PageferryError(Reason.GOING_AWAY, "it does not hear")]
        ends.when("target StartSession", fails)
        error = await ends.migrate(seen, other_end_s=0.2)
        assert error is not None and error.reason is Reason.TOO_SLOW
        assert any("nothing more was heard" in text for text in seen.said_all)

    played(tmp_path, test)


# ----------------------------------------------------------------------------------------------- called again


def test_called_again_it_watches_the_same_move(tmp_path: Path) -> None:
    """The command that began it was killed: its token is the target's, and nobody makes another."""

    async def test(ends: Ends, seen: Seen) -> None:
        first = asyncio.create_task(ends.migrate(Seen()))
        while "target WatchSessions" not in ends.story:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        ends.story.clear()
        ends.when("target WatchSessions", ends.goes_well)
        assert await ends.migrate(seen) is None
        assert ends.story[0] == "target GetSession"
        assert not {"source CreateSession", "target StartSession"} & set(ends.story)
        assert ends.migration is not None and ends.migration.moving.watched_only

    played(tmp_path, test)


def test_called_again_after_its_end(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", ends.goes_well)
        assert await ends.migrate(Seen()) is None
        assert await ends.migrate(seen) is None
        assert seen.story[-2:] == ["ended", "closed"]

    played(tmp_path, test)


def test_called_again_before_the_target_was_told(tmp_path: Path) -> None:
    """The source has the session of a command that died; it takes the new token, for nobody has shown one."""

    async def test(ends: Ends, seen: Seen) -> None:
        ends.source.begin("move-1", "web-1")
        ends.when("target StartSession", ends.goes_well)
        assert await ends.migrate(seen) is None
        assert {"source CreateSession", "target StartSession"} < set(ends.story)

    played(tmp_path, test)


def test_the_name_of_another_move(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.begin("move-1", "web-2")
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.ALREADY_ATTACHED
        assert "web-2" in str(error)
        assert ends.story == ["target GetSession"]

    played(tmp_path, test)


# --------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_cancels_and_waits_for_what_comes_of_it(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        seen.on["target PRECOPY"] = interrupt
        ends.when("target StartSession", lambda: ends.target.change(phase=int(Phase.PRECOPY)))
        ends.when(
            "target CancelSession",
            lambda: ends.source.end(Phase.ABORTED, Reason.CANCELLED, "the target has given up"),
        )
        error = await ends.migrate(seen)
        assert error is not None and (error.reason, error.exit_code) == (Reason.CANCELLED, 75)
        assert "target CancelSession" in ends.story
        assert {"target ABORTED", "source ABORTED"} < set(seen.story)

    played(tmp_path, test)


def test_ctrl_c_too_late_changes_nothing(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        seen.on["target POSTCOPY"] = interrupt
        ends.when("target StartSession", lambda: ends.target.change(phase=int(Phase.POSTCOPY)))
        seen.on["said"] = lambda: seen.on.update({"said": ends.goes_well})  # asking; then: it goes on
        assert await ends.migrate(seen) is None
        assert any("it goes on" in text for text in seen.said_all)

    played(tmp_path, test)


def test_ctrl_c_before_the_target_was_told(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("source CreateSession", interrupt)
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.CANCELLED
        assert ends.story[-1] == "source CancelSession"
        assert "target StartSession" not in ends.story
        assert ends.source.phase() is Phase.ABORTED

    played(tmp_path, test)


def test_ctrl_c_while_the_target_is_told(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.when("target StartSession", interrupt)
        ends.when(
            "target CancelSession", lambda: ends.source.end(Phase.ABORTED, Reason.CANCELLED, "given up")
        )
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.CANCELLED
        assert "target CancelSession" in ends.story

    played(tmp_path, test)


def test_the_source_passes_a_cancel_on_if_the_target_is_out_of_reach(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.refuses["CancelSession"] = [PageferryError(Reason.GOING_AWAY, "not now")]
        ends.when("target WatchSessions", interrupt)
        ends.when(
            "source CancelSession", lambda: ends.target.end(Phase.ABORTED, Reason.CANCELLED, "asked to")
        )
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.CANCELLED
        assert "source CancelSession" in ends.story

    played(tmp_path, test)


def test_the_third_ctrl_c_leaves(tmp_path: Path) -> None:
    async def test(ends: Ends, seen: Seen) -> None:
        ends.target.hangs.add("CancelSession")

        async def impatient() -> None:
            for _ in range(3):
                interrupt()
                await asyncio.sleep(0.05)

        tasks: list[asyncio.Task[None]] = []
        ends.when("target WatchSessions", lambda: tasks.append(asyncio.create_task(impatient())))
        error = await ends.migrate(seen)
        assert error is not None and error.reason is Reason.CANCELLED
        assert "no longer watched" in str(error)
        assert ends.story.count("target CancelSession") == 1
        assert ends.target.phase() is Phase.CREATED, "the move itself goes on"
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        await tasks[0]

    played(tmp_path, test)


# ------------------------------------------------------------------------------------------------ a process


def test_as_a_process(tmp_path: Path) -> None:
    """Exit code and last words of a command whose target is not there."""
    ended = finished(
        "faultclient",
        "migrate",
        "--vm=web-1",
        "--data-address=127.0.0.1:7850",
        f"--source=unix:{tmp_path}/source",
        f"--target=unix:{tmp_path}/target",
    )
    assert ended.status == 69
    assert "Error: the fault client at unix:" in ended.log
    assert "[GOING_AWAY]" in ended.log
    assert "Traceback" not in ended.log
