# SPDX-License-Identifier: Apache-2.0
"""A plain process as a VM: it stands still when that is said, and no signal goes astray."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pageferry.host.process import HeldProcess, ProcessVmm
from pageferry.phases import Side
from pageferry.reasons import PageferryError, Reason
from tests.support.processes import leaks_nothing

__all__ = ["leaks_nothing"]
pytestmark = pytest.mark.usefixtures("leaks_nothing")
# Two threads count; each line says how far they are.
COUNTER = """
import sys, threading, time
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
while sys.stdin.readline():
    print(count, flush=True)
"""


@contextmanager
def counter() -> Iterator[tuple[subprocess.Popen[str], int]]:
    argv = [sys.executable, "-c", COUNTER]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            assert count(child) >= 0
            yield child, pidfd
        finally:
            os.close(pidfd)
            child.kill()


def count(child: subprocess.Popen[str]) -> int:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return int(child.stdout.readline())


def states(pid: int) -> set[str]:
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return {text.rpartition(")")[2].split()[0] for text in stats}


def run(what: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(what, 30))


def test_a_source_stands_still_and_goes_on() -> None:
    async def go(child: subprocess.Popen[str], pidfd: int) -> None:
        vmm = ProcessVmm(pidfd)
        facts = await vmm.attach(Side.SOURCE)
        assert facts.running
        assert facts.name == f"process {child.pid}"
        assert "T" not in states(child.pid)
        for _ in range(2):
            await vmm.pause()
            await vmm.pause()
            assert states(child.pid) == {"T"}
            assert await vmm.save_state() == b""
            await vmm.resume()
            await vmm.resume()
            assert count(child) > 0
        await vmm.pause()
        await vmm.kill()
        assert child.wait(0) == -signal.SIGKILL
        await vmm.kill()
        await vmm.close()
        await vmm.close()

    with counter() as (child, pidfd):
        run(go(child, pidfd))


def test_a_target_stands_still_until_it_may_run() -> None:
    async def go(child: subprocess.Popen[str], pidfd: int) -> None:
        vmm = ProcessVmm(pidfd)
        facts = await vmm.attach(Side.TARGET)
        assert not facts.running
        assert states(child.pid) == {"T"}
        with pytest.raises(PageferryError, match="no device state") as caught:
            await vmm.load_state(b"x")
        assert caught.value.reason is Reason.MISMATCH
        await vmm.load_state(b"")
        await vmm.resume()
        assert count(child) > 0
        await vmm.close()
        assert count(child) > 0  # closing ends nothing

    with counter() as (child, pidfd):
        run(go(child, pidfd))


def test_one_that_has_ended_is_gone_and_stays_so() -> None:
    async def go(child: subprocess.Popen[str], pidfd: int) -> None:
        vmm = ProcessVmm(pidfd)
        await vmm.attach(Side.SOURCE)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        for _ in range(2):  # as a zombie, and without one
            for act in (vmm.attach(Side.SOURCE), vmm.pause()):
                with pytest.raises(PageferryError, match="has exited") as caught:
                    await act
                assert caught.value.reason is Reason.NO_VMM
            await vmm.kill()
            child.wait()
        with pytest.raises(PageferryError, match="has exited"):
            await vmm.resume()
        await vmm.close()

    with counter() as (child, pidfd):
        run(go(child, pidfd))


def test_what_is_no_pidfd_holds_nobody() -> None:
    reading, writing = os.pipe()
    held = HeldProcess(reading)
    with pytest.raises(PageferryError, match="VMM's pidfd is none"):
        _ = held.pid
    held.close()
    os.close(reading)
    os.close(writing)


def test_one_that_nobody_holds_any_more_is_waited_for_by_nobody() -> None:
    with counter() as (_, pidfd):
        held = HeldProcess(pidfd)
        assert not held.ended
        held.close()
        assert held.ended
