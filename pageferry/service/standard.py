# SPDX-License-Identifier: Apache-2.0
"""What every gRPC program expects of a port: grpc.health.v1 and reflection; and how a call is refused."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from pageferry.reasons import REASON_TRAILER, RETRY_AFTER_TRAILER, PageferryError, Reason

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


# What grpc's own libraries read the details of an error from.
DETAILS_TRAILER: Final = "grpc-status-details-bin"
DOMAIN: Final = "pageferry"


def error_info(error: PageferryError) -> bytes:
    """google.rpc.Status{code, message, details: [google.rpc.ErrorInfo{reason, domain}]} as protobuf has it.
    (Three fields are no reason to depend on the package that has them.)"""
    info = _text(1, error.reason.name) + _text(2, DOMAIN)
    packed = _text(1, "type.googleapis.com/google.rpc.ErrorInfo") + _bytes(2, info)
    code = bytes((1 << 3, int(error.row.code)))
    return code + _text(2, str(error)) + _bytes(3, packed)


def _text(number: int, text: str) -> bytes:
    return _bytes(number, text.encode(errors="replace"))


def _bytes(number: int, data: bytes) -> bytes:
    length, left = b"", len(data)
    while left > 0x7F:
        length, left = length + bytes((left & 0x7F | 0x80,)), left >> 7
    return bytes((number << 3 | 2,)) + length + bytes((left,)) + data


async def refuse(context: Context, error: PageferryError) -> None:
    """Ends the call with the status and the trailers of a reason."""
    trailers: list[tuple[str, str | bytes]] = [
        (REASON_TRAILER, error.reason.name),
        (DETAILS_TRAILER, error_info(error)),
    ]
    if error.retry_after_ms is not None:
        trailers.append((RETRY_AFTER_TRAILER, str(error.retry_after_ms)))
    await context.abort(CODES[error.row.code], str(error), tuple(trailers))


def going_away() -> PageferryError:
    return PageferryError(Reason.GOING_AWAY, "this process is ending", "call again, or another one")


# ----------------------------------------------------------------------------------------------------- health


class Health(health_pb2_grpc.HealthServicer):
    """grpc.health.v1 for the port as a whole, for each service, and for "liveness", which says that the
    process answers at all. (grpcio's own servicer forgets the other watchers of a service when one leaves.)
    """

    LIVENESS: Final = "liveness"

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(("", *names))
        self._serving = False
        self._over = False
        self._news = asyncio.Condition()

    async def set(self, serving: bool) -> None:
        async with self._news:
            self._serving = serving
            self._news.notify_all()

    async def end(self) -> None:
        """Watchers hear the last status, and that this process is ending."""
        async with self._news:
            self._serving, self._over = False, True
            self._news.notify_all()

    def _status(self, name: str) -> int:
        if name == self.LIVENESS or (name in self._names and self._serving):
            return health_pb2.HealthCheckResponse.SERVING
        if name in self._names:
            return health_pb2.HealthCheckResponse.NOT_SERVING
        return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            error = PageferryError(Reason.NO_SUCH_IMAGE, f"this port has no service {request.service!r}")
            await refuse(context, error)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        told = None
        while True:
            async with self._news:
                while told == (status := self._status(request.service)) and not self._over:
                    await self._news.wait()
            if told == status:
                break
            told = status
            yield health_pb2.HealthCheckResponse(status=status)
        await refuse(context, going_away())


# ------------------------------------------------------------------------------------------------- reflection


class Descriptors:
    """The pool of all descriptors as reflection asks it: by a method's name too, as ghz does, which the pool
    of protobuf does not know (ghz#419, grpc#34743); and with reflection v1, which grpcio does not have.
    """

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]
        self._own = cast(Any, descriptor_pool.DescriptorPool())
        self._own.Add(reflection_v1())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileByName(self, name: str) -> Any:
        return self._found("FindFileByName", name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._found("FindFileContainingSymbol", symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            if method not in self._found("FindServiceByName", service).methods_by_name:
                raise
            return self._found("FindFileContainingSymbol", service)

    def _found(self, how: str, name: str) -> Any:
        try:
            return getattr(self._pool, how)(name)
        except KeyError:
            return getattr(self._own, how)(name)


REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"


def reflection_v1() -> descriptor_pb2.FileDescriptorProto:
    """Reflection v1 is v1alpha under another name."""
    file = descriptor_pb2.FileDescriptorProto()
    known: Any = reflection_pb2.DESCRIPTOR
    known.CopyToProto(file)
    file.name = "grpc/reflection/v1/reflection.proto"
    old, file.package = f".{file.package}.", REFLECTION_V1.rpartition(".")[0]
    for field in (field for message in file.message_type for field in message.field):
        if field.type_name:  # else it is a plain number or string
            field.type_name = field.type_name.replace(old, f".{file.package}.")
    for method in (method for service in file.service for method in service.method):
        method.input_type = method.input_type.replace(old, f".{file.package}.")
        method.output_type = method.output_type.replace(old, f".{file.package}.")
    return file


def add_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    listed = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, REFLECTION_V1)
    servicer: Any = reflection.aio.ReflectionServicer((*listed, reflection.SERVICE_NAME), pool=Descriptors())
    call = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (REFLECTION_V1, reflection.SERVICE_NAME):
        handlers = grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": call})
        server.add_generic_rpc_handlers((handlers,))
