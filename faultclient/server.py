# SPDX-License-Identifier: Apache-2.0
"""The control port of the fault client. It imports grpc: who starts pagers imports it behind them."""

from contextlib import AsyncExitStack
from typing import Protocol, Self

import grpc

from faultclient.service import Book, FaultClientService
from pageferry.service import native
from pageferry.service.addresses import Address
from pageferry.service.metrics import DataPlane, exposed
from pageferry.service.serving import ControlPort
from pageferry.v1 import faultclient_pb2, faultclient_pb2_grpc

NAME = faultclient_pb2.DESCRIPTOR.services_by_name["FaultClientService"].full_name


class Counted(Protocol):
    """A pager, or all of them."""

    def counters(self) -> dict[str, int]: ...
    def histogram(self, name: str) -> native.Histogram: ...


class ControlServer:
    """Serves the sessions of this process while its `async with` lasts."""

    def __init__(self, book: Book, listen: Address, metrics_listen: Address | None, counted: Counted) -> None:
        self._book = book
        self._metrics_listen = metrics_listen
        self._metrics: Address | None = None
        self._counted = counted
        self._port = ControlPort(listen, self._add, (NAME,))
        self._stack = AsyncExitStack()

    def _add(self, server: grpc.aio.Server) -> None:
        service = FaultClientService(self._book)
        faultclient_pb2_grpc.add_FaultClientServiceServicer_to_server(service, server)

    @property
    def addresses(self) -> dict[str, str]:
        """Where it listens: control, and metrics if they were asked for."""
        listening = {"control": self._port.address, "metrics": self._metrics}
        return {name: str(address) for name, address in listening.items() if address is not None}

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            exposing = exposed(
                self._metrics_listen, DataPlane(self._counted.counters, self._counted.histogram)
            )
            self._metrics = await stack.enter_async_context(exposing)
            await stack.enter_async_context(self._port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
