# SPDX-License-Identifier: Apache-2.0
"""What a page server keeps of lost pages: on the disk before they are so, in the log once, over restarts."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pageferry import poison_file
from pageferry.layout import parse_layout, pc_layout
from pageferry.poison_file import PoisonRecord
from pageferry.reasons import PageferryError, Reason
from pageferry.units import PageRun, merge
from pageserver import poison as module
from pageserver.dataplane import ImageFacts
from pageserver.images import ImageFile, ImageSpec, parse_poison
from pageserver.poison import Poison, expected, settle

PAGES = 64
ID = 0xABC


@dataclass
class Plane:
    """What of the data plane is needed: it can find pages lost, and bring some of an earlier hop."""

    lost: list[PageRun] = field(default_factory=list)
    refuses: PageferryError | None = None
    on_disk: Callable[[], object] = lambda: None
    seen_on_disk: list[object] = field(default_factory=list)

    def poison(self, name: str, run: PageRun) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.seen_on_disk.append(self.on_disk())
        self.lost = merge([*self.lost, run])

    def poisoned(self, name: str) -> list[PageRun]:
        return self.lost


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "vm.ram"
    made.write_bytes(bytes(PAGES * 4096))
    return made


def opened(path: Path) -> ImageFile:
    """Its descriptor is not needed."""
    image = ImageFile.open(ImageSpec("vm", path))
    image.close()
    return image


def facts(content_id: int = ID, unreadable: tuple[PageRun, ...] = ()) -> ImageFacts:
    return ImageFacts(content_id, PAGES, 0, unreadable)


def runs_on_disk(path: Path) -> object:
    beside = poison_file.beside(path)
    return json.loads(beside.read_text())["runs"] if beside.exists() else None


def served(path: Path, plane: Plane, told: list[str] | None = None) -> Poison:
    image = opened(path)
    made = Poison(plane, told.append if told is not None else lambda name: None)
    record = settle(image, facts())
    plane.lost = merge(record.runs)
    made.add_file(image, record)
    plane.on_disk = lambda: runs_on_disk(path)
    return made


def poison(made: Poison, name: str, runs: list[PageRun]) -> None:
    asyncio.run(made.poison(name, runs))


def entries(made: Poison, name: str = "vm") -> list[tuple[int, int, int, str | None]]:
    found = made.of(name).log.after(0, 1000)
    return [(one.seq, one.run.first_page, one.run.page_count, one.what.name) for one in found]


# ---------------------------------------------------------------------------------------------- an image file


def test_nothing_is_written_of_an_image_that_has_lost_nothing(path: Path) -> None:
    made = served(path, Plane())
    assert runs_on_disk(path) is None
    assert (made.seq("vm"), made.pages("vm")) == (0, 0)


def test_it_is_on_the_disk_before_it_is_so(path: Path) -> None:
    plane = Plane()
    told: list[str] = []
    made = served(path, plane, told)
    poison(made, "vm", [PageRun(5, 2), PageRun(9, 1)])
    assert plane.seen_on_disk == [[[5, 2], [9, 1]]] * 2
    poison(made, "vm", [PageRun(4, 4)])  # two of them are known: they are no news
    assert runs_on_disk(path) == [[5, 2], [9, 1], [4, 1], [7, 1]]
    poison(made, "vm", [PageRun(4, 4)])
    assert entries(made) == [
        (1, 5, 2, "POISONED"),
        (2, 9, 1, "POISONED"),
        (3, 4, 1, "POISONED"),
        (4, 7, 1, "POISONED"),
    ]
    assert (made.seq("vm"), made.pages("vm")) == (4, 5)
    assert told == ["vm", "vm"]


def test_a_successor_has_the_same_log(path: Path) -> None:
    made = served(path, Plane())
    poison(made, "vm", [PageRun(9, 1)])
    poison(made, "vm", [PageRun(5, 2)])
    again = served(path, Plane())
    assert entries(again) == entries(made)
    poison(again, "vm", [PageRun(60, 1)])
    assert entries(again)[2:] == [(3, 60, 1, "POISONED")]


def test_two_servers_of_one_image_lose_nothing_of_each_other(path: Path) -> None:
    one, other = served(path, Plane()), served(path, Plane())
    poison(one, "vm", [PageRun(5, 1)])
    poison(other, "vm", [PageRun(9, 1)])
    poison(one, "vm", [PageRun(11, 1)])
    assert runs_on_disk(path) == [[5, 1], [9, 1], [11, 1]]


def test_a_disk_that_is_full_changes_nothing(path: Path) -> None:
    plane = Plane()
    made = served(path, plane)
    Path(f"{poison_file.beside(path)}.new").symlink_to("/dev/full")
    with pytest.raises(PageferryError) as caught:
        poison(made, "vm", [PageRun(5, 1)])
    assert caught.value.reason is Reason.NO_MEMORY
    assert (plane.lost, made.seq("vm"), runs_on_disk(path)) == ([], 0, None)


def test_what_is_no_page_or_no_image(path: Path) -> None:
    made = served(path, Plane())
    wrong = [("vm", PageRun(63, 2), Reason.OUT_OF_IMAGE), ("x", PageRun(0, 1), Reason.NO_SUCH_IMAGE)]
    for name, run, reason in wrong:
        with pytest.raises(PageferryError) as caught:
            poison(made, name, [PageRun(1, 1), run])
        assert caught.value.reason is reason
    assert made.seq("vm") == 0
    made.found("x")  # it is not served any more
    assert (made.seq("x"), made.pages("x")) == (0, 0)


def play(test: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await test()

    asyncio.run(asyncio.wait_for(run(), 30))


def test_what_a_read_finds_is_recorded_as_soon_as_the_disk_takes_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECORD_AGAIN_S", 0.01)

    async def test() -> None:
        plane = Plane()
        told: list[str] = []
        made = served(path, plane, told)
        waiting = Path(f"{poison_file.beside(path)}.new")
        waiting.symlink_to("/dev/full")
        plane.lost = [PageRun(7, 1)]
        made.found("vm")
        assert (entries(made), told) == ([(1, 7, 1, "POISONED")], ["vm"])
        assert runs_on_disk(path) is None
        waiting.unlink()
        while runs_on_disk(path) is None:
            await asyncio.sleep(0.01)
        assert runs_on_disk(path) == [[7, 1]]
        await made.close()

    play(test)


# ----------------------------------------------------------------------------------------------- at the start


def test_pages_that_the_disk_cannot_read_are_lost_from_the_beginning(path: Path) -> None:
    record = settle(opened(path), facts(unreadable=(PageRun(3, 2),)))
    assert record == PoisonRecord(PAGES, (PageRun(3, 2),), ID, (PageRun(3, 2),))
    assert poison_file.load(poison_file.beside(path)) == record
    # Read again without them, the content is the same; with others, it is what it was called.
    assert settle(opened(path), facts()) == record
    more = settle(opened(path), facts(content_id=1, unreadable=(PageRun(4, 3),)))
    assert more == PoisonRecord(PAGES, (PageRun(3, 2), PageRun(5, 2)), ID, (PageRun(3, 2),))
    assert settle(opened(path), facts(content_id=2, unreadable=(PageRun(5, 2),))) == more


def test_other_content_is_refused(path: Path) -> None:
    settle(opened(path), facts(unreadable=(PageRun(3, 2),)))
    with pytest.raises(PageferryError, match="one of them was replaced") as caught:
        settle(opened(path), facts(content_id=ID + 1))
    assert caught.value.reason is Reason.MISMATCH


def test_the_file_of_a_saved_image_gets_its_content_id(path: Path) -> None:
    poison_file.store(poison_file.beside(path), PoisonRecord(PAGES, (PageRun(8, 1),)))
    image = opened(path)
    assert expected(image, facts()).content_id == ID
    assert poison_file.load(image.poison_path) == PoisonRecord(PAGES, (PageRun(8, 1),))  # nothing was written
    assert settle(image, facts()) == PoisonRecord(PAGES, (PageRun(8, 1),), ID)
    assert poison_file.load(image.poison_path) == PoisonRecord(PAGES, (PageRun(8, 1),), ID)


def test_a_folder_that_cannot_be_written(path: Path) -> None:
    """To know the content later is worth a warning; that pages are lost is worth more."""
    poison_file.store(poison_file.beside(path), PoisonRecord(PAGES, (PageRun(8, 1),)))
    Path(f"{poison_file.beside(path)}.new").symlink_to("/dev/full")
    assert settle(opened(path), facts()).runs == (PageRun(8, 1),)
    with pytest.raises(PageferryError):
        settle(opened(path), facts(unreadable=(PageRun(3, 1),)))


def test_a_poison_file_elsewhere(path: Path, tmp_path: Path) -> None:
    name, elsewhere = parse_poison(f"vm={tmp_path}/other")
    poison_file.store(elsewhere, PoisonRecord(PAGES, (PageRun(8, 1),)))
    image = ImageFile.open(ImageSpec(name, path, poison=elsewhere))
    image.close()
    assert image.poison is not None and image.poison.runs == (PageRun(8, 1),)
    for text in ("vm", "=x", "vm="):
        with pytest.raises(PageferryError):
            parse_poison(text)


def test_one_that_is_of_another_image_is_refused_before_anything_is_served(path: Path) -> None:
    poison_file.store(poison_file.beside(path), PoisonRecord(PAGES + 1, (PageRun(8, 1),)))
    with pytest.raises(PageferryError, match="it is of 65 pages"):
        opened(path)


# ------------------------------------------------------------------------------------------------ live memory


def test_live_memory_is_kept_by_nobody_and_may_come_back(tmp_path: Path) -> None:
    plane = Plane()
    told: list[str] = []
    made = Poison(plane, told.append)
    made.add_live("vm", PAGES, None)
    poison(made, "vm", [PageRun(5, 1)])
    plane.lost = [PageRun(5, 1), PageRun(20, 2)]  # an earlier hop's has arrived
    assert made.look("vm").known == plane.lost
    plane.lost = [PageRun(5, 1), PageRun(21, 1)]  # and was cleared where it was
    made.look("vm")
    assert entries(made) == [(1, 5, 1, "POISONED"), (2, 20, 2, "POISONED"), (3, 20, 1, "CLEARED")]
    assert made.pages("vm") == 2
    assert told == ["vm"] * 3
    assert list(tmp_path.iterdir()) == []
    made.drop("vm")
    assert (made.seq("vm"), made.pages("vm")) == (3, 2)  # of its sessions, which are shown still
    with pytest.raises(PageferryError, match="no image 'vm' is served here"):
        made.look("vm")
    made.add_live("vm", PAGES, None)
    assert (made.seq("vm"), made.pages("vm")) == (0, 0)


def test_a_refusal_is_the_data_plane_s_own() -> None:
    frozen = PageferryError(Reason.WRONG_PHASE, "the memory of vm is handed over")
    made = Poison(Plane(refuses=frozen))
    made.add_live("vm", PAGES, None)
    with pytest.raises(PageferryError) as caught:
        poison(made, "vm", [PageRun(5, 1)])
    assert caught.value is frozen
    assert made.seq("vm") == 0


def test_a_layout_is_learnt_once() -> None:
    made = Poison(Plane())
    made.add_live("vm", PAGES, None)
    made.learn_layout("other", pc_layout(4096, 4096))
    made.learn_layout("vm", pc_layout(PAGES * 4096, 1 << 31))
    assert made.of("vm").layout == parse_layout(f"0:{PAGES * 4096}")
    made.learn_layout("vm", parse_layout("4G:256K"))
    assert made.of("vm").layout == parse_layout(f"0:{PAGES * 4096}")
