# SPDX-License-Identifier: Apache-2.0
"""The pass that makes huge pages again: when it begins, how it ends, and that no pager is closed under it."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from faultclient.collapse import Collapse, when_complete
from faultclient.pager import Collapsed, CollapseProgress, EventKind
from faultclient.restore import Restore
from pageferry.reasons import PageferryError, Reason
from tests.support.fake_pager import FakePager, session_of

PATIENCE_S = 20.0
DONE = Collapsed(extents=8, full=7, huge_before=0, huge=6, why_fewer="1 of 7 pieces were in use: try again")


class Kernel:
    """Stands in for the pager's call: it lasts until it is let go, or given up."""

    def __init__(self, *, at_once: bool = True, error: PageferryError | None = None) -> None:
        self.error = error
        self.begun = threading.Event()
        self.free = threading.Event()
        self.ended = False
        if at_once:
            self.free.set()

    def collapse(self, progress: CollapseProgress) -> Collapsed:
        self.begun.set()
        for _ in range(int(PATIENCE_S * 1000)):
            if self.free.wait(0.001) or progress.shared.cancel:
                break
        self.ended = True
        if progress.shared.cancel:
            raise PageferryError(Reason.CANCELLED, "it was cancelled")
        if self.error is not None:
            raise self.error
        return DONE


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []

    def note(_: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        lines.append(dict(event))
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    yield lines
    structlog.reset_defaults()


@pytest.fixture
def session() -> Iterator[Restore]:
    pager = FakePager()
    yield session_of(pager)
    pager.let_go()


def test_the_figures_are_logged(logged: list[dict[str, Any]]) -> None:
    collapse = Collapse(Kernel(), "web-1")
    asyncio.run(collapse.run())
    assert collapse.done == DONE
    first, second = logged
    assert first.pop("took_ms") >= 0
    assert first == {
        "event": "collapsed",
        "session": "web-1",
        "pieces": 8,
        "full": 7,
        "huge_before": 0,
        "huge": 6,
    }
    assert second["event"] == "not_all_collapsed"
    assert second["text"] == DONE.why_fewer


def test_a_refusal_is_logged_and_harms_nobody(logged: list[dict[str, Any]]) -> None:
    error = PageferryError(Reason.UNSUPPORTED, "the VMM keeps MADV_NOHUGEPAGE on its memory")
    collapse = Collapse(Kernel(error=error), "web-1")
    asyncio.run(collapse.run())
    assert collapse.done is None
    (line,) = logged
    assert (line["event"], line["reason"]) == ("not_collapsed", "UNSUPPORTED")
    assert "MADV_NOHUGEPAGE" in line["text"]


def test_given_up(logged: list[dict[str, Any]]) -> None:
    kernel = Kernel(at_once=False)
    collapse = Collapse(kernel, "web-1")

    async def body() -> None:
        running = asyncio.create_task(collapse.run())
        await asyncio.to_thread(kernel.begun.wait, PATIENCE_S)
        collapse.give_up()
        await running

    asyncio.run(body())
    assert collapse.done is None
    assert logged[0]["reason"] == "CANCELLED"


def test_who_is_cancelled_still_waits_for_the_thread() -> None:
    """Else the pager would be closed while C works with it."""
    kernel = Kernel(at_once=False)
    ended_before_us: list[bool] = []

    async def body() -> None:
        running = asyncio.create_task(Collapse(kernel, "web-1").run())
        await asyncio.to_thread(kernel.begun.wait, PATIENCE_S)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        ended_before_us.append(kernel.ended)

    asyncio.run(body())
    assert ended_before_us == [True]


def test_the_loop_goes_on_meanwhile() -> None:
    kernel = Kernel(at_once=False)

    async def body() -> int:
        running = asyncio.create_task(Collapse(kernel, "web-1").run())
        await asyncio.to_thread(kernel.begun.wait, PATIENCE_S)
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
        kernel.free.set()
        await running
        return turns

    assert asyncio.run(body()) == 100


def test_it_begins_when_all_is_here(session: Restore) -> None:
    kernel = Kernel()
    pager = session.taken.pager
    assert isinstance(pager, FakePager)

    async def body() -> None:
        waiting = asyncio.create_task(when_complete(session, Collapse(kernel, session.name)))
        pager.tell(EventKind.ARMED)
        session.catch_up()
        await asyncio.sleep(0.01)
        assert not kernel.begun.is_set()
        pager.tell(EventKind.COMPLETE)
        session.catch_up()
        await waiting

    asyncio.run(body())
    assert kernel.ended


def test_it_begins_though_pages_are_poisoned(session: Restore) -> None:
    kernel = Kernel()
    pager = session.taken.pager
    assert isinstance(pager, FakePager)

    async def body() -> None:
        waiting = asyncio.create_task(when_complete(session, Collapse(kernel, session.name)))
        pager.tell(EventKind.ARMED)
        pager.tell(EventKind.COMPLETE, value=3)
        session.catch_up()
        await waiting
        assert not session.ended

    asyncio.run(body())
    assert kernel.ended


def test_not_of_a_session_that_was_given_up(session: Restore) -> None:
    kernel = Kernel()

    async def body() -> None:
        waiting = asyncio.create_task(when_complete(session, Collapse(kernel, session.name)))
        session.cancel(Reason.CANCELLED, "it was cancelled")
        await waiting

    asyncio.run(body())
    assert not kernel.begun.is_set()
