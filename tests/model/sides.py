# SPDX-License-Identifier: Apache-2.0
"""What the two ends of a move are made of in the model, and the rules that a run of it goes by.

Each end is a process that may die at any time, its VM, its record on disk, and what it knows in memory.
Messages are those that were ever sent about a target: each may be delivered at any later time, again, or
never, in any order. So loss, delay, duplication and reordering need no states of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum, unique
from typing import Final, NamedTuple

from pageferry.phases import DURABLE, ENDS, STEPS, Event, Phase, Row, Side

ACCEPTED_PHASES: Final = frozenset({Phase.POSTCOPY, Phase.COMMITTED, Phase.RELEASED, Phase.LOST})
ASKING_PHASES: Final = frozenset({Phase.CREATED, Phase.PRECOPY, Phase.SWITCHOVER})


class Life(IntEnum):
    """Of the process that keeps a side's session: page server, fault client."""

    ABSENT = 0  # nobody has started it
    UP = 1
    DOWN = 2  # died; starts again from its record
    DEAD = 3  # its host is gone for good, with the guest


class Guest(IntEnum):
    """Of the VMM at a side."""

    WAITS = 0  # target: in -incoming
    LOADED = 1  # target: has the state; stands still
    FOREIGN = 2  # target: has a state that this process has not loaded
    STANDS = 3  # source: stopped
    RUNS = 4
    GONE = 5


@unique
class Message(Enum):
    ATTACH = "target: FetchPages opens with the session's metadata"
    ATTACHED = "source: it does"
    HAND_OVER = "target: HandOver"
    STATE = "source: the message with `last`"
    ACCEPTED = "target: RecordPhase(POSTCOPY)"
    HEARD_ACCEPTED = "source: answers RecordPhase(POSTCOPY)"
    ABORTED = "target: RecordPhase(ABORTED)"
    COMMITTED = "target: RecordPhase(COMMITTED)"
    HEARD_COMMITTED = "source: answers RecordPhase(COMMITTED)"


class Kind(IntEnum):
    """Why a transition happens: what must lead to an end by itself is made of DUTY alone."""

    DUTY = 0
    CHANCE = 1
    OPERATOR = 2


class SourceRecord(NamedTuple):
    phase: Phase = Phase.CREATED
    handed_over: bool = False
    bound: int = 0  # the target that attached first; 0: none


class Source(NamedTuple):
    life: Life = Life.UP
    now: SourceRecord = SourceRecord()
    disk: SourceRecord = SourceRecord()
    guest: Guest = Guest.RUNS
    saved: bool = False  # in memory: device state and frozen map
    freed: bool = False
    told: bool = False  # somebody was told of an end that is not on disk


class TargetRecord(NamedTuple):
    phase: Phase = Phase.CREATED
    complete: bool = False


class Target(NamedTuple):
    life: Life = Life.ABSENT
    now: TargetRecord = TargetRecord()
    disk: TargetRecord = TargetRecord()
    guest: Guest = Guest.WAITS
    told: bool = False
    sent: frozenset[Message] = frozenset()


class View(NamedTuple):
    """All that a target can find out about the source without a message that is in the model."""

    serves: bool  # pages are to be had
    refuses: bool  # another target is bound, or the session has ended
    mute: bool  # handed over before it restarted: it has no state left to send
    dead: bool


DEAD_SOURCE: Final = Source(Life.DEAD, guest=Guest.GONE)


@dataclass(frozen=True)
class Rules:
    """The table and what stands beside it. A mutant is this with one thing changed."""

    steps: Mapping[tuple[Side, Phase, Event], Row] = field(default_factory=lambda: STEPS)
    durable: frozenset[tuple[Side, Event]] = frozenset(DURABLE)
    targets: int = 2
    restore: bool = False  # a lazy restore: one target, an image that does not change
    hold_source: bool = False  # COMMITTED until an operator releases
    bound_only: bool = True  # HandOver and reports count from the bound target alone
    honest_vouch: bool = True  # FORCED_BACK only when the target's host is gone for good
    faulty_target: bool = False  # reports ACCEPTED without having anything

    def leads(self, side: Side, phase: Phase, event: Event, handed_over: bool = False) -> Phase | None:
        """Where the table leads, if it has the step."""
        row = self.steps.get((side, phase, event))
        return row.after if row is not None and row.guard.holds(handed_over) else None


def move_source(rules: Rules, source: Source, event: Event, bound: int | None = None) -> Source | None:
    """One step of the table at the source: in memory, and on disk first if it is one of those."""
    after = rules.leads(Side.SOURCE, source.now.phase, event, source.now.handed_over)
    if after is None:
        return None
    now = SourceRecord(
        after,
        source.now.handed_over or event is Event.HANDED_OVER,
        source.now.bound if bound is None else bound,
    )
    recorded = (Side.SOURCE, event) in rules.durable
    return source._replace(now=now, disk=now if recorded else source.disk)


def move_target(rules: Rules, target: Target, event: Event) -> Target | None:
    after = rules.leads(Side.TARGET, target.now.phase, event)
    if after is None:
        return None
    now = TargetRecord(after, target.now.complete or event is Event.COMPLETE)
    recorded = (Side.TARGET, event) in rules.durable
    return target._replace(now=now, disk=now if recorded else target.disk)


def view(rules: Rules, source: Source, target: int) -> View:
    if rules.restore:  # the image is always to be had
        return View(serves=True, refuses=False, mute=False, dead=False)
    up, phase = source.life is Life.UP, source.now.phase
    handed_over = phase is Phase.SWITCHOVER and source.now.handed_over
    serves = handed_over or phase in (Phase.POSTCOPY, Phase.COMMITTED)
    return View(
        serves=up and serves and not source.freed,
        refuses=up and (phase in ENDS or source.now.bound not in (0, target)),
        mute=up and handed_over and not source.saved,
        dead=source.life is Life.DEAD,
    )


def healed_source(source: Source) -> Source:
    """Alive again, if its host is."""
    return source._replace(life=Life.UP) if source.life is Life.DOWN else source


def healed_target(target: Target) -> Target:
    """Alive again, and all that was under way is lost."""
    life = Life.UP if target.life is Life.DOWN else target.life
    return target._replace(life=life, sent=frozenset())


def started(rules: Rules) -> tuple[Source, Target, Target]:
    """The first target is started, a second one may be, with the same token, at any time."""
    first = Target(Life.UP, guest=Guest.LOADED if rules.restore else Guest.WAITS)
    second = Target() if rules.targets > 1 else Target(Life.DEAD, guest=Guest.GONE)
    return (DEAD_SOURCE if rules.restore else Source()), first, second
