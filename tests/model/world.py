# SPDX-License-Identifier: Apache-2.0
"""The state space: every state that can be reached, walked breadth first, each once.

A state is one whole number made of three: the source's, and one for each target. What a transition depends on
is less than a state, so each is worked out once for the part it needs and looked up from then on. The two
targets are alike: of a state and its mirror image one stands for both.
"""

from collections.abc import Callable, Iterable, Iterator

from tests.model.sides import (
    Kind,
    Rules,
    Source,
    Target,
    View,
    healed_source,
    healed_target,
    started,
    view,
)
from tests.model.transitions import source_alone, source_hears, target_alone

BITS = 20
MASK = (1 << BITS) - 1
NUMBERS = (1, 2)

Edge = tuple[Kind, str, int]
Parts = tuple[Source, Target, Target]


class World:
    """Of one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.sources: list[Source] = []
        self.targets: list[Target] = []
        self._source_index: dict[Source, int] = {}
        self._target_index: dict[Target, int] = {}
        self._mirrored: dict[int, int] = {}
        self._views: dict[tuple[int, int], View] = {}
        self._alone: dict[int, list[Edge]] = {}
        self._target_alone: dict[tuple[int, View], list[Edge]] = {}
        self._hears: dict[tuple[int, int, int], list[tuple[Kind, str, int, int]]] = {}
        self._healed: dict[int, int] = {}

    # ---------------------------------------------------------------------------------------------- numbers

    def source(self, source: Source) -> int:
        if source not in self._source_index:
            self._source_index[source] = len(self.sources)
            self.sources.append(source)
        return self._source_index[source]

    def target(self, target: Target) -> int:
        if target not in self._target_index:
            self._target_index[target] = len(self.targets)
            self.targets.append(target)
        return self._target_index[target]

    def state(self, source: int, first: int, second: int) -> int:
        if first > second:
            source, first, second = self._mirror(source), second, first
        elif first == second:
            source = min(source, self._mirror(source))
        return (source << BITS | first) << BITS | second

    def parts(self, state: int) -> Parts:
        source, first, second = unpacked(state)
        return self.sources[source], self.targets[first], self.targets[second]

    def _mirror(self, source: int) -> int:
        if source not in self._mirrored:
            here = self.sources[source]
            swap = (0, 2, 1)
            self._mirrored[source] = self.source(
                here._replace(
                    now=here.now._replace(bound=swap[here.now.bound]),
                    disk=here.disk._replace(bound=swap[here.disk.bound]),
                )
            )
        return self._mirrored[source]

    def start(self) -> int:
        source, first, second = started(self.rules)
        return self.state(self.source(source), self.target(first), self.target(second))

    def healed(self, state: int) -> int:
        """Its ends alive again, nothing under way."""
        if state not in self._healed:
            source, first, second = self.parts(state)
            self._healed[state] = self.state(
                self.source(healed_source(source)),
                self.target(healed_target(first)),
                self.target(healed_target(second)),
            )
        return self._healed[state]

    # ------------------------------------------------------------------------------------------ transitions

    def edges(self, state: int) -> Iterator[Edge]:
        source, first, second = unpacked(state)
        for kind, label, after in self.source_edges(source):
            yield kind, label, self.state(after, first, second)
        for number, target in zip(NUMBERS, (first, second), strict=True):
            for kind, label, after in self.target_edges(source, number, target):
                yield kind, label, self._beside(source, number, after, first, second)
            for kind, label, other, after in self._hearings(source, number, target):
                yield kind, label, self._beside(other, number, after, first, second)

    def _beside(self, source: int, number: int, after: int, first: int, second: int) -> int:
        return self.state(source, after, second) if number == 1 else self.state(source, first, after)

    def source_edges(self, source: int) -> list[Edge]:
        if source not in self._alone:
            edges = source_alone(self.rules, self.sources[source])
            self._alone[source] = [(kind, label, self.source(after)) for kind, label, after in edges]
        return self._alone[source]

    def target_edges(self, source: int, number: int, target: int) -> list[Edge]:
        seen = self._views.get((source, number))
        if seen is None:
            seen = self._views[source, number] = view(self.rules, self.sources[source], number)
        if (target, seen) not in self._target_alone:
            edges = target_alone(self.rules, self.targets[target], seen)
            self._target_alone[target, seen] = [
                (kind, label, self.target(after)) for kind, label, after in edges
            ]
        return self._target_alone[target, seen]

    def _hearings(self, source: int, number: int, target: int) -> list[tuple[Kind, str, int, int]]:
        key = (source, number, target)
        if key not in self._hears:
            edges = source_hears(self.rules, self.sources[source], number, self.targets[target])
            self._hears[key] = [
                (kind, label, self.source(heard), self.target(after)) for kind, label, heard, after in edges
            ]
        return self._hears[key]


def unpacked(state: int) -> tuple[int, int, int]:
    return state >> 2 * BITS, state >> BITS & MASK, state & MASK


class Walk:
    """All states to be reached by transitions of these kinds, and from which each was reached first."""

    def __init__(self, world: World, starts: Iterable[int], most: Kind) -> None:
        self.world = world
        self.most = most
        self.came_from: dict[int, int | None] = dict.fromkeys(starts)
        self.transitions = 0

    def go(self, visit: Callable[[int], bool] = lambda _: False) -> int | None:
        """Walks until visit() says stop, and returns that state; None when all have been visited."""
        layer = list(self.came_from)
        for state in layer:
            if visit(state):
                return state
        edges, most, came_from = self.world.edges, self.most, self.came_from
        while layer:
            ahead: list[int] = []
            for state in layer:
                for kind, _, after in edges(state):
                    if kind > most:
                        continue
                    self.transitions += 1
                    if after not in came_from:
                        came_from[after] = state
                        if visit(after):
                            return after
                        ahead.append(after)
            layer = ahead
        return None

    def story(self, state: int) -> list[str]:
        """What happened on the shortest way to a state."""
        labels: list[str] = []
        at: int | None = state
        while at is not None and (before := self.came_from[at]) is not None:
            labels.append(next(label for _, label, after in self.world.edges(before) if after == at))
            at = before
        return labels[::-1]


def cannot_reach(world: World, starts: Iterable[int], most: Kind, goal: Callable[[int], bool]) -> int | None:
    """A start from which no way of these transitions leads to a goal. None: from each one does.

    Depth first, up to a state that is known to lead on: so most starts cost a few steps, and one that leads
    nowhere costs all that it can reach.
    """
    good: set[int] = set()
    for start in starts:
        came_from: dict[int, int | None] = {start: None}
        waiting = [start]
        while waiting:
            state = waiting.pop()
            if state in good or goal(state):
                at: int | None = state
                while at is not None:
                    good.add(at)
                    at = came_from[at]
                break
            for kind, _, after in world.edges(state):
                if kind <= most and after not in came_from:
                    came_from[after] = state
                    waiting.append(after)
        else:
            return start
    return None
