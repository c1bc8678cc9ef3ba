# SPDX-License-Identifier: Apache-2.0
"""The phases of a session as one table: what may happen in which phase, and where it leads.

A lazy restore is the machine with an empty precopy: the image does not change and nothing is handed over, so
ARMED leads from CREATED straight to POSTCOPY. PRECOPY, SWITCHOVER and LOST have their numbers in the contract
and get their rows with live migration.

Three different facts, never one flag: the guest runs here (POSTCOPY), all pages are here (COMMITTED), the
source may go (RELEASED). A link that is down, or a full tmpfs, is no phase: the session is paused, with a
reason.
"""

from collections.abc import Mapping
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final


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


class Event(Enum):
    """What moves a session. The value is the sentence that docs and logs give."""

    ARMED = "faults are resolved from now on: the guest may run here, whatever happens"
    COMPLETE = "every page is here, reads as zeros, was given back or is poisoned"
    DETACHED = "the memory is unregistered: nobody needs this session or its source any more"
    FAILED = "it cannot be served: the image does not fit, a right is missing, the hand-off is wrong"
    CANCELLED = "somebody has asked to give it up"
    VMM_GONE = "the VMM has exited: there is nothing left to serve"


ENDS: Final = frozenset({Phase.RELEASED, Phase.ABORTED, Phase.LOST})

# What is not named here may not happen. From POSTCOPY on there is no FAILED and no CANCELLED: the guest's
# memory is in two places, so an error pauses the session, and only the guest's own end ends it early.
STEPS: Final[Mapping[tuple[Phase, Event], Phase]] = MappingProxyType(
    {
        (Phase.CREATED, Event.ARMED): Phase.POSTCOPY,
        (Phase.CREATED, Event.FAILED): Phase.ABORTED,
        (Phase.CREATED, Event.CANCELLED): Phase.ABORTED,
        (Phase.CREATED, Event.VMM_GONE): Phase.ABORTED,
        (Phase.POSTCOPY, Event.COMPLETE): Phase.COMMITTED,
        (Phase.POSTCOPY, Event.VMM_GONE): Phase.RELEASED,
        (Phase.COMMITTED, Event.DETACHED): Phase.RELEASED,
        (Phase.COMMITTED, Event.VMM_GONE): Phase.RELEASED,
    }
)


class IllegalStepError(Exception):
    """The table has no such event in this phase: a fault of ours, or a request that came too late."""

    def __init__(self, phase: Phase, event: Event) -> None:
        super().__init__(phase, event)
        self.phase = phase
        self.event = event

    def __str__(self) -> str:
        return f"{self.event.name} cannot happen in phase {self.phase.name}"


def legal(phase: Phase, event: Event) -> bool:
    return (phase, event) in STEPS


def step(phase: Phase, event: Event) -> Phase:
    """The phase that follows. IllegalStepError, and nothing has changed, where the table has no such step."""
    try:
        return STEPS[phase, event]
    except KeyError:
        raise IllegalStepError(phase, event) from None
