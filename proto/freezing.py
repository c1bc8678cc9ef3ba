# SPDX-License-Identifier: Apache-2.0
"""The part of the generator that watches promises: contract.freeze, what peers may rely on, as a text.

One line for each message, field, call and enum value of ours, sorted. The text holds all that matters on the
wire, so the contract that was frozen can be built again from it, and `buf breaking` compares the contract of
today with that: no second, binary copy is kept.
"""

import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb
from google.protobuf import timestamp_pb2

FIELD = pb.FieldDescriptorProto
LINE = re.compile(
    r"(message|field|rpc|enum) (\w[\w.]*)(?: = (\d+)(?:: (repeated )?(\w[\w.]*))?|\((.*)\) -> (.*))?"
)
BUF = Path(sysconfig.get_path("scripts"), "buf")


def freeze(files: Iterable[pb.FileDescriptorProto]) -> str:
    return "\n".join(sorted(line for file in files for line in frozen_lines(file))) + "\n"


def frozen_lines(file: pb.FileDescriptorProto) -> Iterator[str]:
    for service in file.service:
        for rpc in service.method:
            asks, answers = ("stream " * on for on in (rpc.client_streaming, rpc.server_streaming))
            types = f"({asks}{rpc.input_type[1:]}) -> {answers}{rpc.output_type[1:]}"
            yield f"rpc {file.package}.{service.name}.{rpc.name}{types}"
    for message in file.message_type:
        yield f"message {file.package}.{message.name}"
        for field in message.field:
            many = "repeated " * (field.label == FIELD.LABEL_REPEATED)
            kind = field.type_name[1:] or FIELD.Type.Name(field.type).removeprefix("TYPE_").lower()
            yield f"field {file.package}.{message.name}.{field.name} = {field.number}: {many}{kind}"
    for enum in file.enum_type:
        yield from (f"enum {file.package}.{enum.name}.{value.name} = {value.number}" for value in enum.value)


def thaw(text: str, package: str) -> pb.FileDescriptorSet:
    """The contract that a freeze was made from, as one file."""
    file = pb.FileDescriptorProto(name="frozen.proto", package=package, syntax="proto3")
    messages: dict[str, pb.DescriptorProto] = {}
    enums: dict[str, pb.EnumDescriptorProto] = {}
    services: dict[str, pb.ServiceDescriptorProto] = {}
    # Messages and enums first, then what names them; numbers in order, as an enum begins with its 0.
    lines = [LINE.fullmatch(line) for line in text.splitlines()]
    parsed = [match.groups() for match in lines if match]
    assert len(parsed) == len(lines), "proto/contract.freeze has a line that is none of ours"
    parsed.sort(
        key=lambda groups: (("message", "enum", "field", "rpc").index(groups[0]), int(groups[2] or 0))
    )
    for what, name, number, many, kind, asks, answers in parsed:
        owner, _, last = name.removeprefix(package + ".").partition(".")
        if what == "message":
            messages[owner] = file.message_type.add(name=owner)
        elif what == "enum":
            enums[owner] = enums.get(owner) or file.enum_type.add(name=owner)
            enums[owner].value.add(name=last, number=int(number))
        elif what == "field":
            messages[owner].field.append(field_of(last, int(number), bool(many), kind, enums.keys(), package))
        else:
            services[owner] = services.get(owner) or file.service.add(name=owner)
            services[owner].method.add(
                name=last,
                input_type="." + asks.removeprefix("stream "),
                output_type="." + answers.removeprefix("stream "),
                client_streaming=asks.startswith("stream "),
                server_streaming=answers.startswith("stream "),
            )
    timestamp = pb.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    file.dependency.append(timestamp.name)
    return pb.FileDescriptorSet(file=[timestamp, file])


def field_of(name: str, number: int, many: bool, kind: str, enums: Iterable[str], package: str) -> FIELD:
    words = name.split("_")
    field = FIELD(name=name, number=number, json_name=words[0] + "".join(map(str.title, words[1:])))
    field.label = FIELD.LABEL_REPEATED if many else FIELD.LABEL_OPTIONAL
    if "." not in kind:
        field.type = FIELD.Type.Value("TYPE_" + kind.upper())
    else:
        field.type_name = "." + kind
        field.type = FIELD.TYPE_ENUM if kind.removeprefix(package + ".") in enums else FIELD.TYPE_MESSAGE
    return field


def buf(folder: Path, *arguments: str) -> str:
    """What buf complains about; empty when it is content. Offline: the contract imports nothing foreign."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"BUF_CACHE_DIR": cache}
        done = subprocess.run(
            [BUF, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    complaint = (done.stdout + done.stderr).strip()
    return complaint or (f"buf {arguments[0]} failed" if done.returncode else "")


def breaking(folder: Path, frozen: str, package: str) -> str:
    """How the protos in `folder` break what the freeze promises; empty when they do not."""
    with tempfile.TemporaryDirectory() as temporary:
        image = Path(temporary, "frozen.binpb")
        image.write_bytes(thaw(frozen, package).SerializeToString())
        return buf(folder, "breaking", "--against", str(image))
