# SPDX-License-Identifier: Apache-2.0
"""The link between the pair is lost in every way that links are: threads wait, and every page comes right.

The moments are not left to chance: the proxy lets a number of bytes through and then holds, so each loss
happens while some pages are here, some are under way, and some have not been asked.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.guest import Guest, Report, Shape
from tests.support.pair import Client, client, serve, waiting_threads
from tests.support.processes import Process
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((4096,), seed=20)
LOSSES = 5
STRETCH_BYTES = 1 << 20  # between two losses; the image has ten times as much


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


@pytest.fixture
def proxy(server: Process) -> Iterator[Proxy]:
    with Proxy(server.ready["data"]) as running:
        yield running


def end_well(run: Client, guest: Guest) -> tuple[Report, dict[str, int]]:
    """Everything has come, and every page was looked at since."""
    guest.do("all")
    figures = run.outcome()
    report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["asks_outstanding"] == 0
    assert figures["alarms_total"] == 0
    return report, figures


@pytest.mark.parametrize("lose", [Proxy.reset, Proxy.cut], ids=["reset", "closed"])
@pytest.mark.parametrize("memory", ["memfd", "private"])
def test_lost_while_faults_and_bulk_are_under_way(
    proxy: Proxy, folder: Path, memory: str, lose: Callable[[Proxy], None]
) -> None:
    proxy.allow(STRETCH_BYTES)
    with (
        client(folder, proxy.address) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        guest.ready().order("run", 0)
        for _ in range(LOSSES):
            proxy.wait_dry()
            lose(proxy)
            proxy.allow(STRETCH_BYTES)
        proxy.wait_dry()
        proxy.release()
        guest.order("stop")
        guest.wait()
        _, figures = end_well(run, guest)
    assert figures["links_lost_total"] >= LOSSES
    assert figures["dials_total"] > LOSSES


def test_server_killed_while_bulk_is_under_way(folder: Path, image: Path) -> None:
    """Another process each time, at another address behind the same name."""
    with ExitStack() as servers:
        server = servers.enter_context(serve(folder, {"vm": image}))
        proxy = servers.enter_context(Proxy(server.ready["data"]))
        proxy.allow(STRETCH_BYTES)
        with (
            client(folder, proxy.address) as run,
            Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
        ):
            guest.ready().order("run", 0)
            for _ in range(LOSSES):
                proxy.wait_dry()
                server.end(signal.SIGKILL)
                server = servers.enter_context(serve(folder, {"vm": image}))
                proxy.target = server.ready["data"]
                proxy.reset()
                proxy.allow(STRETCH_BYTES)
            proxy.release()
            guest.order("stop")
            guest.wait()
            end_well(run, guest)


@pytest.mark.parametrize("background", ["--background", "--no-background"])
def test_half_open_link_is_found_and_dialled_again(proxy: Proxy, folder: Path, background: str) -> None:
    """No packet says that it is dead: three heartbeats that are not echoed do."""
    proxy.allow(STRETCH_BYTES)
    with (
        client(folder, proxy.address, background) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready().order("all")
        proxy.wait_dry()
        proxy.strand()
        proxy.release()
        guest.wait()
        _, figures = end_well(run, guest)
    assert figures["links_lost_total"] >= 1


def test_half_open_link_is_found_while_nobody_waits(proxy: Proxy, folder: Path) -> None:
    """The guest touches nothing: it is bulk that must not wait for ever."""
    proxy.allow(STRETCH_BYTES)
    with (
        client(folder, proxy.address) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready()
        proxy.wait_dry()
        proxy.strand()
        proxy.release()
        assert run.outcome()["faults_total"] == 0
        assert guest.do("all").errors == 0


def test_stopped_server_costs_time_alone(folder: Path, image: Path) -> None:
    with (
        serve(folder, {"vm": image}) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready().do("run", 100)
        server.kick(signal.SIGSTOP)
        guest.order("all")
        run.wait_until(lambda: waiting_threads(guest.pid) == 2, "both threads wait")
        server.kick(signal.SIGCONT)
        assert guest.wait().errors == 0
        end_well(run, guest)


def test_slow_link(proxy: Proxy, folder: Path) -> None:
    proxy.delay_s = 0.005
    with (
        client(folder, proxy.address) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, threads=4) as guest,
    ):
        guest.ready()
        end_well(run, guest)


def test_other_bytes_under_the_same_name_are_never_taken(folder: Path, image: Path) -> None:
    """A restarted server has an image of other content: threads wait until the right one is back."""
    other = Shape(SHAPE.pages, seed=SHAPE.seed + 1).make_image(folder / "other")
    with ExitStack() as servers:
        listen = f"unix:{folder}/data.sock"
        server = servers.enter_context(serve(folder, {"vm": image}, listen=listen))
        with (
            client(folder, listen, "--no-background") as run,
            Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
        ):
            guest.ready().do("run", 100)
            server.end(signal.SIGKILL)
            guest.order("all")
            with serve(folder, {"vm": other}, listen=listen):
                run.wait_log("MISMATCH")
                assert waiting_threads(guest.pid) == 2
            servers.enter_context(serve(folder, {"vm": image}, listen=listen))
            guest.wait()
            end_well(run, guest)
            assert "resumed" in run.log
