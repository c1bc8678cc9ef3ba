# SPDX-License-Identifier: Apache-2.0
"""A guest's memory is restored lazily through the pair, as a user starts it, and every line of it is judged.

The guest (tests/support/guest.c) knows what each page must hold, writes some anew, and never forgets what it
wrote. What each test adds is in its name.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.guest import PAGE_BYTES, Guest, Shape
from tests.support.pair import Client, client, serve, waiting_threads
from tests.support.processes import Process
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((4096,))
MEMORIES = ["memfd", "tmpfs", "private"]
KILLS = 5
SHIM = ROOT / "native/build/pageferry-shim.so"


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def image(shared: Path) -> Path:
    return SHAPE.make_image(shared / "image")


@pytest.fixture(scope="module")
def server(shared: Path, image: Path) -> Iterator[Process]:
    with serve(shared, {"vm": image}) as running:
        yield running


def boot(
    run: Client, folder: Path, *, memory: str = "memfd", threads: int = 2, options: tuple[str, ...] = ()
) -> Guest:
    """A guest whose memory is handed to this client; on a tmpfs in `folder` if it is to be."""
    if memory == "tmpfs":
        memory = f"file:{folder}/ram-{run.pid}"
    if memory == "private":
        options += ("--event-remove",)
    return Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory, threads=threads, options=options)


# --------------------------------------------------------------------------------------- every kind of memory


@pytest.mark.parametrize("memory", MEMORIES)
def test_every_page_comes_right_and_stays_so(server: Process, shared: Path, memory: str) -> None:
    with client(shared, server.ready["data"]) as run, boot(run, shared, memory=memory) as guest:
        guest.ready()
        guest.do("run", 10_000)
        guest.do("all")
        figures = run.outcome()  # it has ended: all pages are the guest's
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert report.rewrites > 0
    assert figures["faults_total"] > 0
    assert figures["bulk_pages_total"] > 0
    assert figures["asks_outstanding"] == 0
    assert figures["alarms_total"] == 0
    assert figures["phase"] == "RELEASED"


@pytest.mark.parametrize("memory", MEMORIES)
def test_without_background_each_page_waits_for_its_fault(
    server: Process, shared: Path, image: Path, memory: str
) -> None:
    with (
        client(shared, server.ready["data"], "--no-background") as run,
        boot(run, shared, memory=memory) as guest,
    ):
        guest.ready()
        report = guest.do("all")
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert figures["bulk_pages_total"] == 0
    assert figures["urgent_pages_total"] == len(SHAPE.data_pages(image))
    assert figures["asks_total"] == SHAPE.page_count
    assert figures["fetched_bytes_total"] == figures["urgent_pages_total"] * PAGE_BYTES


def test_the_file_holds_nothing_before_and_no_hole_is_filled(
    server: Process, shared: Path, image: Path
) -> None:
    """What reads as zeros costs the destination no memory until the guest touches it."""
    ram = shared / "counted.ram"
    with client(shared, server.ready["data"]) as run:
        ram.touch()
        os.truncate(ram, SHAPE.page_count * PAGE_BYTES)
        with Guest(SHAPE, handoff=run.handoff, folder=shared, memory=f"file:{ram}") as guest:
            guest.ready()
            figures = run.outcome()
            stored = ram.stat().st_blocks * 512 // PAGE_BYTES
            assert figures["faults_total"] == 0
            assert figures["bulk_pages_total"] == stored == len(SHAPE.data_pages(image))
            assert guest.do("all").errors == 0


def test_vmm_that_knows_nothing_of_it(server: Process, shared: Path) -> None:
    """It maps its RAM file, no more: the shim makes the userfaultfd, and reports what it gives away."""
    ram = shared / "shim.ram"
    with client(shared, server.ready["data"], "--no-background") as run:
        settings = {
            "LD_PRELOAD": str(SHIM),
            "PAGEFERRY_SHIM_RAM": str(ram),
            "PAGEFERRY_SHIM_SOCKET": str(run.handoff),
        }
        with Guest(SHAPE, folder=shared, memory=f"file:{ram}", options=["--bare"], env=settings) as guest:
            guest.ready().do("run", 2000)
            for first in range(0, SHAPE.page_count, 512):
                assert guest.order("punch", first, 128)["errno"] == 0
            guest.do("run", 2000)
            guest.do("all")
            figures = run.outcome()
            assert guest.order("punch", 0, 1)["errno"] == 0  # nobody needs to hear of it any more
            report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["faults_total"] > 0
    assert figures["removed_pages_total"] == SHAPE.page_count // 4
    assert figures["asks_total"] < SHAPE.page_count


# ------------------------------------------------------------------------------------------- threads and asks


@pytest.mark.parametrize("memory", MEMORIES)
def test_eight_threads_ask_at_once_and_no_page_twice(server: Process, shared: Path, memory: str) -> None:
    """Nothing reaches the client until eight threads wait: so eight asks are under way together."""
    with (
        Proxy(server.ready["data"]) as proxy,
        client(shared, proxy.address, "--no-background") as run,
        boot(run, shared, memory=memory, threads=8) as guest,
    ):
        guest.ready()
        run.wait_log("ARMED")
        proxy.hold()
        guest.order("all")
        run.wait_until(lambda: waiting_threads(guest.pid) >= 8, "eight threads that wait")
        proxy.release()
        report = guest.wait()
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert figures["asks_outstanding_max"] >= 8
    assert figures["asks_again_total"] == 0
    assert figures["asks_total"] == SHAPE.page_count


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_page_that_eight_threads_want_is_asked_once(server: Process, shared: Path, memory: str) -> None:
    wanted = range(0, SHAPE.page_count, 41)
    with (
        client(shared, server.ready["data"], "--no-background") as run,
        boot(run, shared, memory=memory, threads=8) as guest,
    ):
        guest.ready()
        assert guest.do("storm", *wanted).looks == 8 * len(wanted)
        report = guest.do("all")
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert figures["asks_total"] == SHAPE.page_count
    assert figures["asks_again_total"] == 0
    assert figures["fetched_bytes_total"] == figures["urgent_pages_total"] * PAGE_BYTES


# ----------------------------------------------------------------------------------------- a server that dies


@pytest.mark.parametrize("memory", MEMORIES)
def test_server_killed_and_started_again_while_threads_wait(shared: Path, image: Path, memory: str) -> None:
    """Each time some pages are here, some are not, and both threads wait for one: only time is lost."""
    pages = range(0, SHAPE.page_count, 7)
    share = len(pages) // KILLS
    with ExitStack() as servers:
        # no port: it could be somebody else's by the time it is needed again
        listen = f"unix:{shared}/{memory}.sock"
        server = servers.enter_context(serve(shared, {"vm": image}, listen=listen))
        with (
            client(shared, listen, "--no-background") as run,
            boot(run, shared, memory=memory) as guest,
        ):
            guest.ready()
            run.wait_log("ARMED")
            for kill in range(KILLS):
                mine = pages[kill * share : (kill + 1) * share]
                guest.do("touch", *mine[: share // 2])
                server.end(signal.SIGKILL)
                guest.order("touch", *mine[share // 2 :])
                run.wait_until(lambda: waiting_threads(guest.pid) == 2, "both threads wait")
                server = servers.enter_context(serve(shared, {"vm": image}, listen=listen))
                assert guest.wait().errors == 0
            report = guest.do("all")
            figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["links_lost_total"] >= KILLS
    assert figures["asks_again_total"] >= 2 * KILLS
    assert figures["asks_outstanding"] == 0
