# SPDX-License-Identifier: Apache-2.0
"""Every transition of the model: the steps that the table offers, and what happens around them.

Three functions, each of as little of the state as it needs: the source alone, a target alone (with what it
sees of the source), and the source with one target's messages. What a side does is split as finely as a kill
can cut it: a step of the table is one transition, the act that follows from it another.
"""

from collections.abc import Iterator

from pageferry.phases import ENDS, Event, Phase, Side, runs
from tests.model.sides import (
    ACCEPTED_PHASES,
    ASKING_PHASES,
    DEAD_SOURCE,
    Guest,
    Kind,
    Life,
    Message,
    Rules,
    Source,
    Target,
    View,
    move_source,
    move_target,
)

SourceEdge = tuple[Kind, str, Source]
TargetEdge = tuple[Kind, str, Target]


# ---------------------------------------------------------------------------------------------- the source


def source_alone(rules: Rules, source: Source) -> Iterator[SourceEdge]:
    if source.life is Life.DEAD:
        return
    yield Kind.CHANCE, "source host is lost", DEAD_SOURCE
    if source.guest is not Guest.GONE:
        yield Kind.CHANCE, "source VMM dies", source._replace(guest=Guest.GONE)
    if source.life is Life.DOWN:
        yield Kind.DUTY, "page server starts again", source._replace(life=Life.UP)
        return
    died = source._replace(life=Life.DOWN, now=source.disk, saved=False)
    yield Kind.CHANCE, "page server dies", died
    yield from _source_acts(source)
    for kind, event in _source_events(rules, source):
        after = move_source(rules, source, event)
        if after is not None:
            yield kind, f"source {event.name}", after


def _source_acts(source: Source) -> Iterator[SourceEdge]:
    """What a phase has the source do."""
    phase = source.now.phase
    if source.disk != source.now:
        told = source.told and source.now.phase not in ENDS
        yield Kind.DUTY, "source records", source._replace(disk=source.now, told=told)
    if phase in ENDS and source.disk.phase is not phase:
        yield Kind.DUTY, "source tells its end", source._replace(told=True)
    if runs(Side.SOURCE, phase) and source.guest is Guest.STANDS:
        yield Kind.DUTY, "source guest runs again", source._replace(guest=Guest.RUNS)
    if phase in (Phase.RELEASED, Phase.LOST) and not source.freed:
        yield Kind.DUTY, "source frees", source._replace(freed=True, guest=Guest.GONE)


def _source_events(rules: Rules, source: Source) -> Iterator[tuple[Kind, Event]]:
    """Those that need no target, when their condition holds."""
    phase, handed_over, _ = source.now
    helpless = phase is Phase.SWITCHOVER and not source.saved  # it has restarted: what it saved is gone
    term_over = phase is Phase.CREATED  # attach_within_s
    yield (Kind.DUTY if helpless or term_over else Kind.CHANCE), Event.FAILED
    yield Kind.OPERATOR, Event.CANCELLED
    yield Kind.OPERATOR, Event.GIVEN_UP
    yield (Kind.OPERATOR if rules.hold_source else Kind.DUTY), Event.RELEASED
    if source.guest is Guest.GONE:
        yield Kind.DUTY, Event.VMM_GONE
    if source.saved and not handed_over:
        yield Kind.DUTY, Event.HANDED_OVER


# --------------------------------------------------------------------------------- the source, by messages


def source_hears(
    rules: Rules, source: Source, number: int, target: Target
) -> Iterator[tuple[Kind, str, Source, Target]]:
    """One message of this target is delivered, or an operator speaks of it."""
    if source.life is not Life.UP:
        return
    mine = source.now.bound == number
    heard = mine or not rules.bound_only
    if Message.ATTACH in target.sent:
        yield from _hears_attach(rules, source, number, target)
    if Message.HAND_OVER in target.sent and heard:
        yield from _hears_hand_over(rules, source, target)
    if (Message.ACCEPTED in target.sent or rules.faulty_target) and heard:
        yield from _hears_accepted(rules, source, target)
    if Message.ABORTED in target.sent and heard:
        aborted = move_source(rules, source, Event.ABORT_REPORTED)
        if aborted is not None:
            yield Kind.DUTY, "source ABORT_REPORTED", aborted, target
    if Message.COMMITTED in target.sent and heard:
        yield from _hears_committed(rules, source, target)
    if mine and (target.life is Life.DEAD or not rules.honest_vouch):
        forced = move_source(rules, source, Event.FORCED_BACK)
        if forced is not None:
            yield Kind.OPERATOR, "source FORCED_BACK", forced, target


def _answers(target: Target, message: Message) -> Iterator[tuple[Kind, str, Target]]:
    if message not in target.sent:
        yield Kind.DUTY, f"source answers {message.name}", target._replace(sent=target.sent | {message})


def _hears_attach(
    rules: Rules, source: Source, number: int, target: Target
) -> Iterator[tuple[Kind, str, Source, Target]]:
    if source.now.bound == number and source.now.phase not in ENDS:
        for kind, label, answered in _answers(target, Message.ATTACHED):
            yield kind, label, source, answered
    if source.now.bound == 0:
        attached = move_source(rules, source, Event.ATTACHED, bound=number)
        if attached is not None:
            yield Kind.DUTY, "source ATTACHED", attached, target


def _hears_hand_over(
    rules: Rules, source: Source, target: Target
) -> Iterator[tuple[Kind, str, Source, Target]]:
    if source.guest in (Guest.RUNS, Guest.STANDS):
        stopped = move_source(rules, source, Event.STOPPED)
        if stopped is not None:
            yield Kind.DUTY, "source STOPPED", stopped._replace(guest=Guest.STANDS, saved=True), target
    if source.now.phase is Phase.SWITCHOVER and source.now.handed_over and source.saved:
        for kind, label, answered in _answers(target, Message.STATE):
            yield kind, label, source, answered


def _hears_accepted(
    rules: Rules, source: Source, target: Target
) -> Iterator[tuple[Kind, str, Source, Target]]:
    accepted = move_source(rules, source, Event.ACCEPTED)
    if accepted is not None:
        yield Kind.DUTY, "source ACCEPTED", accepted, target
    if source.now.phase in (Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED):
        for kind, label, answered in _answers(target, Message.HEARD_ACCEPTED):
            yield kind, label, source, answered


def _hears_committed(
    rules: Rules, source: Source, target: Target
) -> Iterator[tuple[Kind, str, Source, Target]]:
    """It implies ACCEPTED. An end at LOST is an answer too: nobody waits for this report there."""
    for event in (Event.ACCEPTED, Event.COMPLETE):
        after = move_source(rules, source, event)
        if after is not None:
            yield Kind.DUTY, f"source {event.name}", after, target
    if source.now.phase in (Phase.COMMITTED, Phase.RELEASED, Phase.LOST):
        for kind, label, answered in _answers(target, Message.HEARD_COMMITTED):
            yield kind, label, source, answered


# ----------------------------------------------------------------------------------------------- a target


def target_alone(rules: Rules, target: Target, seen: View) -> Iterator[TargetEdge]:
    if target.life is Life.ABSENT:
        guest = Guest.LOADED if rules.restore else Guest.WAITS  # a restored VM has its state from a file
        yield Kind.OPERATOR, "target is started", target._replace(life=Life.UP, guest=guest)
        return
    if target.life is Life.DEAD:
        return
    yield Kind.CHANCE, "target host is lost", _lost(target)
    if target.guest is not Guest.GONE:
        yield Kind.CHANCE, "target VMM dies", target._replace(guest=Guest.GONE)
    elif {target.now.phase, target.disk.phase} <= ASKING_PHASES and not rules.restore:
        again = target._replace(guest=Guest.WAITS)
        yield Kind.OPERATOR, "target VMM is started again, under the same name", again
    if target.life is Life.DOWN:
        yield Kind.DUTY, "fault client starts again", target._replace(life=Life.UP)
        return
    yield Kind.CHANCE, "fault client dies", _died(rules, target)
    yield from _target_acts(rules, target)
    for message in _target_sends(rules, target):
        if message not in target.sent:
            yield Kind.DUTY, f"target sends {message.name}", target._replace(sent=target.sent | {message})
    for kind, event in _target_events(rules, target, seen):
        after = move_target(rules, target, event)
        if after is not None:
            yield kind, f"target {event.name}", after


def _lost(target: Target) -> Target:
    """What it has sent may still arrive."""
    return Target(Life.DEAD, guest=Guest.GONE, sent=target.sent)


def _died(rules: Rules, target: Target) -> Target:
    foreign = target.guest is Guest.LOADED and target.disk.phase not in ACCEPTED_PHASES and not rules.restore
    guest = Guest.FOREIGN if foreign else target.guest
    return target._replace(life=Life.DOWN, now=target.disk, guest=guest)


def _target_acts(rules: Rules, target: Target) -> Iterator[TargetEdge]:
    """What a phase has the target do."""
    phase = target.now.phase
    if target.disk != target.now:
        told = target.told and phase not in ENDS
        yield Kind.DUTY, "target records", target._replace(disk=target.now, told=told)
    if phase in ENDS and target.disk.phase is not phase:
        yield Kind.DUTY, "target tells its end", target._replace(told=True)
    if phase is Phase.SWITCHOVER and Message.STATE in target.sent and target.guest is Guest.WAITS:
        yield Kind.DUTY, "target loads the state", target._replace(guest=Guest.LOADED)
        yield Kind.CHANCE, "target cannot load the state", target._replace(guest=Guest.GONE)
    if runs(Side.TARGET, phase) and target.guest is Guest.LOADED:
        yield Kind.DUTY, "target guest runs", target._replace(guest=Guest.RUNS)
    if phase is Phase.ABORTED and target.guest is not Guest.GONE:
        yield Kind.DUTY, "target VMM is killed", target._replace(guest=Guest.GONE)


def _target_sends(rules: Rules, target: Target) -> Iterator[Message]:
    """Repeated until answered; a report also after the session's end, and by the next process."""
    phase, complete = target.now
    if rules.restore:
        return
    if phase in ASKING_PHASES:
        yield Message.ATTACH
    if phase is Phase.SWITCHOVER:
        yield Message.HAND_OVER
    if phase in ACCEPTED_PHASES:
        yield Message.ACCEPTED
    if phase is Phase.ABORTED:
        yield Message.ABORTED
    if complete and phase in (Phase.COMMITTED, Phase.RELEASED):
        yield Message.COMMITTED


def _target_events(rules: Rules, target: Target, seen: View) -> Iterator[tuple[Kind, Event]]:
    """Those whose condition holds; which of them may happen in this phase, the table says."""
    hopeless = seen.refuses or seen.mute or seen.dead or target.guest is Guest.FOREIGN
    yield (Kind.DUTY if hopeless else Kind.CHANCE), Event.FAILED
    yield Kind.OPERATOR, Event.CANCELLED
    yield Kind.OPERATOR, Event.GIVEN_UP
    if target.guest is Guest.GONE:
        yield Kind.DUTY, Event.VMM_GONE
    elif rules.restore or seen.serves:
        yield Kind.DUTY, Event.COMPLETE
    if rules.restore:
        yield Kind.DUTY, Event.ARMED
    elif Message.ATTACHED in target.sent:
        yield Kind.DUTY, Event.ATTACHED
    yield Kind.DUTY, Event.STOPPED
    if target.now.phase is Phase.SWITCHOVER and target.guest is Guest.LOADED:
        yield Kind.DUTY, Event.ACCEPTED
    if rules.restore or Message.HEARD_COMMITTED in target.sent:
        yield Kind.DUTY, Event.DETACHED
    elif seen.dead:
        yield Kind.OPERATOR, Event.DETACHED
