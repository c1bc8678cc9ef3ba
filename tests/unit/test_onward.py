# SPDX-License-Identifier: Apache-2.0
"""A VM is handed on: what the fault client sends and the page server takes, word by word, and every way in
which the other end is not there, refuses or goes.

Both ends are real here but for the memory: descriptors are memfds, the VMM is a process that sleeps.
"""

import asyncio
import gc
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from faultclient import onward as module
from faultclient.onward import Onward, check_onward
from faultclient.pager import PagerFds
from pageferry.host.handoff import PID_KEY, ROLE_KEY, Handoff, Region, Role, receive
from pageferry.host.listener import Listener
from pageferry.host.onward import Lines, Word, message
from pageferry.host.vmspec import VmSpec, parse_vm
from pageferry.reasons import PageferryError, Reason
from pageserver.dataplane import DataPlane, LiveMemory
from pageserver.vm import Vm
from pageserver.vms import Vms
from tests.support.handoff_client import PAGE_BYTES, layout, region, send
from tests.support.processes import PATIENCE_S, unchanged

ADDRESS = 0x7000_0000_0000
REGIONS = (Region(ADDRESS, 8 * PAGE_BYTES, 0), Region(ADDRESS + (1 << 30), 4 * PAGE_BYTES, 8 * PAGE_BYTES))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)


@dataclass
class FakeVm:
    """A process, and memory of a kind. A pager of it, too."""

    process: "subprocess.Popen[bytes]"
    held: PagerFds

    @property
    def pid(self) -> int:
        return self.process.pid

    def fds(self) -> PagerFds:
        return self.held


@pytest.fixture
def vm() -> Iterator[FakeVm]:
    process = subprocess.Popen(["sleep", "1000"])
    memory = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("uffd", "ram", "table")]
    os.write(memory[2], b"the table")
    held = PagerFds(memory[0], memory[1], memory[2], os.pidfd_open(process.pid))
    try:
        yield FakeVm(process, held)
    finally:
        process.kill()
        process.wait()
        for fd in (*memory, held.pidfd):
            os.close(fd)


@dataclass
class FakePlane:
    story: list[str] = field(default_factory=list)
    memory: LiveMemory | None = None
    refuses: PageferryError | None = None
    held: threading.Event | None = None  # arrived() returns after it

    def add_live(self, memory: LiveMemory) -> None:
        self.story.append("add")
        if self.refuses is not None:
            raise self.refuses
        self.memory = memory

    def arrived(self, name: str) -> None:
        self.story.append("arrives")
        if self.held is not None:
            self.held.wait(PATIENCE_S)
        self.story.append("arrived")

    def remove(self, name: str) -> None:
        self.story.append("remove")


class PageServer:
    """The VMs of one, and what it is told of them. `free`: no session has the VM."""

    def __init__(self, spec: VmSpec, plane: FakePlane) -> None:
        self.complete: list[Vm] = []
        self.free = True
        self.vms = Vms(
            [spec],
            cast(DataPlane, plane),
            on_gone=lambda vm: self.vms.let_go(vm),
            on_complete=self._complete,
            vmm_uid=None,
        )

    def _complete(self, vm: Vm) -> None:
        self.complete.append(vm)
        if self.free:
            self.vms.arrived(vm)


@asynccontextmanager
async def page_server(path: Path, plane: FakePlane) -> AsyncIterator[PageServer]:
    made = PageServer(parse_vm(f"vm,handoff={path},process"), plane)
    taking = asyncio.create_task(made.vms.take_all())
    try:
        yield made
    finally:
        taking.cancel()
        await asyncio.wait({taking})
        await made.vms.close()


def going(vm: FakeVm, path: Path) -> tuple[Onward, asyncio.Event]:
    leaving = asyncio.Event()
    return Onward("vm", path, pager=vm, regions=REGIONS, pid=vm.pid, leaving=leaving), leaving


async def until(happened: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not happened():
            await asyncio.sleep(0.005)


def play(work: Awaitable[Any]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await work

    asyncio.run(bounded())


# ---------------------------------------------------------------------------------------------- the whole way


def test_from_the_hand_off_to_the_end(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        async with page_server(path, plane) as server:
            onward, _ = going(vm, path)
            running = asyncio.create_task(onward.run())
            await until(lambda: server.vms.get("vm") is not None)
            taken = plane.memory
            assert taken is not None
            assert (taken.pid, tuple(taken.regions)) == (vm.pid, REGIONS)
            assert os.path.samestat(os.fstat(taken.ram_fd), os.fstat(vm.held.ram))
            assert os.pread(taken.arriving_fd, 100, 0) == b"the table"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(taken.arriving_fd, b"x")
            await asyncio.sleep(0.05)
            assert not running.done() and not server.complete
            onward.arrived()
            await running
            assert onward.kept
            assert plane.story == ["add", "arrives", "arrived"]

    play(way())


def test_it_is_not_let_go_while_a_session_has_it(vm: FakeVm, tmp_path: Path) -> None:
    """Not even when it is told to end: the page server has the VM."""
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        async with page_server(path, plane) as server:
            server.free = False
            onward, leaving = going(vm, path)
            running = asyncio.create_task(onward.run())
            await until(lambda: server.vms.get("vm") is not None)
            onward.arrived()
            leaving.set()
            await until(lambda: server.complete)
            await asyncio.sleep(0.05)
            assert not running.done()
            assert plane.story == ["add"]
            server.vms.arrived(server.complete[0])
            await running
            assert onward.kept

    play(way())


def test_the_vmm_exits_meanwhile(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        async with page_server(path, plane) as server:
            onward, _ = going(vm, path)
            running = asyncio.create_task(onward.run())
            await until(lambda: server.vms.get("vm") is not None)
            vm.process.kill()
            await until(lambda: server.vms.get("vm") is None)
            assert plane.story == ["add", "remove"]
            assert not running.done()  # its pager tells of that end
            running.cancel()
            await asyncio.wait({running})

    play(way())


def test_the_fault_client_goes_and_the_vm_stays(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        async with page_server(path, plane) as server:
            onward, _ = going(vm, path)
            running = asyncio.create_task(onward.run())
            await until(lambda: server.vms.get("vm") is not None)
            running.cancel()
            await asyncio.wait({running})
            await asyncio.sleep(0.05)
            assert server.vms.get("vm") is not None
            assert plane.story == ["add"]

    play(way())


@asynccontextmanager
async def protected_anew(vm: FakeVm, path: Path, plane: FakePlane) -> AsyncIterator[PageServer]:
    """All of it is here, and the data plane is at it until `plane.held` is set."""
    plane.held = threading.Event()
    async with page_server(path, plane) as server:
        onward, _ = going(vm, path)
        running = asyncio.create_task(onward.run())
        await until(lambda: server.vms.get("vm") is not None)
        onward.arrived()
        await until(lambda: "arrives" in plane.story)
        yield server
        plane.held.set()
        running.cancel()
        await asyncio.wait({running})


def test_its_end_waits_for_what_the_data_plane_is_at(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        async with protected_anew(vm, path, plane) as server:
            assert plane.held is not None
            asyncio.get_running_loop().call_later(0.05, plane.held.set)
            await server.vms.close()
            assert plane.story == ["add", "arrives", "arrived", "remove"]

    play(way())


def test_the_vmm_exits_while_the_data_plane_is_at_it(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()
    unheard: list[dict[str, Any]] = []

    async def way() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with protected_anew(vm, path, plane) as server:
            vm.process.kill()
            await until(lambda: server.vms.get("vm") is None)
            assert plane.held is not None
            plane.held.set()
            await until(lambda: "arrived" in plane.story)
            await asyncio.sleep(0.05)
        gc.collect()
        assert unheard == []

    play(way())


# ------------------------------------------------------------------------------------------- nobody takes it


def test_it_waits_for_the_page_server(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "onward.sock", FakePlane()

    async def way() -> None:
        onward, _ = going(vm, path)
        onward.arrived()
        running = asyncio.create_task(onward.run())
        await asyncio.sleep(0.05)
        assert not running.done()
        async with page_server(path, plane):
            await running
        assert onward.kept

    play(way())


def test_a_page_server_that_refuses_is_asked_again(vm: FakeVm, tmp_path: Path) -> None:
    path = tmp_path / "onward.sock"
    plane = FakePlane(refuses=PageferryError(Reason.UNSUPPORTED, "no PAGEMAP_SCAN here"))

    async def way() -> None:
        async with page_server(path, plane):
            onward, _ = going(vm, path)
            onward.arrived()
            running = asyncio.create_task(onward.run())
            await until(lambda: len(plane.story) >= 2)
            plane.refuses = None
            await running
            assert onward.kept

    play(way())


def test_the_next_page_server_is_handed_it_once_more(vm: FakeVm, tmp_path: Path) -> None:
    path, first, second = tmp_path / "onward.sock", FakePlane(), FakePlane()

    async def way() -> None:
        onward, _ = going(vm, path)
        async with page_server(path, first) as server:
            running = asyncio.create_task(onward.run())
            await until(lambda: server.vms.get("vm") is not None)
        async with page_server(path, second) as server:
            await until(lambda: server.vms.get("vm") is not None)
            onward.arrived()
            await running
        assert onward.kept
        assert second.story[:3] == ["add", "arrives", "arrived"]

    play(way())


def test_it_is_told_to_end_and_nobody_has_the_vm(vm: FakeVm, tmp_path: Path) -> None:
    async def way() -> None:
        onward, leaving = going(vm, tmp_path / "nobody.sock")
        running = asyncio.create_task(onward.run())
        leaving.set()
        await asyncio.sleep(0.05)
        assert not running.done()  # pages are missing: the VM needs this process as it is
        onward.arrived()
        await running
        assert not onward.kept

    play(way())


def test_a_page_server_that_babbles(vm: FakeVm, tmp_path: Path) -> None:
    path = tmp_path / "onward.sock"

    async def way() -> None:
        said = [b"hello\n", b"x" * 100, b"let go\n", b"accepted\nlet", b""]

        async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if said:
                writer.write(said.pop(0))
            with suppress(OSError):
                await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(babble, path):
            onward, leaving = going(vm, path)
            onward.arrived()
            running = asyncio.create_task(onward.run())
            await until(lambda: not said)
            leaving.set()
            await running
            assert not onward.kept

    play(way())


# ------------------------------------------------------------------------------------------ what is refused


def test_words() -> None:
    lines = Lines()
    assert lines.take(b"acc") == []
    assert lines.take(b"epted\ncomplete\nlet ") == [Word.ACCEPTED, Word.COMPLETE]
    assert lines.take(b"go\n") == [Word.LET_GO]
    for bad in (b"what\n", b"x" * 65):
        with pytest.raises(ValueError, match=r"what|longer"):
            Lines().take(bad)


def handed(data: bytes, fds: list[int], *, onward: bool = True) -> Handoff:
    ours, theirs = socket.socketpair()
    with theirs:
        send(theirs, data, fds)
        try:
            return receive(ours, uids={os.geteuid()}, in_its_place=onward)
        except BaseException:
            ours.close()
            raise


def refusal(data: bytes, fds: list[int], *, onward: bool = True) -> PageferryError:
    with pytest.raises(PageferryError) as caught:
        handed(data, fds, onward=onward)
    return caught.value


def test_what_a_page_server_makes_of_it(vm: FakeVm) -> None:
    held = vm.held
    with handed(message(REGIONS, vm.pid), [held.uffd, held.ram, held.table, held.pidfd]) as taken:
        assert taken.handed_on and taken.shared
        assert (taken.pid, taken.role, taken.regions) == (vm.pid, Role.BOTH, REGIONS)
        assert os.path.samestat(os.fstat(taken.table_fd), os.fstat(held.table))


def test_only_a_page_server_takes_it(vm: FakeVm) -> None:
    held = vm.held
    fds = [held.uffd, held.ram, held.table, held.pidfd]
    assert "only a page server takes it" in str(refusal(message(REGIONS, vm.pid), fds, onward=False))


def test_a_vmm_hands_over_to_the_same_socket(vm: FakeVm) -> None:
    with handed(layout(region(ADDRESS, 8)), [vm.held.uffd, vm.held.ram]) as taken:
        assert not taken.handed_on
        assert taken.pid == os.getpid()


def test_what_is_no_vm_that_is_handed_on(vm: FakeVm) -> None:
    held = vm.held
    fds = [held.uffd, held.ram, held.table, held.pidfd]
    assert "with 3 file descriptors" in str(refusal(message(REGIONS, vm.pid), fds[:3]))
    assert "with 5 file descriptors" in str(refusal(message(REGIONS, vm.pid), [*fds, held.ram]))
    other = refusal(message(REGIONS, os.getpid()), fds)
    assert other.reason is Reason.MISMATCH
    assert f"is of process {vm.pid}, not of the VMM (process {os.getpid()})" in str(other)
    assert "pidfd is none" in str(refusal(message(REGIONS, vm.pid), [*fds[:3], held.ram]))
    role = layout(region(ADDRESS, 8) | {PID_KEY: vm.pid, ROLE_KEY: "track"})
    assert "and the role track" in str(refusal(role, fds))
    for pid in (0, 1 << 31):
        assert "which cannot be" in str(refusal(layout(region(ADDRESS, 8) | {PID_KEY: pid}), fds))
    vm.process.kill()
    vm.process.wait()
    assert refusal(message(REGIONS, vm.pid), fds).reason is Reason.NO_VMM


def test_what_can_be_handed_on(vm: FakeVm) -> None:
    def of(role: Role, *, pidfd: int = vm.held.pidfd, ram: int = vm.held.ram) -> Handoff:
        pid = vm.pid if pidfd >= 0 else 0
        return Handoff(cast(socket.socket, None), vm.held.uffd, ram, pidfd, pid, 0, REGIONS, True, role)

    check_onward(of(Role.BOTH))
    for handoff, reason in (
        (of(Role.RESTORE), Reason.BAD_REQUEST),
        (of(Role.BOTH, ram=-1), Reason.BAD_REQUEST),
        (of(Role.BOTH, pidfd=-1), Reason.UNSUPPORTED),
    ):
        with pytest.raises(PageferryError) as caught:
            check_onward(handoff)
        assert caught.value.reason is reason


def test_a_page_server_takes_no_vmm_that_is_to_be_restored(vm: FakeVm, tmp_path: Path) -> None:
    path, plane = tmp_path / "handoff.sock", FakePlane()

    async def way() -> None:
        async with page_server(path, plane):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as shim:
                shim.connect(str(path))
                send(shim, layout(region(ADDRESS, 8) | {ROLE_KEY: "both"}), [vm.held.uffd, vm.held.ram])
                assert await asyncio.to_thread(shim.recv, 1) == b""
        assert plane.story == []

    play(way())


def test_a_listener_of_a_fault_client_takes_none(vm: FakeVm, tmp_path: Path) -> None:
    held = vm.held
    with Listener(tmp_path / "in.sock") as listener, socket.socket(socket.AF_UNIX) as other:
        other.connect(str(tmp_path / "in.sock"))
        send(other, message(REGIONS, vm.pid), [held.uffd, held.ram, held.table, held.pidfd])
        with pytest.raises(PageferryError, match="only a page server"):
            listener.accept(timeout_s=PATIENCE_S)
