# SPDX-License-Identifier: Apache-2.0
"""A lazy restore: an image that does not change, and nobody at the other end who hands over.

Decides nothing but when to arm; what happens it learns from the pager's events.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from faultclient.pager import EventKind, PagerEvent
from faultclient.session import Postcopy, Session, ringing
from faultclient.vms import Vm
from pageferry.phases import Event, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log


@dataclass(slots=True)
class Restore(Session):
    """Changes only in take() and cancel()."""

    postcopy: Postcopy = Postcopy.AT_ONCE

    @classmethod
    def of(cls, name: str, vm: Vm, postcopy: Postcopy) -> "Restore":
        return cls(name=name, image=vm.image, data_address=vm.data_address, vm=vm, postcopy=postcopy)

    @property
    def taken(self) -> Vm:
        """It has its VM from the beginning."""
        assert self.vm is not None
        return self.vm

    @property
    def lands_first(self) -> bool:
        """The guest runs when all pages are here: as asked, or since they are too large to be waited for."""
        return self.postcopy is Postcopy.FORBID or self.taken.lands_first

    def start(self) -> None:
        """Before the first event. An order to arm waits in the pager until the image is described: so the
        guest does not depend on when this process has imported the rest of itself."""
        if self.lands_first:
            log.info("landing_first", session=self.name)
        else:
            self.taken.pager.arm()

    def catch_up(self) -> None:
        """Takes what the pager has told meanwhile. After the session's end nothing is taken any more: that
        the VMM exits, for instance, is nobody's business then."""
        for event in () if self.ended or self.vm is None else self.vm.pager.events():
            self.take(event)
            if self.ended:
                return

    def take(self, event: PagerEvent) -> None:
        """One event of the pager."""
        if self.poisoning.answered(event):
            return
        match event.kind:
            case EventKind.POPULATED:
                log.info("populated", session=self.name)
                if self.lands_first:
                    self.taken.pager.arm()
            case EventKind.ARMED:
                self.happen(Event.ARMED)
            case EventKind.COMPLETE:
                self.happen(Event.COMPLETE)
                if event.value:
                    # Poisoned pages stay intercepted: somebody must go on answering for them.
                    log.warning("poison_kept", session=self.name, pages=event.value)
                elif not self.taken.keep_registration:
                    self.happen(Event.DETACHED)
            case EventKind.POISON_CLEARED:
                self.note(event)
                self._detach_if_cleared()
            case EventKind.FAILED:
                if not self.fail(Event.FAILED, event.reason or Reason.BUG, event.text):
                    self.note(event)
            case EventKind.VMM_GONE:
                lost = self.phase is not Phase.COMMITTED
                self.fail(Event.VMM_GONE, Reason.NO_VMM if lost else None, event.text)
            case _:
                self.note(event)

    def _detach_if_cleared(self) -> None:
        """Nothing is missing, and nobody has to answer for anything any more."""
        pager = self.taken.pager
        kept = self.taken.keep_registration or pager.pages().states["POISONED"]
        if self.phase is Phase.COMMITTED and not kept:
            pager.unregister()
            self.happen(Event.DETACHED)

    def cancel(self, reason: Reason, message: str) -> bool:
        """Gives the session up. False, and nothing has changed, once the guest may run here: nobody ends it
        then, or its memory would stay in two places for ever. False too when it has ended already."""
        self.catch_up()  # it may have been armed a moment ago
        event = Event.CANCELLED if reason is Reason.CANCELLED else Event.FAILED
        return self.fail(event, reason, message)


async def follow(restore: Restore) -> None:
    """Feeds the pager's events to its session until that has ended.

    The pager of a session that was given up is closed at once: it could still be armed otherwise, by a page
    server that appears this very moment, and its guest begin to run just before we leave it.
    """
    over = asyncio.get_running_loop().create_task(restore.over())
    try:
        with ringing(restore.taken.pager.event_fd()) as bell:
            over.add_done_callback(lambda _: bell.set())
            while not restore.ended:
                bell.clear()
                restore.catch_up()
                if not restore.ended:
                    await bell.wait()
    finally:
        over.cancel()
        if restore.phase is Phase.ABORTED:
            restore.taken.pager.close()


async def give_up_unattached(restore: Restore, timeout_s: float) -> None:
    """A server that cannot be reached before anything depends on it is an error, not a pause."""
    try:
        async with asyncio.timeout(timeout_s):
            while not restore.attached and not restore.ended:
                await restore.changed(restore.revision)
    except TimeoutError:
        why = restore.message or f"the page server at {restore.data_address} has not answered"
        restore.cancel(restore.paused or Reason.GOING_AWAY, why)


class OneSession:
    """The book of `faultclient run`: its one session, and no other will come."""

    closed = True
    begun = 1

    def __init__(self, restore: Restore) -> None:
        self._restore = restore

    def all(self) -> Sequence[Session]:
        return [self._restore]

    async def more(self, seen: int) -> None:
        await asyncio.get_running_loop().create_future()  # never

    def start(self, request: object, token: bytes) -> Session:
        raise PageferryError(
            Reason.UNSUPPORTED, "`faultclient run` has one session, from its start", "use `faultclient serve`"
        )

    def switch_over(self, name: str) -> Session:
        raise PageferryError(Reason.WRONG_PHASE, f"session {name} is a restore: nothing is handed over")

    async def cancel(self, name: str, force_image: str = "", by: str = "") -> Session:
        """Its guest is served as long as this process lives: nothing to force."""
        if not self._restore.cancel(Reason.CANCELLED, "it was cancelled") and not self._restore.ended:
            raise PageferryError(Reason.WRONG_PHASE, "the guest may run here: it needs its pages")
        return self._restore
