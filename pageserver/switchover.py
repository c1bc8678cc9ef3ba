# SPDX-License-Identifier: Apache-2.0
"""The acts of a switch-over at the source, in their only order, and how all of them are taken back.

    pause       the guest stands still, its block I/O too
    save        the device state; this may still write guest memory
    freeze      so the final round comes after it, and from then on no version changes
    stop        the whole process, so that nothing of it can write
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import xxhash

from pageferry.host.vmm import Vmm
from pageferry.host.vmspec import VmKind
from pageferry.reasons import PageferryError
from pageferry.service.logs import log
from pageserver.dataplane import DataPlane, Frozen
from pageserver.vm import Vm

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Saved:
    """All that the target needs beside pages. Kept until it has accepted, for it may ask again."""

    frozen: Frozen
    device_state: bytes
    device_state_digest: int


async def stop_and_save(vm: Vm, vmm: Vmm, plane: DataPlane) -> Saved:
    """PageferryError, or cancelled: the guest is somewhere on the way; let_run() helps from everywhere."""
    await vmm.pause()
    device_state = await vmm.save_state()
    frozen = await in_thread(lambda: plane.freeze(vm.name))
    vm.stop()
    return Saved(frozen, device_state, xxhash.xxh3_64_intdigest(device_state))


async def let_run(vm: Vm, vmm: Vmm, plane: DataPlane, *, ran: bool, recovered: bool) -> None:
    """The guest runs here again, if it ran before: one that its owner had paused stays so. `recovered`: the
    adapter is another one than that which has paused it. May be asked again after an error."""
    if vm.served:
        try:
            await in_thread(lambda: plane.thaw(vm.name))
        except PageferryError as error:  # the image is lost for another move; the guest is not
            log.error("not_thawed", vm=vm.name, text=str(error))
    if ran or vm.spec.kind is not VmKind.PROCESS:
        vm.go_on()
    if ran or (vm.spec.kind is VmKind.QEMU and not recovered):  # which remembers that it was paused
        await vmm.resume()


async def in_thread(work: Callable[[], T]) -> T:
    """Not left behind when the caller is cancelled: else it would be done at any later time."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        working.exception()  # nobody asks for it any more
        raise
