# SPDX-License-Identifier: Apache-2.0
"""What every gRPC program expects, on the data port: health, and reflection as its users use it."""

import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2 as reflection
from grpc_reflection.v1alpha import reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from pageferry.v1 import pages_pb2 as pb
from tests.wire.page_server import Image, PageServer

Status = health_pb2.HealthCheckResponse
OURS = "pageferry.v1.PageService"
SERVICES = [
    OURS,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]
METHODS = ["DescribeImage", "GetPage", "FetchPages", "StreamPages"]
REFLECTIONS = [name for name in SERVICES if name.endswith("ServerReflection")]


# ----------------------------------------------------------------------------------------------------- health


@pytest.mark.parametrize("service", ["", OURS])
def test_health_follows_what_it_is_told(image: Image, service: str) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    with PageServer({"vm": image.path}) as server, channel_to(server) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for serving, status in ((1, Status.SERVING), (0, Status.NOT_SERVING), (1, Status.SERVING)):
            assert server.order("health", serving) == "ok"
            assert health.Check(request).status == status
        server.order("drain")
        assert health.Check(request).status == Status.NOT_SERVING, "a server that drains is not serving"


def test_health_of_another_service(channel: grpc.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="other"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_who_watches_health_is_told_of_changes(image: Image) -> None:
    with PageServer({"vm": image.path}, threads=2) as server, channel_to(server) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        ours, all_of_it, unknown = (
            health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in (OURS, "", "other")
        )
        assert next(unknown).status == Status.SERVICE_UNKNOWN
        assert [next(ours).status, next(all_of_it).status] == [Status.SERVING] * 2
        server.order("health", 1)  # no change, nothing to tell
        server.order("health", 0)
        assert [next(ours).status, next(all_of_it).status] == [Status.NOT_SERVING] * 2
        server.order("health", 1)
        assert [next(ours).status, next(all_of_it).status] == [Status.SERVING] * 2
        server.order("drain")
        assert [next(ours).status, next(all_of_it).status] == [Status.NOT_SERVING] * 2
        assert server.order("open_calls") == "0", "who watches health keeps no drain from its end"


# ------------------------------------------------------------------------------------------------- reflection


def test_grpcio_builds_messages_from_reflection_alone(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert list(database.get_services()) == SERVICES
    pool: Any = descriptor_pool.DescriptorPool(database)
    service = pool.FindServiceByName(OURS)
    assert [method.name for method in service.methods] == METHODS
    batch = pool.FindMessageTypeByName("pageferry.v1.PageBatch")
    assert batch.fields_by_name["data"].number == 15
    for name in SERVICES:
        assert pool.FindServiceByName(name).full_name == name


def test_the_descriptor_is_that_of_the_contract(channel: grpc.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection.ServerReflectionRequest(host="h", file_by_filename="pageferry/v1/pages.proto")
    (answer,) = stub.ServerReflectionInfo(iter([asked]))
    assert (answer.valid_host, answer.original_request) == ("h", asked)
    (data,) = answer.file_descriptor_response.file_descriptor_proto
    theirs = descriptor_pb2.FileDescriptorProto.FromString(data)
    ours = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    for field in (field for message in theirs.message_type for field in message.field):
        field.ClearField("json_name")  # which generated Python does not keep
    assert theirs == ours


@pytest.mark.parametrize("service", REFLECTIONS)
def test_every_name_leads_to_its_file(channel: grpc.Channel, service: str) -> None:
    names = {
        "pageferry.v1.PageService": "pageferry/v1/pages.proto",
        "pageferry.v1.PageService.GetPage": "pageferry/v1/pages.proto",
        "pageferry.v1.PageBatch": "pageferry/v1/pages.proto",
        "pageferry.v1.RunKind": "pageferry/v1/pages.proto",
        "grpc.health.v1.Health.Watch": "grpc/health/v1/health.proto",
        "grpc.health.v1.HealthCheckResponse.ServingStatus": "grpc/health/v1/health.proto",
        "grpc.reflection.v1.ServerReflection": "grpc/reflection/v1/reflection.proto",
        "grpc.reflection.v1alpha.ErrorResponse": "grpc/reflection/v1alpha/reflection.proto",
    }
    requests = [reflection.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    answers = list(call_reflection(channel, service, requests))
    for answer, path in zip(answers, names.values(), strict=True):
        (data,) = answer.file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(data).name == path


Q = reflection.ServerReflectionRequest


@pytest.mark.parametrize("service", REFLECTIONS)
@pytest.mark.parametrize(
    ("question", "code"),
    [
        (Q(file_containing_symbol="pageferry.v1.Nothing"), grpc.StatusCode.NOT_FOUND),
        (Q(file_by_filename="other.proto"), grpc.StatusCode.NOT_FOUND),
        (Q(all_extension_numbers_of_type="other.Type"), grpc.StatusCode.NOT_FOUND),
        (Q(file_containing_extension={"containing_type": OURS}), grpc.StatusCode.NOT_FOUND),
        (Q(), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=["symbol", "file", "type", "extension", "nothing"],
)
def test_what_is_not_there_is_said_in_band(
    channel: grpc.Channel, service: str, question: reflection.ServerReflectionRequest, code: grpc.StatusCode
) -> None:
    good = Q(list_services="")
    bad, listed = call_reflection(channel, service, [question, good])
    assert bad.error_response.error_code == code.value[0]
    assert bad.error_response.error_message
    assert [one.name for one in listed.list_services_response.service] == SERVICES


def test_a_type_without_extensions(channel: grpc.Channel) -> None:
    question = Q(all_extension_numbers_of_type="pageferry.v1.PageBatch")
    (answer,) = call_reflection(channel, REFLECTIONS[0], [question])
    assert answer.all_extension_numbers_response.base_type_name == "pageferry.v1.PageBatch"
    assert not answer.all_extension_numbers_response.extension_number


@pytest.mark.parametrize(
    "question", [b"\xff\xff", b"\x22\xff\x7f" + b"x" * 16_383], ids=["no message", "a long name"]
)
def test_what_no_honest_program_asks(channel: grpc.Channel, question: bytes) -> None:
    call = channel.stream_stream(f"/{REFLECTIONS[0]}/ServerReflectionInfo", bytes, bytes)
    with pytest.raises(grpc.RpcError) as caught:
        list(call(iter([question])))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_of_questions_is_answered_one_by_one(channel: grpc.Channel) -> None:
    requests: queue.SimpleQueue[reflection.ServerReflectionRequest | None] = queue.SimpleQueue()
    answers = call_reflection(channel, REFLECTIONS[1], iter(requests.get, None))
    for name in SERVICES * 5:
        requests.put(Q(file_containing_symbol=name))
        assert next(answers).original_request.file_containing_symbol == name
    requests.put(None)
    assert list(answers) == []


def channel_to(server: PageServer) -> grpc.Channel:
    return grpc.insecure_channel(server.address)


def call_reflection(
    channel: grpc.Channel, service: str, requests: Iterable[reflection.ServerReflectionRequest]
) -> Iterator[reflection.ServerReflectionResponse]:
    """v1 and v1alpha have the same messages; grpcio brings stubs for the latter alone."""
    call = channel.stream_stream(
        f"/{service}/ServerReflectionInfo",
        reflection.ServerReflectionRequest.SerializeToString,
        reflection.ServerReflectionResponse.FromString,
    )
    return call(iter(requests))


# ------------------------------------------------------------------------------------- without an interpreter


def test_all_of_it_works_while_python_is_stopped(server: PageServer) -> None:
    """The program is C alone: what it links proves that nothing here waits for an interpreter."""
    command = ["ldd", f"/proc/{server.pid}/exe"]
    linked = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "libnghttp2" in linked
    assert "python" not in linked and Path(sys.executable).name not in linked
