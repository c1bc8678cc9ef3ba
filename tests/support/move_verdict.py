# SPDX-License-Identifier: Apache-2.0
"""From the runs of one QEMU version to its medians, its closing line, and what of the promises is kept.

A ratio is that of the medians: ours to the peer's better one, figure by figure. Which of the peer's hybrids
is the better one is told by its downtime. A side that came through in less than half of its moves has no
median.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.support.move_figures import Figures
from tests.support.move_room import Run

AT_ONCE: Final = "at_once"  # ours; the peer's ways carry its name
HYBRID: Final = "hybrid"
PEER_HYBRIDS: Final = ("qemu_hybrid_plain", "qemu_hybrid_preempt")
OURS: Final = (AT_ONCE, HYBRID)
SIDES: Final = ("qemu", "qemu_preempt", *PEER_HYBRIDS, *OURS)
# There a precopy of a running writer leaves no working guest: its QEMU crashes, or the guest reboots.
MAY_FAIL: Final = {("7.2", name) for name in PEER_HYBRIDS}


@dataclass(frozen=True)
class Outcome:
    version: str
    round: int
    side: str
    run: Run | None
    failure: str = ""  # why there is no run


@dataclass(frozen=True)
class Limit:
    side: str
    figure: str
    peers: tuple[str, ...]
    factor: float

    @property
    def name(self) -> str:
        return f"{self.side} {self.figure}"


LIMITS: Final = (
    Limit(AT_ONCE, "downtime_ms", ("qemu", "qemu_preempt"), 0.35),
    Limit(AT_ONCE, "blocktime_ms", ("qemu", "qemu_preempt"), 0.35),
    Limit(AT_ONCE, "total_ms", ("qemu", "qemu_preempt"), 1.1),
    Limit(AT_ONCE, "bytes", ("qemu", "qemu_preempt"), 1.1),
    Limit(HYBRID, "downtime_ms", ("qemu_hybrid",), 0.5),
)


# Of ours while its precopy runs: how much longer the slowest hundredth of gaps between heartbeats may be than
# before, and how many periods the longest of all.
PRECOPY_P99: Final = 1.5
PRECOPY_PERIODS: Final = 5.0


@dataclass(frozen=True)
class Check:
    text: str
    passed: bool


def medians(outcomes: Sequence[Outcome]) -> dict[str, Figures | None]:
    """By side, in the order of SIDES; qemu_hybrid is the better one of its two. None: it has no median."""
    found: dict[str, Figures | None] = {}
    for side in SIDES:
        tries = [outcome.run for outcome in outcomes if outcome.side == side]
        runs = [run.figures for run in tries if run]
        found[side] = Figures.median(runs) if runs and len(runs) * 2 >= len(tries) else None
    hybrids = [figures for name in PEER_HYBRIDS if (figures := found[name])]
    found["qemu_hybrid"] = min(hybrids, key=lambda one: one.downtime_ms, default=None)
    return found


def guest_errors(outcomes: Sequence[Outcome]) -> int:
    return sum(outcome.run.guest_errors for outcome in outcomes if outcome.run)


def closing_line(version: str, middle: Mapping[str, Figures | None], errors: int) -> str:
    names = (*OURS, "qemu", "qemu_preempt", "qemu_hybrid")
    sides = {name: figures.as_json() if (figures := middle[name]) else None for name in names}
    return f"migrate-demo: {json.dumps({'version': version, **sides, 'guest_errors': errors})}"


def checks(outcomes: Sequence[Outcome], chosen: Sequence[str], *, timings: bool = True) -> list[Check]:
    """Of one version, for the sides that were run. Without `timings` only what no other load can change."""
    version = outcomes[0].version
    middle = medians(outcomes)
    errors = guest_errors(outcomes)
    found = [Check(f"the guest found {errors} errors", errors == 0)]
    found += [_complete(version, side, outcomes) for side in chosen]
    for limit in LIMITS:
        if timings or limit.figure == "bytes":
            found += _within(limit, middle)
    if timings and HYBRID in chosen:
        found += _unseen(outcomes)
    return found


def _unseen(outcomes: Sequence[Outcome]) -> list[Check]:
    """A guest does not notice a precopy of ours; all its moves together, for a hundredth needs many beats."""
    runs = [outcome.run for outcome in outcomes if outcome.side == HYBRID and outcome.run]
    before_ms = [gap_ms for run in runs for gap_ms in run.quiet_gaps_ms]
    precopy_ms = [gap_ms for run in runs for gap_ms in run.precopy_gaps_ms]
    if len(before_ms) < 2 or len(precopy_ms) < 2:
        return []  # who is absent is told by _complete
    ratio = _p99(precopy_ms) / _p99(before_ms)
    periods = max(precopy_ms) / statistics.mean(run.period_ms for run in runs)
    counted = f"{len(precopy_ms)} heartbeat gaps in precopy"
    return [
        Check(f"p99 of {counted}: {ratio:.2f} x that before, at most {PRECOPY_P99}", ratio <= PRECOPY_P99),
        Check(
            f"longest of {counted}: {periods:.2f} periods, at most {PRECOPY_PERIODS:g}",
            periods <= PRECOPY_PERIODS,
        ),
    ]


def _p99(figures: Sequence[float]) -> float:
    return statistics.quantiles(figures, n=100, method="inclusive")[-1]


def _complete(version: str, side: str, outcomes: Sequence[Outcome]) -> Check:
    """Ours always comes through; what the peer does not finish is shown, and its half must be there."""
    runs = [outcome.run for outcome in outcomes if outcome.side == side]
    done = sum(run is not None for run in runs)
    wanted = len(runs) if side in OURS else (len(runs) + 1) // 2
    passed = done >= wanted or (version, side) in MAY_FAIL
    return Check(f"{side}: {done} of {len(runs)} moves came through", passed)


def _within(limit: Limit, middle: Mapping[str, Figures | None]) -> list[Check]:
    ours = middle[limit.side]
    peers = [getattr(figures, limit.figure) for name in limit.peers if (figures := middle[name])]
    if ours is None or not peers:
        return []  # who is absent is told by _complete
    ratio = getattr(ours, limit.figure) / min(peers)
    return [Check(f"{limit.name}: {ratio:.2f} x the peer's, at most {limit.factor}", ratio <= limit.factor)]
