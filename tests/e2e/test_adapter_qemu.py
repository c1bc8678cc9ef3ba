# SPDX-License-Identifier: Apache-2.0
"""The QEMU adapter on real ones: the system's and the 10.0 of its backports, with the real guest in them.

A guest is booted once a version; it is paused, saved and let go on in every way that an abort may end in,
then saved for good, and loaded from a byte copy of its RAM into QEMUs of both versions. What cannot be moved
is refused before anything happens to it, each with a QEMU that is so.
"""

import asyncio
import os
import re
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pageferry.host import qemu as adapter
from pageferry.host import qmp as monitor
from pageferry.host.qemu import QemuVmm
from pageferry.host.vmm import VmmFacts
from pageferry.layout import pc_layout
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason
from tests.support.console import missing_beats
from tests.support.processes import leaks_nothing
from tests.support.qemu import DEFAULT_BINARY, Qemu
from tests.support.qemu_versions import FetchError, fetch
from tests.support.qmp import Qmp, QmpError
from tests.support.ramfile import copy_sparse, run_folder
from tests.support.shape import GuestShape, SavedGuest

__all__ = ["leaks_nothing"]
pytestmark = pytest.mark.usefixtures("leaks_nothing")
SHAPE = GuestShape("pc", memory_mib=192, workload_mib=64)  # pc-i440fx-7.2 in both versions
SYSTEM, NEWER = "system", "10.0"
VERSIONS = [SYSTEM, NEWER]
BARE_MIB = 32


def binary(version: str) -> str:
    if version == SYSTEM:
        return DEFAULT_BINARY
    try:
        return str(fetch(version))
    except FetchError as error:
        pytest.skip(f"no QEMU {version}: {error}")


def run(go: Awaitable[None]) -> None:
    """In the loop that our services run in."""

    async def bounded() -> None:
        await asyncio.wait_for(go, 90)

    uvloop.run(bounded())


@pytest.fixture(scope="module", autouse=True)
def _loop_was_there() -> None:
    """The first uvloop of a process makes a pipe that it keeps."""
    uvloop.run(asyncio.sleep(0))


@contextmanager
def vmm_of(qmp_path: Path, pid: int) -> Iterator[QemuVmm]:
    """An adapter that holds the process as after a hand-off. Its QMP socket is there when this returns."""
    deadline = time.monotonic() + 30
    while not qmp_path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pidfd = os.pidfd_open(pid)
    vmm = QemuVmm(qmp_path, pidfd=pidfd)
    try:
        yield vmm
    finally:
        os.close(pidfd)


def vmm_for(qemu: Qemu, folder: Path) -> AbstractContextManager[QemuVmm]:
    return vmm_of(folder / "qmp", qemu.pid)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


# --------------------------------------------------------------------------------- a guest at its source


@dataclass
class Source:
    qemu: Qemu
    folder: Path

    async def beats_on(self) -> None:
        await asyncio.to_thread(self.qemu.console.wait_beats, 10)

    def monitor(self) -> Qmp:
        return Qmp(self.folder / "qmp", self.qemu.check_alive)


@pytest.fixture(scope="module", params=VERSIONS)
def source(request: pytest.FixtureRequest, folder: Path) -> Iterator[Source]:
    own = folder / f"source-{request.param}"
    with Qemu(SHAPE, folder / f"{request.param}.ram", own, binary=binary(request.param)) as qemu:
        qemu.console.wait_beats(10)
        yield Source(qemu, own)


def settings(source: Source) -> Any:
    with closing(source.monitor()) as qmp:
        parameters = qmp.command("query-migrate-parameters")
        return qmp.command("query-migrate-capabilities"), parameters["max-bandwidth"]


def test_saved_twice_and_goes_on_each_time(source: Source) -> None:
    """As after an abort, and once more: a second move."""
    before = settings(source)

    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            facts = await vmm.attach(Side.SOURCE)
            assert facts.running
            assert facts.machine == SHAPE.qemu_machine
            assert facts.memory_bytes == SHAPE.memory_mib << 20
            assert facts.name == f"qemu {facts.version}"
            assert facts.warnings == ()
            for _ in range(2):
                await vmm.pause()
                await vmm.pause()
                state = await vmm.save_state()
                assert 100_000 < len(state) < 1 << 20
                with pytest.raises(PageferryError, match="previous migration"):
                    await vmm.save_state()
                await vmm.resume()
                await vmm.resume()
                await source.beats_on()
            await vmm.close()

    run(go())
    assert settings(source) == before
    assert missing_beats(source.qemu.console.beats, after=-1) == []


def test_given_up_in_the_middle_and_goes_on(source: Source) -> None:
    """The caller has gone away at every moment of a save: what is left of it is in nobody's way."""

    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            await vmm.attach(Side.SOURCE)
            for step in range(8):
                await vmm.pause()
                saving = asyncio.create_task(vmm.save_state())
                await asyncio.sleep(step * 0.0005)
                saving.cancel()
                await asyncio.wait([saving])
                await vmm.resume()
                await source.beats_on()
            await vmm.pause()
            assert len(await vmm.save_state()) > 100_000
            await vmm.resume()
            await vmm.close()

    run(go())
    assert missing_beats(source.qemu.console.beats, after=-1) == []


def test_a_state_too_large_is_refused_and_goes_on(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off while it comes, and looked at when it is here."""

    async def refused(vmm: QemuVmm, limit: str) -> None:
        await vmm.pause()
        with monkeypatch.context() as patch:
            patch.setattr(adapter, limit, -(64 << 20))
            with pytest.raises(PageferryError, match="its RAM is in it") as caught:
                await vmm.save_state()
        assert caught.value.reason is Reason.UNSUPPORTED
        await vmm.resume()
        await source.beats_on()

    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            await vmm.attach(Side.SOURCE)
            await refused(vmm, "DEVICE_STATE_BYTES_MAX")
            await refused(vmm, "STATE_BYTES")
            await vmm.close()

    run(go())
    assert missing_beats(source.qemu.console.beats, after=-1) == []


def test_one_that_was_paused_stays_so_after_an_abort(source: Source) -> None:
    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            with closing(source.monitor()) as qmp:
                qmp.command("stop")
            assert not (await vmm.attach(Side.SOURCE)).running
            await vmm.pause()
            await vmm.resume()
            await vmm.close()
        with closing(source.monitor()) as qmp:
            assert qmp.command("query-status")["status"] == "paused"
            qmp.command("cont")
        await source.beats_on()

    run(go())


def test_settings_of_others_are_set_back(source: Source) -> None:
    """An operator's multifd would spoil the save; a lost x-ignore-shared would spoil a later migration."""
    others = [{"capability": "multifd", "state": True}, {"capability": "x-ignore-shared", "state": True}]

    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            await vmm.attach(Side.SOURCE)
            await vmm.pause()
            await vmm.save_state()
            await vmm.resume()
            await vmm.close()

    before = settings(source)
    with closing(source.monitor()) as qmp:
        qmp.command("migrate-set-capabilities", capabilities=others)
        qmp.command("migrate-set-parameters", max_bandwidth=1 << 20)
    run(go())
    capabilities, bandwidth = settings(source)
    assert bandwidth == 1 << 20
    on = {one["capability"] for one in capabilities if one["state"]}
    assert "multifd" in on
    assert "x-ignore-shared" not in on
    with closing(source.monitor()) as qmp:
        qmp.command("migrate-set-capabilities", capabilities=[others[0] | {"state": False}])
        qmp.command("migrate-set-parameters", max_bandwidth=before[1])
    assert settings(source) == before


# ---------------------------------------------------------------------------------- and at its targets


@pytest.fixture(scope="module")
def saved(source: Source, folder: Path) -> SavedGuest:
    """The source's last act: its state by the adapter, a copy of its RAM; killed by the adapter too."""
    image = folder / f"{source.folder.name}.image"
    found: list[tuple[bytes, VmmFacts]] = []

    async def go() -> None:
        with vmm_for(source.qemu, source.folder) as vmm:
            facts = await vmm.attach(Side.SOURCE)
            await vmm.pause()
            found.append((await vmm.save_state(), facts))
            copy_sparse(source.qemu.ram_file, image)
            await vmm.kill()
            await vmm.kill()
            await vmm.close()

    run(go())
    source.qemu.kill()
    ((state, facts),) = found
    console = source.qemu.console
    assert missing_beats(console.beats, after=-1) == []
    return SavedGuest(SHAPE, state, image, console.beats[-1].number, console.tail, facts.version)


@contextmanager
def target(
    saved: SavedGuest, folder: Path, version: str, machine: str = "pc"
) -> Iterator[tuple[Qemu, QemuVmm]]:
    ram_file = folder / "target.ram"
    copy_sparse(saved.image, ram_file)
    shape = GuestShape(machine, memory_mib=SHAPE.memory_mib, workload_mib=SHAPE.workload_mib)
    own = folder / "target"
    own.mkdir(exist_ok=True)
    (own / "qmp").unlink(missing_ok=True)
    try:
        with (
            Qemu(shape, ram_file, own, restoring=saved, binary=binary(version)) as qemu,
            vmm_for(qemu, own) as vmm,
        ):
            yield qemu, vmm
    finally:
        ram_file.unlink()


@pytest.mark.parametrize("version", VERSIONS)
def test_loaded_elsewhere_it_goes_on(saved: SavedGuest, folder: Path, version: str) -> None:
    """From each version into each: with a versioned machine type neither minds."""

    async def go(qemu: Qemu, vmm: QemuVmm) -> None:
        facts = await vmm.attach(Side.TARGET)
        assert facts.machine == SHAPE.qemu_machine
        assert not facts.running
        assert facts.version != "" and (version == SYSTEM or facts.version.startswith(version))
        await vmm.attach(Side.TARGET)  # asked again: a session that was given up before it had loaded
        await vmm.load_state(saved.state)
        assert not qemu.console.beats  # it runs when that is said
        await vmm.resume()
        await asyncio.to_thread(qemu.console.wait_beats, 20)
        with closing(Qmp(folder / "target" / "qmp", qemu.check_alive)) as qmp:  # free for the next one
            on = [one["capability"] for one in qmp.command("query-migrate-capabilities") if one["state"]]
            assert on == []
        await vmm.close()

    with target(saved, folder, version) as (qemu, vmm):
        run(go(qemu, vmm))
        assert qemu.console.beats[-1].errors == 0, qemu.console.errors
        assert missing_beats(qemu.console.beats, after=saved.last_beat) == []


@pytest.mark.parametrize(
    ("version", "machine", "spoil", "words"),
    [
        (SYSTEM, "pc-i440fx-7.1", bytes, "has exited; why is in its own log"),
        (SYSTEM, "pc", lambda state: state[: len(state) // 2], "has exited; why is in its own log"),
        (NEWER, "pc-i440fx-10.0", bytes, "QEMU cannot load the guest's state: load of migration failed"),
        (NEWER, "pc", lambda state: b"x" + state[1:], "cannot load the guest's state"),
        (NEWER, "pc", lambda state: state[: len(state) // 2], "cannot load the guest's state"),
        (NEWER, "pc", lambda state: b"", "cannot load the guest's state"),
    ],
)
def test_a_load_that_fails_is_told_and_ends_in_a_kill(
    saved: SavedGuest,
    folder: Path,
    version: str,
    machine: str,
    spoil: Callable[[bytes], bytes],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU is let find out by itself what is wrong."""
    monkeypatch.setattr(adapter, "STATE_HEAD", b"another format")

    async def go(qemu: Qemu, vmm: QemuVmm) -> None:
        facts = await vmm.attach(Side.TARGET)
        assert (facts.machine == SHAPE.qemu_machine) == (machine == "pc")
        with pytest.raises(PageferryError) as caught:
            await vmm.load_state(spoil(saved.state))
        assert words in caught.value.message
        assert caught.value.reason is Reason.MISMATCH
        assert "machine type" in caught.value.remedy
        await vmm.kill()
        assert qemu.exit_status() is not None
        await vmm.close()

    with target(saved, folder, version, machine) as (qemu, vmm):
        run(go(qemu, vmm))


@pytest.mark.parametrize(("version", "machine"), [(SYSTEM, "pc-i440fx-7.1"), (NEWER, "microvm")])
def test_another_machine_type_is_named_before_the_load(
    saved: SavedGuest, folder: Path, version: str, machine: str
) -> None:
    """QEMU names it in its log alone."""

    async def go(qemu: Qemu, vmm: QemuVmm) -> None:
        await vmm.attach(Side.TARGET)
        sentence = f"the guest's state is of a pc-i440fx-7.2, and this QEMU is a {machine}"
        with pytest.raises(PageferryError, match=sentence) as caught:
            await vmm.load_state(saved.state)
        assert caught.value.reason is Reason.MISMATCH
        assert qemu.exit_status() is None
        await vmm.close()

    with target(saved, folder, version, machine) as (qemu, vmm):
        run(go(qemu, vmm))


# --------------------------------------------------------------------------------------- what is refused


class Bare:
    """A QEMU without a guest: its firmware runs, which is enough to be looked at."""

    def __init__(self, folder: Path, version: str, *options: str) -> None:
        self.folder = folder
        self.qmp_path = folder / "qmp"
        argv = [
            *("setpriv", "--pdeathsig", "KILL", binary(version)),
            *("-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", str(BARE_MIB)),
            *("-qmp", f"unix:{self.qmp_path},server=on,wait=off"),
            *(option.format(folder=folder) for option in options),
        ]
        with (folder / "stderr").open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self) -> QemuVmm:
        self._adapter = vmm_of(self.qmp_path, self.process.pid)
        return self._adapter.__enter__()

    def __exit__(self, *_: object) -> None:
        self._adapter.__exit__(None, None, None)
        self.process.kill()
        self.process.wait()


FILE = "memory-backend-file,id=ram0,size=32M,mem-path={folder}/ram"
RAM = ("-object", f"{FILE},share=on")
MACHINE = ("-machine", "pc-i440fx-7.2,memory-backend=ram0")
GOOD = (*RAM, *MACHINE)
DISK = ("-device", "virtio-blk-pci,drive=d0", "-drive", "if=none,id=d0,format=raw,file={folder}/disk")


def refusal(bare: Bare, side: Side = Side.SOURCE, **options: bool) -> PageferryError:
    found: list[PageferryError] = []

    async def go(vmm: QemuVmm) -> None:
        with pytest.raises(PageferryError) as caught:
            await vmm.attach(side, **options)
        found.append(caught.value)
        await vmm.close()

    with bare as vmm:
        run(go(vmm))
        assert bare.process.poll() is None
    (error,) = found
    assert error.remedy
    return error


@pytest.fixture
def place(folder: Path) -> Iterator[Path]:
    """A folder of its own, on tmpfs."""
    own = folder / "bare"
    own.mkdir()
    (own / "disk").write_bytes(bytes(1 << 20))
    yield own
    for left in own.iterdir():
        left.unlink()
    own.rmdir()


@pytest.mark.parametrize(
    ("version", "machine"),
    [
        (SYSTEM, "pc-i440fx-7.2"),
        (SYSTEM, "microvm"),
        (NEWER, "pc-q35-7.2"),
        (NEWER, "pc-q35-7.2,max-ram-below-4g=1G"),
    ],
)
def test_where_memory_lies_in_the_guest_is_as_qemu_itself_has_it(
    place: Path, version: str, machine: str
) -> None:
    """By its own view of the guest's addresses; the RAM file is a hole but for what the firmware writes."""
    memory_bytes = 6 << 30
    ram = f"memory-backend-file,id=ram0,size={memory_bytes},mem-path={place}/ram,share=on"
    second = f"unix:{place}/second,server=on,wait=off"
    options = ("-object", ram, "-machine", f"{machine},memory-backend=ram0", "-m", "6G", "-qmp", second)

    async def go(vmm: QemuVmm) -> None:
        facts = await vmm.attach(Side.SOURCE)
        layout = pc_layout(memory_bytes, facts.below_4g_bytes)
        with closing(Qmp(place / "second", lambda: None)) as qmp:
            told = qmp.command("human-monitor-command", command_line="info mtree -f")
        piece = r"^ *([0-9a-f]{16})-[0-9a-f]{16} \(prio .*, ram\): ram0(?: @([0-9a-f]{16}))?"
        found = re.findall(piece, told, re.MULTILINE)
        assert {int(start, 16) >= 4 << 30 for start, _ in found} == {False, True}
        for start, offset in found:
            assert layout.page_of(int(start, 16)) == int(offset or "0", 16) // 4096
        await vmm.close()

    with Bare(place, version, *options) as vmm:
        run(go(vmm))


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize(
    ("options", "sentence", "remedy"),
    [
        ((*RAM, "-machine", "pc,memory-backend=ram0"), "machine type pc, an alias", "-machine pc-i440fx-"),
        ((*RAM, "-M", "q35,memory-backend=ram0"), "machine type q35, an alias", "-machine pc-q35-"),
        ((*RAM, "-machine", "memory-backend=ram0"), "without a machine type", "-machine pc-i440fx-"),
        (("-object", f"{FILE},share=off", *MACHINE), "is private", "share=on"),
        (("-object", FILE, *MACHINE), "is private", "share=on"),
        (("-machine", "pc-i440fx-7.2"), "pc.ram (memory-backend-ram) is private", "share=on"),
        (("-object", f"{FILE},share=on,prealloc=on", *MACHINE), "prealloc=on", "prealloc=off"),
        ((*GOOD, "-overcommit", "mem-lock=on"), "has locked its memory", "mem-lock=off"),
        (
            (*GOOD, "-object", "memory-backend-file,id=ram1,size=1M,share=on,mem-path={folder}/ram1"),
            "not in one memory backend",
            "memory-backend=ram0",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused_at_both_ends(
    place: Path, side: Side, options: tuple[str, ...], sentence: str, remedy: str
) -> None:
    incoming = ("-incoming", "defer") if side is Side.TARGET else ()
    error = refusal(Bare(place, SYSTEM, *options, *incoming), side)
    assert sentence in error.message
    assert remedy in error.remedy
    assert error.reason is Reason.UNSUPPORTED


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("kind", ["memfd", "shm", "ram"])
def test_memory_without_a_name_is_refused_from_8_2_on(place: Path, kind: str, side: Side) -> None:
    """It would go with the device state, all of it, and QEMU would not say a word."""
    ram = ("-object", f"memory-backend-{kind},id=ram0,size=32M,share=on")
    incoming = ("-incoming", "defer") if side is Side.TARGET else ()
    error = refusal(Bare(place, NEWER, *ram, *MACHINE, *incoming), side)
    assert f"ram0 is a memory-backend-{kind}" in error.message
    assert "a named file" in error.remedy


def test_a_memfd_would_indeed_go_with_the_state(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were it not refused, the size of the state would tell, before the guest may run anywhere."""
    monkeypatch.setattr("pageferry.host.qemu_checks.NAMED_FILES_ONLY", (99,))

    async def go(vmm: QemuVmm) -> None:
        await vmm.attach(Side.SOURCE)
        await vmm.pause()
        with pytest.raises(PageferryError, match="its RAM is in it"):
            await vmm.save_state()
        await vmm.resume()
        await vmm.close()

    ram = ("-object", "memory-backend-memfd,id=ram0,size=32M,share=on")
    with Bare(place, NEWER, *ram, *MACHINE) as vmm:
        run(go(vmm))


def test_a_memfd_can_be_moved_before_that(place: Path) -> None:
    async def go(vmm: QemuVmm) -> None:
        assert (await vmm.attach(Side.SOURCE)).machine == "pc-i440fx-7.2"
        await vmm.pause()
        assert len(await vmm.save_state()) < 1 << 20
        await vmm.resume()
        await vmm.close()

    ram = ("-object", "memory-backend-memfd,id=ram0,size=32M,share=on")
    with Bare(place, SYSTEM, *ram, *MACHINE) as vmm:
        run(go(vmm))


@pytest.mark.parametrize("version", VERSIONS)
def test_devices_that_cannot_are_refused_at_the_source(place: Path, version: str) -> None:
    nvme = ("-device", "nvme,serial=1,drive=d0", *DISK[2:])
    assert "non-migratable device" in refusal(Bare(place, version, *GOOD, *nvme)).message


@pytest.mark.parametrize("version", VERSIONS)
def test_o_direct_is_refused_where_rounds_are_to_run(place: Path, version: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"  # on a file system that has O_DIRECT
    disk.write_bytes(bytes(1 << 20))
    drive = ("-device", "virtio-blk-pci,drive=d0", "-drive", f"if=none,id=d0,format=raw,file={disk},cache=")
    error = refusal(Bare(place, version, *GOOD, *drive[:-1], drive[-1] + "none"))
    assert f"({disk}) is open with O_DIRECT" in error.message
    assert "cache.direct=off" in error.remedy

    async def go(vmm: QemuVmm, **options: bool) -> None:
        await vmm.attach(Side.SOURCE, **options)
        await vmm.close()

    (place / "qmp").unlink()
    with Bare(place, version, *GOOD, *drive[:-1], drive[-1] + "none") as vmm:
        run(go(vmm, precopy=False))
    (place / "qmp").unlink()
    with Bare(place, version, *GOOD, *drive[:-1], drive[-1] + "writeback") as vmm:
        run(go(vmm))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("side", "options", "sentence"),
    [
        (Side.TARGET, (), "does not wait for a guest (it is in state running)"),
        (Side.TARGET, ("-S",), "does not wait for a guest (it is in state prelaunch)"),
        (Side.TARGET, ("-incoming", "unix:{folder}/in"), "(it is in state inmigrate, and listens already)"),
        (Side.SOURCE, ("-S",), "in state prelaunch"),
        (Side.SOURCE, ("-incoming", "defer"), "in state inmigrate"),
    ],
)
def test_a_vm_in_another_state_is_refused(
    place: Path, version: str, side: Side, options: tuple[str, ...], sentence: str
) -> None:
    error = refusal(Bare(place, version, *GOOD, *options), side)
    assert sentence in error.message
    assert error.reason is Reason.WRONG_PHASE


def test_a_migration_under_way_is_refused(place: Path) -> None:
    bare = Bare(place, SYSTEM, *GOOD)
    with bare as vmm:
        with closing(Qmp(bare.qmp_path, lambda: None)) as qmp:
            qmp.command("migrate-set-parameters", max_bandwidth=1)
            qmp.command("migrate", uri=f"exec:cat >{place}/else")

        async def go() -> None:
            with pytest.raises(PageferryError, match="in a migration already") as caught:
                await vmm.attach(Side.SOURCE)
            assert caught.value.reason is Reason.BUSY
            await vmm.close()

        run(go())


# -------------------------------------------------------------------------------- QEMUs that do not answer


def test_the_monitor_of_another_vm_is_refused(place: Path) -> None:
    """Otherwise that one would be stopped, and this one moved."""
    bare = Bare(place, SYSTEM, *GOOD)
    pidfd = os.pidfd_open(os.getpid())

    async def go() -> None:
        vmm = QemuVmm(bare.qmp_path, pidfd=pidfd)
        with pytest.raises(PageferryError, match=f"process {bare.process.pid} listens") as caught:
            await vmm.attach(Side.SOURCE)
        assert caught.value.reason is Reason.MISMATCH
        await vmm.close()

    with bare as unused:
        run(go())
        run(unused.close())
    os.close(pidfd)


def test_the_successor_of_a_vm_that_has_died_is_not_taken_for_it(place: Path) -> None:
    """On the same socket, with no memory handed over."""
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    bare = Bare(place, SYSTEM, *GOOD)

    async def go() -> None:
        vmm = QemuVmm(bare.qmp_path, pidfd=pidfd)
        with pytest.raises(PageferryError, match="the VMM has exited") as caught:
            await vmm.attach(Side.SOURCE)
        assert caught.value.reason is Reason.NO_VMM
        await vmm.close()

    with bare as unused:
        run(go())
        run(unused.close())
    os.close(pidfd)


def test_without_a_hand_off_whoever_listens_is_held(place: Path) -> None:
    bare = Bare(place, SYSTEM, *GOOD)

    async def go() -> None:
        vmm = QemuVmm(bare.qmp_path)
        await vmm.attach(Side.SOURCE)
        await vmm.kill()
        assert bare.process.wait(0) == -signal.SIGKILL
        with pytest.raises(PageferryError, match="attach to it first"):
            await vmm.pause()
        await vmm.close()

    with bare as unused:
        run(go())
        run(unused.close())


def test_a_monitor_that_somebody_else_has(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "COMMAND_S", 0.2)
    bare = Bare(place, SYSTEM, *GOOD)

    async def go(vmm: QemuVmm) -> None:
        with pytest.raises(PageferryError, match="somebody else is connected") as caught:
            await vmm.attach(Side.SOURCE)
        assert caught.value.reason is Reason.TOO_SLOW
        await vmm.close()

    with bare as vmm, closing(Qmp(bare.qmp_path, lambda: None)):
        run(go(vmm))


def test_one_that_hangs_is_told_and_can_be_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose pages do not come: the thread that would answer stands still."""
    bare = Bare(place, SYSTEM, *GOOD)

    async def go(vmm: QemuVmm) -> None:
        await vmm.attach(Side.SOURCE)
        await vmm.pause()
        bare.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr("pageferry.host.qemu_settings.GIVE_BACK_S", 0.2)
        assert vmm._qmp is not None
        with pytest.raises(PageferryError, match=r"has not answered stop in 0\.2 s") as caught:
            await vmm._qmp.execute("stop", timeout_s=0.2)
        assert caught.value.reason is Reason.TOO_SLOW
        await vmm.kill()
        await vmm.close()

    with bare as vmm:
        run(go(vmm))


def test_one_that_has_died_is_gone(place: Path) -> None:
    bare = Bare(place, SYSTEM, *GOOD)

    async def go(vmm: QemuVmm) -> None:
        await vmm.attach(Side.SOURCE)
        bare.process.kill()
        bare.process.wait()
        for act in (vmm.pause, vmm.save_state, vmm.resume):
            with pytest.raises(PageferryError) as caught:
                await act()
            assert caught.value.reason is Reason.NO_VMM
        await vmm.kill()
        await vmm.close()

    with bare as vmm:
        run(go(vmm))


def test_an_orchestrators_own_client_may_come_after_us(place: Path) -> None:
    """close() leaves the monitor free."""
    bare = Bare(place, SYSTEM, *GOOD)

    async def go(vmm: QemuVmm) -> None:
        await vmm.attach(Side.SOURCE)
        await vmm.close()

    with bare as vmm:
        run(go(vmm))
        with closing(Qmp(bare.qmp_path, lambda: None, timeout_s=10)) as qmp:
            with pytest.raises(QmpError):
                qmp.command("no-such-command")
            assert qmp.command("query-status")["status"] == "running"
