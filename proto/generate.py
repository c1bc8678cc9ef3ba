# SPDX-License-Identifier: Apache-2.0
"""The only generator: proto/, pageferry/limits.py and pageferry/reasons.py -> all that derives from them.

    python proto/generate.py            writes pageferry/v1/* and native/gen/{contract,descriptors}.h
    python proto/generate.py --check    only compares: a diff and exit 1 where a checked-in file is stale
    python proto/generate.py --freeze   promises the contract as it is: writes contract.freeze, unless that
                                        breaks what was promised before (--break: even so)

Everything is checked in: C builds where Python is absent, and nobody but us needs a protobuf compiler.
"""

import argparse
import difflib
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import freezing  # noqa: E402
import to_c  # noqa: E402
import to_python  # noqa: E402

from pageferry import limits  # noqa: E402
from pageferry.reasons import ROWS  # noqa: E402

# Generated code refuses to run on an older runtime, so the compiler is the oldest that we support. It needs
# protobuf 6, and satellites (health checking, reflection) of its own age beside it; what it makes runs with
# protobuf 7 as well. A user's environment needs RUNTIME_PINS, nothing narrower.
GRPCIO_TOOLS_PIN = "1.76.0"
RUNTIME_PINS = ("grpcio>=1.76,<2", "protobuf>=6.31.1,<8")

OURS = ("pageferry/v1/pages.proto", "pageferry/v1/migrations.proto", "pageferry/v1/faultclient.proto")
STANDARD = ("grpc/health/v1/health.proto", "grpc/reflection/v1/reflection.proto")
PACKAGE = "pageferry.v1"
FREEZE = "proto/contract.freeze"


def protoc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *arguments], check=True)


def describe() -> dict[str, pb.FileDescriptorProto]:
    """The files as the compiler sees them, without comments."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "set")
        protoc(f"--descriptor_set_out={out}", *OURS, *STANDARD)
        return {file.name: file for file in pb.FileDescriptorSet.FromString(out.read_bytes()).file}


def python_files(files: dict[str, pb.FileDescriptorProto]) -> dict[str, str]:
    """The package pageferry.v1: what the compiler writes, and types for the calls, which it does not."""
    with tempfile.TemporaryDirectory() as folder:
        protoc(f"--python_out={folder}", f"--pyi_out={folder}", f"--grpc_python_out={folder}", *OURS)
        texts = {str(path.relative_to(folder)): path.read_text() for path in Path(folder).rglob("*.py*")}
    # The compiler's types name a bare Mapping, which a strict type checker refuses.
    made = {name: text.replace("_Mapping]", "_Mapping[str, object]]") for name, text in texts.items()}
    made["pageferry/v1/__init__.py"] = '"""The contract as Python modules."""\n'
    for name in OURS:
        made[name.replace(".proto", "_pb2_grpc.pyi")] = to_python.grpc_pyi(files[name])
    return {name: to_python.NOTE + text for name, text in made.items()}


def generate(files: dict[str, pb.FileDescriptorProto]) -> dict[str, str]:
    """Everything, by path from the root."""
    for_c = [
        (name, why, getattr(limits, name))
        for name, why in to_c.limit_reasons(ROOT / "pageferry/limits.py")
        if not name.startswith("DEFAULT_")
    ]
    pages, health, reflection = (files[name] for name in (OURS[0], *STANDARD))
    return python_files(files) | {
        "native/gen/contract.h": to_c.contract_h(pages, for_c, ROWS),
        "native/gen/descriptors.h": to_c.descriptors_h(pages, health, reflection),
    }


def drift(wanted: dict[str, str]) -> str:
    """A diff from what is checked in to what should be; empty when all is fresh."""
    diff: list[str] = []
    for name, text in wanted.items():
        path = ROOT / name
        old = path.read_text() if path.exists() else ""
        diff += difflib.unified_diff(
            old.splitlines(True), text.splitlines(True), name, f"{name} (would be)", n=1
        )
    left = {str(path.relative_to(ROOT)) for path in (ROOT / "pageferry/v1").glob("*.py*")} - wanted.keys()
    diff += [f"--- {name}\n+++ /dev/null (nothing makes it)\n" for name in sorted(left)]
    return "".join(diff)


def write(wanted: dict[str, str]) -> None:
    for name, text in sorted(wanted.items()):
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        new.replace(path)
        print(f"generate: {name}")


def broken_promises() -> str:
    frozen = ROOT / FREEZE
    return freezing.breaking(ROOT / "proto", frozen.read_text(), PACKAGE) if frozen.exists() else ""


def main() -> int:
    parser = argparse.ArgumentParser(description="generates all that derives from the contract")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if a file is stale")
    parser.add_argument("--freeze", action="store_true", help="promise the contract as it is now")
    parser.add_argument(
        "--break", action="store_true", dest="may_break", help="with --freeze: break promises"
    )
    arguments = parser.parse_args()
    if (found := version("grpcio-tools")) != GRPCIO_TOOLS_PIN:
        print(f"generate: needs grpcio-tools {GRPCIO_TOOLS_PIN}, found {found}", file=sys.stderr)
        return 1
    files = describe()
    frozen = {FREEZE: freezing.freeze(files[name] for name in OURS)}
    if arguments.check:
        diff = drift(frozen | generate(files))
        print(
            f"{diff}generate: stale; make generate, or --freeze for a change on purpose" if diff else "fresh"
        )
        return 1 if diff else 0
    if arguments.freeze and not arguments.may_break and (broken := broken_promises()):
        print(f"{broken}\ngenerate: this breaks peers that rely on {FREEZE}")
        return 1
    write(frozen if arguments.freeze else generate(files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
