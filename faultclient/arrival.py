# SPDX-License-Identifier: Apache-2.0
"""The guest is accepted here for ever: from ACCEPTED to the session's end.

Three things go on side by side, and none waits for another: the guest is let run (again, if that fails: a
lock on its disk may still be held), the source is told, and the pages that are missing arrive. When all are
here that is reported too, and only its answer lets us go. The VMM's own end is the one thing that ends this.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from faultclient.asking import SourceFacts, pauses_s, report
from faultclient.move import Move
from faultclient.session import VMM
from pageferry.phases import Event, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log

HEARD_ACCEPTED: Final = frozenset({Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED, Phase.LOST})
# An end at LOST is an answer too: nobody waits for this report there.
HEARD_COMMITTED: Final = frozenset({Phase.COMMITTED, Phase.RELEASED, Phase.LOST})


class Arrival:
    def __init__(self, move: Move) -> None:
        self._move = move
        self._session = move.session
        assert move.handed_over is not None
        self._handed_over = move.handed_over

    async def run(self) -> None:
        """Until the session has ended, and the source has heard of it."""
        async with asyncio.TaskGroup() as tasks:
            resuming = tasks.create_task(self._let_run())
            reporting = tasks.create_task(self._report_accepted())
            gone = tasks.create_task(self._move.vmm_gone.wait())
            complete = tasks.create_task(self._move.complete.wait())
            await asyncio.wait({gone, complete}, return_when=asyncio.FIRST_COMPLETED)
            if complete.done():
                counts = self._commit()
                reporting.cancel()  # COMMITTED tells that too
                reporting = tasks.create_task(self._report_committed(counts))
                await self._until_let_go(gone, reporting, resuming, poisoned=counts["poisoned"])
            else:
                await self._end(Event.VMM_GONE, Reason.NO_VMM, "the VMM has exited with pages missing")
            await reporting
            for task in (resuming, gone, complete):
                task.cancel()

    # ----------------------------------------------------------------------------------------- the guest runs

    async def _let_run(self) -> None:
        for wait_s in pauses_s():
            try:
                await self._move.adapter.resume()
                break
            except PageferryError as error:
                self._session.pause(error.reason, f"the guest does not run yet: {error}", what=VMM)
            await asyncio.sleep(wait_s)
        self._session.resume(what=VMM)
        self._session.figures.downtime_us = self._handed_over.standing_us()
        log.info("runs", session=self._session.name, downtime_us=self._session.figures.downtime_us)
        self._session.tell()

    def _report_accepted(self) -> Coroutine[Any, Any, None]:
        async def record() -> SourceFacts:
            return await self._move.source.record(Phase.POSTCOPY, digest=self._handed_over.digest)

        return report(self._session, Phase.POSTCOPY, record, HEARD_ACCEPTED)

    # ------------------------------------------------------------------------------------ every page is here

    def _commit(self) -> dict[str, int]:
        states = self._move.pager.pages().states
        if states["POISONED"]:
            # They stay intercepted: somebody must go on answering for them.
            log.warning("poison_kept", session=self._session.name, pages=states["POISONED"])
        self._session.happen(Event.COMPLETE)
        return {"owned": states["OWNED"], "zero": states["ZERO"], "poisoned": states["POISONED"]}

    def _report_committed(self, counts: dict[str, int]) -> Coroutine[Any, Any, None]:
        digest = self._move.pager.manifest()

        async def record() -> SourceFacts:
            return await self._move.source.record(Phase.COMMITTED, digest=digest, **counts)

        return report(self._session, Phase.COMMITTED, record, HEARD_COMMITTED)

    async def _until_let_go(
        self,
        gone: "asyncio.Task[Any]",
        reporting: asyncio.Task[None],
        resuming: asyncio.Task[None],
        *,
        poisoned: int,
    ) -> None:
        """The source has heard, and the guest runs; or the VMM has exited: nobody needs pages any more."""
        needed = asyncio.gather(reporting, resuming)
        waited_for: set[asyncio.Future[Any]] = {gone} if poisoned else {gone, needed}
        await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            await self._end(Event.VMM_GONE, None, "the VMM has exited")
        else:
            await self._end(Event.DETACHED, None, "")

    async def _end(self, event: Event, reason: Reason | None, message: str) -> None:
        await self._move.keep(event, reason, message)
        self._session.pauses.clear()
        if reason is None:
            self._session.message = message
            self._session.happen(event)
        else:
            self._session.fail(event, reason, message)
        self._move.close_pager()
