# SPDX-License-Identifier: Apache-2.0
"""A session: one VM, from its hand-off to the moment when nobody needs us any more.

Decides; knows neither grpc nor sockets. It asks phases.py what may happen and orders its pager; what happens
it learns from the pager's events.
"""

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum

from faultclient.pager import EventKind, PagerEvent
from faultclient.vms import Vm
from pageferry.phases import ENDS, Event, Phase, step
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log


class Postcopy(Enum):
    """When the guest may run while pages are missing."""

    AT_ONCE = "at-once"  # as soon as the page server has described the image
    FORBID = "forbid"  # only once every page is here


@dataclass(slots=True)
class Session:
    """Changes only in take() and cancel(); each change counts `revision` up and wakes those in changed()."""

    name: str
    vm: Vm
    postcopy: Postcopy = Postcopy.AT_ONCE
    phase: Phase = Phase.CREATED
    phase_since: float = field(default_factory=time.time)  # wall clock, for people
    revision: int = 1
    attached: bool = False
    pauses: dict[Reason, str] = field(default_factory=dict)
    failure: Reason | None = None
    message: str = ""
    poisoned_events: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def paused(self) -> Reason | None:
        """Why nothing moves now; the newest of several."""
        return next(reversed(self.pauses), None)

    def _move(self, event: Event) -> None:
        self.phase = step(self.phase, event)
        self.phase_since = time.time()
        log.info("phase", session=self.name, phase=self.phase.name, because=event.name)

    def _fail(self, reason: Reason, message: str) -> None:
        self.failure = reason
        self.message = message
        self._move(Event.CANCELLED if reason is Reason.CANCELLED else Event.FAILED)

    def start(self) -> None:
        """Before the first event. An order to arm waits in the pager until the image is described: so the
        guest does not depend on when this process has imported the rest of itself."""
        if self.postcopy is Postcopy.AT_ONCE:
            self.vm.pager.arm()

    async def take(self, event: PagerEvent) -> None:
        """One event of the pager."""
        match event.kind:
            case EventKind.ATTACHED:
                self.attached = True
                log.info("attached", session=self.name, image=self.vm.image, content_id=f"{event.value:016x}")
            case EventKind.ARMED:
                self._move(Event.ARMED)
            case EventKind.COMPLETE:
                self._move(Event.COMPLETE)
                if event.value:
                    # Poisoned pages stay intercepted: somebody must go on answering for them.
                    log.warning("poison_kept", session=self.name, pages=event.value)
                else:
                    self._move(Event.DETACHED)
            case EventKind.FAILED:
                self._fail(event.reason or Reason.BUG, event.text)
            case EventKind.VMM_GONE:
                if self.phase is not Phase.COMMITTED:
                    self.failure = Reason.NO_VMM
                self.message = event.text
                self._move(Event.VMM_GONE)
            case EventKind.PAUSED:
                self.pauses[event.reason or Reason.BUG] = event.text
                self.message = event.text
                log.warning(
                    "paused", session=self.name, reason=(event.reason or Reason.BUG).name, text=event.text
                )
            case EventKind.RESUMED:
                self.pauses.pop(event.reason or Reason.BUG, None)
                self.message = ""
                log.info("resumed", session=self.name, after_ms=event.value // 1_000_000)
            case EventKind.ALARM:
                self.message = event.text
                log.error("alarm", session=self.name, page=event.page, text=event.text)
                for line in self.vm.pager.trace():
                    log.error("trace", session=self.name, step=line)
            case EventKind.EARLY_FAULT:
                log.warning("early_fault", session=self.name, page=event.page, text=event.text)
            case EventKind.POISONED:
                self.poisoned_events += 1
                log.warning("poisoned", session=self.name, page=event.page, was_mapped=bool(event.value))
            case EventKind.POPULATED:
                log.info("populated", session=self.name)
                if self.postcopy is Postcopy.FORBID:
                    self.vm.pager.arm()
        await self._tell()

    async def cancel(self, reason: Reason, message: str) -> None:
        """Gives the session up. IllegalStepError once the guest may run here: nothing ends it then."""
        self._fail(reason, message)
        await self._tell()

    async def _tell(self) -> None:
        self.revision += 1
        async with self._changed:
            self._changed.notify_all()

    async def changed(self, seen_revision: int) -> None:
        """Returns once `revision` is above seen_revision."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.revision > seen_revision)

    def error(self) -> PageferryError | None:
        """Why the session failed, if it did."""
        return PageferryError(self.failure, self.message) if self.failure is not None else None


async def follow(session: Session) -> None:
    """Feeds the pager's events to its session until that has ended."""
    pager = session.vm.pager
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(pager.event_fd(), ready.set)
    try:
        while not session.ended:
            for event in pager.events():
                await session.take(event)
            if not session.ended:
                await ready.wait()
                ready.clear()
    finally:
        loop.remove_reader(pager.event_fd())
