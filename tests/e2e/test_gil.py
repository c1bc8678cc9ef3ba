# SPDX-License-Identifier: Apache-2.0
"""No page needs the interpreter: it is held, at one end and then at the other, until a thousand have come.

Nothing here is measured. The process's GIL is taken by C code that gives it back when the guest has read its
pages: if one of them waited for a line of Python, the two would wait for each other.
"""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.gil import Holder
from tests.support.guest import Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import PATIENCE_S
from tests.support.proxy import Proxy
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((4096,), seed=40)
ABSENT_PAGES = 1000
MEMORIES = ["memfd", "private"]


@pytest.fixture
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


def answers(address: str, timeout_s: float) -> bool:
    """Whether a port says how it is: control ports in Python, data ports in C."""
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        try:
            check(b"", timeout=timeout_s)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            return False
        return True


def read_absent_pages(guest: Guest) -> None:
    """A thousand pages that nobody has touched, each of them remote; none may be wrong."""
    report = guest.do("touch", *range(0, 4 * ABSENT_PAGES, 4))
    assert report.looks == report.distinct == ABSENT_PAGES
    assert report.errors == 0, report.kinds


@pytest.mark.parametrize("memory", MEMORIES)
def test_held_in_the_page_server(folder: Path, memory: str) -> None:
    image = SHAPE.make_image(folder / "image")
    with (
        Holder.made() as holder,
        serve(
            folder, {"vm": image}, launcher=holder.launcher("pageserver.cli"), pass_fds=holder.pass_fds
        ) as server,
        client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        guest.ready()
        with holder.holding():
            assert not answers(server.ready["control"], 1)
            assert answers(server.ready["data"], PATIENCE_S)
            read_absent_pages(guest)
        assert answers(server.ready["control"], PATIENCE_S)
        guest.do("all")
        assert run.outcome()["asks_total"] == SHAPE.page_count


@pytest.mark.parametrize("memory", MEMORIES)
def test_held_in_the_fault_client(folder: Path, memory: str) -> None:
    image = SHAPE.make_image(folder / "image")
    with (
        Holder.made() as holder,
        serve(folder, {"vm": image}) as server,
        holder.client(folder, server.ready["data"], "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        guest.ready()
        control = run.control_address()
        with holder.holding():
            assert not answers(control, 1)
            read_absent_pages(guest)
        assert answers(control, PATIENCE_S)
        assert guest.do("all").errors == 0
        assert run.outcome()["asks_total"] == SHAPE.page_count


def test_all_of_a_restore_while_nothing_of_python_runs(folder: Path) -> None:
    """Bulk too: held before most of it came, and given back when the guest has seen every page."""
    image = SHAPE.make_image(folder / "image")
    with (
        Holder.made() as holder,
        serve(folder, {"vm": image}) as server,
        Proxy(server.ready["data"]) as proxy,
    ):
        proxy.allow(1 << 20)
        with (
            holder.client(folder, proxy.address) as run,
            Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
        ):
            guest.ready()
            run.control_address()
            proxy.wait_dry()
            with holder.holding():
                proxy.release()
                report = guest.do("all")
            figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["bulk_pages_total"] > 0


def test_a_link_is_dialled_again_while_nothing_of_python_runs(folder: Path) -> None:
    image = SHAPE.make_image(folder / "image")
    with (
        Holder.made() as holder,
        serve(folder, {"vm": image}) as server,
        Proxy(server.ready["data"]) as proxy,
        holder.client(folder, proxy.address, "--no-background") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready()
        run.control_address()
        with holder.holding():
            proxy.reset()
            read_absent_pages(guest)
        guest.do("all")
        assert run.outcome()["links_lost_total"] >= 1
