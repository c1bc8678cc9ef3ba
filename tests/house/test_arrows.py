# SPDX-License-Identifier: Apache-2.0
"""No arrow runs upward: C includes and Python imports are those that the table in docs/design.md allows."""

import ast
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from tests.house.arrows import Arrow, arrows
from tests.house.tracked import ROOT, text_of, tracked

PACKAGES = ("pageferry", "pageserver", "faultclient")
# who may see cffi: the one that loads the library, and the two that give its orders
SEES_CFFI = {"pageferry/service/native.py", "pageserver/dataplane.py", "faultclient/pager.py"}
# "gRPC types never leave the service modules"
SEES_GRPC = re.compile(
    r"(pageserver|faultclient)/(service|server)\.py|faultclient/source\.py|faultclient/commands/\w+\.py"
    r"|pageferry/service/(serving|standard|tls|refusals|poison_commands)\.py|pageferry/v1/\w+\.py"
)
# the words that both services share: pure, so that anything may import them
WORDS = re.compile(r"pageferry/(units|limits|reasons|phases)\.py")


def test_the_table_reads_as_it_is_meant() -> None:
    table = arrows()
    assert {"faultclient", "pageserver", "pageferry", "native/client", "native/kernel"} <= table.keys()
    assert Arrow("native/pager", "native/kernel/kernel_ops.h") in table["native/pager"]
    assert Arrow("pageferry", "native/pageferry.h", "service/native.py") in table["pageferry"]
    assert Arrow("faultclient", "pageferry") in table["faultclient"]
    assert table["native/base"] == []
    assert allowed("native/pager/engine.c", "native/pager", "native/kernel/kernel_ops.h")
    assert not allowed("native/pager/engine.c", "native/pager", "native/kernel/uffd.h")
    assert not allowed("native/kernel/uffd.c", "native/kernel", "native/base/ring.h")
    assert not allowed("pageserver/server.py", "pageserver", "faultclient/")


def allowed(source: str, row: str, target: str) -> bool:
    """May this file, which stands in the folder of this row, know that one?"""
    if target.startswith(row + "/"):
        return True
    return any(
        (target == arrow.target or target.startswith(arrow.target + "/"))
        and arrow.only_from in (None, source.removeprefix(row + "/"))
        for arrow in arrows()[row]
    )


# ------------------------------------------------------------------------------------------------------ C


def includes(name: str) -> Iterator[str]:
    """What a C file includes of ours, as paths from the root: beside the file, or else from native/ (-I)."""
    for quoted in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text_of(name), re.MULTILINE):
        beside = (ROOT / name).parent / quoted
        found = beside if beside.exists() else ROOT / "native" / quoted
        assert found.exists(), f"{name} includes {quoted}, which is nowhere"
        yield found.resolve().relative_to(ROOT).as_posix()


def room(name: str) -> str:
    """native/kernel/uffd.c -> native/kernel; a file that stands in native/ itself is a room of its own."""
    path = PurePosixPath(name)
    return str(path) if str(path.parent) == "native" else "/".join(path.parts[:2])


@pytest.mark.parametrize("name", tracked("native/*.c", "native/*.h"))
def test_c_includes_follow_the_arrows(name: str) -> None:
    assert room(name) in arrows(), f"docs/design.md, section 2, has no row for {room(name)}"
    wrong = [target for target in includes(name) if not allowed(name, room(name), target)]
    assert not wrong, f"{room(name)} may not know {wrong}"


def test_no_c_file_knows_python() -> None:
    python = re.compile(r"#\s*include\s*[<\"]Python\.h")
    assert not [name for name in tracked("native/*.c", "native/*.h") if python.search(text_of(name))]


def test_the_floors_of_the_benchmarks_share_no_code_with_us() -> None:
    foreign = {
        name: wrong
        for name in tracked("bench/*.c", "bench/*.h")
        if (wrong := [target for target in includes(name) if not target.startswith("bench/")])
    }
    assert not foreign


# ------------------------------------------------------------------------------------------------- Python


def imports(name: str) -> Iterator[str]:
    """Modules by their full names; `from a import b` gives a and a.b: b is a module, or a name in a."""
    package = PurePosixPath(name).parent.parts
    for node in ast.walk(ast.parse(text_of(name))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


OURS = [name for package in PACKAGES for name in tracked(f"{package}/*.py")]


def importing(module: str) -> set[str]:
    """Files of ours that import it, or something in it."""
    return {
        name
        for name in OURS
        if any(found == module or found.startswith(module + ".") for found in imports(name))
    }


@pytest.mark.parametrize("name", OURS)
def test_python_imports_follow_the_arrows(name: str) -> None:
    row = name.split("/")[0]
    known = {module.split(".")[0] for module in imports(name)}
    wrong = [package for package in PACKAGES if package in known and not allowed(name, row, package + "/")]
    assert not wrong, f"{row} may not import {wrong}"


def test_only_the_named_files_see_cffi() -> None:
    modules = ("cffi", "_cffi_backend", "pageferry._native", "pageferry.service.native.ffi")
    assert set().union(*(importing(module) for module in modules)) <= SEES_CFFI
    (arrow,) = arrows()["pageferry"]  # to native/pageferry.h, which pageferry._native is in Python
    within = {name for name in importing("pageferry._native") if name.startswith("pageferry/")}
    assert within == {f"pageferry/{arrow.only_from}"}


def test_only_the_service_modules_see_grpc() -> None:
    modules = ("grpc", "grpc_health", "grpc_reflection", "grpc_status")
    generated = [f"pageferry.v1.{path.stem}" for path in (ROOT / "pageferry/v1").glob("*_pb2_grpc.py")]
    seen = set().union(*(importing(module) for module in (*modules, *generated)))
    assert not {name for name in seen if not SEES_GRPC.fullmatch(name)}


@pytest.mark.parametrize("name", [name for name in OURS if WORDS.fullmatch(name)])
def test_the_words_know_only_each_other(name: str) -> None:
    words = {f"pageferry.{PurePosixPath(word).stem}" for word in OURS if WORDS.fullmatch(word)}
    ours = {module for module in imports(name) if module.split(".")[0] in PACKAGES}
    wrong = {module for module in ours if not any(f"{module}.".startswith(f"{word}.") for word in words)}
    assert wrong <= {"pageferry"}
    assert "grpc" not in {module.split(".")[0] for module in imports(name)}
