# SPDX-License-Identifier: Apache-2.0
"""A session: one VM, from its hand-off to the moment when nobody needs us any more.

Decides; knows neither grpc nor sockets. It asks phases.py what may happen and orders its pager; what happens
it learns from the pager's events.
"""

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from faultclient.pager import EventKind, PagerEvent
from faultclient.vms import Vm
from pageferry.phases import ENDS, Event, Phase, Side, legal, step
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

# What somebody can do about it, where the text that comes with a reason does not say.
REMEDIES: Final = {
    Reason.NO_SUCH_IMAGE: "name one that `pageserver serve` was given, with --image",
    Reason.GOING_AWAY: "start `pageserver serve` there, or mend --data-address",
    Reason.TOO_SLOW: "see what keeps the page server, or give it longer with --attach-timeout",
    Reason.NO_VMM: "restore the VM anew",
}


def with_remedy(error: PageferryError) -> PageferryError:
    return PageferryError(error.reason, error.message, error.remedy or REMEDIES.get(error.reason, ""))


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
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def paused(self) -> Reason | None:
        """Why nothing moves now; the newest of several."""
        return next(reversed(self.pauses), None)

    def error(self) -> PageferryError | None:
        """Why the session failed, if it did."""
        return with_remedy(PageferryError(self.failure, self.message)) if self.failure is not None else None

    # ------------------------------------------------------------------------------------------ what happens

    def start(self) -> None:
        """Before the first event. An order to arm waits in the pager until the image is described: so the
        guest does not depend on when this process has imported the rest of itself."""
        if self.postcopy is Postcopy.AT_ONCE:
            self.vm.pager.arm()

    def catch_up(self) -> None:
        """Takes what the pager has told meanwhile. After the session's end nothing is taken any more: that
        the VMM exits, for instance, is nobody's business then."""
        for event in () if self.ended else self.vm.pager.events():
            self.take(event)
            if self.ended:
                return

    def take(self, event: PagerEvent) -> None:
        """One event of the pager."""
        reason = event.reason or Reason.BUG
        match event.kind:
            case EventKind.ATTACHED:
                self.attached = True
                log.info("attached", session=self.name, image=self.vm.image, content_id=f"{event.value:016x}")
            case EventKind.POPULATED:
                log.info("populated", session=self.name)
                if self.postcopy is Postcopy.FORBID:
                    self.vm.pager.arm()
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
                if not self._fail(Event.FAILED, reason, event.text):
                    self._alarm(event)
            case EventKind.VMM_GONE:
                lost = self.phase is not Phase.COMMITTED
                self._fail(Event.VMM_GONE, Reason.NO_VMM if lost else None, event.text)
            case EventKind.PAUSED:
                self.pauses[reason] = self.message = event.text
                log.warning("paused", session=self.name, reason=reason.name, text=event.text)
            case EventKind.RESUMED:
                self.pauses.pop(reason, None)
                self.message = next(reversed(self.pauses.values()), "")
                log.info("resumed", session=self.name, after_ms=event.value // 1_000_000)
            case EventKind.ALARM:
                self._alarm(event)
            case EventKind.EARLY_FAULT:
                log.warning("early_fault", session=self.name, page=event.page, text=event.text)
            case EventKind.POISONED:
                log.warning("poisoned", session=self.name, page=event.page, was_mapped=bool(event.value))
        self._tell()

    def cancel(self, reason: Reason, message: str) -> bool:
        """Gives the session up. False, and nothing has changed, once the guest may run here: nobody ends it
        then, or its memory would stay in two places for ever. False too when it has ended already."""
        self.catch_up()  # it may have been armed a moment ago
        event = Event.CANCELLED if reason is Reason.CANCELLED else Event.FAILED
        given_up = self._fail(event, reason, message)
        if given_up:
            self._tell()
        return given_up

    def _move(self, event: Event) -> None:
        self.phase = step(Side.TARGET, self.phase, event)
        self.phase_since = time.time()
        log.info("phase", session=self.name, phase=self.phase.name, because=event.name)

    def _fail(self, event: Event, reason: Reason | None, message: str) -> bool:
        """The session ends by this event, if the table has it so."""
        if not legal(Side.TARGET, self.phase, event):
            return False
        self.failure = reason
        self.message = message
        self._move(event)
        return True

    def _alarm(self, event: PagerEvent) -> None:
        self.message = event.text
        log.error("alarm", session=self.name, page=event.page, text=event.text)
        self.log_trace()

    def log_trace(self) -> None:
        """The pager's last steps."""
        for line in self.vm.pager.trace():
            log.warning("trace", session=self.name, step=line)

    # -------------------------------------------------------------------------------------- who waits for it

    def _tell(self) -> None:
        self.revision += 1
        self._news.set()
        self._news = asyncio.Event()

    async def changed(self, seen_revision: int) -> None:
        """Returns once `revision` is above seen_revision."""
        while self.revision <= seen_revision:
            await self._news.wait()

    async def over(self) -> None:
        """Returns once it has ended."""
        while not self.ended:
            await self._news.wait()


async def follow(session: Session) -> None:
    """Feeds the pager's events to its session until that has ended.

    The pager of a session that was given up is closed at once: it could still be armed otherwise, by a page
    server that appears this very moment, and its guest begin to run just before we leave it.
    """
    loop = asyncio.get_running_loop()
    event_fd = session.vm.pager.event_fd()
    ready = asyncio.Event()
    loop.add_reader(event_fd, ready.set)
    over = loop.create_task(session.over())
    over.add_done_callback(lambda _: ready.set())
    try:
        while not session.ended:
            ready.clear()
            session.catch_up()
            if not session.ended:
                await ready.wait()
    finally:
        over.cancel()
        loop.remove_reader(event_fd)
        if session.phase is Phase.ABORTED:
            session.vm.pager.close()
