# SPDX-License-Identifier: Apache-2.0
"""`make migrate-demo`: a guest that is written flat out moves to another host, our way and QEMU's.

Two QEMU processes in two network namespaces, joined by a link of 1 Gbit/s each way; the same guest, the
same link, and one program that takes the figures of every side (tests/support/move_figures.py):

    qemu, qemu_preempt      QEMU's own postcopy at once; what the guest asks for goes on the one stream, or on
                            one of its own
    qemu_hybrid_...         the same two after some precopy
    at_once, hybrid         ours

All sides once a round, in an order that turns round with every round. At the end, for each version of QEMU,
a line `migrate-demo: {...}` with the medians. Before it stand the promises; exit status 1 says that one of
them is not kept. Every run goes to build/migrate-demo/DATE.json.

    python -m tests.e2e.migrate_demo [--version 7.2|10.0|both] [--rounds N] [--sides A,B] [--short]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.support.console import ConsoleError
from tests.support.initrd import ROOT, GuestImageError
from tests.support.move_figures import NAMES, Figures
from tests.support.move_guests import Guests
from tests.support.move_ours import Ours
from tests.support.move_peer import QemuPostcopy
from tests.support.move_room import QUIET_BEATS, MoveError, Room, Side, move
from tests.support.move_verdict import (
    PEER_HYBRIDS,
    SIDES,
    Outcome,
    checks,
    closing_line,
    guest_errors,
    medians,
)
from tests.support.netns import HostPair, NamespaceError, host_pair
from tests.support.processes import ProcessError
from tests.support.qemu import DEFAULT_BINARY, QemuError
from tests.support.qemu_versions import FetchError, fetch
from tests.support.qmp import QmpError
from tests.support.ramfile import run_folder
from tests.support.shape import GuestShape

LINK_MBIT: Final = 1000
SYSTEM_VERSION: Final = "7.2"  # the distribution's; any other is fetched
VERSIONS: Final = (SYSTEM_VERSION, "10.0")
BUSY_LOAD: Final = 0.5
SHORT_PRECOPY_S: Final = 1.0
SHORT_QUIET_BEATS: Final = 25
TRIES_MAX: Final = 2  # of a side of the peer's that never came through
RESULTS: Final = ROOT / "build" / "migrate-demo"
FAILURES: Final = (MoveError, QemuError, QmpError, ConsoleError, ProcessError, grpc.RpcError)


@dataclass(frozen=True)
class Plan:
    versions: tuple[str, ...]
    sides: tuple[str, ...]
    rounds: int
    shape: GuestShape
    precopy_s: float
    short: bool


def make_side(name: str, precopy_s: float) -> Side:
    sides: dict[str, Callable[[], Side]] = {
        "qemu": QemuPostcopy,
        "qemu_preempt": lambda: QemuPostcopy(preempt=True),
        "qemu_hybrid_plain": lambda: QemuPostcopy(precopy_s=precopy_s),
        "qemu_hybrid_preempt": lambda: QemuPostcopy(preempt=True, precopy_s=precopy_s),
        "at_once": Ours,
        "hybrid": lambda: Ours(precopy_s=precopy_s),
    }
    return sides[name]()


def arguments(given: Sequence[str] | None = None) -> Plan:
    parser = argparse.ArgumentParser(prog="migrate_demo", description="A guest moves, our way and QEMU's.")
    parser.add_argument("--version", choices=(*VERSIONS, "both"), default="both", help="of QEMU")
    parser.add_argument("--rounds", type=int, default=6, help="each side once a round (default: 6)")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"some of {','.join(SIDES)}")
    parser.add_argument(
        "--fill-mib", type=int, default=192, help="of the guest's 384 MiB, filled with stamps"
    )
    parser.add_argument("--hot-mib", type=int, default=128, help="of these, written flat out, in order")
    parser.add_argument("--precopy", type=float, default=4.0, help="seconds, of the hybrid sides")
    parser.add_argument("--short", action="store_true", help="one round, a small guest; times are not judged")
    chosen = parser.parse_args(given)
    sides = tuple(chosen.sides.split(","))
    if unknown := [name for name in sides if name not in SIDES]:
        parser.error(f"no such side: {', '.join(unknown)}")
    if chosen.rounds < 1:
        parser.error("at least one round")
    fill, hot = (96, 64) if chosen.short else (chosen.fill_mib, chosen.hot_mib)
    try:
        shape = GuestShape(workload_mib=fill, hot_mib=hot)
    except ValueError as error:
        parser.error(str(error))
    return Plan(
        versions=VERSIONS if chosen.version == "both" else (chosen.version,),
        sides=sides,
        rounds=1 if chosen.short else chosen.rounds,
        shape=shape,
        precopy_s=min(chosen.precopy, SHORT_PRECOPY_S) if chosen.short else chosen.precopy,
        short=chosen.short,
    )


def binary_of(version: str) -> str:
    """Of the system, or beside it; it is asked whether it is what it is called."""
    binary = (os.environ.get("QEMU") or DEFAULT_BINARY) if version == SYSTEM_VERSION else str(fetch(version))
    if shutil.which(binary) is None:
        raise FetchError(f"{binary} is not here: install package qemu-system-x86")
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    if f"version {version}." not in told:
        raise FetchError(f"{binary} is not version {version}: {told.splitlines()[0]}")
    return binary


class Demo:
    def __init__(self, plan: Plan, hosts: HostPair, folder: Path, progress: Progress) -> None:
        self.outcomes: list[Outcome] = []
        self._plan = plan
        self._hosts = hosts
        self._folder = folder
        self._progress = progress
        self._guests = Guests(folder)
        self._started = datetime.now(UTC)
        self._load = os.getloadavg()[0]

    def measure(self, version: str, binary: str) -> list[Outcome]:
        plan = self._plan
        task = self._progress.add_task(f"QEMU {version}", total=plan.rounds * len(plan.sides))
        found: list[Outcome] = []
        for number in range(1, plan.rounds + 1):
            for name in plan.sides if number % 2 else plan.sides[::-1]:
                if not self._hopeless(name, found):
                    found.append(self._attempt(version, binary, number, name))
                    self._say(found[-1])
                self._progress.update(task, advance=1, refresh=True)
        return found

    def _hopeless(self, name: str, found: list[Outcome]) -> bool:
        tries = [outcome.run for outcome in found if outcome.side == name]
        return name in PEER_HYBRIDS and len(tries) >= TRIES_MAX and not any(tries)

    def _attempt(self, version: str, binary: str, number: int, name: str) -> Outcome:
        side = make_side(name, self._plan.precopy_s)
        folder = self._folder / f"{version}-{number}-{name}"
        shape, short = self._plan.shape, self._plan.short
        try:
            saved = self._guests.saved(shape, binary) if short else None
            with Room(shape, binary, self._hosts, folder, saved) as room:
                quiet_beats = SHORT_QUIET_BEATS if short else QUIET_BEATS
                outcome = Outcome(version, number, name, move(room, side, quiet_beats))
        except FAILURES as error:
            outcome = Outcome(version, number, name, None, str(error))
        shutil.rmtree(folder, ignore_errors=True)
        self.outcomes.append(outcome)
        self._keep()
        return outcome

    def _say(self, outcome: Outcome) -> None:
        run = outcome.run
        told = f"no result: {outcome.failure.splitlines()[0]}" if run is None else figures_text(run.figures)
        if run is not None and run.guest_errors:
            told += f"  {run.guest_errors} ERRORS IN THE GUEST"
        line = f"{outcome.version:>5} round {outcome.round}  {outcome.side:<20}{told}"
        self._progress.console.print(line, highlight=False, soft_wrap=True)

    def _keep(self) -> None:
        """After each run: what was measured survives whatever comes."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        everything = {
            "started": self._started.isoformat(),
            "load_before": self._load,
            "link_mbit": LINK_MBIT,
            "plan": asdict(self._plan),
            "runs": [asdict(outcome) for outcome in self.outcomes],
        }
        self.results.write_text(json.dumps(everything, indent=1) + "\n")

    @property
    def results(self) -> Path:
        return RESULTS / f"{self._started:%Y-%m-%dT%H-%M-%S}.json"


def figures_text(figures: Figures) -> str:
    return (
        f"downtime {figures.downtime_ms:7.0f} ms  blocktime {figures.blocktime_ms:7.0f} ms  "
        f"total {figures.total_ms:7.0f} ms  {figures.bytes / 1e6:6.0f} MB"
    )


def as_table(version: str, middle: dict[str, Figures | None], rounds: int) -> Table:
    table = Table("side", *NAMES, title=f"QEMU {version}: medians of {rounds}", title_justify="left")
    for side in SIDES:
        figures = middle[side]
        cells = [f"{getattr(figures, name):,.0f}" for name in NAMES] if figures else ["none"] * len(NAMES)
        table.add_row(side, *cells)
    return table


def judge(plan: Plan, outcomes: list[Outcome], progress: Progress) -> tuple[bool, str]:
    """Shows one version's result: whether every promise is kept, and its closing line."""
    version = outcomes[0].version
    middle = medians(outcomes)
    progress.console.print(as_table(version, middle, plan.rounds))
    found = checks(outcomes, plan.sides, timings=not plan.short)
    for check in found:
        progress.console.print(f"{'PASS' if check.passed else 'FAIL'}  {check.text}", highlight=False)
    kept = all(check.passed for check in found)
    return kept, closing_line(version, middle, guest_errors(outcomes))


def run(plan: Plan) -> int:
    binaries = {version: binary_of(version) for version in plan.versions}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # drawn between runs only: it shares the CPUs with what is measured
    with (
        run_folder() as folder,
        host_pair(rate_mbit=LINK_MBIT) as hosts,
        Progress(*columns, auto_refresh=False) as progress,
    ):
        demo = Demo(plan, hosts, folder, progress)
        if os.getloadavg()[0] > BUSY_LOAD and not plan.short:
            progress.console.print(f"load {os.getloadavg()[0]:.1f}: not quiet, these times are worth little")
        judged = [judge(plan, demo.measure(*one), progress) for one in binaries.items()]
    print(f"every run: {demo.results.relative_to(ROOT)}")
    for _, line in judged:
        print(line)
    return 0 if all(kept for kept, _ in judged) else 1


def main() -> int:
    plan = arguments()
    started = time.monotonic()
    try:
        status = run(plan)
    except (FetchError, NamespaceError, GuestImageError) as error:
        print(f"migrate-demo cannot run here: {error}", file=sys.stderr)
        return 69
    if status:
        print(f"migrate-demo: a promise is not kept ({time.monotonic() - started:.0f} s)", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
