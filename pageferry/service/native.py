# SPDX-License-Identifier: Apache-2.0
"""The C library as Python sees it: loaded, its version checked, reasons as exceptions, counters as dicts.

The only file of this package that knows pageferry._native. The two that hold its objects are
pageserver/dataplane.py and faultclient/pager.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from operator import add
from typing import Any, Final

from pageferry._native import ffi, lib
from pageferry.reasons import PageferryError, Reason

API: Final = 3

if lib.pageferry_api() != API:
    raise ImportError(
        f"pageferry._native has API {lib.pageferry_api()}, this package needs {API}: run make native"
    )


def text(chars: Any) -> str:
    """A char array of C, up to its zero."""
    return str(ffi.string(chars).decode(errors="replace"))


def check(result: int, error: Any = None) -> int:
    """What a call gave, or the exception that its reason stands for."""
    if result >= 0:
        return result
    reason = Reason(-result)
    raise PageferryError(reason, text(error) if error is not None else "")


def _names(lookup: Callable[[int], Any]) -> Iterator[str]:
    index = 0
    while (name := lookup(index)) != ffi.NULL:
        yield text(name)
        index += 1


COUNTERS: Final[Mapping[str, str]] = dict(
    zip(_names(lib.pageferry_counter_name), _names(lib.pageferry_counter_help), strict=True)
)
HISTOGRAMS: Final[Mapping[str, str]] = dict(
    zip(_names(lib.pageferry_histogram_name), _names(lib.pageferry_histogram_help), strict=True)
)
PAGE_STATES: Final[Sequence[str]] = tuple(_names(lib.pageferry_page_state_name))
BUCKETS: Final[int] = lib.pageferry_histogram_buckets()
BUCKET_LIMITS: Final[Sequence[int]] = tuple(map(lib.pageferry_histogram_limit, range(BUCKETS)))


@dataclass(frozen=True, slots=True)
class Histogram:
    """A count a bucket, whose limit is the largest value that falls into it (BUCKET_LIMITS), and the sum of
    all values."""

    counts: Sequence[int]
    sum: int

    def __add__(self, other: "Histogram") -> "Histogram":
        counts = tuple(map(add, self.counts, other.counts))
        return Histogram(counts, self.sum + other.sum)

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def quantile(self, share: float) -> int:
        """The limit of the bucket that `share` (0 to 1) of all values lie in or below; 0: there are none."""
        wanted = share * self.total
        seen = 0
        for limit, count in zip(BUCKET_LIMITS, self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return limit
        return 0


def counters(read: Callable[[Any, int], int]) -> dict[str, int]:
    """One snapshot by name; `read` is pageferry_{vm,server}_counters with its handle bound."""
    values = ffi.new("uint64_t[]", len(COUNTERS))
    read(values, len(COUNTERS))
    return dict(zip(COUNTERS, values, strict=True))


def histogram(read: Callable[[int, Any, int], int], name: str) -> Histogram:
    values = ffi.new("uint64_t[]", BUCKETS + 1)
    read(list(HISTOGRAMS).index(name), values, BUCKETS + 1)
    return Histogram(tuple(values[0:BUCKETS]), values[BUCKETS])


class Verdict(IntEnum):
    """As pageferry.h has them."""

    GOOD = lib.PAGEFERRY_VERDICT_GOOD
    LESS = lib.PAGEFERRY_VERDICT_LESS
    BAD = lib.PAGEFERRY_VERDICT_BAD
    UNTRIED = lib.PAGEFERRY_VERDICT_UNTRIED
    FAILED = lib.PAGEFERRY_VERDICT_FAILED


@dataclass(frozen=True, slots=True)
class Fact:
    """What this machine can do, or cannot; found by trying it."""

    name: str
    verdict: Verdict
    found: str
    help: str
    remedy: str | None


def probe(device_fd: int = -1, *, spare_pools: bool) -> tuple[Fact, ...]:
    """Tries everything anew, in some milliseconds. `device_fd`: an open /dev/userfaultfd that was passed on.

    `spare_pools`: takes no page from a pool of huge pages, as at a start, when a VMM may be counting on the
    last one.
    """
    facts = ffi.new("struct pageferry_fact[]", lib.PAGEFERRY_FACTS_MAX)
    count = lib.pageferry_probe(device_fd, spare_pools, facts, lib.PAGEFERRY_FACTS_MAX)
    return tuple(
        Fact(
            name=text(fact.name),
            verdict=Verdict(fact.verdict),
            found=text(fact.found),
            help=text(fact.help),
            remedy=text(fact.remedy) if fact.remedy != ffi.NULL else None,
        )
        for fact in facts[0:count]
    )
