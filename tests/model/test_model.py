# SPDX-License-Identifier: Apache-2.0
"""Never two runners: every state that two ends on the table of phases can come to, with a second target, lost
and repeated messages, crashes, dead hosts and operators. Then with each rule taken away: it is missed.
"""

import pytest

from pageferry.phases import DURABLE, ENDS, STEPS, Event, Guard, IllegalStepError, Phase, Side, step
from tests.model.mutants import GOOD, MUTANTS, ONE_TARGET, RESTORE, TWO_TARGETS, Mutant, found, good, summary
from tests.model.promises import all_released
from tests.model.sides import Guest, Kind, Life, Rules
from tests.model.verdict import Ask, judged
from tests.model.world import Walk, World

SIDES = {side.value: side for side in Side}
# Without these the guest runs twice, whatever else goes wrong before.
TWO_GUESTS_WITHOUT = {
    "source SWITCHOVER FAILED always",
    "source SWITCHOVER CANCELLED always",
    "source HANDED_OVER recorded behind its act",
    "target ACCEPTED recorded behind its act",
    "target FAILED recorded behind its act",
    "target CANCELLED recorded behind its act",
    "target VMM_GONE recorded behind its act",
    "HandOver and reports of any target count",
    "an operator vouches for a target that lives",
}


def named(mutant: Mutant) -> str:
    return f"{mutant.kind}: {mutant.name}"


def whole(rules: Rules) -> Walk:
    """Every state of one set of rules."""
    world = World(rules)
    walk = Walk(world, [world.start()], Kind.OPERATOR)
    assert walk.go() is None
    return walk


# ---------------------------------------------------------------------------------- the rules as they are


@pytest.mark.parametrize("name", GOOD)
def test_nothing_wrong_can_be_reached_and_an_end_always_can(name: str) -> None:
    verdict = good(name)
    assert verdict.wrong is None, "\n  ".join([verdict.wrong or "", *verdict.story])
    assert verdict.transitions > verdict.states > 10


def test_the_second_target_makes_a_difference() -> None:
    second = good("a move, a second target with the same token")
    assert second.states > 50 * good("a move").states


# ----------------------------------------------------------------------------- the rules with one taken away


@pytest.mark.parametrize("mutant", MUTANTS, ids=named)
def test_a_rule_that_is_taken_away_is_missed(mutant: Mutant) -> None:
    assert found(mutant) is not None


def test_nothing_of_the_table_is_left_out() -> None:
    counts = {kind: sum(mutant.kind == kind for mutant in MUTANTS) for kind in ("row", "guard", "record")}
    guarded = sum(row.guard is not Guard.ALWAYS for row in STEPS.values())
    assert counts == {"row": len(STEPS), "guard": guarded, "record": len(DURABLE)}
    assert len({named(mutant) for mutant in MUTANTS}) == len(MUTANTS)


def test_these_rules_alone_stand_between_one_guest_and_two() -> None:
    """Each of the others is missed for something less."""
    two = {
        mutant.name
        for mutant in MUTANTS
        if mutant.kind != "row"
        and any(judged(run.rules, Ask.RUNNERS).wrong == "two guests run" for run in mutant.runs)
    }
    assert two == TWO_GUESTS_WITHOUT


def test_a_false_vouch_is_how_an_operator_makes_two_guests_run() -> None:
    verdict = found(next(mutant for mutant in MUTANTS if "vouches" in mutant.name))
    assert verdict is not None
    assert verdict.wrong == "two guests run"
    assert {"source FORCED_BACK", "source guest runs again", "target guest runs"} <= set(verdict.story)


# -------------------------------------------------------------------------------------- the model itself


def test_the_model_steps_as_the_table_does() -> None:
    for side in Side:
        for phase in Phase:
            for event in Event:
                for handed_over in (False, True):
                    try:
                        expected: Phase | None = step(side, phase, event, handed_over)
                    except IllegalStepError:
                        expected = None
                    assert TWO_TARGETS.leads(side, phase, event, handed_over) is expected


def test_every_row_is_taken_somewhere() -> None:
    taken = set()
    for rules in (ONE_TARGET, RESTORE):
        walk = whole(rules)
        for state in walk.came_from:
            source, *targets = walk.world.parts(state)
            for _, label, _ in walk.world.edges(state):
                side, _, event = label.partition(" ")
                if event in Event.__members__:
                    phases = [source.now.phase] if side == "source" else [one.now.phase for one in targets]
                    taken |= {(SIDES[side], phase, Event[event]) for phase in phases}
    assert taken >= set(STEPS)


@pytest.fixture(scope="module")
def with_one_target() -> Walk:
    return whole(ONE_TARGET)


def test_what_the_rules_are_for_does_happen(with_one_target: Walk) -> None:
    """A property that is kept because nothing happens would be none."""
    seen = set()
    for state in with_one_target.came_from:
        source, first, second = with_one_target.world.parts(state)
        target = first if second.life is Life.DEAD and not second.sent else second
        if all_released((source, first, second)):
            seen.add("it goes well")
        if source.now.phase is Phase.ABORTED and source.now.handed_over and source.guest is Guest.RUNS:
            seen.add("the source runs again after the hand-over")
        if source.freed and target.guest is Guest.RUNS:
            seen.add("the source frees while the guest runs at the target")
        if source.now.phase is Phase.LOST and target.now.phase is Phase.POSTCOPY:
            seen.add("memory is given up that the target needs")
        if source.life is Life.DOWN and source.guest is Guest.STANDS and not source.disk.handed_over:
            seen.add("the page server dies with the guest stopped, before the hand-over")
        if target.life is Life.DOWN and target.guest is Guest.FOREIGN:
            seen.add("the fault client dies after the load, before it has accepted")
        if source.now.phase is Phase.SWITCHOVER and target.disk.phase is Phase.COMMITTED:
            seen.add("the report of ACCEPTED is lost until all is there")
        if source.guest is Guest.GONE and source.life is Life.UP and target.now.phase is Phase.COMMITTED:
            seen.add("the source's VMM dies, and the pages still come")
    assert len(seen) == 8, seen


def test_no_end_is_ever_left(with_one_target: Walk) -> None:
    for state in with_one_target.came_from:
        here = with_one_target.world.parts(state)
        for _, label, after in with_one_target.world.edges(state):
            there = with_one_target.world.parts(after)
            ended = sorted(side.disk.phase for side in here if side.disk.phase in ENDS)
            still = sorted(side.disk.phase for side in there if side.disk.phase in ENDS)
            lost_host = "host is lost" in label
            assert lost_host or all(still.count(phase) >= ended.count(phase) for phase in ended)


def test_the_shortest_story_is_told() -> None:
    world = World(ONE_TARGET)
    walk = Walk(world, [world.start()], Kind.OPERATOR)
    at = walk.go(lambda state: world.parts(state)[0].now.phase is Phase.PRECOPY)
    assert at is not None
    assert walk.story(at) == ["target sends ATTACH", "source ATTACHED"]


def test_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    line = summary()
    with capsys.disabled():
        print(f"\n{line}")
    assert line.startswith("model: states ")
