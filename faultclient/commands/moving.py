# SPDX-License-Identifier: Apache-2.0
"""What is known of a move while it goes on: all that both ends have said, and when. Views and reports read
it."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faultclient.commands.control import failure_of
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import faultclient_pb2, migrations_pb2


@dataclass(frozen=True, slots=True)
class MigrateOptions:
    source: str
    target: str
    source_for_target: str
    data_address: str
    image: str
    vm: str
    session: str
    postcopy: str
    max_downtime_ms: int
    bandwidth_bytes_per_s: int
    rounds_max: int
    report: Path | None


@dataclass(frozen=True, slots=True)
class Sample:
    """What one end said of the session, and when."""

    at_s: float  # since the start
    side: str  # source, target
    session: migrations_pb2.Session


@dataclass(slots=True)
class Moving:
    """What is known of a move so far."""

    options: MigrateOptions
    began: float = field(default_factory=time.time)  # wall clock, for people
    samples: list[Sample] = field(default_factory=list)
    newest: dict[str, migrations_pb2.Session] = field(default_factory=dict)
    arrivals: faultclient_pb2.Arrivals | None = None
    _start_s: float = field(default_factory=time.monotonic)

    def now_s(self) -> float:
        return time.monotonic() - self._start_s

    def take(self, side: str, session: migrations_pb2.Session) -> Sample:
        sample = Sample(self.now_s(), side, session)
        self.samples.append(sample)
        self.newest[side] = session
        return sample

    def phase(self, side: str) -> Phase | None:
        return Phase(self.newest[side].phase) if side in self.newest else None

    def reached_s(self, side: str, phases: tuple[Phase, ...]) -> float | None:
        """When an end was first seen in one of these phases."""
        seen = (one.at_s for one in self.samples if one.side == side and Phase(one.session.phase) in phases)
        return next(seen, None)

    def error(self) -> PageferryError | None:
        """Why the guest is not where it was to go, all of it."""
        for side in ("target", "source"):
            if side in self.newest and (failure := failure_of(self.newest[side])) is not None:
                return failure
        if self.phase("source") is Phase.RELEASED:
            return None
        phase = self.phase("source")
        return PageferryError(Reason.WRONG_PHASE, f"it ended in phase {phase.name if phase else 'unknown'}")

    def figures(self) -> dict[str, Any]:
        """All that was measured; what was not is not there."""
        target = self.newest.get("target")
        found: dict[str, Any] = {"total_ms": round(self.now_s() * 1000)}
        all_here_s = self.reached_s("target", (Phase.COMMITTED, Phase.RELEASED))
        if all_here_s is not None:
            found["all_here_ms"] = round(all_here_s * 1000)
        if target is not None and self.reached_s("target", (Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED)):
            found["downtime_ms"] = round(target.downtime_us / 1000, 1)
            found["blocktime_ms"] = round(target.blocktime_us / 1000, 1)
            found["faults"] = target.faults
        if target is not None:
            found |= {"rounds": target.round, "pages": target.pages_total, "wire_bytes": target.wire_bytes}
        return found
