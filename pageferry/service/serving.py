# SPDX-License-Identifier: Apache-2.0
"""A control port: grpc.aio with health, reflection, and the one place where exceptions become statuses."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self, TypeAlias, cast

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from pageferry.limits import CONTROL_MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from pageferry.reasons import REASON_TRAILER, RETRY_AFTER_TRAILER, PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.logs import log
from pageferry.service.metrics import CALL_SECONDS, CALLS, CALLS_OPEN

OPTIONS: Final = (
    ("grpc.so_reuseport", 0),  # else a second server takes half of the calls without a word
    ("grpc.max_receive_message_length", CONTROL_MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def refuse(context: Context, error: PageferryError) -> None:
    """Ends the call with the status and the trailers of a reason."""
    trailers = [(REASON_TRAILER, error.reason.name)]
    if error.retry_after_ms is not None:
        trailers.append((RETRY_AFTER_TRAILER, str(error.retry_after_ms)))
    code = next(code for code in grpc.StatusCode if code.value[0] == error.row.code)
    await context.abort(code, str(error), tuple(trailers))


class Translator(grpc.aio.ServerInterceptor):
    """PageferryError is a status with its reason; anything else is BUG, and the log has the traceback."""

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        handler = await continuation(details)
        if handler is None or handler.request_streaming:
            return handler  # health and reflection: none of our own calls streams requests
        method = str(details.method)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, method: str, call: Any) -> Any:
        async def translated(request: Any, context: Context) -> Any:
            with _Counted(method):
                try:
                    return await call(request, context)
                except PageferryError as error:
                    await refuse(context, error)
                except (grpc.aio.AbortError, grpc.aio.BaseError):
                    raise
                except Exception as error:  # noqa: BLE001  # the last place that can say it
                    await self._bug(method, context, error)

        return translated

    def _stream(self, method: str, call: Any) -> Any:
        async def translated(request: Any, context: Context) -> Any:
            with _Counted(method):
                try:
                    async for answer in call(request, context):
                        yield answer
                except PageferryError as error:
                    await refuse(context, error)
                except (grpc.aio.AbortError, grpc.aio.BaseError):
                    raise
                except Exception as error:  # noqa: BLE001
                    await self._bug(method, context, error)

        return translated

    async def _bug(self, method: str, context: Context, error: Exception) -> None:
        log.error("call_failed", method=method, exc_info=error)
        await refuse(context, PageferryError(Reason.BUG, f"{type(error).__name__} in {method}"))


class _Counted:
    """Counts a call, and how long it took."""

    def __init__(self, method: str) -> None:
        self._method = method

    def __enter__(self) -> None:
        CALLS.labels(self._method).inc()
        CALLS_OPEN.inc()
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        CALLS_OPEN.dec()
        CALL_SECONDS.labels(self._method).observe(time.monotonic() - self._began)


class MethodPool:
    """Reflection's descriptors, found by a method's name too: ghz asks for those, and protobuf's own pool
    does not know them (ghz#419, grpc#34743)."""

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            if method not in self._pool.FindServiceByName(service).methods_by_name:
                raise
            return self._pool.FindFileContainingSymbol(service)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class ControlPort:
    """Up while its `async with` lasts. `add` puts the services in; `names` are theirs."""

    def __init__(
        self,
        address: Address,
        add: Callable[[grpc.aio.Server], None],
        names: Sequence[str],
        *,
        grace_s: float = 5.0,
    ) -> None:
        self._asked = address
        self._grace_s = grace_s
        self._health = health.aio.HealthServicer()
        self._names = ("", *names)
        self._server = grpc.aio.server(interceptors=(Translator(),), options=OPTIONS)
        add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server, pool=cast(Any, MethodPool())
        )
        self.address = address

    async def __aenter__(self) -> Self:
        try:
            port = self._server.add_insecure_port(str(self._asked))
        except RuntimeError as error:
            raise PageferryError(
                Reason.GOING_AWAY, f"cannot listen on {self._asked}", "is it in use? name another"
            ) from error
        if self._asked.path is None:
            self.address = Address(self._asked.host, port)
        await self._server.start()
        await self.serving(True)
        return self

    async def serving(self, now: bool) -> None:
        """What health says of every service here."""
        status = health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, status)

    async def __aexit__(self, *_: object) -> None:
        await self.serving(False)
        await self._server.stop(self._grace_s)
