# SPDX-License-Identifier: Apache-2.0
"""A guest moves from A to B, and on to C while most of its memory is still at A (docs/chain.md).

At C it does not run until all of its memory is there: then every byte is as it was at B when the guest was
stopped there. Afterwards the guest's own oracle looks at every page.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import pytest

from pageferry.phases import Phase
from tests.support.chain import Chain, pages_unlike
from tests.support.move_figures import broken_steps
from tests.support.move_guests import Guests, look_at_every_page, shape
from tests.support.move_pair import SOURCE, TARGET, Move
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

if TYPE_CHECKING:
    from tests.support.qemu import Qemu

pytestmark = needs_userfaultfd

# Of each piece from A to B, 64 KiB at most: some 60 MB take half a minute, and are let through in the end.
SLOW_S: Final = 0.03


@pytest.fixture
def chain(request: pytest.FixtureRequest, guests: Guests) -> Iterator[Chain]:
    saved = guests.saved(shape("microvm", flat_out=getattr(request, "param", True)))
    with run_folder() as folder, Chain(folder, saved) as made:
        yield made


def writes_at(guest: "Qemu") -> None:
    """It has written pages since this was called."""
    before = guest.console.wait_beats(1)[-1].rewritten
    guest.console.wait_beat(lambda beat: beat.rewritten > before, "more pages written")


def all_is_at_c(chain: Chain, first: Move, second: Move) -> None:
    """Both moves have come to their end, in whatever order."""
    second.wait(SOURCE, Phase.RELEASED)
    first.wait(SOURCE, Phase.RELEASED)
    assert pages_unlike(chain.b, chain.c) == []


def runs_at_c(chain: Chain, resume: Callable[[], None]) -> None:
    resume()
    chain.c.console.wait_beats(1)
    look_at_every_page(chain.c)
    last = chain.c.console.wait_beats(2)[-1]
    assert last.errors == 0, chain.c.console.errors[-5:]
    assert broken_steps(chain.c.console.beats) == 0
    assert last.number > chain.b.console.beats[-1].number > chain.a.console.beats[-1].number


@pytest.mark.parametrize(
    ("chain", "postcopy"),
    [(True, "at-once"), (False, "allow")],
    indirect=["chain"],
    ids=["flat-out", "light"],
)
def test_it_moves_on_before_it_has_arrived(chain: Chain, postcopy: str) -> None:
    gate = chain.c_owner.before("resume")
    chain.a_to_b.data.delay_s = SLOW_S
    first = chain.move_to_b(postcopy="at-once")
    first.wait(TARGET, Phase.POSTCOPY)
    writes_at(chain.b)
    second = chain.move_to_c(postcopy=postcopy, manual_switchover=postcopy == "allow")
    if postcopy == "allow":  # a round while pages arrive at B, and the next one with the guest stopped
        second.wait_for(TARGET, lambda told: told.round >= 1 and told.pages_settled > 0, "in a round")
        second.switch_over()
    second.wait(TARGET, Phase.POSTCOPY)
    assert chain.missing(first) > 0, "it had arrived at B before it moved on"
    assert first.phase(SOURCE) is Phase.POSTCOPY, "A may go, and pages are still there"
    chain.a_to_b.data.delay_s = 0
    all_is_at_c(chain, first, second)
    runs_at_c(chain, gate.go)
    chain.wait_ended(first)
    chain.wait_ended(second)


def test_it_stays_at_b_after_all(chain: Chain) -> None:
    """The second move is given up as C is to load the state: the guest runs on at B, and its pages come."""
    gate = chain.c_owner.before("load_state")
    chain.a_to_b.data.delay_s = SLOW_S
    first = chain.move_to_b(postcopy="at-once")
    first.wait(TARGET, Phase.POSTCOPY)
    second = chain.move_to_c(postcopy="at-once")
    gate.wait()
    assert chain.missing(first) > 0, "it had arrived at B before it moved on"
    second.cancel(TARGET)
    gate.drop()
    second.wait(SOURCE, Phase.ABORTED)
    writes_at(chain.b)
    chain.a_to_b.data.delay_s = 0
    look_at_every_page(chain.b)
    assert chain.b.console.wait_beats(2)[-1].errors == 0, chain.b.console.errors[-5:]
    assert chain.c.console.beats == []
    chain.wait_ended(first)


def test_it_has_arrived_and_moves_on(chain: Chain) -> None:
    """The fault client at B has been let go: the page server there sees all writes by itself."""
    gate = chain.c_owner.before("resume")
    first = chain.move_to_b()
    chain.wait_ended(first)
    second = chain.move_to_c()
    all_is_at_c(chain, first, second)
    runs_at_c(chain, gate.go)
    chain.wait_ended(second)
