# SPDX-License-Identifier: Apache-2.0
"""Poison of one session: what is ordered of its pager, and the log of what became of every page.

The pager numbers what it tells, from 1 without a gap; so does the log, and a number that has been heard is
heard once.
"""

import asyncio
import itertools
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

from faultclient.pager import EventKind, PagerEvent, Poisoned
from pageferry.poison_log import PoisonLog, What
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.units import PageRun

# Of our orders, apart from those that others number.
FIRST_COOKIE: Final = 1 << 32
# The ring of orders is full for as long as the pager's turn lasts.
BUSY_AGAIN_S: Final = 0.005
# For all that one call asks for. What is ordered goes on.
PATIENCE_S: Final = 5.0
# Lines of a log, not more: all pages are in ListPoison.
SAID_MAX: Final = 16
SAID_IN_S: Final = 10.0
WHATS: Final = (
    (Poisoned.WAS_MAPPED, What.WAS_MAPPED),
    (Poisoned.MAPPED, What.MAPPED),
    (Poisoned.HELD, What.HELD),
)

class Order(Protocol):
    """The pager's poison or clear_poison."""

    def __call__(self, first_page: int, page_count: int, *, cookie: int = 0) -> None: ...


class Poisoning:
    def __init__(self, session: str) -> None:
        self.log = PoisonLog()
        self._session = session
        self._cookies = itertools.count(FIRST_COOKIE)
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._window_s = float("-inf")  # when the pages that are said now began
        self._said = self._unsaid = 0

    # ------------------------------------------------------------------------------------ what the pager says

    def answered(self, event: PagerEvent) -> bool:
        """Whether it answers an order of ours: then nobody else has to know."""
        if event.kind not in (EventKind.DONE, EventKind.FAILED) or event.cookie not in self._asked:
            return False
        asked = self._asked.pop(event.cookie)
        if not asked.done() and event.kind is EventKind.DONE:
            asked.set_result(None)
        elif not asked.done():
            asked.set_exception(PageferryError(event.reason or Reason.BUG, event.text))
        return True

    def note(self, event: PagerEvent) -> None:
        """POISONED or POISON_CLEARED."""
        if event.cookie != self.log.seq + 1:
            log.error("bug", session=self._session, text=f"poison {event.cookie} after {self.log.seq}")
            if event.cookie <= self.log.seq:
                return
        if event.kind is EventKind.POISON_CLEARED:
            run, what = PageRun(event.page, max(event.value, 1)), What.CLEARED
        else:
            run, what = PageRun(event.page, 1), What.POISONED
            for told, meant in WHATS:
                what |= meant if event.value & told else What.POISONED
        self.log.add(run, what)
        self._say(run, what)

    def _say(self, run: PageRun, what: What) -> None:
        """In the log of this process: the first ones, and how many others there were."""
        now_s = time.monotonic()
        if now_s >= self._window_s + SAID_IN_S:
            self._window_s, self._said = now_s, 0
        self._said += 1
        if self._said > SAID_MAX:
            self._unsaid += 1
            return
        log.warning(
            "poison_cleared" if What.CLEARED in what else "poisoned",
            session=self._session,
            page=run.first_page,
            pages=run.page_count,
            was_mapped=What.WAS_MAPPED in what,
            mapped=What.MAPPED in what,
            held=What.HELD in what,
            **({"unsaid": self._unsaid} if self._unsaid else {}),
        )
        self._unsaid = 0

    # ------------------------------------------------------------------------------------------------- orders

    async def order(self, order: Order, runs: Sequence[PageRun], over: Coroutine[Any, Any, None]) -> None:
        """`order` is the pager's, `over` returns when the session ends. Until all of it is done.
        PageferryError: the first refusal; WRONG_PHASE if the session ends meanwhile; TOO_SLOW: it goes on."""
        waits: list[asyncio.Future[None]] = []
        ending = asyncio.create_task(over)
        try:
            async with asyncio.timeout(PATIENCE_S):
                for run in runs:
                    waits.append(await self._ordered(order, run))
                for future in waits:
                    await asyncio.wait({future, ending}, return_when=asyncio.FIRST_COMPLETED)
                    if not future.done():
                        raise ended(self._session)
                    future.result()
        except TimeoutError as error:
            raise PageferryError(
                Reason.TOO_SLOW,
                f"the pager of session {self._session} goes on: not all was done in {PATIENCE_S:g} s",
                "see what is done with ListPoison",
            ) from error
        finally:
            ending.cancel()
            for future in waits:
                future.cancel()

    async def _ordered(self, order: Order, run: PageRun) -> asyncio.Future[None]:
        cookie = next(self._cookies)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked[cookie] = answer
        while True:
            try:
                order(run.first_page, run.page_count, cookie=cookie)
            except PageferryError as error:
                if error.reason is not Reason.BUSY:
                    del self._asked[cookie]
                    raise
                await asyncio.sleep(BUSY_AGAIN_S)
            else:
                return answer


def ended(session: str) -> PageferryError:
    return PageferryError(
        Reason.WRONG_PHASE,
        f"session {session} has no registration any more: nobody here can poison its memory",
        "keep it with --keep-registration of `faultclient`, or let the VMM take the page away itself",
    )
