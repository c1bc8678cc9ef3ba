# SPDX-License-Identifier: Apache-2.0
"""The real guest by itself, before any of ours has a part in it.

It boots, is saved, and goes on where it was on a plain copy of its RAM; it finds whatever is wrong in that
copy; and from the destination's namespaces it cannot reach the image. So when a lazy restore shows errors
they are ours, and when it shows none the guest would have found them.
"""

import os
import random
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.console import missing_beats
from tests.support.initrd import ROOT
from tests.support.netns import INTERFACE, host_pair
from tests.support.qemu import Qemu, QemuError
from tests.support.ramfile import copy_sparse, run_folder
from tests.support.shape import GuestShape, SavedGuest
from tests.support.witness import allocated_bytes, interface_counters, reaches, same_namespace

PAGE_BYTES = 4096
PAGES_PER_MIB = 256
PAGE_LINES = 64
LINE = struct.Struct("<8Q")  # page, incarnation, n, line, three of filler, hash
MACHINES = ["pc", "microvm"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module", params=MACHINES)
def saved(request: pytest.FixtureRequest, folder: Path) -> SavedGuest:
    machine: str = request.param
    ram_file = folder / f"{machine}.ram"
    with Qemu(GuestShape(machine), ram_file, folder / machine) as source:
        source.console.wait_beats(20)
        result = source.save(folder / f"{machine}.image")
    assert missing_beats(source.console.beats, after=-1) == []
    assert source.console.beats[-1].errors == 0, source.console.errors
    ram_file.unlink()
    return result


@pytest.fixture
def copy(saved: SavedGuest, folder: Path) -> Iterator[Path]:
    """A RAM file with the saved guest's bytes in it."""
    ram_file = folder / "copy.ram"
    copy_sparse(saved.image, ram_file)
    yield ram_file
    ram_file.unlink()


def test_saved_state_holds_no_ram(saved: SavedGuest) -> None:
    assert len(saved.state) < 1 << 20
    assert allocated_bytes(saved.image) > saved.shape.workload_mib << 20
    assert allocated_bytes(saved.image) < saved.shape.memory_mib << 20  # holes have stayed holes


def test_restored_on_a_copy_goes_on(saved: SavedGuest, copy: Path, folder: Path) -> None:
    half = saved.shape.memory_mib * PAGES_PER_MIB // 2
    with Qemu(saved.shape, copy, folder / "guest", restoring=saved) as guest:
        guest.load(saved.state)
        guest.resume()
        guest.say("epoch\n")
        guest.console.wait_beat(lambda beat: beat.epoch == 1 and beat.distinct >= half, "half of it seen")
    assert guest.console.beats[-1].errors == 0, guest.console.errors
    assert missing_beats(guest.console.beats, after=saved.last_beat) == []


def test_a_waiting_destination_has_touched_nothing(saved: SavedGuest, folder: Path) -> None:
    """QEMU makes the RAM file, and it is all hole until the state is loaded: every page is elsewhere."""
    ram_file = folder / "empty.ram"
    with Qemu(saved.shape, ram_file, folder / "guest", restoring=saved) as guest:
        assert guest.qmp.command("query-status")["status"] == "inmigrate"
        assert ram_file.stat().st_size == saved.shape.memory_mib << 20
        assert allocated_bytes(ram_file) == 0
    ram_file.unlink()


def test_a_flipped_bit_in_the_copy_is_found(saved: SavedGuest, copy: Path, folder: Path) -> None:
    chosen = random.Random(3)

    def flip(page: bytearray) -> None:
        page[chosen.randrange(PAGE_BYTES)] ^= 1 << chosen.randrange(8)

    assert change_stamped_pages(copy, [flip]) == 1
    with Qemu(saved.shape, copy, folder / "guest", restoring=saved) as guest:
        guest.load(saved.state)
        guest.resume()
        guest.console.wait(lambda: bool(guest.console.errors), "the guest finds the bit")
        guest.console.wait_beat(lambda beat: beat.errors > 0, "the guest counts it")
    assert "kind=damaged" in guest.console.errors[0]


def test_every_kind_of_wrong_page_is_told_apart(saved: SavedGuest, copy: Path, folder: Path) -> None:
    def zero(page: bytearray) -> None:
        page[:] = bytes(PAGE_BYTES)

    def misplace(page: bytearray) -> None:
        page[:64], page[64:128] = page[64:128], page[:64]

    def make_stale(page: bytearray) -> None:
        for line in range(PAGE_LINES):
            rewrite_line(page, line)

    def tear(page: bytearray) -> None:
        rewrite_line(page, 17)

    changes = [zero, misplace, make_stale, tear]
    assert change_stamped_pages(copy, changes) == len(changes)
    with Qemu(saved.shape, copy, folder / "guest", restoring=saved) as guest:
        guest.load(saved.state)
        guest.resume()
        wanted = {"zero", "misplaced", "stale", "torn"}
        guest.console.wait(lambda: wanted <= kinds(guest.console.errors), "the guest tells all four kinds")
    assert kinds(guest.console.errors) == wanted


def kinds(errors: list[str]) -> set[str]:
    return {error.rpartition("kind=")[2] for error in errors}


def change_stamped_pages(ram_file: Path, changes: Sequence[Callable[[bytearray], None]]) -> int:
    """Each change is made to another page of the workload, anywhere; returns how many were made."""
    with ram_file.open("r+b") as ram:
        pages = list(range(os.fstat(ram.fileno()).st_size // PAGE_BYTES))
        random.Random(5).shuffle(pages)
        made = 0
        for number in pages:
            page = bytearray(os.pread(ram.fileno(), PAGE_BYTES, number * PAGE_BYTES))
            if made < len(changes) and is_stamped(page):
                changes[made](page)
                os.pwrite(ram.fileno(), page, number * PAGE_BYTES)
                made += 1
    return made


def is_stamped(page: bytearray) -> bool:
    """All lines are of one page, of one n, in their places, and whole."""
    lines = list(LINE.iter_unpack(page))
    same = all(line[:3] == lines[0][:3] and line[3] == at for at, line in enumerate(lines))
    return same and lines[0][2] > 0 and all(line[7] == line_hash(*line[:7]) for line in lines)


def rewrite_line(page: bytearray, line: int) -> None:
    """As it was one rewrite ago, whole in itself."""
    number, incarnation, n, at, *filler, _ = LINE.unpack_from(page, line * LINE.size)
    words = (number, incarnation, n - 1, at, *filler)
    LINE.pack_into(page, line * LINE.size, *words, line_hash(*words))


def line_hash(*words: int) -> int:
    """The workload's, written a second time."""
    mask = (1 << 64) - 1
    value = 0x243F6A8885A308D3
    for word in words:
        value = ((value ^ word) * 0x9FB21C651E98DF25) & mask
        value = ((value << 23) | (value >> 41)) & mask
    return value


def test_a_state_for_another_machine_is_refused(saved: SavedGuest, copy: Path, folder: Path) -> None:
    other = GuestShape("pc" if saved.shape.machine == "microvm" else "microvm")
    with (
        Qemu(other, copy, folder / "guest", restoring=saved) as guest,
        pytest.raises(QemuError, match="Machine type received"),
    ):
        guest.load(saved.state)


@pytest.mark.parametrize("machine", MACHINES)
def test_destination_cannot_reach_the_image(machine: str, folder: Path) -> None:
    """A guest in the destination's namespaces runs, is on the link, and has no way to a file hidden there."""
    image = folder / f"hidden-{machine}" / "image"
    image.parent.mkdir()
    image.write_bytes(b"x" * PAGE_BYTES)
    ram_file = folder / f"boxed-{machine}.ram"
    with host_pair(hide=[image.parent], rate_mbit=1000) as pair:
        with Qemu(GuestShape(machine), ram_file, folder / "boxed", prefix=pair.destination.prefix) as guest:
            guest.console.wait_beats(2)
            assert reaches(guest.pid, image) == []
            assert reaches(guest.pid, ram_file) != []
            assert not same_namespace(guest.pid, os.getpid(), "net")
            assert not same_namespace(guest.pid, pair.source.pid, "net")
        read_image = [*pair.destination.prefix, "cat", str(image)]
        assert subprocess.run(read_image, capture_output=True, check=False).returncode != 0
        before = interface_counters(pair.destination.pid, INTERFACE)
        ping = [*pair.source.prefix, "busybox", "ping", "-c", "1", pair.destination.address]
        subprocess.run(ping, check=True, capture_output=True)
        after = interface_counters(pair.destination.pid, INTERFACE)
        assert after.rx_bytes - before.rx_bytes >= 84  # one echo request without its Ethernet header
    ram_file.unlink()
    assert not Path("/proc", str(pair.source.pid)).exists()
    assert not Path("/proc", str(pair.destination.pid)).exists()


HARNESS = """
import sys
from tests.support.netns import host_pair
from tests.support.qemu import Qemu
from tests.support.ramfile import run_folder
from tests.support.shape import GuestShape
with run_folder() as folder, host_pair() as pair:
    with Qemu(GuestShape(), folder / "ram", folder / "guest", prefix=pair.destination.prefix) as guest:
        guest.qmp.command("query-status")
        print(folder, guest.pid, pair.source.pid, pair.destination.pid, flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_harness_leaves_nothing(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", HARNESS]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        folder, *pids = harness.stdout.readline().decode().split()
        fds = [os.pidfd_open(int(pid)) for pid in pids]
        harness.send_signal(number)
        harness.wait()
    for fd in fds:
        assert select.select([fd], [], [], 10)[0]  # a pidfd can be read once its process has ended
        os.close(fd)
    with run_folder():
        assert not Path(folder).exists()  # by SIGKILL: the next run takes it away
