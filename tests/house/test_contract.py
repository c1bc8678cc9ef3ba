# SPDX-License-Identifier: Apache-2.0
"""The contract holds: generated files are fresh, what was promised stays, every end has the same words."""

import ctypes
import ctypes.util
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from pageferry import limits
from pageferry.phases import Phase
from pageferry.reasons import ROWS, Reason
from pageferry.v1 import pages_pb2

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "proto/pageferry/v1").glob("*.proto"))
PAGE_TEXT = (ROOT / "docs/protocol.md").read_text()


def generate(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "proto/generate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """All that the generator reads and writes, to be broken at will."""
    for name in ("proto", "pageferry/v1", "native/gen"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "limits.py", "reasons.py"):
        shutil.copy2(ROOT / "pageferry" / name, tmp_path / "pageferry" / name)
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r} to break"
    path.write_text(text.replace(old, new, 1))


# ------------------------------------------------------------------------------------------- fresh and frozen


def test_generated_files_are_fresh() -> None:
    done = generate(ROOT, "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("path", "old", "new", "stale"),
    [
        ("pageferry/limits.py", "RUNS_MAX: Final = 4096", "RUNS_MAX: Final = 4095", "native/gen/contract.h"),
        ("pageferry/reasons.py", '"a limit is reached"', '"a limit was reached"', "native/gen/contract.h"),
        ("proto/pageferry/v1/pages.proto", "bool live = 6;", "bool live = 66;", "proto/contract.freeze"),
        ("proto/grpc/health/v1/health.proto", "NOT_SERVING = 2", "RESTING = 2", "native/gen/descriptors.h"),
        ("pageferry/v1/pages_pb2_grpc.pyi", "Awaitable", "Iterator", "pageferry/v1/pages_pb2_grpc.pyi"),
        ("native/gen/descriptors.h", " 10,", " 11,", "native/gen/descriptors.h"),
    ],
)
def test_drift_is_seen(copy: Path, path: str, old: str, new: str, stale: str) -> None:
    change(copy / path, old, new)
    done = generate(copy, "--check")
    assert done.returncode == 1
    assert f"--- {stale}\n" in done.stdout


def test_a_file_that_nothing_generates_is_seen(copy: Path) -> None:
    (copy / "pageferry/v1/extra.py").write_text("")
    done = generate(copy, "--check")
    assert done.returncode == 1
    assert "pageferry/v1/extra.py" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("uint64 page_count = 2;", "string page_count = 2;", "changed type"),
        ("uint64 page = 2;", "", "was deleted"),
        ("fixed64 digest = 4;", "fixed64 digest = 14;", "was deleted"),
        ("RUN_KIND_LATER = 4", "RUN_KIND_LATER = 6", "was deleted"),
        ("rpc GetPage(GetPageRequest) returns (PageBatch);", "", 'RPC "GetPage"'),
        ("service PageService {", "service PagesService {", 'service "PageService"'),
        ("repeated uint64 runs = 3;", "uint64 runs = 3;", "cardinality"),
    ],
)
def test_a_broken_promise_is_not_frozen(copy: Path, old: str, new: str, complaint: str) -> None:
    change(copy / "proto/pageferry/v1/pages.proto", old, new)
    frozen = (copy / "proto/contract.freeze").read_text()
    done = generate(copy, "--freeze")
    assert done.returncode == 1
    assert complaint in done.stdout
    assert (copy / "proto/contract.freeze").read_text() == frozen


def test_what_is_added_can_be_frozen(copy: Path) -> None:
    change(copy / "proto/pageferry/v1/pages.proto", "uint64 page = 2;", "uint64 page = 2; uint64 pages = 3;")
    done = generate(copy, "--freeze")
    assert done.returncode == 0, done.stdout
    added = set((copy / "proto/contract.freeze").read_text().splitlines())
    added -= set((ROOT / "proto/contract.freeze").read_text().splitlines())
    assert added == {"field pageferry.v1.GetPageRequest.pages = 3: uint64"}


def test_buf_lint(tmp_path: Path) -> None:
    buf = Path(sysconfig.get_path("scripts"), "buf")
    environment = os.environ | {"BUF_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [buf, "lint"], cwd=ROOT / "proto", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --------------------------------------------------------------------------------------------- the same words


def without_prefix(enum: EnumTypeWrapper, prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): number for name, number in enum.items() if number}


def test_reasons_and_phases_are_those_of_the_contract() -> None:
    assert {reason.name: reason.value for reason in Reason} == without_prefix(pages_pb2.Reason, "REASON_")
    assert {phase.name: phase.value for phase in Phase} == without_prefix(pages_pb2.Phase, "PHASE_")


def test_the_codes_in_the_contracts_comments_are_those_of_the_table() -> None:
    text = (ROOT / "proto/pageferry/v1/pages.proto").read_text()
    comments = re.findall(r"^  REASON_(\w+) = [1-9]\d*; // (\w+)", text, re.MULTILINE)
    assert {name for name, _ in comments} == {reason.name for reason in Reason}
    # CANCELLED never is the status of a call, so the contract names no code for it.
    assert {name: code for name, code in comments if name != "CANCELLED"} == {
        reason.name: row.code.name for reason, row in ROWS.items() if reason is not Reason.CANCELLED
    }


def comments_of_calls(text: str) -> dict[str, str]:
    """By call (and, under the service's own name, its): the comment above it."""
    found = re.findall(r"((?:^ *//.*\n)+) *(?:rpc|service) (\w+)", text, re.MULTILINE)
    return {
        name: " ".join(re.sub(r"^ *// ?", "", line) for line in lines.splitlines()) for lines, name in found
    }


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_error_lists_name_reasons(proto: Path) -> None:
    known = {reason.name for reason in Reason} | {phase.name for phase in Phase}
    for call, comment in comments_of_calls(proto.read_text()).items():
        for names in re.findall(r"Errors(?: of all)?: (.*?)(?:\.(?= |$)|$)", comment):
            unknown = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", names)) - known
            assert not unknown, f"{call} in {proto.name} promises errors that no table has: {unknown}"


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.stem)
def test_every_call_has_an_error_list(proto: Path) -> None:
    text = proto.read_text()
    comments = comments_of_calls(text)
    services = re.findall(r"^service (\w+)", text, re.MULTILINE)
    if any("Errors of all:" in comments[service] for service in services):
        return
    for call in re.findall(r"^  rpc (\w+)", text, re.MULTILINE):
        assert "Errors:" in comments[call], f"{call} in {proto.name} does not say how it can fail"


# ------------------------------------------------------------------------------------------- what C was given

DUMP = r"""
#include <stdio.h>
#include "contract.h"
#include "descriptors.h"
#define REASON(number, name, code, sentence) printf("reason %d %s %d %s\n", number, #name, code, sentence);
int main(void)
{
    for (int file = 0; file < PF_DESCRIPTOR_COUNT; file++) {
        const struct pf_descriptor *it = &pf_descriptors[file];
        printf("file %s ", it->file);
        for (size_t at = 0; at < it->length_bytes; at++)
            printf("%02x", it->bytes[at]);
        for (const char *const *symbol = it->symbols; *symbol; symbol++)
            printf("\nsymbol %s", *symbol);
        printf("\n");
    }
    for (int service = 0; service < PF_SERVICE_COUNT; service++)
        printf("service %s\n", pf_services[service]);
    PF_REASONS(REASON)
    return 0;
}
"""


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The generated headers as a C program sees them, one list of words a line."""
    folder = tmp_path_factory.mktemp("dump")
    (folder / "dump.c").write_text(DUMP)
    warnings = ["-std=gnu17", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command = ["cc", *warnings, f"-I{ROOT}/native/gen", "-o", str(folder / "dump"), str(folder / "dump.c")]
    subprocess.run(command, check=True)
    out = subprocess.run([folder / "dump"], capture_output=True, text=True, check=True).stdout
    return [line.split(" ", 2) for line in out.splitlines()]


def described(dump: list[list[str]]) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    parse = descriptor_pb2.FileDescriptorProto.FromString
    return {line[1]: parse(bytes.fromhex(line[2])) for line in dump if line[0] == "file"}


def test_reflection_describes_our_service(dump: list[list[str]]) -> None:
    ours = described(dump)["pageferry/v1/pages.proto"]
    theirs = descriptor_pb2.FileDescriptorProto.FromString(pages_pb2.DESCRIPTOR.serialized_pb)
    for message in ours.message_type:
        for field in message.field:
            field.ClearField("json_name")
    assert ours == theirs


@pytest.mark.parametrize(
    ("file", "standard"),
    [
        ("grpc/health/v1/health.proto", health_pb2.DESCRIPTOR.serialized_pb),
        ("grpc/reflection/v1alpha/reflection.proto", reflection_pb2.DESCRIPTOR.serialized_pb),
    ],
)
def test_standard_services_agree_with_grpcs_own(dump: list[list[str]], file: str, standard: bytes) -> None:
    """We describe what we serve, not all there is; but what we describe is theirs."""
    ours, theirs = described(dump)[file], descriptor_pb2.FileDescriptorProto.FromString(standard)
    assert ours.package == theirs.package

    def fields(descriptor: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
        return {
            (message.name, field.name, field.number, field.type, field.label, field.type_name)
            for message in descriptor.message_type
            for field in message.field
        }

    def calls(descriptor: descriptor_pb2.FileDescriptorProto) -> set[tuple[object, ...]]:
        return {
            (rpc.name, rpc.input_type, rpc.output_type, rpc.client_streaming, rpc.server_streaming)
            for service in descriptor.service
            for rpc in service.method
        }

    assert fields(ours) and fields(ours) <= fields(theirs)
    assert calls(ours) and calls(ours) <= calls(theirs)


def test_reflection_knows_both_its_names(dump: list[list[str]]) -> None:
    files = described(dump)
    stable = files["grpc/reflection/v1/reflection.proto"]
    alpha = files["grpc/reflection/v1alpha/reflection.proto"]
    text = stable.SerializeToString()
    assert b"v1alpha" not in text
    assert str(alpha).replace("v1alpha", "v1") == str(stable)


def test_every_service_and_call_can_be_asked_for(dump: list[list[str]]) -> None:
    symbols = {line[1] for line in dump if line[0] == "symbol"}
    services = {line[1] for line in dump if line[0] == "service"}
    assert "pageferry.v1.PageService" in services
    assert services < symbols
    assert {"pageferry.v1.PageService.FetchPages", "pageferry.v1.PageBatch", "pageferry.v1.RunKind"} < symbols


def test_c_has_the_reasons(dump: list[list[str]]) -> None:
    lines = [" ".join(line[1:]) for line in dump if line[0] == "reason"]
    assert lines == [
        f"{reason.value} {reason.name} {row.code.value} {row.sentence}" for reason, row in ROWS.items()
    ]


# ------------------------------------------------------------------------------------------- docs/protocol.md


def table(heading: str) -> list[list[str]]:
    """The rows of the table under a heading row, by cells."""
    rows = PAGE_TEXT.partition(heading)[2].splitlines()[2:]
    cells = []
    for row in rows:
        if not row.startswith("|"):
            break
        cells.append([cell.strip() for cell in row.strip("|").split("|")])
    assert cells, f"docs/protocol.md has no table {heading!r}"
    return cells


def test_the_page_has_every_reason() -> None:
    rows = table("| reason | gRPC status | what a client does | exit code | meaning |")
    assert rows == [
        [reason.name, row.code.name, row.client.value, str(row.exit.value), row.sentence]
        for reason, row in ROWS.items()
    ]


def test_the_page_has_todays_limits() -> None:
    for name, value, _ in table("| limit | value | crossed |"):
        assert int(value) == getattr(limits, name.rpartition(": ")[2].strip("`")), name
    assert str(limits.BATCH_MESSAGE_BYTES_MAX) in PAGE_TEXT
    assert f"version {limits.IMMUTABLE_VERSION}" in PAGE_TEXT


@pytest.fixture(scope="module")
def xxh3() -> Callable[[bytes, int], int]:
    """libxxhash itself: the C library needs it, so it is here."""
    name = ctypes.util.find_library("xxhash")
    assert name, "libxxhash is missing (Debian: libxxhash0)"
    function = ctypes.CDLL(name).XXH3_64bits_withSeed
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
    return lambda data, seed: int(function(data, len(data), seed))


def words(numbers: list[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def hex_after(name: str) -> bytes:
    """The hex string of the example that stands behind `name =`, over as many lines as it takes."""
    match = re.search(rf"^    {name} +=((?:\s+[0-9a-f]{{2}}\b)+)", PAGE_TEXT, re.MULTILINE)
    assert match, name
    return bytes.fromhex("".join(match[1].split()))


def test_the_worked_example(xxh3: Callable[[bytes, int], int]) -> None:
    pages = [bytes(range(256)) * 16, bytes(4096), b"\x5a" * 4096, bytes(4096)]
    held = [words([index]) + page for index, page in enumerate(pages) if any(page)]
    content_id = xxh3(b"".join(held) + words([len(pages)]), 0)
    assert f"content_id = {content_id:#018x}\n" in PAGE_TEXT

    version, data, zero = limits.IMMUTABLE_VERSION, pages_pb2.RUN_KIND_DATA, pages_pb2.RUN_KIND_ZERO
    runs = [
        number for page, kind in enumerate((data, zero, data, zero)) for number in (page, 1, kind, version)
    ]
    bytes_sent = pages[0] + pages[2]
    digest = xxh3(words(runs) + bytes_sent, content_id)
    assert f"digest     = {digest:#018x}\n" in PAGE_TEXT
    assert f"`{xxh3(words([1, 1, zero, version]), content_id):#018x}`" in PAGE_TEXT

    request = pages_pb2.StreamPagesRequest(image="demo").SerializeToString()
    assert hex_after("request") == struct.pack(">BI", 0, len(request)) + request
    batch = pages_pb2.PageBatch(
        as_of=version, runs=runs, encoding=pages_pb2.ENCODING_IDENTITY, digest=digest, data=bytes_sent
    ).SerializeToString()
    assert hex_after("batch") + bytes_sent == batch
    assert f"The message is {len(batch)} bytes long" in PAGE_TEXT
