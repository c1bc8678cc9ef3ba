# SPDX-License-Identifier: Apache-2.0
"""Runs against the plain truth: a set of page numbers."""

import random
from itertools import pairwise

import pytest

from pageferry.units import PageRun, from_pairs, merge, page_of, pages_in, runs_of, to_pairs


def pages_of(runs: list[PageRun]) -> list[int]:
    return [page for run in runs for page in range(run.first_page, run.end_page)]


def test_a_run() -> None:
    run = PageRun(3, 2)
    assert (run.end_page, run.first_byte, run.byte_count) == (5, 12288, 8192)
    assert [page for page in range(8) if page in run] == [3, 4]
    assert run == PageRun.between(3, 5)


@pytest.mark.parametrize(("first_page", "page_count"), [(-1, 1), (0, 0), (5, -2)])
def test_no_run(first_page: int, page_count: int) -> None:
    with pytest.raises(ValueError, match="not a run of pages"):
        PageRun(first_page, page_count)


@pytest.mark.parametrize(
    ("first_page", "page_count", "overlaps"),
    [(0, 10, False), (0, 11, True), (12, 1, True), (19, 5, True), (20, 5, False), (5, 100, True)],
)
def test_overlaps(first_page: int, page_count: int, overlaps: bool) -> None:
    run, other = PageRun(10, 10), PageRun(first_page, page_count)
    assert run.overlaps(other) is other.overlaps(run) is overlaps


@pytest.mark.parametrize("pages_max", [1, 3, 16, 17, 1000])
def test_split_loses_nothing(pages_max: int) -> None:
    run = PageRun(7, 17)
    parts = list(run.split(pages_max))
    assert pages_of(parts) == pages_of([run])
    assert all(part.page_count == pages_max for part in parts[:-1])
    assert parts[-1].page_count <= pages_max


def test_split_into_nothing() -> None:
    with pytest.raises(ValueError, match="cannot split"):
        list(PageRun(0, 1).split(0))


def test_merge_joins_neighbours_overlaps_and_what_lies_within() -> None:
    assert merge([PageRun(8, 2), PageRun(0, 4), PageRun(4, 1), PageRun(9, 5), PageRun(1, 1)]) == [
        PageRun(0, 5),
        PageRun(8, 6),
    ]
    assert merge([]) == []


def test_merge_and_runs_of_at_random() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    numbers = random.Random(seed)
    for _ in range(300):
        runs = [PageRun(numbers.randrange(60), numbers.randrange(1, 9)) for _ in range(numbers.randrange(12))]
        truth = set(pages_of(runs))
        merged = merge(runs)
        assert pages_of(merged) == sorted(truth)
        assert all(left.end_page < right.first_page for left, right in pairwise(merged))
        shuffled = numbers.sample(sorted(truth), len(truth))
        assert runs_of(shuffled) == merged


def test_bytes_and_pages() -> None:
    assert pages_in(0) == 0
    assert pages_in(8192) == 2
    assert [page_of(offset) for offset in (0, 4095, 4096)] == [0, 0, 1]


@pytest.mark.parametrize("byte_count", [1, 4095, -4096])
def test_half_a_page_is_never_meant(byte_count: int) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        pages_in(byte_count)


def test_before_the_image() -> None:
    with pytest.raises(ValueError, match="before the image"):
        page_of(-1)


def test_pairs_there_and_back() -> None:
    runs = [PageRun(0, 1), PageRun(7, 3)]
    assert to_pairs(runs) == [0, 1, 7, 3]
    assert from_pairs([0, 1, 7, 3]) == runs


@pytest.mark.parametrize("numbers", [[1], [1, 0], [1, 2, 3]])
def test_no_pairs(numbers: list[int]) -> None:
    with pytest.raises(ValueError):
        from_pairs(numbers)
