# SPDX-License-Identifier: Apache-2.0
"""A grpcio client calls every method of PageService on the data port, and checks each batch as it must."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.wire.page_server import (
    IMMUTABLE,
    PAGE_BYTES,
    Image,
    PageServer,
    Urgent,
    checked,
    fours,
    make_image,
)


def named(batches: Iterator[pb.PageBatch], image: Image) -> dict[int, int]:
    return dict(pair for batch in batches for pair in checked(batch, image))


# ---------------------------------------------------------------------------------------------- DescribeImage


def test_describe(stub: PageServiceStub, image: Image) -> None:
    answer = stub.DescribeImage(pb.DescribeImageRequest(image="vm"))
    assert answer == pb.DescribeImageResponse(
        content_id=image.content_id,
        page_count=1037,
        page_bytes=4096,
        unit_pages=1,
        region_pages=[1037],
        as_of=IMMUTABLE,
        batch_bytes_max=262_144,
        runs_max=4096,
        wanted_pages_max=4096,
        urgent_calls_max=8,
        encodings=1 << pb.ENCODING_IDENTITY,
    )


# ---------------------------------------------------------------------------------------------------- GetPage


@pytest.mark.parametrize(
    ("page", "kind"),
    [
        (0, pb.RUN_KIND_DATA),
        (299, pb.RUN_KIND_DATA),
        (300, pb.RUN_KIND_ZERO),
        (510, pb.RUN_KIND_ZERO),
        (1036, pb.RUN_KIND_DATA),
    ],
    ids=["first", "end of an extent", "hole", "written zeros", "last"],
)
def test_get_page(stub: PageServiceStub, image: Image, page: int, kind: int) -> None:
    batch = stub.GetPage(pb.GetPageRequest(image="vm", page=page))
    assert list(checked(batch, image)) == [(page, kind)]


# ------------------------------------------------------------------------------------------------- FetchPages


def test_the_first_message_says_as_of_when_and_has_no_runs(stub: PageServiceStub) -> None:
    urgent = Urgent(stub)
    assert next(urgent.batches) == pb.PageBatch(as_of=IMMUTABLE)
    urgent.half_close()
    assert list(urgent.batches) == []


def test_one_fault_after_another(stub: PageServiceStub, image: Image) -> None:
    urgent = Urgent(stub)
    next(urgent.batches)
    for page in (5, 300, 1036, 640, 5):
        urgent.ask(page, 1)
        assert [one for one, _ in checked(next(urgent.batches), image)] == [page]
    urgent.half_close()
    assert list(urgent.batches) == []


def test_pages_may_be_asked_before_the_first_message_has_come(stub: PageServiceStub, image: Image) -> None:
    requests = [pb.FetchPagesRequest(image="vm", runs=[7, 2]), pb.FetchPagesRequest(runs=[700, 1, 299, 2])]
    first, *rest = stub.FetchPages(iter(requests))
    assert not first.runs
    assert named(iter(rest), image).keys() == {7, 8, 700, 299, 300}


def test_after_the_half_close_all_that_is_owed_is_answered(stub: PageServiceStub, image: Image) -> None:
    request = pb.FetchPagesRequest(image="vm", runs=[0, 1037])
    first, *rest = stub.FetchPages(iter([request]))
    assert not first.runs
    assert named(iter(rest), image).keys() == set(range(1037))
    assert max(len(batch.data) for batch in rest) == 16 * PAGE_BYTES, "an urgent page waits behind 15 at most"


def test_a_page_asked_twice_is_answered_and_named_once_a_batch(stub: PageServiceStub, image: Image) -> None:
    requests = [pb.FetchPagesRequest(image="vm", runs=[298, 5]), *[pb.FetchPagesRequest(runs=[296, 6])] * 20]
    _, *rest = stub.FetchPages(iter(requests))
    assert named(iter(rest), image).keys() == set(range(296, 303))


def test_a_fault_storm_of_lone_pages(stub: PageServiceStub, image: Image) -> None:
    pages = [page for page in range(1037) if page % 2 == 0]
    runs = [number for page in pages for number in (page, 1)]
    _, *rest = stub.FetchPages(iter([pb.FetchPagesRequest(image="vm", runs=runs)]))
    assert named(iter(rest), image).keys() == set(pages)


def test_a_heartbeat_is_echoed_ahead_of_waiting_pages(stub: PageServiceStub, image: Image) -> None:
    requests = [pb.FetchPagesRequest(image="vm", runs=[0, 1037], heartbeat=77)]
    first, second, *rest = stub.FetchPages(iter(requests))
    assert first == pb.PageBatch(as_of=IMMUTABLE)
    assert second == pb.PageBatch(as_of=IMMUTABLE, heartbeat=77)
    assert len(named(iter(rest), image)) == 1037


def test_each_heartbeat_is_echoed(stub: PageServiceStub) -> None:
    urgent = Urgent(stub)
    next(urgent.batches)
    for beat in (1, 2, 2**64 - 1):
        urgent.ask(heartbeat=beat)
        assert next(urgent.batches).heartbeat == beat
    urgent.half_close()
    assert list(urgent.batches) == []


# ------------------------------------------------------------------------------------------------ StreamPages


def test_the_whole_image_in_order(stub: PageServiceStub, image: Image) -> None:
    batches = list(stub.StreamPages(pb.StreamPagesRequest(image="vm")))
    pages = [page for batch in batches for page, _ in checked(batch, image)]
    assert pages == list(range(1037))
    assert max(len(batch.data) for batch in batches) == 262_144
    kinds = named(iter(batches), image)
    assert {page for page, kind in kinds.items() if kind == pb.RUN_KIND_DATA} == image.pages.keys()


def test_runs_come_in_the_order_that_was_asked(stub: PageServiceStub, image: Image) -> None:
    request = pb.StreamPagesRequest(image="vm", runs=[1000, 37, 0, 3, 299, 2])
    pages = [page for batch in stub.StreamPages(request) for page, _ in checked(batch, image)]
    assert pages == [*range(1000, 1037), 0, 1, 2, 299, 300]


def test_the_version_map_has_no_bytes_and_knows_holes(stub: PageServiceStub, image: Image) -> None:
    request = pb.StreamPagesRequest(image="vm", versions_only=True, runs=[3, 1, 10, 500])
    (batch,) = stub.StreamPages(request)
    assert fours(batch)[:3] == [
        (3, 1, pb.RUN_KIND_VERSION, IMMUTABLE),
        (10, 290, pb.RUN_KIND_VERSION, IMMUTABLE),
        (300, 100, pb.RUN_KIND_ZERO, IMMUTABLE),
    ]
    kinds = dict(checked(batch, image))
    assert set(kinds) == {3, *range(10, 510)}
    assert all(kinds[page] == pb.RUN_KIND_VERSION for page in kinds if page in image.pages)
    assert kinds[505] == pb.RUN_KIND_VERSION, "zeros that were written are not known unread"


def test_nothing_is_newer_than_the_version_of_all(stub: PageServiceStub) -> None:
    request = pb.StreamPagesRequest(image="vm", since_version=IMMUTABLE)
    assert list(stub.StreamPages(request)) == [pb.PageBatch(as_of=IMMUTABLE)]


def test_older_than_all_is_everything(stub: PageServiceStub, image: Image) -> None:
    request = pb.StreamPagesRequest(image="vm", since_version=IMMUTABLE - 1, runs=[0, 70])
    assert len(named(stub.StreamPages(request), image)) == 70


def test_thousands_of_lone_runs_are_split(stub: PageServiceStub, tmp_path: Path, server: PageServer) -> None:
    sparse = make_image(tmp_path / "wide", 9000, range(0, 9000, 7))
    assert server.order("add", "wide", sparse.path).startswith("0")
    runs = [number for page in range(0, 8192, 2) for number in (page, 1)]
    batches = list(stub.StreamPages(pb.StreamPagesRequest(image="wide", runs=runs)))
    pages = [page for batch in batches for page, _ in checked(batch, sparse)]
    assert pages == list(range(0, 8192, 2))


# -------------------------------------------------------------------------------------- the image on its disk


def test_serving_allocates_no_hole(stub: PageServiceStub, image: Image) -> None:
    before = image.path.stat().st_blocks
    assert before * 512 < image.page_count * PAGE_BYTES
    for _ in stub.StreamPages(pb.StreamPagesRequest(image="vm")):
        pass
    _, *_ = stub.FetchPages(iter([pb.FetchPagesRequest(image="vm", runs=[0, 1037])]))
    assert image.path.stat().st_blocks == before


def test_inspect_names_the_same_content_however_zeros_lie(
    server: PageServer, image: Image, tmp_path: Path
) -> None:
    dense = make_image(tmp_path / "dense", image.page_count, image.pages, range(image.page_count))
    for copy in (image, dense):
        assert server.order("inspect", copy.path) == f"ok {image.content_id:016x} 1037 {len(image.pages)}"


def test_an_image_of_holes_alone(server: PageServer, stub: PageServiceStub, tmp_path: Path) -> None:
    empty = make_image(tmp_path / "empty", 1 << 22, [])
    assert server.order("add", "empty", empty.path).startswith("0")
    (batch,) = stub.StreamPages(pb.StreamPagesRequest(image="empty"))
    assert fours(batch) == [(0, 1 << 22, pb.RUN_KIND_ZERO, IMMUTABLE)]
    assert empty.path.stat().st_blocks == 0


# ------------------------------------------------------------------------------------------- docs/protocol.md


def test_the_worked_example(server: PageServer, channel: grpc.Channel, tmp_path: Path) -> None:
    """docs/protocol.md, section 5, byte for byte."""
    pages = {0: bytes(i % 256 for i in range(4096)), 2: b"\x5a" * 4096}
    path = tmp_path / "example"
    path.write_bytes(pages[0] + bytes(4096) + pages[2] + bytes(4096))
    assert server.order("inspect", path).startswith("ok 7c2886b2ae32aedc")
    assert server.order("add", "example", path).startswith("0")
    raw = channel.unary_stream("/pageferry.v1.PageService/StreamPages", bytes, bytes)
    (message,) = raw(pb.StreamPagesRequest(image="example").SerializeToString())
    head = bytes.fromhex(
        "08 81 80 80 80 10"
        "12 20  00 01 01 81 80 80 80 10  01 01 02 81 80 80 80 10"
        "       02 01 01 81 80 80 80 10  03 01 02 81 80 80 80 10"
        "18 01  21 06 5e 1b 5f cd 31 36 74  7a 80 40"
    )
    assert message == head + pages[0] + pages[2]
