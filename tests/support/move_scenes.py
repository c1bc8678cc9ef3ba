# SPDX-License-Identifier: Apache-2.0
"""Moves that are held in one of their phases, each at the same step every time.

Held are: the owner of a VM in the middle of a request, the proxy of the pages, the proxy of the control port.
What the product sees is a slow orchestrator and a slow network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pageferry.phases import Phase
from tests.support.move_adapter import Gate
from tests.support.move_pair import SOURCE, TARGET, Move, Pair, Vms


@dataclass
class Scene:
    """Both ends are where the scene's name says, and stay there until go()."""

    move: Move
    go: Callable[[], None]
    drop: Callable[[], None] = lambda: None  # what is held is not done any more


def attaching(pair: Pair, vms: Vms) -> Scene:
    """CREATED: the target's VMM is being looked at."""
    return _gated(pair, vms.there.before("attach"), Phase.CREATED)


def precopy(pair: Pair, vms: Vms) -> Scene:
    """PRECOPY, round after round."""
    move = Move(pair, manual_switchover=True)
    move.wait_for(TARGET, lambda told: told.round > 1, "in its second round")
    return Scene(move, move.switch_over)


def saving(pair: Pair, vms: Vms) -> Scene:
    """SWITCHOVER: the guest stands still, its state is not saved yet."""
    return _gated(pair, vms.here.before("save_state"), Phase.SWITCHOVER)


def loading(pair: Pair, vms: Vms, postcopy: str = "allow") -> Scene:
    """SWITCHOVER, handed over: the state has arrived, and is not loaded yet."""
    return _gated(pair, vms.there.before("load_state"), Phase.SWITCHOVER, postcopy)


def arriving(pair: Pair, vms: Vms) -> Scene:
    """POSTCOPY, as both ends know: the guest waits for pages."""
    scene = loading(pair, vms, "at-once")
    pair.data.hold()
    scene.go()
    scene.move.wait_ends(Phase.POSTCOPY, Phase.POSTCOPY)
    return Scene(scene.move, pair.data.release)


def complete(pair: Pair, vms: Vms) -> Scene:
    """COMMITTED at the target; the source has not heard of it, and is in POSTCOPY."""
    scene = arriving(pair, vms)
    pair.control.hold()
    scene.go()
    scene.move.wait(TARGET, Phase.COMMITTED)
    assert scene.move.phase(SOURCE) is Phase.POSTCOPY
    return Scene(scene.move, pair.control.release)


def kept(pair: Pair, vms: Vms) -> Scene:
    """COMMITTED at the source, which was told to hold its memory; the target has no more to do."""
    move = Move(pair, hold_source=True)
    move.wait_ends(Phase.COMMITTED, Phase.RELEASED)
    return Scene(move, move.release)


def _gated(pair: Pair, gate: Gate, phase: Phase, postcopy: str = "allow") -> Scene:
    move = Move(pair, postcopy=postcopy)
    gate.wait()
    assert (move.phase(SOURCE), move.phase(TARGET)) == (phase, phase)
    return Scene(move, gate.go, gate.drop)


Play = Callable[[Pair, Vms], Scene]
BEFORE_HAND_OVER: Final[tuple[Play, ...]] = (attaching, precopy, saving)
AFTER_ACCEPTED: Final[tuple[Play, ...]] = (arriving, complete, kept)
