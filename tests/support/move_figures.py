# SPDX-License-Identifier: Apache-2.0
"""What a move cost, told by the guest's own heartbeats: the same four figures of whoever moved it.

    downtime    the longest gap between two heartbeats, from the start command until all pages were here
    blocktime   all gaps of that time, each less the period that the guest kept before: beats that it lost
    total       from the start command until all pages were here
    bytes       what the interface of the destination counted meanwhile, both ways

A gap counts if it ended after the start and began before all pages were here. The heartbeats of both
consoles make one row; a number that is left out or comes twice is an error of the guest like a wrong page.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Self

from tests.support.console import Console, Heartbeat, heartbeat


@dataclass(frozen=True)
class Figures:
    downtime_ms: float
    blocktime_ms: float
    total_ms: float
    bytes: int

    @classmethod
    def median(cls, runs: Sequence[Self]) -> Self:
        """Of each figure for itself."""
        return cls(
            downtime_ms=statistics.median(run.downtime_ms for run in runs),
            blocktime_ms=statistics.median(run.blocktime_ms for run in runs),
            total_ms=statistics.median(run.total_ms for run in runs),
            bytes=int(statistics.median(run.bytes for run in runs)),
        )

    def as_json(self) -> dict[str, float]:
        return {name: round(figure, 1) for name, figure in asdict(self).items()}


NAMES = tuple(Figures.__dataclass_fields__)


@dataclass(frozen=True)
class Moments:
    """The host's time.monotonic_ns(), and the interface's counters beside it."""

    started_ns: int
    all_here_ns: int
    bytes: int


def one_row(source: Console, target: Console) -> list[Heartbeat]:
    """The guest's heartbeats over its move; a line that the move has cut is joined."""
    row = list(source.beats)
    if source.tail and target.head:
        line, arrived_ns = target.head
        cut = heartbeat(source.tail + line, arrived_ns)
        row += [cut] if cut else []
    return [*row, *target.beats]


def broken_steps(row: Sequence[Heartbeat]) -> int:
    """How often a heartbeat does not follow the one before it."""
    return sum(later.number != earlier.number + 1 for earlier, later in pairwise(row))


def period_ms(row: Sequence[Heartbeat]) -> float:
    """What the guest keeps while it is left alone: the mean."""
    return (row[-1].arrived_ns - row[0].arrived_ns) / 1e6 / (len(row) - 1)


def gaps_ms(row: Sequence[Heartbeat], after_ns: int = 0) -> list[float]:
    """Between two heartbeats each, that ended after this moment."""
    return [
        round((later.arrived_ns - earlier.arrived_ns) / 1e6, 2)
        for earlier, later in pairwise(row)
        if later.arrived_ns > after_ns
    ]


def figures(row: Sequence[Heartbeat], quiet_period_ms: float, moments: Moments) -> Figures:
    counted_ms = [
        (later.arrived_ns - earlier.arrived_ns) / 1e6
        for earlier, later in pairwise(row)
        if later.arrived_ns > moments.started_ns and earlier.arrived_ns < moments.all_here_ns
    ]
    return Figures(
        downtime_ms=max(counted_ms),
        blocktime_ms=max(0.0, sum(gap_ms - quiet_period_ms for gap_ms in counted_ms)),
        total_ms=(moments.all_here_ns - moments.started_ns) / 1e6,
        bytes=moments.bytes,
    )
