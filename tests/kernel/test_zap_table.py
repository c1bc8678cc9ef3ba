# SPDX-License-Identifier: Apache-2.0
"""docs/zap-table.md says what this kernel does: measured anew by the program that has printed it."""

import subprocess

import pytest

from tests.kernel.conftest import ROOT


def test_the_page_is_what_the_kernel_does() -> None:
    make = ["make", "--silent", "--no-print-directory", "-C", "native", "build/tests/test_zap"]
    subprocess.run(make, cwd=ROOT, check=True)
    command = ["native/build/tests/test_zap", "table"]
    measured = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    if "cannot be made" in measured:
        pytest.skip("no huge pages: raise vm.nr_hugepages by 6")
    assert measured == (ROOT / "docs/zap-table.md").read_text(), "make -C native zap-table writes it anew"
