# SPDX-License-Identifier: Apache-2.0
"""A real guest gets huge pages again while it runs on, and misses no byte of what it verifies.

QEMU asks for them when it starts; the shim keeps that wish until every page is here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo import save_guest
from tests.support.lazy import LazyRestore
from tests.support.netns import host_pair
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd
from tests.support.shape import GuestShape

pytestmark = needs_userfaultfd
SHAPE = GuestShape(memory_mib=224, workload_mib=128)


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


def huge_pages(pid: int, ram: Path) -> tuple[int, str]:
    """Of that file, by the kernel's own count, and the flags of the mapping."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    mapping = smaps[smaps.index(str(ram)) :]
    found = re.search(r"ShmemPmdMapped:\s+(\d+) kB.*?VmFlags: ([^\n]*)", mapping, re.DOTALL)
    assert found is not None
    return int(found[1]) // 2048, found[2]


def test_huge_pages_of_a_guest_that_runs(folder: Path) -> None:
    saved = save_guest(SHAPE, folder)
    with (
        host_pair(hide=[saved.image.parent]) as hosts,
        LazyRestore(saved, hosts, folder / "restore", client_options=["--collapse"]) as restore,
    ):
        guest = restore.guest
        guest.load(saved.state)
        guest.resume()
        guest.say("epoch\n")
        figures = restore.outcome()["collapsed"]
        huge, flags = huge_pages(guest.pid, restore.ram_file)
        seen = guest.console.wait_beat(
            lambda beat: beat.epoch == 1 and beat.distinct >= SHAPE.workload_mib * 256, "all of it verified"
        )
    assert seen.errors == 0, guest.console.errors
    assert "hg" in flags.split()
    assert huge == figures["huge"]
    assert figures["extents"] == SHAPE.memory_mib // 2
    assert figures["full"] >= SHAPE.workload_mib // 4
    assert figures["huge"] >= 0.9 * figures["full"], figures
