# SPDX-License-Identifier: Apache-2.0
"""Orders to a pager, each awaited until its event answers it; all other events go to whoever decides."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from faultclient.pager import EventKind, PageCounts, PagerEvent, PagerFds
from faultclient.session import heed
from pageferry.reasons import PageferryError, Reason

# Held in other words: nothing newer is owed for these.
OWED: Final = ("MISSING", "WANTED")


class MovingPager(Protocol):
    """What a move asks of its pager."""

    def event_fd(self) -> int: ...
    def events(self) -> Iterator[PagerEvent]: ...
    def pages(self) -> PageCounts: ...
    def counters(self) -> dict[str, int]: ...
    def round(self, *, open_new: bool, cookie: int = 0) -> None: ...
    def arm(self, cookie: int = 0) -> None: ...
    def manifest(self) -> bytes: ...
    def fds(self) -> PagerFds: ...
    def unregister(self) -> None: ...
    def close(self) -> None: ...


class Orders:
    """Of one pager, from its start to close()."""

    def __init__(self, pager: MovingPager, take: Callable[[PagerEvent], None]) -> None:
        self._pager = pager
        self._take = take
        self._cookies = itertools.count(1)
        self._answers: dict[tuple[EventKind, int], asyncio.Future[PagerEvent]] = {}
        self._described = self._awaited(EventKind.ATTACHED, 0)
        self._let_in = self._awaited(EventKind.PHASE, 0)
        self._heeding = asyncio.create_task(heed(pager.event_fd(), self._catch_up))

    def _catch_up(self) -> None:
        for event in self._pager.events():
            if event.order_refused and self._refused(event):
                continue
            answered = self._answers.pop((event.kind, event.cookie), None)
            if answered is not None and not answered.done():
                answered.set_result(event)
            self._take(event)

    def _refused(self, event: PagerEvent) -> bool:
        """One order, and nothing else has changed. False: it was none of ours."""
        keys = [(EventKind.ROUND, event.cookie), (EventKind.ARMED, event.cookie)]
        ours = [self._answers.pop(key) for key in keys if key in self._answers]
        for answered in ours:
            if not answered.done():
                answered.set_exception(PageferryError(event.reason or Reason.BUG, event.text))
        return bool(ours)

    def _awaited(self, kind: EventKind, cookie: int) -> asyncio.Future[PagerEvent]:
        future: asyncio.Future[PagerEvent] = asyncio.get_running_loop().create_future()
        self._answers[kind, cookie] = future
        return future

    async def attached(self) -> None:
        """The page server has described the image, and let us in: it tells the session's phase then."""
        await self._described
        await self._let_in

    async def round(self, *, open_new: bool) -> PagerEvent:
        """The map of all versions has been read; of a new round, or as it is."""
        cookie = next(self._cookies)
        answer = self._awaited(EventKind.ROUND, cookie)
        self._pager.round(open_new=open_new, cookie=cookie)
        return await answer

    async def arm(self) -> None:
        """Faults are resolved from now on."""
        cookie = next(self._cookies)
        answer = self._awaited(EventKind.ARMED, cookie)
        self._pager.arm(cookie)
        await answer

    def missing(self) -> int:
        """Pages whose newest bytes, as far as the map has been read, are not here."""
        states = self._pager.pages().states
        return sum(states[name] for name in OWED)

    def close(self) -> None:
        """No event is taken any more; what is awaited will never come."""
        self._heeding.cancel()
        for future in self._answers.values():
            future.cancel()
