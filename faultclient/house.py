# SPDX-License-Identifier: Apache-2.0
"""This host's VMs for the sessions of `faultclient serve`: hand-offs, pagers, adapters, by the VMs' names."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from faultclient.beside import beside
from faultclient.collapse import Collapse, when_complete
from faultclient.handoffs import Handoffs
from faultclient.request import StartRequest
from faultclient.restore import Restore, follow, give_up_unattached
from faultclient.session import Postcopy, look_on
from faultclient.vms import Ticket, Vm, Vms
from pageferry.host.adapters import adapter
from pageferry.host.handoff import Handoff
from pageferry.host.vmm import Vmm
from pageferry.host.vmspec import VmSpec
from pageferry.reasons import PageferryError, Reason

ATTACH_S: Final = 30.0


class Host:
    def __init__(
        self,
        specs: Sequence[VmSpec],
        vms: Vms,
        *,
        vmm_uid: int | None,
        spin_us: int,
        collapse: bool,
        accept: Callable[[int], None],
        keep_registration: bool = False,
    ) -> None:
        self.handoffs = Handoffs(specs, vmm_uid=vmm_uid, accept=accept)
        self._vms = vms
        self._spin_us = spin_us
        self._collapse = collapse
        self._keep_registration = keep_registration

    def known(self, vm: str) -> None:
        self.handoffs.spec(vm)

    async def handoff(self, vm: str) -> Handoff:
        return await self.handoffs.taken(vm)

    def give_back(self, vm: str, handoff: Handoff) -> None:
        self.handoffs.give_back(vm, handoff)

    def adapter(self, vm: str, handoff: Handoff) -> Vmm:
        return adapter(self.handoffs.spec(vm), pidfd=handoff.pidfd)

    async def open(self, handoff: Handoff, request: StartRequest, ticket: Ticket | None) -> Vm:
        """On another thread: names are resolved there, the VMM's memory looked at. The pager of somebody who
        does not wait for it any more is closed."""

        def take() -> Vm:
            # A lazy restore ends here: it has nobody who reports when its last page has come.
            spec = self.handoffs.spec(request.vm)
            onward = spec.onward if ticket is not None else None
            return self._vms.take(
                handoff,
                image=request.image,
                data_address=request.data_address,
                background=True,
                spin_us=self._spin_us,
                ticket=ticket,
                onward=onward,
                huge_pages=self._collapse and onward is None,
                keep_registration=self._keep_registration,
                layout=spec.layout,
            )

        opening = asyncio.ensure_future(asyncio.to_thread(take))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            (done,) = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(done, Vm):
                self.let_go(done)
            raise

    def let_go(self, vm: Vm) -> None:
        self._vms.let_go(vm)

    async def follow(self, restore: Restore, handoff: Handoff, request: StartRequest) -> None:
        if request.postcopy is Postcopy.FORBID and not handoff.shared:
            self.give_back(request.vm, handoff)
            raise PageferryError(
                Reason.UNSUPPORTED,
                "private memory cannot be filled before the guest runs",
                "allow postcopy, or put the VM's RAM on a memfd or a tmpfs",
            )
        restore.vm = vm = await self.open(handoff, request, None)
        restore.start()
        async with asyncio.TaskGroup() as tasks:
            attached = tasks.create_task(beside("attach limit", give_up_unattached(restore, ATTACH_S)))
            looking = tasks.create_task(beside("arrivals", look_on(restore)))
            if vm.huge_pages:
                collapse = Collapse(vm.pager, restore.name)
                tasks.create_task(beside("huge pages", when_complete(restore, collapse)))
            await follow(restore)
            attached.cancel()
            looking.cancel()
        self.let_go(vm)
