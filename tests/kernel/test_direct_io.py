# SPDX-License-Identifier: Apache-2.0
"""What a disk with O_DIRECT writes into guest memory while rounds go on is lost, and nothing tells.

A direct read pins the page first: that is a write as far as the page table goes, and the scan sees it. The
bytes come when the disk has them, into the pinned page and past the page table. If a round has reset the page
meanwhile, no later look finds it dirty, not even the final one with the guest stopped and the disk drained.
The disk here takes as long as the test wants (tests/support/slow_disk.py).

That is why a VM with such a disk is refused for precopy (pageferry/host/qemu_checks.py), and why postcopy at
once takes it: its only look comes after the pause, which drains the disk, and names every page.
"""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.support.requires import needs_userfaultfd
from tests.support.slow_disk import NoSlowDisk, SlowDisk
from tests.wire.mover import ALL, PAGES, Attached, freeze, get, mover_of, set_session
from tests.wire.page_server import PAGE_BYTES, PageServer

pytestmark = needs_userfaultfd

PAGE_COUNT = 16
PAGE = 5
BEFORE = bytes([1]) * PAGE_BYTES
FROM_DISK = bytes([200]) * PAGE_BYTES


class Bench:
    """A process whose memory is served, and its disk; a target that has attached."""

    def __init__(self, server: PageServer, disk: SlowDisk, stub: PageServiceStub) -> None:
        set_session(server, ALL)
        self._server, self._disk = server, disk
        self._attached = Attached(stub)
        self.target = mover_of(stub)
        self.order("write", "live", PAGE, BEFORE[0])

    def order(self, *words: object) -> None:
        assert self._server.order(*words) == "ok", words

    def begin_read(self, how: str) -> None:
        self._disk.hold()
        self.order("load", "live", PAGE, how, self._disk.path)
        self._disk.wait_until_held()

    def end_read(self) -> None:
        self._disk.release()
        self.order("loaded", "live")

    def round(self) -> set[int]:
        named = self.target.round()
        self.target.fetch()
        return named

    def stop_and_move(self) -> bytes:
        """The guest stands still and its disk is drained: the final round, and all that it names. The page at
        the target; the manifests of both ends agree, whatever it is."""
        _, _, digest = freeze(self._server)
        set_session(self._server, PAGES, digest=digest)
        self.target.round(open_new=False)
        self.target.fetch()
        assert self.target.manifest() == digest
        return self.target.page(PAGE)

    def at_source(self) -> bytes:
        return get(self.target.stub, page=PAGE).data


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with PageServer({}, live={"live": PAGE_COUNT}) as server:
        try:
            disk = SlowDisk(FROM_DISK, tmp_path, int(server.order("pid", "live")))
        except NoSlowDisk as absent:
            pytest.skip(f"no slow disk: {absent}")
        with disk, grpc.insecure_channel(server.address) as channel:
            yield Bench(server, disk, PageServiceStub(channel))


def test_a_direct_read_across_a_round_is_lost(bench: Bench) -> None:
    """The corruption: both ends agree on every version, and the target has another page."""
    bench.begin_read("direct")
    assert PAGE in bench.round()
    assert bench.target.page(PAGE) == BEFORE
    bench.end_read()
    assert bench.at_source() == FROM_DISK
    assert bench.round() == set(), "no look sees what the disk has written"
    assert bench.stop_and_move() == BEFORE, "nor does the last"


def test_a_cached_read_across_a_round_is_seen(bench: Bench) -> None:
    """What the refusal asks for: cache.direct=off. The kernel copies through the page table."""
    bench.begin_read("cached")
    assert PAGE in bench.round()
    assert bench.target.page(PAGE) == BEFORE
    bench.end_read()
    assert bench.at_source() == FROM_DISK
    assert bench.stop_and_move() == FROM_DISK


def test_a_direct_read_between_two_rounds_is_seen(bench: Bench) -> None:
    """To pin is to write: what ends before the next look is found by it."""
    bench.round()
    bench.begin_read("direct")
    bench.end_read()
    assert bench.round() == {PAGE}
    assert bench.stop_and_move() == FROM_DISK


def test_reopened_and_drained_before_the_first_round(bench: Bench) -> None:
    bench.begin_read("direct")
    bench.end_read()
    assert PAGE in bench.round()
    assert bench.stop_and_move() == FROM_DISK


def test_postcopy_at_once_drains_before_its_only_round(bench: Bench) -> None:
    bench.begin_read("direct")
    bench.end_read()
    assert bench.stop_and_move() == FROM_DISK


def test_a_pause_that_does_not_drain_is_lost_even_at_once(bench: Bench) -> None:
    """Why an adapter's `pause` returns only when block I/O is drained: bytes come after the last look."""
    bench.begin_read("direct")
    assert bench.stop_and_move() == BEFORE
    bench.end_read()
    assert bench.at_source() == FROM_DISK
