# SPDX-License-Identifier: Apache-2.0
"""The pair on huge pages of a pool: the stand-in VM on each kind of them, over a real page server.

A huge page is filled whole before anybody sees a byte of it. The guest knows what each 4 KiB page of it must
hold, and looks at pages whose huge page has arrived in part: by hand (touch, the link cut), and by chance in
all other tests.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import Guest, Shape
from tests.support.pair import Client, client, serve
from tests.support.processes import Process
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_pages, needs_userfaultfd
from tests.support.settings import Settings

pytestmark = [needs_userfaultfd, needs_huge_pages]
UNIT = 512  # pages of a huge page of 2 MiB
SHAPE = Shape((16 * UNIT,), seed=30, data_percent=60)
KINDS = ["memfd-2M", "private-2M", "file"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def machine() -> Iterator[Settings]:
    with Settings() as changed:
        changed.add_huge_pages(2 * SHAPE.page_count // UNIT)
        yield changed


@pytest.fixture(scope="module")
def pool(machine: Settings) -> Path:
    return machine.hugetlbfs()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as running:
        yield running


def huge_guest(run: Client, folder: Path, pool: Path, kind: str, *options: str, threads: int = 2) -> Guest:
    file = pool / "ram"
    file.unlink(missing_ok=True)
    memory = f"file:{file}" if kind == "file" else kind
    return Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory, threads=threads, options=options)


@pytest.mark.parametrize("background", ["--background", "--no-background"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_page_is_right(server: Process, folder: Path, pool: Path, kind: str, background: str) -> None:
    with (
        client(folder, server.ready["data"], background) as run,
        huge_guest(run, folder, pool, kind, threads=4) as guest,
    ):
        guest.ready()
        guest.do("run", 20_000)
        report = guest.do("all")
        figures = run.outcome()
        last = guest.do("all")
    assert report.errors == last.errors == 0, last.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["phase"] == "RELEASED"
    assert figures["asks_outstanding"] == figures["alarms_total"] == 0
