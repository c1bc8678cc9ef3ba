# SPDX-License-Identifier: Apache-2.0
"""The source of a move as its target asks it, against a real control port: refusals, and slow networks."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import psutil
import pytest

from faultclient.asking import SourceFacts
from faultclient.source import GrpcSource
from faultclient.vms import Ticket
from pageferry.phases import Phase
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.serving import ControlPort
from pageferry.v1 import migrations_pb2, migrations_pb2_grpc
from tests.support.proxy import Proxy

TICKET = Ticket("move-1", bytes(32), 5, 1)
# A server that is busy, or far away, greets later than this.
SLOW_S = 0.4


class Service(migrations_pb2_grpc.MigrationServiceServicer):
    async def GetSession(
        self, request: migrations_pb2.SessionName, context: "grpc.aio.ServicerContext[object, object]"
    ) -> migrations_pb2.Session:
        return migrations_pb2.Session(session=request.session)

    async def HandOver(
        self, request: migrations_pb2.SessionName, context: "grpc.aio.ServicerContext[object, object]"
    ) -> AsyncIterator[migrations_pb2.HandOverResponse]:
        yield migrations_pb2.HandOverResponse(as_of=7)
        raise PageferryError(Reason.WRONG_PHASE, "it has ended meanwhile", "begin another one")


@asynccontextmanager
async def source_of(delay_s: float = 0.0) -> AsyncIterator[GrpcSource]:
    """Behind a network that takes so long."""

    def add(server: grpc.aio.Server) -> None:
        migrations_pb2_grpc.add_MigrationServiceServicer_to_server(Service(), server)

    async with ControlPort(Address.parse("127.0.0.1:0"), add, (), serving=True, grace_s=0) as port:
        with Proxy(str(port.address)) as proxy:
            proxy.delay_s = delay_s
            source = GrpcSource(proxy.address, TICKET)
            try:
                yield source
            finally:
                await source.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 20)

    asyncio.run(bounded())


def test_a_stream_that_is_refused_tells_the_reason_and_the_words() -> None:
    async def go() -> None:
        async with source_of() as source:
            parts = source.hand_over()
            assert (await anext(parts)).as_of == 7
            with pytest.raises(PageferryError, match="it has ended meanwhile") as caught:
                await anext(parts)
            assert caught.value.reason is Reason.WRONG_PHASE

    run(go)


def test_a_source_that_is_closed_keeps_no_connection() -> None:
    """Without waiting for the garbage collector to find out."""

    async def go() -> None:
        async with source_of() as source:
            parts = source.hand_over()
            await anext(parts)
            await parts.aclose()  # as after the last message: it is not read to its end
            await source.facts()
            await source.close()
            while connections_to(source._address):
                await asyncio.sleep(0.01)

    gc.disable()
    try:
        run(go)
    finally:
        gc.enable()


def connections_to(address: str) -> int:
    port = int(address.rpartition(":")[2])
    open_ones = psutil.Process().net_connections("tcp")
    return sum(1 for one in open_ones if one.raddr and one.raddr.port == port and one.status == "ESTABLISHED")


def test_a_server_that_greets_late_is_waited_for() -> None:
    """Time to connect in is not the time between two attempts."""

    async def go() -> None:
        async with source_of(SLOW_S) as source:
            assert await source.facts() == SourceFacts(Phase.CREATED)

    run(go)
