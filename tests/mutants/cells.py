# SPDX-License-Identifier: Apache-2.0
"""The table of native/pager/page.h, and its variants: one legal cell, another action.

The next state stays as it is: the simulation compares that with its reference; a mutant of it tells nothing.
What an action does is seen only by what becomes of the page.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

BLOCK = re.compile(r"(?m)^#define (PAGE_\w+)\(X\) \\\n((?:    X\(.*\) \\\n)*    X\(.*\)\n)")
STEP = re.compile(r"^X\((\w+), (\w+), (UNARMED|ARMED|ANY), (\w+), (\w+)\)$")
NAME = re.compile(r"^X\((\w+), \".*\"\)$")


class TableChanged(Exception):
    """page.h is not written as this file reads it."""


@dataclass(frozen=True)
class Cell:
    state: str
    event: str
    armed: str
    action: str
    next: str

    @property
    def name(self) -> str:
        return f"{self.state}-{self.event}-{self.armed}"

    @property
    def legal(self) -> bool:
        return self.action != "ILLEGAL"


def rows(header: str, block: str) -> list[str]:
    found = [lines for name, lines in BLOCK.findall(header) if name == block]
    if len(found) != 1:
        raise TableChanged(f"page.h: {block} is found {len(found)} times")
    return [line.strip().removesuffix("\\").strip() for line in found[0].splitlines()]


def cells(header: str) -> list[Cell]:
    """Every cell that the table names; one row of both columns makes two."""
    found = []
    for row in rows(header, "PAGE_STEPS"):
        match = STEP.match(row)
        if match is None:
            raise TableChanged(f"page.h: PAGE_STEPS has a row that cannot be read: {row}")
        state, event, column, action, then = match.groups()
        for armed in ("UNARMED", "ARMED") if column == "ANY" else (column,):
            found.append(Cell(state, event, armed, action, then))
    return found


def actions(header: str) -> list[str]:
    found = []
    for row in rows(header, "PAGE_ACTIONS"):
        match = NAME.match(row)
        if match is None:
            raise TableChanged(f"page.h: PAGE_ACTIONS has a row that cannot be read: {row}")
        found.append(match[1])
    return found


def rewritten(header: str, table: list[Cell]) -> str:
    steps = " \\\n".join(f"    X({c.state}, {c.event}, {c.armed}, {c.action}, {c.next})" for c in table)
    return BLOCK.sub(
        lambda match: f"#define PAGE_STEPS(X) \\\n{steps}\n" if match[1] == "PAGE_STEPS" else match[0], header
    )


def variants(header: str) -> Iterator[tuple[Cell, str, str]]:
    """For every legal cell and other action: the cell, the action, and the header that says so."""
    table = cells(header)
    every = actions(header)
    for at, cell in enumerate(table):
        for action in every:
            if cell.legal and action != cell.action:
                changed = [*table[:at], replace(cell, action=action), *table[at + 1 :]]
                yield cell, action, rewritten(header, changed)
