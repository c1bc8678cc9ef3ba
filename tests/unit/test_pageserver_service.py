# SPDX-License-Identifier: Apache-2.0
"""The control port answers while the data plane, or the disk, takes its time with a VM."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from pageferry import poison_file
from pageferry.poison_file import PoisonRecord
from pageferry.v1 import migrations_pb2
from pageserver.images import ImageFile, ImageSpec
from pageserver.service import MigrationService
from tests.support.fake_source import ABORTED, IMAGE, PAGES, Source, created, handed_over, play

OPERATOR: Final[Any] = SimpleNamespace(invocation_metadata=lambda: ())
HELD_S: Final = 5.0  # what blocks the loop lets it go after so long, and the test fails


class Held:
    """Work that does not return until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self.go.wait(HELD_S)

    async def wait_begun(self) -> None:
        while not self.begun.is_set():
            await asyncio.sleep(0)


async def answered(made: Source) -> migrations_pb2.Session:
    name = migrations_pb2.SessionName(session="move")
    return await MigrationService(made.sessions, made.as_vms()).GetSession(name, OPERATOR)


def poisoning(made: Source, image: str, *runs: int) -> "asyncio.Task[migrations_pb2.PoisonLog]":
    request = migrations_pb2.PoisonRequest(image=image, runs=runs)
    service = MigrationService(made.sessions, made.as_vms())
    return asyncio.create_task(service.PoisonPages(request, OPERATOR))


def test_while_an_image_is_thawed(tmp_path: Path) -> None:
    async def test(made: Source) -> None:
        session = await handed_over(made)
        held = Held()
        made.script.faults["thaw"] = held
        session.hear(ABORTED)
        await held.wait_begun()
        assert (await answered(made)).session == "move"
        assert "go on" not in made.done
        held.go.set()
        await session.settled()

    play(tmp_path, test)


def test_while_pages_of_a_vm_are_poisoned(tmp_path: Path) -> None:
    """A freeze holds them up."""

    async def test(made: Source) -> None:
        await created(made)
        made.sessions.poison.add_live(IMAGE, PAGES, None)
        held = Held()
        made.script.faults["poison"] = held
        asked = poisoning(made, IMAGE, 5, 2)
        await held.wait_begun()
        assert (await answered(made)).pages_poisoned == 0
        assert not asked.done()
        held.go.set()
        assert list((await asked).runs) == [5, 2]
        assert (await answered(made)).pages_poisoned == 2

    play(tmp_path, test)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Held:
    held, store = Held(), poison_file.store

    def slowly(path: Path, record: PoisonRecord) -> None:
        held()
        store(path, record)

    monkeypatch.setattr(poison_file, "store", slowly)
    return held


def add_file(made: Source, folder: Path, name: str) -> Callable[[], PoisonRecord | None]:
    """What its poison file says."""
    path = folder / f"{name}.ram"
    path.write_bytes(bytes(PAGES * 4096))
    image = ImageFile.open(ImageSpec(name, path))
    image.close()
    made.sessions.poison.add_file(image, PoisonRecord(PAGES))
    return lambda: poison_file.load(image.poison_path)


def test_while_a_poison_file_is_written(tmp_path: Path, disk: Held) -> None:
    async def test(made: Source) -> None:
        await created(made)
        on_disk = add_file(made, tmp_path, "golden")
        made.sessions.poison.add_live(IMAGE, PAGES, None)
        asked = poisoning(made, "golden", 5, 2)
        await disk.wait_begun()
        await poisoning(made, IMAGE, 9, 1)
        assert not asked.done()
        disk.go.set()
        assert list((await asked).runs) == [5, 2]
        record = on_disk()
        assert record is not None and record.pages == 2

    play(tmp_path, test)


def test_a_call_that_is_cut_is_done_all_the_same(tmp_path: Path, disk: Held) -> None:
    """What stands in the poison file is lost at the data port too, and nothing goes on after the end."""

    async def test(made: Source) -> None:
        on_disk = add_file(made, tmp_path, "golden")
        asked = poisoning(made, "golden", 5, 2)
        await disk.wait_begun()
        asked.cancel()
        await asyncio.wait({asked})
        disk.go.set()
        await made.sessions.poison.close()
        assert on_disk() is not None
        assert "poison" in made.done

    play(tmp_path, test)
