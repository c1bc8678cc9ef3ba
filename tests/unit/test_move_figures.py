# SPDX-License-Identifier: Apache-2.0
"""The yardstick of moves, on heartbeats that nobody had to wait for."""

import os
from itertools import accumulate

import pytest

from tests.support.console import Console, Heartbeat
from tests.support.move_figures import Figures, Moments, broken_steps, figures, gaps_ms, one_row, period_ms
from tests.support.move_room import Run
from tests.support.move_verdict import SIDES, Outcome, checks, closing_line, medians

LINE = "HB {} verified=10 rewritten=1 errors=0 epoch=0 distinct=10 ms=1234\n"


def read_console(text: str) -> Console:
    reader, writer = os.pipe()
    console = Console(reader)
    os.write(writer, text.encode())
    os.close(writer)
    console.finish()
    os.close(reader)
    return console


def beats(*gaps_ms: float) -> list[Heartbeat]:
    """The first one at 0."""
    moments = accumulate((0, *gaps_ms))
    return [Heartbeat(at, 0, 0, 0, 0, 0, 0, int(ms * 1e6)) for at, ms in enumerate(moments)]


def moments(started_ms: float, here_ms: float) -> Moments:
    return Moments(int(started_ms * 1e6), int(here_ms * 1e6), 1000)


def test_the_halves_of_a_cut_line_make_one_heartbeat() -> None:
    line = LINE.format(7)
    for cut in range(len(line) + 1):
        source = read_console(LINE.format(6) + line[:cut])
        target = read_console(line[cut:] + LINE.format(8))
        row = one_row(source, target)
        assert [beat.number for beat in row] == [6, 7, 8]
        assert broken_steps(row) == 0


def test_a_guest_that_runs_twice_or_leaves_out_a_beat_is_seen() -> None:
    row = one_row(read_console(LINE.format(6) + LINE.format(7)), read_console(LINE.format(7)))
    assert broken_steps(row) == 1
    row = one_row(read_console(LINE.format(6)), read_console(LINE.format(8) + LINE.format(9)))
    assert broken_steps(row) == 1


def test_gaps_count_from_the_start_until_all_pages_are_here() -> None:
    row = beats(20, 20, 300, 20, 120, 500)
    taken = figures(row, 20, moments(started_ms=50, here_ms=470))
    assert taken == Figures(downtime_ms=300, blocktime_ms=280 + 100, total_ms=420, bytes=1000)


def test_a_gap_counts_whole_on_either_edge() -> None:
    row = beats(20, 200, 20, 400, 20)
    assert figures(row, 20, moments(100, 250)).downtime_ms == 400
    assert figures(row, 20, moments(100, 230)).downtime_ms == 200
    assert figures(row, 20, moments(210, 230)).blocktime_ms == 180


def test_late_and_early_heartbeats_are_no_blocktime() -> None:
    row = beats(*(20, 23, 17) * 20)
    assert period_ms(row) == 20
    assert figures(row, period_ms(row), moments(0, 1200)).blocktime_ms == pytest.approx(0)


def test_gaps_after_a_moment_are_those_that_end_later() -> None:
    row = beats(20, 30, 40)
    assert gaps_ms(row) == [20, 30, 40]
    assert gaps_ms(row, 50_000_000) == [40]
    assert gaps_ms(row, 49_000_000) == [30, 40]


def outcome(side: str, number: int, downtime_ms: float, *, errors: int = 0) -> Outcome:
    run = Run(Figures(downtime_ms, downtime_ms, 2000, 1000), errors, 20, 1000)
    return Outcome("10.0", number, side, run)


def all_sides(ours_ms: float, peers_ms: float, *, errors: int = 0) -> list[Outcome]:
    return [
        outcome(side, number, (peers_ms if "qemu" in side else ours_ms) + number, errors=errors)
        for number in (1, 2, 3)
        for side in SIDES
    ]


def failed(outcomes: list[Outcome], *, timings: bool = True) -> list[str]:
    return [check.text for check in checks(outcomes, SIDES, timings=timings) if not check.passed]


def test_every_promise_is_judged_by_its_ratio() -> None:
    assert failed(all_sides(100, 1000)) == []
    wrong = failed(all_sides(400, 1000))
    assert [text.split(":")[0] for text in wrong] == ["at_once downtime_ms", "at_once blocktime_ms"]
    assert failed(all_sides(400, 1000), timings=False) == []
    assert "the guest found 18 errors" in failed(all_sides(100, 1000, errors=1), timings=False)


def precopied(precopy_gaps_ms: list[float]) -> list[str]:
    """What is wrong with a precopy after 300 quiet gaps, of three moves."""
    quiet = [20.0] * 99 + [24.0]
    run = Run(Figures(100, 100, 2000, 1000), 0, 20, 1000, quiet, precopy_gaps_ms)
    moves = [Outcome("10.0", number, "hybrid", run) for number in (1, 2, 3)]
    others = [one for one in all_sides(100, 1000) if one.side != "hybrid"]
    return failed([*others, *moves])


def test_a_guest_that_notices_its_precopy_is_seen() -> None:
    assert precopied([20.0] * 200) == []
    assert precopied([20.0] * 199 + [99.0]) == []
    (longest,) = precopied([20.0] * 199 + [101.0])
    assert longest == "longest of 600 heartbeat gaps in precopy: 5.05 periods, at most 5"
    (slow,) = precopied([20.0] * 190 + [40.0] * 10)
    assert slow.startswith("p99 of 600 heartbeat gaps in precopy: 2.00 x that before")


def test_who_did_not_come_through_is_told() -> None:
    lost = [Outcome("10.0", number, "hybrid", None, "dead") for number in (1, 2, 3)]
    rest = [one for one in all_sides(100, 1000) if one.side != "hybrid"]
    assert failed([*rest, *lost]) == ["hybrid: 0 of 3 moves came through"]
    assert medians([*rest, *lost])["hybrid"] is None
    assert '"hybrid": null' in closing_line("10.0", medians([*rest, *lost]), 0)


def test_a_peer_that_mostly_fails_is_no_yardstick() -> None:
    rest = [one for one in all_sides(100, 1000) if "hybrid" not in one.side or one.round == 1]
    lost = [
        Outcome("7.2", number, side, None, "dead")
        for number in (2, 3)
        for side in ("qemu_hybrid_plain", "qemu_hybrid_preempt")
    ]
    assert medians([*rest, *lost])["qemu_hybrid"] is None
