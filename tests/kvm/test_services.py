# SPDX-License-Identifier: Apache-2.0
"""A real vCPU whose memory comes from `pageserver serve` through `faultclient run`, as a user starts them.

The guest itself holds every word of every page against what the image must have (guest.S).
"""

import array
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kvm.vmm import PAGE_BYTES, PATIENCE_S, KvmVmm, build, why_not
from tests.support.pair import Client, client, serve
from tests.support.processes import Process
from tests.support.requires import needs_userfaultfd

pytestmark = [
    needs_userfaultfd,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
]
PAGES = 2048
MULTIPLIER = 0x9E3779B97F4A7C15
CHECK = f"check {MULTIPLIER} 1"
ALL_RIGHT = f"out 0 {PAGES}"
WORDS = PAGE_BYTES // 8


def is_hole(page: int) -> bool:
    return page % 100 >= 70


def page_of_image(page: int) -> bytes:
    if is_hole(page):
        return bytes(PAGE_BYTES)
    first = (page + 1) * MULTIPLIER
    return array.array("Q", ((first + word) % 2**64 for word in range(WORDS))).tobytes()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kvm") / "image.ram"
    path.write_bytes(b"".join(page_of_image(page) for page in range(PAGES)))
    return path


@pytest.fixture
def server(tmp_path: Path, image: Path) -> Iterator[Process]:
    build()
    with serve(tmp_path, {"vm": image}) as process:
        yield process


def until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def until_asleep(vmm: KvmVmm) -> None:
    until(vmm.asleep, "the vCPU does not wait for its page")


def stopped(process: Process) -> bool:
    """Each thread of it: the one that takes the signal stops the others when it has its turn."""
    threads = Path(f"/proc/{process.pid}/task").iterdir()
    return all("T (stopped)" in (thread / "status").read_text() for thread in threads)


def start(run: Client) -> KvmVmm:
    return KvmVmm(PAGES, run.handoff)


@pytest.mark.parametrize("background", [True, False])
def test_a_guest_finds_every_page_right(tmp_path: Path, server: Process, background: bool) -> None:
    """It checks while pages arrive and the VMM drops mappings, and once more when the client has gone."""
    options = () if background else ("--no-background",)
    with client(tmp_path, server.ready["data"], *options) as run, start(run) as vmm:
        vmm.ready()
        vmm.do(CHECK)
        vmm.do("zaps 200 1")
        assert vmm.stopped() == ALL_RIGHT
        figures = run.outcome()
        vmm.do(f"zap 0 {PAGES}")
        vmm.do(CHECK)
        assert vmm.stopped() == ALL_RIGHT
        vmm.do(f"check {MULTIPLIER} 2")  # and the guest would see it if they were not
        assert vmm.stopped() == f"out {sum(not is_hole(page) for page in range(PAGES))} {PAGES}"
    assert background or figures["faults_total"] >= PAGES
    assert figures["asks_outstanding"] == 0
    assert figures["alarms_total"] == 0
    assert figures["phase"] == "RELEASED"


def test_a_vcpu_is_called_away_while_the_server_is_silent(tmp_path: Path, server: Process) -> None:
    with client(tmp_path, server.ready["data"], "--no-background") as run, start(run) as vmm:
        vmm.ready()
        vmm.do("touch 1")
        assert vmm.stopped() == f"out {2 * MULTIPLIER % 2**64} 0"
        server.kick(signal.SIGSTOP)
        try:
            until(lambda: stopped(server), "the server does not stop")
            vmm.do("touch 2")
            for _ in range(3):
                until_asleep(vmm)
                vmm.do("kick")
                assert vmm.stopped() == "eintr"
                vmm.do("go")
            until_asleep(vmm)
        finally:
            server.kick(signal.SIGCONT)
        assert vmm.stopped() == f"out {3 * MULTIPLIER % 2**64} 0"
        vmm.do(CHECK)
        assert vmm.stopped() == ALL_RIGHT
        assert run.outcome()["alarms_total"] == 0
