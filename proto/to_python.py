# SPDX-License-Identifier: Apache-2.0
"""The part of the generator that writes Python: *_pb2_grpc.pyi, types for calls, which protoc leaves out."""

from pathlib import PurePosixPath

from google.protobuf import descriptor_pb2 as pb

NOTE = "# SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads.\n"

IMPORTS = """\
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import grpc
import grpc.aio
"""

SERVICE = """
class {name}Stub:
    def __init__(self, channel: grpc.Channel | grpc.aio.Channel) -> None: ...
{stubs}
# For type checkers alone: what {name}Stub is over a channel of grpc.aio; cast to it.
class {name}AsyncStub:
{async_stubs}
# Each call may be plain or async.
class {name}Servicer:
{servicers}
def add_{name}Servicer_to_server(
    servicer: {name}Servicer, server: grpc.Server | grpc.aio.Server
) -> None: ...
"""


def grpc_pyi(file: pb.FileDescriptorProto) -> str:
    if not file.service:
        return ""
    # A message that is not of this file is of the one file of ours that this one imports.
    own = {f".{file.package}.{message.name}" for message in file.message_type}
    homes = [name for name in file.dependency if name.startswith("pageferry/")]
    names, modules = {}, set()
    for kind in (
        kind
        for service in file.service
        for rpc in service.method
        for kind in (rpc.input_type, rpc.output_type)
    ):
        module = PurePosixPath(file.name if kind in own else homes[0]).stem + "_pb2"
        names[kind] = f"{module}.{kind.rpartition('.')[2]}"
        modules.add(module)
    imports = "".join(f"from pageferry.v1 import {module}\n" for module in sorted(modules))
    return IMPORTS + imports + "".join(service_pyi(service, names) for service in file.service)


def service_pyi(service: pb.ServiceDescriptorProto, names: dict[str, str]) -> str:
    stubs, async_stubs, servicers = "", "", ""
    for rpc in service.method:
        asks, answers = names[rpc.input_type], names[rpc.output_type]
        shape = "".join("Stream" if on else "Unary" for on in (rpc.client_streaming, rpc.server_streaming))
        stubs += f"    {rpc.name}: grpc.{shape}MultiCallable[{asks}, {answers}]\n"
        async_stubs += f"    {rpc.name}: grpc.aio.{shape}MultiCallable[{asks}, {answers}]\n"
        request = "request_iterator: Any" if rpc.client_streaming else f"request: {asks}"
        answer = f"{answers} | Awaitable[{answers}]"
        if rpc.server_streaming:
            answer = f"Iterator[{answers}] | AsyncIterator[{answers}] | Awaitable[None]"
        servicers += f"    def {rpc.name}(\n        self, {request}, context: Any\n    ) -> {answer}: ...\n"
    return SERVICE.format(name=service.name, stubs=stubs, async_stubs=async_stubs, servicers=servicers)
