# SPDX-License-Identifier: Apache-2.0
"""One VM's life in the soak: its memory is handed over, arrives while its guest looks at it, is zapped, given
away and punched meanwhile, and is all here at the end. The guest checks every page that it reads.

KINDS is the table: a kind of memory, and how a life on it goes.
"""

import base64
import mmap
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from faultclient.pager import Caller, Client, EventKind, Pager, PagerEvent, accept_handoff
from pageferry.host.listener import Listener
from pageferry.service import native
from tests.soak.world import ImageServer, LiveSource, SoakError
from tests.support.build import ROOT
from tests.support.guest import PAGE_BYTES, Guest, Report, Shape
from tests.support.processes import PATIENCE_S

SHIM: Final = ROOT / "native/build/pageferry-shim.so"
PAGES: Final = 8192
DATA_PERCENT: Final = 75
ZAP_PAGES_MAX: Final = 512
ZAPS: Final = 50
REMOVED_PAGES_MAX: Final = 24
REMOVED_SHARE_MAX: Final = 0.5  # of a VM's pages: the rest is to be looked at
POLL_S: Final = 0.002
HUGE_BYTES: Final = 2 << 20
WANTED: Final = list(native.PAGE_STATES).index("WANTED")
FEW_LOOKS: Final = 2000
HOLES: Final = 200
HUGETLB_FLAVOURS: Final = 3
POISON_SHARE: Final = 0.1  # of the moments in which something happens
POISONED_MAX: Final = 1024  # pages of a VM at once
ROUNDS_MIN: Final = 12
ROUNDS_MAX: Final = 200  # for one whose pages are on their way just then
PRECOPY_BYTES_PER_S: Final = 50_000_000  # a round finds pages of the one before on their way


@dataclass
class Room:
    """What lives share. Counts are kept under the lock."""

    folder: Path
    huge_folder: Path | None  # on a tmpfs whose files may have huge folios; None: there is none
    client: Client
    server: ImageServer
    images: dict[str, Shape]
    source: LiveSource
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    lives: Counter[str] = field(default_factory=Counter)
    reads: Counter[str] = field(default_factory=Counter)
    counters: dict[str, Counter[str]] = field(default_factory=dict)
    done: dict[str, Counter[str]] = field(default_factory=dict)  # what guests did
    wrong: list[str] = field(default_factory=list)

    def faults(self, kind: str) -> int:
        return self.counters.get(kind, Counter())["faults_total"]


@dataclass
class Life:
    kind: "Kind"
    number: int
    looks: int
    room: Room
    dice: random.Random
    stack: ExitStack
    shape: Shape = field(init=False)
    guest: Guest = field(init=False)
    pager: Pager = field(init=False)
    complete: bool = False
    # Also when all is here: what is zapped then faults still, and pages can be poisoned.
    stays_registered: bool = True
    removed: int = 0
    poisoned: list[int] = field(default_factory=list)  # first pages of what is lost
    told: Counter[int] = field(default_factory=Counter)  # pages that were said to be lost, less those cleared
    poison_log: int = 0  # entries that were told
    done: Counter[str] = field(default_factory=Counter)

    # ------------------------------------------------------------------------------------------ the hand-over

    def hand_over(
        self,
        shape: Shape,
        image: str,
        address: str,
        *,
        memory: str = "memfd",
        options: Iterable[str] = (),
        shim: bool = False,
        background: bool = False,
        caller: Caller | None = None,
    ) -> None:
        """Starts the guest, and its pager, which is not armed yet."""
        name = self.room.folder / f"{self.kind.name}-{self.number}"
        folder = Path(f"{name}.vm")
        folder.mkdir()
        socket_path = folder / "socket"
        env: dict[str, str] = {}
        handoff: Path | None = socket_path
        if shim:
            env = {
                "LD_PRELOAD": str(SHIM),
                "PAGEFERRY_SHIM_RAM": f"memfd:{GUEST_MEMFD}",
                "PAGEFERRY_SHIM_SOCKET": str(socket_path),
            }
            options, handoff = ["--bare", *options], None
        self.shape = shape
        listener = self.stack.enter_context(Listener(socket_path))
        self.guest = self.stack.enter_context(
            Guest(shape, folder=folder, handoff=handoff, memory=memory, options=options, env=env)
        )
        with listener.accept(timeout_s=PATIENCE_S) as taken:
            if shim:
                accept_handoff(taken.connection.fileno())
            with self.room.lock:
                self.pager = self.room.client.open(
                    taken,
                    image=image,
                    data_address=address,
                    background=background,
                    caller=caller,
                    handed_on=self.stays_registered,
                )
            self.stack.callback(self.close_pager)
            self.wait(EventKind.ATTACHED)
        self.guest.ready()

    def close_pager(self) -> None:
        with self.room.lock:
            self.pager.close()

    # ------------------------------------------------------------------------------------- the pager's events

    def take(self) -> list[PagerEvent]:
        """What the pager tells; what it may never tell ends the life."""
        events = list(self.pager.events())
        for event in events:
            if event.kind in (EventKind.ALARM, EventKind.FAILED, EventKind.VMM_GONE):
                trace = "\n".join(self.pager.trace()[-20:])
                raise SoakError(f"{event.kind.name} page {event.page}: {event.text}\n{trace}")
            self.complete |= event.kind is EventKind.COMPLETE
            self.take_poison(event)
        return events

    def take_poison(self, event: PagerEvent) -> None:
        """Each page is told once, in the order of the log."""
        if event.kind is EventKind.POISONED:
            self.told[event.page] += 1
        elif event.kind is EventKind.POISON_CLEARED:
            self.told.subtract(range(event.page, event.page + event.value))
        else:
            return
        self.poison_log += 1
        if event.cookie != self.poison_log:
            raise SoakError(f"entry {event.cookie} of the log of poison came as entry {self.poison_log}")

    def wait(self, kind: EventKind) -> PagerEvent:
        deadline = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < deadline:
            for event in self.take():
                if event.kind is kind:
                    return event
            time.sleep(POLL_S)
        raise SoakError(f"no {kind.name}: {self.pager.pages().states}\n{self.guest.errors_told}")

    # ------------------------------------------------------------------------------------- what happens to it

    def zap(self) -> None:
        """The mappings go, and nothing else."""
        unit = self.kind.unit_pages
        count = max(self.dice.randrange(1, ZAP_PAGES_MAX), unit)
        first = self.dice.randrange(self.shape.page_count - count) // unit * unit
        self.done["zapped"] += self.guest.order("zap", first, count, 1)["zapped"]

    def zap_and_poison(self) -> None:
        self.zap()
        self.perhaps_poison()

    def zap_all(self) -> None:
        """Again and again: a unit is a single fault."""
        self.done["zapped"] += self.guest.order("zap", 0, self.shape.page_count, ZAPS)["zapped"]

    def remove(self, order: str, first: int | None = None) -> None:
        """Pages leave for ever: a few, or one unit of those that the kernel maps at once."""
        if self.removed > REMOVED_SHARE_MAX * self.shape.page_count:
            return
        unit = self.kind.unit_pages
        count = unit if unit > 1 else self.dice.randrange(1, REMOVED_PAGES_MAX)
        if first is None:
            first = self.dice.randrange(self.shape.page_count - count)
        first = first // unit * unit
        count = min(count, self.shape.page_count - first)
        self.guest.order(order, first, count, patience_s=2 * PATIENCE_S)
        self.removed += count
        self.done["given away"] += count

    def remove_waited(self, order: str) -> None:
        """The same, of a page that a thread waits for just now, if there is one."""
        if (page := self.pager.states(0, self.shape.page_count).find(WANTED)) >= 0:
            self.remove(order, page)

    def poison(self, *, dropped: bool = False) -> None:
        """A page is lost, or a unit; now and then one that was is fresh memory again. `dropped`: the VMM
        punches what is lost, and it stays lost.
        """
        unit = self.kind.unit_pages
        if len(self.poisoned) >= POISONED_MAX // unit or (self.poisoned and self.dice.random() < 0.3):
            self.clear(self.poisoned.pop(self.dice.randrange(len(self.poisoned))))
        first = self.dice.randrange(self.shape.page_count) // unit * unit
        if first in self.poisoned:
            return
        self.guest.order("losing", first, unit, patience_s=2 * PATIENCE_S)
        self.pager.poison(first, unit, cookie=first)
        self.wait_done(first, unit)
        self.guest.order("lost", first, unit)
        self.poisoned.append(first)
        if dropped:
            self.guest.order("punch", first, unit)

    def clear(self, first: int) -> None:
        unit = self.kind.unit_pages
        self.guest.order("losing", first, unit, patience_s=2 * PATIENCE_S)
        self.pager.clear_poison(first, unit, cookie=first)
        self.wait_done(first, unit)
        self.guest.order("cleared", first, unit)

    def wait_done(self, cookie: int, pages: int) -> None:
        done = self.wait(EventKind.DONE)
        if (done.cookie, done.page) != (cookie, pages):
            raise SoakError(f"poison of page {cookie}: order {done.cookie} has changed {done.page} pages")

    def perhaps_poison(self) -> None:
        if self.dice.random() < POISON_SHARE:
            self.poison()

    def looked_at(self, disturb: Callable[[], None], looks: int = 0) -> None:
        """The guest looks at its pages, at random, and writes some; `disturb` again and again meanwhile."""
        self.guest.order("run", looks or self.looks)
        while not self.room.stop.is_set():
            disturb()
            time.sleep(POLL_S)
            self.take()
            if not self.report().busy:
                return
        self.guest.order("stop")
        self.guest.wait()

    def report(self) -> Report:
        report = self.guest.report()
        if report.errors:
            raise SoakError(f"wrong pages: {report.kinds}\n{self.guest.errors_told}")
        return report

    def settle(self) -> None:
        """All of it comes, everything is looked at once more, and the books are in order."""
        self.pager.background(True)
        if not self.complete:
            self.wait(EventKind.COMPLETE)
        self.guest.do("all")
        if self.stays_registered:
            self.pager.unregister()
        report = self.report()
        counters = self.pager.counters()
        self.take()
        lost = {page for first in self.poisoned for page in range(first, first + self.kind.unit_pages)}
        if +self.told != Counter(lost):
            raise SoakError(f"lost are {sorted(lost)}, told was {sorted(self.told.elements())}")
        self.done["bus"] = report.bus
        if counters["asks_outstanding"] or counters["alarms_total"]:
            raise SoakError(f"asked and never answered: {counters['asks_outstanding']}")
        with self.room.lock:
            kind = self.kind.name
            self.room.lives[kind] += 1
            self.room.reads[kind] += report.looks
            self.room.counters.setdefault(kind, Counter()).update(counters)
            self.room.done.setdefault(kind, Counter()).update(self.done)


# -------------------------------------------------------------------------------------------------- the table


GUEST_MEMFD: Final = "guest-ram"


@dataclass(frozen=True)
class Kind:
    name: str
    live: Callable[[Life], None]
    unit_pages: int = 1  # what the kernel maps at once

    @property
    def faults_often(self) -> bool:
        """A fault brings a page, and not a unit of many."""
        return self.unit_pages == 1


def arm(life: Life) -> None:
    life.pager.arm()
    life.wait(EventKind.ARMED)


def image_of(life: Life) -> tuple[Shape, str]:
    name = life.dice.choice(sorted(life.room.images))
    return life.room.images[name], name


def memfd_that_arrives(life: Life) -> None:
    """By faults, and some of it in bulk; zapped meanwhile. Each zap's event is to be read."""
    shape, image = image_of(life)
    background = life.dice.random() < 0.5
    life.stays_registered = life.dice.random() < 0.5
    life.hand_over(
        shape, image, life.room.server.address, options=["--event-remove"], background=background
    )
    arm(life)
    life.looked_at(life.zap_and_poison if life.stays_registered else life.zap)


def memfd_that_is_here(life: Life) -> None:
    """All of it in the page cache before the guest may run, and mapped by faults alone. No shim: what the VMM
    punches, nobody hears of."""
    shape, image = image_of(life)
    life.stays_registered = False
    life.hand_over(shape, image, life.room.server.address, background=True)
    life.wait(EventKind.POPULATED)
    life.pager.background(False)
    arm(life)

    def disturb() -> None:
        if life.dice.random() < 0.4:
            life.zap()
        else:
            life.remove("punch")

    life.looked_at(disturb, FEW_LOOKS)
    for _ in range(HOLES):
        life.guest.order("punch", life.dice.randrange(PAGES), 1)
    life.pager.background(True)  # the sweep meets holes, and pages that are mapped
    life.looked_at(disturb)


def memfd_under_the_shim(life: Life) -> None:
    """Half of it in the page cache, the rest arrives; the shim reports what the VMM punches."""
    shape, image = image_of(life)
    life.hand_over(shape, image, life.room.server.address, shim=True, background=True)
    while life.pager.pages().states["MISSING"] > PAGES // 3:
        life.take()
        time.sleep(POLL_S / 4)
    life.pager.background(False)
    arm(life)

    def disturb() -> None:
        life.remove_waited("punch")
        if life.dice.random() < POISON_SHARE:
            life.poison(dropped=True)
        if life.dice.random() < 0.5:
            life.zap()
        else:
            life.remove("punch")

    life.looked_at(disturb)


def memfd(life: Life) -> None:
    flavours = (memfd_that_arrives, memfd_that_is_here, memfd_under_the_shim)
    flavours[life.number % len(flavours)](life)


def tmpfs_huge(life: Life) -> None:
    """A RAM file with something in it, in huge folios: the kernel calls it present, and it is not."""
    shape, image = image_of(life)
    assert life.room.huge_folder is not None
    path = life.room.huge_folder / f"ram-{life.number}"
    life.stack.callback(path.unlink)
    if fill_huge(path, PAGES * PAGE_BYTES) == 0:
        raise SoakError("no page of the RAM file has become huge")
    life.hand_over(shape, image, life.room.server.address, memory=f"file:{path}", background=False)
    arm(life)
    life.looked_at(life.zap_and_poison)


def fill_huge(path: Path, length_bytes: int) -> int:
    """Other bytes than any page's, all over the file. How many of them the kernel maps as huge pages."""
    with path.open("w+b") as file:
        os.truncate(file.fileno(), length_bytes)
        with mmap.mmap(file.fileno(), length_bytes) as ram:
            ram.madvise(mmap.MADV_HUGEPAGE)
            ram.write(secrets.token_bytes(PAGE_BYTES) * (length_bytes // PAGE_BYTES))
            smaps = Path("/proc/self/smaps").read_text()
            mine = smaps[smaps.index(str(path)) :]
            return int(mine[mine.index("ShmemPmdMapped:") :].split()[1]) << 10


def private(life: Life) -> None:
    """As Firecracker's: anonymous memory, and a balloon."""
    shape, image = image_of(life)
    background = life.dice.random() < 0.3
    life.stays_registered = life.dice.random() < 0.5
    life.hand_over(
        shape,
        image,
        life.room.server.address,
        memory="private",
        options=["--event-remove"],
        background=background,
    )
    arm(life)

    def disturb() -> None:
        life.remove_waited("balloon")
        life.remove("balloon")

    life.looked_at(disturb)


def moved(life: Life) -> None:
    """A VM that runs at its source: round after round, and pages that are old when they come."""
    name, token = f"move-{life.number}", secrets.token_bytes(32)
    shape = Shape((PAGES,), seed=1000 + life.number, data_percent=DATA_PERCENT)
    caller = Caller(name, base64.urlsafe_b64encode(token).decode().rstrip("="), secrets.randbits(63) | 1)
    life.room.source.begin(name, shape, token)
    life.stack.callback(life.room.source.end, name)
    life.hand_over(
        shape, name, life.room.source.address, options=["--event-remove"], background=True, caller=caller
    )
    life.pager.bandwidth(PRECOPY_BYTES_PER_S)
    for number in range(ROUNDS_MAX):
        life.pager.round(open_new=True)
        life.wait(EventKind.ROUND)
        if number >= ROUNDS_MIN and life.pager.counters()["stale_dropped_pages_total"] > 0:
            break
        time.sleep(life.dice.random() * 0.01)
    life.pager.bandwidth(0)
    digest = life.room.source.freeze(name)
    life.pager.background(life.dice.random() < 0.5)
    life.pager.round(open_new=False)
    if life.wait(EventKind.ROUND).digest != digest:
        raise SoakError("the frozen map's digest is not the source's")
    arm(life)
    life.looked_at(life.zap_and_poison)


def hugetlb(life: Life) -> None:
    """Huge pages of a pool, shared, and now and then private as Firecracker's: whole or not at all."""
    shape, image = image_of(life)
    anonymous = life.number % HUGETLB_FLAVOURS == HUGETLB_FLAVOURS - 1
    background = life.dice.random() < 0.3
    life.hand_over(
        shape,
        image,
        life.room.server.address,
        memory="private-2M" if anonymous else "memfd-2M",
        options=["--event-remove"] if anonymous else [],
        background=background,
    )
    arm(life)

    life.looked_at(lambda: life.remove_waited("balloon") if anonymous else life.zap_and_poison(), FEW_LOOKS)
    if not anonymous:
        life.guest.do("all")  # from then on each zap of all is a fault for each unit
    life.looked_at(lambda: None if anonymous else life.zap_all())


KINDS: Final = (
    Kind("memfd", memfd),
    Kind("tmpfs-huge", tmpfs_huge),
    Kind("private", private),
    Kind("moved", moved),
    Kind("hugetlb", hugetlb, HUGE_BYTES // PAGE_BYTES),
)


def live(kind: Kind, number: int, looks: int, room: Room, seed: int) -> None:
    with ExitStack() as stack:
        life = Life(kind, number, looks, room, random.Random(seed), stack)
        kind.live(life)
        life.settle()
