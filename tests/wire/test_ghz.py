# SPDX-License-Identifier: Apache-2.0
"""ghz, which knows nothing of us, calls every shape of method on the data port: by reflection, by proto file.

Its exit status is 0 even when every call fails, so its report is read.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.wire.page_server import ROOT, PageServer

GHZ = shutil.which("ghz") or shutil.which("ghz", path=ROOT / "build/bin")
pytestmark = pytest.mark.skipif(GHZ is None, reason="no ghz: make ghz builds it where there is Go")
PROTO = ["--proto", ROOT / "proto/pageferry/v1/pages.proto", "--import-paths", ROOT / "proto"]
KNOWN_BY = pytest.mark.parametrize("known_by", [[], PROTO], ids=["reflection", "proto"])


def calls(
    server: PageServer, known_by: list[str | Path], method: str, data: object, *more: str
) -> dict[str, int]:
    """How many calls ended with which status."""
    assert GHZ is not None
    command = [GHZ, "--insecure", *known_by, "--call", method, "-d", json.dumps(data), "-O", "json", *more]
    command += ["-n", "200", "-c", "8", server.address]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    counts: dict[str, int] = json.loads(done.stdout)["statusCodeDistribution"]
    return counts


@KNOWN_BY
def test_unary(server: PageServer, known_by: list[str | Path]) -> None:
    before = server.counters()
    data = {"image": "vm", "page": "{{randomInt 0 1036}}"}
    assert calls(server, known_by, "pageferry.v1.PageService/GetPage", data) == {"OK": 200}
    assert calls(server, known_by, "pageferry.v1.PageService/DescribeImage", {"image": "vm"}) == {"OK": 200}
    assert server.counters()["asked_pages_total"] - before["asked_pages_total"] == 200


@KNOWN_BY
def test_both_stream(server: PageServer, known_by: list[str | Path]) -> None:
    before = server.counters()
    data = {"image": "vm", "runs": ["{{randomInt 0 1032}}", "4"]}
    more = ("--stream-call-count", "5")
    assert calls(server, known_by, "pageferry.v1.PageService/FetchPages", data, *more) == {"OK": 200}
    assert server.counters()["asked_pages_total"] - before["asked_pages_total"] == 200 * 5 * 4


@KNOWN_BY
def test_server_streams(server: PageServer, known_by: list[str | Path]) -> None:
    data = {"image": "vm", "runs": ["{{randomInt 0 900}}", "100"]}
    assert calls(server, known_by, "pageferry.v1.PageService/StreamPages", data) == {"OK": 200}


def test_health(server: PageServer) -> None:
    assert calls(server, [], "grpc.health.v1.Health/Check", {}) == {"OK": 200}


def test_errors_are_seen_as_what_they_are(server: PageServer) -> None:
    data = {"image": "vm", "page": "5000"}
    assert calls(server, [], "pageferry.v1.PageService/GetPage", data) == {"OutOfRange": 200}
