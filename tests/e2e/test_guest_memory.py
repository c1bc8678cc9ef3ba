# SPDX-License-Identifier: Apache-2.0
"""A real guest is restored on memory that is not small pages of a tmpfs: on huge pages of a pool, and on a
memfd while transparent huge pages are forced on. It verifies all that it has. `make demo` does the same with
a guest of full size: DEMO="--memory hugetlbfs", DEMO="--memory memfd".
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo import memory_of, save_guest
from tests.support.lazy import LazyRestore
from tests.support.netns import host_pair
from tests.support.ramfile import run_folder
from tests.support.requires import needs_huge_pages, needs_huge_settings, needs_userfaultfd
from tests.support.shape import GuestShape, SavedGuest

pytestmark = [needs_userfaultfd, needs_huge_pages, needs_huge_settings]
SHAPE = GuestShape(memory_mib=256, workload_mib=128)
RATE_MBIT = 1000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def saved(folder: Path) -> SavedGuest:
    return save_guest(SHAPE, folder)


@pytest.mark.parametrize("kind", ["hugetlbfs", "memfd"])
def test_a_real_guest_finds_no_error(saved: SavedGuest, folder: Path, kind: str) -> None:
    with (
        memory_of(kind, SHAPE) as memory,
        host_pair(hide=[saved.image.parent], rate_mbit=RATE_MBIT) as hosts,
        LazyRestore(saved, hosts, folder / kind, memory=memory) as restore,
    ):
        guest = restore.guest
        assert restore.blocks_at_start == 0
        guest.load(saved.state)
        guest.resume()
        guest.say("epoch\n")
        outcome = restore.outcome()
        restore.server.close()
        seen = guest.console.wait_beat(
            lambda beat: beat.epoch == 1 and beat.distinct >= SHAPE.workload_mib * 256, "all of it verified"
        )
    assert seen.errors == 0, guest.console.errors
    assert outcome["alarms_total"] == outcome["asks_outstanding"] == 0
    assert outcome["faults_total"] > 0
    if kind == "hugetlbfs":
        assert outcome["copies_total"] == 0  # each huge page was filled, and mapped whole
