# SPDX-License-Identifier: Apache-2.0
"""A control port: grpc.aio, and the one place where exceptions become statuses.

A service of ours raises PageferryError and knows no status code. The interceptor here turns that into code,
text and trailers, counts calls, and ends them when the process does: from the drain on new ones are refused
with GOING_AWAY, streams are told the same, unary calls are waited for.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self, TypeAlias

import grpc
from grpc_health.v1 import health_pb2_grpc

from pageferry.limits import CONTROL_MESSAGE_BYTES_MAX, METADATA_BYTES_MAX, STREAMS_MAX
from pageferry.reasons import PageferryError, Reason
from pageferry.service.addresses import OWNER_ONLY, Address, try_listening
from pageferry.service.logs import log
from pageferry.service.metrics import CALL_SECONDS, CALLS, CALLS_OPEN, SERVING
from pageferry.service.standard import Context, Health, add_reflection, going_away, refuse

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # else a second server takes half of the calls without a word
    ("grpc.max_receive_message_length", CONTROL_MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)
# Tools for people and orchestrators, not calls that somebody could lose.
STANDARD: Final = "/grpc."
# For a stream that has been told to go, until what it says has been sent.
LAST_WORDS_S: Final = 1.0

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"


@contextmanager
def _only_for(mode: int) -> Iterator[None]:
    """A socket that grpc makes meanwhile has at most these permissions. The umask is the process's: no other
    thread may make files now."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


# ----------------------------------------------------------------------------------------------- every call


class Calls(grpc.aio.ServerInterceptor):
    """Every call of our own services: counted, its exception translated, ended when the process drains."""

    def __init__(self) -> None:
        self.draining = False
        self.open = 0
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._streams: set[asyncio.Task[Any]] = set()
        self._told: set[asyncio.Task[Any]] = set()

    def drain(self) -> None:
        """No new calls. Streams end with GOING_AWAY at once; unary calls go on."""
        self.draining = True
        for task in self._streams - self._told:
            self._told.add(task)
            task.cancel()

    async def wait_none_open(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()
        except TimeoutError:
            return False
        return True

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(details)
        method = str(details.method)
        if handler is None or method.startswith(STANDARD):
            return handler
        asked = "stream" if handler.request_streaming else "unary"
        answered = "stream" if handler.response_streaming else "unary"
        call = getattr(handler, f"{asked}_{answered}")
        translated = self._stream(method, call) if handler.response_streaming else self._unary(method, call)
        make = getattr(grpc, f"{asked}_{answered}_rpc_method_handler")
        made: Handler = make(translated, handler.request_deserializer, handler.response_serializer)
        return made

    def _unary(self, method: str, call: Any) -> Any:
        async def translated(request: Any, context: Context) -> Any:
            with self._counted(method) as ended:
                try:
                    self._refuse_if_draining()
                    return await call(request, context)
                except Exception as error:  # noqa: BLE001  # the last place that can say it
                    await self._end(context, method, ended, error)

        return translated

    def _stream(self, method: str, call: Any) -> Any:
        async def translated(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted(method) as ended, self._stoppable() as task:
                try:
                    self._refuse_if_draining()
                    async for answer in call(request, context):
                        yield answer
                except asyncio.CancelledError:
                    if task not in self._told:
                        raise  # the caller has gone
                    task.uncancel()
                    await self._end(context, method, ended, going_away())
                except Exception as error:  # noqa: BLE001
                    await self._end(context, method, ended, error)

        return translated

    def _refuse_if_draining(self) -> None:
        if self.draining:
            raise going_away()

    async def _end(self, context: Context, method: str, ended: list[str], error: Exception) -> None:
        if isinstance(error, grpc.aio.AbortError):
            raise error  # a status is on its way already
        if not isinstance(error, PageferryError):
            log.error("call_failed", method=method, exc_info=error)
            error = PageferryError(Reason.BUG, f"{type(error).__name__} in {method}", "see the log")
        ended[:] = [error.reason.name]
        await refuse(context, error)

    @contextmanager
    def _counted(self, method: str) -> Iterator[list[str]]:
        """What the call ended with goes into the list; it says OK if nothing does, CANCELLED if it was."""
        ended = ["OK"]
        began = time.monotonic()
        self.open += 1
        self._none_open.clear()
        CALLS_OPEN.inc()
        try:
            yield ended
        except BaseException:
            ended[:] = [Reason.CANCELLED.name] if ended == ["OK"] else ended
            raise
        finally:
            self.open -= 1
            if self.open == 0:
                self._none_open.set()
            CALLS_OPEN.dec()
            CALLS.labels(method, ended[0]).inc()
            CALL_SECONDS.labels(method).observe(time.monotonic() - began)

    @contextmanager
    def _stoppable(self) -> Iterator[asyncio.Task[Any]]:
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        try:
            yield task
        finally:
            self._streams.discard(task)
            self._told.discard(task)


# --------------------------------------------------------------------------------------------------- the port


class ControlPort:
    """Up while its `async with` lasts. `add` puts the services in; `names` are theirs."""

    def __init__(
        self,
        address: Address,
        add: Callable[[grpc.aio.Server], None],
        names: Sequence[str],
        *,
        serving: bool = True,
        grace_s: float = 5.0,
    ) -> None:
        """`serving`: what health says at first. `grace_s`: how long its end waits for calls in work."""
        self.address = address  # with its port, once it is up
        self._serving_at_first = serving
        self._grace_s = grace_s
        self._health = Health(names)
        self._calls = Calls()
        self._server = grpc.aio.server(
            interceptors=(self._calls,), options=OPTIONS, maximum_concurrent_rpcs=STREAMS_MAX
        )
        add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        add_reflection(self._server, names)

    async def __aenter__(self) -> Self:
        """PageferryError: it cannot listen there."""
        try_listening(self.address)  # grpc says less of what is wrong, and takes a live unix socket away
        try:
            with _only_for(OWNER_ONLY):
                port = self._server.add_insecure_port(str(self.address))
        except RuntimeError as error:
            raise PageferryError(
                Reason.GOING_AWAY, f"cannot listen on {self.address}", "choose another address"
            ) from error
        if self.address.path is None:
            self.address = Address(self.address.host, port)
        await self._server.start()
        await self.serving(self._serving_at_first)
        return self

    async def serving(self, now: bool) -> None:
        """What health says of every service here."""
        SERVING.set(now)
        await self._health.set(now)

    @property
    def open_calls(self) -> int:
        """Calls of the port's own services, health and reflection aside."""
        return self._calls.open

    async def drain(self) -> None:
        """NOT_SERVING, no new calls; streams end with GOING_AWAY, unary calls go on."""
        await self.serving(False)
        self._calls.drain()

    async def __aexit__(self, *_: object) -> None:
        """Calls may end by themselves for a while, then streams are told to, then all are cut."""
        await self.serving(False)
        if not await self._calls.wait_none_open(self._grace_s):
            await self.drain()
            await self._calls.wait_none_open(LAST_WORDS_S)
        await self._health.end()
        await self._server.stop(LAST_WORDS_S)
