# SPDX-License-Identifier: Apache-2.0
"""A page server's sessions without a data plane and without a VMM: what they order is written down in one
list, in its order; what they are told, a test says. The VM's process is a real one, so that signals are."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest

from pageferry.host.vmm import Vmm, VmmFacts
from pageferry.host.vmspec import VmKind, VmSpec
from pageferry.phases import Phase, Side
from pageferry.reasons import PageferryError, Reason
from pageferry.records import Records
from pageferry.units import PageRun
from pageserver.dataplane import DataPlane, Frozen, LiveState, ServerEvent, ServerEventKind, SessionGate
from pageserver.handover import Piece
from pageserver.record import SourceRecord, Terms, mark_of
from pageserver.session import Report, Session
from pageserver.sessions import Sessions
from pageserver.vm import Vm
from pageserver.vms import Vms
from tests.support.processes import unchanged

PAGES = 100
IMAGE = "web-1"
TARGET = 0xABCD
AS_OF = (1 << 32) | 7
DIGEST = bytes(range(16))
STATE = bytes(range(256)) * 300  # three pieces
MACHINE = "qemu 10.0.2, pc-i440fx-7.2"

TOKEN = bytes(range(32))
TERMS = Terms("move", IMAGE, hashlib.sha256(TOKEN).digest(), attach_within_s=600)
ALL_HERE = Report(Phase.COMMITTED, DIGEST, pages_owned=60, pages_zero=38, pages_poisoned=2)
ACCEPTED = Report(Phase.POSTCOPY, DIGEST)
ABORTED = Report(Phase.ABORTED)
OPERATOR = "ipv4:10.0.0.9:1"

Fault = Callable[[], None]


def broken(reason: Reason = Reason.UNSUPPORTED, text: str = "it broke") -> Fault:
    def fault() -> None:
        raise PageferryError(reason, text)

    return fault


@dataclass
class Script:
    """What was done, and what goes wrong with it. `held`: it does not come back until let_go()."""

    done: list[str] = field(default_factory=list)
    faults: dict[str, Fault] = field(default_factory=dict)
    held: dict[str, asyncio.Event] = field(default_factory=dict)

    def act(self, what: str) -> None:
        self.done.append(what)
        if (fault := self.faults.get(what)) is not None:
            fault()

    async def act_slowly(self, what: str) -> None:
        self.done.append(what)
        if what in self.held:
            await self.held[what].wait()
        await asyncio.sleep(0)
        if (fault := self.faults.get(what)) is not None:
            fault()

    def hold(self, what: str) -> None:
        self.held[what] = asyncio.Event()

    def let_go(self, what: str) -> None:
        self.held.pop(what).set()


class FakeVmm:
    def __init__(self, script: Script, process: "FakeProcess") -> None:
        self.script = script
        self.process = process
        self.facts = VmmFacts("qemu 10.0.2", "pc-i440fx-7.2", "10.0.2", running=True)

    async def attach(self, side: Side, *, precopy: bool = True) -> VmmFacts:
        assert side is Side.SOURCE
        await self.script.act_slowly("attach" if precopy else "attach at once")
        return self.facts

    async def pause(self) -> None:
        await self.script.act_slowly("pause")

    async def save_state(self) -> bytes:
        await self.script.act_slowly("save")
        return STATE

    async def load_state(self, state: bytes) -> None:
        raise AssertionError("a source loads nothing")

    async def resume(self) -> None:
        assert not self.process.stopped, "the process itself is continued before its guest"
        await self.script.act_slowly("resume")

    async def kill(self) -> None:
        await self.script.act_slowly("kill")
        self.process.end()

    async def close(self) -> None:
        self.script.act("close")


class FakeProcess:
    """Sleeps. Its descriptor is a real pidfd."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen(["sleep", "600"])

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def stopped(self) -> bool:
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()


class FakeVm(Vm):
    """Owns its pidfd, as one without a hand-off does."""

    def __init__(
        self, script: Script, process: FakeProcess, *, kind: VmKind = VmKind.QEMU, name: str = IMAGE
    ) -> None:
        super().__init__(
            VmSpec(
                name, Path("/none.sock"), kind, Path("/none.qmp") if kind is not VmKind.PROCESS else None
            ),
            pidfd=os.pidfd_open(process.pid),
            pid=process.pid,
            mark=mark_of(process.pid),
            page_count=PAGES,
            content_id=7,
        )
        self.script = script
        self.process = process
        self.vmm = FakeVmm(script, process)
        self.served = True

    def adapter(self) -> Vmm:
        return self.vmm

    def stop(self) -> None:
        self.script.act("stop")
        super().stop()

    def go_on(self) -> None:
        self.script.act("go on")
        super().go_on()


@dataclass
class FakePlane:
    script: Script
    gates: dict[str, SessionGate] = field(default_factory=dict)
    told: list[ServerEvent] = field(default_factory=list)
    lost: dict[str, list[PageRun]] = field(default_factory=dict)
    state: LiveState = field(default_factory=lambda: LiveState(AS_OF, PAGES, 3, 500_000_000, 7, False))

    def tell(
        self,
        kind: ServerEventKind,
        session: str = "move",
        *,
        target: int = TARGET,
        epoch: int = 1,
        value: int = 0,
    ) -> None:
        self.told.append(ServerEvent(kind, session, target, epoch, value, 3, "10.0.0.2:5"))

    def event(self) -> ServerEvent | None:
        return self.told.pop(0) if self.told else None

    def set_session(self, gate: SessionGate) -> None:
        self.script.faults.get("set_session", lambda: None)()
        self.gates[gate.session] = gate

    def drop_session(self, session: str) -> None:
        del self.gates[session]

    def freeze(self, name: str) -> Frozen:
        self.script.act("freeze")
        return Frozen(AS_OF, 3, DIGEST)

    def thaw(self, name: str) -> None:
        for gate in self.gates.values():
            assert not gate.rights, "its sessions have lost their rights before"
        self.script.act("thaw")

    def live_state(self, name: str) -> LiveState:
        return self.state

    def poison(self, name: str, run: PageRun) -> None:
        self.script.act("poison")
        self.lost.setdefault(name, []).append(run)

    def poisoned(self, name: str) -> list[PageRun]:
        return self.lost.get(name, [])

    def remove(self, name: str) -> None:
        self.script.act("remove")


class FakeVms:
    """One VM, which is there; a test may add more of them."""

    def __init__(self, script: Script, vm: Vm) -> None:
        self.script = script
        self.all: dict[str, Vm] = {vm.name: vm}
        self.left: list[Vm] = []
        self.here: list[Vm] = []

    def knows(self, name: str) -> bool:
        return name == IMAGE or name in self.all

    def get(self, name: str) -> Vm | None:
        vm = self.all.get(name)
        return vm if vm is not None and vm.served else None

    def adopt(self, vm: Vm) -> None:
        self.left.append(vm)

    def arrived(self, vm: Vm) -> None:
        self.here.append(vm)

    def let_go(self, vm: Vm) -> None:
        self.script.act("let go")
        del self.all[vm.name]


class RecordsAtHand(Records):
    """Real ones; each write is in the script too, with the phase that it tells."""

    def __init__(self, folder: Path, script: Script) -> None:
        super().__init__(folder)
        self.script = script

    def write(self, session: str, fields: Any) -> None:
        handed_over = " handed over" if fields["handed_over"] else ""
        settled = " settled" if fields["settled"] else ""
        what = f"record {fields['phase']}{handed_over}{settled}"
        self.script.act(what)
        super().write(session, fields)


@dataclass
class Source:
    """A page server's sessions, with one VM."""

    script: Script
    process: FakeProcess
    plane: FakePlane
    records: RecordsAtHand
    vm: FakeVm
    vms: FakeVms
    sessions: Sessions

    @property
    def done(self) -> list[str]:
        return self.script.done

    def on_disk(self, session: str = "move") -> SourceRecord:
        return SourceRecord.from_fields(session, self.records.load_all()[session])

    def as_vms(self) -> Vms:
        return cast(Vms, self.vms)


@contextmanager
def source(folder: Path, kind: VmKind = VmKind.QEMU) -> Iterator[Source]:
    """Within a running loop."""
    script, process = Script(), FakeProcess()
    try:
        vm = FakeVm(script, process, kind=kind)
        with RecordsAtHand(folder, script) as records:
            plane, vms = FakePlane(script), FakeVms(script, vm)
            sessions = Sessions(cast(DataPlane, plane), records)
            sessions.recover(cast(Vms, vms))
            yield Source(script, process, plane, records, vm, vms, sessions)
            vm.close()
    finally:
        process.end()


# ---------------------------------------------------------------------------------------------- how far it is

Test: TypeAlias = Callable[[Source], Awaitable[None]]


def play(folder: Path, test: Test, kind: VmKind = VmKind.QEMU) -> None:
    async def run() -> None:
        async with asyncio.timeout(20):
            with source(folder, kind) as made:
                try:
                    await test(made)
                finally:
                    await made.sessions.close()

    with unchanged():
        asyncio.run(run())


async def created(made: Source, terms: Terms = TERMS) -> Session:
    return await made.sessions.create(terms, made.as_vms())


async def attached(made: Source, terms: Terms = TERMS) -> Session:
    session = await created(made, terms)
    made.plane.tell(ServerEventKind.ATTACHED, value=1)
    made.sessions.catch_up()
    return session


async def taken(session: Session) -> list[Piece]:
    """A whole hand-over, as one call asks for it."""
    leave = session.ask()
    try:
        return [piece async for piece in session.hand_over()]
    finally:
        leave()


async def handed_over(made: Source, terms: Terms = TERMS) -> Session:
    session = await attached(made, terms)
    await taken(session)
    return session


async def accepted(made: Source, terms: Terms = TERMS) -> Session:
    session = await handed_over(made, terms)
    session.hear(ACCEPTED)
    return session


async def stopped(session: Session) -> tuple[Callable[[], None], Piece]:
    """Until the first message of a hand-over, whose call stays open."""
    leave = session.ask()
    return leave, await anext(session.hand_over())


def refused(reason: Reason, act: Callable[[], object]) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        act()
    assert caught.value.reason is reason
    return caught.value
