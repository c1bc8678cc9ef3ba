# SPDX-License-Identifier: Apache-2.0
"""When each part of the memory came: cells of pages, looked at now and then."""

import pytest

from faultclient.arrivals import CELLS_MAX, Arrivals
from pageferry.service import native

OWED = [native.PAGE_STATES.index(name) for name in ("MISSING", "WANTED")]
HERE = [number for number in range(len(native.PAGE_STATES)) if number not in OWED]


class Table:
    """A pager's page table."""

    def __init__(self, page_count: int) -> None:
        self.bytes = bytearray([OWED[0]]) * page_count

    def states(self, first_page: int, page_count: int) -> bytes:
        return bytes(self.bytes[first_page : first_page + page_count])


@pytest.mark.parametrize(
    ("pages", "cell_pages", "cells"),
    [
        (1, 1, 1),
        (CELLS_MAX, 1, CELLS_MAX),
        (CELLS_MAX + 1, 2, 513),
        (98_304, 96, 1024),
        (98_305, 97, 1014),
    ],
)
def test_cells_cover_the_memory(pages: int, cell_pages: int, cells: int) -> None:
    arrivals = Arrivals(pages)
    assert (arrivals.cell_pages, len(arrivals.whole_after_ms)) == (cell_pages, cells)
    assert (cells - 1) * cell_pages < pages <= cells * cell_pages


def test_a_cell_is_whole_when_all_its_pages_are_here() -> None:
    arrivals, table = Arrivals(3000), Table(3000)
    assert arrivals.cell_pages == 3
    table.bytes[0:3] = bytes([HERE[0], HERE[1], OWED[0]])
    arrivals.look(table, 10)
    assert arrivals.whole_after_ms[0] == 0
    table.bytes[2] = HERE[2]
    arrivals.look(table, 20)
    arrivals.look(table, 30)
    assert arrivals.whole_after_ms[:2] == [20, 0], "the first look that saw it whole"


@pytest.mark.parametrize("owed", OWED)
@pytest.mark.parametrize("here", HERE)
def test_states(owed: int, here: int) -> None:
    arrivals, table = Arrivals(1), Table(1)
    table.bytes[0] = owed
    arrivals.look(table, 5)
    assert arrivals.whole_after_ms == [0]
    table.bytes[0] = here
    arrivals.look(table, 6)
    assert arrivals.whole_after_ms == [6]


def test_a_round_takes_it_back() -> None:
    arrivals, table = Arrivals(2), Table(2)
    table.bytes[:] = bytes([HERE[0], HERE[0]])
    arrivals.look(table, 10)
    table.bytes[1] = OWED[0]
    arrivals.look(table, 20)
    assert arrivals.whole_after_ms == [10, 0]
    table.bytes[1] = HERE[0]
    arrivals.look(table, 30)
    assert arrivals.whole_after_ms == [10, 30]


def test_the_last_cell_may_be_smaller() -> None:
    arrivals, table = Arrivals(CELLS_MAX * 2 - 1), Table(CELLS_MAX * 2 - 1)
    table.bytes[-1] = HERE[0]
    arrivals.look(table, 7)
    assert arrivals.whole_after_ms[-1] == 7
    assert not any(arrivals.whole_after_ms[:-1])


def test_what_is_here_at_once_is_no_zero() -> None:
    arrivals, table = Arrivals(1), Table(1)
    table.bytes[0] = HERE[0]
    arrivals.look(table, 0)
    assert arrivals.whole_after_ms == [1]
