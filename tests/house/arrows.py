# SPDX-License-Identifier: Apache-2.0
"""The arrow table of docs/design.md as data: which folder may know which, and where only through one file.

A row reads `folder, folder | what they may include or import`. On the right stand names with commas between;
"of kernel only `kernel_ops.h`" narrows a folder to a file, "from `service/native.py` alone" narrows who may,
and brackets are remarks.
"""

import re
from dataclasses import dataclass

from tests.house.tracked import text_of

HEAD = "| folder | may include / import |"


@dataclass(frozen=True)
class Arrow:
    source: str
    target: str  # a folder, or a file of it
    only_from: str | None = None  # a file of the source


def arrows() -> dict[str, list[Arrow]]:
    """By folder, as a path from the root; a row of a folder that may know nothing has an empty list."""
    lines = iter(text_of("docs/design.md").splitlines())
    if HEAD not in lines:
        raise ValueError(f"docs/design.md has no table that begins {HEAD}")
    next(lines)
    table: dict[str, list[Arrow]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        left, right = (cell.strip().replace("`", "") for cell in line.strip("|").split("|"))
        for source in names(left):
            table[source] = list(parsed(source, right))
    return table


def names(cell: str) -> list[str]:
    return [name.strip() for name in cell.split(",")]


def parsed(source: str, cell: str) -> list[Arrow]:
    cell = re.sub(r"\(.*?\)", "", cell)
    if cell.strip() == "nothing of ours":
        return []
    alone = re.search(r", from (\S+) alone", cell)
    cell = re.sub(r", from \S+ alone", "", cell)
    targets = []
    for name in names(cell):
        narrowed = re.fullmatch(r"and of (\w+) only (\S+)", name)
        targets.append("/".join(narrowed.groups()) if narrowed else name)
    floor = source.split("/")[0] + "/" if source.startswith("native/") else ""
    return [
        Arrow(source, target if target.startswith("native/") else floor + target, alone[1] if alone else None)
        for target in targets
    ]
