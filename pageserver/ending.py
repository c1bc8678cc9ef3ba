# SPDX-License-Identifier: Apache-2.0
"""What follows from a session's end, once that is recorded: the guest runs here again, or its memory is given
up and its VMM ended. Tried until it is done, by the next page server if this one dies meanwhile.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from pageferry.host.vmm import Vmm
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageserver.steps import Steps
from pageserver.switchover import let_run
from pageserver.vm import Vm

RETRY_S: Final = 1.0


class Ending:
    """Of one session, and what it holds of its VM. `recovered`: an earlier server has begun the session."""

    def __init__(self, steps: Steps, vm: Vm | None, vmm: Vmm | None, *, recovered: bool) -> None:
        self.vm = vm
        self.vmm = vmm
        self._steps = steps
        self._recovered = recovered

    async def give_back(self, stood_still_us: Callable[[], int]) -> None:
        """ABORTED."""
        if self._steps.record.stopped:
            await self._until_done("the guest does not run yet", self._let_run)
            await self._settle(downtime_us=stood_still_us())
        else:
            await self._settle()

    async def give_up_memory(self) -> None:
        """RELEASED or LOST."""
        if self.vm is not None and self.vm.served:
            self.vm.served = False
            with suppress(PageferryError):  # it was removed already
                self._steps.means.plane.remove(self._steps.image)
        await self._until_done("the VMM has not ended yet", self._kill)
        await self._settle()

    async def _let_run(self, vm: Vm, vmm: Vmm) -> None:
        record = self._steps.record
        await let_run(vm, vmm, self._steps.means.plane, ran=record.ran, recovered=self._recovered)
        log.info("runs_again", session=self._steps.name)

    async def _kill(self, _: Vm, vmm: Vmm) -> None:
        await vmm.kill()
        log.info("vmm_ended", session=self._steps.name)

    async def _until_done(self, what: str, work: Callable[[Vm, Vmm], Awaitable[None]]) -> None:
        """Or until there is no VMM any more to do it to."""
        while self.vm is not None and not self.vm.gone:
            try:
                self.vmm = self.vmm or self.vm.adapter()
                await work(self.vm, self.vmm)
            except PageferryError as error:
                self._steps.pause(error.reason, f"{what}: {error}")
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001  # a fault of ours is no reason to leave it undone
                log.error("bug", session=self._steps.name, exc_info=error)
                self._steps.pause(Reason.BUG, f"{what}: {type(error).__name__}")
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _settle(self, **changes: Any) -> None:
        if self.vmm is not None:
            with suppress(PageferryError):  # one that is gone cannot be left as it was found
                await self.vmm.close()
        self.vmm = None
        steps = self._steps
        steps.go_on()
        try:
            steps.note(settled=True, **changes)
        except PageferryError as error:
            # The next server would do it once more, which changes nothing.
            log.error("not_recorded", session=steps.name, text=str(error))
            steps.record = replace(steps.record, settled=True, **changes)
        steps.means.settled(steps.name)
