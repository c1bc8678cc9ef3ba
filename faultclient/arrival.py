# SPDX-License-Identifier: Apache-2.0
"""The guest is accepted here for ever: from ACCEPTED to the session's end.

Three things go on side by side, and none waits for another: the guest is let run (again, if that fails: a
lock on its disk may still be held), the source is told, and the pages that are missing arrive. When all are
here that is reported too, and only its answer lets us go. The VMM's own end is the one thing that ends this.

A VM that is to move on is handed on as soon as it runs; then only the page server that has it lets us go.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from faultclient.asking import SourceFacts, pauses_s, report
from faultclient.beside import beside
from faultclient.collapse import Collapse
from faultclient.move import Move
from faultclient.onward import Onward
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
        self._onward = self._way_onward()

    async def run(self) -> None:
        """Until the session has ended, and the source has heard of it."""
        async with asyncio.TaskGroup() as tasks:
            resuming = tasks.create_task(self._let_run())
            reporting = tasks.create_task(self._report_accepted())
            moving_on = tasks.create_task(beside("moving on", self._hand_on(resuming)))
            gone = tasks.create_task(self._move.vmm_gone.wait())
            complete = tasks.create_task(self._move.complete.wait())
            await asyncio.wait({gone, complete}, return_when=asyncio.FIRST_COMPLETED)
            if complete.done() or self._nothing_missing():
                counts = self._commit()
                collapsing = tasks.create_task(beside("huge pages", self._collapse()))
                reporting.cancel()  # COMMITTED tells that too
                reporting = tasks.create_task(self._report_committed(counts))
                needed = tasks.create_task(self._until_free(reporting, resuming, moving_on))
                await asyncio.wait({gone, needed}, return_when=asyncio.FIRST_COMPLETED)
                moving_on.cancel()
                needed.cancel()
                await self._let_go(gone=gone.done())
                await asyncio.wait({collapsing})
            else:
                moving_on.cancel()
                await self._end(Event.VMM_GONE, Reason.NO_VMM, "the VMM has exited with pages missing")
            self._move.close_pager()
            await reporting
            for task in (resuming, gone, complete):
                task.cancel()

    def _nothing_missing(self) -> bool:
        """When the VMM has ended: the last page may have come a moment ago, and not be mapped yet."""
        pages = self._move.pager.pages()
        return pages.here == pages.total

    # ----------------------------------------------------------------------------------------- the guest runs

    async def _let_run(self) -> None:
        for wait_s in pauses_s():
            try:
                await self._move.adapter.resume()
                break
            except PageferryError as error:
                self._session.pause(error.reason, f"the guest does not run yet: {error}", what=VMM)
            except Exception as error:  # noqa: BLE001  # a fault of ours is no reason to let it stand still
                log.error("bug", session=self._session.name, exc_info=error)
                text = f"the guest does not run yet: {type(error).__name__}: {error}"
                self._session.pause(Reason.BUG, text, what=VMM)
            await asyncio.sleep(wait_s)
        self._session.resume(what=VMM)
        self._session.figures.downtime_us = self._handed_over.standing_us()
        log.info("runs", session=self._session.name, downtime_us=self._session.figures.downtime_us)
        self._session.tell()

    def _report_accepted(self) -> Coroutine[Any, Any, None]:
        async def record() -> SourceFacts:
            return await self._move.source.record(Phase.POSTCOPY, digest=self._handed_over.digest)

        return report(self._session, Phase.POSTCOPY, record, HEARD_ACCEPTED)

    # ---------------------------------------------------------------------------------------------- moving on

    def _way_onward(self) -> Onward | None:
        vm = self._session.vm
        if vm is None or vm.onward is None:
            return None
        return Onward(
            self._session.image,
            vm.onward,
            pager=self._move.pager,
            regions=vm.regions,
            pid=vm.vmm_pid,
            leaving=self._move.leaving,
        )

    async def _hand_on(self, resuming: asyncio.Task[None]) -> None:
        """Once it runs: until then its control socket is ours."""
        if self._onward is not None:
            await asyncio.wait({resuming})
            await self._onward.run()

    # ------------------------------------------------------------------------------------ every page is here

    def _commit(self) -> dict[str, int]:
        states = self._move.pager.pages().states
        if not states["POISONED"]:
            self._arrived()
        else:
            # They stay intercepted: somebody must go on answering for them.
            log.warning("poison_kept", session=self._session.name, pages=states["POISONED"])
        self._session.happen(Event.COMPLETE)
        owned = states["OWNED"] + states["CACHED"]
        return {"owned": owned, "zero": states["ZERO"], "poisoned": states["POISONED"]}

    async def _collapse(self) -> None:
        """Huge pages again, if they are wanted: the pager's end waits for that, the session's does not."""
        vm = self._session.vm
        if vm is None or not vm.huge_pages:
            return
        collapse = Collapse(vm.pager, self._session.name)
        leaving = asyncio.create_task(self._move.leaving.wait())
        leaving.add_done_callback(lambda _: collapse.give_up())
        try:
            await collapse.run()
        finally:
            leaving.cancel()

    def _arrived(self) -> None:
        if self._onward is not None and not self._keeps:
            self._onward.arrived()

    @property
    def _keeps(self) -> bool:
        """As long as the VMM lives, poisoned or not."""
        return self._session.vm is not None and self._session.vm.keep_registration

    async def _until_free(self, *tasks: asyncio.Task[None]) -> None:
        """Until these are done, however they end (what they raise is the group's business), and nobody has to
        answer for any page: with poison, also some that came late, that is when all of it is cleared."""
        await self._without_poison()
        await asyncio.wait(tasks)
        await self._without_poison()

    async def _without_poison(self) -> None:
        while self._keeps or self._move.pager.pages().states["POISONED"]:
            await self._session.changed(self._session.revision)
        self._arrived()

    def _report_committed(self, counts: dict[str, int]) -> Coroutine[Any, Any, None]:
        digest = self._move.pager.manifest()

        async def record() -> SourceFacts:
            return await self._move.source.record(Phase.COMMITTED, digest=digest, **counts)

        return report(self._session, Phase.COMMITTED, record, HEARD_COMMITTED)

    async def _let_go(self, *, gone: bool) -> None:
        """The source has heard, the guest runs, a page server has the VM if one is to; or the VMM has exited:
        nobody needs pages any more."""
        if gone:
            await self._end(Event.VMM_GONE, None, "the VMM has exited")
        else:
            if self._onward is None or not self._onward.kept:
                self._move.pager.unregister()
            await self._end(Event.DETACHED, None, "")

    async def _end(self, event: Event, reason: Reason | None, message: str) -> None:
        await self._move.keep(event, reason, message)
        self._session.pauses.clear()
        if reason is None:
            self._session.message = message
            self._session.happen(event)
        else:
            self._session.fail(event, reason, message)
