# SPDX-License-Identifier: Apache-2.0
"""A move whose VM is to move on: it is handed on once it runs, and let go by whoever has it then."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from faultclient import onward as onward_module
from faultclient.pager import EventKind
from pageferry.host.onward import Word
from pageferry.phases import Phase
from pageferry.reasons import Reason
from tests.support.fake_move import Stage
from tests.support.processes import unchanged


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with unchanged():
        yield


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onward_module, "RETRY_S", 0.01)


class PageServer:
    """What comes goes into the move's story; what it says, the test decides."""

    def __init__(self, stage: Stage, path: Path) -> None:
        self.let_go = asyncio.Event()
        self._stage = stage
        self._path = path
        stage.onward = path

    async def play(self) -> None:
        async with await asyncio.start_unix_server(self._take, self._path):
            await self._stage._play()
            self.let_go.set()
            while self._stage.story.count("handed on") > self._stage.story.count("its connection ends"):
                await asyncio.sleep(0)
        self._stage.pager.let_go()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"]")
        self._stage.story.append("handed on")
        writer.write(Word.ACCEPTED.line)
        if await reader.readline() == Word.COMPLETE.line:
            self._stage.story.append("complete")
            await self.let_go.wait()
            writer.write(Word.LET_GO.line)
        self._stage.story.append("its connection ends")
        writer.close()


def played(stage: Stage, path: Path, *, let_go: bool = True) -> None:
    async def run() -> None:
        server = PageServer(stage, path)
        if let_go:
            server.let_go.set()
        async with asyncio.timeout(20):
            await server.play()

    asyncio.run(run())


def test_it_is_handed_on_and_let_go(tmp_path: Path) -> None:
    stage = Stage()
    stage.at["handed on"] = stage.complete
    played(stage, tmp_path / "onward")
    assert stage.session.phase is Phase.RELEASED and stage.session.failure is None
    story = [one for one in stage.story if one in ("resume", "handed on", "complete", "record RELEASED")]
    assert story == ["resume", "handed on", "complete", "record RELEASED"]
    assert "report COMMITTED" in stage.story
    assert "unregister" not in stage.pager.orders  # that is somebody else's now
    assert stage.pager.closed


def test_it_is_not_let_go_before_somebody_says_so(tmp_path: Path) -> None:
    """The source has heard COMMITTED, and may go: only this process has to stay."""
    stage = Stage()
    stage.at["handed on"] = stage.complete
    seen: list[Phase] = []

    def gone() -> None:
        seen.append(stage.session.phase)
        stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")

    stage.at["report COMMITTED"] = gone
    played(stage, tmp_path / "onward", let_go=False)
    assert seen == [Phase.COMMITTED]
    assert stage.session.phase is Phase.RELEASED and stage.session.failure is None
    assert stage.pager.closed


def test_it_moves_on_with_its_last_page_unmapped(tmp_path: Path) -> None:
    """B's VMM is killed by its page server when C has all: B's pager may not have said COMPLETE yet."""
    stage = Stage()
    stage.at["handed on"] = lambda: stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")
    played(stage, tmp_path / "onward")
    assert stage.session.failure is None
    assert "report COMMITTED" in stage.story


def test_poison_keeps_it_here(tmp_path: Path) -> None:
    """Somebody must answer for poisoned pages: the page server is not told that it might take over."""
    stage = Stage()
    stage.at["handed on"] = lambda: stage.complete(poisoned=2)
    stage.at["report COMMITTED"] = lambda: stage.pager.tell(EventKind.VMM_GONE, Reason.NO_VMM, "exited")
    played(stage, tmp_path / "onward")
    assert stage.session.phase is Phase.RELEASED
    assert "complete" not in stage.story


def test_it_ends_without_a_page_server(tmp_path: Path) -> None:
    """Told to end, and nobody has the VM: it is left as one that was not to move on."""
    stage = Stage()
    stage.onward = tmp_path / "nobody"
    stage.at["resume"] = stage.complete
    stage.at["report COMMITTED"] = lambda: stage.move.leaving.set()
    stage.play()
    assert stage.session.phase is Phase.RELEASED and stage.session.failure is None
    assert "unregister" in stage.pager.orders
    assert stage.pager.closed
