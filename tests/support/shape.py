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


PLUGGED_STEP_MIB = 128  # what Linux makes one piece of on x86


@dataclass(frozen=True)
class GuestShape:
    """What source and destination must agree on."""

    machine: str = "pc"  # a key of MACHINES, or a versioned machine type
    memory_mib: int = 384
    smp: int = 1
    workload_mib: int = 256  # of the guest's RAM, filled and verified by its workload
    hot_mib: int = 0  # of these, written flat out and in order; 0: looked at more than written, and at random
    balloon: bool = False
    plugged_mib: int = 0  # beside memory_mib, by virtio-mem, which can have twice as much; 0: no such device

    def __post_init__(self) -> None:
        if self.qemu_machine != "microvm" and not re.search(r"-\d+\.\d+$", self.qemu_machine):
            names = " or ".join(MACHINES)
            raise ValueError(f"machine {self.machine} is an alias: say {names}, or a versioned name")
        if self.machine == "microvm" and self.smp > 1:
            raise ValueError("microvm brings up one CPU only: use pc for more")
        if self.qemu_machine == "microvm" and (self.balloon or self.plugged_mib):
            raise ValueError("microvm has no PCI for a balloon or virtio-mem: use pc")
        if self.plugged_mib % PLUGGED_STEP_MIB:
            raise ValueError(f"memory is plugged in by {PLUGGED_STEP_MIB} MiB")
        if not 0 < self.workload_mib <= self.memory_mib + self.plugged_mib - 96:
            raise ValueError("the guest's kernel needs about 96 MiB beside the workload")
        if not 0 <= self.hot_mib <= self.workload_mib:
            raise ValueError("the writer writes what the workload has filled")

    @property
    def drivers(self) -> bool:
        return self.balloon or self.plugged_mib > 0

    @property
    def pluggable_mib(self) -> int:
        """The RAM file of virtio-mem."""
        return 2 * self.plugged_mib

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
    plugged_image: Path | None = None  # that of virtio-mem, sparse


def plugged_file(ram_file: Path) -> Path:
    """The RAM file of virtio-mem beside that of the machine."""
    return ram_file.with_name(ram_file.name + ".plugged")


def qemu_options(
    shape: GuestShape, ram_file: Path, qmp_path: Path, *, memfd: bool = False
) -> list[str]:
    """`memfd`: the machine's own RAM lies on one, and not on `ram_file`."""
    image = guest_image(drivers=shape.drivers)
    devices = f",{MICROVM_DEVICES}" if shape.qemu_machine == "microvm" else ""
    append = f"console=ttyS0 quiet panic=-1 reboot=t wl.mb={shape.workload_mib}"
    append += f" wl.hot={shape.hot_mib}" if shape.hot_mib else ""
    memory = f"{shape.memory_mib}M"
    options: list[str] = []
    if shape.balloon:
        options += ["-device", "virtio-balloon-pci,id=balloon0,deflate-on-oom=off"]
    if shape.plugged_mib:
        memory = f"{memory},maxmem={shape.memory_mib + shape.pluggable_mib}M"
        options += _plugged_options(shape, ram_file)
        # More than the machine has by itself, and less than there is with all pieces: the kernel keeps less
        # than a piece for itself.
        append += f" wl.kib={shape.memory_mib << 10} memhp_default_state=online_movable swiotlb=noforce"
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
        *("-accel", "tcg", "-cpu", "qemu64", "-smp", str(shape.smp), "-m", memory),
        *("-object", _memfd(shape) if memfd else _ram("ram0", ram_file, shape.memory_mib)),
        *("-machine", f"{shape.qemu_machine}{devices},memory-backend=ram0"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append),
        *options,
        *("-qmp", f"unix:{qmp_path},server=on,wait=off"),
    ]


def _memfd(shape: GuestShape) -> str:
    return f"memory-backend-memfd,id=ram0,size={shape.memory_mib}M,share=on"


def _ram(name: str, path: Path, mib: int) -> str:
    # aligned so that the RAM may lie on huge pages
    return f"memory-backend-file,id={name},mem-path={path},size={mib}M,align=2M,share=on"


def _plugged_options(shape: GuestShape, ram_file: Path) -> list[str]:
    device = f"virtio-mem-pci,id=plugged0,memdev=ram1,requested-size={shape.plugged_mib}M"
    return ["-object", _ram("ram1", plugged_file(ram_file), shape.pluggable_mib), "-device", device]
