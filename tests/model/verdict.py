# SPDX-License-Identifier: Apache-2.0
"""Rules in, a verdict out: is anything wrong in a state that can be reached, and does each lead to an end?

Safety is asked of every state; each question is of as little of a state as it needs, so its answer is kept.
Ends are asked for from every state after a healing: both processes alive again, every message under way lost.
"""

from dataclasses import dataclass
from enum import Enum

from tests.model.promises import (
    all_ended,
    all_released,
    broken_promise,
    operators_turn,
    wrong_at_source,
    wrong_at_target,
    wrong_between,
)
from tests.model.sides import Guest, Kind, Rules
from tests.model.world import Walk, World, cannot_reach, unpacked


class Judge:
    """The first wrong thing in a state, if there is one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._source: dict[int, str | None] = {}
        self._target: dict[int, str | None] = {}
        self._between: dict[tuple[int, int], str | None] = {}
        self.found: str | None = None

    def __call__(self, state: int) -> bool:
        source, first, second = unpacked(state)
        self.found = self._runners(state) or self._at_source(source)
        for target in (first, second):
            self.found = self.found or self._at_target(target) or self._pair(source, target)
        return self.found is not None

    def two_run(self, state: int) -> bool:
        """Asks this one question alone."""
        self.found = self._runners(state)
        return self.found is not None

    def _runners(self, state: int) -> str | None:
        source, first, second = self._world.parts(state)
        running = (source.guest is Guest.RUNS) + (first.guest is Guest.RUNS) + (second.guest is Guest.RUNS)
        return "two guests run" if running > 1 else None

    def _at_source(self, source: int) -> str | None:
        if source not in self._source:
            self._source[source] = wrong_at_source(self._world.sources[source])
        return self._source[source]

    def _at_target(self, target: int) -> str | None:
        if target not in self._target:
            self._target[target] = wrong_at_target(self._world.targets[target])
        return self._target[target]

    def _pair(self, source: int, target: int) -> str | None:
        key = (source, target)
        if key not in self._between:
            self._between[key] = wrong_between(self._world.sources[source], self._world.targets[target])
        return self._between[key]


class Ask(Enum):
    """How much is asked of a set of rules."""

    RUNNERS = "that never two guests run"
    SAFETY = "all that must never be"
    ALL = "safety, the promises, and that an end can be reached"


@dataclass(frozen=True)
class Verdict:
    wrong: str | None
    story: tuple[str, ...]  # the shortest way there, where there is one
    states: int
    transitions: int


def judged(rules: Rules, ask: Ask = Ask.ALL) -> Verdict:
    """Walks everything that these rules let happen."""
    world = World(rules)
    judge = Judge(world)
    walk = Walk(world, [world.start()], Kind.OPERATOR)
    bad = walk.go(judge.two_run if ask is Ask.RUNNERS else judge)
    wrong = judge.found
    if wrong is None and ask is Ask.ALL:
        wrong = broken_promise(world)
        if wrong is None:
            wrong, bad = _without_end(world, walk)
    story = () if bad is None else tuple(walk.story(bad))
    return Verdict(wrong, story, len(walk.came_from), walk.transitions)


def _without_end(world: World, walk: Walk) -> tuple[str | None, int | None]:
    """By duty alone, but where the documents say that it is an operator's turn; with an operator, always."""
    rules, parts = world.rules, world.parts
    duty = Kind.OPERATOR if rules.hold_source else Kind.DUTY
    stuck = cannot_reach(world, [world.start()], duty, lambda state: all_released(parts(state)))
    if stuck is not None:
        return "it cannot go well", stuck
    healed = {world.healed(state): state for state in walk.came_from}

    def ended(state: int) -> bool:
        return all_ended(parts(state))

    def ended_or_asks(state: int) -> bool:
        return ended(state) or operators_turn(rules, parts(state))

    stuck = cannot_reach(world, healed, Kind.DUTY, ended_or_asks)
    if stuck is not None:
        return "no end can be reached, both ends alive and connected", healed[stuck]
    stuck = cannot_reach(world, healed, Kind.OPERATOR, ended)
    if stuck is not None:
        return "no end can be reached, even with an operator", healed[stuck]
    return None, None
