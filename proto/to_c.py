# SPDX-License-Identifier: Apache-2.0
"""The part of the generator that writes C: native/gen/contract.h and native/gen/descriptors.h."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import wrap

from google.protobuf import descriptor_pb2 as pb

from pageferry import __version__
from pageferry.reasons import Reason, ReasonRow

NOTE = "/* SPDX-License-Identifier: Apache-2.0. Made by proto/generate.py; change what it reads. */"

CONTRACT = """\
{note}
/*
 * The contract as C: field numbers, enums and paths of proto/pageferry/v1/pages.proto, limits of
 * pageferry/limits.py, reasons of pageferry/reasons.py. Nothing but enums and macros.
 */
#ifndef PAGEFERRY_CONTRACT_H
#define PAGEFERRY_CONTRACT_H

/* Of the package; what we call ourselves on the wire. */
#define PF_VERSION "{version}"

{paths}{fields}{enums}{limits}
/* X(number, NAME, number of the gRPC status, "what it means") */
#define PF_REASONS(X) \\
{reasons}

#endif
"""

DESCRIPTORS = """\
{note}
/*
 * What reflection on the data port answers: each file as a serialised FileDescriptorProto, none of which
 * imports another, and the names that may be asked for; and the words of the standard services. Included by
 * one C file.
 */
#ifndef PAGEFERRY_DESCRIPTORS_H
#define PAGEFERRY_DESCRIPTORS_H

#include <stddef.h>
#include <stdint.h>
{words}{arrays}
struct pf_descriptor {{
    const char *file;
    const uint8_t *bytes;
    size_t length_bytes;
    const char *const *symbols; /* full names of services, methods, messages and enums; ends with NULL */
}};

#define PF_DESCRIPTOR_COUNT {count}
static const struct pf_descriptor pf_descriptors[PF_DESCRIPTOR_COUNT] = {{
{rows}
}};

/* What list_services answers. */
#define PF_SERVICE_COUNT {service_count}
static const char *const pf_services[PF_SERVICE_COUNT] = {{
{services}
}};

#endif
"""


def upper_snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def comment(text: str) -> str:
    lines = wrap(text, 104)
    if len(lines) == 1:
        return f"/* {lines[0]} */\n"
    return "/*\n" + "".join(f" * {line}\n" for line in lines) + " */\n"


def paths(package: str, service: pb.ServiceDescriptorProto, suffix: str = "") -> Iterator[str]:
    """Calls of ours go by their own name, those of other services have the service's in front."""
    for rpc in service.method:
        own = package.startswith("pageferry.") or rpc.name.startswith(service.name)
        name = upper_snake(rpc.name if own else service.name + rpc.name)
        yield f'#define PF_PATH_{name}{suffix} "/{package}.{service.name}/{rpc.name}"\n'


def field_numbers(message: pb.DescriptorProto) -> str:
    prefix = f"#define PF_FIELD_{upper_snake(message.name)}_"
    lines = [f"{prefix}{field.name.upper()} {field.number}\n" for field in message.field]
    return f"\n/* {message.name} */\n" + "".join(lines)


def c_enum(enum: pb.EnumDescriptorProto) -> str:
    """Value names get the enum's name in front, unless they have it, as C knows no scopes."""
    kind = upper_snake(enum.name)
    lines = [f"    PF_{kind}_{value.name.removeprefix(kind + '_')} = {value.number}" for value in enum.value]
    return f"\nenum pf_{kind.lower()} {{\n" + ",\n".join(lines) + "\n};\n"


# ------------------------------------------------------------------------------------------------- contract.h


def limit_reasons(source: Path) -> Iterator[tuple[str, str]]:
    """(name, the comment above it) of each limit; a second name under one comment has none of its own."""
    pattern = r"((?:^# [^-\n].*\n)+)((?:^[A-Z]\w*: Final.*\n)+)"
    for lines, names in re.findall(pattern, source.read_text(), re.MULTILINE):
        why = " ".join(line.removeprefix("# ") for line in lines.splitlines())
        for index, name in enumerate(re.findall(r"^(\w+)", names, re.MULTILINE)):
            yield name, why if index == 0 else ""


def contract_h(
    pages: pb.FileDescriptorProto,
    limits: Iterable[tuple[str, str, int]],
    reasons: Mapping[Reason, ReasonRow],
) -> str:
    rows = [f'    X({n.value}, {n.name}, {row.code.value}, "{row.sentence}")' for n, row in reasons.items()]
    return CONTRACT.format(
        note=NOTE,
        version=__version__,
        paths="".join(path for service in pages.service for path in paths(pages.package, service)),
        fields="".join(map(field_numbers, pages.message_type)),
        enums="".join(map(c_enum, pages.enum_type)),
        limits="".join(
            ("\n" + comment(why) if why else "") + f"#define PF_LIMIT_{name} {value}\n"
            for name, why, value in limits
        ),
        reasons=" \\\n".join(rows),
    )


# ---------------------------------------------------------------------------------------------- descriptors.h


def symbols(file: pb.FileDescriptorProto) -> Iterator[str]:
    """All that file_containing_symbol may be asked for. ghz asks for methods too."""
    for service in file.service:
        yield f"{file.package}.{service.name}"
        yield from (f"{file.package}.{service.name}.{rpc.name}" for rpc in service.method)
    for message in file.message_type:
        yield f"{file.package}.{message.name}"
        yield from (f"{file.package}.{message.name}.{enum.name}" for enum in message.enum_type)
    yield from (f"{file.package}.{enum.name}" for enum in file.enum_type)


def renamed(file: pb.FileDescriptorProto, old: str, new: str) -> pb.FileDescriptorProto:
    """The same file in another package."""
    copy = pb.FileDescriptorProto.FromString(file.SerializeToString())
    copy.name, copy.package = copy.name.replace(old.replace(".", "/"), new.replace(".", "/")), new
    for field in (field for message in copy.message_type for field in message.field):
        if field.type_name:
            field.type_name = field.type_name.replace(f".{old}.", f".{new}.")
    for rpc in (rpc for service in copy.service for rpc in service.method):
        rpc.input_type = rpc.input_type.replace(f".{old}.", f".{new}.")
        rpc.output_type = rpc.output_type.replace(f".{old}.", f".{new}.")
    return copy


def standard_words(file: pb.FileDescriptorProto) -> Iterator[str]:
    yield f"\n/* {file.name} */\n"
    for service in file.service:
        yield from paths(file.package, service)
    for message in file.message_type:
        yield field_numbers(message)
        yield from map(c_enum, message.enum_type)


def arrays(index: int, file: pb.FileDescriptorProto) -> str:
    assert not file.dependency, f"{file.name} has imports, which reflection would have to send too"
    data = file.SerializeToString(deterministic=True)
    lines = [", ".join(f"{byte:3d}" for byte in data[at : at + 20]) for at in range(0, len(data), 20)]
    return (
        f"\n/* {file.name} */\nstatic const uint8_t pf_descriptor_bytes_{index}[{len(data)}] = {{\n    "
        + ",\n    ".join(lines)
        + f"\n}};\nstatic const char *const pf_descriptor_symbols_{index}[] = {{\n"
        + "".join(f'    "{name}",\n' for name in symbols(file))
        + "    NULL\n};\n"
    )


def descriptors_h(
    pages: pb.FileDescriptorProto, health: pb.FileDescriptorProto, reflection: pb.FileDescriptorProto
) -> str:
    alpha = renamed(reflection, "grpc.reflection.v1", "grpc.reflection.v1alpha")
    alpha_paths = [path for service in alpha.service for path in paths(alpha.package, service, "_V1ALPHA")]
    files = [pages, health, reflection, alpha]
    rows = [
        f'    {{"{file.name}", pf_descriptor_bytes_{index}, sizeof pf_descriptor_bytes_{index},\n'
        f"     pf_descriptor_symbols_{index}}}"
        for index, file in enumerate(files)
    ]
    services = [f'    "{file.package}.{service.name}"' for file in files for service in file.service]
    return DESCRIPTORS.format(
        note=NOTE,
        words="".join([*standard_words(health), *standard_words(reflection), "\n", *alpha_paths]),
        arrays="".join(arrays(index, file) for index, file in enumerate(files)),
        count=len(files),
        rows=",\n".join(rows),
        service_count=len(services),
        services=",\n".join(services),
    )
