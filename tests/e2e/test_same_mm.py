# SPDX-License-Identifier: Apache-2.0
"""docs/examples/same_mm.c over `pageserver serve`: a VMM, its vCPUs and its pager in one address space."""

import subprocess
from array import array
from pathlib import Path

import pytest

from tests.support.build import ROOT
from tests.support.guest import PAGE_BYTES, Shape
from tests.support.pair import serve
from tests.support.processes import PATIENCE_S
from tests.support.requires import needs_userfaultfd

pytestmark = needs_userfaultfd
SHAPE = Shape((1500,), data_percent=100)


@pytest.fixture(scope="module")
def example() -> Path:
    """Built as the page says."""
    subprocess.run(["make", "-s", "-C", "native", "examples"], cwd=ROOT, check=True)
    return ROOT / "native/build/examples/same_mm"


def sum_of(image: Path) -> int:
    """As the example's vCPUs sum: each word times its page's number, from 1 on."""
    total = 0
    with image.open("rb") as file:
        for page in range(SHAPE.page_count):
            total += sum(array("Q", file.read(PAGE_BYTES))) * (page + 1)
    return total % 2**64


def test_the_example_of_the_page(example: Path, tmp_path: Path) -> None:
    image = SHAPE.make_image(tmp_path / "image")
    with serve(tmp_path, {"vm": image}) as server:
        command = [example, server.ready["data"], "vm", str(SHAPE.page_count * PAGE_BYTES)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3 * PATIENCE_S, check=True)
    lines = said.stdout.splitlines()
    assert lines.count(f"sum {sum_of(image)}") == 2, said.stdout
    assert "faulted again: yes" in lines
    assert "dropped page 1: it reads 0" in lines
    assert lines[-4:] == [
        "told: page 2 is poisoned, number 1",
        "poisoned page 2: it reads -1",
        "poisoned page 2, zapped: it reads -1",
        "cleared page 2: it reads 0",
    ]


def test_it_says_what_it_cannot_have(example: Path, tmp_path: Path) -> None:
    image = SHAPE.make_image(tmp_path / "image")
    with serve(tmp_path, {"vm": image}) as server:
        command = [example, server.ready["data"], "another", str(SHAPE.page_count * PAGE_BYTES)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=3 * PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert "no image of this name" in ended.stderr
