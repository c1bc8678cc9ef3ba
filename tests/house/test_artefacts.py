# SPDX-License-Identifier: Apache-2.0
"""What comes out of the build: the shim needs libc alone, printed pages are fresh, start is lean."""

import re
import subprocess
import sys

import pytest

from tests.house.tracked import ROOT, text_of

PRINTED = {"machine": "docs/page-machine.md", "metrics": "docs/metrics.md"}


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def make_native(target: str) -> None:
    output_of("make", "--silent", "--no-print-directory", "-C", "native", target)


def test_the_shim_links_libc_alone() -> None:
    make_native("shim")
    dynamic = output_of("readelf", "--dynamic", "--wide", "native/build/pageferry-shim.so")
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    assert needed <= {"libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@pytest.mark.parametrize("what", PRINTED)
def test_pages_that_c_prints_are_fresh(what: str) -> None:
    make_native("build/describe")
    assert output_of("native/build/describe", what) == text_of(PRINTED[what]), "make generate writes it anew"


def test_pagers_start_without_grpc() -> None:
    """On a restart faults wait for the pager, and some 0.4 s of imports would stand before it."""
    loaded = output_of(sys.executable, "-c", "import sys, faultclient.vms; print(*sys.modules)").split()
    assert "faultclient.vms" in loaded
    assert "grpc" not in loaded
