# SPDX-License-Identifier: Apache-2.0
"""The pair on small pages that the kernel would like to make huge: memfd and tmpfs in every mode of theirs.

A write of one page may bring 512 into the file then, of zeros, and each would look like one that has come.
How many pages the file holds is asked of the kernel: those of the image, to a page.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import Process
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_settings, needs_userfaultfd
from tests.support.settings import SHMEM_ENABLED, Settings

pytestmark = [needs_userfaultfd, needs_huge_settings]
PAGE_BYTES = 4096
SHAPE = Shape((4096,), seed=50, data_percent=40)
MODES = ["always", "within_size", "advise", "never", "deny", "force"]
MOUNTS = ["always", "within_size", "advise", "never"]
PRECOPIED = "--postcopy=forbid"  # all of it is written to the file before any is mapped


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    return SHAPE.make_image(folder / "image")


@pytest.fixture(scope="module")
def server(folder: Path, image: Path) -> Iterator[Process]:
    with serve(folder, {"vm": image}) as running:
        yield running


def held_pages(guest: Guest) -> int:
    """In its RAM file, by the kernel's count of blocks."""
    (fd,) = (fd for fd in Path(f"/proc/{guest.pid}/fd").iterdir() if "guest-ram" in str(fd.readlink()))
    return fd.stat().st_blocks * 512 // PAGE_BYTES


def all_come_and_no_more(folder: Path, server: Process, image: Path, memory: str, option: str) -> None:
    with (
        client(folder, server.ready["data"], option) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        guest.ready()
        figures = run.outcome()
        assert held_pages(guest) == len(SHAPE.data_pages(image))
        guest.do("run", 10_000)
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["alarms_total"] == figures["faults_total"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_memfd_in_every_mode(folder: Path, server: Process, image: Path, mode: str) -> None:
    with Settings() as machine:
        machine.write(SHMEM_ENABLED, mode)
        all_come_and_no_more(folder, server, image, "memfd", PRECOPIED)
        if mode == "force":
            all_come_and_no_more(folder, server, image, "memfd", "--postcopy=at-once")


@pytest.mark.parametrize("huge", MOUNTS)
def test_tmpfs_in_every_mode(folder: Path, server: Process, image: Path, huge: str) -> None:
    with Settings() as machine:
        ram = machine.tmpfs("size=64m", f"huge={huge}") / "guest-ram"
        all_come_and_no_more(folder, server, image, f"file:{ram}", PRECOPIED)


def test_faults_race_with_arrivals_where_huge_pages_are_forced(folder: Path, server: Process) -> None:
    with Settings() as machine:
        machine.write(SHMEM_ENABLED, "force")
        with (
            client(folder, server.ready["data"]) as run,
            Guest(SHAPE, handoff=run.handoff, folder=folder, memory="memfd", threads=4) as guest,
        ):
            guest.ready().order("run", 20_000)
            guest.wait()
            report = guest.do("all")
            figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["alarms_total"] == 0
