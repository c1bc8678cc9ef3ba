# SPDX-License-Identifier: Apache-2.0
"""What a page server keeps of a session: the whole of it, but for what a restart loses anyway.

A session's state in memory *is* its record: a step makes a new one, puts it on disk, and only then is the
step done. So after a restart a session is where its record says, and the VMM that it stopped can be found
again: by its number, and by when it was started after which boot of the host, for numbers are used again.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pageferry.host.vmspec import VmKind, VmSpec
from pageferry.limits import DEFAULT_ATTACH_WITHIN_S
from pageferry.phases import Phase
from pageferry.reasons import Reason


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator has asked for. The same terms are the same session."""

    session: str
    image: str
    token_sha256: bytes  # may be another one until a target has attached
    attach_within_s: int = DEFAULT_ATTACH_WITHIN_S
    hold_source: bool = False


@dataclass(frozen=True, slots=True)
class SourceRecord:
    terms: Terms
    spec: VmSpec
    pid: int
    mark: str  # of that process, and no later one of the same number
    ran: bool  # the guest ran when the session was made: if it is given back, it runs
    machine: str
    content_id: int
    page_count: int
    phase: Phase = Phase.CREATED
    phase_since: float = field(default_factory=time.time)  # wall clock, for people
    stopped: bool = False  # for the hand-over, by us
    handed_over: bool = False
    settled: bool = False  # what its end asks for is done: the guest runs again, or the memory is given up
    target: int = 0  # 0: nobody has attached
    epoch: int = 0
    peer: str = ""
    cancel_requested: bool = False
    failure: Reason | None = None
    message: str = ""
    as_of: int = 0  # of the frozen map; 0: there is none yet
    manifest_digest: bytes = b""
    pages_poisoned: int = 0
    downtime_us: int = 0

    def to_fields(self) -> dict[str, Any]:
        """As JSON takes it, all but the session's name."""
        terms, spec = self.terms, self.spec
        return {
            "image": terms.image,
            "token_sha256": terms.token_sha256.hex(),
            "attach_within_s": terms.attach_within_s,
            "hold_source": terms.hold_source,
            "vm": {
                "handoff": str(spec.handoff),
                "kind": spec.kind.value,
                "control": str(spec.control) if spec.control is not None else None,
            },
            "pid": self.pid,
            "mark": self.mark,
            "ran": self.ran,
            "machine": self.machine,
            "content_id": f"{self.content_id:016x}",
            "page_count": self.page_count,
            "phase": self.phase.name,
            "phase_since": self.phase_since,
            "stopped": self.stopped,
            "handed_over": self.handed_over,
            "settled": self.settled,
            "target": f"{self.target:016x}",
            "epoch": self.epoch,
            "peer": self.peer,
            "cancel_requested": self.cancel_requested,
            "failure": self.failure.name if self.failure is not None else None,
            "message": self.message,
            "as_of": self.as_of,
            "manifest_digest": self.manifest_digest.hex(),
            "pages_poisoned": self.pages_poisoned,
            "downtime_us": self.downtime_us,
        }

    @classmethod
    def from_fields(cls, session: str, fields: Mapping[str, Any]) -> Self:
        """KeyError, TypeError or ValueError: they are no record of a source."""
        vm = fields["vm"]
        control = Path(vm["control"]) if vm["control"] is not None else None
        failure = fields["failure"]
        return cls(
            terms=Terms(
                session=session,
                image=str(fields["image"]),
                token_sha256=bytes.fromhex(fields["token_sha256"]),
                attach_within_s=int(fields["attach_within_s"]),
                hold_source=_truth(fields["hold_source"]),
            ),
            spec=VmSpec(str(fields["image"]), Path(vm["handoff"]), VmKind(vm["kind"]), control),
            pid=int(fields["pid"]),
            mark=str(fields["mark"]),
            ran=_truth(fields["ran"]),
            machine=str(fields["machine"]),
            content_id=int(fields["content_id"], 16),
            page_count=int(fields["page_count"]),
            phase=Phase[fields["phase"]],
            phase_since=float(fields["phase_since"]),
            stopped=_truth(fields["stopped"]),
            handed_over=_truth(fields["handed_over"]),
            settled=_truth(fields["settled"]),
            target=int(fields["target"], 16),
            epoch=int(fields["epoch"]),
            peer=str(fields["peer"]),
            cancel_requested=_truth(fields["cancel_requested"]),
            failure=Reason[failure] if failure is not None else None,
            message=str(fields["message"]),
            as_of=int(fields["as_of"]),
            manifest_digest=bytes.fromhex(fields["manifest_digest"]),
            pages_poisoned=int(fields["pages_poisoned"]),
            downtime_us=int(fields["downtime_us"]),
        )


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


# ------------------------------------------------------------------------------------ a process found again


def mark_of(pid: int) -> str:
    """Boot and start of the process that has this number now. ProcessLookupError: nobody has."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
    started_ticks = stat.rpartition(")")[2].split()[19]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {started_ticks}"


def find_again(pid: int, mark: str) -> int | None:
    """A pidfd of that very process; None if it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        same = mark_of(pid) == mark  # the descriptor holds it: a number is given again after its end only
    except ProcessLookupError:
        same = False
    if not same:
        os.close(pidfd)
        return None
    return pidfd
