# SPDX-License-Identifier: Apache-2.0
"""Each case of test_kvm.c: a real vCPU over the pager and over rounds, both driven through C."""

import subprocess

import pytest

from tests.kvm.vmm import build

PROGRAM = build() / "test_kvm"
CASES = subprocess.run([PROGRAM, "list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()


@pytest.mark.parametrize("case", CASES)
def test_case(case: str) -> None:
    ran = subprocess.run([PROGRAM, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    skips = [line.partition(": ")[2] for line in ran.stdout.splitlines() if line.startswith("SKIP ")]
    if skips:
        pytest.skip(skips[0])
    assert ran.returncode == 0, ran.stdout
    assert "1 passed, 0 failed, 0 skipped" in ran.stdout, ran.stdout
