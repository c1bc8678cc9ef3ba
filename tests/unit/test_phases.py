# SPDX-License-Identifier: Apache-2.0
"""The table of phases: every walk through it keeps the promises of a restore."""

import itertools
from collections.abc import Iterator

import pytest

from pageferry.phases import ENDS, STEPS, Event, IllegalStepError, Phase, legal, step


def walks(phase: Phase = Phase.CREATED) -> Iterator[tuple[list[Event], list[Phase]]]:
    """Every way from a phase to its end: the events, and the phases entered."""
    if phase in ENDS:
        yield [], []
    for (before, event), after in STEPS.items():
        if before is phase:
            for events, phases in walks(after):
                yield [event, *events], [after, *phases]


WALKS = list(walks())


def test_a_restore_that_goes_well() -> None:
    phase = Phase.CREATED
    for event in (Event.ARMED, Event.COMPLETE, Event.DETACHED):
        phase = step(phase, event)
    assert phase is Phase.RELEASED


def test_every_walk_ends_and_none_is_endless() -> None:
    assert WALKS
    for _, phases in WALKS:
        assert phases[-1] in ENDS
        assert len(set(phases)) == len(phases), "a phase is entered once"


def test_no_event_leads_out_of_an_end() -> None:
    assert not {before for before, _ in STEPS} & ENDS


def test_every_phase_that_can_be_entered_can_be_left() -> None:
    assert set(STEPS.values()) - ENDS <= {before for before, _ in STEPS}


def test_once_the_guest_runs_here_it_is_never_aborted() -> None:
    for _, phases in WALKS:
        if Phase.POSTCOPY in phases:
            assert Phase.ABORTED not in phases[phases.index(Phase.POSTCOPY) :]


def test_no_error_and_nobody_ends_a_session_that_runs() -> None:
    running = (Phase.POSTCOPY, Phase.COMMITTED)
    for phase, event in itertools.product(running, (Event.FAILED, Event.CANCELLED)):
        assert not legal(phase, event)


def test_the_source_may_go_only_when_all_is_here_or_the_guest_is_gone() -> None:
    for events, phases in WALKS:
        if phases[-1] is Phase.RELEASED:
            assert Phase.COMMITTED in phases or events[-1] is Event.VMM_GONE


def test_the_guests_end_ends_every_session() -> None:
    for phase in {before for before, _ in STEPS}:
        assert step(phase, Event.VMM_GONE) in ENDS


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_step_is_the_table(phase: Phase, event: Event) -> None:
    if legal(phase, event):
        assert step(phase, event) is STEPS[phase, event]
        return
    with pytest.raises(IllegalStepError, match=f"{event.name} cannot happen in phase {phase.name}") as caught:
        step(phase, event)
    assert (caught.value.phase, caught.value.event) == (phase, event)


def test_every_event_has_a_place_and_a_sentence() -> None:
    assert {event for _, event in STEPS} == set(Event)
    assert all(event.value and not event.value.endswith(".") for event in Event)
