# SPDX-License-Identifier: Apache-2.0
"""What a move asks of its source, and how it asks again.

Before the guest is accepted here a question has a patience, and an error that trying again cannot help ends
the move. Reports of what is recorded already are repeated until they are answered, for as long as this
process lives: the source lets nothing go without them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from faultclient.session import CONTROL, Session
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason, Remedy
from pageferry.service.logs import log

T = TypeVar("T")

AGAIN_MIN_S: Final = 0.05
AGAIN_MAX_S: Final = 5.0
# The source will never give another answer to ABORTED: it has no such session, or has closed the book on it.
FINAL: Final = frozenset(
    {
        Reason.NO_SUCH_IMAGE,
        Reason.WRONG_PHASE,
        Reason.ALREADY_ATTACHED,
        Reason.SUPERSEDED,
        Reason.UNSUPPORTED,
    }
)


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the source says of the session."""

    phase: Phase
    machine: str = ""  # "qemu 10.0.2, pc-i440fx-7.2"; a VMM without machine types: no comma
    cancel_requested: bool = False
    failure: Reason | None = None
    message: str = ""

    @property
    def machine_type(self) -> str:
        return self.machine.partition(", ")[2]


@dataclass(frozen=True, slots=True)
class HandOverPart:
    """One message of HandOver."""

    as_of: int = 0  # first message
    digest: bytes = b""
    stopped_us: int = 0  # first and last
    state: bytes = field(default=b"", repr=False)
    state_digest: int = 0  # last
    last: bool = False


class Source(Protocol):
    """Each may raise PageferryError, and may be asked again."""

    async def facts(self) -> SourceFacts: ...

    def hand_over(self) -> AsyncGenerator[HandOverPart]: ...

    async def record(
        self, phase: Phase, *, digest: bytes = b"", owned: int = 0, zero: int = 0, poisoned: int = 0
    ) -> SourceFacts: ...

    async def close(self) -> None: ...


def pauses_s() -> Iterator[float]:
    """Between one attempt and the next."""
    wait_s = AGAIN_MIN_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, AGAIN_MAX_S)


async def patiently(session: Session, ask: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """The answer. PageferryError: trying again cannot help, or there has been none in all that time; each
    attempt has a limit of its own."""
    deadline_s = time.monotonic() + patience_s
    for wait_s in pauses_s():
        try:
            answer = await ask()
        except PageferryError as error:
            if error.row.client is not Remedy.RETRY or time.monotonic() + wait_s > deadline_s:
                raise
            session.pause(error.reason, error.message, what=CONTROL)
        else:
            session.resume(what=CONTROL)
            return answer
        await asyncio.sleep(wait_s)
    raise AssertionError("pauses never end")


async def report_aborted(session: Session, source: Source) -> bool:
    """That the guest will never run here, until the source has heard it, or has nothing to hear it with.
    False: it does not take our token. It may be waiting for who shows another."""
    for wait_s in pauses_s():
        try:
            answer = await source.record(Phase.ABORTED)
        except PageferryError as error:
            if error.reason in (*FINAL, Reason.NOT_ALLOWED):
                log.warning("report_refused", session=session.name, phase="ABORTED", text=str(error))
                return error.reason in FINAL
            log.warning("report_again", session=session.name, phase="ABORTED", text=str(error))
        else:
            log.info("reported", session=session.name, phase="ABORTED", source=answer.phase.name)
            return True
        await asyncio.sleep(wait_s)
    raise AssertionError("pauses never end")


async def report(
    session: Session,
    phase: Phase,
    record: Callable[[], Awaitable[SourceFacts]],
    heard: frozenset[Phase],
) -> None:
    """Until the source's answer shows that it has heard. No error ends this: the guest runs here."""
    told: Reason | None = None
    for wait_s in pauses_s():
        try:
            answer = await record()
        except Exception as error:  # noqa: BLE001  # an answer that we do not understand, too
            told = not_heard(session, phase, known(session, error), told)
        else:
            session.resume(what=CONTROL)
            told = None
            if answer.phase in heard:
                log.info("reported", session=session.name, phase=phase.name, source=answer.phase.name)
                return
        await asyncio.sleep(wait_s)


def not_heard(session: Session, phase: Phase, error: PageferryError, told: Reason | None) -> Reason:
    """Why. (A name for the error in the loop would hold all that it came through, the connection too.)"""
    log.warning("report_again", session=session.name, phase=phase.name, text=str(error))
    if told is not error.reason:
        session.resume(what=CONTROL)
    session.pause(error.reason, f"{phase.name} is not yet reported: {error.message}", what=CONTROL)
    return error.reason


def known(session: Session, error: Exception) -> PageferryError:
    """A fault of ours is logged with all that has led to it."""
    if isinstance(error, PageferryError):
        return error
    log.error("bug", session=session.name, exc_info=error)
    return PageferryError(Reason.BUG, f"{type(error).__name__}: {error}", "report it with the log")
