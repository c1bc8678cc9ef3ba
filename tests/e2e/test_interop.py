# SPDX-License-Identifier: Apache-2.0
"""Either end may be somebody else's: any gRPC client asks our page server, any PageService feeds our client.

tests/wire asks the data port everything; here the ends are the programs that users start.
"""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import xxhash

from pageferry.v1 import pages_pb2 as pb
from pageferry.v1.pages_pb2_grpc import PageServiceStub
from tests.support.build import ROOT
from tests.support.grpc_server import GrpcPageServer, Image
from tests.support.guest import PAGE_BYTES, Guest, Shape
from tests.support.pair import client, serve
from tests.support.processes import Process
from tests.support.ramfile import run_folder
from tests.support.requires import needs_userfaultfd

SHAPE = Shape((2048,), seed=50)
SPLIT = (1024, 512, 512)
GHZ = shutil.which("ghz") or shutil.which("ghz", path=ROOT / "build/bin")
needs_ghz = pytest.mark.skipif(GHZ is None, reason="no ghz: make ghz builds it where there is Go")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with run_folder() as made:
        yield made


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    return SHAPE.make_image(folder / "image")


@pytest.fixture(scope="module")
def server(folder: Path, image: Path) -> Iterator[Process]:
    with serve(folder, {"vm": image}) as running:
        yield running


# ------------------------------------------------------------------ our client, a page server in plain grpcio


@needs_userfaultfd
@pytest.mark.parametrize("memory", ["memfd", "private"])
@pytest.mark.parametrize("background", ["--background", "--no-background"])
def test_our_client_restores_from_a_grpcio_server(
    folder: Path, image: Path, background: str, memory: str
) -> None:
    with (
        GrpcPageServer({"vm": image}) as theirs,
        client(folder, theirs.address, background) as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder, memory=memory) as guest,
    ):
        report = guest.ready().do("all")
        figures = run.outcome()
    assert report.errors == 0, report.kinds
    assert report.distinct == SHAPE.page_count
    assert figures["digest_failures_total"] == 0
    expected = Counter({"DescribeImage": 1, "FetchPages": 1})
    if background == "--background":
        assert theirs.calls.pop("StreamPages") > 0
        assert figures["bulk_pages_total"] > 0
    assert theirs.calls == expected


@needs_userfaultfd
def test_regions_of_a_grpcio_server(folder: Path, image: Path) -> None:
    shape = Shape(SPLIT, seed=SHAPE.seed)
    with (
        GrpcPageServer({"vm": image}, SPLIT) as theirs,
        client(folder, theirs.address) as run,
        Guest(shape, handoff=run.handoff, folder=folder, memory="private", options=["--reverse"]) as guest,
    ):
        report = guest.ready().do("all")
        run.outcome()
    assert report.errors == 0, report.kinds


# --------------------------------------------------------------------------- a grpcio client, our page server


def test_a_grpcio_client_calls_every_method(server: Process, image: Path) -> None:
    """What comes is compared, message by message, with what the grpcio server makes of the same file."""
    theirs = Image(image, ())
    with grpc.insecure_channel(server.ready["data"]) as channel:
        stub = PageServiceStub(channel)
        described = stub.DescribeImage(pb.DescribeImageRequest(image="vm"))
        one = stub.GetPage(pb.GetPageRequest(image="vm", page=7))
        fetched = list(stub.FetchPages(iter([pb.FetchPagesRequest(image="vm", runs=[7, 1, 99, 16])])))
        streamed = list(stub.StreamPages(pb.StreamPagesRequest(image="vm")))
    assert described.content_id == theirs.content_id
    assert described.page_count == SHAPE.page_count
    assert one == theirs.batch([7])
    assert fetched[0] == pb.PageBatch(as_of=one.as_of)
    assert taken(fetched[1:], theirs) == {7, *range(99, 115)}
    assert taken(streamed, theirs) == set(range(SHAPE.page_count))


def taken(batches: list[pb.PageBatch], image: Image) -> set[int]:
    """The pages of some batches, each digest and each byte compared."""
    pages = set()
    for batch in batches:
        words = b"".join(number.to_bytes(8, "little") for number in batch.runs)
        digest = xxhash.xxh3_64_intdigest(words + batch.data, seed=image.content_id)
        assert batch.digest == digest
        at = 0
        for index in range(0, len(batch.runs), 4):
            first, count, kind, _ = batch.runs[index : index + 4]
            for page in range(first, first + count):
                if kind == pb.RUN_KIND_DATA:
                    assert batch.data[at : at + PAGE_BYTES] == image.pages[page]
                    at += PAGE_BYTES
                else:
                    assert image.pages[page] == bytes(PAGE_BYTES)
                pages.add(page)
        assert at == len(batch.data)
    return pages


# --------------------------------------------------------------------------------------- ghz, our page server

METHODS = {
    "DescribeImage": {"image": "vm"},
    "GetPage": {"image": "vm", "page": "{{randomInt 0 2047}}"},
    "FetchPages": {"image": "vm", "runs": ["{{randomInt 0 2000}}", "8"]},
    "StreamPages": {"image": "vm", "runs": ["{{randomInt 0 1000}}", "100"]},
}


def ghz(address: str, call: str, data: object, *known_by: str | Path) -> dict[str, int]:
    """How many calls ended with which status. Its exit status is 0 whatever happens: its report counts."""
    assert GHZ is not None
    options = ["--insecure", "--call", call, "-d", json.dumps(data), "-O", "json", "-n", "100", "-c", "4"]
    done = subprocess.run(
        [GHZ, *known_by, *options, address], capture_output=True, text=True, check=True, timeout=60
    )
    report = json.loads(done.stdout)
    assert report["count"] == 100
    counts: dict[str, int] = report["statusCodeDistribution"]
    return counts


@pytest.fixture(scope="module")
def protoset(folder: Path) -> Path:
    """The contract compiled, as somebody without our source would have it."""
    result = folder / "pageferry.protoset"
    options = [f"-I{ROOT}/proto", f"--descriptor_set_out={result}", "--include_imports"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc"]
    subprocess.run([*protoc, *options, "pageferry/v1/pages.proto"], check=True)
    return result


@needs_ghz
@pytest.mark.parametrize("method", METHODS)
def test_ghz_on_the_data_port_by_reflection(server: Process, method: str) -> None:
    assert ghz(server.ready["data"], f"pageferry.v1.PageService/{method}", METHODS[method]) == {"OK": 100}


@needs_ghz
@pytest.mark.parametrize("method", METHODS)
def test_ghz_on_the_data_port_by_protoset(server: Process, protoset: Path, method: str) -> None:
    call = f"pageferry.v1.PageService/{method}"
    assert ghz(server.ready["data"], call, METHODS[method], "--protoset", protoset) == {"OK": 100}


@needs_ghz
def test_ghz_on_the_control_port_by_reflection(server: Process) -> None:
    assert ghz(server.ready["control"], "grpc.health.v1.Health/Check", {}) == {"OK": 100}


@needs_ghz
@needs_userfaultfd
def test_ghz_on_the_fault_clients_control_port_by_reflection(
    server: Process, folder: Path, image: Path
) -> None:
    with (
        client(folder, server.ready["data"], "--no-background", "--session=move-1") as run,
        Guest(SHAPE, handoff=run.handoff, folder=folder) as guest,
    ):
        guest.ready()
        call = "pageferry.v1.FaultClientService/GetSession"
        assert ghz(run.control_address(), call, {"session": "move-1"}) == {"OK": 100}
        assert ghz(run.control_address(), call, {"session": "move-2"}) == {"NotFound": 100}
        guest.do("all")
        run.outcome()
