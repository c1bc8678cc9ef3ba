# SPDX-License-Identifier: Apache-2.0
"""The short form of `make migrate-demo`: each side comes through on each QEMU. Times are not judged."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.initrd import ROOT
from tests.support.move_figures import NAMES

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
SIDES = ("qemu", "qemu_preempt", "at_once", "hybrid")
CLOSING = "migrate-demo: "
CANNOT_RUN_HERE = 69


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_every_side_comes_through(version: str) -> None:
    options = ["--short", f"--version={version}", f"--sides={','.join(SIDES)}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.migrate_demo", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == CANNOT_RUN_HERE:
        pytest.skip(f"no QEMU {version}, or no namespaces: {done.stderr}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    last = done.stdout.splitlines()[-1]
    assert last.startswith(CLOSING)
    told = json.loads(last.removeprefix(CLOSING))
    assert told["version"] == version
    assert told["guest_errors"] == 0
    for side in SIDES:
        assert sorted(told[side]) == sorted(NAMES)
        assert all(figure > 0 for name, figure in told[side].items() if name != "blocktime_ms")
