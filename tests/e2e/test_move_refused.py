# SPDX-License-Identifier: Apache-2.0
"""What cannot be moved is refused before anything moves, with its remedy, as an operator sees it.

Afterwards the guest beats where it was, and nothing of it is at the target. And what an operator may well do
works: a guest moves to a newer QEMU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry.reasons import ROWS, Reason
from tests.support.footprint import unchanged
from tests.support.move_guests import (
    Guests,
    check_at_source,
    check_at_target,
    monitor,
    running,
    shape,
    shim,
    waiting,
)
from tests.support.processes import Finished, Process, command, finished
from tests.support.qemu import Qemu, QemuError
from tests.support.qemu_versions import FetchError, fetch
from tests.support.qmp import QmpError
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd
from tests.support.shape import SavedGuest
from tests.support.witness import allocated_bytes

pytestmark = needs_userfaultfd
PC = shape("pc")
# Executes the rest of its line with one word in it put in place of another.
REPLACED = """
import os, sys
old, new, *line = sys.argv[1:]
os.execvp(line[0], [word.replace(old, new) for word in line])
"""


def newer() -> str:
    try:
        return str(fetch("10.0"))
    except FetchError as error:
        pytest.skip(f"no QEMU 10.0: {error}")


def replaced(old: str, new: str) -> dict[str, object]:
    """Of running() and waiting(): QEMU is started with other words than the guest's shape has."""
    return {"prefix": [sys.executable, "-S", "-E", "-c", REPLACED, old, new]}


@dataclass
class Host:
    """Both services by their QMP sockets, as docs/adapters.md shows it; VMs are started as a test wants."""

    folder: Path
    saved: SavedGuest
    stack: ExitStack
    vms: ExitStack
    server: Process = field(init=False)
    client: Process = field(init=False)

    def __post_init__(self) -> None:
        data, control = "--data-listen=127.0.0.1:0", f"--control-listen=unix:{self.folder}/server.sock"
        self.server = self._serve("pageserver", "source", data, control)
        self.client = self._serve("faultclient", "target", f"--control-listen=unix:{self.folder}/client.sock")

    def _serve(self, name: str, role: str, *options: str) -> Process:
        vm = f"--vm=guest,handoff={self.handoff(role)},qemu={monitor(self.folder / role)}"
        arguments = [*command(name, "serve"), vm, f"--state-dir={self.folder / role}-state", *options]
        return self.stack.enter_context(Process(arguments, folder=self.folder, ready=True))

    def handoff(self, role: str) -> Path:
        return self.folder / f"{role}.handoff"

    def source(self, **options: object) -> Qemu:
        handoff = self.handoff("source")
        return running(self.vms, self.saved, self.folder / "source", handoff, **options)  # type: ignore[arg-type]

    def target(self, **options: object) -> Qemu:
        handoff = self.handoff("target")
        return waiting(self.vms, PC, self.folder / "target", handoff, **options)  # type: ignore[arg-type]

    def migrate(self, *options: str) -> Finished:
        ends = [f"--source={self.server.ready['control']}", f"--target={self.client.ready['control']}"]
        data = f"--data-address={self.server.ready['data']}"
        return finished("faultclient", "migrate", *ends, data, "--vm=guest", *options)


@pytest.fixture
def host(guests: Guests) -> Iterator[Host]:
    """Its services hold no more afterwards."""
    saved = guests.saved(PC)
    with run_folder() as folder, ExitStack() as stack, ExitStack() as vms:
        host = Host(folder, saved, stack, vms)
        with unchanged(host.server.pid, host.client.pid):
            yield host
            vms.close()


def refused(
    host: Host,
    source: Qemu,
    target: Qemu,
    sentence: str,
    remedy: str,
    reason: Reason = Reason.UNSUPPORTED,
) -> None:
    done = host.migrate()
    assert done.status == ROWS[reason].exit, done.log
    assert sentence in done.log
    assert remedy in done.log
    check_at_source(source, target)
    assert target.exit_status() is None
    assert allocated_bytes(target.ram_file) == 0


def test_an_alias_of_a_machine_type_at_the_source(host: Host) -> None:
    target, source = host.target(), host.source(**replaced("pc-i440fx-7.2", "pc"))
    refused(host, source, target, "machine type pc, an alias", "start it with -machine pc-i440fx-7.2")


def test_an_alias_at_the_target(host: Host) -> None:
    target, source = host.target(**replaced("pc-i440fx-7.2", "pc")), host.source()
    refused(host, source, target, "machine type pc, an alias", "start it with -machine pc-i440fx-7.2")


def test_another_machine_type_at_the_target(host: Host) -> None:
    target, source = host.target(**replaced("pc-i440fx-7.2", "pc-i440fx-7.1")), host.source()
    refused(host, source, target, "pc-i440fx-7.1", "-machine pc-i440fx-7.2", Reason.MISMATCH)


def test_a_memfd_at_a_target_of_10_0(host: Host) -> None:
    """QEMU's own migration would send all of it with the device state, and say nothing."""
    ram = host.folder / "target.ram"
    size = f"size={PC.memory_mib}M"
    memfd = replaced(
        f"memory-backend-file,id=ram0,mem-path={ram},{size},align=2M", f"memory-backend-memfd,id=ram0,{size}"
    )
    environment = shim(Path("memfd:memory-backend-memfd"), host.handoff("target"), "restore")
    ram.touch()  # no bytes of it will ever be there
    target = host.target(binary=newer(), environment=environment, **memfd)
    refused(host, host.source(), target, "is a memory-backend-memfd", "start QEMU with a named file")


def test_prealloc_at_the_source(host: Host) -> None:
    target, source = host.target(), host.source(**replaced("share=on", "share=on,prealloc=on"))
    refused(host, source, target, "has prealloc=on", "start QEMU with prealloc=off")


def ended_by_the_shim(start: Callable[[], Qemu]) -> str:
    """What it has said: on QEMU's own stderr, for there is no VM that could be asked."""
    with pytest.raises((QemuError, QmpError)) as caught:
        start()
    return "\n".join([str(caught.value), *caught.value.__notes__])


@pytest.mark.parametrize(
    ("instead", "remedy"),
    [("share=on,prealloc=on", "start the VMM without it"), ("share=off", "it needs share=on")],
)
def test_what_no_target_can_begin_with(host: Host, instead: str, remedy: str) -> None:
    """QEMU would touch every page before the first one has come, or keep them for itself."""
    source = host.source()
    assert remedy in ended_by_the_shim(lambda: host.target(**replaced("share=on", instead)))
    assert allocated_bytes(host.folder / "target.ram") == 0
    source.console.wait_beats(3)


def test_private_memory_at_the_source(host: Host) -> None:
    start = ended_by_the_shim(lambda: host.source(**replaced("share=on", "share=off")))
    assert "it needs share=on" in start


# ---------------------------------------------------------------------------------------- what is let through


def test_from_7_2_to_10_0(host: Host) -> None:
    target, source = host.target(binary=newer()), host.source()
    done = host.migrate()
    assert done.status == 0, done.log
    check_at_target(source, target)
