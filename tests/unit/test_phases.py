# SPDX-License-Identifier: Apache-2.0
"""The table of phases: what every walk of one side keeps, and that docs/phases.md is printed from it.

What two sides keep together is shown in tests/model.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from pageferry.phases import (
    DURABLE,
    ENDS,
    IN_THE_PAGE_TABLE,
    STEPS,
    Event,
    Guard,
    IllegalStepError,
    Phase,
    Side,
    legal,
    runs,
    step,
)
from tests.model.page import PAGE, printed


class Walk(NamedTuple):
    side: Side
    events: tuple[Event, ...]
    phases: tuple[Phase, ...]


def walks(side: Side, so_far: Walk, handed_over: bool = False) -> Iterator[Walk]:
    """Every way of one side to an end. To hand over again is no new step."""
    phase = so_far.phases[-1]
    if phase in ENDS:
        yield so_far
    for event in Event:
        if legal(side, phase, event, handed_over) and not (handed_over and event is Event.HANDED_OVER):
            after = step(side, phase, event, handed_over)
            onward = Walk(side, (*so_far.events, event), (*so_far.phases, after))
            yield from walks(side, onward, handed_over or event is Event.HANDED_OVER)


WALKS = [walk for side in Side for walk in walks(side, Walk(side, (), (Phase.CREATED,)))]


@pytest.mark.parametrize(
    ("side", "events"),
    [
        (Side.SOURCE, "ATTACHED STOPPED HANDED_OVER ACCEPTED COMPLETE RELEASED"),
        (Side.TARGET, "ATTACHED STOPPED ACCEPTED COMPLETE DETACHED"),
        (Side.TARGET, "ARMED COMPLETE DETACHED"),
    ],
)
def test_what_goes_well_ends_released(side: Side, events: str) -> None:
    phase, handed_over = Phase.CREATED, False
    for event in map(Event.__getitem__, events.split()):
        phase = step(side, phase, event, handed_over)
        handed_over = handed_over or event is Event.HANDED_OVER
    assert phase is Phase.RELEASED


def test_every_walk_ends_and_none_is_endless() -> None:
    assert len(WALKS) > 30
    for walk in WALKS:
        entered = [phase for phase, _ in itertools.groupby(walk.phases)]
        assert entered[-1] in ENDS
        assert len(set(entered)) == len(entered), "a phase is entered once"


def test_no_event_leads_out_of_an_end() -> None:
    assert not {phase for _, phase, _ in STEPS} & ENDS


def test_every_phase_that_can_be_entered_can_be_left() -> None:
    left = {(side, phase) for side, phase, _ in STEPS}
    assert {(side, row.after) for (side, _, _), row in STEPS.items() if row.after not in ENDS} <= left


def test_once_the_guest_may_run_at_the_target_neither_side_aborts() -> None:
    for walk in WALKS:
        if Phase.POSTCOPY in walk.phases:
            assert Phase.ABORTED not in walk.phases


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("event", [Event.FAILED, Event.CANCELLED, Event.FORCED_BACK, Event.ABORT_REPORTED])
def test_no_error_and_nobody_ends_a_session_that_runs_at_the_target(side: Side, event: Event) -> None:
    for phase in (Phase.POSTCOPY, Phase.COMMITTED):
        assert not legal(side, phase, event, handed_over=True)


def test_after_the_hand_over_only_the_targets_word_or_an_operators_leads_on() -> None:
    leads = {event for event in Event if legal(Side.SOURCE, Phase.SWITCHOVER, event, handed_over=True)}
    theirs = {Event.ACCEPTED, Event.ABORT_REPORTED, Event.FORCED_BACK, Event.GIVEN_UP}
    assert leads == theirs | {Event.HANDED_OVER}


def test_before_the_hand_over_the_source_needs_nobody() -> None:
    for phase in (Phase.CREATED, Phase.PRECOPY, Phase.SWITCHOVER):
        for event in (Event.FAILED, Event.CANCELLED, Event.VMM_GONE):
            assert step(Side.SOURCE, phase, event) is Phase.ABORTED


def test_the_source_may_go_only_when_all_is_there_or_the_guest_is_gone() -> None:
    for walk in WALKS:
        if walk.phases[-1] is Phase.RELEASED:
            gone = walk.side is Side.TARGET and walk.events[-1] is Event.VMM_GONE
            assert Phase.COMMITTED in walk.phases or gone


def test_the_guests_end_ends_every_session_at_the_target() -> None:
    for phase in {phase for side, phase, _ in STEPS if side is Side.TARGET}:
        assert step(Side.TARGET, phase, Event.VMM_GONE) in ENDS


def test_no_phase_lets_both_run_once_the_target_may() -> None:
    """The source is at SWITCHOVER or behind it then, and never ABORTED: what the model shows."""
    both = {phase for phase in Phase if runs(Side.SOURCE, phase) and runs(Side.TARGET, phase)}
    assert not both
    assert not any(runs(side, Phase.SWITCHOVER) for side in Side)


def test_every_step_into_an_end_is_recorded_first() -> None:
    into_ends = {(side, event) for (side, _, event), row in STEPS.items() if row.after in ENDS}
    assert into_ends <= set(DURABLE)
    assert set(DURABLE) <= {(side, event) for side, _, event in STEPS}
    assert set(DURABLE) > IN_THE_PAGE_TABLE


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_step_is_the_table(side: Side, phase: Phase, event: Event, handed_over: bool) -> None:
    row = STEPS.get((side, phase, event))
    if row and (row.guard is Guard.ALWAYS or handed_over is (row.guard is Guard.HANDED_OVER)):
        assert legal(side, phase, event, handed_over)
        assert step(side, phase, event, handed_over) is row.after
        return
    assert not legal(side, phase, event, handed_over)
    words = f"{event.name} cannot happen at the {side.value} in phase {phase.name}"
    with pytest.raises(IllegalStepError, match=words) as caught:
        step(side, phase, event, handed_over)
    assert (caught.value.side, caught.value.phase, caught.value.event) == (side, phase, event)


def test_a_step_that_came_too_late_says_so() -> None:
    with pytest.raises(IllegalStepError, match=r"in phase SWITCHOVER, after the hand-over$"):
        step(Side.SOURCE, Phase.SWITCHOVER, Event.CANCELLED, handed_over=True)


def test_every_event_has_a_place_and_a_sentence() -> None:
    assert {event for _, _, event in STEPS} == set(Event)
    assert all(event.value and not event.value.endswith(".") for event in Event)


def test_the_page_is_printed_from_the_table() -> None:
    text = PAGE.read_text()
    assert text == printed(text), "run: python -m tests.model.page"


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for source-diagram"):
        printed("# The phases\n")
