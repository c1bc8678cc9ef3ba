# SPDX-License-Identifier: Apache-2.0
"""The stand-in VMM by itself: it finds each kind of wrong page, and tells them apart.

So when a restore shows no errors, there were none. Its RAM is a plain file here, with nobody behind it, and
the test changes pages under its eyes.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guest import PAGE_BYTES, Guest, Shape
from tests.support.ramfile import run_folder

SHAPE = Shape((256,), seed=60)
HALF = PAGE_BYTES // 2


class Ram:
    """The guest's RAM file beside the image that it began as."""

    def __init__(self, folder: Path) -> None:
        self.image = SHAPE.make_image(folder / "image")
        self.older = SHAPE.make_image(folder / "older", n=0)
        self.path = folder / "ram"
        shutil.copy(self.image, self.path)
        self.data = SHAPE.data_pages(self.image)
        self.holes = [page for page in range(SHAPE.page_count) if page not in self.data]

    def page(self, page: int, source: Path | None = None) -> bytes:
        with (source or self.image).open("rb") as file:
            file.seek(page * PAGE_BYTES)
            return file.read(PAGE_BYTES)

    def put(self, page: int, content: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(page * PAGE_BYTES)
            file.write(content)


@pytest.fixture
def ram() -> Iterator[Ram]:
    with run_folder() as folder:
        yield Ram(folder)


@pytest.fixture
def guest(ram: Ram) -> Iterator[Guest]:
    folder = ram.path.parent
    with Guest(SHAPE, folder=folder, memory=f"file:{ram.path}", options=["--bare"]) as running:
        yield running.ready()


def test_finds_nothing_wrong_where_nothing_is(guest: Guest) -> None:
    guest.do("run", 10_000)
    report = guest.do("all")
    assert report.errors == 0
    assert report.distinct == SHAPE.page_count
    assert report.rewrites > 0


def test_tells_what_the_image_cannot_have_said(guest: Guest, ram: Ram) -> None:
    stale, torn, misplaced, zero, damaged, *_ = ram.data
    ram.put(stale, ram.page(stale, ram.older))
    ram.put(torn, ram.page(torn, ram.older)[:HALF] + ram.page(torn)[HALF:])
    ram.put(misplaced, ram.page(zero))
    ram.put(zero, bytes(PAGE_BYTES))
    ram.put(damaged, ram.page(damaged)[:-1] + bytes([ram.page(damaged)[-1] ^ 1]))
    ram.put(ram.holes[0], ram.page(ram.holes[0])[:-1] + b"\1")
    report = guest.do("all")
    assert set(guest.wrong_pages) == {
        (stale, "stale"),
        (torn, "torn"),
        (misplaced, "misplaced"),
        (zero, "zero"),
        (damaged, "damaged"),
        (ram.holes[0], "not_zero"),
    }
    assert report.errors == 6


def test_tells_what_it_wrote_itself(guest: Guest, ram: Ram) -> None:
    """And goes on telling: what was lost does not become right by being seen."""
    while guest.report().rewrites < 20 * SHAPE.page_count:  # so that each page has been written, surely
        guest.do("run", 10_000)
    gone, older, torn, *_ = ram.data
    now = ram.page(torn, ram.path)
    ram.put(gone, bytes(PAGE_BYTES))
    ram.put(older, ram.page(older))
    ram.put(torn, now[:HALF] + ram.page(torn)[HALF:])
    first = guest.do("all")
    assert set(guest.wrong_pages) == {(gone, "lost_write"), (older, "lost_write"), (torn, "torn")}
    assert guest.do("all").errors == 2 * first.errors == 6


def test_tells_a_removed_page_that_comes_back(guest: Guest, ram: Ram) -> None:
    back, away, *_ = ram.data
    assert guest.order("punch", back, 1)["errno"] == 0
    assert guest.order("punch", away, 1)["errno"] == 0
    assert guest.do("all").errors == 0
    ram.put(back, ram.page(back))
    assert guest.do("all").kinds == {"removed_back": 1}
    assert guest.wrong_pages == [(back, "removed_back")]
