# SPDX-License-Identifier: Apache-2.0
"""When each part of the memory came, for a report: the page table is looked at now and then, in cells.

A cell is whole when the newest bytes of all its pages are here; a round may take that back. What happens
between two looks is not seen, so a time is at most one interval late. Looking costs a copy of a byte a page;
the interval grows with that, so that it never takes more than a few percent of the loop.
"""

from typing import Final, Protocol

from pageferry.service import native

CELLS_MAX: Final = 1024


class States(Protocol):
    def states(self, first_page: int, page_count: int) -> bytes: ...


class Arrivals:
    """Of one VM's pages."""

    def __init__(self, page_count: int) -> None:
        self.cell_pages = -(-page_count // CELLS_MAX)
        self.page_count = page_count
        cells = -(-page_count // self.cell_pages)
        self.whole_after_ms = [0] * cells
        owed = [native.PAGE_STATES.index(name) for name in ("MISSING", "WANTED")]
        # any page that is owed becomes a 1, any other a 0
        self._marks = bytes(int(state in owed) for state in range(256))

    def look(self, pager: States, now_ms: int) -> None:
        """now_ms: since the session's beginning, at least 1."""
        marks = pager.states(0, self.page_count).translate(self._marks)
        for cell in range(len(self.whole_after_ms)):
            first = cell * self.cell_pages
            owed = marks.find(1, first, first + self.cell_pages) >= 0
            if owed:
                self.whole_after_ms[cell] = 0
            elif self.whole_after_ms[cell] == 0:
                self.whole_after_ms[cell] = max(now_ms, 1)
