# SPDX-License-Identifier: Apache-2.0
"""Hand-offs that wait for a session: whose VMM has exited, and what no VMM and no fault may end."""

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from faultclient import handoffs as handoffs_module
from faultclient.handoffs import Handoffs, has_exited
from pageferry.host.handoff import Handoff, Region
from pageferry.host.listener import Listener
from pageferry.host.vmspec import VmKind, VmSpec
from pageferry.service import taking
from tests.support.handoff_client import Vmm, layout, region
from tests.support.processes import unchanged

ONE = layout(region(0x7F3C_0000_0000, 16))


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "handoff.sock"


def handoffs_of(path: Path) -> Handoffs:
    return Handoffs([VmSpec("vm", path, VmKind.PROCESS)], vmm_uid=None, accept=lambda _: None)


def from_another_namespace() -> Handoff:
    """Nobody there can be held: neither its number nor a pidfd is known."""
    ours, theirs = socket.socketpair()
    theirs.close()
    regions = (Region(0x7F3C_0000_0000, 4096, 0),)
    return Handoff(ours, os.dup(ours.fileno()), -1, -1, 0, 0, regions, frames=False)


def hand_over(path: Path) -> None:
    reading, writing = os.pipe()
    with Vmm(path) as vmm:
        vmm.send(ONE, [reading])
    os.close(reading)
    os.close(writing)


def test_whether_a_vmm_has_exited_is_known_where_there_is_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a ValueError for one in another PID namespace: a move ended with BUG, a restore never began."""
    monkeypatch.setattr(handoffs_module, "LOOK_S", 0.01)

    async def run(handoff: Handoff) -> None:
        handoffs = handoffs_of(Path("unused"))
        watching = asyncio.create_task(handoffs._watch())
        handoffs.give_back("vm", handoff)
        await asyncio.sleep(0.05)
        assert not watching.done()
        assert await handoffs.taken("vm") is handoff
        watching.cancel()

    with from_another_namespace() as handoff:
        assert not has_exited(handoff)
        asyncio.run(run(handoff))


def test_no_descriptor_is_left_for_one_vmm_and_the_next_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task that takes hand-offs ended in silence, and each later VMM stood in its first mmap."""
    monkeypatch.setattr(taking, "BREATH_S", 0.01)
    accept, errors = Listener.accept, [OSError(errno.EMFILE, os.strerror(errno.EMFILE))]

    def fails_once(listener: Listener, *, timeout_s: float | None = None) -> Handoff:
        if errors:
            raise errors.pop()
        return accept(listener, timeout_s=timeout_s)

    monkeypatch.setattr(Listener, "accept", fails_once)

    async def run() -> None:
        handoffs = handoffs_of(path)
        async with handoffs.listening(), asyncio.timeout(10):
            await asyncio.to_thread(hand_over, path)
            (await handoffs.taken("vm")).close()

    asyncio.run(run())
    assert not errors


def test_one_that_comes_while_nobody_waits_any_more_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, came, go_on = Listener.accept, threading.Event(), threading.Event()

    def slow(listener: Listener, *, timeout_s: float | None = None) -> Handoff:
        handoff = accept(listener, timeout_s=timeout_s)
        came.set()
        assert go_on.wait(10)
        return handoff

    monkeypatch.setattr(Listener, "accept", slow)

    async def run() -> None:
        async with handoffs_of(path).listening():
            await asyncio.to_thread(hand_over, path)
            assert await asyncio.to_thread(came.wait, 10)
            asyncio.get_running_loop().call_later(0.05, go_on.set)

    asyncio.run(run())
