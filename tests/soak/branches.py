# SPDX-License-Identifier: Apache-2.0
"""What rarely happens, and must have happened: each branch, and the counters that show it.

A run in which one of them never came about has not tested it, and fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Not a kind of memory: workers that die, on both kinds (deaths.c).
DEATHS: Final = "deaths"
HUGE_KINDS: Final = ("tmpfs-huge",)

Counters = Mapping[str, int]


@dataclass(frozen=True)
class Branch:
    name: str
    counter: str
    kinds: tuple[str, ...] = ()  # of which alone it counts; (): of all


BRANCHES: Final = (
    Branch("a version is refused: stale", "stale_dropped_pages_total"),
    Branch("EEXIST from COPY", "already_copies_total"),
    Branch("EEXIST from CONTINUE", "already_continues_total"),
    Branch("EAGAIN: a part is done", "partial_total"),
    Branch("EAGAIN: events are unread", "later_total"),
    Branch("a hole under CACHED", "absent_cached_total"),
    Branch("a hole under OWNED", "absent_owned_total"),
    Branch("REMOVE of MISSING", "removed_missing_pages_total"),
    Branch("REMOVE of WANTED", "removed_wanted_pages_total"),
    Branch("REMOVE of CACHED", "removed_cached_pages_total"),
    Branch("REMOVE of ZERO", "removed_zero_pages_total"),
    Branch("REMOVE of OWNED", "removed_owned_pages_total"),
    Branch("REMOVE of POISONED", "removed_poisoned_pages_total"),
    Branch("poison is marked", "poison_marks_total"),
    Branch("poison is cleared", "poison_cleared_pages_total"),
    Branch("a fault on OWNED", "faults_owned_total"),
    Branch("a huge folio before its bytes", "faults_unheld_minor_total", HUGE_KINDS),
    Branch("a link is lost", "links_lost_total"),
    Branch("a page is asked once more", "asks_again_total"),
)


def count(branch: Branch, counters: Mapping[str, Counters]) -> int:
    """`counters`: by kind."""
    kinds = branch.kinds or counters.keys()
    return sum(counters[kind].get(branch.counter, 0) for kind in kinds if kind in counters)


def never_met(counters: Mapping[str, Counters]) -> list[str]:
    return [branch.name for branch in BRANCHES if count(branch, counters) == 0]
