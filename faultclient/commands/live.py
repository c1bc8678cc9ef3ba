# SPDX-License-Identifier: Apache-2.0
"""A move on a terminal: one picture that is drawn again in its place, and above it what has happened.

    web-1  moves to web-1 at 10.0.0.2:7861                            move-5f0c  0:04
    source   CREATED → PRECOPY → SWITCHOVER → POSTCOPY → COMMITTED → RELEASED
    ...

picture() is pure; LiveView keeps it on the screen. All goes to stderr, the figures at the end to stdout.
"""

from collections.abc import Iterator
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from faultclient.commands.moving import ALL_HERE, SIDES, Moving, Sample
from faultclient.commands.views import in_words, print_figures
from faultclient.commands.words import (
    clock_text,
    ms_text,
    pages_text,
    rate_text,
    share_here,
    size_text,
    state,
)
from pageferry.phases import ENDS, Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.v1 import migrations_pb2

FRAMES_PER_S: Final = 8
WAY: Final = (
    Phase.CREATED,
    Phase.PRECOPY,
    Phase.SWITCHOVER,
    Phase.POSTCOPY,
    Phase.COMMITTED,
    Phase.RELEASED,
)
COLOURS: Final = {
    Phase.CREATED: "white",
    Phase.PRECOPY: "blue",
    Phase.SWITCHOVER: "yellow",
    Phase.POSTCOPY: "magenta",
    Phase.COMMITTED: "cyan",
    Phase.RELEASED: "green",
    Phase.ABORTED: "red",
    Phase.LOST: "red",
}
BAD: Final = (Phase.ABORTED, Phase.LOST)


def picture(moving: Moving) -> RenderableType:
    """All of it, as it is now. It has about twelve lines of less than 80 characters."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="bright_black", no_wrap=True)
    rows.add_column(ratio=1)
    for name, what in _rows(moving):
        rows.add_row(name, what)
    for line in _troubles(moving):
        rows.add_row("", line)
    return Group("", _head(moving), rows, "")


def _head(moving: Moving) -> RenderableType:
    options = moving.options
    head = Table.grid(expand=True)
    head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    head.add_column(justify="right", no_wrap=True)
    what = Text.assemble((options.image, "bold"), f"  moves to {options.vm} at {options.target}")
    head.add_row(what, Text(f"{options.session}  {clock_text(moving.now_s())}", "bright_black"))
    return head


def _rows(moving: Moving) -> Iterator[tuple[str, RenderableType]]:
    for side in SIDES:
        yield side, way(moving, side)
    yield "guest", _guest(moving)
    source, target = moving.newest.get("source"), moving.newest.get("target")
    if target is not None and target.pages_total:
        yield "memory", _memory(target)
        yield "link", _link(moving, target)
        if target.round:
            yield "rounds", _rounds(target, source)
        if moving.runs_there():
            yield "faults", _faults(target)


def way(moving: Moving, side: str) -> Text:
    """The phases in their order: those behind, the present one, those to come."""
    now, text = moving.phase(side), Text()
    if now is None:
        return Text("not heard of yet", "bright_black")
    if now in BAD:
        seen = [step.phase for step in moving.steps[side] if step.phase not in BAD]
        reached: tuple[Phase, ...] = (*(seen or [Phase.CREATED]), now)
    else:
        reached = WAY[: WAY.index(now) + 1]
    for phase in (*reached, *(() if now in BAD else WAY[len(reached) :])):
        if text:
            text.append(" → ", "bright_black")
        if phase is now:
            text.append(phase.name, f"bold {COLOURS[phase]}")
        else:
            text.append(phase.name, COLOURS[phase] if phase in reached else "bright_black")
    return text


def _guest(moving: Moving) -> Text:
    """Where it is, and the three facts; until it has moved, for how long it would stand still."""
    target = moving.newest.get("target")
    if any(moving.phase(side) in BAD for side in SIDES):
        at_source = moving.phase("source") is Phase.ABORTED
        return Text("runs on at the source" if at_source else "")
    if moving.runs_there():
        facts = {
            "runs there": True,
            "all here": moving.seen("target", *ALL_HERE),
            "source may go": moving.phase("source") is Phase.RELEASED,
        }
        text = Text("   ").join(
            Text(f"{'✓' if so else '·'} {fact}", "green" if so else "bright_black")
            for fact, so in facts.items()
        )
        if target is not None and target.downtime_us:
            text.append(f"   stood still {ms_text(target.downtime_us)}")
        return text
    if Phase.SWITCHOVER in (moving.phase("source"), moving.phase("target")):
        return Text("stands still: its state moves", "yellow")
    text = Text("runs at the source")
    if target is not None and target.downtime_us:
        text.append(f"   would stand still about {ms_text(target.downtime_us)}", "bright_black")
    return text


def _memory(target: migrations_pb2.Session) -> RenderableType:
    share = share_here(target)
    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=share, width=32, complete_style="green" if share >= 1 else "blue")
    of = f"{pages_text(target.pages_settled)} of {pages_text(target.pages_total)}"
    row.add_row(bar, f"{int(share * 1000) / 10:5.1f}%", Text(of, "bright_black"))  # 100 % when it is
    return row


def _link(moving: Moving, target: migrations_pb2.Session) -> Text:
    """How fast it comes now; after its end, how fast it came, if we have seen all of it."""
    size = size_text(target.wire_bytes)
    if moving.phase("target") in ENDS:
        reached_s = moving.reached_s("target", *ENDS) if not moving.watched_only else None
        return Text(
            size + (f"   {rate_text(target.wire_bytes / reached_s)} on the average" if reached_s else "")
        )
    return Text(rate_text(moving.bytes_per_s())) + Text(f"   {size} so far", "bright_black")


def _rounds(target: migrations_pb2.Session, source: migrations_pb2.Session | None) -> Text:
    every = target.dirty_pages >= target.pages_total
    text = Text(f"{target.round}   {'all' if every else f'{target.dirty_pages:,}'} pages in the newest")
    per_second = target.dirty_pages_per_second or (source.dirty_pages_per_second if source is not None else 0)
    if per_second:
        text.append(f"   the guest writes {per_second:,} a second", "bright_black")
    return text


def _faults(target: migrations_pb2.Session) -> Text:
    text = Text(f"{target.faults:,}")
    waits = f"   {target.faults_waiting:,} waiting"
    text.append(waits, "yellow" if target.faults_waiting else "bright_black")
    text.append(f"   vCPUs were blocked {ms_text(target.blocktime_us)}", "bright_black")
    return text


def _troubles(moving: Moving) -> Iterator[Text]:
    """Why nothing moves, who does not answer."""
    for side in SIDES:
        session = moving.newest.get(side)
        if session is not None and session.paused:
            why = f"{side} paused: {Reason(session.paused).name}  {session.message}"
            yield Text(why, "yellow")
        if side in moving.silent:
            yield Text(f"{side} does not answer", "yellow")
        if session is not None and session.cancel_requested and moving.phase(side) not in ENDS:
            yield Text(f"{side}: asked to cancel", "yellow")


class LiveView:
    """The picture, until close(). What has happened stands above it, and stays."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._shown: dict[str, str] = {}
        self._moving: Moving | None = None
        self._live = Live(
            get_renderable=self._picture,
            console=self._console,
            refresh_per_second=FRAMES_PER_S,
            redirect_stdout=False,
            vertical_overflow="crop",
        )

    def _picture(self) -> RenderableType:
        return picture(self._moving) if self._moving is not None else Text()

    def started(self, moving: Moving) -> None:
        self._moving = moving
        self._live.start()

    def sampled(self, moving: Moving, sample: Sample) -> None:
        if self._shown.get(sample.side) != state(sample.session):
            self._shown[sample.side] = state(sample.session)
            self._print(sample.at_s, in_words(sample.side, sample.session))

    def said(self, text: str) -> None:
        assert self._moving is not None
        self._print(self._moving.now_s(), text)

    def _print(self, at_s: float, text: str) -> None:
        self._console.print(Text(f"{at_s:8.1f} s  {text}", "bright_black"))

    def ended(self, moving: Moving, error: PageferryError | None) -> None:
        self._live.update(self._picture(), refresh=True)
        self.close()
        print_figures(moving)

    def close(self) -> None:
        self._live.stop()
