# SPDX-License-Identifier: Apache-2.0
"""A control port with a tiny service: exceptions become statuses, health, reflection, and an end that loses
nothing. The service has one method of each shape; what a call does stands in its request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from pageferry.limits import CONTROL_MESSAGE_BYTES_MAX
from pageferry.reasons import REASON_TRAILER, RETRY_AFTER_TRAILER, ROWS, PageferryError, Reason
from pageferry.service.addresses import Address
from pageferry.service.metrics import CALLS, CALLS_OPEN
from pageferry.service.serving import ControlPort
from pageferry.service.standard import DETAILS_TRAILER
from pageferry.v1 import faultclient_pb2

NAME = "pageferry.v1.FaultClientService"  # for reflection: its methods are those of the contract
TINY = "test.Tiny"
HEALTH = health_pb2.HealthCheckResponse

ANY_PORT = Address("127.0.0.1", 0)


class Tiny:
    def __init__(self) -> None:
        self.begun = asyncio.Event()  # a call that waits has begun
        self.go_on = asyncio.Event()

    def act(self, what: str) -> str:
        if what in Reason.__members__:
            raise PageferryError(Reason[what], "it broke", "mend it", retry_after_ms=7)
        if what == "bug":
            raise ZeroDivisionError("a secret")
        return what

    async def wait(self) -> None:
        self.begun.set()
        await self.go_on.wait()

    async def unary(self, request: StringValue, context: Any) -> StringValue:
        if request.value == "wait":
            await self.wait()
        if request.value == "abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "by itself")
        return StringValue(value=self.act(request.value))

    async def stream(self, request: StringValue, context: Any) -> AsyncIterator[StringValue]:
        yield StringValue(value="first")
        if request.value == "wait":
            await self.wait()
        yield StringValue(value=self.act(request.value))

    async def collect(self, requests: AsyncIterator[StringValue], context: Any) -> StringValue:
        return StringValue(value="".join([self.act(request.value) async for request in requests]))

    async def echo(self, requests: AsyncIterator[StringValue], context: Any) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=self.act(request.value))

    def add(self, server: grpc.aio.Server) -> None:
        form = (StringValue.FromString, StringValue.SerializeToString)
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self.unary, *form),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream, *form),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect, *form),
            "Echo": grpc.stream_stream_rpc_method_handler(self.echo, *form),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TINY, handlers),))


class Client:
    """Calls that give the answers, or raise what grpcio does."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        form = (StringValue.SerializeToString, StringValue.FromString)
        self.call_unary = channel.unary_unary(f"/{TINY}/Unary", *form)
        self.call_stream = channel.unary_stream(f"/{TINY}/Stream", *form)
        self.call_collect = channel.stream_unary(f"/{TINY}/Collect", *form)
        self.call_echo = channel.stream_stream(f"/{TINY}/Echo", *form)

    async def unary(self, what: str) -> list[str]:
        return [(await self.call_unary(StringValue(value=what))).value]

    async def stream(self, what: str) -> list[str]:
        return [answer.value async for answer in self.call_stream(StringValue(value=what))]

    async def collect(self, what: str) -> list[str]:
        return [(await self.call_collect(iter([StringValue(value=what)]))).value]

    async def echo(self, what: str) -> list[str]:
        return [answer.value async for answer in self.call_echo(iter([StringValue(value=what)]))]

    def watch(self, service: str = "") -> Any:
        return self.health.Watch(health_pb2.HealthCheckRequest(service=service))

    async def check(self, service: str = "") -> int:
        answer: HEALTH = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return answer.status


SHAPES = ("unary", "stream", "collect", "echo")


def with_port(test: Callable[[ControlPort, Tiny, Client], Awaitable[None]], *, grace_s: float = 5.0) -> None:
    async def run() -> None:
        tiny = Tiny()
        async with (
            asyncio.timeout(30),
            ControlPort(ANY_PORT, tiny.add, (NAME,)) as port,
            grpc.aio.insecure_channel(str(port.address)) as channel,
        ):
            await test(port, tiny, Client(channel))

    asyncio.run(run())


async def failure(call: Awaitable[Any]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def becomes(true: Callable[[], bool]) -> None:
    """A call's figures are settled a moment after its caller has the answer."""
    while not true():
        await asyncio.sleep(0.005)


def ended_calls(shape: str, reason: str) -> float:
    return float(CALLS.labels(f"/{TINY}/{shape.capitalize()}", reason)._value.get())


def google_rpc() -> tuple[Any, Any]:
    """Status and ErrorInfo as Google has them, for whoever has not their package."""
    file = descriptor_pb2.FileDescriptorProto(name="rpc.proto", package="google.rpc", syntax="proto3")
    file.dependency.append(any_pb2.DESCRIPTOR.name)
    forms = {
        "Status": [("code", 1, "INT32", 1), ("message", 2, "STRING", 1), ("details", 3, "MESSAGE", 3)],
        "ErrorInfo": [("reason", 1, "STRING", 1), ("domain", 2, "STRING", 1)],
    }
    for name, fields in forms.items():
        message = file.message_type.add(name=name)
        for field, number, kind, count in fields:
            made = message.field.add(name=field, number=number)
            made.type, made.label = getattr(made, f"TYPE_{kind}"), count  # type: ignore[assignment]
            if kind == "MESSAGE":
                made.type_name = ".google.protobuf.Any"
    pool: Any = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    find = pool.FindMessageTypeByName
    status, info = (message_factory.GetMessageClass(find(f"google.rpc.{name}")) for name in forms)
    return status, info


def details(trailer: bytes) -> tuple[int, str, str]:
    """Code, message and reason of a grpc-status-details-bin trailer."""
    status_class, info_class = google_rpc()
    status = status_class.FromString(trailer)
    (packed,) = status.details
    assert packed.type_url == "type.googleapis.com/google.rpc.ErrorInfo"
    info = info_class.FromString(packed.value)
    assert info.domain == "pageferry"
    return status.code, status.message, info.reason


def trailers(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata())


# --------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_comes_through(shape: str) -> None:
    async def answered(port: ControlPort, tiny: Tiny, client: Client) -> None:
        before = ended_calls(shape, "OK")
        assert (await getattr(client, shape)("well"))[-1] == "well"
        await becomes(lambda: ended_calls(shape, "OK") == before + 1)
        assert (port.open_calls, CALLS_OPEN._value.get()) == (0, 0)

    with_port(answered)


@pytest.mark.parametrize("reason", Reason)
def test_each_reason_is_a_status_with_its_trailer(reason: Reason) -> None:
    async def refused(port: ControlPort, tiny: Tiny, client: Client) -> None:
        for shape in SHAPES:
            error = await failure(getattr(client, shape)(reason.name))
            assert error.code().value[0] == ROWS[reason].code
            assert error.details() == "it broke; mend it"
            told = trailers(error)
            assert details(told.pop(DETAILS_TRAILER)) == (ROWS[reason].code, "it broke; mend it", reason.name)
            assert told == {REASON_TRAILER: reason.name, RETRY_AFTER_TRAILER: "7"}
        await becomes(lambda: all(ended_calls(shape, reason.name) > 0 for shape in SHAPES))
        await becomes(lambda: port.open_calls == 0)

    with_port(refused)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bug_of_ours_is_told_as_one_and_the_log_has_it(
    shape: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(port: ControlPort, tiny: Tiny, client: Client) -> None:
        error = await failure(getattr(client, shape)("bug"))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert trailers(error)[REASON_TRAILER] == "BUG"
        assert "secret" not in str(error.details())

    with_port(broken)
    written = capsys.readouterr()
    assert "a secret" in written.out + written.err


def test_a_status_that_a_method_has_chosen_stays() -> None:
    async def aborted(port: ControlPort, tiny: Tiny, client: Client) -> None:
        error = await failure(client.unary("abort"))
        assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "by itself")

    with_port(aborted)


def test_an_unknown_method() -> None:
    async def unknown(port: ControlPort, tiny: Tiny, client: Client) -> None:
        none: Any = client.channel.unary_unary("/test.Tiny/None")
        error = await failure(none(b""))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    with_port(unknown)


def test_a_message_that_is_too_long() -> None:
    async def too_long(port: ControlPort, tiny: Tiny, client: Client) -> None:
        error = await failure(client.unary("x" * CONTROL_MESSAGE_BYTES_MAX))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    with_port(too_long)


@pytest.mark.parametrize("shape", ["unary", "stream"])
def test_a_caller_that_goes_leaves_nothing_open(shape: str) -> None:
    async def gone(port: ControlPort, tiny: Tiny, client: Client) -> None:
        call = getattr(client, f"call_{shape}")(StringValue(value="wait"))
        await tiny.begun.wait()
        assert port.open_calls == 1
        call.cancel()
        await becomes(lambda: port.open_calls == 0)
        assert ended_calls(shape, "CANCELLED") > 0

    with_port(gone)


# ---------------------------------------------------------------------------------------------------- the end


def test_a_drain_ends_streams_and_refuses_new_calls_but_waits_for_what_is_in_work() -> None:
    async def drained(port: ControlPort, tiny: Tiny, client: Client) -> None:
        in_work = asyncio.create_task(client.unary("wait"))
        await tiny.begun.wait()
        tiny.begun.clear()
        streaming = asyncio.create_task(client.stream("wait"))
        await tiny.begun.wait()
        await port.drain()
        for call in (streaming, client.unary("new"), client.stream("new")):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert trailers(error)[REASON_TRAILER] == "GOING_AWAY"
        await becomes(lambda: port.open_calls == 1)
        assert await client.check() == HEALTH.NOT_SERVING
        tiny.go_on.set()
        assert await in_work == ["wait"]

    with_port(drained)


def test_the_end_of_the_port_waits_for_calls() -> None:
    async def run() -> None:
        tiny = Tiny()
        async with asyncio.timeout(30):
            async with ControlPort(ANY_PORT, tiny.add, (NAME,), grace_s=20) as port:
                channel = grpc.aio.insecure_channel(str(port.address))
                calls = [asyncio.create_task(Client(channel).stream("wait")) for _ in range(3)]
                await tiny.begun.wait()
                asyncio.get_running_loop().call_later(0.1, tiny.go_on.set)
            assert await asyncio.gather(*calls) == [["first", "wait"]] * 3
            await channel.close()

    asyncio.run(run())


def test_the_end_of_the_port_tells_streams_that_do_not_end() -> None:
    async def run() -> None:
        tiny = Tiny()
        async with asyncio.timeout(30):
            async with ControlPort(ANY_PORT, tiny.add, (NAME,), grace_s=0.05) as port:
                channel = grpc.aio.insecure_channel(str(port.address))
                call = asyncio.create_task(Client(channel).stream("wait"))
                watched = Client(channel).watch()
                assert (await watched.read()).status == HEALTH.SERVING
                await tiny.begun.wait()
            assert trailers(await failure(call))[REASON_TRAILER] == "GOING_AWAY"
            assert (await watched.read()).status == HEALTH.NOT_SERVING
            assert trailers(await failure(watched.read()))[REASON_TRAILER] == "GOING_AWAY"
            await channel.close()

    asyncio.run(run())


# -------------------------------------------------------------------------------------- health and reflection


def test_health_of_the_port_and_of_each_service() -> None:
    async def healthy(port: ControlPort, tiny: Tiny, client: Client) -> None:
        for now, status in ((True, HEALTH.SERVING), (False, HEALTH.NOT_SERVING)):
            await port.serving(now)
            assert await client.check() == await client.check(NAME) == status
            assert await client.check("liveness") == HEALTH.SERVING
        error = await failure(client.check("nobody"))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert (await client.watch("nobody").read()).status == HEALTH.SERVICE_UNKNOWN

    with_port(healthy)


def test_a_port_can_begin_without_serving() -> None:
    async def run() -> None:
        async with (
            ControlPort(ANY_PORT, Tiny().add, (), serving=False) as port,
            grpc.aio.insecure_channel(str(port.address)) as channel,
        ):
            assert await Client(channel).check() == HEALTH.NOT_SERVING

    asyncio.run(run())


def test_all_watchers_hear_of_a_change_when_one_has_left() -> None:
    """grpcio's own servicer drops what all of a service's watchers wait on when the first of them leaves."""

    async def watched(port: ControlPort, tiny: Tiny, client: Client) -> None:
        leaver, stayer = client.watch(), client.watch()
        for one in (leaver, stayer):
            assert (await one.read()).status == HEALTH.SERVING
        leaver.cancel()
        await client.check()
        for now, status in ((False, HEALTH.NOT_SERVING), (True, HEALTH.SERVING)):
            await port.serving(now)
            assert (await stayer.read()).status == status

    with_port(watched)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_as_tools_ask_it(version: str) -> None:
    question = reflection_pb2.ServerReflectionRequest

    async def reflected(port: ControlPort, tiny: Tiny, client: Client) -> None:
        ask = client.channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            question.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        symbols = [NAME, f"{NAME}.GetSession", "pageferry.v1.Session", "grpc.health.v1.Health.Check"]
        symbols.append(f"grpc.reflection.{version}.ServerReflection.ServerReflectionInfo")
        questions = [question(list_services=""), *(question(file_containing_symbol=name) for name in symbols)]
        questions += [
            question(file_containing_symbol=f"{NAME}.None"),
            question(file_containing_symbol="None"),
        ]
        listed, *files, no_method, no_symbol = [answer async for answer in ask(iter(questions))]
        assert [service.name for service in listed.list_services_response.service] == [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
            NAME,
        ]
        for name, file in zip(symbols, files, strict=True):
            assert file.file_descriptor_response.file_descriptor_proto, name
        for absent in (no_method, no_symbol):
            assert absent.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]

    assert NAME in {service.full_name for service in faultclient_pb2.DESCRIPTOR.services_by_name.values()}
    with_port(reflected)


# ------------------------------------------------------------------------------------------------- addresses


def test_a_second_port_on_the_same_address_is_an_error() -> None:
    async def twice(port: ControlPort, tiny: Tiny, client: Client) -> None:
        with pytest.raises(PageferryError, match="in use"):
            async with ControlPort(port.address, tiny.add, ()):
                pass
        assert await client.check() == HEALTH.SERVING

    with_port(twice)


def test_a_unix_socket_is_its_owners_and_goes_with_the_port(tmp_path: Path) -> None:
    path = tmp_path / "control"

    async def run() -> None:
        async with ControlPort(Address(path=path), Tiny().add, ()) as port:
            assert str(port.address) == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o600
            with pytest.raises(PageferryError, match="in use"):
                async with ControlPort(Address(path=path), Tiny().add, ()):
                    pass
            async with grpc.aio.insecure_channel(str(port.address)) as channel:
                assert await Client(channel).unary("well") == ["well"]

    asyncio.run(run())
    assert not path.exists()
