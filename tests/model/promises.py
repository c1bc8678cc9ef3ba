# SPDX-License-Identifier: Apache-2.0
"""What must never be, what an end can always do, and what counts as an end.

A promise to operators is asked of each end in every condition in which it was met alive.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from pageferry.phases import ENDS, Event, Phase, Side, runs
from tests.model.sides import (
    ACCEPTED_PHASES,
    ASKING_PHASES,
    Guest,
    Life,
    Message,
    Rules,
    Source,
    Target,
    move_source,
    move_target,
)
from tests.model.world import NUMBERS, Parts, World

BEHIND_THE_LINE: Final = frozenset({Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED, Phase.LOST})

# ----------------------------------------------------------------------------------------------- never


def wrong_at_source(source: Source) -> str | None:
    if source.life is Life.DEAD:
        return None
    if source.guest is Guest.RUNS and not runs(Side.SOURCE, source.disk.phase):
        return "the guest runs at the source, and no record lets it"
    if source.freed and source.disk.phase not in (Phase.RELEASED, Phase.LOST):
        return "memory is freed without a record"
    if source.now.phase in BEHIND_THE_LINE and not source.disk.handed_over:
        return "the source holds the guest for given away, and has not handed over"
    if source.told and source.life is Life.UP and source.now.phase not in ENDS:
        return "the source has told an end, and forgotten it"
    return None


def wrong_at_target(target: Target) -> str | None:
    if target.life is Life.DEAD:
        return None
    disk = target.disk.phase
    if target.guest is Guest.RUNS and not runs(Side.TARGET, disk):
        return "the guest runs at the target, and no record lets it"
    if Message.ABORTED in target.sent and disk is not Phase.ABORTED:
        return "the target has reported ABORTED, and its record lets it go on"
    if Message.ACCEPTED in target.sent and disk not in ACCEPTED_PHASES:
        return "the target has reported that the guest runs there, and no record says so"
    if Message.COMMITTED in target.sent and not target.disk.complete:
        return "the target has reported COMMITTED, and no record says so"
    if target.told and target.life is Life.UP and target.now.phase not in ENDS:
        return "the target has told an end, and forgotten it"
    return None


def wrong_between(source: Source, target: Target) -> str | None:
    """Of the source and one target."""
    if source.life is Life.DEAD:
        return None
    disk = source.disk.phase
    if Message.HEARD_ACCEPTED in target.sent and disk not in BEHIND_THE_LINE:
        return "the source has answered that the guest runs there, and its record does not know"
    if Message.HEARD_COMMITTED in target.sent and disk not in BEHIND_THE_LINE - {Phase.POSTCOPY}:
        return "the source has answered COMMITTED, and its record does not know"
    if target.life is Life.DEAD:
        return None
    accepted = {target.now.phase, target.disk.phase} & ACCEPTED_PHASES
    if accepted and disk is Phase.ABORTED:
        return "the source has taken the guest back, and the target has accepted it"
    needs = Phase.POSTCOPY in (target.now.phase, target.disk.phase) and target.guest is not Guest.GONE
    if needs and source.freed and disk is not Phase.LOST:
        return "memory is freed, and the target needs it"
    if runs(Side.SOURCE, disk) and runs(Side.TARGET, target.disk.phase):
        return "two records let the guest run"
    return None


# ---------------------------------------------------------------------------------------- can always


class SourcePromise(NamedTuple):
    text: str
    event: Event
    when: Callable[[Source], bool]
    after: Phase


class TargetPromise(NamedTuple):
    text: str
    event: Event
    when: Callable[[Target], bool]
    after: Phase


def _undecided(source: Source) -> bool:
    return source.now.phase in ASKING_PHASES and not source.now.handed_over


def _given_away(source: Source) -> bool:
    """Handed over, and not all is there."""
    return source.now.handed_over and source.now.phase in (Phase.SWITCHOVER, Phase.POSTCOPY)


SOURCE_PROMISES: Final = (
    SourcePromise("cancelled before the hand-over", Event.CANCELLED, _undecided, Phase.ABORTED),
    SourcePromise("any error before the hand-over", Event.FAILED, _undecided, Phase.ABORTED),
    SourcePromise(
        "the VMM's end before the hand-over",
        Event.VMM_GONE,
        lambda source: _undecided(source) and source.guest is Guest.GONE,
        Phase.ABORTED,
    ),
    SourcePromise(
        "forced back until the target's report is heard",
        Event.FORCED_BACK,
        lambda source: _given_away(source) and source.now.phase is Phase.SWITCHOVER,
        Phase.ABORTED,
    ),
    SourcePromise("given up after the hand-over", Event.GIVEN_UP, _given_away, Phase.LOST),
    SourcePromise(
        "released when all is there",
        Event.RELEASED,
        lambda source: source.now.phase is Phase.COMMITTED,
        Phase.RELEASED,
    ),
)
TARGET_PROMISES: Final = (
    TargetPromise(
        "cancelled before it has accepted",
        Event.CANCELLED,
        lambda target: target.now.phase in ASKING_PHASES,
        Phase.ABORTED,
    ),
    TargetPromise(
        "any error before it has accepted",
        Event.FAILED,
        lambda target: target.now.phase in ASKING_PHASES,
        Phase.ABORTED,
    ),
    TargetPromise(
        "the VMM's end before it has accepted",
        Event.VMM_GONE,
        lambda target: target.now.phase in ASKING_PHASES and target.guest is Guest.GONE,
        Phase.ABORTED,
    ),
    TargetPromise(
        "the VMM's end after it has accepted",
        Event.VMM_GONE,
        lambda target: target.now.phase in (Phase.POSTCOPY, Phase.COMMITTED) and target.guest is Guest.GONE,
        Phase.RELEASED,
    ),
    TargetPromise(
        "given up with pages missing",
        Event.GIVEN_UP,
        lambda target: target.now.phase is Phase.POSTCOPY,
        Phase.LOST,
    ),
)
# An operator's word with force has no effect while the source can still decide alone.
FORCED: Final = (Event.FORCED_BACK, Event.GIVEN_UP)


def broken_promise(world: World) -> str | None:
    """Of all conditions in which an end was met while its process was alive."""
    rules = world.rules
    for source in world.sources:
        if source.life is not Life.UP:
            continue
        for promise in SOURCE_PROMISES:
            moved = move_source(rules, source, promise.event)
            if promise.when(source) and (moved is None or moved.now.phase is not promise.after):
                return f"source in {source.now.phase.name}: {promise.text}: cannot"
        if _undecided(source) and any(move_source(rules, source, event) for event in FORCED):
            return f"source in {source.now.phase.name}: force has an effect before the hand-over"
    for target in world.targets:
        if target.life is not Life.UP:
            continue
        for held in TARGET_PROMISES:
            after = move_target(rules, target, held.event)
            if held.when(target) and (after is None or after.now.phase is not held.after):
                return f"target in {target.now.phase.name}: {held.text}: cannot"
    return None


# ------------------------------------------------------------------------------------------------- ends


def _over(side: Source | Target) -> bool:
    return side.life in (Life.DEAD, Life.ABSENT) or side.now.phase in ENDS


def all_ended(parts: Parts) -> bool:
    return all(_over(side) for side in parts)


def operators_turn(rules: Rules, parts: Parts) -> bool:
    """Where the documents say that an operator must decide: somebody is gone for good, or memory is."""
    source, *targets = parts
    if rules.restore:
        return False
    dead, lost = source.life is Life.DEAD, source.now.phase is Phase.LOST
    for number, target in zip(NUMBERS, targets, strict=True):
        bound = source.now.bound == number
        if target.now.phase is Phase.POSTCOPY and (dead or lost):
            return True
        if target.now.phase is Phase.COMMITTED and dead:
            return True
        if bound and not _over(source):
            ended_there = target.now.phase is Phase.RELEASED and not target.now.complete
            if target.life is Life.DEAD or target.now.phase is Phase.LOST or ended_there:
                return True
    return rules.hold_source and source.now.phase is Phase.COMMITTED


def all_released(parts: Parts) -> bool:
    source, first, second = parts
    ends = [side for side in (source, first, second) if side.life not in (Life.DEAD, Life.ABSENT)]
    return bool(ends) and all(side.now.phase is Phase.RELEASED for side in ends)
