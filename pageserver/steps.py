# SPDX-License-Identifier: Apache-2.0
"""What carries a session: its record, its place in the table of phases, and who is told of it.

A step is on disk before anything follows from it, then at the data port's gate, then before whoever watches.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final

from pageferry.phases import ENDS, Event, Phase, Side, legal, step
from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records
from pageferry.service.logs import log
from pageserver.dataplane import DataPlane, Right, SessionGate
from pageserver.record import SourceRecord

# A target may attach before this server has heard that another one has: the gate itself knows to whom the
# session is bound. No round once the guest is being stopped.
RIGHTS: Final = {
    Phase.CREATED: Right.PAGES | Right.ROUNDS,
    Phase.PRECOPY: Right.PAGES | Right.ROUNDS,
    Phase.SWITCHOVER: Right.PAGES,
    Phase.POSTCOPY: Right.PAGES,
    Phase.COMMITTED: Right.PAGES,
}


@dataclass(frozen=True, slots=True)
class Means:
    """What the sessions of a server work with. `begin` runs something beside, to its end; `changed` is called
    after each change of a session, `settled` when nothing of it is under way any more."""

    plane: DataPlane
    records: Records
    begin: Callable[[str, Coroutine[Any, Any, None]], "asyncio.Task[None]"]
    changed: Callable[[], None]
    settled: Callable[[str], None]


class Steps:
    """Each change counts `revision` up. `at_gate`: the data port knows the session."""

    def __init__(self, record: SourceRecord, means: Means, *, at_gate: bool, precopy: bool) -> None:
        self.record = record
        self.means = means
        self.revision = 1
        self.at_gate = at_gate
        self._precopy = precopy
        self._pauses: dict[Reason, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._news = asyncio.Event()

    @property
    def name(self) -> str:
        return self.record.terms.session

    @property
    def image(self) -> str:
        return self.record.terms.image

    @property
    def phase(self) -> Phase:
        return self.record.phase

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def paused(self) -> Reason | None:
        """Why nothing moves now; the newest of several."""
        return next(reversed(self._pauses), None)

    @property
    def message(self) -> str:
        return next(reversed(self._pauses.values()), self.record.message)

    # ------------------------------------------------------------------------------------------------ changes

    def may(self, event: Event) -> bool:
        return legal(Side.SOURCE, self.phase, event, self.record.handed_over)

    def move(self, event: Event, **changes: Any) -> None:
        """One step of the table. PageferryError, and nothing has changed: it must be recorded and cannot."""
        handed_over = self.record.handed_over
        after = step(Side.SOURCE, self.phase, event, handed_over)
        self._keep(
            replace(
                self.record,
                phase=after,
                phase_since=time.time(),
                handed_over=handed_over or event is Event.HANDED_OVER,
                **changes,
            )
        )
        log.info("phase", session=self.name, phase=after.name, because=event.name)
        self._show()

    def note(self, **changes: Any) -> None:
        """Something else of the record. PageferryError as with move()."""
        self._keep(replace(self.record, **changes))
        self._show()

    def pause(self, reason: Reason, message: str) -> None:
        self._pauses.pop(reason, None)
        self._pauses[reason] = message
        log.warning("paused", session=self.name, reason=reason.name, text=message)
        self.tell()

    def go_on(self, *reasons: Reason) -> None:
        """These pauses are over; without any, all."""
        for reason in reasons or tuple(self._pauses):
            if self._pauses.pop(reason, None) is not None:
                log.info("resumed", session=self.name, reason=reason.name)
                self.tell()

    async def change(self) -> None:
        """Returns after the next one."""
        await self._news.wait()

    def gate(self) -> SessionGate:
        rights = RIGHTS.get(self.phase, Right.NONE)
        return SessionGate(
            session=self.name,
            image=self.image,
            token_sha256=self.record.terms.token_sha256,
            rights=rights if self._precopy else rights & ~Right.ROUNDS,
            phase=self.phase,
            cancel_requested=self.record.cancel_requested,
            manifest_digest=self.record.manifest_digest,
        )

    def _keep(self, record: SourceRecord) -> None:
        """Before the hand-over a full disk may not keep a guest standing still: with an older record, as with
        none, a restart lets it run too."""
        try:
            self.means.records.write(self.name, record.to_fields())
        except PageferryError as error:
            if record.handed_over:
                raise
            log.error("not_recorded", session=self.name, text=str(error))
        self.record = record

    def _show(self) -> None:
        if self.at_gate:
            try:
                self.means.plane.set_session(self.gate())
            except PageferryError as error:
                log.error("bug", session=self.name, text=f"the data port refuses its session: {error}")
        self.tell()

    def tell(self) -> None:
        """Whoever watches shall look."""
        self.revision += 1
        self._news.set()
        self._news = asyncio.Event()
        self.means.changed()

    # ------------------------------------------------------------------------------------------------- timers

    def after(self, what: str, seconds: float, act: Callable[[], Any]) -> None:
        """At most one of a name."""
        self.not_after(what)
        self._timers[what] = asyncio.get_running_loop().call_later(seconds, act)

    def not_after(self, *what: str) -> None:
        """Without any name: none of them."""
        for name in what or tuple(self._timers):
            if (timer := self._timers.pop(name, None)) is not None:
                timer.cancel()
