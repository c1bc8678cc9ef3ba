# SPDX-License-Identifier: Apache-2.0
"""The kernel matrix, row by row on every kind of memory, and the page that says what was answered.

A row of ours stands beside each row of the kernel's own tests of userfaultfd: `selftest` names it.
"""

import os
from collections.abc import Iterator

import pytest

from tests.kernel.kernel_matrix import PAGE, answers, machine, page, rows

KINDS = {"anon", "memfd", "tmpfs", "memfd-private", "huge-shared", "huge-anon", "huge-private"}
# uffd-unit-tests of Linux 6.18, but for two more of MOVE, on which no rule of ours rests
SELFTESTS = {
    "register-ioctls",
    "zeropage",
    "move",
    "wp-fork",
    "wp-fork-with-event",
    "wp-fork-pin",
    "wp-fork-pin-with-event",
    "wp-unpopulated",
    "minor",
    "minor-wp",
    "minor-collapse",
    "sigbus",
    "sigbus-wp",
    "events",
    "events-wp",
    "poison",
}


@pytest.fixture(scope="module", autouse=True)
def _pool() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root: it adds huge pages to the pool")
    with machine():
        yield


@pytest.mark.parametrize("row", [row.name for row in rows()])
def test_row(row: str) -> None:
    cells = answers(row)
    wrong = [cell for cell in cells if not cell.right]
    assert not wrong, wrong
    assert {cell.kind for cell in cells} in (KINDS, {"any"})


def test_a_wrong_expectation_would_be_seen() -> None:
    cell = answers("g-mapped")[1]
    assert cell.right
    assert not type(cell)(cell.kind, "ok, ok", cell.answered).right
    assert type(cell)(cell.kind, f"other or {cell.answered}", cell.answered).right


def test_each_test_of_the_kernels_own_has_an_equal() -> None:
    assert SELFTESTS.issubset(row.selftest for row in rows())


def test_the_page_is_what_the_kernel_answers() -> None:
    """But for the line that says which kernel."""

    def without_release(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("Answered by Linux")]

    advice = "python -m tests.kernel.kernel_matrix --write writes it anew"
    assert without_release(PAGE.read_text()) == without_release(page()), advice
