# SPDX-License-Identifier: Apache-2.0
"""What QEMU must be for a move: each check looks at what is there and refuses with the remedy.

All of it would otherwise be found out late: a machine type that is another one at the other end, after the
memory has moved; a device that writes guest memory behind the back of the page tables, never, but for the
guest that runs on stale pages.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pageferry.host.qmp import Qmp, QmpRefusalError
from pageferry.reasons import PageferryError, Reason

# From here on x-ignore-shared leaves out of the stream only memory backed by a file that has a name; before,
# all that is shared.
NAMED_FILES_ONLY: Final = (8, 2)
FILE_BACKEND: Final = "memory-backend-file"
RAM_LINE: Final = "-object memory-backend-file,id=ram0,mem-path=/dev/shm/NAME,size=SIZE,share=on"
# Devices whose other half is a process or a piece of hardware with a view of guest memory of its own.
FOREIGN_MEMORY: Final = re.compile(r"vhost-user|vfio|vdpa|x-pci-proxy|x-remote")
FOREIGN_NETDEV: Final = re.compile(r"(\S+?): index=\d+,type=(vhost-user|vhost-vdpa)\b")
FOREIGN_FILES: Final = ("/dev/vfio/", "/dev/vhost-vdpa", "/dev/iommu")
# Block drivers that pin guest memory for themselves.
PINNING_DRIVERS: Final = frozenset({
    "nvme", "io_uring", "nvme-io_uring", "virtio-blk-vfio-pci", "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
})  # fmt: skip
GIB: Final = 1 << 30
# Up to here memory lies below 4 GiB as a whole; of more, a whole number of GiB does.
PC_BELOW_4G: Final = 0xE000_0000
Q35_BELOW_4G: Final = 0xB000_0000
VERSIONED: Final = re.compile(r"-\d+\.\d+(\.\d+)?$")


def refused(message: str, remedy: str, reason: Reason = Reason.UNSUPPORTED) -> PageferryError:
    return PageferryError(reason, message, remedy)


# ------------------------------------------------------------------------------------------- the machine type


async def machine_type(qmp: Qmp, command_line: Sequence[str] | None, warnings: list[str]) -> str:
    """Its name, a versioned one. `command_line`: QEMU's, or None if nobody may look at it."""
    kind = await qmp.execute("qom-get", {"path": "/machine", "property": "type"})
    name = str(kind).removesuffix("-machine")
    machines = await qmp.execute("query-machines")
    aliases = {machine["alias"] for machine in machines if "alias" in machine}
    versioned = f"start it with -machine {name}, and name the same at both ends"
    if command_line is None:
        warnings.append(f"whether it was started as {name} or by an alias could not be looked at")
        return name
    given = machine_given(command_line)
    if given is None and VERSIONED.search(name):
        raise refused(
            f"QEMU was started without a machine type: which one that is changes with its version "
            f"(here {name})",
            versioned,
        )
    if given in aliases:
        raise refused(
            f"QEMU was started with the machine type {given}, an alias: what it means changes with its "
            f"version (here {name})",
            versioned,
        )
    if not VERSIONED.search(name):
        warnings.append(f"machine type {name} has no version: another QEMU may not load its state")
    return name


async def below_4g_bytes(qmp: Qmp, machine: str, memory_bytes: int) -> int:
    """At most so much of its memory lies below 4 GiB, by the rule of its machine; 0: that is not known."""
    try:
        limit = int(await qmp.execute("qom-get", {"path": "/machine", "property": "max-ram-below-4g"}))
    except QmpRefusalError:  # microvm has no such property, and the rule of the oldest machine
        limit = PC_BELOW_4G
    if machine.startswith(("pc-i440fx", "microvm")):
        return min(limit, 3 * GIB) if memory_bytes >= limit else limit
    if machine.startswith("pc-q35"):
        return min(limit, 2 * GIB if memory_bytes >= Q35_BELOW_4G else Q35_BELOW_4G)
    return 0


def machine_given(command_line: Sequence[str]) -> str | None:
    """By the last -machine or -M that names a type."""
    found = None
    for option, value in pairwise(command_line):
        if option.lstrip("-") not in ("machine", "M") or not option.startswith("-"):
            continue
        for at, part in enumerate(value.split(",")):
            key, equals, named = part.partition("=")
            if key == "type" and equals:
                found = named
            elif at == 0 and not equals:
                found = part
    return found


# ------------------------------------------------------------------------------------------------- the memory


async def memory_bytes(qmp: Qmp, version: tuple[int, ...]) -> int:
    """How much the guest has. All of it is in one backend, that of the hand-off: what lies elsewhere would
    neither be served nor go with the state."""
    backends = await qmp.execute("query-memdev")
    for backend in backends:
        await _check_backend(qmp, backend, version)
    summary = await qmp.execute("query-memory-size-summary")
    guest_bytes = int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))
    if len(backends) != 1 or int(backends[0]["size"]) != guest_bytes:
        sizes = ", ".join(f"{backend.get('id', '?')} {backend['size']}" for backend in backends) or "none"
        raise refused(
            f"the guest's memory of {guest_bytes} bytes is not in one memory backend (there are: {sizes})",
            f"start QEMU with {RAM_LINE} -machine ...,memory-backend=ram0, and no DIMMs",
        )
    return guest_bytes


async def _check_backend(qmp: Qmp, backend: Mapping[str, Any], version: tuple[int, ...]) -> None:
    name = backend.get("id", "?")
    kind = (await _kinds(qmp, "/objects")).get(name, "")
    if not backend["share"]:
        raise refused(
            f"memory backend {name} ({kind}) is private: nobody else can serve it or see it change",
            f"start QEMU with share=on: {RAM_LINE}",
        )
    if version >= NAMED_FILES_ONLY and kind != FILE_BACKEND:
        raise refused(
            f"memory backend {name} is a {kind}: QEMU from 8.2 on would send all of it with the device state",
            f"start QEMU with a named file: {RAM_LINE}",
        )
    if backend["prealloc"]:
        raise refused(
            f"memory backend {name} has prealloc=on: QEMU touches every page at its start, at the "
            "target before any has arrived",
            "start QEMU with prealloc=off, and without -mem-prealloc",
        )


async def _kinds(qmp: Qmp, path: str) -> dict[str, str]:
    """QOM children and their types."""
    children = await qmp.execute("qom-list", {"path": path})
    return {
        child["name"]: child["type"][len("child<") : -1]
        for child in children
        if child["type"].startswith("child<")
    }


# -------------------------------------------------------------------------------------------- who else writes


async def check_devices(qmp: Qmp) -> None:
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        for name, kind in (await _kinds(qmp, path)).items():
            if FOREIGN_MEMORY.search(kind):
                raise _foreign(f"device {name} ({kind})")
    network = await qmp.execute("human-monitor-command", {"command-line": "info network"})
    if found := FOREIGN_NETDEV.search(str(network)):
        raise _foreign(f"network device {found[1]} ({found[2]})")


def _foreign(what: str) -> PageferryError:
    return refused(
        f"{what} reaches guest memory past QEMU: what it reads is not served, what it writes is not seen",
        "unplug it, or use a device that QEMU itself drives",
    )


async def check_blocks(qmp: Qmp, *, precopy: bool) -> None:
    """O_DIRECT writes into pinned pages: a scan of the page tables does not see it."""
    nodes = await qmp.execute("query-named-block-nodes", {"flat": True})
    for node in nodes:
        name = f"block node {node.get('node-name', '?')} ({node.get('file') or node.get('drv')})"
        if node.get("drv") in PINNING_DRIVERS:
            raise _foreign(f"{name}, by its driver {node['drv']},")
        if precopy and node["cache"]["direct"]:
            raise refused(
                f"{name} is open with O_DIRECT: what the disk writes into guest memory while the guest "
                "runs is not seen",
                "open it with cache.direct=off (cache=writeback), or reopen it so by blockdev-reopen",
            )


async def check_blockers(qmp: Qmp) -> None:
    """What QEMU itself holds against a migration, and one that is under way."""
    told = await qmp.execute("query-migrate")
    if blocked := told.get("blocked-reasons"):
        raise refused(f"QEMU says: {' '.join(blocked)}", "remove what it names")


# --------------------------------------------------------------------------------------------- by the process


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What /proc shows of QEMU. What may not be looked at is None."""

    command_line: tuple[str, ...] | None
    locked_bytes: int | None
    open_files: frozenset[str] | None

    @classmethod
    def of(cls, pid: int) -> "ProcessView":
        folder = Path("/proc", str(pid))
        return cls(_command_line(folder), _locked_bytes(folder), _open_files(folder))


def _command_line(folder: Path) -> tuple[str, ...] | None:
    try:
        text = (folder / "cmdline").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return None
    return tuple(text.split("\0")[:-1]) or None


def _locked_bytes(folder: Path) -> int | None:
    try:
        found = re.search(r"^VmLck:\s+(\d+) kB$", (folder / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None


def _open_files(folder: Path) -> frozenset[str] | None:
    found = set()
    try:
        for link in (folder / "fd").iterdir():
            try:
                found.add(str(link.readlink()))
            except FileNotFoundError:
                continue  # closed since
    except OSError:
        return None
    return frozenset(found)


def check_process(view: ProcessView, guest_bytes: int, warnings: list[str]) -> None:
    if view.locked_bytes is not None and view.locked_bytes >= guest_bytes:
        raise refused(
            "QEMU has locked its memory: every page is pulled at once, at the target before any has arrived",
            "start QEMU with -overcommit mem-lock=off",
        )
    if view.open_files is None:
        warnings.append("which devices QEMU has open could not be looked at: move no VFIO, no vDPA")
        return
    for name in sorted(view.open_files):
        if name.startswith(FOREIGN_FILES):
            raise _foreign(name)
        if name.startswith("/dev/vhost-"):
            warnings.append(f"{name} is open: moves with it have not been tried")
