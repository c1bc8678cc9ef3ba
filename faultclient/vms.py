# SPDX-License-Identifier: Apache-2.0
"""The VMs that this process holds: a hand-off in, a running pager out.

Imported, and done, before grpc is: a VM's faults are served within milliseconds of its hand-off, and the
control port comes up behind that. A test holds this file, and all it imports, to it.
"""

from dataclasses import dataclass, field
from typing import Self

from faultclient.pager import Client, Pager
from pageferry.host.handoff import Handoff


@dataclass(slots=True)
class Vm:
    """One VM and what is fixed about it."""

    pager: Pager
    image: str
    data_address: str
    length_bytes: int
    vmm_pid: int


@dataclass(slots=True)
class Vms:
    client: Client = field(default_factory=Client)
    _open: list[Vm] = field(default_factory=list)

    def take(self, handoff: Handoff, *, image: str, data_address: str, background: bool, spin_us: int) -> Vm:
        """Starts the pager of what was handed over; the hand-off is closed if that cannot be.

        PageferryError: why not.
        """
        with handoff:
            vm = Vm(
                pager=self.client.open(
                    handoff, image=image, data_address=data_address, background=background, spin_us=spin_us
                ),
                image=image,
                data_address=data_address,
                length_bytes=handoff.length_bytes,
                vmm_pid=handoff.pid,
            )
        self._open.append(vm)
        return vm

    def let_go(self, vm: Vm) -> None:
        self._open.remove(vm)
        vm.pager.close()

    def close(self) -> None:
        for vm in list(self._open):
            self.let_go(vm)
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
