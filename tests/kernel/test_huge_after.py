# SPDX-License-Identifier: Apache-2.0
"""`--collapse`: once a VM's memory is here its full pieces of 2 MiB become huge pages again, from outside.

The stand-in guest knows every byte of its memory; how many huge pages it has is what the kernel says.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from pageferry.v1 import faultclient_pb2, faultclient_pb2_grpc
from tests.support.guest import PAGE_BYTES, Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import Process, script
from tests.support.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "native/build/pageferry-shim.so"
PIECE_PAGES = 512
PIECES = 24
# A guest without a hole but for what it gives away.
SHAPE = Shape(pages=(PIECES * PIECE_PAGES,), data_percent=100)
GIVEN_AWAY = (3 * PIECE_PAGES + 7, 100)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a tmpfs")


@pytest.fixture
def machine() -> Iterator[Settings]:
    with Settings() as settings:
        yield settings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    image = SHAPE.make_image(tmp_path / "image")
    with serve(tmp_path, {"vm": image}) as process:
        yield process


@contextmanager
def guest_under_the_shim(ram: Path, socket: Path, folder: Path) -> Iterator[Guest]:
    ram.touch()
    os.truncate(ram, SHAPE.page_count * PAGE_BYTES)
    settings = {
        "LD_PRELOAD": str(SHIM),
        "PAGEFERRY_SHIM_RAM": str(ram),
        "PAGEFERRY_SHIM_SOCKET": str(socket),
    }
    with Guest(SHAPE, folder=folder, memory=f"file:{ram}", options=["--bare"], env=settings) as guest:
        yield guest


def huge_pages(pid: int, ram: Path) -> int:
    """Of that file, in that process, by the kernel's own count."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    mapping = smaps[smaps.index(str(ram)) :]
    found = re.search(r"ShmemPmdMapped:\s+(\d+) kB", mapping)
    assert found is not None
    return int(found[1]) // 2048


def logged(process: Process, event: str) -> dict[str, Any]:
    """The one line of this event."""
    lines = [json.loads(line) for line in process.log.splitlines()]
    (found,) = [line for line in lines if line["event"] == event]
    return dict(found)


@pytest.mark.parametrize("huge", ["advise", "always", "within_size"])
def test_full_pieces_are_huge_again(machine: Settings, server: Process, tmp_path: Path, huge: str) -> None:
    ram = machine.tmpfs(f"huge={huge}", "size=160m") / "ram"
    with (
        client(tmp_path, server.ready["data"], "--collapse", "--no-background") as run,
        guest_under_the_shim(ram, run.handoff, tmp_path) as guest,
    ):
        guest.ready()
        assert guest.order("punch", *GIVEN_AWAY)["errno"] == 0
        assert huge_pages(guest.pid, ram) == 0
        guest.do("all")
        figures = run.outcome()["collapsed"]
        assert huge_pages(guest.pid, ram) == figures["huge"]
        line = logged(run, "collapsed")
        assert [line[name] for name in ("pieces", "full", "huge")] == [PIECES, PIECES, figures["huge"]]
        report = guest.do("all")
    assert report.errors == 0, report.kinds
    assert figures["extents"] == PIECES
    # What it has given away it has touched since: zeros, and no hole any more.
    assert figures["full"] == PIECES
    assert figures["huge"] >= 0.9 * figures["full"], figures
    assert figures["huge_before"] == 0


def test_pieces_with_holes_stay_as_they_are(machine: Settings, server: Process, tmp_path: Path) -> None:
    """What the guest has given away costs no memory afterwards either."""
    ram = machine.tmpfs("huge=advise", "size=160m") / "ram"
    with (
        client(tmp_path, server.ready["data"], "--collapse") as run,
        guest_under_the_shim(ram, run.handoff, tmp_path) as guest,
    ):
        guest.ready()
        assert guest.order("punch", *GIVEN_AWAY)["errno"] == 0
        figures = run.outcome()["collapsed"]
        assert ram.stat().st_blocks * 512 // PAGE_BYTES == SHAPE.page_count - GIVEN_AWAY[1]
        assert huge_pages(guest.pid, ram) == figures["huge"]
        assert guest.do("all").errors == 0
    assert figures["full"] == PIECES - 1
    assert figures["huge"] >= 0.9 * figures["full"], figures


def test_a_vmm_that_keeps_them_away(server: Process, tmp_path: Path) -> None:
    """It hands its memory over by itself, and MADV_NOHUGEPAGE is its own: that is said, and no more."""
    with client(tmp_path, server.ready["data"], "--collapse") as run:
        with Guest(SHAPE, folder=tmp_path, handoff=run.handoff) as guest:
            guest.ready()
            assert run.outcome()["collapsed"] is None
            assert guest.do("all").errors == 0
        assert logged(run, "not_collapsed")["reason"] == "UNSUPPORTED"


def test_private_memory_needs_nothing_of_its_vmm(server: Process, tmp_path: Path) -> None:
    with (
        client(tmp_path, server.ready["data"], "--collapse") as run,
        Guest(SHAPE, folder=tmp_path, handoff=run.handoff, memory="private") as guest,
    ):
        figures = run.outcome()["collapsed"]
        assert guest.ready().do("all").errors == 0
    assert figures["full"] >= PIECES - 1  # its mapping may begin anywhere
    assert figures["huge"] >= 0.9 * figures["full"], figures


def test_of_a_session(machine: Settings, server: Process, tmp_path: Path) -> None:
    """`faultclient serve`: the session's end does not wait, the log has the figures."""
    ram = machine.tmpfs("huge=advise", "size=160m") / "ram"
    vm = f"--vm=web-1,handoff={tmp_path}/web-1.sock,process"
    options = ["--collapse", f"--state-dir={tmp_path}/state", "--control-listen=127.0.0.1:0"]
    with script("faultclient", "serve", vm, *options, folder=tmp_path, ready=True) as served:
        with (
            guest_under_the_shim(ram, tmp_path / "web-1.sock", tmp_path) as guest,
            grpc.insecure_channel(served.ready["control"]) as channel,
        ):
            request = faultclient_pb2.StartSessionRequest(
                session="web-1",
                image="vm",
                vm="web-1",
                data_address=server.ready["data"],
                postcopy=faultclient_pb2.POSTCOPY_AT_ONCE,
            )
            faultclient_pb2_grpc.FaultClientServiceStub(channel).StartSession(request)
            served.wait_log("collapsed")
            assert logged(served, "collapsed")["huge"] == huge_pages(guest.pid, ram) >= 0.9 * PIECES
            assert guest.ready().do("all").errors == 0
        assert served.end() == 0
