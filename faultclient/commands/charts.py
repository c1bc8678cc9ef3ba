# SPDX-License-Identifier: Apache-2.0
"""The two drawings of a report that are made of what the target has counted: when which memory came, and how
long faults waited for their pages."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

from faultclient.commands.moving import RUNS_THERE, Moving
from faultclient.commands.svg import Scale, box, drawing, line, tick_text, ticks, words
from faultclient.commands.words import MIB, size_text
from pageferry.limits import PAGE_BYTES
from pageferry.v1 import faultclient_pb2

WIDTH: Final = 1000
LEFT: Final = 78
RIGHT: Final = 14
# The map.
COLUMNS: Final = 64
COLOURS: Final = 10  # of the ramp: classes t0 (first) to t9 (last)
# The histogram: so many bars for each power of ten.
BARS_A_DECADE: Final = 10
HEIGHT: Final = 190
QUANTILES: Final = ((0.5, "half"), (0.99, "99 of 100"))


# ------------------------------------------------------------------------------------------------- the map


class ArrivalMap:
    """Each cell is a piece of the memory, in its colour the time at which the last of its pages came."""

    def __init__(self, moving: Moving, arrivals: faultclient_pb2.Arrivals) -> None:
        self._times_s = [ms / 1000 for ms in arrivals.whole_after_ms]
        self.cell_bytes = arrivals.cell_pages * PAGE_BYTES
        came = [at_s for at_s in self._times_s if at_s]
        self.whole = len(came)
        self.cells = len(self._times_s)
        self._first_s, self._last_s = (min(came), max(came)) if came else (0.0, 0.0)
        # The target's clock began with the session, which this command has seen if it began that.
        first = next((one.at_s for one in moving.samples if one.side == "target"), 0.0)
        self._offset_s = 0.0 if moving.watched_only else first
        reached_s = moving.reached_s("target", *RUNS_THERE)
        self._runs_there_s = reached_s if reached_s is not None and not moving.watched_only else 0.0
        self.since = "the target's beginning" if moving.watched_only else "the start"

    def drawn(self) -> str:
        size = (WIDTH - LEFT - RIGHT) / COLUMNS
        rows = -(-self.cells // COLUMNS)
        parts = [*self._cells(size), *self._legend(rows * size + 34)]
        return drawing(WIDTH, rows * size + 70, "when each part of the memory came", parts)

    def _cells(self, size: float) -> Iterator[str]:
        for cell, at_s in enumerate(self._times_s):
            row, column = divmod(cell, COLUMNS)
            if column == 0:
                yield words(
                    LEFT - 8, (row + 0.5) * size + 4, size_text(cell * self.cell_bytes), "tick", "end"
                )
            begin = cell * self.cell_bytes / MIB
            came = f"whole after {at_s + self._offset_s:.2f} s" if at_s else "not whole"
            about = f"{begin:.1f} to {begin + self.cell_bytes / MIB:.1f} MiB: {came}"
            colour = f"t{self._colour(at_s)}" if at_s else "owed"
            yield box(LEFT + column * size, row * size, size - 1.5, size - 1.5, f"cell {colour}", about)

    def _colour(self, at_s: float) -> int:
        lasted_s = self._last_s - self._first_s
        share = (at_s - self._first_s) / lasted_s if lasted_s else 0.0
        return min(int(share * COLOURS), COLOURS - 1)

    def _legend(self, y: float) -> Iterator[str]:
        if not self.whole:
            return
        width = 26.0
        for colour in range(COLOURS):
            yield box(LEFT + colour * width, y, width, 10, f"cell t{colour}")
        first_s, last_s = self._first_s + self._offset_s, self._last_s + self._offset_s
        yield words(LEFT, y + 25, f"{first_s:.2f} s", "tick")
        yield words(LEFT + COLOURS * width, y + 25, f"{last_s:.2f} s", "tick", "end")
        if first_s < self._runs_there_s < last_s:
            x = Scale(first_s, last_s, LEFT, LEFT + COLOURS * width)(self._runs_there_s)
            yield line(x, y - 5, x, y + 14, "mark")
            yield words(x, y - 9, "runs there", "tick", "middle")
        if self.whole < self.cells:
            x = LEFT + COLOURS * width + 40
            yield box(x, y, 10, 10, "cell owed")
            yield words(x + 17, y + 9, f"{self.cells - self.whole} pieces are not whole", "tick")


# -------------------------------------------------------------------------------------------- the histogram


class Waits:
    """How long faults waited: counts by powers of ten, with what half of them and nearly all were below."""

    def __init__(self, arrivals: faultclient_pb2.Arrivals) -> None:
        self.buckets = [
            (max(us, 1), count)
            for us, count in zip(arrivals.wait_us_max, arrivals.waits, strict=True)
            if count
        ]
        self.count = sum(count for _, count in self.buckets)

    def quantile_us(self, share: float) -> int:
        """So long waited this share of them at most."""
        seen = 0
        for us, count in self.buckets:
            seen += count
            if seen >= share * self.count:
                return us
        return 0

    @property
    def longest_us(self) -> int:
        return self.buckets[-1][0]

    def drawn(self) -> str:
        bars = self._bars()
        low = math.floor(min(bars) / BARS_A_DECADE) * BARS_A_DECADE
        high = math.ceil((max(bars) + 1) / BARS_A_DECADE) * BARS_A_DECADE
        x = Scale(low, high, LEFT, WIDTH - RIGHT)
        y = Scale(0.0, max(bars.values()) * 1.08, HEIGHT, 26.0)
        parts = [*self._axes(x, y, low, high), *self._drawn_bars(bars, x, y), *self._quantiles(x)]
        return drawing(WIDTH, HEIGHT + 26, "how long faults waited for their pages", parts)

    def _bars(self) -> Counter[int]:
        """By the number of the bar: its left edge is at 10^(number / BARS_A_DECADE) microseconds."""
        bars: Counter[int] = Counter()
        for us, count in self.buckets:
            bars[math.floor(math.log10(us) * BARS_A_DECADE)] += count
        return bars

    def _axes(self, x: Scale, y: Scale, low: int, high: int) -> Iterator[str]:
        for value in ticks(y.high, 4):
            yield line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
            yield words(LEFT - 8, y(value) + 4, tick_text(value), "tick", "end")
        for number in range(low, high + 1, BARS_A_DECADE):
            yield line(x(number), 26, x(number), HEIGHT, "grid")
            yield words(x(number), HEIGHT + 18, wait_text(10.0 ** (number / BARS_A_DECADE)), "tick", "middle")

    def _drawn_bars(self, bars: Counter[int], x: Scale, y: Scale) -> Iterator[str]:
        for number, count in sorted(bars.items()):
            edges = [wait_text(10.0 ** (edge / BARS_A_DECADE)) for edge in (number, number + 1)]
            about = f"{count:,} faults waited {edges[0]} to {edges[1]}"
            width = x(number + 1) - x(number) - 1.5
            yield box(x(number), y(count), width, max(y(0) - y(count), 1.0), "wait", about)

    def _quantiles(self, x: Scale) -> Iterator[str]:
        for (share, name), anchor in zip(QUANTILES, ("end", "start"), strict=True):  # apart, however close
            us = self.quantile_us(share)
            at = x(math.log10(us) * BARS_A_DECADE)
            yield line(at, 20, at, HEIGHT, "moment")
            beside = at - 4 if anchor == "end" else at + 4
            yield words(beside, 17, f"{name} within {wait_text(us)}", "momentname", anchor)


def wait_text(us: float) -> str:
    if us < 1000:
        return f"{us:.3g} µs"
    return f"{us / 1000:.3g} ms" if us < 1_000_000 else f"{us / 1e6:.3g} s"
