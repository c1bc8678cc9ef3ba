# SPDX-License-Identifier: Apache-2.0
"""Each case of test_restored.c and test_tracked.c: a real vCPU over the pager and over rounds, through C."""

import subprocess

import pytest

from tests.kvm.vmm import build


def cases(program: str) -> list[tuple[str, str]]:
    told = subprocess.run([build() / program, "list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [(program, case) for case in told.split()]


@pytest.mark.parametrize(("program", "case"), [*cases("test_restored"), *cases("test_tracked")])
def test_case(program: str, case: str) -> None:
    ran = subprocess.run(
        [build() / program, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    skips = [line.partition(": ")[2] for line in ran.stdout.splitlines() if line.startswith("SKIP ")]
    if skips:
        pytest.skip(skips[0])
    assert ran.returncode == 0, ran.stdout
    assert "1 passed, 0 failed, 0 skipped" in ran.stdout, ran.stdout
