# SPDX-License-Identifier: Apache-2.0
"""docs/phases.md, printed from pageferry/phases.py: prose by hand, tables and diagrams between the marks.

    python -m tests.model.page     writes the page anew
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pageferry.phases import DURABLE, ENDS, STEPS, Event, Guard, Phase, Side, runs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "phases.md"


def diagram(side: Side) -> str:
    """Events that lead from one phase to the same next one share an arrow."""
    arrows: dict[tuple[Phase, Phase], list[str]] = {}
    for (at, phase, event), row in STEPS.items():
        if at is side:
            guard = "" if row.guard is Guard.ALWAYS else f" ({row.guard.value})"
            arrows.setdefault((phase, row.after), []).append(event.name + guard)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> CREATED"]
    lines += [
        f"    {phase.name} --> {after.name}: {', '.join(events)}" for (phase, after), events in arrows.items()
    ]
    entered = {after for _, after in arrows}
    lines += [f"    {phase.name} --> [*]" for phase in Phase if phase in ENDS and phase in entered]
    return "\n".join([*lines, "```"])


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def steps(side: Side) -> str:
    rows = [
        (phase.name, event.name, row.guard.value, row.after.name, "yes" if (side, event) in DURABLE else "")
        for (at, phase, event), row in STEPS.items()
        if at is side
    ]
    return table(("from", "event", "when", "to", "recorded first"), rows)


def guests() -> str:
    rows = [
        (phase.name, *("may run" if runs(side, phase) else "stands still" for side in Side))
        for phase in Phase
    ]
    return table(("phase", "guest at the source", "guest at the target"), rows)


def records() -> str:
    return table(
        ("side", "recorded", "before"),
        [(side.value, event.name, act) for (side, event), act in DURABLE.items()],
    )


def parts() -> dict[str, str]:
    """What stands between the marks, by name."""
    return {
        "source-diagram": diagram(Side.SOURCE),
        "target-diagram": diagram(Side.TARGET),
        "events": table(("event", "meaning"), [(event.name, event.value) for event in Event]),
        "source-steps": steps(Side.SOURCE),
        "target-steps": steps(Side.TARGET),
        "guests": guests(),
        "records": records(),
    }


def printed(text: str) -> str:
    """The page with every marked part fresh. ValueError where a mark is missing."""
    for name, part in parts().items():
        begin, end = f"<!-- {name}: printed from pageferry/phases.py -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"docs/phases.md has no place for {name}")
        text = f"{before}{begin}\n{part}\n\n{end}{after}"
    return text


def main() -> int:
    PAGE.write_text(printed(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
