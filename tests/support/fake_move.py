# SPDX-License-Identifier: Apache-2.0
"""A move without hosts: a source that answers from a script, a VMM that obeys, a pager that tells what the
script says, a disk in memory. Whatever happens goes into one `story`, in order.

    stage = Stage()
    stage.source.breaks_at = 2
    stage.play()
    assert stage.story[-1] == "report ABORTED"
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import xxhash

from faultclient.arrival import Arrival
from faultclient.asking import HandOverPart, SourceFacts
from faultclient.move import Move
from faultclient.pager import EventKind, Pager
from faultclient.rounds import Limits
from faultclient.session import Postcopy, Session
from faultclient.vms import Vm
from pageferry.host.handoff import Handoff, Region
from pageferry.host.vmm import VmmFacts
from pageferry.phases import Phase, Side
from pageferry.reasons import PageferryError, Reason
from tests.support.fake_pager import PAGES, FakePager

AS_OF = (1 << 32) | 7
DIGEST = bytes(range(16))
STATE = b"the state of all devices" * 1000
PATIENCE_S = 20.0


def error(reason: Reason, text: str = "") -> PageferryError:
    return PageferryError(reason, text or f"provoked: {reason.name}")


@dataclass
class FakeSource:
    """`refuses`: by question, the errors that come before it is answered."""

    story: list[str]
    machine: str = "qemu 7.2.0, pc-i440fx-7.2"
    phase: Phase = Phase.PRECOPY
    refuses: dict[str, list[Exception]] = field(default_factory=dict)
    state: bytes = STATE
    spoils: int = 0  # so many states come damaged
    breaks: int = 0  # so many streams break off after their first message
    silent: bool = False  # the stream has a first message, and no other
    digest: bytes = DIGEST
    counts: dict[str, int] = field(default_factory=dict)
    closed: bool = False

    def _answer(self, question: str) -> None:
        waiting = self.refuses.get(question, [])
        if waiting:
            raise waiting.pop(0)

    async def facts(self) -> SourceFacts:
        await asyncio.sleep(0)
        self._answer("facts")
        return SourceFacts(self.phase, self.machine)

    async def hand_over(self) -> AsyncGenerator[HandOverPart]:
        self.story.append("HandOver")
        await asyncio.sleep(0)
        self._answer("hand over")
        half = len(self.state) // 2
        yield HandOverPart(as_of=AS_OF, digest=self.digest, stopped_us=5000, state=self.state[:half])
        await asyncio.sleep(0)
        if self.silent:
            await asyncio.get_running_loop().create_future()
        if self.breaks:
            self.breaks -= 1
            raise error(Reason.GOING_AWAY, "the stream has broken")
        state_digest = xxhash.xxh3_64_intdigest(self.state)
        if self.spoils:
            self.spoils -= 1
            state_digest ^= 1
        yield HandOverPart(stopped_us=7000, state=self.state[half:], state_digest=state_digest, last=True)

    async def record(
        self, phase: Phase, *, digest: bytes = b"", owned: int = 0, zero: int = 0, poisoned: int = 0
    ) -> SourceFacts:
        await asyncio.sleep(0)
        self._answer(phase.name)
        self.story.append(f"report {phase.name}")
        self.counts = {"owned": owned, "zero": zero, "poisoned": poisoned}
        self.phase = Phase.RELEASED if phase is Phase.COMMITTED else phase
        return SourceFacts(self.phase, self.machine)

    async def close(self) -> None:
        self.closed = True


@dataclass
class FakeVmm:
    story: list[str]
    machine: str = "pc-i440fx-7.2"
    refuses: dict[str, list[PageferryError]] = field(default_factory=dict)
    hangs: str = ""  # in this call, until it is let go
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    state: bytes = b""
    closed: bool = False

    async def _do(self, what: str) -> None:
        self.story.append(what)
        await asyncio.sleep(0)
        if self.hangs == what:
            await self.let_go.wait()
        waiting = self.refuses.get(what, [])
        if waiting:
            raise waiting.pop(0)

    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        assert side is Side.TARGET
        await self._do("attach")
        return VmmFacts("qemu 7.2.0", self.machine, "7.2.0")

    async def pause(self) -> None:
        raise AssertionError("a target is not paused")

    async def save_state(self) -> bytes:
        raise AssertionError("a target is not saved")

    async def load_state(self, state: bytes) -> None:
        self.state = state
        await self._do("load")

    async def resume(self) -> None:
        await self._do("resume")

    async def kill(self) -> None:
        await self._do("kill")

    async def close(self) -> None:
        self.closed = True


class Stage:
    """All that a move needs; play() runs it to its end."""

    def __init__(self, postcopy: Postcopy = Postcopy.ALLOW, **limits: object) -> None:
        self.story: list[str] = []
        self.source = FakeSource(self.story)
        self.vmm = FakeVmm(self.story)
        self.pager = FakePager(digest=DIGEST, on_order=self._ordered)
        self.pager.table["MISSING"] = PAGES
        self.named = [PAGES, 10, 0]  # by each new round; then none
        self.mute = ""  # this order is never answered
        self.at: dict[str, Callable[[], object]] = {}  # when this stands in the story
        self.disk: list[tuple[Phase, Reason | None]] = []
        self.disk_errors: list[PageferryError] = []
        self.given_back = 0
        self.comes_all = True  # what is missing arrives before anybody looks
        self.onward: Path | None = None  # whose page server is to have the VM
        self.lets_in = True  # the source, as soon as the pager knocks
        self.session = Session("move-1", "vm", "127.0.0.1:1")
        given: dict[str, object] = {
            "postcopy": postcopy,
            "max_downtime_s": 10.0,
            "rounds_max": 30,
            "completion_s_per_gib": 100.0,
            "progress_s": 100.0,
        }
        self.limits = Limits(**(given | limits))  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------- its means

    async def handoff(self) -> Handoff:
        await asyncio.sleep(0)
        return cast(Handoff, _SharedHandoff())

    def give_back(self, handoff: Handoff) -> None:
        self.given_back += 1

    def adapter(self, handoff: Handoff) -> FakeVmm:
        return self.vmm

    async def open(self, handoff: Handoff) -> Vm:
        self.story.append("open")
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.pager.close()
            raise
        self.pager.tell(EventKind.ATTACHED)
        if self.lets_in:
            self.let_in()
        regions = (Region(1 << 32, PAGES * 4096, 0),)
        return Vm(cast(Pager, self.pager), "vm", "127.0.0.1:1", PAGES * 4096, 4711, regions, self.onward)

    def let_go(self, vm: Vm) -> None:
        vm.pager.close()

    def record(
        self, session: Session, phase: Phase, failure: Reason | None = None, message: str = ""
    ) -> None:
        if self.disk_errors:
            raise self.disk_errors.pop(0)
        self.story.append(f"record {phase.name}")
        self.disk.append((phase, failure))

    # ---------------------------------------------------------------------------------------------- the pager

    def let_in(self) -> None:
        self.pager.tell(EventKind.PHASE, value=self.source.phase)

    def _ordered(self, order: str, cookie: int) -> None:
        self.story.append(order)
        if order == self.mute:
            return
        if order == "arm":
            self.pager.tell(EventKind.ARMED, cookie=cookie)
            return
        named = self.named.pop(0) if self.named and order == "new round" else 0
        if self.comes_all:
            self.pager.table |= {"MISSING": 0, "CACHED": PAGES}
        else:
            self.pager.table |= {"MISSING": named, "CACHED": PAGES - named}
        self.pager.tell(EventKind.ROUND, cookie=cookie, value=AS_OF, page=named, digest=DIGEST)

    def complete(self, poisoned: int = 0) -> None:
        states = {"MISSING": 0, "CACHED": 0, "OWNED": PAGES - 30 - poisoned, "ZERO": 30, "POISONED": poisoned}
        self.pager.table |= states
        self.pager.tell(EventKind.COMPLETE, value=poisoned)

    # ------------------------------------------------------------------------------------------------ playing

    def play(self) -> None:
        """Does what `at` says when the story comes to it; `at` is used up."""
        asyncio.run(asyncio.wait_for(self._play(), PATIENCE_S))
        self.pager.let_go()

    async def _play(self) -> None:
        self.move = Move(self.session, self, self.source, self.limits)
        prompting = asyncio.create_task(self._prompt())
        try:
            await self.move.run()
            if not self.session.ended:
                await Arrival(self.move).run()
        finally:
            prompting.cancel()
            await self.move.let_go()

    async def _prompt(self) -> None:
        """Looks at the story each turn of the loop: nothing happens between two turns."""
        while True:
            for cue in [cue for cue in self.at if cue in self.story]:
                self.at.pop(cue)()
            await asyncio.sleep(0)


class _SharedHandoff:
    shared = True
    pidfd = -1
    path = Path()
