# SPDX-License-Identifier: Apache-2.0
"""`--report FILE`: a move as one page of HTML that needs nothing beside it, no script, no network.

Only what was measured is drawn or told; what is missing, and how things were measured, stands at its end.
"""

import os
import time
from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

from faultclient.commands.charts import ArrivalMap, Waits, wait_text
from faultclient.commands.control import INTERVAL_MS
from faultclient.commands.moving import ALL_HERE, RUNS_THERE, SIDES, Moving
from faultclient.commands.svg import element
from faultclient.commands.timeline import Timeline
from faultclient.commands.words import as_json, ms_text, size_text
from pageferry import __version__
from pageferry.phases import Phase
from pageferry.reasons import PageferryError
from pageferry.v1 import migrations_pb2

PHASES: Final = {
    Phase.CREATED: "the session is made",
    Phase.PRECOPY: "the guest runs at the source, its memory flows",
    Phase.SWITCHOVER: "the guest stands still, its state moves",
    Phase.POSTCOPY: "the guest runs at the target, pages are on their way",
    Phase.COMMITTED: "all pages are there",
    Phase.RELEASED: "the source may go",
    Phase.ABORTED: "the guest will never run at the target",
    Phase.LOST: "given up by an operator",
}
# A stripe pattern for pauses; the drawings name it.
PATTERN: Final = (
    '<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs><pattern id="stripes" '
    'width="8" height="8" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<line x1="0" y1="0" x2="0" y2="8" class="stripe"/></pattern></defs></svg>'
)


def write_report(file: Path, moving: Moving, error: PageferryError | None) -> None:
    """Whole or not at all. OSError: it is not."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        fresh.write_text("\n".join(page(moving, error)) + "\n", encoding="utf-8")
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def page(moving: Moving, error: PageferryError | None) -> Iterator[str]:
    image = escape(moving.options.image)
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield element("title", f"{image}: {'moved' if error is None else 'did not move'}")
    yield element("style", files(__package__).joinpath("report.css").read_text(encoding="utf-8"))
    yield f"</head><body>{PATTERN}<main>"
    yield from head(moving, error)
    yield element("div", "".join(tiles(moving)), class_="tiles")
    yield section("What happened when", "".join(timeline(moving)))
    yield from measured(moving)
    yield element("div", "".join((events(moving), figures(moving))), class_="halves")
    yield element("footer", " ".join(remarks(moving)))
    yield "</main></body></html>"


def section(title: str, content: str, about: str = "") -> str:
    told = element("p", about, class_="about") if about else ""
    return element("section", element("h2", escape(title)) + told + content)


# ---------------------------------------------------------------------------------------------- how it ended


def head(moving: Moving, error: PageferryError | None) -> Iterator[str]:
    options = moving.options
    verdict = ("good", "moved") if error is None else ("bad", f"not moved: {words_of(error)}")
    title = element("h1", f"Move of {escape(options.image)}")
    yield element("header", title + element("span", verdict[1], class_=f"verdict {verdict[0]}"))
    began = time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(moving.began))
    machine = next((one.machine for one in moving.newest.values() if one.machine), "")
    parts = [
        f"from {strong(options.source)} to {strong(options.vm)} at {strong(options.target)}",
        f"session {strong(options.session)}",
        escape(machine),
        f"postcopy {escape(options.postcopy)}" if not moving.watched_only else "",
        escape(began),
    ]
    spans = [element("span", part) for part in parts if part]
    yield element("p", " &middot; ".join(spans), class_="route")
    if error is not None:
        yield callout("bad", where_it_runs(moving), str(error))
    for pause in moving.pauses:
        if pause.until_s is None:
            yield callout("warn", f"The {pause.side} is paused: {pause.reason.name}", pause.message)


def words_of(error: PageferryError) -> str:
    return error.reason.name.lower().replace("_", " ")


def strong(text: str) -> str:
    return element("b", escape(text))


def callout(kind: str, title: str, text: str) -> str:
    paragraphs = element("p", strong(title)) + element("p", escape(text))
    return element("div", paragraphs, class_=f"callout {kind}")


def where_it_runs(moving: Moving) -> str:
    """After a failure: what somebody wants to know first."""
    if moving.runs_there():
        return "The guest runs at the target."
    if moving.phase("source") is Phase.ABORTED:
        return "The guest runs on at the source."
    if not moving.newest:
        return "Nothing was begun: the guest runs on at the source."
    return "Where the guest runs was not heard to the end."


def tiles(moving: Moving) -> Iterator[str]:
    target = moving.newest.get("target")
    if target is not None and moving.seen("target", *RUNS_THERE):
        yield tile(ms_text(target.downtime_us), "the guest stood still")
        yield tile(ms_text(target.blocktime_us), "its CPUs waited for pages, all in all")
    for phases, side, what in (
        (RUNS_THERE, "target", "until it ran there"),
        (ALL_HERE, "target", "until all its memory was there"),
    ):
        reached_s = moving.reached_s(side, *phases)
        if reached_s is not None and not moving.watched_only:
            yield tile(ms_text(reached_s * 1e6), what)
    if target is not None and target.wire_bytes:
        yield tile(size_text(target.wire_bytes), "went over the link")
    if target is not None and target.faults:
        yield tile(f"{target.faults:,}", "page faults")
    if target is not None and target.round:
        yield tile(f"{target.round:,}", "rounds of precopy")
    lost = max((session.pages_poisoned for session in moving.newest.values()), default=0)
    if lost:
        yield tile(f"{lost:,}", "pages are lost for good")


def tile(figure: str, what: str) -> str:
    number, _, unit = figure.partition(" ")
    shown = escape(number) + (element("small", escape(unit)) if unit else "")
    return element(
        "div",
        element("div", shown, class_="figure") + element("div", escape(what), class_="what"),
        class_="tile",
    )


# ------------------------------------------------------------------------------------------------- drawings


def timeline(moving: Moving) -> Iterator[str]:
    yield Timeline(moving).drawn()
    seen = {step.phase for side in SIDES for step in moving.steps[side]}
    yield keys(
        (phase.name.lower() if phase is not Phase.LOST else "aborted", f"{phase.name}: {what}")
        for phase, what in PHASES.items()
        if phase in seen
    )


def keys(listed: Iterable[tuple[str, str]]) -> str:
    spans = (element("span", escape(text), style=f"--key: var(--{colour})") for colour, text in listed)
    return element("div", "".join(spans), class_="keys")


def measured(moving: Moving) -> Iterator[str]:
    arrivals = moving.arrivals
    if arrivals is None:
        return
    drawn = ArrivalMap(moving, arrivals)
    if drawn.cells:
        about = (
            f"The guest's memory from its first byte to its last, in {drawn.cells:,} pieces: when the newest "
            f"bytes of all pages of a piece were there, since {drawn.since}."
        )
        yield section("When which memory came", drawn.drawn(), about)
    waits = Waits(arrivals)
    if waits.count:
        about = (
            f"{waits.count:,} page faults of the guest were answered: half of them within "
            f"{wait_text(waits.quantile_us(0.5))}, 99 of 100 within {wait_text(waits.quantile_us(0.99))}, "
            f"the slowest within {wait_text(waits.longest_us)}."
        )
        yield section("How long faults waited", waits.drawn(), about)


# --------------------------------------------------------------------------------------------------- tables


def events(moving: Moving) -> str:
    rows: list[tuple[float, str]] = list(moving.notes)
    rows += [(step.at_s, f"{side}: {step.phase.name}") for side in SIDES for step in moving.steps[side]]
    for pause in moving.pauses:
        rows.append((pause.since_s, f"{pause.side} paused, {pause.reason.name}: {pause.message}"))
        if pause.until_s is not None:
            rows.append((pause.until_s, f"{pause.side} goes on"))
    cells = (row(f"{at_s:.3f} s", what) for at_s, what in sorted(rows))
    return section("Step by step", element("table", "".join(cells)))


def figures(moving: Moving) -> str:
    known = {side: as_json(moving.newest[side]) for side in SIDES if side in moving.newest}
    names = [name for name in as_json(migrations_pb2.Session()) if name not in ("session", "image")]
    head = element("tr", "".join(element("th", escape(name)) for name in ("", *known)))
    shown = (
        row(name.replace("_", " "), *(figure(moving, side, name, told[name]) for side, told in known.items()))
        for name in names
        if any(told[name] for told in known.values())
    )
    return section("All figures", element("table", head + "".join(shown)))


def figure(moving: Moving, side: str, name: str, value: object) -> str:
    """0, and what this end does not know, is left empty."""
    if name == "phase_since":
        return str(value)[:23].replace("T", " ").rstrip("Z")
    if name == "downtime_us" and value and not moving.seen(side, *RUNS_THERE):
        return f"{value:,}, an estimate"
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,}" if isinstance(value, int) and value else str(value or "")


def row(*cells: str) -> str:
    return element("tr", "".join(element("td", escape(cell)) for cell in cells))


def remarks(moving: Moving) -> Iterator[str]:
    yield f"Times are those at which `faultclient migrate` heard of a thing: numbers every {INTERVAL_MS} ms, "
    yield "phases and pauses as they happen."
    if moving.watched_only:
        yield "The move was begun by somebody else: what came before the first second here was not seen."
    if moving.arrivals is None or not moving.arrivals.whole_after_ms:
        yield "When which memory came was not measured."
    if moving.arrivals is None or not any(moving.arrivals.waits):
        yield "How long faults waited was not measured, or there was none."
    yield f"pageferry {escape(__version__)}"
