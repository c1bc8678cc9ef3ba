# SPDX-License-Identifier: Apache-2.0
"""The model's tests of itself: the same walk with one rule taken away, and what it finds then.

Each row of the table is removed, each guard replaced by "always", each record moved behind the act that it
comes before, and each rule that stands beside the table dropped. What nothing finds would be a rule that
nobody needs, or a promise that nobody has written down.

    python -m tests.model.mutants          each mutant, and how it is found
    python -m tests.model.mutants WORD     with the shortest story, those whose name has the word
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from pageferry.phases import DURABLE, STEPS, Event, Guard, Phase, Row, Side
from tests.model.sides import Rules
from tests.model.verdict import Ask, Verdict, judged

ONE_TARGET: Final = Rules(targets=1)
TWO_TARGETS: Final = Rules()
RESTORE: Final = Rules(targets=1, restore=True)
HELD: Final = Rules(targets=1, hold_source=True)
FAULTY: Final = Rules(targets=1, faulty_target=True)


@dataclass(frozen=True)
class Run:
    """Rules, and what is asked of them. Of a move with a faulty target only safety can be asked."""

    rules: Rules
    ask: Ask = Ask.ALL


GOOD: Final = {
    "a move": Run(ONE_TARGET),
    "a move, a second target with the same token": Run(TWO_TARGETS),
    "a move, the source held until an operator releases it": Run(HELD),
    "a move, a target that reports what it has not": Run(FAULTY, Ask.SAFETY),
    "a lazy restore": Run(RESTORE),
}


@dataclass(frozen=True, eq=False)
class Mutant:
    """Rules with one thing changed, in each of the runs in which it could be found: the small ones first."""

    kind: str
    name: str
    runs: tuple[Run, ...]


def _row_name(key: tuple[Side, Phase, Event]) -> str:
    side, phase, event = key
    return f"{side.value} {phase.name} {event.name}"


def rows() -> Iterable[Mutant]:
    for key in STEPS:
        steps = {other: row for other, row in STEPS.items() if other != key}
        runs = tuple(Run(replace(rules, steps=steps)) for rules in (ONE_TARGET, RESTORE))
        yield Mutant("row", f"without {_row_name(key)}", runs)


def guards() -> Iterable[Mutant]:
    for key, row in STEPS.items():
        if row.guard is not Guard.ALWAYS:
            steps = {**STEPS, key: Row(row.after)}
            faulty = Run(replace(FAULTY, steps=steps), Ask.SAFETY)
            yield Mutant("guard", f"{_row_name(key)} always", (Run(replace(ONE_TARGET, steps=steps)), faulty))


def records() -> Iterable[Mutant]:
    for side, event in DURABLE:
        durable = frozenset(DURABLE) - {(side, event)}
        runs = tuple(Run(replace(rules, durable=durable)) for rules in (ONE_TARGET, RESTORE))
        yield Mutant("record", f"{side.value} {event.name} recorded behind its act", runs)


def beside() -> Iterable[Mutant]:
    """Rules that the table cannot have. Of these the worst is asked: that two guests run."""
    unbound = replace(TWO_TARGETS, bound_only=False)
    yield Mutant("beside", "HandOver and reports of any target count", (Run(unbound, Ask.RUNNERS),))
    vouched = replace(ONE_TARGET, honest_vouch=False)
    yield Mutant("beside", "an operator vouches for a target that lives", (Run(vouched, Ask.RUNNERS),))


MUTANTS: Final = (*rows(), *guards(), *records(), *beside())


@cache
def good(name: str) -> Verdict:
    run = GOOD[name]
    return judged(run.rules, run.ask)


@cache
def found(mutant: Mutant) -> Verdict | None:
    """The first thing that is wrong with it, in any of its runs."""
    verdicts = (_judged(run) for run in mutant.runs)
    return next((verdict for verdict in verdicts if verdict.wrong is not None), None)


def _judged(run: Run) -> Verdict:
    return judged(run.rules, run.ask)


def summary() -> str:
    """The line that a run of the suite prints."""
    walked = [good(name) for name in GOOD]
    states, transitions = sum(one.states for one in walked), sum(one.transitions for one in walked)
    counts = []
    for kind, words in (
        ("row", "rows removed"),
        ("guard", "guards removed"),
        ("record", "records moved"),
        ("beside", "rules beside the table dropped"),
    ):
        mutants = [mutant for mutant in MUTANTS if mutant.kind == kind]
        counts.append(f"{words} {len(mutants)} caught {sum(found(mutant) is not None for mutant in mutants)}")
    return f"model: states {states}, transitions {transitions}, " + ", ".join(counts)


def main(words: list[str]) -> int:
    for mutant in MUTANTS:
        if not all(word in mutant.name for word in words):
            continue
        verdict = found(mutant)
        print(f"{mutant.kind:<7} {mutant.name:<58} {verdict.wrong if verdict else 'NOT FOUND'}")
        for label in verdict.story if verdict and words else ():
            print(f"            {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
