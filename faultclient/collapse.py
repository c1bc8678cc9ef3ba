# SPDX-License-Identifier: Apache-2.0
"""Huge pages again, once every page is the guest's: `--collapse`. docs/huge-pages.md has the whole of it.

The pass runs on a thread of its own beside the pager, about a millisecond for 2 MiB. Nothing depends on it:
what it cannot do is logged, and the VM goes on with small pages.
"""

import asyncio
import time
from contextlib import suppress
from typing import Protocol

from faultclient.pager import Collapsed, CollapseProgress
from faultclient.session import Session
from pageferry.phases import Phase
from pageferry.reasons import PageferryError
from pageferry.service.logs import log


class Collapsing(Protocol):
    """Of a pager, what is asked here."""

    def collapse(self, progress: CollapseProgress) -> Collapsed: ...


class Collapse:
    """One VM's pass; give_up() at any time, on the event loop. `done` is what came of it, if it was done."""

    def __init__(self, pager: Collapsing, session: str) -> None:
        self.done: Collapsed | None = None
        self._pager = pager
        self._session = session
        self._progress = CollapseProgress()

    def give_up(self) -> None:
        self._progress.cancel()

    async def run(self) -> None:
        """The pager is not closed before this has returned; cancelled, it still waits for its thread."""
        began_s = time.monotonic()
        work = asyncio.ensure_future(asyncio.to_thread(self._pager.collapse, self._progress))
        try:
            self.done = await asyncio.shield(work)
        except asyncio.CancelledError:
            self.give_up()
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            log.info("collapse_ended", session=self._session, by=str(work.exception() or "its own end"))
            raise
        except PageferryError as error:
            log.warning("not_collapsed", session=self._session, reason=error.reason.name, text=str(error))
        if self.done is not None:
            self._say(self.done, int((time.monotonic() - began_s) * 1000))

    def _say(self, done: Collapsed, took_ms: int) -> None:
        figures = {"pieces": done.extents, "full": done.full, "huge_before": done.huge_before}
        log.info("collapsed", session=self._session, **figures, huge=done.huge, took_ms=took_ms)
        if done.why_fewer:
            log.warning("not_all_collapsed", session=self._session, text=done.why_fewer)


async def when_complete(session: Session, collapse: Collapse) -> None:
    """Waits until all pages are the guest's, and does it; not at all when the session ends before."""
    while session.phase is not Phase.COMMITTED and not session.ended:
        await session.changed(session.revision)
    if session.phase in (Phase.COMMITTED, Phase.RELEASED):
        await collapse.run()
