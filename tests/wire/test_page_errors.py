# SPDX-License-Identifier: Apache-2.0
"""What is refused: each with its status, its reason in the trailers, and a sentence; other calls go on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.wire.page_server import IMMUTABLE, Image, PageServer, checked, make_image, trailers_of

Code = grpc.StatusCode
Call = Callable[[PageServiceStub], object]


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str | None, dict[str, str]]:
    """Status, reason and all trailers of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = trailers_of(caught.value)
    assert caught.value.details(), "no sentence"
    return caught.value.code(), trailers.get("pageferry-reason"), trailers


def describe(name: str) -> Call:
    return lambda stub: stub.DescribeImage(pb.DescribeImageRequest(image=name))


def get(name: str, page: int) -> Call:
    return lambda stub: stub.GetPage(pb.GetPageRequest(image=name, page=page))


def fetch(*requests: pb.FetchPagesRequest) -> Call:
    return lambda stub: list(stub.FetchPages(iter(requests)))


def stream(request: pb.StreamPagesRequest) -> Call:
    return lambda stub: list(stub.StreamPages(request))


def runs(*numbers: int) -> pb.FetchPagesRequest:
    return pb.FetchPagesRequest(image="vm", runs=numbers)


CASES: list[tuple[str, Call, grpc.StatusCode, str]] = [
    ("describe: unknown", describe("nobody"), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("describe: no name", describe(""), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("describe: long name", describe("v" * 5000), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("describe: part of a name", describe("v"), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("get: unknown", get("nobody", 0), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("get: past the end", get("vm", 1037), Code.OUT_OF_RANGE, "OUT_OF_IMAGE"),
    ("get: far past", get("vm", 2**64 - 1), Code.OUT_OF_RANGE, "OUT_OF_IMAGE"),
    ("fetch: unknown", fetch(pb.FetchPagesRequest(image="x")), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("fetch: no message", fetch(), Code.INVALID_ARGUMENT, "BAD_REQUEST"),
    ("fetch: unnamed", fetch(pb.FetchPagesRequest(runs=[0, 1])), Code.NOT_FOUND, "NO_SUCH_IMAGE"),
    ("fetch: count 0", fetch(runs(5, 0)), Code.INVALID_ARGUMENT, "BAD_REQUEST"),
    ("fetch: half a pair", fetch(runs(5, 1, 6)), Code.INVALID_ARGUMENT, "BAD_REQUEST"),
    ("fetch: overlap", fetch(runs(5, 3, 7, 1)), Code.INVALID_ARGUMENT, "BAD_REQUEST"),
    ("fetch: wraps", fetch(runs(2**64 - 1, 2)), Code.INVALID_ARGUMENT, "BAD_REQUEST"),
    ("fetch: past the end", fetch(runs(1036, 2)), Code.OUT_OF_RANGE, "OUT_OF_IMAGE"),
    ("fetch: later message", fetch(runs(0, 1), runs(2000, 1)), Code.OUT_OF_RANGE, "OUT_OF_IMAGE"),
    ("fetch: wanted", fetch(*[runs(0, 1037)] * 4000), Code.RESOURCE_EXHAUSTED, "BUSY"),
    (
        "stream: unknown",
        stream(pb.StreamPagesRequest(image="x")),
        Code.NOT_FOUND,
        "NO_SUCH_IMAGE",
    ),
    (
        "stream: past the end",
        stream(pb.StreamPagesRequest(image="vm", runs=[0, 1038])),
        Code.OUT_OF_RANGE,
        "OUT_OF_IMAGE",
    ),
    (
        "stream: overlap",
        stream(pb.StreamPagesRequest(image="vm", runs=[0, 2, 1, 1])),
        Code.INVALID_ARGUMENT,
        "BAD_REQUEST",
    ),
    (
        "stream: too many runs",
        stream(pb.StreamPagesRequest(image="vm", runs=[n for p in range(4097) for n in (p * 2, 1)])),
        Code.INVALID_ARGUMENT,
        "BAD_REQUEST",
    ),
    (
        "stream: a round",
        stream(pb.StreamPagesRequest(image="vm", open_round=True)),
        Code.FAILED_PRECONDITION,
        "WRONG_PHASE",
    ),
    (
        "stream: from the future",
        stream(pb.StreamPagesRequest(image="vm", since_version=IMMUTABLE + 1)),
        Code.FAILED_PRECONDITION,
        "MISMATCH",
    ),
]


@pytest.mark.parametrize(("call", "code", "reason"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_refused(stub: PageServiceStub, image: Image, call: Call, code: grpc.StatusCode, reason: str) -> None:
    got_code, got_reason, trailers = refusal(lambda: call(stub))
    assert (got_code, got_reason) == (code, reason)
    assert ("pageferry-retry-after-ms" in trailers) == (reason == "BUSY")
    (page,) = checked(stub.GetPage(pb.GetPageRequest(image="vm", page=3)), image)
    assert page[0] == 3


SESSIONS = [
    (("pageferry-session", "s1"),),
    (("authorization", "Bearer AAAA"),),
    (("pageferry-session", "s1"), ("authorization", "Bearer AAAA"), ("pageferry-epoch", "1")),
]


@pytest.mark.parametrize("metadata", SESSIONS, ids=["session", "token", "both"])
def test_there_are_no_sessions_to_name(stub: PageServiceStub, metadata: tuple[tuple[str, str], ...]) -> None:
    def calls() -> Iterator[Callable[[], object]]:
        yield lambda: stub.DescribeImage(pb.DescribeImageRequest(image="vm"), metadata=metadata)
        yield lambda: stub.GetPage(pb.GetPageRequest(image="vm"), metadata=metadata)
        yield lambda: list(stub.FetchPages(iter([runs(0, 1)]), metadata=metadata))
        yield lambda: list(stub.StreamPages(pb.StreamPagesRequest(image="vm"), metadata=metadata))

    for call in calls():
        assert refusal(call)[:2] == (Code.PERMISSION_DENIED, "NOT_ALLOWED")


def test_who_one_is_may_be_said_without_a_session(stub: PageServiceStub) -> None:
    metadata = (("pageferry-target", "0123456789abcdef"), ("pageferry-epoch", "3"), ("x-other", "y"))
    assert stub.DescribeImage(pb.DescribeImageRequest(image="vm"), metadata=metadata).page_count == 1037


@pytest.mark.parametrize("method", ["DescribeImage", "GetPage", "StreamPages", "FetchPages"])
@pytest.mark.parametrize("message", [b"\xff\xff\xff", b"\x0a\x80\x80\x80\x80\x08"], ids=["field", "length"])
def test_what_is_no_message(channel: grpc.Channel, method: str, message: bytes) -> None:
    call = channel.stream_stream(f"/pageferry.v1.PageService/{method}", bytes, bytes)
    assert refusal(lambda: list(call(iter([message]))))[:2] == (Code.INVALID_ARGUMENT, "BAD_REQUEST")


@pytest.mark.parametrize("method", ["DescribeImage", "GetPage", "StreamPages"])
def test_one_request_is_neither_none_nor_two(channel: grpc.Channel, method: str) -> None:
    call = channel.stream_stream(f"/pageferry.v1.PageService/{method}", bytes, bytes)
    good = pb.GetPageRequest(image="vm").SerializeToString()
    for count in (0, 2):
        assert refusal(lambda n=count: list(call(iter([good] * n))))[:2] == (  # type: ignore[misc]
            Code.INVALID_ARGUMENT,
            "BAD_REQUEST",
        )


def test_a_request_beyond_the_limit_is_not_taken(stub: PageServiceStub) -> None:
    request = pb.DescribeImageRequest(image="v" * 70_000)
    assert refusal(lambda: stub.DescribeImage(request))[0] == Code.RESOURCE_EXHAUSTED


def test_compression_is_refused(stub: PageServiceStub) -> None:
    request = pb.DescribeImageRequest(image="v" * 500)
    call = refusal(lambda: stub.DescribeImage(request, compression=grpc.Compression.Gzip))
    assert call[:2] == (Code.UNIMPLEMENTED, "UNSUPPORTED")


@pytest.mark.parametrize(
    "path",
    ["/pageferry.v1.PageService/Nothing", "/pageferry.v1.PageService", "/other.Service/Call", "/"],
)
def test_other_methods_are_unimplemented(channel: grpc.Channel, path: str) -> None:
    assert refusal(lambda: channel.unary_unary(path, bytes, bytes)(b""))[:2] == (
        Code.UNIMPLEMENTED,
        "UNSUPPORTED",
    )


def test_a_file_that_got_shorter_ends_the_call_and_invents_no_zeros(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 256, range(256))
    with PageServer({"vm": image.path}) as server, grpc.insecure_channel(server.address) as channel:
        stub = PageServiceStub(channel)
        with image.path.open("r+b") as file:
            file.truncate(100 * 4096)
        assert len(list(checked(stub.GetPage(pb.GetPageRequest(image="vm", page=99)), image))) == 1
        mismatch = (Code.FAILED_PRECONDITION, "MISMATCH")
        assert refusal(lambda: get("vm", 100)(stub))[:2] == mismatch
        assert refusal(lambda: fetch(runs(90, 20))(stub))[:2] == mismatch
        assert refusal(lambda: stream(pb.StreamPagesRequest(image="vm"))(stub))[:2] == mismatch


@pytest.mark.parametrize(("content", "words"), [(b"", "none at all"), (b"x" * 5000, "multiple of 4096")])
def test_an_image_that_is_none(server: PageServer, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    before = server.fds()
    for order in (("inspect", path), ("add", "other", path)):
        answer = server.order(*order)
        assert answer.startswith("-1 ") and words in answer
    assert server.fds() == before


def test_a_name_is_taken_once(server: PageServer, image: Image) -> None:
    before = server.fds()
    assert server.order("add", "vm", image.path).startswith("-4 another image has the name vm")
    assert server.order("add", "v" * 129, image.path).startswith("-1 an image's name has 1 to 128 bytes")
    assert server.order("inspect", "/dev/null").startswith("-1 the image is not a regular file")
    assert server.fds() == before
