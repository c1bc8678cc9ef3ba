# SPDX-License-Identifier: Apache-2.0
"""Cancel in every phase, at either end: until it is accepted the guest runs on where it was; from then on it
is too late to ask, and the move goes on to its end (docs/phases.md, section 7).
"""

import grpc
import pytest

from pageferry.phases import Phase, Side
from pageferry.reasons import Reason
from tests.support.move_guests import check_at_source, check_at_target
from tests.support.move_pair import SOURCE, TARGET, VM, Move, Pair, Vms
from tests.support.move_scenes import (
    AFTER_ACCEPTED,
    Play,
    Scene,
    arriving,
    attaching,
    loading,
    precopy,
    saving,
)
from tests.support.processes import finished
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd


def aborted(scene: Scene, vms: Vms) -> None:
    """Both ends have ended it, the guest runs at the source and nowhere else."""
    scene.move.wait_ends(Phase.ABORTED, Phase.ABORTED)
    scene.drop()
    assert scene.move.failure(SOURCE) is Reason.CANCELLED
    check_at_source(vms.source, vms.target)


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("play", [precopy, saving, loading])
def test_until_it_is_accepted_the_guest_runs_on_at_the_source(
    pair: Pair, vms: Vms, play: Play, side: Side
) -> None:
    scene = play(pair, vms)
    scene.move.cancel(side)
    aborted(scene, vms)
    assert scene.move.failure(TARGET) is (Reason.CANCELLED if side is TARGET else scene.move.failure(TARGET))
    vms.wait_killed(vms.target)


@pytest.mark.parametrize("side", Side)
def test_by_the_command_line(pair: Pair, vms: Vms, side: Side) -> None:
    scene = precopy(pair, vms)
    ready = (pair.server if side is SOURCE else pair.client).ready
    asked = finished("faultclient", "cancel", scene.move.name, f"--{side.value}={ready['control']}")
    assert asked.status == 0, asked
    aborted(scene, vms)


def test_a_move_that_waits_for_it_is_handed_over_by_the_command_line(pair: Pair, vms: Vms) -> None:
    scene = precopy(pair, vms)
    control = pair.client.ready["control"]
    asked = finished("faultclient", "switch-over", scene.move.name, f"--target={control}")
    assert asked.status == 0, asked
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_at_the_source_before_anybody_has_attached(pair: Pair, vms: Vms) -> None:
    scene = attaching(pair, vms)
    scene.move.cancel(SOURCE)
    scene.go()
    aborted(scene, vms)
    assert vms.target.exit_status() is None  # it was not touched: another move may have it
    Move(pair).wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_at_the_target_before_it_has_attached(pair: Pair, vms: Vms) -> None:
    """It is not yet the session's target: whoever has made the session takes it back at the source too."""
    scene = attaching(pair, vms)
    scene.move.cancel(TARGET)
    scene.move.wait(TARGET, Phase.ABORTED)
    scene.drop()
    assert scene.move.phase(SOURCE) is Phase.CREATED
    scene.move.cancel(SOURCE)
    aborted(scene, vms)
    assert vms.target.exit_status() is None
    Move(pair).wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


@pytest.mark.parametrize("play", AFTER_ACCEPTED)
def test_from_then_on_it_is_too_late(pair: Pair, vms: Vms, play: Play) -> None:
    scene = play(pair, vms)
    for side in Side:
        ended = scene.move.phase(side) is Phase.RELEASED
        with pytest.raises(grpc.RpcError) as refused:
            scene.move.cancel(side)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION, ended
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_an_operator_cannot_force_it_back_once_it_was_accepted(pair: Pair, vms: Vms) -> None:
    scene = arriving(pair, vms)
    with pytest.raises(grpc.RpcError) as refused:
        scene.move.cancel(SOURCE, force_image=VM)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)
