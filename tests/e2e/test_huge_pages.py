# SPDX-License-Identifier: Apache-2.0
"""The pair on huge pages of a pool: the stand-in VM on each kind of them, over a real page server.

A huge page is filled whole before anybody sees a byte of it. The guest knows what each 4 KiB page must hold,
and which VM it belongs to. Whether anything is mapped is asked of the kernel (smaps), what lies in the RAM
file of the file itself: never of the pair.
"""

import os
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from faultclient.vms import Vms
from pageferry.host.listener import Listener
from tests.support.guest import Guest, Shape
from tests.support.pair import Client, client, serve, waiting_threads
from tests.support.processes import PATIENCE_S, Process
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_pages, needs_userfaultfd
from tests.support.settings import HUGE_2_MIB, Settings

pytestmark = [needs_userfaultfd, needs_huge_pages]
PAGE_BYTES = 4096
UNIT = HUGE_2_MIB // PAGE_BYTES  # pages of a huge page
SHAPE = Shape((16 * UNIT,), seed=30, data_percent=60)
UNITS = SHAPE.page_count // UNIT
KINDS = ["memfd-2M", "private-2M", "file"]
HUGE_1_GIB = 1 << 30


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def machine() -> Iterator[Settings]:
    with Settings() as changed:
        changed.add_huge_pages(UNITS)
        yield changed


@pytest.fixture(scope="module")
def mounted(machine: Settings) -> Path:
    return machine.hugetlbfs()


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    return SHAPE.make_image(folder / "image")


@pytest.fixture(scope="module")
def server(folder: Path, image: Path) -> Iterator[Process]:
    with serve(folder, {"vm": image}) as running:
        yield running


@pytest.fixture
def proxy(server: Process) -> Iterator[Proxy]:
    with Proxy(server.ready["data"]) as running:
        yield running


@contextmanager
def boot(
    run: Client, folder: Path, mounted: Path, kind: str, *options: str, threads: int = 2
) -> Iterator[Guest]:
    """When it has ended, its pages are in the pool again."""
    file = mounted / "ram"
    memory = f"file:{file}" if kind == "file" else kind
    try:
        with Guest(
            SHAPE, handoff=run.handoff, folder=folder, memory=memory, threads=threads, options=options
        ) as guest:
            yield guest
    finally:
        file.unlink(missing_ok=True)


def mapped_bytes(pid: int) -> int:
    """Of huge pages, in that process, by the kernel."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    return sum(
        int(kib) * 1024 for kib in re.findall(r"^(?:Shared|Private)_Hugetlb: +(\d+) kB$", smaps, re.MULTILINE)
    )


def filled_pages(pid: int) -> list[int]:
    """Of the RAM file: pages that hold something else than zeros."""
    fds = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if re.search("guest-ram|/ram$", str(fd.readlink()))]
    zeros = bytes(PAGE_BYTES)
    with fds[0].open("rb", buffering=0) as file:
        return [page for page in range(SHAPE.page_count) if file.read(PAGE_BYTES) != zeros]


def has_stopped(pid: int) -> bool:
    """All its threads: a signal that was sent has not stopped anybody yet."""
    stats = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


# -------------------------------------------------------------------------------------- every page, each kind


@pytest.mark.parametrize(
    "kind, background",
    [*((kind, "--background") for kind in KINDS), ("memfd-2M", "--no-background")],
)
def test_every_page_is_right(
    server: Process, folder: Path, mounted: Path, kind: str, background: str
) -> None:
    with (
        client(folder, server.ready["data"], background) as run,
        boot(run, folder, mounted, kind, threads=4) as guest,
    ):
        guest.ready()
        guest.do("run", 20_000)
        report = guest.do("all")
        figures = run.outcome()
        last = guest.do("all")
        assert mapped_bytes(guest.pid) == UNITS * HUGE_2_MIB
    assert report.errors == last.errors == 0, last.kinds
    assert report.distinct == SHAPE.page_count
    assert last.rewrites > 0
    assert figures["phase"] == "RELEASED"
    assert figures["asks_outstanding"] == figures["alarms_total"] == 0


@pytest.mark.parametrize("kind", ["memfd-2M", "private-2M"])
def test_a_fault_brings_its_huge_page_and_no_other(
    server: Process, folder: Path, mounted: Path, kind: str
) -> None:
    with (
        client(folder, server.ready["data"], "--no-background") as run,
        boot(run, folder, mounted, kind) as guest,
    ):
        guest.ready()
        report = guest.do("touch", 3 * UNIT + 5, 3 * UNIT + 500, 9 * UNIT)
        assert mapped_bytes(guest.pid) == 2 * HUGE_2_MIB
        assert report.errors == 0, report.kinds
        guest.do("all")
        figures = run.outcome()
    assert figures["asks_total"] == SHAPE.page_count


# ------------------------------------------------------------------------------ a huge page that is half here


@pytest.mark.parametrize(
    "kind, background",
    [("memfd-2M", "--background"), ("private-2M", "--background"), ("file", "--no-background")],
)
def test_nothing_is_seen_of_a_huge_page_that_is_half_here(
    proxy: Proxy, folder: Path, mounted: Path, kind: str, background: str
) -> None:
    """The link holds in the middle of the first one. Its first and its last page are touched: both wait."""
    proxy.allow(HUGE_2_MIB // 4)
    with (
        client(folder, proxy.address, background) as run,
        boot(run, folder, mounted, kind) as guest,
    ):
        guest.ready()
        if background == "--background":
            proxy.wait_dry()
        guest.order("touch", 0, UNIT - 1)
        proxy.wait_dry()
        run.wait_until(lambda: waiting_threads(guest.pid) == 2, "both threads wait")
        if kind != "private-2M":
            here = filled_pages(guest.pid)
            assert 0 < len(here) < UNIT // 2
            assert all(page < UNIT for page in here)
        assert mapped_bytes(guest.pid) == 0
        proxy.release()
        assert guest.wait().errors == 0
        report = guest.do("all")
        run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count


# ------------------------------------------------------------------------------------------ ends of processes


@pytest.mark.parametrize("kind", KINDS)
def test_server_killed_while_huge_pages_are_half_here(
    folder: Path, mounted: Path, image: Path, kind: str
) -> None:
    listen = f"unix:{folder}/{kind}.sock"
    with ExitStack() as servers:
        server = servers.enter_context(serve(folder, {"vm": image}, listen=listen))
        with (
            client(folder, listen, "--no-background") as run,
            boot(run, folder, mounted, kind) as guest,
        ):
            guest.ready()
            run.wait_log("ARMED")
            guest.do("touch", *range(0, 2 * UNIT, 97))
            server.kick(signal.SIGSTOP)
            run.wait_until(lambda: has_stopped(server.pid), "the page server has stopped")
            guest.order("touch", 2 * UNIT + 300, 3 * UNIT + 200)
            run.wait_until(lambda: waiting_threads(guest.pid) == 2, "both threads wait")
            server.end(signal.SIGKILL)
            servers.enter_context(serve(folder, {"vm": image}, listen=listen))
            assert guest.wait().errors == 0
            report = guest.do("all")
            figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["links_lost_total"] >= 1
    assert figures["asks_again_total"] >= UNIT
    assert figures["asks_outstanding"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_client_killed_and_nobody_reads_a_byte_that_has_not_come(
    proxy: Proxy, folder: Path, mounted: Path, kind: str
) -> None:
    """Its VMM holds the userfaultfd too: who waits goes on waiting, and what is here stays right."""
    with (
        client(folder, proxy.address, "--no-background") as run,
        boot(run, folder, mounted, kind, threads=3) as guest,
    ):
        guest.ready()
        assert guest.do("touch", *range(0, 4 * UNIT, 61)).errors == 0
        mapped = mapped_bytes(guest.pid)
        proxy.allow(HUGE_2_MIB // 4)
        guest.order("touch", 7 * UNIT, 7 * UNIT + 511, 9 * UNIT + 1)
        proxy.wait_dry()
        run.wait_until(lambda: waiting_threads(guest.pid) == 3, "the threads wait")
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        report = guest.report()
        assert waiting_threads(guest.pid) == 3
        assert mapped_bytes(guest.pid) == mapped == 4 * HUGE_2_MIB
    assert report.errors == 0, report.kinds


# --------------------------------------------------------------------------------------------------- the pool


def test_a_full_pool_is_said_and_waited_for(server: Process, folder: Path, machine: Settings) -> None:
    """Half of what the file system may take of it is somebody else's. The VMM has not reserved its pages."""
    small = machine.hugetlbfs(size_bytes=UNITS * HUGE_2_MIB)
    with (small / "other").open("wb") as other:
        os.posix_fallocate(other.fileno(), 0, UNITS // 2 * HUGE_2_MIB)
    with (
        client(folder, server.ready["data"]) as run,
        boot(run, folder, small, "file", "--unreserved") as guest,
    ):
        guest.ready()
        guest.order("all")
        run.wait_log('"event": "paused"')
        assert "NO_MEMORY" in run.log
        assert "the huge page pool has no page left" in run.log
        (small / "other").unlink()
        report = guest.wait()
        figures = run.outcome()
        last = guest.do("all")
    assert report.errors == last.errors == 0, last.kinds
    assert last.distinct == SHAPE.page_count
    assert figures["full_total"] > 0
    assert figures["alarms_total"] == 0


@pytest.mark.nightly
def test_huge_pages_of_1_gib_land_before_the_guest_runs(folder: Path, machine: Settings) -> None:
    shape = Shape((HUGE_1_GIB // PAGE_BYTES,), seed=31, data_percent=1)
    machine.add_huge_pages(1, HUGE_1_GIB)
    with (
        serve(folder, {"vm": shape.make_image(folder / "large")}) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(shape, handoff=run.handoff, folder=folder, memory="memfd-1G") as guest,
    ):
        guest.ready()
        report = guest.do("all")
        figures = run.outcome()
        assert mapped_bytes(guest.pid) == HUGE_1_GIB
        events = re.findall('"event": "(landing_first|populated|phase)"', run.log)
    assert report.errors == 0, report.kinds
    assert report.distinct == shape.page_count
    assert events[:2] == ["landing_first", "populated"]
    assert figures["asks_total"] == 0  # nobody was made to wait for a page


def test_huge_pages_of_1_gib_of_private_memory_are_refused(server: Process, folder: Path) -> None:
    """There need be none in the pool: the VMM has not touched any yet."""
    shape = Shape((HUGE_1_GIB // PAGE_BYTES,), seed=31, data_percent=1)
    with (
        client(folder, server.ready["data"]) as run,
        Guest(shape, handoff=run.handoff, folder=folder, memory="private-1G"),
    ):
        assert run.wait() == 71
        assert "private memory in huge pages of 1 GiB cannot be served" in run.log


# -------------------------------------------------------------------- several VMs of one client, of each kind


def test_vms_of_every_kind_in_one_client(folder: Path, machine: Settings, mounted: Path) -> None:
    """One process, one bulk thread, six VMs: each page of each carries the VM that it belongs to."""
    kinds = ["memfd", "memfd-2M", f"file:{folder}/small", f"file:{mounted}/huge", "private", "private-2M"]
    shapes = [Shape((3 * UNIT,), seed=40 + index) for index in range(len(kinds))]
    images = {f"vm{index}": shape.make_image(folder / f"vm{index}") for index, shape in enumerate(shapes)}
    with serve(folder, images) as server, Vms() as vms, ExitStack() as running:
        guests = []
        for index, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
            path = folder / f"many-{index}.sock"
            with Listener(path) as listener:
                guests.append(running.enter_context(Guest(shape, handoff=path, folder=folder, memory=kind)))
                handoff = listener.accept(timeout_s=PATIENCE_S)
            vms.take(
                handoff,
                image=f"vm{index}",
                data_address=server.ready["data"],
                background=True,
                spin_us=0,
            ).pager.arm()
        for guest in guests:
            guest.ready().order("run", 5000)
        reports = [guest.wait() for guest in guests] + [guest.do("all") for guest in guests]
        counters = vms.counters()
    assert [report.errors for report in reports] == [0] * len(reports), [report.kinds for report in reports]
    assert all(report.distinct == 3 * UNIT for report in reports[len(guests) :])
    assert counters["alarms_total"] == 0
