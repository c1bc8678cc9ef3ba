# SPDX-License-Identifier: Apache-2.0
"""A session as everybody sees it: one VM, from its beginning to the moment when nobody needs us any more.

What all kinds of session have in common: the phase, which moves by phases.py alone; why nothing moves; the
figures; and who waits for a change. Who decides is beside it: restore.py for an image that does not change,
move.py for a guest that still runs elsewhere. Knows neither grpc nor sockets.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from faultclient.arrivals import Arrivals
from faultclient.pager import EventKind, Pager, PagerEvent
from faultclient.poison import Poisoning, ended
from faultclient.vms import Vm
from pageferry.layout import Layout
from pageferry.phases import ENDS, Event, Phase, Side, legal, step
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.units import PageRun

# For a report; never more than this share of the time.
LOOK_EVERY_S: Final = 0.05
LOOK_SHARE: Final = 0.03
# What somebody can do about it, where the text that comes with a reason does not say.
REMEDIES: Final = {
    Reason.NO_SUCH_IMAGE: "name one that `pageserver serve` was given, with --image",
    Reason.GOING_AWAY: "start `pageserver serve` there, or mend --data-address",
    Reason.TOO_SLOW: "see what keeps the page server, or give it longer with --attach-timeout",
    Reason.NO_VMM: "restore the VM anew",
}


# What a pause may be about: pages do not come; the source does not answer; the VMM does not go on.
PAGES, CONTROL, VMM = "pages", "control", "vmm"


def with_remedy(error: PageferryError) -> PageferryError:
    return PageferryError(error.reason, error.message, error.remedy or REMEDIES.get(error.reason, ""))


class Postcopy(Enum):
    """When the guest may run while pages are missing."""

    AT_ONCE = "at-once"  # from the start: there is no precopy
    ALLOW = "allow"  # of a move: once precopy has converged, or cannot
    FORBID = "forbid"  # only once every page is here


@dataclass(slots=True)
class Figures:
    """Of a move; a restore has none of them."""

    round: int = 0
    dirty_pages: int = 0  # found by the newest round
    dirty_pages_per_second: int = 0
    downtime_us: int = 0  # estimated until SWITCHOVER, then measured


@dataclass(slots=True)
class Session:
    """Each change counts `revision` up and wakes those in changed()."""

    name: str
    image: str
    data_address: str
    vm: Vm | None = None  # None: its hand-off has not come yet, or it was refused before it was touched
    phase: Phase = Phase.CREATED
    phase_since: float = field(default_factory=time.time)  # wall clock, for people
    revision: int = 1
    attached: bool = False
    pauses: dict[tuple[str, Reason], str] = field(default_factory=dict)
    failure: Reason | None = None
    message: str = ""
    cancel_requested: bool = False
    machine: str = ""  # the VMM and its machine type, for people
    figures: Figures = field(default_factory=Figures)
    arrivals: Arrivals | None = None
    machine_layout: Layout | None = None  # by the rule of its machine, as an adapter knows it
    poisoning: Poisoning = field(init=False)
    _began_s: float = field(default_factory=time.monotonic)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.poisoning = Poisoning(self.name)

    @property
    def ended(self) -> bool:
        return self.phase in ENDS

    @property
    def paused(self) -> Reason | None:
        """Why nothing moves now; the newest of several."""
        return next((reason for _, reason in reversed(self.pauses)), None)

    def error(self) -> PageferryError | None:
        """Why the session failed, if it did."""
        return with_remedy(PageferryError(self.failure, self.message)) if self.failure is not None else None

    # ------------------------------------------------------------------------------------------ what happens

    def happen(self, event: Event) -> None:
        """One step of the table. IllegalStepError: it has none."""
        self.phase = step(Side.TARGET, self.phase, event)
        self.phase_since = time.time()
        log.info("phase", session=self.name, phase=self.phase.name, because=event.name)
        self.tell()

    def may(self, event: Event) -> bool:
        return legal(Side.TARGET, self.phase, event)

    def fail(self, event: Event, reason: Reason | None, message: str) -> bool:
        """The session ends by this event, if the table has it so."""
        if not self.may(event):
            return False
        self.failure = reason
        self.message = message
        self.happen(event)
        return True

    def pause(self, reason: Reason, text: str, *, what: str = PAGES) -> None:
        if self.pauses.get((what, reason)) != text:
            self.pauses.pop((what, reason), None)  # so that it is the newest
            self.pauses[what, reason] = self.message = text
            log.warning("paused", session=self.name, reason=reason.name, text=text)
            self.tell()

    def resume(self, reason: Reason | None = None, *, what: str = PAGES, after_ms: int | None = None) -> None:
        """`reason` None: whatever it was."""
        over = [key for key in self.pauses if key[0] == what and reason in (None, key[1])]
        for key in over:
            del self.pauses[key]
            self.message = next(reversed(self.pauses.values()), "")
            log.info("resumed", session=self.name, reason=key[1].name, after_ms=after_ms)
        if over:
            self.tell()

    def note(self, event: PagerEvent) -> None:
        """What a pager tells that is for people, whatever kind of session it is."""
        reason = event.reason or Reason.BUG
        match event.kind:
            case EventKind.ATTACHED:
                self.attached = True
                log.info("attached", session=self.name, image=self.image, content_id=f"{event.value:016x}")
            case EventKind.PAUSED:
                return self.pause(reason, event.text)
            case EventKind.RESUMED:
                return self.resume(reason, after_ms=event.value // 1_000_000)
            case EventKind.FAILED | EventKind.ALARM:
                self.message = event.text
                log.error("alarm", session=self.name, page=event.page, text=event.text)
                self.log_trace()
            case EventKind.EARLY_FAULT:
                log.warning("early_fault", session=self.name, page=event.page, text=event.text)
            case EventKind.POISONED | EventKind.POISON_CLEARED:
                self.poisoning.note(event)
        return self.tell()

    # ------------------------------------------------------------------------------------------------- poison

    @property
    def layout(self) -> Layout | None:
        """Where its memory lies in the guest; what the VMM or an operator says counts most."""
        return (self.vm.layout if self.vm is not None else None) or self.machine_layout

    @property
    def poisoned(self) -> list[PageRun]:
        """Now, in order."""
        return self.vm.pager.poisoned() if self.vm is not None else []

    async def poison(self, runs: Sequence[PageRun]) -> None:
        """These pages are lost from now on. PageferryError: WRONG_PHASE before attaching, and when the
        registration has ended."""
        pager = self._registered()
        await self.poisoning.order(pager.poison, runs, self.over())

    async def clear_poison(self, runs: Sequence[PageRun]) -> None:
        """Those of them that are poisoned are fresh memory from now on."""
        pager = self._registered()
        await self.poisoning.order(pager.clear_poison, runs, self.over())

    def _registered(self) -> Pager:
        if self.ended:
            raise ended(self.name)
        if self.vm is None or not self.attached:
            raise PageferryError(
                Reason.WRONG_PHASE, f"session {self.name} has not attached yet", "wait until it has"
            )
        return self.vm.pager

    def log_trace(self) -> None:
        """The pager's last steps."""
        for line in self.vm.pager.trace() if self.vm is not None else ():
            log.warning("trace", session=self.name, step=line)

    def look(self) -> float:
        """At the page table, for a report; for the last time before the pager is closed. Returns its time."""
        began_s = time.monotonic()
        if self.arrivals is not None and self.vm is not None:
            self.arrivals.look(self.vm.pager, int((began_s - self._began_s) * 1000))
        return time.monotonic() - began_s

    # -------------------------------------------------------------------------------------- who waits for it

    def tell(self) -> None:
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


async def look_on(session: Session) -> None:
    """Looks at the page table now and then, until it is cancelled or the session has ended."""
    assert session.vm is not None
    session.arrivals = Arrivals(session.vm.pager.pages().total)
    while not session.ended:
        await asyncio.sleep(max(LOOK_EVERY_S, session.look() / LOOK_SHARE))


@contextmanager
def ringing(fd: int) -> Iterator[asyncio.Event]:
    """Set whenever the descriptor becomes readable."""
    loop = asyncio.get_running_loop()
    bell = asyncio.Event()
    loop.add_reader(fd, bell.set)
    try:
        yield bell
    finally:
        loop.remove_reader(fd)


async def heed(fd: int, catch_up: Callable[[], None]) -> None:
    """Calls it now, and whenever there may be news, until it is cancelled."""
    with ringing(fd) as bell:
        while True:
            bell.clear()
            catch_up()
            await bell.wait()
