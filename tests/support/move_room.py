# SPDX-License-Identifier: Apache-2.0
"""A guest moves from one QEMU to another, between two hosts, and what it cost is taken from outside.

A Side is a way to move it: it starts both QEMUs as it needs them, gives the command, and says when all
pages are here. All else is done in this file, alike for every side: the guest beats in peace, moments and
counters are taken, and when it is over the guest looks at every page of its workload.

    with host_pair(rate_mbit=1000) as hosts, Room(shape, binary, hosts, folder) as room:
        run = move(room, side)
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from tests.support.move_figures import Figures, Moments, broken_steps, figures, gaps_ms, one_row, period_ms
from tests.support.netns import INTERFACE, HostPair
from tests.support.qemu import Qemu
from tests.support.ramfile import copy_sparse
from tests.support.shape import GuestShape, SavedGuest
from tests.support.witness import interface_counters

PAGES_PER_MIB: Final = 256
QUIET_BEATS: Final = 100  # about two seconds
BEATS_AFTER: Final = 10
MOVE_MAX_S: Final = 40.0
BEAT_MAX_S: Final = 10.0  # a guest that has all its pages and does not beat by then has not come through
Facts = dict[str, object]


class MoveError(Exception):
    """The guest did not come through; the text says why."""


class Room:
    """Both hosts' QEMUs of one move; they are killed, and their RAM is given back, on leaving."""

    source: Qemu
    target: Qemu

    def __init__(
        self,
        shape: GuestShape,
        binary: str | None,
        hosts: HostPair,
        folder: Path,
        saved: SavedGuest | None = None,
    ) -> None:
        """`saved`: the source's guest is restored from this instead of booted, which saves three seconds."""
        self.shape = shape
        self._saved = saved
        self.hosts = hosts
        self.folder = folder
        self.stack = ExitStack()  # what a side starts beside them goes here
        self._binary = binary

    @property
    def source_ram(self) -> Path:
        return self.folder / "source.ram"

    @property
    def target_ram(self) -> Path:
        return self.folder / "target.ram"

    def adapter_socket(self, name: str) -> Path:
        """A second QMP socket of the QEMU in folder `name`, for whoever is not us."""
        return self.folder / name / "adapter"

    def start_source(self, environment: Mapping[str, str] | None = None) -> None:
        """The guest's workload runs when this returns."""
        if self._saved is not None:
            copy_sparse(self._saved.image, self.source_ram)
        self.source = self._start("source", self.source_ram, self.hosts.source.prefix, environment)
        if self._saved is not None:
            self.source.load(self._saved.state)
            ours_alone = {"capability": "x-ignore-shared", "state": False}
            self.source.qmp.command("migrate-set-capabilities", capabilities=[ours_alone])
            self.source.resume()
        self.source.console.wait_beats(1)

    def start_target(self, environment: Mapping[str, str] | None = None) -> None:
        self.target = self._start("target", self.target_ram, self.hosts.destination.prefix, environment)

    def _start(self, name: str, ram: Path, prefix: list[str], environment: Mapping[str, str] | None) -> Qemu:
        self.stack.callback(ram.unlink, missing_ok=True)
        qmp = self.adapter_socket(name)
        return self.stack.enter_context(
            Qemu(
                self.shape,
                ram,
                self.folder / name,
                restoring=self._saved if name == "source" else None,
                incoming=name == "target",
                environment=environment,
                prefix=prefix,
                binary=self._binary,
                extra=("-qmp", f"unix:{qmp},server=on,wait=off"),
            )
        )

    def wire_bytes(self) -> int:
        """Through the destination's interface, both ways, ever."""
        counters = interface_counters(self.hosts.destination.pid, INTERFACE)
        return counters.rx_bytes + counters.tx_bytes

    def __enter__(self) -> Self:
        self.folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.__exit__(kind, error, trace)


class Side(Protocol):
    """A way to move a guest. One object a move."""

    def prepare(self, room: Room) -> None:
        """Starts both QEMUs of the room; afterwards `start` costs nothing but the move itself."""

    def start(self) -> int:
        """Gives the command: when that was."""

    def wait_all_here(self) -> int:
        """Until the destination needs nothing more of the source: when that was. MoveError if it will not
        be.
        """

    def finish(self) -> Facts:
        """After everything has been taken: what the side itself has to tell."""


@dataclass(frozen=True)
class Run:
    figures: Figures
    guest_errors: int
    period_ms: float
    writes_per_s: int  # of pages, before the move
    quiet_gaps_ms: list[float] = field(default_factory=list)  # between heartbeats, before the move
    precopy_gaps_ms: list[float] = field(default_factory=list)  # from the start until the guest was stopped
    facts: Facts = field(default_factory=dict)


def move(room: Room, side: Side, quiet_beats: int = QUIET_BEATS) -> Run:
    side.prepare(room)
    quiet = room.source.console.wait_beats(quiet_beats)
    counted = room.wire_bytes()
    started_ns = side.start()
    all_here_ns = side.wait_all_here()
    moments = Moments(started_ns, all_here_ns, room.wire_bytes() - counted)
    room.target.console.wait_beats(BEATS_AFTER, BEAT_MAX_S)
    look_at_every_page(room)
    row = one_row(room.source.console, room.target.console)
    elapsed_s = (quiet[-1].arrived_ns - quiet[0].arrived_ns) / 1e9
    return Run(
        figures=figures(row, period_ms(quiet), moments),
        guest_errors=row[-1].errors + broken_steps(row),
        period_ms=round(period_ms(quiet), 2),
        writes_per_s=round((quiet[-1].rewritten - quiet[0].rewritten) / elapsed_s),
        quiet_gaps_ms=gaps_ms(quiet),
        precopy_gaps_ms=gaps_ms(room.source.console.beats, started_ns),
        facts=side.finish(),
    )


def look_at_every_page(room: Room) -> None:
    """Errors stay counted, so the last heartbeat tells."""
    console = room.target.console
    epoch = console.beats[-1].epoch + 1
    room.target.say("epoch\n")
    pages = room.shape.workload_mib * PAGES_PER_MIB
    whole = f"a look at all {pages} pages"
    console.wait_beat(lambda beat: beat.epoch == epoch and beat.distinct == pages, whole, BEAT_MAX_S)


def deadline_ns(wait_s: float = MOVE_MAX_S) -> int:
    return time.monotonic_ns() + int(wait_s * 1e9)
