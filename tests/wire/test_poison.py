# SPDX-License-Identifier: Apache-2.0
"""Lost pages on the wire, read by somebody else's protobuf: they are POISON in every answer, and no bytes.

What a read finds lost is in tests/native/test_lost.c, and with a real EIO in tests/e2e/test_poison.py.
"""

from collections.abc import Iterator

import grpc
import pytest

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.support.requires import needs_userfaultfd
from tests.wire.mover import ALL, ME, Mover, describe, freeze, mover_of, set_session
from tests.wire.page_server import IMMUTABLE, Image, PageServer, Urgent, checked, fours

PAGES = 96
# Data, a hole and zeros that were written: all of it may be lost.
LOST = [(3, 2), (60, 1), (299, 3), (505, 1), (1036, 1)]
LOST_PAGES = {page for first, count in LOST for page in range(first, first + count)}
POISON = pb.RUN_KIND_POISON


@pytest.fixture
def stub(image: Image) -> Iterator[PageServiceStub]:
    with PageServer({"vm": image.path}) as server, grpc.insecure_channel(server.address) as channel:
        for first, count in LOST:
            assert server.order("poison", "vm", first, count).split() == ["0"]
        yield PageServiceStub(channel)


def poisoned(batches: Iterator[pb.PageBatch], image: Image) -> set[int]:
    """Each page of them is what it must be, or POISON: those."""
    return {page for batch in batches for page, kind in checked(batch, image) if kind == POISON}


def test_bulk_and_urgent_and_single_pages(stub: PageServiceStub, image: Image) -> None:
    whole = stub.StreamPages(pb.StreamPagesRequest(image="vm"))
    assert poisoned(whole, image) == LOST_PAGES
    some = stub.StreamPages(pb.StreamPagesRequest(image="vm", runs=[0, 4, 290, 20]))
    assert poisoned(some, image) == {3, 299, 300, 301}
    for page in (2, 3, 60, 505, 1036):
        batch = stub.GetPage(pb.GetPageRequest(image="vm", page=page))
        assert (poisoned(iter([batch]), image) == {page}) == (page in LOST_PAGES)
        assert bool(batch.data) == (page in image.pages and page not in LOST_PAGES)
    urgent = Urgent(stub)
    assert not next(urgent.batches).runs
    urgent.ask(298, 5)
    assert poisoned(iter([next(urgent.batches)]), image) == {299, 300, 301}
    urgent.half_close()


def test_the_map(stub: PageServiceStub) -> None:
    request = pb.StreamPagesRequest(image="vm", versions_only=True)
    runs = [run for batch in stub.StreamPages(request) for run in fours(batch)]
    assert [(first, count) for first, count, kind, _ in runs if kind == POISON] == LOST
    assert {version for *_, version in runs} == {IMMUTABLE}


# ------------------------------------------------------------------------------------------------ live memory


@pytest.fixture
def live() -> Iterator[PageServer]:
    with PageServer({}, live={"live": PAGES}) as server:
        set_session(server, ALL)
        yield server


@needs_userfaultfd
def test_the_next_round_names_them_and_the_manifest_does_not_know(live: PageServer) -> None:
    with grpc.insecure_channel(live.address) as channel:
        stub = PageServiceStub(channel)
        attached = stub.FetchPages(iter([pb.FetchPagesRequest(image="live")]), metadata=ME.metadata)
        assert not next(attached).runs
        mover = mover_of(stub)
        for page in range(PAGES):
            assert live.order("write", "live", page, 7) == "ok"
        assert mover.round() == set(range(PAGES))
        mover.fetch()
        assert not mover.missing()
        before = mover.since
        assert live.order("poison", "live", 30, 2).split() == ["0"]
        assert live.order("write", "live", 31, 8) == "ok"
        assert live.order("write", "live", 50, 8) == "ok"
        assert mover.round() == {30, 31, 50}
        assert mover.lost == {30: mover.since, 31: mover.since}
        assert mover.since > before
        assert mover.missing() == [50]
        mover.fetch()
        assert live.order("poison", "live", 90, 1).split() == ["0"]
        as_of, dirty, digest = freeze(live)
        assert dirty == 1
        assert live.order("poison", "live", 91, 1).startswith("-5 ")  # WRONG_PHASE
        assert mover.round(open_new=False) == {90}
        assert mover.lost.keys() == {30, 31, 90}
        assert mover.since == as_of
        assert mover.manifest() == digest
        assert not mover.missing()


@needs_userfaultfd
def test_a_target_that_comes_late_finds_them_in_its_first_map(live: PageServer) -> None:
    with grpc.insecure_channel(live.address) as channel:
        stub = PageServiceStub(channel)
        assert live.order("write", "live", 4, 7) == "ok"
        assert live.order("poison", "live", 4, 1).split() == ["0"]
        attached = stub.FetchPages(iter([pb.FetchPagesRequest(image="live")]), metadata=ME.metadata)
        assert not next(attached).runs
        mover = Mover(stub, describe(stub).content_id, PAGES)
        assert mover.round() == set(range(PAGES))
        assert mover.lost.keys() == {4}
