# SPDX-License-Identifier: Apache-2.0
"""Pages, bytes and runs of pages: the arithmetic that all would otherwise do by hand, and differently."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from pageferry.limits import PAGE_BYTES


@dataclass(frozen=True, slots=True, order=True)
class PageRun:
    """Consecutive pages treated alike. Never empty; page numbers, never addresses."""

    first_page: int
    page_count: int

    def __post_init__(self) -> None:
        if self.first_page < 0 or self.page_count < 1:
            raise ValueError(f"not a run of pages: first {self.first_page}, count {self.page_count}")

    @classmethod
    def between(cls, first_page: int, end_page: int) -> Self:
        """[first_page, end_page)"""
        return cls(first_page, end_page - first_page)

    @property
    def end_page(self) -> int:
        """The page after the last one."""
        return self.first_page + self.page_count

    @property
    def first_byte(self) -> int:
        return self.first_page * PAGE_BYTES

    @property
    def byte_count(self) -> int:
        return self.page_count * PAGE_BYTES

    def __contains__(self, page: int) -> bool:
        return self.first_page <= page < self.end_page

    def overlaps(self, other: "PageRun") -> bool:
        return self.first_page < other.end_page and other.first_page < self.end_page

    def split(self, pages_max: int) -> Iterator["PageRun"]:
        """The same pages in order, in runs of at most pages_max."""
        if pages_max < 1:
            raise ValueError(f"cannot split into runs of {pages_max} pages")
        for first_page in range(self.first_page, self.end_page, pages_max):
            yield PageRun.between(first_page, min(first_page + pages_max, self.end_page))


def pages_in(byte_count: int) -> int:
    """How many pages a whole number of pages is. ValueError for anything else: half a page is never meant."""
    page_count, rest = divmod(byte_count, PAGE_BYTES)
    if rest or byte_count < 0:
        raise ValueError(f"{byte_count} bytes are not a multiple of {PAGE_BYTES}")
    return page_count


def page_of(byte_offset: int) -> int:
    """The page that a byte of the image lies in."""
    if byte_offset < 0:
        raise ValueError(f"byte {byte_offset} lies before the image")
    return byte_offset // PAGE_BYTES


def merge(runs: Iterable[PageRun]) -> list[PageRun]:
    """The same set of pages, in order, in the fewest runs; neighbours and overlaps become one."""
    merged: list[PageRun] = []
    for run in sorted(runs):
        if merged and run.first_page <= merged[-1].end_page:
            last = merged.pop()
            run = PageRun.between(last.first_page, max(last.end_page, run.end_page))
        merged.append(run)
    return merged


def common(runs: Iterable[PageRun], others: Iterable[PageRun]) -> list[PageRun]:
    """The pages that are in both, in order."""
    found: list[PageRun] = []
    left, right = merge(runs), merge(others)
    at = beside = 0
    while at < len(left) and beside < len(right):
        first_page = max(left[at].first_page, right[beside].first_page)
        end_page = min(left[at].end_page, right[beside].end_page)
        if first_page < end_page:
            found.append(PageRun.between(first_page, end_page))
        if left[at].end_page < right[beside].end_page:
            at += 1
        else:
            beside += 1
    return found


def minus(runs: Iterable[PageRun], others: Iterable[PageRun]) -> list[PageRun]:
    """The pages of `runs` that are not in `others`, in order."""
    left: list[PageRun] = []
    taken = common(runs := merge(runs), others)
    at = 0
    for run in runs:
        first_page = run.first_page
        while at < len(taken) and taken[at].first_page < run.end_page:
            if taken[at].first_page > first_page:
                left.append(PageRun.between(first_page, taken[at].first_page))
            first_page = taken[at].end_page
            at += 1
        if first_page < run.end_page:
            left.append(PageRun.between(first_page, run.end_page))
    return left


def runs_of(pages: Iterable[int]) -> list[PageRun]:
    """Single pages, in any order, as the fewest runs."""
    return merge(PageRun(page, 1) for page in pages)


def to_pairs(runs: Iterable[PageRun]) -> list[int]:
    """As a request carries them: first, count, first, count, ..."""
    return [number for run in runs for number in (run.first_page, run.page_count)]


def from_pairs(numbers: Sequence[int]) -> list[PageRun]:
    """The runs of a request. ValueError for an odd length or an empty run; overlaps are not looked at."""
    if len(numbers) % 2:
        raise ValueError(f"a list of pairs has {len(numbers)} numbers")
    return [PageRun(first, count) for first, count in zip(numbers[::2], numbers[1::2], strict=True)]
