# SPDX-License-Identifier: Apache-2.0
"""Calls of an operator to a control port, page server's or fault client's, and how a session is watched."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import grpc

from pageferry.reasons import PageferryError, Reason, Remedy
from pageferry.service.refusals import refused
from pageferry.v1 import faultclient_pb2_grpc, migrations_pb2, migrations_pb2_grpc

CALL_S: Final = 10.0
LIST_S: Final = 5.0
WATCH_AGAIN_S: Final = 0.25
INTERVAL_MS: Final = 100
OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # by its name; it is how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

MISSING: Final = {
    "target": "is `faultclient serve` there, or `run` and its VMM? Its log names the control address",
    "source": "is `pageserver serve` there? Its log names the control address",
}


class Control:
    """One control port. Each call may raise PageferryError."""

    def __init__(self, side: str, who: str, address: str, stub: Any) -> None:
        self.side = side
        self.address = address
        self._who = f"the {who} at {address}"
        self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        self._stub = stub(self._channel)

    async def ask(
        self, method: str, request: Any, metadata: Sequence[tuple[str, str]] = (), timeout_s: float = CALL_S
    ) -> Any:
        """PageferryError: it was refused, or nobody answers."""
        try:
            return await getattr(self._stub, method)(request, metadata=tuple(metadata), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise refused(error, self._who) from error

    async def listed(self) -> list[migrations_pb2.Session]:
        """All its sessions as they are now. PageferryError: nobody answers, or not with sessions."""
        request = migrations_pb2.WatchSessionsRequest(once=True)
        try:
            return [message async for message in self._stub.WatchSessions(request, timeout=LIST_S)]
        except grpc.aio.AioRpcError as error:
            refusal = refused(error, f"{self._who} did not answer")
            raise PageferryError(refusal.reason, refusal.message, MISSING[self.side]) from error

    async def watch(
        self,
        session: str,
        silent: Callable[[PageferryError], None],
    ) -> AsyncIterator[migrations_pb2.Session]:
        """Its state, again and again, to its end. While nobody answers nothing comes but calls of `silent`; a
        refusal is raised."""
        request = migrations_pb2.WatchSessionsRequest(session=session, interval_ms=INTERVAL_MS)
        while True:
            try:
                async for message in self._stub.WatchSessions(request):
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                refusal = refused(error, self._who)
                if refusal.row.client is not Remedy.RETRY:
                    raise refusal from error
                silent(refusal)
            await asyncio.sleep(WATCH_AGAIN_S)

    async def close(self) -> None:
        await self._channel.close()


def fault_client(address: str) -> Control:
    return Control("target", "fault client", address, faultclient_pb2_grpc.FaultClientServiceStub)


def page_server(address: str) -> Control:
    return Control("source", "page server", address, migrations_pb2_grpc.MigrationServiceStub)


def failure_of(session: migrations_pb2.Session) -> PageferryError | None:
    """Why it ended as nobody wanted it to."""
    if not session.failure:
        return None
    return PageferryError(Reason(session.failure), session.message)
