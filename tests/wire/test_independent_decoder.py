# SPDX-License-Identifier: Apache-2.0
"""A recorded session of each role, read by others' code: h2, which is not nghttp2, and protobuf's runtime.

A recorder stands between the two ends. What the page server said to grpcio, and what the fault client said to
the page server, is decoded by them and compared, field by field, with what was to be sent. Every message is
also written once more by protobuf: the same bytes, so there is no field that it does not know.
"""

import ctypes
import signal
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Self, TypeVar

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
)
from h2.settings import SettingCodes

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.support.handoff_client import Memory, Vmm
from tests.support.pair import client
from tests.support.processes import PATIENCE_S
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd
from tests.wire.page_server import IMMUTABLE, PAGE_BYTES, Image, PageServer, checked, make_image

M = TypeVar("M", bound=Message)
SERVICE = "/pageferry.v1.PageService/"
WINDOW = (1 << 31) - 1
IDENTITY = 1 << pb.ENCODING_IDENTITY


# -------------------------------------------------------------------------------------------------- recording


@dataclass
class Connection:
    up: bytearray = field(default_factory=bytearray)  # by the client
    down: bytearray = field(default_factory=bytearray)  # by the server


class Recorder:
    """Passes bytes on, on loopback, and keeps them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.connections: list[Connection] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener has been shut down
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                record = Connection()
                self.connections.append(record)
                self._sockets += [near, far]
                for ends in ((near, far, record.up), (far, near, record.down)):
                    self._threads.append(threading.Thread(target=self._pass, args=ends))
                    self._threads[-1].start()

    def _pass(self, source: socket.socket, to: socket.socket, record: bytearray) -> None:
        with suppress(OSError):  # one end is gone
            while data := source.recv(65_536):
                record += data
                to.sendall(data)
        with suppress(OSError):
            to.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE_S)
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join(PATIENCE_S)
        for end in (self._listener, *self._sockets):
            end.close()


# --------------------------------------------------------------------------------------------------- decoding


@dataclass
class Call:
    """One stream, one direction."""

    fields: dict[str, str]
    trailers: dict[str, str] = field(default_factory=dict)
    ended: bool = False
    data: bytearray = field(default_factory=bytearray)

    def messages(self) -> Iterator[bytes]:
        """Five bytes before each: that it is not compressed, and its length."""
        at = 0
        while at < len(self.data):
            assert self.data[at] == 0
            end = at + 5 + int.from_bytes(self.data[at + 1 : at + 5], "big")
            assert end <= len(self.data), "it ends within a message"
            yield bytes(self.data[at + 5 : end])
            at = end

    def read(self, kind: type[M]) -> list[M]:
        found = []
        for content in self.messages():
            found.append(kind.FromString(content))
            assert found[-1].SerializeToString(deterministic=True) == content
        return found


def take(calls: dict[int, Call], event: Event) -> None:
    match event:
        case RequestReceived() | ResponseReceived():
            assert event.stream_id is not None and event.headers is not None
            calls[event.stream_id] = Call(texts(event.headers))
        case DataReceived():
            assert event.stream_id is not None and event.data is not None
            calls[event.stream_id].data += event.data
        case TrailersReceived():
            assert event.stream_id is not None and event.headers is not None
            calls[event.stream_id].trailers = texts(event.headers)
        case StreamEnded():
            assert event.stream_id is not None
            calls[event.stream_id].ended = True


def texts(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


def requests_of(connection: Connection) -> dict[int, Call]:
    """What a client said, as an HTTP/2 server reads it."""
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    server.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = WINDOW
    server.initiate_connection()
    calls: dict[int, Call] = {}
    for event in server.receive_data(bytes(connection.up)):
        take(calls, event)
    return calls


def answers_of(connection: Connection) -> dict[int, Call]:
    """What a server said, as an HTTP/2 client reads it that has made the same requests."""
    reader = H2Connection(H2Configuration(client_side=True, header_encoding=None))
    reader.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = WINDOW
    reader.initiate_connection()
    reader.increment_flow_control_window(WINDOW - 65_535)
    for stream, call in requests_of(connection).items():
        reader.send_headers(stream, list(call.fields.items()), end_stream=call.ended)
    calls: dict[int, Call] = {}
    for event in reader.receive_data(bytes(connection.down)):
        take(calls, event)
    return calls


# -------------------------------------------------------------------------------------------- the page server

ANSWER = {":status": "200", "content-type": "application/grpc", "grpc-accept-encoding": "identity"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def small(folder: Path) -> Image:
    return make_image(folder / "image", 100, [*range(20), 40, *range(60, 99, 2)], range(20, 25))


@pytest.fixture(scope="module")
def small_server(small: Image) -> Iterator[PageServer]:
    with PageServer({"vm": small.path}) as running:
        yield running


def test_what_the_page_server_says(small_server: PageServer, small: Image) -> None:
    fetches = [
        pb.FetchPagesRequest(image="vm", encodings=IDENTITY),
        pb.FetchPagesRequest(runs=[3, 2, 40, 1], heartbeat=77),
    ]
    with Recorder(small_server.address) as recorder, grpc.insecure_channel(recorder.address) as channel:
        stub = PageServiceStub(channel)
        stub.DescribeImage(pb.DescribeImageRequest(image="vm"))
        stub.GetPage(pb.GetPageRequest(image="vm", page=98))
        list(stub.FetchPages(iter(fetches)))
        list(stub.StreamPages(pb.StreamPagesRequest(image="vm", runs=[0, 100])))
        with pytest.raises(grpc.RpcError):
            stub.GetPage(pb.GetPageRequest(image="vm", page=100))
    (connection,) = recorder.connections
    calls = answers_of(connection)
    described, got, fetched, streamed, refused = (calls[stream] for stream in sorted(calls))
    for call in (described, got, fetched, streamed):
        assert (call.fields, call.trailers, call.ended) == (ANSWER, {"grpc-status": "0"}, True)

    assert described.read(pb.DescribeImageResponse) == [
        pb.DescribeImageResponse(
            content_id=small.content_id,
            page_count=100,
            page_bytes=PAGE_BYTES,
            unit_pages=1,
            region_pages=[100],
            as_of=IMMUTABLE,
            batch_bytes_max=262_144,
            runs_max=4096,
            wanted_pages_max=4096,
            urgent_calls_max=8,
            encodings=IDENTITY,
        )
    ]
    (batch,) = got.read(pb.PageBatch)
    assert list(batch.runs) == [98, 1, pb.RUN_KIND_DATA, IMMUTABLE]
    assert list(checked(batch, small)) == [(98, pb.RUN_KIND_DATA)]

    first, echo, *batches = fetched.read(pb.PageBatch)
    assert first == pb.PageBatch(as_of=IMMUTABLE)
    assert echo == pb.PageBatch(as_of=IMMUTABLE, heartbeat=77)
    named = [pair for batch in batches for pair in checked(batch, small)]
    assert named == [(page, pb.RUN_KIND_DATA) for page in (3, 4, 40)]

    pages = [pair for batch in streamed.read(pb.PageBatch) for pair in checked(batch, small)]
    kinds = {page: pb.RUN_KIND_DATA if page in small.pages else pb.RUN_KIND_ZERO for page in range(100)}
    assert pages == sorted(kinds.items())

    assert (list(refused.messages()), refused.trailers, refused.ended) == ([], {}, True)
    assert refused.fields == ANSWER | {
        "grpc-status": "11",
        "grpc-message": "a run ends past the end of the image",
        "pageferry-reason": "OUT_OF_IMAGE",
    }


# ------------------------------------------------------------------------------------------- the fault client


def request_fields(address: str, method: str) -> dict[str, str]:
    return {
        ":method": "POST",
        ":scheme": "http",
        ":path": SERVICE + method,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
        "user-agent": f"pageferry/{version('pageferry')}",
        "grpc-accept-encoding": "identity",
    }


def touch(memory: Memory, pages: Iterable[int]) -> dict[int, bytes]:
    """Reads pages as a vCPU would; the calls wait without the interpreter's lock, so that others go on."""
    libc = ctypes.CDLL(None)
    libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    found = {}
    for page in pages:
        read = ctypes.create_string_buffer(PAGE_BYTES)
        libc.memcpy(read, memory.address + page * PAGE_BYTES, PAGE_BYTES)
        found[page] = read.raw
    return found


def beats_of(recorder: Recorder) -> list[int]:
    """The last bytes may be half a message yet: then the record is looked at again."""
    with suppress(AssertionError, DecodeError):
        calls = [call for one in recorder.connections for call in requests_of(one).values()]
        fetches = [call for call in calls if call.fields[":path"] == SERVICE + "FetchPages"]
        requests = [one for call in fetches for one in call.read(pb.FetchPagesRequest)]
        return [one.heartbeat for one in requests if one.heartbeat]
    return []


@needs_userfaultfd
def test_what_the_fault_client_says(small_server: PageServer, small: Image, folder: Path) -> None:
    asked = [98, 0, 41, 7]
    with (
        Recorder(small_server.address) as recorder,
        Memory(100) as memory,
        client(folder, recorder.address, "--no-background") as run,
        Vmm(run.handoff) as vmm,
    ):
        vmm.send(memory.layout(), memory.fds)
        assert touch(memory, asked) == {page: small.expected(page) for page in asked}
        run.wait_until(lambda: beats_of(recorder) != [], "a heartbeat")
        run.kick(signal.SIGKILL)
        run.wait()
    spoken = [calls for one in recorder.connections if (calls := requests_of(one))]  # bulk's has none
    ((_, described), (_, fetched)) = sorted(spoken[0].items())
    assert len(spoken) == 1
    assert described.fields == request_fields(recorder.address, "DescribeImage")
    assert described.read(pb.DescribeImageRequest) == [pb.DescribeImageRequest(image="vm")]
    assert described.ended
    assert fetched.fields == request_fields(recorder.address, "FetchPages")
    first, *others = fetched.read(pb.FetchPagesRequest)
    assert (first.image, first.encodings) == ("vm", IDENTITY)
    assert all((one.image, one.encodings) == ("", 0) for one in others)
    runs = [number for one in (first, *others) for number in one.runs]
    assert runs == [number for page in asked for number in (page, 1)]
    beats = [one.heartbeat for one in (first, *others) if one.heartbeat]
    assert beats == list(range(1, len(beats) + 1))
    assert beats


@needs_userfaultfd
def test_what_the_fault_client_says_in_bulk(small_server: PageServer, small: Image, folder: Path) -> None:
    with (
        Recorder(small_server.address) as recorder,
        Memory(100) as memory,
        client(folder, recorder.address) as run,
        Vmm(run.handoff) as vmm,
    ):
        vmm.send(memory.layout(), memory.fds)
        assert run.outcome()["asks_outstanding"] == 0
    ranges = []
    for connection in recorder.connections:
        for call in requests_of(connection).values():
            if call.fields[":path"].endswith("/StreamPages"):
                assert call.fields == request_fields(recorder.address, "StreamPages")
                (asked,) = call.read(pb.StreamPagesRequest)
                assert asked == pb.StreamPagesRequest(image="vm", runs=asked.runs, encodings=IDENTITY)
                assert call.ended
                ranges.append(tuple(asked.runs))
    pages = [page for first, count in ranges for page in range(first, first + count)]
    assert sorted(pages) == list(range(100)), "each page is asked once"
