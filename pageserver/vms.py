# SPDX-License-Identifier: Apache-2.0
"""The VMs of a page server: a hand-off in, a live image out, until the VMM ends and nobody needs its memory.

One listener for each name that the operator has given. A name is served once: a VMM that hands over under one
that is still served, or still owed to a target, is refused.

A fault client may hand a VM on that it brings here (docs/chain.md). Its image knows what has arrived; once
all has, and no session has the VM, the fault client is let go.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from pageferry.host.handoff import Handoff, Role
from pageferry.host.listener import Listener
from pageferry.host.vmspec import VmSpec
from pageferry.layout import Layout
from pageferry.reasons import PageferryError, Reason
from pageferry.service.logs import log
from pageferry.service.taking import take_each
from pageserver.arriving import Arriving, say_accepted
from pageserver.dataplane import DataPlane, LiveMemory, accept_handoff
from pageserver.poison import Poison
from pageserver.switchover import in_thread
from pageserver.vm import Vm


class Vms:
    """`on_gone` is called when a VMM has ended, `on_complete` when all of its memory has arrived: to call
    let_go(), or arrived(), is the callee's duty."""

    def __init__(
        self,
        specs: Sequence[VmSpec],
        plane: DataPlane,
        *,
        on_gone: Callable[[Vm], None],
        on_complete: Callable[[Vm], None],
        vmm_uid: int | None,
        poison: Poison | None = None,
    ) -> None:
        """PageferryError: a hand-off socket cannot be had; then none is left."""
        self._plane = plane
        self._poison = poison or Poison(plane)
        self._on_gone = on_gone
        self._on_complete = on_complete
        self._tasks: set[asyncio.Task[None]] = set()
        self._vms: dict[str, Vm] = {}
        self._listeners: list[tuple[VmSpec, Listener]] = []
        try:
            for spec in specs:
                self._listeners.append((spec, Listener(spec.handoff, vmm_uid=vmm_uid, in_its_place=True)))
        except BaseException:
            self._stop_listening()
            raise

    def knows(self, name: str) -> bool:
        """Whether a VM of this name may come, or is here."""
        return name in self._vms or any(spec.name == name for spec, _ in self._listeners)

    def get(self, name: str) -> Vm | None:
        """One that is served."""
        vm = self._vms.get(name)
        return vm if vm is not None and vm.served else None

    def adopt(self, vm: Vm) -> None:
        """One that an earlier server has left."""
        self._vms[vm.name] = vm
        self._watch(vm)

    async def take_all(self) -> None:
        """Takes hand-offs until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for spec, listener in self._listeners:
                tasks.create_task(take_each(spec.name, listener, partial(self._take, spec)))

    async def _take(self, spec: VmSpec, handoff: Handoff) -> None:
        """The VMM's mmap returns when this does. PageferryError: it is refused, and told so by the end of its
        socket."""
        try:
            self._check(spec, handoff)
            vm = Vm.of_handoff(spec, handoff)
        except BaseException:
            handoff.close()
            raise
        self._vms[spec.name] = vm
        try:
            memory = LiveMemory(
                name=spec.name,
                uffd=handoff.uffd,
                ram_fd=handoff.backing_fd,
                pid=handoff.pid,
                pidfd=handoff.pidfd,
                regions=handoff.regions,
                content_id=vm.content_id,
                incarnation=1,
                arriving_fd=handoff.table_fd,
                drops_untold=handoff.in_its_place and not handoff.handed_on,  # it has no shim
            )
            layout = self._layout(spec, handoff)
            await in_thread(lambda: self._plane.add_live(memory))
            vm.served = True
            self._poison.add_live(spec.name, vm.page_count, layout)
            self._accept(vm, handoff)
        except BaseException:
            self._drop(vm)
            raise
        self._watch(vm)
        log.info(
            "vm",
            vm=vm.name,
            pid=vm.pid,
            pages=vm.page_count,
            regions=len(handoff.regions),
            handed_on=handoff.handed_on,
            content_id=f"{vm.content_id:016x}",
        )

    def _layout(self, spec: VmSpec, handoff: Handoff) -> Layout | None:
        """As the VMM has said, or the operator. PageferryError: of another memory."""
        layout = handoff.layout or spec.layout
        if layout is not None:
            layout.check(handoff.length_bytes)
        return layout

    def _accept(self, vm: Vm, handoff: Handoff) -> None:
        """PageferryError: who has handed it over has gone."""
        if handoff.handed_on:
            vm.arriving = Arriving(vm.name, handoff.connection, lambda: self._on_complete(vm))
            vm.arriving.accept()
        elif handoff.in_its_place:
            say_accepted(handoff.connection)
        else:
            accept_handoff(handoff.connection.fileno())

    def _check(self, spec: VmSpec, handoff: Handoff) -> None:
        if handoff.role is not Role.TRACK and not handoff.handed_on:
            raise PageferryError(
                Reason.UNSUPPORTED,
                f"the VMM has handed over with the role {handoff.role.value}: a page server restores nothing",
                "set PAGEFERRY_SHIM_ROLE=track for a VM that is to be moved away; one that arrives here "
                "first hands over to the fault client, which hands it on",
            )
        if (known := self._vms.get(spec.name)) is not None:
            remedy = (
                "end it first" if not known.gone else "wait for the end of the session that needs its memory"
            )
            raise PageferryError(
                Reason.ALREADY_ATTACHED, f"the VM {spec.name} (process {known.pid}) is here already", remedy
            )

    # ------------------------------------------------------------------------------------- all of it is here

    def arrived(self, vm: Vm) -> None:
        """No session has it: if it is complete, nobody needs its fault client."""
        if vm.arriving is not None and vm.arriving.complete and not vm.arriving.going:
            vm.arriving.going = True
            task = asyncio.get_running_loop().create_task(self._let_go_fault_client(vm, vm.arriving))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _let_go_fault_client(self, vm: Vm, arriving: Arriving) -> None:
        try:
            await in_thread(lambda: self._plane.arrived(vm.name))
        except PageferryError as error:
            arriving.close()
            if self._vms.get(vm.name) is vm:
                log.error("not_let_go", vm=vm.name, reason=error.reason.name, text=str(error))
            return
        arriving.let_go()
        log.info("arrived", vm=vm.name, pid=vm.pid)

    # --------------------------------------------------------------------------------------------- its end

    def _watch(self, vm: Vm) -> None:
        def ended() -> None:
            asyncio.get_running_loop().remove_reader(vm.fileno())
            log.info("vmm_ended", vm=vm.name, pid=vm.pid)
            self._on_gone(vm)

        asyncio.get_running_loop().add_reader(vm.fileno(), ended)

    def let_go(self, vm: Vm) -> None:
        """Its memory is not needed here any more."""
        if self._vms.get(vm.name) is vm:
            asyncio.get_running_loop().remove_reader(vm.fileno())
            self._drop(vm)
            log.info("let_go", vm=vm.name, pid=vm.pid)

    def _drop(self, vm: Vm) -> None:
        del self._vms[vm.name]
        if vm.served:
            vm.served = False
            self._plane.remove(vm.name)
        self._poison.drop(vm.name)
        vm.close()

    async def close(self) -> None:
        """Every VM that is here goes on, untracked, and nothing is asked of the data plane any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._stop_listening()
        for vm in list(self._vms.values()):
            self.let_go(vm)

    def _stop_listening(self) -> None:
        for _, listener in self._listeners:
            listener.close()
