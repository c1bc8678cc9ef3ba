# SPDX-License-Identifier: Apache-2.0
"""The phases of a session, of both sides, as one table: what may happen in which phase, and where it leads.

What the table does not name may not happen. tests/model walks every state that two sides on this table, their
crashes, their network and their operators can come to; docs/phases.md is printed from it.

A lazy restore is the target's side alone, with an empty precopy: the image does not change and nothing is
handed over, so ARMED leads from CREATED straight to POSTCOPY.

Three different facts, never one flag: the guest runs there (POSTCOPY), all pages are there (COMMITTED), the
source may go (RELEASED). A link that is down, or a full tmpfs, is no phase: the session is paused, with a
reason.

A report of the target implies the earlier one: COMMITTED tells a source that has missed POSTCOPY both.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum, unique
from types import MappingProxyType
from typing import Final, NamedTuple


class Side(Enum):
    SOURCE = "source"
    TARGET = "target"


class Phase(IntEnum):
    """The contract's Phase without its prefix."""

    CREATED = 1
    PRECOPY = 2
    SWITCHOVER = 3
    POSTCOPY = 4
    COMMITTED = 5
    RELEASED = 6
    ABORTED = 7
    LOST = 8


@unique
class Event(Enum):
    """What moves a session. The value is the sentence that docs and logs give."""

    ATTACHED = "a target has attached with the session's token: from now on no other can"
    STOPPED = "source: the guest has been stopped for the hand-over; target: the hand-over is asked for"
    ARMED = "faults are resolved from now on: the guest may run here, whatever happens"
    HANDED_OVER = "the last byte of the device state may leave: the source decides nothing alone any more"
    ACCEPTED = "the device state is loaded: the guest runs at the target for ever"
    COMPLETE = "every page is here, reads as zeros, was given back or is poisoned"
    RELEASED = "the source may free the memory"
    DETACHED = "the memory is unregistered: nobody needs this session or its source any more"
    FAILED = "it cannot be served: the image does not fit, a right is missing, the hand-off is wrong"
    CANCELLED = "somebody has asked to give it up"
    ABORT_REPORTED = "the target has recorded that the guest will never run there"
    FORCED_BACK = "an operator vouches that the target is dead and stays dead"
    GIVEN_UP = "an operator gives up the pages that are not at the target"
    VMM_GONE = "the VMM has exited: there is nothing left to serve"


class Guard(Enum):
    """What else a step depends on: HANDED_OVER is a condition of SWITCHOVER at the source, no phase."""

    ALWAYS = "always"
    NOT_HANDED_OVER = "before the hand-over"
    HANDED_OVER = "after the hand-over"

    def holds(self, handed_over: bool) -> bool:
        return self is Guard.ALWAYS or (self is Guard.HANDED_OVER) == handed_over


class Row(NamedTuple):
    after: Phase
    guard: Guard = Guard.ALWAYS


ENDS: Final = frozenset({Phase.RELEASED, Phase.ABORTED, Phase.LOST})

# Until the hand-over any error makes the source go on by itself. From then on only the target's word or an
# operator's lets it run, and an error pauses: the guest is in two places. At the target that begins with
# ACCEPTED: no FAILED and no CANCELLED from POSTCOPY on. The source's VMM may go once the hand-over is
# recorded: its memory is a file that the page server holds too.
STEPS: Final[Mapping[tuple[Side, Phase, Event], Row]] = MappingProxyType(
    {
        (Side.SOURCE, Phase.CREATED, Event.ATTACHED): Row(Phase.PRECOPY),
        (Side.SOURCE, Phase.CREATED, Event.FAILED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.CREATED, Event.CANCELLED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.CREATED, Event.VMM_GONE): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.PRECOPY, Event.STOPPED): Row(Phase.SWITCHOVER),
        (Side.SOURCE, Phase.PRECOPY, Event.FAILED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.PRECOPY, Event.CANCELLED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.PRECOPY, Event.VMM_GONE): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.PRECOPY, Event.ABORT_REPORTED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.SWITCHOVER, Event.HANDED_OVER): Row(Phase.SWITCHOVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.ACCEPTED): Row(Phase.POSTCOPY, Guard.HANDED_OVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.FAILED): Row(Phase.ABORTED, Guard.NOT_HANDED_OVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.CANCELLED): Row(Phase.ABORTED, Guard.NOT_HANDED_OVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.VMM_GONE): Row(Phase.ABORTED, Guard.NOT_HANDED_OVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.ABORT_REPORTED): Row(Phase.ABORTED),
        (Side.SOURCE, Phase.SWITCHOVER, Event.FORCED_BACK): Row(Phase.ABORTED, Guard.HANDED_OVER),
        (Side.SOURCE, Phase.SWITCHOVER, Event.GIVEN_UP): Row(Phase.LOST, Guard.HANDED_OVER),
        (Side.SOURCE, Phase.POSTCOPY, Event.COMPLETE): Row(Phase.COMMITTED),
        (Side.SOURCE, Phase.POSTCOPY, Event.GIVEN_UP): Row(Phase.LOST),
        (Side.SOURCE, Phase.COMMITTED, Event.RELEASED): Row(Phase.RELEASED),
        (Side.TARGET, Phase.CREATED, Event.ARMED): Row(Phase.POSTCOPY),  # a lazy restore
        (Side.TARGET, Phase.CREATED, Event.ATTACHED): Row(Phase.PRECOPY),
        (Side.TARGET, Phase.CREATED, Event.FAILED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.CREATED, Event.CANCELLED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.CREATED, Event.VMM_GONE): Row(Phase.ABORTED),
        (Side.TARGET, Phase.PRECOPY, Event.STOPPED): Row(Phase.SWITCHOVER),
        (Side.TARGET, Phase.PRECOPY, Event.FAILED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.PRECOPY, Event.CANCELLED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.PRECOPY, Event.VMM_GONE): Row(Phase.ABORTED),
        (Side.TARGET, Phase.SWITCHOVER, Event.ACCEPTED): Row(Phase.POSTCOPY),
        (Side.TARGET, Phase.SWITCHOVER, Event.FAILED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.SWITCHOVER, Event.CANCELLED): Row(Phase.ABORTED),
        (Side.TARGET, Phase.SWITCHOVER, Event.VMM_GONE): Row(Phase.ABORTED),
        (Side.TARGET, Phase.POSTCOPY, Event.COMPLETE): Row(Phase.COMMITTED),
        (Side.TARGET, Phase.POSTCOPY, Event.GIVEN_UP): Row(Phase.LOST),
        (Side.TARGET, Phase.POSTCOPY, Event.VMM_GONE): Row(Phase.RELEASED),
        (Side.TARGET, Phase.COMMITTED, Event.DETACHED): Row(Phase.RELEASED),
        (Side.TARGET, Phase.COMMITTED, Event.VMM_GONE): Row(Phase.RELEASED),
    }
)

# The record comes before the act: what each side must have on disk before it does what the value says. After
# a restart a side is where its record says, whatever it did since. Steps that are not here may be forgotten.
DURABLE: Final[Mapping[tuple[Side, Event], str]] = MappingProxyType(
    {
        (Side.SOURCE, Event.HANDED_OVER): "the message with `last` leaves",
        (Side.SOURCE, Event.ACCEPTED): "the report is answered",
        (Side.SOURCE, Event.COMPLETE): "the report is answered",
        (Side.SOURCE, Event.RELEASED): "the memory is freed, the VMM killed",
        (Side.SOURCE, Event.FAILED): "the guest runs again, anybody is told",
        (Side.SOURCE, Event.CANCELLED): "the guest runs again, anybody is told",
        (Side.SOURCE, Event.ABORT_REPORTED): "the guest runs again, the report is answered",
        (Side.SOURCE, Event.FORCED_BACK): "the guest runs again, anybody is told",
        (Side.SOURCE, Event.GIVEN_UP): "the memory is freed, the VMM killed",
        (Side.SOURCE, Event.VMM_GONE): "anybody is told",
        (Side.TARGET, Event.ARMED): "the first fault is resolved",
        (Side.TARGET, Event.ACCEPTED): "the guest runs, the report leaves",
        (Side.TARGET, Event.COMPLETE): "the report leaves",
        (Side.TARGET, Event.DETACHED): "anybody is told",
        (Side.TARGET, Event.FAILED): "the report leaves, the VMM is killed",
        (Side.TARGET, Event.CANCELLED): "the report leaves, the VMM is killed",
        (Side.TARGET, Event.GIVEN_UP): "missing pages are poisoned",
        (Side.TARGET, Event.VMM_GONE): "the report leaves",
    }
)
# Of these the page table, which outlives the process, is the record: a session writes nothing for them.
IN_THE_PAGE_TABLE: Final = frozenset({(Side.TARGET, Event.ARMED), (Side.TARGET, Event.COMPLETE)})

_RUNS: Final = frozenset(
    {
        *((Side.SOURCE, phase) for phase in (Phase.CREATED, Phase.PRECOPY, Phase.ABORTED)),
        *((Side.TARGET, phase) for phase in (Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED, Phase.LOST)),
    }
)


class IllegalStepError(Exception):
    """The table has no such event in this phase: a fault of ours, or a request that came too late."""

    def __init__(self, side: Side, phase: Phase, event: Event, handed_over: bool = False) -> None:
        super().__init__(side, phase, event, handed_over)
        self.side = side
        self.phase = phase
        self.event = event
        self.handed_over = handed_over

    def __str__(self) -> str:
        when = f", {Guard.HANDED_OVER.value}" if self.handed_over and self.phase is Phase.SWITCHOVER else ""
        return f"{self.event.name} cannot happen at the {self.side.value} in phase {self.phase.name}{when}"


def legal(side: Side, phase: Phase, event: Event, handed_over: bool = False) -> bool:
    row = STEPS.get((side, phase, event))
    return row is not None and row.guard.holds(handed_over)


def step(side: Side, phase: Phase, event: Event, handed_over: bool = False) -> Phase:
    """The phase that follows. IllegalStepError, and nothing has changed, where the table has no such step."""
    if not legal(side, phase, event, handed_over):
        raise IllegalStepError(side, phase, event, handed_over)
    return STEPS[side, phase, event].after


def runs(side: Side, phase: Phase) -> bool:
    """May the guest run at this side? At LOST of the target it goes on without the pages given up."""
    return (side, phase) in _RUNS
