# SPDX-License-Identifier: Apache-2.0
"""Why something was refused or does not go on: the closed set, one row each.

A reason is what a peer or an operator sees; an errno never gets this far. The names and numbers are those of
the contract's enum Reason (a test compares them). grpc is not imported here: the fault client must be able to
serve faults before it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Final


class Reason(IntEnum):
    """The contract's Reason without its prefix."""

    BAD_REQUEST = 1
    OUT_OF_IMAGE = 2
    NO_SUCH_IMAGE = 3
    ALREADY_ATTACHED = 4
    WRONG_PHASE = 5
    SUPERSEDED = 6
    MISMATCH = 7
    BUSY = 8
    NO_MEMORY = 9
    GOING_AWAY = 10
    TOO_SLOW = 11
    UNSUPPORTED = 12
    NOT_ALLOWED = 13
    CANCELLED = 14
    NO_VMM = 15
    BUG = 16


class Code(IntEnum):
    """The gRPC status codes that a reason travels under, by their numbers on the wire."""

    OK = 0
    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Exit(IntEnum):
    """Exit codes (sysexits.h). A Job's podFailurePolicy reads them; 64 is for the command line alone."""

    OK = 0
    USAGE = 64
    DATA = 65
    UNAVAILABLE = 69
    BUG = 70
    SYSTEM = 71
    NO_MEMORY = 73
    TRY_AGAIN = 75


class Remedy(Enum):
    """What the client does about it by itself. Once the guest runs here STOP too is a pause: nothing ends a
    session then."""

    RETRY = "retry"  # asks or dials again, with back-off
    PAUSE = "pause"  # says so, and tries again: somebody must make room
    STOP = "stop"  # asks no more: trying again cannot help


@dataclass(frozen=True, slots=True)
class ReasonRow:
    code: Code
    exit: Exit
    client: Remedy
    sentence: str


ROWS: Final[Mapping[Reason, ReasonRow]] = MappingProxyType({
    Reason.BAD_REQUEST: ReasonRow(
        Code.INVALID_ARGUMENT, Exit.DATA, Remedy.STOP,
        "what was asked or handed over is malformed"),
    Reason.OUT_OF_IMAGE: ReasonRow(
        Code.OUT_OF_RANGE, Exit.DATA, Remedy.STOP,
        "a page past the end of the image was named"),
    Reason.NO_SUCH_IMAGE: ReasonRow(
        Code.NOT_FOUND, Exit.DATA, Remedy.STOP,
        "there is no image or session of this name"),
    Reason.ALREADY_ATTACHED: ReasonRow(
        Code.ALREADY_EXISTS, Exit.UNAVAILABLE, Remedy.STOP,
        "the session has another target, or the name another meaning"),
    Reason.WRONG_PHASE: ReasonRow(
        Code.FAILED_PRECONDITION, Exit.DATA, Remedy.STOP,
        "the session is not in a phase that allows this"),
    Reason.SUPERSEDED: ReasonRow(
        Code.ABORTED, Exit.UNAVAILABLE, Remedy.STOP,
        "a newer worker has taken over this VM"),
    Reason.MISMATCH: ReasonRow(
        Code.FAILED_PRECONDITION, Exit.DATA, Remedy.STOP,
        "the two ends disagree on layout, content, versions or digests"),
    Reason.BUSY: ReasonRow(
        Code.RESOURCE_EXHAUSTED, Exit.TRY_AGAIN, Remedy.RETRY,
        "a limit is reached"),
    Reason.NO_MEMORY: ReasonRow(
        Code.RESOURCE_EXHAUSTED, Exit.NO_MEMORY, Remedy.PAUSE,
        "the tmpfs, the memory limit or the pool of huge pages is full"),
    Reason.GOING_AWAY: ReasonRow(
        Code.UNAVAILABLE, Exit.UNAVAILABLE, Remedy.RETRY,
        "the other end is not reachable, drains or restarts"),
    Reason.TOO_SLOW: ReasonRow(
        Code.DEADLINE_EXCEEDED, Exit.TRY_AGAIN, Remedy.RETRY,
        "nothing was heard in time"),
    Reason.UNSUPPORTED: ReasonRow(
        Code.UNIMPLEMENTED, Exit.SYSTEM, Remedy.STOP,
        "this kernel, VMM or peer cannot do what is needed"),
    Reason.NOT_ALLOWED: ReasonRow(
        Code.PERMISSION_DENIED, Exit.SYSTEM, Remedy.STOP,
        "a right is missing"),
    Reason.CANCELLED: ReasonRow(
        Code.CANCELLED, Exit.TRY_AGAIN, Remedy.STOP,
        "it was cancelled"),
    Reason.NO_VMM: ReasonRow(
        Code.FAILED_PRECONDITION, Exit.UNAVAILABLE, Remedy.STOP,
        "the VMM is not there yet, or gone"),
    Reason.BUG: ReasonRow(
        Code.INTERNAL, Exit.BUG, Remedy.STOP,
        "a fault of ours: please report it with the log"),
})

REASON_TRAILER: Final = "pageferry-reason"
RETRY_AFTER_TRAILER: Final = "pageferry-retry-after-ms"


def reason_from_status(code: int, name: str | None) -> Reason:
    """The reason of a failed call: its status code and the value of its trailer, if it had one.

    A status without the trailer, or with a name that is none of ours, came from a library or a proxy: the
    call may be made again, unless the other end does not know it.
    """
    if name is not None and name in Reason.__members__:
        return Reason[name]
    if code == Code.UNIMPLEMENTED:
        return Reason.UNSUPPORTED
    return Reason.GOING_AWAY


class PageferryError(Exception):
    """Every refusal of ours: the reason, what happened, and what somebody can do about it."""

    def __init__(
        self, reason: Reason, message: str, remedy: str = "", *, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(reason, message, remedy)
        self.reason = reason
        self.message = message
        self.remedy = remedy
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    @property
    def row(self) -> ReasonRow:
        return ROWS[self.reason]

    @property
    def exit_code(self) -> int:
        return int(self.row.exit)
