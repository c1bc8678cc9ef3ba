# SPDX-License-Identifier: Apache-2.0
"""What a guest is: what source and destination must agree on, QEMU's options for it, and a guest at rest."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.initrd import guest_image

# A state loads only into the same machine type, and what an alias means changes with QEMU's version.
MACHINES = {"pc": "pc-i440fx-7.2", "microvm": "microvm"}
# With ACPI one boot in twenty hangs under TCG before its first tick; without it there is one CPU, never more.
MICROVM_DEVICES = "pit=on,pic=on,rtc=on,isa-serial=on,acpi=off"


@dataclass(frozen=True)
class GuestShape:
    """What source and destination must agree on."""

    machine: str = "pc"  # a key of MACHINES, or a versioned machine type
    memory_mib: int = 384
    smp: int = 1
    workload_mib: int = 256  # of the guest's RAM, filled and verified by its workload
    hot_mib: int = 0  # of these, written flat out and in order; 0: looked at more than written, and at random

    def __post_init__(self) -> None:
        if self.qemu_machine != "microvm" and not re.search(r"-\d+\.\d+$", self.qemu_machine):
            names = " or ".join(MACHINES)
            raise ValueError(f"machine {self.machine} is an alias: say {names}, or a versioned name")
        if self.machine == "microvm" and self.smp > 1:
            raise ValueError("microvm brings up one CPU only: use pc for more")
        if not 0 < self.workload_mib <= self.memory_mib - 96:
            raise ValueError("the guest's kernel needs about 96 MiB beside the workload")
        if not 0 <= self.hot_mib <= self.workload_mib:
            raise ValueError("the writer writes what the workload has filled")

    @property
    def qemu_machine(self) -> str:
        return MACHINES.get(self.machine, self.machine)


@dataclass(frozen=True)
class SavedGuest:
    """A guest at rest. It may be restored any number of times."""

    shape: GuestShape
    state: bytes  # of the devices and CPUs; no page of RAM
    image: Path  # the RAM, sparse
    last_beat: int  # number of the last whole heartbeat
    tail: str  # of the console: a line that was cut by the stop
    qemu_version: str


def qemu_options(shape: GuestShape, ram_file: Path, qmp_path: Path) -> list[str]:
    image = guest_image()
    ram = f"memory-backend-file,id=ram0,mem-path={ram_file},size={shape.memory_mib}M,share=on"
    devices = f",{MICROVM_DEVICES}" if shape.qemu_machine == "microvm" else ""
    append = f"console=ttyS0 quiet panic=-1 reboot=t wl.mb={shape.workload_mib}"
    append += f" wl.hot={shape.hot_mib}" if shape.hot_mib else ""
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-accel", "tcg", "-cpu", "qemu64", "-smp", str(shape.smp), "-m", str(shape.memory_mib)),
        *("-object", ram, "-machine", f"{shape.qemu_machine}{devices},memory-backend=ram0"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append),
        *("-qmp", f"unix:{qmp_path},server=on,wait=off"),
    ]
