# SPDX-License-Identifier: Apache-2.0
"""Guests that are booted once a run and restored as often as tests want one: half a second instead of four.

    guests = Guests(folder)
    saved = guests.saved(LIGHT)                     boots it, the first time
    source = running(stack, saved, folder / "source", ...)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.support.console import Heartbeat
from tests.support.initrd import ROOT
from tests.support.move_figures import broken_steps, one_row
from tests.support.qemu import Qemu
from tests.support.ramfile import copy_sparse
from tests.support.shape import GuestShape, SavedGuest

SHIM: Final = ROOT / "native" / "build" / "pageferry-shim.so"
MEMORY_MIB: Final = 128
WORKLOAD_MIB: Final = 32
HOT_MIB: Final = 24
BEATS: Final = 20  # it has come through its boot
PAGES_PER_MIB: Final = 256
BEAT_MAX_S: Final = 30.0


def shape(machine: str, *, flat_out: bool = False, smp: int = 1) -> GuestShape:
    hot_mib = HOT_MIB if flat_out else 0
    return GuestShape(machine, memory_mib=MEMORY_MIB, smp=smp, workload_mib=WORKLOAD_MIB, hot_mib=hot_mib)


# Its VMM touches no guest memory before the guest runs: what it waits for is up to the test.
LIGHT: Final = shape("microvm")


class Guests:
    """Saved guests by their shape and QEMU (None: the system's), in a folder on tmpfs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved: dict[tuple[GuestShape, str | None], SavedGuest] = {}

    def saved(self, wanted: GuestShape, binary: str | None = None) -> SavedGuest:
        if (wanted, binary) not in self._saved:
            name = f"{len(self._saved)}"
            ram = self._folder / f"{name}.ram"
            with Qemu(wanted, ram, self._folder / name, binary=binary) as booting:
                booting.console.wait_beats(BEATS)
                self._saved[wanted, binary] = booting.save(self._folder / f"{name}.image")
            ram.unlink()
        return self._saved[wanted, binary]


def shim(ram: Path, socket: Path, role: str) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(SHIM),
        "PAGEFERRY_SHIM_RAM": str(ram),
        "PAGEFERRY_SHIM_SOCKET": str(socket),
        "PAGEFERRY_SHIM_ROLE": role,
    }


def running(
    stack: ExitStack,
    saved: SavedGuest,
    folder: Path,
    handoff: Path,
    *,
    binary: str | None = None,
    prefix: Sequence[str] = (),
    extra: Sequence[str] = (),
    under_shim: bool = True,
) -> Qemu:
    """A guest that beats, whose writes a page server sees; without the shim, nobody does. It ends, and its
    RAM goes, with the stack."""
    ram = folder.with_suffix(".ram")
    stack.callback(ram.unlink, missing_ok=True)
    copy_sparse(saved.image, ram)
    environment = shim(ram, handoff, "track") if under_shim else {}
    source = _start(stack, saved.shape, ram, folder, environment, saved, binary, prefix, extra)
    with _told_by(source):
        source.load(saved.state)
        source.resume()
        source.console.wait_beats(1)
    return source


def waiting(
    stack: ExitStack,
    shape: GuestShape,
    folder: Path,
    handoff: Path,
    *,
    binary: str | None = None,
    prefix: Sequence[str] = (),
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Qemu:
    """A VMM that waits for a guest, its memory empty and handed over to a fault client."""
    ram = folder.with_suffix(".ram")
    stack.callback(ram.unlink, missing_ok=True)
    environment = environment or shim(ram, handoff, "restore")
    target = _start(stack, shape, ram, folder, environment, None, binary, prefix, extra)
    with _told_by(target):
        _ = target.qmp  # answers once its memory has been taken
    return target


@contextmanager
def _told_by(qemu: Qemu) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"QEMU: {qemu.stderr() or 'says nothing'}, status {qemu.exit_status()}")
        raise


def _start(
    stack: ExitStack,
    shape: GuestShape,
    ram: Path,
    folder: Path,
    environment: Mapping[str, str],
    restoring: SavedGuest | None,
    binary: str | None,
    prefix: Sequence[str],
    extra: Sequence[str],
) -> Qemu:
    return stack.enter_context(
        Qemu(
            shape,
            ram,
            folder,
            restoring=restoring,
            incoming=True,
            environment=environment,
            binary=binary,
            prefix=prefix,
            extra=("-qmp", f"unix:{monitor(folder)},server=on,wait=off", *extra),
        )
    )


def monitor(folder: Path) -> Path:
    """A QMP socket of that QEMU for whoever is not the test."""
    return folder / "adapter-qmp"


# ----------------------------------------------------------------------------------------- where a guest runs


def look_at_every_page(guest: Qemu) -> None:
    """The guest's own oracle has seen all of its workload's pages since this was called."""
    console = guest.console
    epoch = console.beats[-1].epoch + 1
    guest.say("epoch\n")
    pages = guest.shape.workload_mib * PAGES_PER_MIB
    whole = f"a look at all {pages} pages"
    console.wait_beat(lambda beat: beat.epoch == epoch and beat.distinct == pages, whole, BEAT_MAX_S)


def check_at_source(source: Qemu, target: Qemu) -> None:
    """The guest beats where it was, no beat is missing, no page is wrong; at the target it never did."""
    _check(source, [*source.console.beats])
    assert target.console.beats == [], "two guests beat"


def check_at_target(source: Qemu, target: Qemu) -> None:
    """It beats at the target and there only; the beats of both are one row, no page is wrong."""
    silent = len(source.console.beats)
    _check(target, source.console.beats[:silent])
    assert len(source.console.beats) == silent, "two guests beat"
    assert broken_steps(one_row(source.console, target.console)) == 0


def _check(here: Qemu, before: Sequence[Heartbeat]) -> None:
    here.console.wait_beats(2)
    look_at_every_page(here)
    last = here.console.wait_beats(2)[-1]
    assert broken_steps(here.console.beats) == 0
    assert last.errors == 0, here.console.errors[-5:]
    assert not before or last.number > before[-1].number
