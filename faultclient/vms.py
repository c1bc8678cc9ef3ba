# SPDX-License-Identifier: Apache-2.0
"""The VMs that this process holds: a hand-off in, a running pager out.

Imported, and done, before grpc is: a VM's faults are served within milliseconds of its hand-off, and the
control port comes up behind that. A test holds this file, and all it imports, to it.
"""

import base64
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from faultclient.pager import Caller, Client, Pager
from pageferry.host.handoff import Handoff, Region
from pageferry.layout import Layout
from pageferry.service import native


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a pager shows a page server that serves a VM which still runs."""

    session: str
    token: bytes = field(repr=False)
    target: int  # made once for a VM's hand-off
    epoch: int  # counted up for each process that takes the VM over
    bandwidth_bytes_per_s: int = 0

    def metadata(self) -> dict[str, str]:
        """Of every call, on both ports."""
        return {
            "authorization": self.authorization,
            "pageferry-session": self.session,
            "pageferry-target": f"{self.target:016x}",
            "pageferry-epoch": str(self.epoch),
        }

    def caller(self) -> Caller:
        return Caller(self.session, self.encoded, self.target, self.epoch)

    @property
    def encoded(self) -> str:
        return base64.urlsafe_b64encode(self.token).decode().rstrip("=")

    @property
    def authorization(self) -> str:
        return f"Bearer {self.encoded}"


@dataclass(slots=True)
class Vm:
    """One VM and what is fixed about it."""

    pager: Pager
    image: str
    data_address: str
    length_bytes: int
    vmm_pid: int
    regions: tuple[Region, ...] = ()
    onward: Path | None = None  # the socket of the page server that it is handed on to
    huge_pages: bool = False  # to be made of its memory once that is here
    lands_first: bool = False  # all its pages are here before the guest runs: they are huge
    keep_registration: bool = False  # for as long as the VMM lives, so that its memory can be poisoned
    layout: Layout | None = None  # where its memory lies in the guest, if the VMM or an operator says


@dataclass(slots=True)
class Vms:
    client: Client = field(default_factory=Client)
    _taken: list[Vm] = field(default_factory=list)
    # The last numbers of those that were let go.
    _counted: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(native.COUNTERS, 0)))
    _waited: dict[str, native.Histogram] = field(
        default_factory=lambda: dict.fromkeys(native.HISTOGRAMS, native.Histogram((0,) * native.BUCKETS, 0))
    )

    def take(
        self,
        handoff: Handoff,
        *,
        image: str,
        data_address: str,
        background: bool,
        spin_us: int,
        ticket: Ticket | None = None,
        onward: Path | None = None,
        huge_pages: bool = False,
        keep_registration: bool = False,
        layout: Layout | None = None,
    ) -> Vm:
        """Starts the pager of what was handed over; the hand-off is closed if that cannot be.

        PageferryError: why not.
        """
        with handoff:
            length_bytes, vmm_pid, regions = handoff.length_bytes, handoff.pid, handoff.regions
            lands_first = handoff.lands_first
            layout = handoff.layout or layout
            if layout is not None:
                layout.check(length_bytes)
            pager = self.client.open(
                handoff,
                image=image,
                data_address=data_address,
                background=background or lands_first,
                spin_us=spin_us,
                caller=ticket.caller() if ticket is not None else None,
                bandwidth_bytes_per_s=ticket.bandwidth_bytes_per_s if ticket is not None else 0,
                handed_on=onward is not None or keep_registration,
                huge_pages=huge_pages,
            )
        vm = Vm(
            pager,
            image,
            data_address,
            length_bytes,
            vmm_pid,
            regions,
            onward,
            huge_pages,
            lands_first,
            keep_registration,
            layout,
        )
        self._taken.append(vm)
        return vm

    def let_go(self, vm: Vm) -> None:
        """Its numbers stay in the sums. It may have been let go already."""
        vm.pager.close()
        if vm in self._taken:
            self._taken.remove(vm)
            self._counted.update(vm.pager.counters())
            for name, waited in self._waited.items():
                self._waited[name] = waited + vm.pager.histogram(name)

    # ------------------------------------------------------------------------------------------------ figures

    def counters(self) -> dict[str, int]:
        """Of all VMs that this process has ever held."""
        total = self._counted.copy()
        for vm in self._taken:
            total.update(vm.pager.counters())
        return dict(total)

    def histogram(self, name: str) -> native.Histogram:
        return sum((vm.pager.histogram(name) for vm in self._taken), self._waited[name])

    def close(self) -> None:
        for vm in self._taken:
            vm.pager.close()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
