# SPDX-License-Identifier: Apache-2.0
"""Many clients, slow ones, ones that vanish: bounded memory each, and never a stall of another."""

import asyncio
import contextlib
import itertools
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.wire.page_server import PAGE_BYTES, Image, PageServer, Urgent, checked, make_image, trailers_of

MIB = 1 << 20
# a window that does not grow, and little read ahead: so a reader that stalls is one
STALL = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
WHOLE = pb.StreamPagesRequest(image="vm")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return make_image(tmp_path_factory.mktemp("large") / "image", 4096, range(4096))


def until(condition: Callable[[], bool], what: str, limit_s: float = 30) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def dial(server: PageServer, options: tuple[tuple[str, int], ...] = ()) -> grpc.Channel:
    return grpc.insecure_channel(server.address, options=[*OWN_CONNECTION, *options])


# ------------------------------------------------------------------------------------------------------- many


def test_two_hundred_calls_at_once(server: PageServer, image: Image) -> None:
    async def ask() -> list[pb.PageBatch]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = PageServiceStub(channel)
            calls = [stub.GetPage(pb.GetPageRequest(image="vm", page=page)) for page in range(200)]
            return list(await asyncio.gather(*calls))

    for page, batch in enumerate(asyncio.run(ask())):
        assert [one for one, _ in checked(batch, image)] == [page]


def test_aio_streams_side_by_side(server: PageServer, image: Image) -> None:
    # the stubs' types know grpc.aio in another place than here
    async def whole(stub: Any) -> int:
        count = 0
        async for batch in stub.StreamPages(WHOLE):
            count += len(list(checked(batch, image)))
        return count

    async def urgent(stub: Any) -> int:
        call, count = stub.FetchPages(), 0
        await call.write(pb.FetchPagesRequest(image="vm"))
        assert not (await call.read()).runs
        for page in range(0, 1037, 13):
            await call.write(pb.FetchPagesRequest(runs=[page, 1]))
            count += len(list(checked(await call.read(), image)))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        return count

    async def both() -> list[int]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = PageServiceStub(channel)
            return list(await asyncio.gather(whole(stub), urgent(stub), whole(stub), urgent(stub)))

    assert asyncio.run(both()) == [1037, 80, 1037, 80]


def test_many_connections_over_many_workers(image: Image, tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    with PageServer({"vm": image.path}, threads=4, socket=path) as server:
        addresses = [server.address, f"unix:{path}"] * 10
        channels = [grpc.insecure_channel(one, OWN_CONNECTION) for one in addresses]
        for page, channel in enumerate(channels):
            batch = PageServiceStub(channel).GetPage(pb.GetPageRequest(image="vm", page=page))
            assert [one for one, _ in checked(batch, image)] == [page]
        assert server.counters()["connections_open"] == 20
        assert server.counters()["calls_total"] == 20
        for channel in channels:
            channel.close()
        until(lambda: server.counters()["connections_open"] == 0, "connections end")
        assert server.counters()["calls_open"] == 0


# ------------------------------------------------------------------------------------------ gone and too slow


def test_a_call_cancelled_in_its_middle_leaves_nothing(large: Image) -> None:
    with PageServer({"vm": large.path}) as server, dial(server, STALL) as channel:
        stub = PageServiceStub(channel)
        for _ in range(20):
            call = stub.StreamPages(WHOLE)
            next(call)
            call.cancel()
        until(lambda: server.order("open_calls") == "0", "cancelled calls end")
        assert len(list(checked(stub.GetPage(pb.GetPageRequest(image="vm")), large))) == 1
        assert server.counters()["calls_failed_total"] == 20


def test_a_deadline_ends_a_stalled_call(large: Image) -> None:
    with PageServer({"vm": large.path}) as server, dial(server, STALL) as channel:
        call = PageServiceStub(channel).StreamPages(WHOLE, timeout=0.5)
        next(call)
        until(lambda: server.order("open_calls") == "0", "the call ends by its deadline")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_stalled_readers_cost_a_batch_each_and_stall_nobody(large: Image) -> None:
    readers = 32
    with PageServer({"vm": large.path}) as server, contextlib.ExitStack() as stack:
        honest = PageServiceStub(stack.enter_context(dial(server)))
        for _ in range(40):  # what a working server needs anyway
            honest.GetPage(pb.GetPageRequest(image="vm", page=9))
        assert sum(len(batch.data) for batch in honest.StreamPages(WHOLE)) == 16 * MIB
        before = server.rss_bytes()
        for _ in range(readers):
            call = PageServiceStub(stack.enter_context(dial(server, STALL))).StreamPages(WHOLE)
            next(call)
            stack.callback(call.cancel)
        until(lambda: server.order("open_calls") == str(readers), "all are open")
        batches = list(honest.StreamPages(WHOLE))
        assert sum(len(list(checked(batch, large))) for batch in batches) == 4096
        grown = server.rss_bytes() - before
        # each a batch (270 KiB) and the buffers of a connection (230 KiB); 4 MiB for the allocator
        assert grown < readers * (270 + 230) * 1024 + 4 * MIB, f"{grown / MIB:.1f} MiB for {readers} readers"
        read_for_the_stalled = server.counters()["sent_pages_total"] - 2 * 4096 - 40
        assert read_for_the_stalled <= readers * 4 * 64, "pages were read that could not leave"


def test_a_vanished_client_frees_its_calls(server: PageServer) -> None:
    before = server.counters()["connections_open"]
    channel = dial(server, STALL)
    call = Urgent(PageServiceStub(channel))
    until(lambda: server.counters()["connections_open"] > before, "it is connected")
    channel.close()
    until(lambda: server.counters()["connections_open"] == before, "its connection ends")
    del call


# ---------------------------------------------------------------------------------------------------- by hand


class Raw:
    """HTTP/2 by hand: what a well-behaved client would not do."""

    def __init__(self, server: PageServer) -> None:
        host, _, port = server.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def call(self, path: str, *more: tuple[str, str]) -> int:
        stream: int = self.h2.get_next_available_stream_id()
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"),
            ("te", "trailers"), ("content-type", "application/grpc"), *more,
        ]  # fmt: skip
        self.h2.send_headers(stream, fields)
        self.flush()
        return stream

    def events(self) -> Iterator[Event]:
        while data := self.socket.recv(65_536):
            yield from self.h2.receive_data(data)
            self.flush()

    def close(self) -> None:
        self.socket.close()


def test_the_server_too_keeps_a_deadline(server: PageServer) -> None:
    """A client that tells its deadline and then neither asks nor resets."""
    with contextlib.closing(Raw(server)) as raw:
        raw.call("/pageferry.v1.PageService/FetchPages", ("grpc-timeout", "100m"))
        status = next(fields for event in raw.events() if "grpc-status" in (fields := fields_of(event)))
        assert (status["grpc-status"], status["pageferry-reason"]) == ("4", "TOO_SLOW")


def fields_of(event: Event) -> dict[str, str]:
    return dict(getattr(event, "headers", ()))


def test_a_connection_that_asks_nothing_is_closed(server: PageServer) -> None:
    with contextlib.closing(Raw(server)) as raw:
        list(raw.events())  # returns when the server has closed: FIRST_REQUEST_MS


def test_a_connection_too_many_is_closed_unread(image: Image) -> None:
    with PageServer({"vm": image.path}) as server, contextlib.ExitStack() as stack:
        for _ in range(64):
            stack.enter_context(contextlib.closing(Raw(server)))
        until(lambda: server.counters()["connections_open"] == 64, "64 are open")
        with pytest.raises(OSError), contextlib.closing(Raw(server)) as last:
            assert list(last.events()) == []
            raise ConnectionError("closed")
        assert server.counters()["connections_refused_total"] == 1
    # all of them were closed from outside: the server ended well with 64 connections open


def test_without_file_descriptors_it_waits_and_goes_on(image: Image) -> None:
    with PageServer({"vm": image.path}) as server, dial(server) as first:
        stub = PageServiceStub(first)
        stub.GetPage(pb.GetPageRequest(image="vm"))
        limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (server.fds(), limits[1]))
        with dial(server) as second:
            request = pb.GetPageRequest(image="vm", page=1)
            late = PageServiceStub(second).GetPage.future(request, wait_for_ready=True)
            used = _cpu_ticks(server.pid)
            time.sleep(0.5)
            for _ in range(5):
                assert len(list(checked(stub.GetPage(pb.GetPageRequest(image="vm")), image))) == 1
            assert not late.done()
            assert _cpu_ticks(server.pid) - used < 20, "it spins"
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
            assert [page for page, _ in checked(late.result(timeout=20), image)] == [1]


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# --------------------------------------------------------------------------------------------------- draining


def going_away(call: Callable[[], object]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert trailers_of(caught.value)["pageferry-reason"] == "GOING_AWAY"


def test_a_drain_answers_what_is_owed_and_takes_no_more(large: Image) -> None:
    with PageServer({"vm": large.path}) as server, dial(server, STALL) as channel, dial(server) as other:
        stub = PageServiceStub(channel)
        idle = Urgent(stub).batches
        assert not next(idle).runs
        bulk = stub.StreamPages(WHOLE)
        first = next(bulk)
        assert server.order("open_calls") == "2"
        assert server.order("drain") == "ok"
        going_away(lambda: next(idle))
        going_away(lambda: PageServiceStub(other).GetPage(pb.GetPageRequest(image="vm")))
        pages = sum(len(list(checked(batch, large))) for batch in itertools.chain([first], bulk))
        assert pages == 4096, "bulk in progress is answered in full"
        assert bulk.code() == grpc.StatusCode.OK
        until(lambda: server.order("open_calls") == "0", "all calls end")


def test_goaway_follows_the_last_call_of_a_drained_connection(image: Image) -> None:
    with PageServer({"vm": image.path}) as server, contextlib.closing(Raw(server)) as raw:
        raw.call("/pageferry.v1.PageService/FetchPages")
        until(lambda: server.order("open_calls") == "1", "the call is open")
        server.order("drain")
        events = raw.events()
        assert "GOING_AWAY" in (fields_of(event).get("pageferry-reason") for event in events)
        assert any(isinstance(event, ConnectionTerminated) for event in events)


def test_a_server_that_closes_ends_calls_and_clients_see_going_away(large: Image) -> None:
    with PageServer({"vm": large.path}) as server, dial(server, STALL) as channel:
        call = PageServiceStub(channel).StreamPages(WHOLE)
        next(call)
        assert server.close() == 0
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_bytes_on_the_wire_are_counted(server: PageServer) -> None:
    before = server.counters()
    with dial(server) as channel:
        batches = list(PageServiceStub(channel).StreamPages(pb.StreamPagesRequest(image="vm", runs=[0, 300])))
    assert sum(len(batch.data) for batch in batches) == 300 * PAGE_BYTES
    # a turn is counted when it is over: the client may be quicker
    until(lambda: _sent(server, before) > 300 * PAGE_BYTES, "all bytes are counted")
    assert _sent(server, before) < 1.02 * 300 * PAGE_BYTES
    assert server.counters()["sent_pages_total"] - before["sent_pages_total"] == 300


def _sent(server: PageServer, before: dict[str, int]) -> int:
    return server.counters()["wire_out_bytes_total"] - before["wire_out_bytes_total"]
