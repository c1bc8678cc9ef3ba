# SPDX-License-Identifier: Apache-2.0
"""`make soak`: five VMs at once in one fault client process, each of another kind, one life after another.

Their guests check every page that they read, while page servers are killed, links break, balloons take pages
and mappings are zapped. It ends when enough was read and enough has faulted on each kind, and fails if
anything was wrong, or if one of the branches that are rare (branches.py) was never met.

    python -m tests.soak [--short] [--reads N] [--faults N] [--seed S]

The last line is `soak: {...}`. Exit code 1, and the reason, on any failure.
"""

import argparse
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from faultclient.pager import Client
from pageferry.reasons import PageferryError
from tests.soak.branches import BRANCHES, DEATHS, count, never_met
from tests.soak.lives import DATA_PERCENT, KINDS, PAGES, Kind, Room, live
from tests.soak.world import ImageServer, LiveSource, SoakError, closing, cut_links, program
from tests.support.guest import GuestError, Shape
from tests.support.processes import ProcessError
from tests.support.ramfile import run_folder
from tests.support.settings import Settings, SettingsError

SEEDS: Final = (21, 22, 23)
HUGE_FOLDER_BYTES: Final = 8 * PAGES * 4096
HUGE_POOL_PAGES: Final = 2 * PAGES // 512  # a VM that ends, and the next
POLL_S: Final = 0.2
MIN_LIVES: Final = 3  # of a kind: each of its flavours


@dataclass(frozen=True)
class Plan:
    """How much of everything: reads that were checked, and faults of each kind."""

    reads: int = 10_000_000
    faults: int = 1_000_000
    faults_of_a_kind: int = 100_000
    looks_a_life: int = 100_000
    looks_of_deaths: int = 200_000
    kill_every_s: float = 12.0
    cut_every_s: float = 1.5


SHORT: Final = Plan(
    reads=200_000,
    faults=40_000,
    faults_of_a_kind=2_000,
    looks_a_life=25_000,
    looks_of_deaths=24_000,
    kill_every_s=5.0,
    cut_every_s=0.5,
)


class Soak:
    def __init__(self, plan: Plan, room: Room, seed: int) -> None:
        self.plan = plan
        self.room = room
        self.cuts = 0
        self.deaths: dict[str, int] = {}
        self._dice = random.Random(seed)
        self._seed = seed
        self._dying = program(DEATHS)
        self._failures: list[str] = []

    # ------------------------------------------------------------------------------------------------ threads

    def _enough(self, kind: Kind) -> bool:
        plan, room = self.plan, self.room
        faults = plan.faults // sum(each.faults_often for each in KINDS) if kind.faults_often else 0
        return (
            room.reads[kind.name] >= plan.reads // len(KINDS)
            and room.faults(kind.name) >= max(faults, plan.faults_of_a_kind)
        )

    def _one_after_another(self, kind: Kind) -> None:
        number = 0
        well = False
        try:
            while not self.room.stop.is_set() and (number < MIN_LIVES or not self._enough(kind)):
                seed = self._seed * 1_000_003 + number * 31 + len(kind.name)
                live(kind, number, self.plan.looks_a_life, self.room, seed)
                number += 1
            well = True
        except (SoakError, GuestError, ProcessError, PageferryError, OSError) as error:
            self.failed(f"{kind.name}, life {number}: {error}")
            well = True
        finally:
            if not well:  # a mistake in the soak itself, which Python tells
                self.failed(f"{kind.name}, life {number} has ended by a mistake")

    def _workers_that_die(self) -> None:
        arguments = [str(self._dying), str(self.plan.looks_of_deaths), str(self._seed)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            self.failed(f"workers that die: {done.stderr[-2000:]}{done.stdout}")
            return
        self.deaths = json.loads(done.stdout)

    def failed(self, why: str) -> None:
        self._failures.append(why)
        self.room.stop.set()

    def run(self, console: Console) -> list[str]:
        """What was wrong."""
        threads = [threading.Thread(target=self._one_after_another, args=(kind,)) for kind in KINDS]
        threads.append(threading.Thread(target=self._workers_that_die))
        for thread in threads:
            thread.start()
        try:
            self._watch(console, threads)
        finally:
            self.room.stop.set()
            for thread in threads:
                thread.join()
        return self._failures

    # ---------------------------------------------------------------------------------------------- meanwhile

    def _watch(self, console: Console, threads: list[threading.Thread]) -> None:
        columns = (
            TextColumn("soak"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("reads, {task.fields[faults]:,} faults, {task.fields[lives]} lives"),
            TimeElapsedColumn(),
        )
        began = time.monotonic()
        cut_at = began + self.plan.cut_every_s
        kill_at = began + self.plan.kill_every_s
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("soak", total=self.plan.reads, faults=0, lives=0)
            while any(thread.is_alive() for thread in threads):
                now = time.monotonic()
                if now >= cut_at:
                    address = self._dice.choice([self.room.server.address, self.room.source.address])
                    self.cuts += cut_links(address)
                    cut_at = now + self.plan.cut_every_s
                if now >= kill_at:
                    self.room.server.kill()
                    kill_at = time.monotonic() + self.plan.kill_every_s
                progress.update(
                    task,
                    completed=min(self.reads(), self.plan.reads - 1),  # other things may lack still
                    faults=self.faults(),
                    lives=self.room.lives.total(),
                )
                time.sleep(POLL_S)
            progress.update(task, completed=self.reads())

    def reads(self) -> int:
        return self.room.reads.total() + self.deaths.get("looks", 0)

    def faults(self) -> int:
        return sum(counters["faults_total"] for counters in self.counters().values())

    def counters(self) -> dict[str, Counter[str]]:
        return self.room.counters | {DEATHS: Counter(self.deaths)}


# ---------------------------------------------------------------------------------------------------- verdict


def judge(soak: Soak) -> list[str]:
    plan, room = soak.plan, soak.room
    wrong = [f"never met: {name}" for name in never_met(soak.counters())]
    if soak.reads() < plan.reads:
        wrong.append(f"{soak.reads():,} reads were checked, which is too few")
    if soak.faults() < plan.faults:
        wrong.append(f"{soak.faults():,} faults were too few")
    for kind in KINDS:
        if room.faults(kind.name) < plan.faults_of_a_kind:
            wrong.append(f"{room.faults(kind.name):,} faults on {kind.name} were too few")
    if soak.cuts == 0 or room.server.kills == 0:
        wrong.append(f"{soak.cuts} links were cut, {room.server.kills} servers were killed")
    return wrong


def show(console: Console, soak: Soak) -> None:
    room = soak.room
    columns = ("kind", "lives", "reads", "faults", "zapped", "given away", "SIGBUS")
    kinds = Table(*columns, title="what was looked at")
    for kind in KINDS:
        done = room.done.get(kind.name, Counter())
        counts = (room.lives, room.reads, {kind.name: room.faults(kind.name)})
        cells = [f"{each[kind.name]:,}" for each in counts]
        kinds.add_row(kind.name, *cells, *(f"{done[what]:,}" for what in ("zapped", "given away", "bus")))
    looks, faults = (f"{soak.deaths.get(name, 0):,}" for name in ("looks", "faults_total"))
    kinds.add_row(f"{soak.deaths.get('deaths', 0):,} workers that died", "", looks, faults, "", "", "")
    console.print(kinds)
    branches = Table("rare branch", "times", title="what rarely happens")
    for branch in BRANCHES:
        times = count(branch, soak.counters())
        branches.add_row(branch.name, f"{times:,}" if times else "NEVER")
    console.print(branches)
    console.print(f"{room.server.kills} page servers killed, {soak.cuts} links cut")


def closing_line(soak: Soak, wrong: list[str]) -> str:
    room = soak.room
    figures: dict[str, Any] = {
        "ok": not wrong,
        "reads": soak.reads(),
        "faults": soak.faults(),
        "faults_by_kind": {kind.name: room.faults(kind.name) for kind in KINDS},
        "lives": room.lives.total(),
        "deaths": soak.deaths.get("deaths", 0),
        "kills": room.server.kills,
        "cuts": soak.cuts,
        "branches": {branch.name: count(branch, soak.counters()) for branch in BRANCHES},
    }
    return f"soak: {json.dumps(figures)}"


# ------------------------------------------------------------------------------------------------------- main


def soaked(plan: Plan, seed: int, folder: Path, machine: Settings, console: Console) -> int:
    shapes = {f"image-{each}": Shape((PAGES,), seed=each, data_percent=DATA_PERCENT) for each in SEEDS}
    images = {name: shape.make_image(folder / name) for name, shape in shapes.items()}
    client, source = Client(), LiveSource()
    with ExitStack() as stack:
        stack.enter_context(closing(client.close))
        stack.enter_context(closing(source.close))
        server = stack.enter_context(ImageServer(folder, images))
        huge = machine.tmpfs("huge=advise", f"size={HUGE_FOLDER_BYTES}")
        machine.add_huge_pages(HUGE_POOL_PAGES)
        soak = Soak(plan, Room(folder, huge, client, server, shapes, source), seed)
        wrong = soak.run(console)
        wrong += judge(soak)
    show(console, soak)
    for why in wrong:
        print(f"soak failed: {why}", file=sys.stderr)
    print(closing_line(soak, wrong))
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="VMs of all kinds at once, for long.")
    parser.add_argument("--short", action="store_true", help="half a minute of it")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what happens when")
    parser.add_argument("--reads", type=int, help="that are checked at least")
    parser.add_argument("--faults", type=int, help="that are made at least")
    given = parser.parse_args()
    plan = SHORT if given.short else Plan()
    plan = replace(plan, reads=given.reads or plan.reads, faults=given.faults or plan.faults)
    console = Console()
    console.print(f"seed {given.seed}")
    try:
        with run_folder() as folder, Settings() as machine:
            return soaked(plan, given.seed, folder, machine, console)
    except (SoakError, SettingsError, ProcessError, subprocess.CalledProcessError) as error:
        print(f"soak failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
