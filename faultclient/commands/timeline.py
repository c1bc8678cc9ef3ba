# SPDX-License-Identifier: Apache-2.0
"""The drawing of a move over its time: the phases of both ends, and below them, on the same axis, what came
when. A panel whose figures were not taken is not drawn."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import Final

from faultclient.commands.moving import ALL_HERE, RUNS_THERE, SIDES, Moving, Sample
from faultclient.commands.svg import Scale, box, drawing, line, path, tick_text, ticks, words
from faultclient.commands.words import ms_text, pages_text, share_here
from pageferry.phases import Phase

WIDTH: Final = 1000
LEFT: Final = 78  # names and numbers stand there
RIGHT: Final = 14
LANE: Final = 26
GAP: Final = 8
PANEL: Final = 84
LETTER: Final = 6.6  # of a label, on the average
BOLD: Final = 8.2  # of a phase's name
PHASE_MIN: Final = 2.0  # a phase that was seen is seen in the drawing
BINS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Panel:
    """Values over time, from 0 to `high`."""

    title: str
    high: float
    unit: str
    curves: Callable[[Scale, Scale], Iterable[str]]


class Timeline:
    def __init__(self, moving: Moving) -> None:
        self._moving = moving
        self._until_s = max(moving.now_s(), 0.001)
        self._x = Scale(0.0, self._until_s, LEFT, WIDTH - RIGHT)
        self._target = [one for one in moving.samples if one.side == "target" and one.session.pages_total]

    def drawn(self) -> str:
        panels = list(self._panels())
        lanes_end = 14 + 2 * (LANE + GAP)
        bottom = lanes_end + len(panels) * (PANEL + 30)
        parts = [*self._grid(lanes_end, bottom), *self._lanes()]
        for number, panel in enumerate(panels):
            parts += self._panel(panel, lanes_end + 30 + number * (PANEL + 30))
        parts += self._moments(bottom)
        label = "phases of both ends over time" + "".join(f", {panel.title}" for panel in panels)
        return drawing(WIDTH, bottom + 26, label, parts)

    # ------------------------------------------------------------------------------------------- axis, lanes

    def _grid(self, top: float, bottom: float) -> Iterator[str]:
        for second in ticks(self._until_s, 8):
            x = self._x(second)
            yield line(x, top, x, bottom, "grid")
            yield words(x, bottom + 18, f"{tick_text(second)} s", "tick", "middle")

    def _lanes(self) -> Iterator[str]:
        for number, side in enumerate(SIDES):
            y = 14 + number * (LANE + GAP)
            yield words(0, y + LANE / 2 + 4, side, "name")
            yield box(LEFT, y, WIDTH - RIGHT - LEFT, LANE, "lane")
            steps = self._moving.steps[side]
            for step, after in zip_longest(steps, steps[1:]):
                yield from self._phase(step.phase, step.at_s, after.at_s if after else self._until_s, y)
            for pause in self._moving.pauses:
                if pause.side == side:
                    until_s = pause.until_s if pause.until_s is not None else self._until_s
                    x, end = self._x(pause.since_s), self._x(until_s)
                    about = f"paused {pause.reason.name}: {pause.message}"
                    yield box(x, y, max(end - x, PHASE_MIN), LANE, "pause", about)

    def _phase(self, phase: Phase, from_s: float, to_s: float, y: float) -> Iterator[str]:
        x = self._x(from_s)
        width = max(self._x(to_s) - x, PHASE_MIN)
        about = f"{phase.name}: {from_s:.3f} s to {to_s:.3f} s, {ms_text((to_s - from_s) * 1e6)}"
        yield box(x, y, width, LANE, f"phase {phase.name.lower()}", about)
        if width > len(phase.name) * BOLD + 12:
            yield words(x + 7, y + LANE / 2 + 4, phase.name, "onphase")

    def _moments(self, bottom: float) -> Iterator[str]:
        """The facts that somebody waits for, through all panels."""
        taken = 0.0  # by letters, up to here
        for name, at_s in (
            ("runs there", self._moving.reached_s("target", *RUNS_THERE)),
            ("all here", self._moving.reached_s("target", *ALL_HERE)),
        ):
            if at_s is None:
                continue
            x, width = self._x(at_s), len(name) * LETTER
            start = min(x - width / 2, WIDTH - width)
            y = 9 if start > taken else -5
            taken = start + width
            yield line(x, y + 3, x, bottom, "moment")
            yield words(start, y, name, "momentname")

    # ------------------------------------------------------------------------------------------------ panels

    def _panel(self, panel: Panel, top: float) -> Iterator[str]:
        y = Scale(0.0, panel.high, top + PANEL, top)
        yield words(LEFT, top - 7, panel.title, "title")
        for value in ticks(panel.high, 3):
            yield line(LEFT, y(value), WIDTH - RIGHT, y(value), "grid")
            yield words(LEFT - 8, y(value) + 4, f"{tick_text(value)}{panel.unit}", "tick", "end")
        yield from panel.curves(self._x, y)

    def _panels(self) -> Iterator[Panel]:
        if not self._target:
            return
        total = self._target[-1].session.pages_total
        yield Panel(f"memory at the target, of {pages_text(total)}", 100.0, " %", self._here)
        rates = self._rates()
        if rates:
            high = max(rate for _, _, rate in rates) or 1.0

            def came(x: Scale, y: Scale) -> Iterator[str]:
                for from_s, to_s, rate in rates:
                    about = f"{rate:.1f} MB/s from {from_s:.2f} s to {to_s:.2f} s"
                    yield box(
                        x(from_s), y(rate), max(x(to_s) - x(from_s) - 0.5, 0.5), y(0) - y(rate), "rate", about
                    )

            yield Panel("came over the link, MB/s", high * 1.05, "", came)
        rounds = self._rounds()
        if rounds:
            yield Panel(
                "pages that each round found dirty", max(rounds.values())[1] * 1.05 or 1.0, "", self._dirty
            )
        waiting = max(one.session.faults_waiting for one in self._target)
        if waiting > 1:
            yield Panel("faults that waited for their pages", waiting * 1.05, "", self._waiting)

    def _here(self, x: Scale, y: Scale) -> Iterator[str]:
        points = [(x(one.at_s), y(share_here(one.session) * 100)) for one in self._until_the_end()]
        yield path(points, "herearea", floor=y(0))
        yield path(points, "here")

    def _until_the_end(self) -> list[Sample]:
        """What was heard last holds until now."""
        last = self._target[-1]
        return [*self._target, Sample(self._until_s, last.side, last.session)]

    def _rates(self) -> list[tuple[float, float, float]]:
        """From when to when, MB/s: between samples that are far enough from each other."""
        apart_s = self._until_s / BINS_MAX
        chosen = self._target[:1]
        for one in self._target[1:]:
            if one.at_s - chosen[-1].at_s >= apart_s:
                chosen.append(one)
        return [
            (
                before.at_s,
                after.at_s,
                (after.session.wire_bytes - before.session.wire_bytes) / 1e6 / (after.at_s - before.at_s),
            )
            for before, after in pairwise(chosen)
            if after.session.wire_bytes > before.session.wire_bytes
        ]

    def _rounds(self) -> dict[int, tuple[float, int]]:
        """Of each round that was heard of: when, and how many pages it found. One that names every page, as
        the first does, tells nothing."""
        found: dict[int, tuple[float, int]] = {}
        for one in self._target:
            if one.session.round and one.session.dirty_pages < one.session.pages_total:
                found.setdefault(one.session.round, (one.at_s, one.session.dirty_pages))
        return found

    def _dirty(self, x: Scale, y: Scale) -> Iterator[str]:
        for number, (at_s, pages) in self._rounds().items():
            about = f"round {number} at {at_s:.2f} s: {pages:,} pages"
            yield box(x(at_s) - 2, y(pages), 4, max(y(0) - y(pages), 1), "dirty", about)

    def _waiting(self, x: Scale, y: Scale) -> Iterator[str]:
        points = [(x(one.at_s), y(one.session.faults_waiting)) for one in self._until_the_end()]
        yield path(points, "waitingarea", floor=y(0))
        yield path(points, "waiting")
