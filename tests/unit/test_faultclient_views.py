# SPDX-License-Identifier: Apache-2.0
"""A move as lines of text, as lines of JSON, and as a picture on a terminal; and its options."""

import io
import json
import re
import sys

import click
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from faultclient import cli
from faultclient.commands import live, migrate
from faultclient.commands.live import LiveView, picture
from faultclient.commands.moving import SAMPLES_MAX
from faultclient.commands.views import JsonLines, TextLines, View
from faultclient.commands.words import clock_text, ms_text, rate_text, size_text
from faultclient.migrate_config import ByteRate, MigrateOptions
from pageferry import limits
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import migrations_pb2
from tests.support.moves import PAGES, Clock, failed, moved, precopy

TOO_SLOW = PageferryError(Reason.TOO_SLOW, "no fewer pages were missing for 150 s")


def rendered(clock: Clock, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as captured:
        console.print(picture(clock.moving))
    return captured.get()


# --------------------------------------------------------------------------------------------- the options


def rate(text: str) -> int:
    return ByteRate().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("125000000", 125_000_000),
        ("1B", 1),
        ("10MB/s", 10_000_000),
        ("10M", 10_000_000),
        ("1.5GB/s", 1_500_000_000),
        ("800Mbit/s", 100_000_000),
        ("1Gbit", 125_000_000),
        (" 64kB/s ", 64_000),
    ],
)
def test_a_rate(text: str, bytes_per_s: int) -> None:
    assert rate(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "fast", "10MiB/s", "-1", "0", "1bit", "10 MB/s", "99999999999G", "1e9"])
def test_no_rate(text: str) -> None:
    with pytest.raises(click.BadParameter):
        rate(text)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[MigrateOptions, View]]:
    seen: list[tuple[MigrateOptions, View]] = []

    async def instead(options: MigrateOptions, view: View) -> PageferryError | None:
        seen.append((options, view))
        return TOO_SLOW if options.vm == "slow" else None

    monkeypatch.setattr(migrate, "migrate", instead)
    return seen


def invoke(*arguments: str, vm: str = "web-1") -> Result:
    needed = ("migrate", f"--vm={vm}", "--data-address=10.0.0.1:7850")
    return CliRunner().invoke(cli.cli, [*needed, *arguments], auto_envvar_prefix="FAULTCLIENT")


def test_defaults(given: list[tuple[MigrateOptions, View]]) -> None:
    assert invoke().exit_code == 0
    options, view = given[0]
    assert isinstance(view, TextLines), "no terminal is there"
    assert options.source == options.source_for_target == limits.DEFAULT_SERVER_CONTROL_ADDRESS
    assert options.target == limits.DEFAULT_CLIENT_CONTROL_ADDRESS
    assert options.image == options.vm == "web-1"
    assert re.fullmatch(r"move-[0-9a-f]{12}", options.session)
    assert options.bandwidth_bytes_per_s == 0
    assert options.max_downtime_ms == limits.DEFAULT_MAX_DOWNTIME_MS
    assert options.rounds_max == limits.DEFAULT_ROUNDS_MAX
    assert options.report is None


def test_each_session_has_a_name_of_its_own(given: list[tuple[MigrateOptions, View]]) -> None:
    invoke()
    invoke()
    assert given[0][0].session != given[1][0].session


def test_json_is_asked_for(given: list[tuple[MigrateOptions, View]]) -> None:
    invoke("--json", "--session=move-1", "--bandwidth=1Gbit/s")
    options, view = given[0]
    assert isinstance(view, JsonLines)
    assert (options.session, options.bandwidth_bytes_per_s) == ("move-1", 125_000_000)


@pytest.mark.parametrize(
    "wrong",
    ["--bandwidth=fast", "--postcopy=never", "--session=Move_1", "--rounds-max=0", "--max-downtime-ms=0"],
)
def test_usage_errors(given: list[tuple[MigrateOptions, View]], wrong: str) -> None:
    result = invoke(wrong)
    assert result.exit_code == 2 and "Usage:" in result.output
    assert not given


def test_a_failed_move_is_the_command_s_failure(given: list[tuple[MigrateOptions, View]]) -> None:
    result = invoke(vm="slow")
    assert isinstance(result.exception, PageferryError)
    assert result.exception.exit_code == 75


# ----------------------------------------------------------------------------------------------- JSON, text


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    moving, view = moved().moving, JsonLines()
    view.started(moving)
    view.sampled(moving, moving.samples[-1])
    view.said("a note")
    view.ended(moving, None)
    view.close()
    start, session, note, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert start == {"event": "start", "session": "move-1"}
    assert (session["event"], session["side"], session["at_ms"]) == ("session", "target", 3810)
    assert (session["phase"], session["pages_settled"], session["paused"]) == ("RELEASED", PAGES, None)
    assert set(session) >= {field.name for field in migrations_pb2.Session.DESCRIPTOR.fields}
    assert note == {"event": "note", "text": "a note"}
    assert (end["event"], end["downtime_ms"], end["total_ms"]) == ("end", 61.3, 3820)
    assert (end["runs_there_ms"], end["all_here_ms"], end["source_may_go_ms"]) == (3260, 3800, 3810)
    assert "failure" not in end


def test_the_last_json_line_of_a_failed_move(capsys: pytest.CaptureFixture[str]) -> None:
    clock = failed()
    JsonLines().sampled(clock.moving, clock.moving.samples[-2])
    JsonLines().ended(clock.moving, clock.moving.error())
    session, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert (session["phase"], session["failure"]) == ("ABORTED", "TOO_SLOW")
    assert end["failure"] == "TOO_SLOW"
    assert "no fewer pages" in end["message"]
    assert "downtime_ms" not in end, "it was never measured"


def test_text_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each phase and each pause, none for numbers."""
    clock, view = moved(), TextLines()
    view.started(clock.moving)
    for sample in clock.moving.samples:
        view.sampled(clock.moving, sample)
    view.ended(clock.moving, None)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert "web-1 moves to web-1 at 10.0.0.2:7861" in lines[0]
    assert len(lines) == 1 + sum(len(steps) for steps in clock.moving.steps.values())
    assert re.search(r"3\.2 s +target +SWITCHOVER +96% of 98304 pages", printed.err)
    assert re.search(r"downtime_ms +61\.3", printed.out)


def test_what_is_lost_is_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock, view = Clock().at(0.1).both(Phase.PRECOPY, pages_poisoned=2), TextLines()
    for sample in clock.moving.samples:
        view.sampled(clock.moving, sample)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "PRECOPY" in line] and all("2 pages lost" in line for line in lines)


def test_a_pause_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    clock, view = failed(), TextLines()
    for sample in clock.moving.samples:
        view.sampled(clock.moving, sample)
    assert "PRECOPY PAUSED GOING_AWAY" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the picture


def test_during_precopy() -> None:
    text = rendered(precopy())
    assert "CREATED → PRECOPY → SWITCHOVER → POSTCOPY → COMMITTED → RELEASED" in text
    assert "runs at the source   would stand still about 48.0 ms" in text
    assert re.search(r"96\.7%  372 MiB of 384 MiB", text)
    assert "100.0 MB/s" in text
    assert "4   1,000 pages in the newest   the guest writes 8,100 a second" in text
    assert "faults" not in text, "the guest has none there"
    assert max(map(len, text.splitlines())) <= 80


def test_before_anything_is_known() -> None:
    text = rendered(Clock())
    assert text.count("not heard of yet") == 2
    assert "memory" not in text


def test_while_it_stands_still() -> None:
    assert "stands still: its state moves" in rendered(precopy().both(Phase.SWITCHOVER))


def test_the_three_facts() -> None:
    clock = precopy().both(Phase.SWITCHOVER)
    clock.hear("target", phase=int(Phase.POSTCOPY), downtime_us=61_300, faults=5, faults_waiting=2)
    assert "✓ runs there   · all here   · source may go   stood still 61.3 ms" in rendered(clock)
    assert re.search(r"faults +5   2 waiting", rendered(clock))
    clock.hear("target", phase=int(Phase.COMMITTED), pages_settled=PAGES)
    assert "✓ all here   · source may go" in rendered(clock)
    assert "100.0%" in rendered(clock)
    assert "✓ source may go" in rendered(moved())


def test_nearly_all_is_not_all() -> None:
    clock = precopy().hear("target", pages_settled=PAGES - 1)
    assert " 99.9%" in rendered(clock)


def test_troubles() -> None:
    clock = precopy().hear("target", paused=int(Reason.NO_MEMORY), message="make room")
    clock.moving.silent["source"] = PageferryError(Reason.GOING_AWAY, "no answer")
    text = rendered(clock)
    assert "target paused: NO_MEMORY  make room" in text
    assert "source does not answer" in text


def test_a_failure() -> None:
    clock = failed()
    text = rendered(clock)
    assert "CREATED → PRECOPY → ABORTED" in text
    assert "runs on at the source" in text
    assert "286 MiB   50.0 MB/s on the average" in text


def test_what_comes_from_outside_is_no_markup() -> None:
    clock = precopy().hear("target", paused=int(Reason.BUG), message="[red]x[/red]")
    assert "[red]x[/red]" in rendered(clock)


def test_a_live_view_leaves_the_terminal_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """The cursor comes back, and what has happened stays above the last picture."""
    written = io.StringIO()
    view = LiveView(Console(file=written, force_terminal=True, width=80, height=30))
    clock = moved()
    view.started(clock.moving)
    for sample in clock.moving.samples:
        view.sampled(clock.moving, sample)
    view.said("a note")
    view.ended(clock.moving, None)
    view.close()
    text = written.getvalue()
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1
    assert "a note" in text and "SWITCHOVER" in text
    assert "downtime_ms" in capsys.readouterr().out


def test_a_terminal_gets_the_live_view(
    given: list[tuple[MigrateOptions, View]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    cli.cli(["migrate", "--vm=web-1", "--data-address=10.0.0.1:7850"], standalone_mode=False)
    assert isinstance(given[0][1], live.LiveView)


# ---------------------------------------------------------------------------------------- what is kept, words


def test_only_so_much_is_kept() -> None:
    clock = Clock().both(Phase.PRECOPY)
    for tick in range(SAMPLES_MAX + 10):
        clock.at(tick / 1000).moving.take(
            "target", migrations_pb2.Session(phase="PHASE_PRECOPY", pages_total=1)
        )
    assert len(clock.moving.samples) <= SAMPLES_MAX
    assert clock.moving.samples[-1].at_s == (SAMPLES_MAX + 9) / 1000
    assert [step.phase for step in clock.moving.steps["source"]] == [Phase.PRECOPY]


def test_what_was_before_we_watched_is_not_measured() -> None:
    """The command that had begun it was killed: this one comes when the guest runs there already."""
    clock = Clock().at(0.01)
    clock.moving.watched_only = True
    clock.both(Phase.POSTCOPY, downtime_us=50_000, wire_bytes=300_000_000).at(2).both(Phase.RELEASED)
    figures = clock.moving.figures()
    assert "runs_there_ms" not in figures and "total_ms" not in figures
    assert (figures["watched_ms"], figures["all_here_ms"], figures["downtime_ms"]) == (2000, 2000, 50.0)
    text = rendered(clock)
    assert "✓ runs there   ✓ all here   ✓ source may go" in text
    assert "286 MiB" in text and "average" not in text


def test_the_rate_fades_when_nothing_comes() -> None:
    clock = precopy()
    assert clock.moving.bytes_per_s() == pytest.approx(100e6, rel=0.1)
    assert clock.at(clock.moving.now_s() + 60).moving.bytes_per_s() == 0


def test_pauses_are_kept_with_their_time() -> None:
    (pause,) = failed().moving.pauses
    assert (pause.side, pause.reason, pause.since_s, pause.until_s) == ("target", Reason.GOING_AWAY, 3.3, 6.0)


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (400, "0.4 ms"),
        (12_340, "12.3 ms"),
        (130_400, "130 ms"),
        (2_412_000, "2.41 s"),
        (312_400_000, "312 s"),
    ],
)
def test_milliseconds(us: int, text: str) -> None:
    assert ms_text(us) == text


def test_words() -> None:
    assert [clock_text(s) for s in (4.9, 753, 3723)] == ["0:04", "12:33", "1:02:03"]
    assert [size_text(n) for n in (12 << 20, 1300 << 20)] == ["12 MiB", "1.3 GiB"]
    assert rate_text(112_400_000) == "112.4 MB/s"
