# SPDX-License-Identifier: Apache-2.0
"""A VMM that behaves as Firecracker was seen to: it restores through the pair, and its balloon is obeyed.

Private anonymous memory, EVENT_REMOVE and nothing else enabled, MISSING alone, one descriptor in one message;
two faults of the VMM's own before it answers; the handshake of each generation; regions whose order in memory
is not their order in the image; a balloon that gives pages away by MADV_DONTNEED while its guest faults.
"""

import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import Guest, Shape
from tests.support.pair import Client, client, serve
from tests.support.processes import Process
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_pages, needs_userfaultfd
from tests.support.settings import HUGE_2_MIB, Settings

pytestmark = needs_userfaultfd
SHAPE = Shape((4096,), seed=10)
SPLIT = Shape((2048, 1536, 512), seed=11)  # as by the gap below 4 GiB, smaller
EARLY = (0xDF, 0xDE)  # what the VMM itself writes while it loads
GENERATIONS = ["1.1", "1.7", "1.12", "2.0"]
HUGE_PAGES = HUGE_2_MIB // 4096  # of a huge page of the pool
REMOVES = 100_000
REPORTS = 200
# What a hundred thousand events may leave behind in the client; a byte an event would be seen.
GROWTH_BYTES_MAX = 4 << 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    images = {
        "vm": SHAPE.make_image(folder / "image"),
        "split": SPLIT.make_image(folder / "split"),
    }
    sizes = ",".join(map(str, SPLIT.pages))
    with serve(folder, images, f"--regions=split={sizes}") as running:
        yield running


@pytest.fixture(scope="module")
def pool() -> Iterator[None]:
    with Settings() as machine:
        machine.add_huge_pages(SHAPE.page_count // HUGE_PAGES)
        yield


def firecracker(
    run: Client,
    folder: Path,
    *options: str,
    shape: Shape = SHAPE,
    threads: int = 2,
    memory: str = "private",
) -> Guest:
    early = "--early=" + ",".join(map(str, EARLY))
    return Guest(
        shape,
        handoff=run.handoff,
        folder=folder,
        memory=memory,
        threads=threads,
        options=["--event-remove", early, *options],
    )


@pytest.mark.parametrize("generation", GENERATIONS)
def test_each_generation_of_the_handshake(server: Process, folder: Path, generation: str) -> None:
    with (
        client(folder, server.ready["data"]) as run,
        firecracker(run, folder, f"--generation={generation}") as guest,
    ):
        guest.ready()  # its own two faults were served
        guest.do("run", 10_000)
        guest.do("all")
        figures = run.outcome()
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["faults_total"] > len(EARLY)
    assert figures["faults_minor_total"] == figures["continues_total"] == 0
    assert figures["phase"] == "RELEASED"


@pytest.mark.parametrize("order", [[], ["--reverse"]], ids=["ascending", "descending"])
def test_regions_lie_in_memory_in_any_order(server: Process, folder: Path, order: list[str]) -> None:
    """The kernel shows touching regions as one; a page is looked up by its region all the same."""
    with (
        client(folder, server.ready["data"], image="split") as run,
        firecracker(run, folder, *order, shape=SPLIT) as guest,
    ):
        guest.ready()
        report = guest.do("all")
        run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SPLIT.page_count


def test_vmm_that_ends_before_all_pages_are_here(server: Process, folder: Path) -> None:
    """Only its socket's end is heard; there is nothing left to serve, and that is said."""
    with client(folder, server.ready["data"], "--no-background") as run, firecracker(run, folder) as guest:
        guest.ready()
        guest.do("run", 200)
        guest.kick(signal.SIGKILL)
        assert run.wait() == 69
        assert "NO_VMM" in run.log


def test_vmm_of_an_older_generation_that_ends(server: Process, folder: Path) -> None:
    """The socket was closed long ago: it is the process that is watched."""
    with (
        client(folder, server.ready["data"], "--no-background") as run,
        firecracker(run, folder, "--generation=1.7") as guest,
    ):
        guest.ready()
        guest.do("run", 200)
        guest.kick(signal.SIGKILL)
        assert run.wait() == 69
        assert "NO_VMM" in run.log


# ------------------------------------------------------------------------------------------------ the balloon


def test_removed_pages_read_zero_for_ever(server: Process, folder: Path) -> None:
    """Pages never loaded, loaded, and written, given away; then everything else arrives, and is looked at."""
    with client(folder, server.ready["data"], "--no-background") as run, firecracker(run, folder) as guest:
        guest.ready()
        guest.do("run", 1000)
        for first in range(0, SHAPE.page_count, 512):
            guest.order("balloon", first, 256)
        first_look = guest.do("all")
        figures = run.outcome()
        second_look = guest.do("run", 20_000)
        last_look = guest.do("all")
    assert first_look.errors == second_look.errors == last_look.errors == 0, last_look.kinds
    assert first_look.given_away == SHAPE.page_count // 2
    assert figures["removes_total"] == SHAPE.page_count // 512
    assert figures["asks_total"] < SHAPE.page_count  # most of what was given away was not fetched any more
    assert figures["asks_outstanding"] == 0


@pytest.mark.parametrize("background", ["--background", "--no-background"])
def test_balloon_against_faults_and_bulk(server: Process, folder: Path, background: str) -> None:
    """Threads fault all over while the balloon takes single pages, some of them those that are waited for."""
    with (
        client(folder, server.ready["data"], background) as run,
        firecracker(run, folder, threads=4) as guest,
    ):
        guest.ready()
        guest.order("run", 0)
        for first in range(0, SHAPE.page_count, 1024):
            guest.order("flood", first, 512, 1500)
        guest.order("stop")
        guest.wait()
        guest.do("all")
        figures = run.outcome()
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert report.given_away == 6000
    assert figures["alarms_total"] == 0
    assert figures["asks_outstanding"] == 0


def test_free_page_reporting_all_through_a_restore(server: Process, folder: Path) -> None:
    """What a guest with free-page reporting does: it gives up large aligned pieces that it has no use for
    just now, have they ever been here or not, some of them again; later it takes them back, a page here and
    there, and uses them. They begin as zeros each time.
    """
    order = random.Random(5)
    with (
        client(folder, server.ready["data"], "--no-background") as run,
        firecracker(run, folder, threads=4) as guest,
    ):
        guest.ready()
        guest.order("run", 0)
        for size in (512, 1024) * (REPORTS // 2):
            guest.order("balloon", order.randrange(SHAPE.page_count // size) * size, size)
        guest.order("stop")
        report = guest.wait()
        guest.do("all")
        figures = run.outcome()
        last_look = guest.do("all")
    assert report.errors == last_look.errors == 0, last_look.kinds
    assert last_look.distinct == SHAPE.page_count
    assert last_look.given_away > SHAPE.page_count
    assert figures["removes_total"] > 0
    assert figures["alarms_total"] == figures["asks_outstanding"] == 0


def test_a_flood_of_removes_leaves_the_memory_bounded(server: Process, folder: Path) -> None:
    with client(folder, server.ready["data"], "--no-background") as run, firecracker(run, folder) as guest:
        guest.ready()
        run.wait_log("serving")  # whatever is loaded and made once has been
        guest.order("flood", 0, 64, 1000)
        before = resident_bytes(run.pid)
        guest.order("flood", 64, 1024, REMOVES, patience_s=90)
        grown = resident_bytes(run.pid) - before
        report = guest.do("all")
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert figures["removes_total"] == REMOVES + 1000
    assert grown < GROWTH_BYTES_MAX


def resident_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


# --------------------------------------------------------------------------------------- huge pages of 2 MiB


@needs_huge_pages
@pytest.mark.parametrize("generation", GENERATIONS[1:])
def test_each_generation_that_names_its_page_size(
    server: Process, folder: Path, pool: None, generation: str
) -> None:
    """The image is the same: the memory's pages are as the hand-off says."""
    with (
        client(folder, server.ready["data"]) as run,
        firecracker(run, folder, f"--generation={generation}", memory="private-2M") as guest,
    ):
        guest.ready()  # its own two faults were served, of one huge page
        guest.do("run", 10_000)
        guest.do("all")
        figures = run.outcome()
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["alarms_total"] == figures["faults_minor_total"] == 0
    assert figures["phase"] == "RELEASED"


@needs_huge_pages
def test_huge_pages_that_the_oldest_generation_does_not_name(
    server: Process, folder: Path, pool: None
) -> None:
    with (
        client(folder, server.ready["data"]) as run,
        firecracker(run, folder, "--generation=1.1", memory="private-2M"),
    ):
        assert run.wait() == 65
        assert "was handed over with pages of 4096 bytes, but is mapped in pages of 2097152" in run.log


@needs_huge_pages
@pytest.mark.parametrize("order", [[], ["--reverse"]], ids=["ascending", "descending"])
def test_regions_of_huge_pages_lie_in_any_order(
    server: Process, folder: Path, pool: None, order: list[str]
) -> None:
    with (
        client(folder, server.ready["data"], image="split") as run,
        firecracker(run, folder, *order, shape=SPLIT, memory="private-2M") as guest,
    ):
        guest.ready()
        report = guest.do("all")
        run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SPLIT.page_count


@needs_huge_pages
def test_free_huge_pages_are_reported_and_read_zero_for_ever(
    server: Process, folder: Path, pool: None
) -> None:
    """Some never asked for, some the guest's."""
    with (
        client(folder, server.ready["data"], "--no-background") as run,
        firecracker(run, folder, memory="private-2M") as guest,
    ):
        guest.ready()
        guest.do("touch", 0, 3 * HUGE_PAGES, 4 * HUGE_PAGES + 7)
        for first in range(0, SHAPE.page_count, 2 * HUGE_PAGES):
            guest.order("balloon", first, HUGE_PAGES)
        first_look = guest.do("all")
        figures = run.outcome()
        last_look = guest.do("all")
    assert first_look.errors == last_look.errors == 0, last_look.kinds
    assert first_look.given_away == SHAPE.page_count // 2
    assert figures["removes_total"] == SHAPE.page_count // HUGE_PAGES // 2
    assert figures["removed_pages_total"] == SHAPE.page_count // 2
    assert figures["asks_outstanding"] == figures["alarms_total"] == 0


@needs_huge_pages
@pytest.mark.parametrize("background", ["--background", "--no-background"])
def test_reports_of_free_huge_pages_against_faults_and_bulk(
    server: Process, folder: Path, pool: None, background: str
) -> None:
    """Threads fault all over while huge pages leave again and again, some of them half here or waited for."""
    with (
        client(folder, server.ready["data"], background) as run,
        firecracker(run, folder, threads=4, memory="private-2M") as guest,
    ):
        guest.ready()
        guest.order("run", 0)
        for first in range(0, SHAPE.page_count // 2, HUGE_PAGES):
            guest.order("flood", first, HUGE_PAGES, 20, HUGE_PAGES)
        guest.order("stop")
        guest.wait()
        guest.do("all")
        figures = run.outcome()
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert report.given_away == 20 * SHAPE.page_count // 2
    assert figures["alarms_total"] == 0
    assert figures["asks_outstanding"] == 0
