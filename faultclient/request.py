# SPDX-License-Identifier: Apache-2.0
"""What StartSession asks for, and what this end keeps of a session over its own death."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from faultclient.rounds import Limits
from faultclient.session import Postcopy
from pageferry.limits import (
    DEFAULT_COMPLETION_TIMEOUT_PER_GIB_S,
    DEFAULT_MAX_DOWNTIME_MS,
    DEFAULT_PROGRESS_TIMEOUT_S,
    DEFAULT_ROUNDS_MAX,
)
from pageferry.phases import Phase
from pageferry.reasons import Reason


@dataclass(frozen=True, slots=True)
class StartRequest:
    """The same fields are the same session. Nothing is left open here: defaults are filled in."""

    session: str
    image: str
    vm: str
    data_address: str
    control_address: str = ""  # empty: a lazy restore of an image that does not change
    postcopy: Postcopy = Postcopy.ALLOW
    manual_switchover: bool = False
    max_downtime_ms: int = DEFAULT_MAX_DOWNTIME_MS
    bandwidth_bytes_per_s: int = 0
    completion_timeout_per_gib_s: int = DEFAULT_COMPLETION_TIMEOUT_PER_GIB_S
    progress_timeout_s: int = DEFAULT_PROGRESS_TIMEOUT_S
    rounds_max: int = DEFAULT_ROUNDS_MAX

    def limits(self) -> Limits:
        return Limits(
            postcopy=self.postcopy,
            max_downtime_s=self.max_downtime_ms / 1000,
            rounds_max=self.rounds_max,
            completion_s_per_gib=self.completion_timeout_per_gib_s,
            progress_s=self.progress_timeout_s,
            manual=self.manual_switchover,
        )


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A session as it was when it last moved. No token: after a restart its bearer has to come again."""

    request: StartRequest
    target: int
    epoch: int
    phase: Phase = Phase.CREATED
    failure: Reason | None = None
    message: str = ""
    reported: bool = False  # the source has answered, to its end
    since: float = field(default_factory=time.time)  # wall clock, for people

    def to_fields(self) -> dict[str, Any]:
        """As JSON takes it, all but the session's name."""
        request = asdict(self.request) | {"postcopy": self.request.postcopy.value}
        del request["session"]
        return {
            "request": request,
            "target": f"{self.target:016x}",
            "epoch": self.epoch,
            "phase": self.phase.name,
            "failure": self.failure.name if self.failure is not None else None,
            "message": self.message,
            "reported": self.reported,
            "since": self.since,
        }

    @classmethod
    def from_fields(cls, session: str, found: Mapping[str, Any]) -> Self:
        """KeyError, TypeError or ValueError: they are no record of a target."""
        request = dict(found["request"])
        request["postcopy"] = Postcopy(request["postcopy"])
        types = {one.name: one.type for one in fields(StartRequest)} | {"postcopy": Postcopy}
        if any(type(value) is not types[name] for name, value in request.items()):
            raise TypeError("a field of the request is of another kind")
        failure = found["failure"]
        return cls(
            request=StartRequest(session=session, **request),
            target=int(found["target"], 16),
            epoch=int(found["epoch"]),
            phase=Phase[found["phase"]],
            failure=Reason[failure] if failure is not None else None,
            message=str(found["message"]),
            reported=found["reported"] is True,
            since=float(found["since"]),
        )
