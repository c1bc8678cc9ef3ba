# SPDX-License-Identifier: Apache-2.0
"""What has happened to the poison of one memory, in order: each loss and each end of one has a number, from 1
without a gap. Who reads with the last number that it has seen misses nothing and hears nothing twice.

Compact: a page that is lost costs some bytes here, no object.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntFlag
from itertools import islice

from pageferry.units import PageRun


class What(IntFlag):
    """Of an entry; POISONED alone: the page was lost before anybody had it."""

    POISONED = 0
    CLEARED = 1  # the poison ended: fresh memory
    WAS_MAPPED = 2  # the guest had it before, and may have read it
    MAPPED = 4  # and has it still: the VMM must take the mapping away
    HELD = 8  # the kernel cannot poison: who touches it waits


@dataclass(frozen=True, slots=True)
class PoisonEntry:
    seq: int
    run: PageRun
    what: What


class PoisonLog:
    def __init__(self) -> None:
        self._first_page = array("Q")
        self._page_count = array("Q")
        self._what = array("B")

    @property
    def seq(self) -> int:
        """Of the newest entry; 0: there is none."""
        return len(self._what)

    def add(self, run: PageRun, what: What = What.POISONED) -> None:
        self._first_page.append(run.first_page)
        self._page_count.append(run.page_count)
        self._what.append(what)

    def after(self, seq: int, limit: int, only: Sequence[PageRun] = ()) -> Iterator[PoisonEntry]:
        """Those above `seq`, the oldest first, `limit` at most. `only` of these pages, which are in order and
        apart; none: of all."""
        return islice(self._after(seq, only), limit)

    def _after(self, seq: int, only: Sequence[PageRun]) -> Iterator[PoisonEntry]:
        first_pages = [run.first_page for run in only]
        for at in range(min(seq, self.seq), self.seq):
            first_page, page_count = self._first_page[at], self._page_count[at]
            if only:
                before = bisect_left(first_pages, first_page + page_count)
                if before == 0 or only[before - 1].end_page <= first_page:
                    continue
            yield PoisonEntry(at + 1, PageRun(first_page, page_count), What(self._what[at]))
