# SPDX-License-Identifier: Apache-2.0
"""Every byte of the guest's memory is at the target what it was at the source when the guest stopped there.

The target's guest is not let run, so that nothing changes any more; the source's stands still too. Then the
two RAM files are read by a program that knows nothing of us.
"""

from pathlib import Path

import pytest

from pageferry.phases import Phase
from tests.support.move_bytes import differing_pages, stamped_pages
from tests.support.move_guests import Guests, check_at_target, look_at_every_page, shape
from tests.support.move_pair import TARGET, Move, Pair, Vms
from tests.support.pagemap import Thief, Tracked
from tests.support.requires import needs_userfaultfd
from tests.support.walk import wait_until

pytestmark = needs_userfaultfd
# Rounds that a flat-out writer outruns, and pages left for postcopy.
HARD = {"max_downtime_ms": 1, "rounds_max": 4}
LIGHT, FLAT_OUT = False, True
# microvm brings up one CPU
MACHINES = (("pc", 1), ("pc", 2), ("microvm", 1))
GUESTS = [(*machine, writer) for machine in MACHINES for writer in (LIGHT, FLAT_OUT)]
STOLEN = 8


def move_and_compare(pair: Pair, vms: Vms, postcopy: str) -> None:
    gate = vms.there.before("resume")
    move = Move(pair, hold_source=True, postcopy=postcopy, **(HARD if postcopy == "allow" else {}))
    gate.wait()
    move.wait_ends(Phase.COMMITTED, Phase.COMMITTED)
    # a signal is not at once
    wait_until(lambda: stands_still(vms.source.pid), "the source's threads")
    assert vms.target.console.beats == []
    assert differing_pages(vms.source.ram_file, vms.target.ram_file) == []
    gate.go()
    move.release()
    move.wait_ends(Phase.RELEASED, Phase.RELEASED)
    check_at_target(vms.source, vms.target)


def stands_still(pid: int) -> bool:
    """The whole process, by the kernel's word."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


@pytest.mark.parametrize(
    ("machine", "smp", "flat_out", "postcopy"),
    [
        ("pc", 2, FLAT_OUT, "allow"),
        ("pc", 2, FLAT_OUT, "at-once"),
        ("microvm", 1, LIGHT, "allow"),
        ("microvm", 1, LIGHT, "forbid"),
        ("microvm", 1, FLAT_OUT, "allow"),
    ],
)
def test_every_byte(
    pair: Pair, guests: Guests, machine: str, smp: int, flat_out: bool, postcopy: str
) -> None:
    with Vms(pair, guests.saved(shape(machine, smp=smp, flat_out=flat_out))) as vms:
        move_and_compare(pair, vms, postcopy)


@pytest.mark.nightly
@pytest.mark.parametrize("turn", range(5))
@pytest.mark.parametrize("postcopy", ["allow", "at-once"])
@pytest.mark.parametrize(("machine", "smp", "flat_out"), GUESTS)
def test_every_byte_each_time(
    pair: Pair, guests: Guests, machine: str, smp: int, flat_out: bool, postcopy: str, turn: int
) -> None:
    with Vms(pair, guests.saved(shape(machine, smp=smp, flat_out=flat_out))) as vms:
        move_and_compare(pair, vms, postcopy)


def test_a_page_that_is_called_fresh_and_is_stale_is_found_by_the_guest(pair: Pair, guests: Guests) -> None:
    """Somebody steals the news that a few pages were written. Both ends agree on every version, and nothing
    of ours can know; if the guest did not, no move of it would prove a thing.
    """
    with Vms(pair, guests.saved(shape("microvm", flat_out=True))) as vms:
        pages = list(stamped_pages(vms.source.ram_file))[:: shape("microvm").workload_mib * 256 // STOLEN]
        resume = vms.there.before("resume")
        move = Move(pair, hold_source=True, manual_switchover=True)
        move.wait_for(TARGET, lambda told: told.round > 1, "in its second round")
        with Thief(Tracked(vms.source.pid, vms.source.ram_file), pages) as thief:
            seen = move.at(TARGET).round
            move.wait_for(TARGET, lambda told: told.round > seen + 2, "two rounds on: all has come anew")
            vms.here.after("pause", thief.steal_all)
            move.switch_over()
            resume.wait()
        move.wait_ends(Phase.COMMITTED, Phase.COMMITTED)
        stale = differing_pages(vms.source.ram_file, vms.target.ram_file)
        assert stale
        assert set(stale) <= set(pages)
        resume.go()
        vms.target.console.wait_beats(1)
        look_at_every_page(vms.target)
        assert vms.target.console.wait_beats(2)[-1].errors > 0
        assert {line.rpartition("kind=")[2] for line in vms.target.console.errors} == {"stale"}
        move.release()
        move.wait_ends(Phase.RELEASED, Phase.RELEASED)
