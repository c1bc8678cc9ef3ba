# SPDX-License-Identifier: Apache-2.0
"""Zaps by order of a pager's owner: the real page server, the shim, and a guest that judges what it reads.

The guest reads and writes at random, pages are punched out of its RAM file, and all the while the pager has
mappings dropped, over pages in every state.
"""

import os
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from faultclient.pager import Client, EventKind, Pager, PagerEvent, ZapMethod
from pageferry.host import handoff
from pageferry.reasons import Reason
from pageferry.service import native
from tests.support.build import ROOT
from tests.support.guest import Guest, Shape
from tests.support.pair import serve
from tests.support.processes import PATIENCE_S, Process
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHIM: Final = ROOT / "native/build/pageferry-shim.so"
SHAPE: Final = Shape((4096,))
ZAPS: Final = 150
PUNCHED_PAGES: Final = 16
MISSING, CACHED, OWNED = (native.PAGE_STATES.index(name) for name in ("MISSING", "CACHED", "OWNED"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Process]:
    with serve(folder, {"vm": SHAPE.make_image(folder / "image")}) as running:
        yield running


def wait_for(pager: Pager, kind: EventKind) -> PagerEvent:
    """The next event of this kind, or the refusal of an order."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for event in pager.events():
            assert event.kind is not EventKind.ALARM, event.text
            if event.kind in (kind, EventKind.FAILED):
                return event
        select.select([pager.event_fd()], [], [], 0.1)
    raise TimeoutError(kind.name)


@contextmanager
def restored(folder: Path, server: Process, *, shim: bool = True) -> Iterator[tuple[Guest, Pager]]:
    """A guest whose pages have come in part, armed, and a pager that fetches what is asked for alone."""
    ram, path = folder / f"zap-{shim}.ram", folder / f"zap-{shim}.sock"
    env = {
        "LD_PRELOAD": str(SHIM),
        "PAGEFERRY_SHIM_RAM": str(ram),
        "PAGEFERRY_SHIM_SOCKET": str(path),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(PATIENCE_S)
        how = {"options": ["--bare"], "env": env} if shim else {"handoff": path}
        with Guest(SHAPE, folder=folder, memory=f"file:{ram}", **how) as guest:
            connection, _ = listener.accept()
            client = Client()
            pager = client.open(
                handoff.receive(connection, uids={os.getuid()}),
                image="vm",
                data_address=server.ready["data"],
                bandwidth_bytes_per_s=4 << 20,
            )
            try:
                while pager.pages().states["CACHED"] < SHAPE.page_count // 8:
                    time.sleep(0.005)
                pager.background(False)
                pager.arm()
                assert wait_for(pager, EventKind.ARMED).kind is EventKind.ARMED
                yield guest.ready(), pager
            finally:
                pager.close()
                client.close()


def test_nothing_is_lost_and_nothing_comes_back(folder: Path, server: Process) -> None:
    over: Counter[int] = Counter()
    choose = random.Random(3)
    punches = zapped = 0
    with restored(folder, server) as (guest, pager):
        for number in range(ZAPS):
            first = choose.randrange(SHAPE.page_count) if number else 0
            count = min(SHAPE.page_count - first, choose.randrange(1, 1500) if number else SHAPE.page_count)
            over.update(pager.states(first, count))
            pager.zap(first, count, cookie=number)
            event = wait_for(pager, EventKind.DONE)
            assert (event.kind, event.cookie, event.page) == (EventKind.DONE, number, count), event.text
            assert event.value == ZapMethod.DONTNEED
            zapped += count
            if number == 0:
                guest.order("run", 0)
            elif number % 3 == 0:
                assert guest.order("punch", choose.randrange(4000), PUNCHED_PAGES)["errno"] == 0
                punches += 1
        guest.order("stop")
        guest.wait()
        report = guest.do("all")
        counters = pager.counters()
    assert report.errors == 0, report.kinds
    assert report.given_away == punches * PUNCHED_PAGES
    assert report.rewrites > 0
    assert counters["alarms_total"] == 0
    assert counters["zapped_pages_total"] == zapped
    # our own zaps were taken for no discards
    assert counters["discards_total"] == punches
    assert counters["removed_pages_total"] == punches * PUNCHED_PAGES
    assert all(over[state] > 0 for state in (MISSING, CACHED, OWNED)), over


def test_a_vmm_without_frames_cannot_be_asked(folder: Path, server: Process) -> None:
    """What is to go can be dropped for it all the same."""
    with restored(folder, server, shim=False) as (guest, pager):
        pager.zap(0, 100)
        event = wait_for(pager, EventKind.DONE)
        assert event.order_refused
        assert event.reason is Reason.UNSUPPORTED
        pager.zap(0, 100, drop=True)
        event = wait_for(pager, EventKind.DONE)
        assert (event.page, event.value) == (100, ZapMethod.PUNCH)
        guest.do("all")
        wrong = {page for page, _ in guest.wrong_pages}
        assert wrong
        assert max(wrong) < 100
