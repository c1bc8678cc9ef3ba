# SPDX-License-Identifier: Apache-2.0
"""A VMM dies in every phase, at either end (docs/phases.md, section 7). Before the hand-over the guest is
where it was, or gone with its VMM; from then on the source's VMM is not needed any more: its memory is a
file.
"""

import grpc
import pytest

from pageferry.phases import Phase
from pageferry.reasons import Reason
from tests.support.move_guests import check_at_source, check_at_target
from tests.support.move_pair import SOURCE, TARGET, VM, Pair, Vms
from tests.support.move_scenes import (
    AFTER_ACCEPTED,
    BEFORE_HAND_OVER,
    Play,
    arriving,
    attaching,
    complete,
    kept,
    loading,
    precopy,
    saving,
)
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd


@pytest.mark.parametrize("play", BEFORE_HAND_OVER)
def test_the_sources_before_the_hand_over(pair: Pair, vms: Vms, play: Play) -> None:
    """There is no guest any more, and no half of one."""
    scene = play(pair, vms)
    vms.source.kill()
    scene.move.wait(SOURCE, Phase.ABORTED)
    if play is not precopy:
        scene.go()
    scene.move.wait(TARGET, Phase.ABORTED)
    assert scene.move.failure(SOURCE) is Reason.NO_VMM
    assert vms.target.console.beats == []
    if play is attaching:
        assert vms.target.exit_status() is None
    else:
        vms.wait_killed(vms.target)


@pytest.mark.parametrize("play", [loading, *AFTER_ACCEPTED])
def test_the_sources_after_the_hand_over(pair: Pair, vms: Vms, play: Play) -> None:
    """Its pages are served on, and nobody misses it."""
    scene = play(pair, vms)
    vms.source.kill()
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def test_the_targets_before_it_has_attached(pair: Pair, vms: Vms) -> None:
    scene = attaching(pair, vms)
    vms.target.kill()
    scene.go()
    scene.move.wait(TARGET, Phase.ABORTED)
    assert scene.move.failure(TARGET) is Reason.NO_VMM
    scene.move.cancel(SOURCE)
    scene.move.wait(SOURCE, Phase.ABORTED)
    check_at_source(vms.source, vms.target)


@pytest.mark.parametrize("play", [precopy, saving, loading])
def test_the_targets_before_it_has_accepted(pair: Pair, vms: Vms, play: Play) -> None:
    scene = play(pair, vms)
    vms.target.kill()
    scene.move.wait_ends(Phase.ABORTED, Phase.ABORTED)
    scene.drop()
    assert scene.move.failure(TARGET) is Reason.NO_VMM
    check_at_source(vms.source, vms.target)


def test_the_targets_with_pages_missing(pair: Pair, vms: Vms) -> None:
    """The guest has ended there, for good. The source keeps its memory until an operator gives it up."""
    scene = arriving(pair, vms)
    vms.target.kill()
    scene.move.wait(TARGET, Phase.RELEASED)
    assert scene.move.failure(TARGET) is Reason.NO_VMM
    with pytest.raises(grpc.RpcError) as refused:
        scene.move.release()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert scene.move.phase(SOURCE) is Phase.POSTCOPY
    assert vms.source.exit_status() is None
    scene.move.release(force_image=VM)
    scene.move.wait(SOURCE, Phase.LOST)
    vms.wait_killed(vms.source)
    scene.go()


def test_the_targets_with_all_pages_there(pair: Pair, vms: Vms) -> None:
    """Its report goes on until the source has heard it: nobody else could tell it that it may go."""
    scene = complete(pair, vms)
    vms.target.kill()
    scene.move.wait(TARGET, Phase.RELEASED)
    assert scene.move.phase(SOURCE) is Phase.POSTCOPY
    scene.go()
    scene.move.wait(SOURCE, Phase.RELEASED)
    vms.wait_killed(vms.source)


def test_the_targets_that_owes_nothing(pair: Pair, vms: Vms) -> None:
    scene = kept(pair, vms)
    vms.target.kill()
    scene.go()
    scene.move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    vms.wait_killed(vms.source)


def test_both(pair: Pair, vms: Vms) -> None:
    scene = saving(pair, vms)
    vms.source.kill()
    vms.target.kill()
    scene.drop()
    scene.move.wait_ends(Phase.ABORTED, Phase.ABORTED)
