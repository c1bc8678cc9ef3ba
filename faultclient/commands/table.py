# SPDX-License-Identifier: Apache-2.0
"""Sessions as a table: of both ends, with as many columns as there is room for; below it what is wrong."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from faultclient.commands.live import COLOURS
from faultclient.commands.ports import Port, Row, several
from faultclient.commands.words import lost_text, ms_text, phase_name, phase_of, rate_text, share_here, state
from pageferry.phases import Phase
from pageferry.v1 import migrations_pb2

BAR_WIDTH: Final = 12
NONE: Final = Text("-", "bright_black")


class Column(NamedTuple):
    name: str
    cell: Callable[[Row], RenderableType]
    width_min: int = 0  # of the screen: where there is less, it is left out
    right: bool = False


def phase_cell(session: migrations_pb2.Session | None, at: str) -> Text:
    if session is None:
        return NONE
    phase = phase_of(session)
    text = Text(phase_name(session), COLOURS[phase] if phase is not None else "")
    if session.paused:
        text.append(" paused", "yellow")
    if at:
        text.append(f" {at}", "bright_black")
    return text


def memory_cell(row: Row) -> RenderableType:
    """Only the target knows what is there."""
    target = row.target
    if target is None or not target.pages_total:
        return NONE
    share = share_here(target)
    cell = Table.grid(padding=(0, 1))
    style = "green" if share >= 1 else "blue"
    bar = ProgressBar(total=1.0, completed=share, width=BAR_WIDTH, complete_style=style, finished_style=style)
    cell.add_row(bar, f"{int(share * 100):3d}%")  # 100 % when it is
    return cell


def rate_cell(row: Row) -> Text:
    return Text(rate_text(row.bytes_per_s)) if row.bytes_per_s else NONE


def rounds_cell(row: Row) -> Text:
    known = [one for one in (row.target, row.source) if one is not None and one.round]
    if not known:
        return NONE
    every = known[0].dirty_pages >= known[0].pages_total
    return Text(f"{known[0].round}: {'all' if every else f'{known[0].dirty_pages:,}'} pages")


def downtime_cell(row: Row) -> Text:
    """With a ~ it is an estimate; that of a move which has failed tells nothing any more."""
    known = [one for one in (row.target, row.source) if one is not None and one.downtime_us]
    if not known or phase_of(known[0]) is Phase.ABORTED:
        return NONE
    estimated = phase_of(known[0]) in (Phase.CREATED, Phase.PRECOPY)
    return Text(f"{'~' if estimated else ''}{ms_text(known[0].downtime_us)}")


def faults_cell(row: Row) -> Text:
    if row.target is None:
        return NONE
    text = Text(f"{row.target.faults:,}")
    if row.target.faults_waiting:
        text.append(f" ({row.target.faults_waiting:,} wait)", "yellow")
    return text


def blocked_cell(row: Row) -> Text:
    return Text(ms_text(row.target.blocktime_us)) if row.target is not None else NONE


def columns(ports: Sequence[Port], width: int) -> list[Column]:
    """Those of a side that nobody is asked of are left out, too."""
    asked = {port.side for port in ports}
    where = {side for side in asked if several(ports, side)}
    known = [
        Column("session", lambda row: Text(row.either.session)),
        Column("image", lambda row: Text(row.either.image), 90),
        Column("source", lambda row: phase_cell(row.source, row.source_at if "source" in where else "")),
        Column("target", lambda row: phase_cell(row.target, row.target_at if "target" in where else "")),
        Column("memory", memory_cell),
        Column("link", rate_cell, right=True),
        Column("round", rounds_cell, 130),
        Column("downtime", downtime_cell, 110, right=True),
        Column("faults", faults_cell, 100, right=True),
        Column("blocked", blocked_cell, 120, right=True),
    ]
    left_out = {"source", "target"} - asked
    if "target" in left_out:
        left_out |= {"memory", "link", "faults", "blocked"}
    return [one for one in known if one.width_min <= width and one.name not in left_out]


def as_table(ports: Sequence[Port], rows: Sequence[Row], width: int) -> Table:
    chosen = columns(ports, width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in chosen:
        table.add_column(column.name, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(column.cell(row) for column in chosen), style="dim" if row.ended else "")
    return table


def troubles(rows: Sequence[Row]) -> Iterator[Text]:
    """What a phase does not say: why nothing moves, why it failed, what is lost, what else is to know."""
    for row in rows:
        said = set()
        ends = [session for session in (row.source, row.target) if session is not None]
        most = max(ends, key=lambda session: session.pages_poisoned)
        if most.pages_poisoned:
            yield Text(f"{most.session}: {lost_text(most)} for good", "red")
        for side, session in (("source", row.source), ("target", row.target)):
            if session is None or not session.message or session.message in said:
                continue
            said.add(session.message)
            colour = "red" if session.failure else "yellow" if session.paused else "bright_black"
            text = Text(f"{session.session}: {side} {state(session)}: ", colour)
            yield text.append(session.message)


def port_line(ports: Sequence[Port]) -> Text:
    return Text("   ").join(
        Text.assemble(
            ("● ", "green" if port.error is None else "red"),
            ("page server " if port.side == "source" else "fault client ", "bright_black"),
            port.address,
            ("" if port.error is None else f" {port.error.reason.name}", "red"),
        )
        for port in ports
    )


def as_picture(
    ports: Sequence[Port], rows: Sequence[Row], width: int, height: int | None = None
) -> RenderableType:
    """`height`: of the screen; of what does not fit, the oldest that have ended are left out."""
    if not rows:
        return Group(port_line(ports), "", Text("no session", "bright_black"))
    shown = list(rows)
    said = list(troubles(shown))
    if height is not None:
        shown = shown[: max(height - 5, 1)]
        said = list(troubles(shown))[: max(height - 5 - len(shown), 0)]
    parts: list[RenderableType] = [port_line(ports), "", as_table(ports, shown, width)]
    if len(shown) < len(rows):
        parts.append(Text(f"and {len(rows) - len(shown)} more", "bright_black"))
    if said:
        parts += ["", *said]
    return Group(*parts)
