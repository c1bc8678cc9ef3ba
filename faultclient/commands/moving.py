# SPDX-License-Identifier: Apache-2.0
"""What is known of a move while it goes on: all that both ends have said, and when. Views and reports read
it."""

import time
from dataclasses import dataclass, field
from typing import Any, Final

from faultclient.commands.control import failure_of
from faultclient.commands.words import phase_of
from faultclient.migrate_config import MigrateOptions
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import faultclient_pb2, migrations_pb2

SIDES: Final = ("source", "target")
RATE_WINDOW_S: Final = 1.5
# Two ends, five a second: an hour. Then every second one is forgotten; steps and pauses stay.
SAMPLES_MAX: Final = 36_000
# The guest runs at the target; all its memory is there.
RUNS_THERE: Final = (Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED)
ALL_HERE: Final = (Phase.COMMITTED, Phase.RELEASED)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one end said of the session, and when."""

    at_s: float  # since the start
    side: str  # source, target
    session: migrations_pb2.Session


@dataclass(frozen=True, slots=True)
class Step:
    """An end was first seen in a phase."""

    at_s: float
    phase: Phase


@dataclass(slots=True)
class Pause:
    side: str
    reason: Reason
    message: str
    since_s: float
    until_s: float | None = None  # None: it lasts


@dataclass(slots=True)
class Moving:
    """What is known of a move so far."""

    options: MigrateOptions
    began: float = field(default_factory=time.time)  # wall clock, for people
    watched_only: bool = False  # somebody else has begun it
    samples: list[Sample] = field(default_factory=list)
    newest: dict[str, migrations_pb2.Session] = field(default_factory=dict)
    steps: dict[str, list[Step]] = field(default_factory=lambda: {side: [] for side in SIDES})
    pauses: list[Pause] = field(default_factory=list)
    silent: dict[str, PageferryError] = field(default_factory=dict)  # ends that do not answer now
    notes: list[tuple[float, str]] = field(default_factory=list)
    arrivals: faultclient_pb2.Arrivals | None = None
    ended_s: float | None = None
    start_s: float = field(default_factory=time.monotonic)

    def now_s(self) -> float:
        """Since the start; after the end, when that was."""
        return self.ended_s if self.ended_s is not None else time.monotonic() - self.start_s

    # ------------------------------------------------------------------------------------------ what is heard

    def take(self, side: str, session: migrations_pb2.Session) -> Sample:
        sample = Sample(self.now_s(), side, session)
        if len(self.samples) >= SAMPLES_MAX:
            del self.samples[::2]
        self.samples.append(sample)
        self.newest[side] = session
        steps, phase = self.steps[side], phase_of(session)
        if phase is not None and (not steps or steps[-1].phase is not phase):
            steps.append(Step(sample.at_s, phase))
        self._take_pause(sample)
        return sample

    def _take_pause(self, sample: Sample) -> None:
        session = sample.session
        lasting = next((one for one in self.pauses if one.side == sample.side and one.until_s is None), None)
        reason = Reason(session.paused) if session.paused else None
        if lasting is not None and lasting.reason is not reason:
            lasting.until_s = sample.at_s
            lasting = None
        if reason is not None and lasting is None:
            self.pauses.append(Pause(sample.side, reason, session.message, sample.at_s))

    def end(self) -> None:
        self.ended_s = self.now_s()

    # -------------------------------------------------------------------------------------- what is known now

    def phase(self, side: str) -> Phase | None:
        return phase_of(self.newest[side]) if side in self.newest else None

    def seen(self, side: str, *phases: Phase) -> bool:
        """An end was seen in one of these phases."""
        return any(step.phase in phases for step in self.steps[side])

    def reached_s(self, side: str, *phases: Phase) -> float | None:
        """When an end came to one of these phases. None: it has not, or that was before we watched."""
        reached = next((step for step in self.steps[side] if step.phase in phases), None)
        if reached is None or (self.watched_only and reached is self.steps[side][0]):
            return None
        return reached.at_s

    def runs_there(self) -> bool:
        """The target may end well and be heard of no more: the source's word will do."""
        return any(self.seen(side, *RUNS_THERE) for side in SIDES)

    def bytes_per_s(self) -> float:
        """That came in at the target of late."""
        newest, since_s = self.newest.get("target"), self.now_s() - RATE_WINDOW_S
        if newest is None:
            return 0.0
        ours = (one for one in reversed(self.samples) if one.side == "target")
        first = None
        for first in ours:
            if first.at_s <= since_s:
                break
        assert first is not None
        lasted_s = self.now_s() - max(first.at_s, since_s)
        return (newest.wire_bytes - first.session.wire_bytes) / lasted_s if lasted_s > 0.1 else 0.0

    def error(self) -> PageferryError | None:
        """Why the guest is not where it was to go, all of it."""
        for side in ("target", "source"):
            if side in self.newest and (failure := failure_of(self.newest[side])) is not None:
                return failure
        if self.phase("source") is Phase.RELEASED:
            return None
        if self.phase("target") is Phase.RELEASED:
            what = "all is at the target, and whether the source may go was not heard"
        else:
            what = "no more was heard of it"
        last = (f"{side} {phase.name}" for side in SIDES if (phase := self.phase(side)) is not None)
        return PageferryError(
            Reason.GOING_AWAY, f"{what}; last: {', '.join(last) or 'nothing'}", "`faultclient top` tells more"
        )

    def figures(self) -> dict[str, Any]:
        """All that was measured; what was not is not there."""
        target = self.newest.get("target")
        lasted = "watched_ms" if self.watched_only else "total_ms"
        found: dict[str, Any] = {lasted: round(self.now_s() * 1000)}
        moments = {
            "runs_there_ms": self.reached_s("target", *RUNS_THERE),
            "all_here_ms": self.reached_s("target", *ALL_HERE),
            "source_may_go_ms": self.reached_s("source", Phase.RELEASED),
        }
        found |= {name: round(at_s * 1000) for name, at_s in moments.items() if at_s is not None}
        if target is None:
            return found
        if self.seen("target", *RUNS_THERE):
            found["downtime_ms"] = round(target.downtime_us / 1000, 1)
            found["blocktime_ms"] = round(target.blocktime_us / 1000, 1)
            found["faults"] = target.faults
        return found | {
            "rounds": target.round,
            "pages": target.pages_total,
            "wire_bytes": target.wire_bytes,
        }
