# SPDX-License-Identifier: Apache-2.0
"""Elements and scales of a drawing: SVG as it stands in a page, without any script.

Colours and letters come from the page's style sheet by classes: one drawing does in light and in dark.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Final

STEPS: Final = (1, 2, 5, 10)


def element(name: str, content: str = "", **attributes: object) -> str:
    """`content` is markup. An attribute's underscores stand for dashes, one at its end for nothing."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """As wide as there is room; `label` says what is to be seen, for those who hear the page."""
    return element(
        "svg",
        "\n".join(parts),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        preserveAspectRatio="xMinYMin meet",
    )


def words(x: float, y: float, text: str, class_: str = "label", anchor: str = "start") -> str:
    return element("text", escape(text), x=x, y=y, class_=class_, text_anchor=anchor)


def box(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> str:
    about = element("title", escape(title)) if title else ""
    return element("rect", about, x=x, y=y, width=width, height=height, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, floor: float | None = None) -> str:
    """A line through the points; with a floor the area between them and it."""
    listed = list(points)
    if not listed:
        return ""
    if floor is not None:
        listed = [(listed[0][0], floor), *listed, (listed[-1][0], floor)]
    way = " L".join(f"{x:.2f} {y:.2f}" for x, y in listed)
    return element("path", d=f"M{way}{'Z' if floor is not None else ''}", class_=class_)


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from low to high, on a line from start to end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def ticks(high: float, count: int) -> list[float]:
    """0 and round values up to `high`, about so many."""
    rough = high / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * one for one in STEPS if magnitude * one >= rough * 0.999)
    return [number * step for number in range(int(high / step * 1.0001) + 1)]


def tick_text(value: float) -> str:
    return f"{value:,.10g}" if value < 1e6 else f"{value / 1e6:,.3g} M"
