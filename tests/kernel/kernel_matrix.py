# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix (matrix/matrix.h): its program, what the kernel has answered, and docs/kernel-matrix.md.

python -m tests.kernel.kernel_matrix --write        prints the page anew, of what this kernel answers
"""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Final

from tests.support.build import ROOT, compiled
from tests.support.settings import SHMEM_ENABLED, Settings

SOURCES: Final = Path(__file__).with_name("matrix")
PAGE: Final = ROOT / "docs/kernel-matrix.md"
# What one cell has at most, twice over: pages of a file, private copies of them, a child's.
HUGE_PAGES: Final = 16
COLUMNS: Final = "| asked | kinds | answer | rests on it | selftest |\n|---|---|---|---|---|\n"
HEAD = """\
<!-- printed by tests/kernel/kernel_matrix.py; do not edit: python -m tests.kernel.kernel_matrix --write -->

# What the kernel answers

What our rules rest on, asked of the kernel itself on each kind of memory. Every answer here was given by it,
and is expected by a line of `tests/kernel/matrix`; `tests/kernel/test_matrix.py` asks again, row by row, and
compares this page.

An answer names in order what was met: a kind of page fault (*none*: the access went through, or has ended),
what a call returned, what was read: *zeros*, *data* (of the file, or put there first), *copy* (what
UFFDIO_COPY has put there), *write* (what was written through the mapping). *no cache*, *no file*: it cannot
be asked of that kind. The last column names the kernel's own test of the same, of its `uffd-unit-tests`.

| kind | memory |
|---|---|
| anon | private anonymous |
| memfd | a memfd, mapped shared |
| tmpfs | a file on tmpfs, mapped shared |
| memfd-private | a memfd, mapped private |
| huge-shared | a memfd of 2 MiB pages of a pool, mapped shared |
| huge-anon | private anonymous, of 2 MiB pages of a pool |
| huge-private | a memfd of 2 MiB pages of a pool, mapped private |
"""


@dataclass(frozen=True)
class Row:
    section: str
    name: str
    asks: str
    rule: str
    selftest: str


@dataclass(frozen=True)
class Cell:
    kind: str
    expected: str
    answered: str

    @property
    def right(self) -> bool:
        return self.answered in self.expected.split(" or ")


@cache
def program() -> Path:
    files = sorted(SOURCES.glob("*.c"))
    headers = [SOURCES / "matrix.h", ROOT / "native/kernel/uapi.h"]
    include = f"-I{ROOT / 'native'}"
    return compiled("kernel_matrix", [str(file) for file in files], [str(file) for file in headers], include)


def said(*arguments: str) -> list[list[str]]:
    """Lines of the program, by fields. It ends with 1 where an answer was not expected, which callers see."""
    ran = subprocess.run([program(), *arguments], stdout=subprocess.PIPE, text=True)
    assert ran.returncode in (0, 1), f"{arguments}: exit status {ran.returncode}"
    return [line.split("\t") for line in ran.stdout.splitlines()]


@cache
def rows() -> list[Row]:
    return [Row(*fields) for fields in said("list")]


@cache
def answers(row: str) -> list[Cell]:
    return [Cell(*fields) for fields in said("run", row)]


def alike(cells: list[Cell]) -> list[tuple[str, str]]:
    """Kinds that answer alike, and what: one line if all do, or if it has nothing to do with a kind."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        found.setdefault(cell.answered, []).append(cell.kind)
    return [("all" if len(found) == 1 else ", ".join(kinds), answer) for answer, kinds in found.items()]


def page() -> str:
    """Asks whatever has not been asked yet."""
    release = ".".join(platform.release().split(".")[:2])
    parts = [HEAD, f"\nAnswered by Linux {release}, {platform.machine()}.\n"]
    for section, group in groupby(rows(), key=lambda row: row.section):
        parts.append(f"\n## {section}\n\n{COLUMNS}")
        for row in group:
            left, right = row.asks, f"{row.rule} | {row.selftest}"
            for kinds, answer in alike(answers(row.name)):
                parts.append(f"| {left} | {kinds} | {answer} | {right} |\n")
                left, right = "", " | "
    return "".join(parts)


@contextmanager
def machine() -> Iterator[None]:
    """Huge pages in the pool, and none that the kernel makes by itself in files."""
    with Settings() as settings:
        settings.add_huge_pages(HUGE_PAGES)
        settings.write(SHMEM_ENABLED, "never")
        yield


def main() -> int:
    if sys.argv[1:] != ["--write"]:
        print(__doc__, file=sys.stderr)
        return 64
    with machine():
        text = page()
    wrong = [f"{row.name} {cell}" for row in rows() for cell in answers(row.name) if not cell.right]
    for line in wrong:
        print(line, file=sys.stderr)
    PAGE.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
