# SPDX-License-Identifier: Apache-2.0
"""The shim with the real pair behind it: `faultclient run` and `pageserver serve`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.vmm import PAGE_BYTES, PAGES, Starter
from tests.support.pair import client, serve
from tests.support.processes import Process


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    """Serves an image whose page N is all bytes N + 1."""
    image = tmp_path / "image.ram"
    image.write_bytes(b"".join(bytes([page + 1]) * PAGE_BYTES for page in range(PAGES)))
    with serve(tmp_path, {"vm": image}) as process:
        yield process


def test_discarded_pages_stay_zero(start: Starter, tmp_path: Path, server: Process) -> None:
    """Pages 5 and 9 are dropped before they have come, page 6 after it; DONTNEED of page 7 drops no byte.
    The odd punch takes half of page 10, all of 11, and the first half of 12."""
    steps = {
        "read:0": 1,
        "punch:5": 0,
        "read:5": 0,
        "read:6": 7,
        "punch:6": 0,
        "remove:9": 0,
        "read:9": 0,
        "dontneed:7": 0,
        "read:7": 8,
        "punch-odd:10": 0,
        "read:10": 11,
        "read:11": 0,
        "read:12": 0,
        "read:13": 14,
    }
    again = [(step, 0 if step == "read:6" else result) for step, result in steps.items() if "read" in step]
    with client(tmp_path, server.ready["data"], "--no-background") as run:
        settings = {"PAGEFERRY_SHIM_SOCKET": str(run.handoff)}
        with start("map", *steps, *(step for step, _ in again), settings=settings) as vmm:
            vmm.expect("map 0 0")
            for step, result in (*steps.items(), *again):
                vmm.expect(f"{step.partition(':')[0]} {result} 0")
            assert vmm.end() == (0, "")


def test_whole_restore(start: Starter, tmp_path: Path, server: Process) -> None:
    """The client ends once every page is here; then the VMM is on its own, and free of guards."""
    steps = ("map", "pause", "read:15", "punch:5", "read:5", "map", "read:14")
    with (
        client(tmp_path, server.ready["data"]) as run,
        start(*steps, settings={"PAGEFERRY_SHIM_SOCKET": str(run.handoff)}) as vmm,
    ):
        vmm.expect("map 0 0")
        figures = run.outcome()
        assert figures["bulk_pages_total"] == PAGES
        assert figures["alarms_total"] == 0
        vmm.go_on()
        for line in ("pause 0 0", "read 16 0", "punch 0 0", "read 0 0", "map 0 0", "read 15 0"):
            vmm.expect(line)
        assert vmm.end() == (0, "")
