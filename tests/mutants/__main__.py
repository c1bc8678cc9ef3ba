# SPDX-License-Identifier: Apache-2.0
"""Breaks the pager one rule at a time, and sees whether the tests notice.

    python -m tests.mutants            each legal cell of the page machine with each other action, named.toml
    python -m tests.mutants --tenth    one variant of each cell, and named.toml
    python -m tests.mutants REGEX      those whose name matches
    python -m tests.mutants --list     names them, and what they break

Exit status 1 when a mutant survives that docs/testing.md does not list as equal, or one dies that it lists;
2 when a mutant cannot be made. The last line counts all of them, as JSON. What survived stays built in
build/mutants/made.
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from zlib import crc32

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.mutants.cells import TableChanged, variants
from tests.mutants.workshop import BUILD, NATIVE, ROOT, SIMULATION, BuildFailed, Mutant, Verdict, Workshop

NAMED = Path(__file__).parent / "named.toml"
PAGE = "docs/testing.md"
EQUAL = re.compile(r"^\| `(?P<name>[^`]+)` \| (?P<reason>.+) \|$")


class AnchorLost(Exception):
    """The text that a named mutant changes is not there, or not once."""


def of_cells(tenth: bool) -> Iterator[Mutant]:
    header = (NATIVE / "pager/page.h").read_text(encoding="utf-8")
    source = (NATIVE / "pager/page.c").read_text(encoding="utf-8")
    of_cell: dict[str, list[Mutant]] = {}
    for cell, action, changed in variants(header):
        mutant = Mutant(
            name=f"{cell.name}={action}",
            rule=f"{cell.state} meets {cell.event}, {cell.armed.lower()}: {cell.action}",
            held_by=SIMULATION,
            files={"pager/page.c": source, "pager/page.h": changed},
        )
        of_cell.setdefault(cell.name, []).append(mutant)
    for name, mutants in of_cell.items():
        yield from [mutants[crc32(name.encode()) % len(mutants)]] if tenth else mutants


def edited(name: str, path: str, edits: list[dict[str, str]]) -> str:
    text = (NATIVE / path).read_text(encoding="utf-8")
    places = []
    for edit in edits:
        found = text.count(edit["old"])
        if found != 1:
            raise AnchorLost(f"{name}: native/{path} has this {found} times, not once:\n{edit['old']}")
        places.append((text.index(edit["old"]), edit["old"], edit["new"]))
    for at, old, new in sorted(places, reverse=True):  # from the end: places before it stay what they are
        text = text[:at] + new + text[at + len(old) :]
    return text


def of_rules() -> Iterator[Mutant]:
    for entry in tomllib.loads(NAMED.read_text(encoding="utf-8"))["mutant"]:
        yield Mutant(
            name=entry["name"],
            rule=entry["rule"],
            held_by=entry.get("held_by", SIMULATION),
            files={entry["file"]: edited(entry["name"], entry["file"], entry["edit"])},
        )


def listed_as_equal() -> dict[str, str]:
    """Of docs/testing.md: the rows of its table whose first column is the name of a mutant."""
    rows = (EQUAL.match(line) for line in (ROOT / PAGE).read_text(encoding="utf-8").splitlines())
    return {row["name"]: row["reason"] for row in rows if row is not None}


def judge_all(mutants: list[Mutant], workers: int) -> dict[Mutant, Verdict]:
    console = Console(stderr=True)
    counted = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    columns = (TextColumn("mutants"), *counted, TextColumn("{task.fields[now]}"))
    programs = {mutant.held_by for mutant in mutants}
    workshop = Workshop(programs, workers)
    for program in sorted(programs):
        control = workshop.verdict(None, program)
        if control.how != "passes":
            raise BuildFailed(f"{program} fails without any mutant: {control.how} {control.text}")
    verdicts: dict[Mutant, Verdict] = {}
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        bar = progress.add_task("", total=len(mutants), now="")
        under_way = {pool.submit(workshop.verdict, mutant, mutant.held_by): mutant for mutant in mutants}
        try:
            for done in as_completed(under_way):
                verdicts[under_way[done]] = done.result()
                progress.update(bar, advance=1, now=under_way[done].name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return verdicts


def report(cell_mutants: list[Mutant], named: list[Mutant], verdicts: dict[Mutant, Verdict]) -> int:
    equal = listed_as_equal()
    for mutant in named:
        verdict = verdicts[mutant]
        print(f"{mutant.name:36} {mutant.held_by:16} {verdict.how}: {verdict.text}")
    ways = Counter((verdicts[mutant].how, verdicts[mutant].text) for mutant in cell_mutants)
    for (how, text), count in ways.most_common():
        print(f"{count:4} of the page machine's          {how}: {text}")
    alive = [mutant for mutant, verdict in verdicts.items() if not verdict.killed]
    survived = [mutant for mutant in alive if mutant.name not in equal]
    not_equal = [mutant for mutant, verdict in verdicts.items() if verdict.killed and mutant.name in equal]
    for mutant in survived:
        print(f"survived: {mutant.name} ({verdicts[mutant].how} {verdicts[mutant].text}): {mutant.rule}")
    for mutant in not_equal:
        print(f"killed, but {PAGE} lists it as equal: {mutant.name}: {verdicts[mutant].text}")
    counts = {
        "cells": len(cell_mutants),
        "named": len(named),
        "killed": len(verdicts) - len(alive),
        "equal": len(alive) - len(survived),
        "survived": len(survived),
    }
    print(f"mutants: {json.dumps(counts)}")
    return 1 if survived or not_equal else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.mutants", description="Breaks the pager rule by rule.")
    parser.add_argument("regex", nargs="?", type=re.compile, help="only those whose name matches")
    parser.add_argument("--tenth", action="store_true", help="one variant of each cell, and all named ones")
    parser.add_argument("--list", action="store_true", help="names them, and what they break")
    options = parser.parse_args()
    workers = (os.cpu_count() or 1) + 1  # most of it is waiting
    started = time.monotonic()
    try:
        groups = [list(of_cells(options.tenth)), list(of_rules())]
        if options.regex is None and not options.tenth:
            unknown = listed_as_equal().keys() - {mutant.name for group in groups for mutant in group}
            if unknown:
                raise AnchorLost(f"{PAGE} lists mutants that do not exist: {', '.join(sorted(unknown))}")
        if options.regex is not None:
            groups = [[mutant for mutant in group if options.regex.search(mutant.name)] for group in groups]
        if not any(groups):
            parser.error("no mutant has such a name")
        if options.list:
            for mutant in groups[0] + groups[1]:
                print(f"{mutant.name:36} {mutant.rule}")
            return 0
        shutil.rmtree(BUILD / "made", ignore_errors=True)
        verdicts = judge_all(groups[0] + groups[1], workers)
    except (AnchorLost, TableChanged, BuildFailed) as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    print(f"{len(verdicts)} mutants in {time.monotonic() - started:.0f} s")
    return report(groups[0], groups[1], verdicts)


if __name__ == "__main__":
    sys.exit(main())
