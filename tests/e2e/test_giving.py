# SPDX-License-Identifier: Apache-2.0
"""A real guest gives memory away while it is being restored: its balloon takes pages one by one, and its
virtio-mem, which has a RAM file of its own, is plugged in and unplugged. It never misses a byte of what it
verifies. `make demo DEMO="--balloon"` and `DEMO="--virtio-mem"` do the same for longer, and faster.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.demo import FRAME_BYTES, save_guest
from tests.support.giving import Giving
from tests.support.lazy import LazyRestore
from tests.support.netns import host_pair
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd
from tests.support.shape import GuestShape, SavedGuest

pytestmark = needs_userfaultfd
SHAPE = GuestShape(memory_mib=320, workload_mib=160, balloon=True, plugged_mib=128)
RATE_MBIT = 250
EMPTIES_ITS_FILE_FIRST = (8, 1)  # QEMU before that


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def saved(folder: Path) -> SavedGuest:
    return save_guest(SHAPE, folder)


def test_balloon_and_virtio_mem_all_through_a_restore(saved: SavedGuest, folder: Path) -> None:
    room = folder / "restore"
    with (
        host_pair(hide=[saved.image.parent], rate_mbit=RATE_MBIT) as hosts,
        LazyRestore(saved, hosts, room, guest_options=Giving.options(room / "qemu")) as restore,
        Giving(restore.guest, room / "qemu") as giving,
    ):
        guest = restore.guest
        guest.load(saved.state)
        guest.resume()
        guest.say("epoch\n")
        giving.start()
        waiting = []
        while restore.client.running:
            waiting += restore.handoff_bytes()
        outcome = restore.outcome()
        restore.server.close()
        seen = guest.console.wait_beat(
            lambda beat: beat.epoch == 1 and beat.distinct >= SHAPE.workload_mib * 256, "all of it verified"
        )
        giving.stop()
    assert seen.errors == 0, guest.console.errors
    assert giving.counts.inflated and giving.counts.deflated, giving.counts
    assert giving.counts.plugged and giving.counts.unplugged, giving.counts
    assert outcome["removed_pages_total"] > 0
    assert outcome["alarms_total"] == outcome["asks_outstanding"] == 0
    assert max(waiting) <= FRAME_BYTES, "one report of a discard is under way at a time"
    emptied = tuple(map(int, saved.qemu_version.split(".")[:2])) < EMPTIES_ITS_FILE_FIRST
    assert (outcome["discards_kept_total"] > 0) == emptied
