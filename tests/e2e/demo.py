# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a real Linux guest resumes while its memory is still on another host.

Boots a guest under QEMU, saves it, and restores it twice through `pageserver serve` and `faultclient run`,
between two network namespaces joined by a 1 Gbit/s link. The first restore proves that the memory really is
remote: the page server is stopped before the guest may run, and the guest stands still until it goes on. The
second one is measured.

What is claimed is shown by somebody else: the guest verifies every page it reads and counts its errors, the
kernel counts bytes and blocks. Exit code 1, and the reason, on any failure. The last line is `demo: {...}`
with the figures.

    python -m tests.e2e.demo [--machine pc|microvm] [--smp N] [--balloon] [--virtio-mem] [--memory KIND]
    QEMU=... names another QEMU

--balloon, --virtio-mem: all through the restore the guest gives memory away and takes it back. What it has
given away is free memory to it: it may never miss any of the memory that it verifies.
--memory: what it is restored on. `tmpfs`; `hugetlbfs`, on a mount made for it, with pages added to the pool;
`memfd`, while transparent huge pages are forced on. Settings are put back, also when this is killed.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.support.console import ConsoleError, Heartbeat, missing_beats
from tests.support.giving import Counts, Giving
from tests.support.lazy import LazyRestore
from tests.support.netns import HostPair, NamespaceError, host_pair
from tests.support.processes import ProcessError
from tests.support.qemu import Qemu, QemuError
from tests.support.qmp import QmpError
from tests.support.ramfile import run_folder
from tests.support.settings import HUGE_2_MIB, SHMEM_ENABLED, Settings, SettingsError
from tests.support.shape import PLUGGED_STEP_MIB, GuestShape, SavedGuest, plugged_file
from tests.support.witness import reaches, same_namespace

LINK_MBIT: Final = 1000
GIVING_LINK_MBIT: Final = 100  # so that the restore lasts
REMOVED_MIN: Final = 100_000  # pages, by a balloon one by one
FRAME_BYTES: Final = 32
STOPPED_S: Final = 3.0
AFTER_S: Final = 5.0
WIRE_OVERHEAD_MAX: Final = 1.1
PAGES_PER_MIB: Final = 256
POLL_S: Final = 0.05
MEMORIES: Final = ("tmpfs", "hugetlbfs", "memfd")
Memory = Path | Literal["memfd"] | None


class DemoError(Exception):
    """A promise did not hold."""


def must(holds: bool, promise: str) -> None:
    if not holds:
        raise DemoError(promise)


@dataclass
class Figures:
    """The closing line; the names are fixed."""

    resumed_ms: float = 0.0  # from the start of QEMU to `cont` having returned
    first_heartbeat_ms: float = 0.0  # from `cont` to the guest's first sign of life
    faults: int = 0
    bulk_pages: int = 0
    fault_p50_us: float = 0.0
    fault_p99_us: float = 0.0
    bytes_fetched: int = 0
    bytes_wire: int = 0
    guest_errors: int = 0
    given: dict[str, int] = field(default_factory=dict)  # what a balloon and virtio-mem did; else not shown

    def line(self) -> str:
        rounded = {
            name: round(value, 1) if isinstance(value, float) else value
            for name, value in (vars(self) | self.given).items()
            if name != "given"
        }
        return f"demo: {json.dumps(rounded)}"


class Show:
    """Live progress on a terminal; elsewhere a line a step."""

    def __init__(self) -> None:
        self.console = Console(stderr=False)

    def step(self, text: str) -> None:
        self.console.print(f"[bold]{text}[/bold]" if self.console.is_terminal else text, highlight=False)

    @contextmanager
    def pages(self, total: int) -> Iterator[tuple[Progress, TaskID]]:
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pages, {task.fields[faults]} faults, heartbeat {task.fields[beat]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            yield progress, progress.add_task("arriving", total=total, faults=0, beat="-")


def save_guest(shape: GuestShape, folder: Path) -> SavedGuest:
    """Boots, beats, is saved. The image gets a folder of its own, which the destination will not see."""
    images = folder / "images"
    images.mkdir()
    room = folder / "source"
    with Qemu(shape, folder / "source.ram", room, extra=Giving.options(room)) as source:
        source.console.wait_beats(25)
        if shape.balloon:
            with Giving(source, room) as giving:
                must(giving.balloon_once(giving.amplitude_mib), "the guest's balloon was not inflated")
        saved = source.save(images / "guest.image")
        must(source.console.beats[-1].errors == 0, "the guest found errors before it was saved")
    for ram in (folder / "source.ram", plugged_file(folder / "source.ram")):
        ram.unlink(missing_ok=True)
    return saved


@contextmanager
def memory_of(kind: str, shape: GuestShape) -> Iterator[Memory]:
    """Where the restored guest's RAM lies: as LazyRestore wants it."""
    with ExitStack() as stack:
        if kind == "tmpfs":
            yield None
            return
        machine = stack.enter_context(Settings())
        if kind == "memfd":
            machine.write(SHMEM_ENABLED, "force")
            yield "memfd"
        else:
            machine.add_huge_pages((shape.memory_mib << 20) // HUGE_2_MIB)
            yield machine.hugetlbfs()


def prove_remote(saved: SavedGuest, hosts: HostPair, folder: Path, memory: Memory) -> None:
    """Without its page server the guest does not run; with it, it does."""
    with LazyRestore(saved, hosts, folder, memory=memory) as restore:
        must(not reaches(restore.guest.pid, saved.image), "the destination's QEMU can open the image")
        must(not reaches(restore.client.pid, saved.image), "the fault client can open the image")
        for kind in ("net", "mnt"):
            alike = same_namespace(restore.guest.pid, restore.server.pid, kind)
            must(not alike, f"source and destination share a {kind} namespace")
        restore.guest.load(saved.state)
        restore.server.kick(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            # beside us: QEMU itself may wait for a page before it answers
            resumed = threads.submit(restore.guest.resume)
            try:
                time.sleep(STOPPED_S)
                must(not restore.guest.console.beats, "the guest ran although its page server was stopped")
            finally:
                restore.server.kick(signal.SIGCONT)
            resumed.result()
        (beat,) = restore.guest.console.wait_beats(1)[:1]
        must(beat.errors == 0, "the guest found errors after its page server went on")


def watch(restore: LazyRestore, show: Show) -> list[int]:
    """Shows pages arriving until the fault client has ended. How many bytes waited for it on its hand-off
    socket, each time.
    """
    session = restore.session()
    waiting_bytes: list[int] = []
    with show.pages(session.pages_total) as (progress, task):
        while restore.client.running:
            try:
                session = restore.session()
            except (grpc.RpcError, ProcessError):  # between two looks it may have ended: outcome() tells
                break
            waiting_bytes += restore.handoff_bytes()
            beats = restore.guest.console.beats
            progress.update(
                task,
                completed=session.pages_settled,
                faults=session.faults,
                beat=str(beats[-1].number) if beats else "-",
            )
            time.sleep(POLL_S)
        progress.update(task, completed=session.pages_total)
    return waiting_bytes


def restore_measured(
    saved: SavedGuest, hosts: HostPair, folder: Path, show: Show, memory: Memory
) -> Figures:
    figures = Figures()
    room = folder / "qemu"
    with (
        LazyRestore(saved, hosts, folder, guest_options=Giving.options(room), memory=memory) as restore,
        Giving(restore.guest, room) as giving,
    ):
        guest = restore.guest
        must(restore.blocks_at_start == 0, "the RAM file held blocks when the VMM was started")
        guest.load(saved.state)
        called_ns = time.monotonic_ns()
        guest.resume()
        figures.resumed_ms = (time.monotonic_ns() - restore.started_ns) / 1e6
        guest.say("epoch\n")
        if saved.shape.drivers:
            giving.start()
        waiting_bytes = watch(restore, show)
        outcome = restore.outcome()
        figures.bytes_wire = restore.received_bytes() - restore.received_before
        must(outcome["asks_outstanding"] == 0, "pages were asked and never answered")
        restore.server.close()  # killed: nothing may depend on it any more
        show.step(f"  page server killed; the guest goes on verifying for {AFTER_S:g} s")
        last = verify_after(guest, guest.console.beats[-1])
        giving.stop()
        figures.first_heartbeat_ms = (guest.console.beats[0].arrived_ns - called_ns) / 1e6
        figures.guest_errors = last.errors
        must(
            last.errors == 0, f"the guest found {last.errors} errors:\n" + "\n".join(guest.console.errors[:8])
        )
        missed = missing_beats(guest.console.beats, after=saved.last_beat)
        must(not missed, f"heartbeats are missing: {missed[:5]}")
        half = saved.shape.memory_mib * PAGES_PER_MIB // 2
        must(
            last.distinct >= half,
            f"the guest has verified {last.distinct} pages, which is not half of its RAM",
        )
    figures.faults = outcome["faults_total"]
    figures.bulk_pages = outcome["bulk_pages_total"]
    figures.bytes_fetched = outcome["fetched_bytes_total"]
    figures.fault_p50_us = outcome["fault_p50_us"]
    figures.fault_p99_us = outcome["fault_p99_us"]
    judge(figures)
    if saved.shape.drivers:
        judge_given(saved.shape, giving.counts, outcome, waiting_bytes)
        names = ("discards_total", "discards_kept_total", "removed_pages_total")
        figures.given = vars(giving.counts) | {name: outcome[name] for name in names}
    return figures


def verify_after(guest: Qemu, before: Heartbeat) -> Heartbeat:
    """The guest goes on by itself, and looks at its pages again."""
    until_ns = time.monotonic_ns() + int(AFTER_S * 1e9)
    last = guest.console.wait_beat(
        lambda beat: beat.arrived_ns >= until_ns, "heartbeats without a page server"
    )
    must(last.verified > before.verified, "the guest verified nothing after the page server's end")
    return last


def judge(figures: Figures) -> None:
    must(figures.faults > 0, "there was no fault: the memory was not remote")
    must(figures.bulk_pages > 0, "no page came in bulk")
    fetched, wire = figures.bytes_fetched, figures.bytes_wire
    must(
        fetched <= wire <= WIRE_OVERHEAD_MAX * fetched,
        f"{fetched} bytes of pages were fetched, but the kernel counted {wire} bytes in",
    )


def judge_given(
    shape: GuestShape, counts: Counts, outcome: dict[str, Any], waiting_bytes: list[int]
) -> None:
    """One report of a discard is under way at a time, however many there are: no more may have waited."""
    must(bool(waiting_bytes), "nobody has looked at the hand-off socket")
    most = max(waiting_bytes)
    must(most <= FRAME_BYTES, f"{most} bytes of discards waited for the fault client at once")
    must(outcome["alarms_total"] == 0, "the fault client has met what cannot be")
    if shape.balloon:
        must(counts.inflated > 0 and counts.deflated > 0, f"the balloon stood still: {counts}")
        removed = outcome["removed_pages_total"]
        must(
            removed >= REMOVED_MIN,
            f"the guest gave away {removed} pages while its memory came, which is too few",
        )
    if shape.plugged_mib:
        must(counts.unplugged > 0 and counts.plugged > 0, f"nothing was unplugged or plugged in: {counts}")


def as_table(figures: Figures, saved: SavedGuest) -> Table:
    table = Table("what", "figure", title="lazy restore", title_justify="left")
    shape = saved.shape
    table.add_row(
        "guest", f"{shape.qemu_machine}, {shape.smp} vCPU, {shape.memory_mib} MiB, QEMU {saved.qemu_version}"
    )
    table.add_row("link", f"{link_mbit(shape)} Mbit/s")
    table.add_row("QEMU's start to running guest", f"{figures.resumed_ms:.0f} ms")
    table.add_row("then to its first heartbeat", f"{figures.first_heartbeat_ms:.0f} ms")
    table.add_row("page faults", f"{figures.faults}")
    table.add_row(
        "of those fetched: p50, p99", f"{figures.fault_p50_us:.0f} us, {figures.fault_p99_us:.0f} us"
    )
    table.add_row("pages in bulk", f"{figures.bulk_pages}")
    table.add_row("page bytes fetched", f"{figures.bytes_fetched:,}")
    table.add_row("bytes in, by the kernel", f"{figures.bytes_wire:,}")
    for name, count in figures.given.items():
        table.add_row(f"given away and taken back: {name}", f"{count:,}")
    table.add_row("errors that the guest found", f"{figures.guest_errors}")
    return table


def link_mbit(shape: GuestShape) -> int:
    return GIVING_LINK_MBIT if shape.drivers else LINK_MBIT


def demo(shape: GuestShape, kind: str) -> Figures:
    show = Show()
    with run_folder() as folder, memory_of(kind, shape) as memory:
        show.step(f"1  booting a guest ({shape.qemu_machine}, {shape.smp} vCPU) and saving it")
        saved = save_guest(shape, folder)
        with host_pair(hide=[saved.image.parent], rate_mbit=link_mbit(shape)) as hosts:
            show.step(
                f"2  restoring it with its page server stopped: it must stand still for {STOPPED_S:g} s"
            )
            prove_remote(saved, hosts, folder / "proof", memory)
            show.step("3  restoring it")
            figures = restore_measured(saved, hosts, folder / "restore", show, memory)
        show.console.print(as_table(figures, saved))
    return figures


def arguments() -> tuple[GuestShape, str]:
    parser = argparse.ArgumentParser(description="A real guest resumes before its memory has arrived.")
    parser.add_argument(
        "--machine", default="pc", help="pc, microvm, or a versioned machine type (default: pc)"
    )
    parser.add_argument("--smp", type=int, default=1, help="vCPUs; microvm has one (default: 1)")
    parser.add_argument("--balloon", action="store_true", help="a balloon that never rests")
    parser.add_argument(
        "--virtio-mem", action="store_true", help="memory in a second RAM file, unplugged and plugged in"
    )
    parser.add_argument(
        "--memory", choices=MEMORIES, default="tmpfs", help="what it is restored on (default: tmpfs)"
    )
    given = parser.parse_args()
    if given.memory != "tmpfs" and given.virtio_mem:
        parser.error("virtio-mem has a second RAM file, on tmpfs alone here")
    # room for a balloon beside the workload, or for the workload when memory is unplugged
    sizes = {"memory_mib": 512, "workload_mib": 320} if given.balloon else {}
    plugged_mib = PLUGGED_STEP_MIB if given.virtio_mem else 0
    try:
        shape = GuestShape(
            machine=given.machine, smp=given.smp, balloon=given.balloon, plugged_mib=plugged_mib, **sizes
        )
    except ValueError as error:
        parser.error(str(error))
    return shape, given.memory


def main() -> int:
    shape, memory = arguments()
    try:
        figures = demo(shape, memory)
    except (
        SettingsError,
        DemoError,
        QemuError,
        QmpError,
        ConsoleError,
        ProcessError,
        NamespaceError,
        AssertionError,
    ) as error:
        notes = "\n".join(getattr(error, "__notes__", []))
        print(f"demo failed: {error}\n{notes}", file=sys.stderr)
        return 1
    print(figures.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
