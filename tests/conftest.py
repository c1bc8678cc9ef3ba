# SPDX-License-Identifier: Apache-2.0
"""Two rules for every suite.

A test may skip only on a ground that tests/allowed_skips.txt names; others fail. Otherwise a broken
environment looks like a green one. Each line of that file: a pattern of test ids, a tab, how the reason that
the test gives begins.

A test marked `nightly` takes too long for `make test`: it runs where somebody asks for it, `-m nightly`.
"""

from collections.abc import Generator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).with_name("allowed_skips.txt")


NIGHTLY = "nightly"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NIGHTLY}: takes long, runs with -m {NIGHTLY} alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr"):
        return
    later = [item for item in items if item.get_closest_marker(NIGHTLY)]
    config.hook.pytest_deselected(items=later)
    items[:] = [item for item in items if not item.get_closest_marker(NIGHTLY)]


@dataclass(frozen=True)
class AllowedSkip:
    pattern: str
    reason: str

    def covers(self, test_id: str, reason: str) -> bool:
        return fnmatchcase(test_id, self.pattern) and reason.startswith(self.reason)


def allowed_skips() -> list[AllowedSkip]:
    lines = (line for line in ALLOWED_SKIPS.read_text().splitlines() if line and not line.startswith("#"))
    return [AllowedSkip(*line.split("\t")) for line in lines]


def judge(report: pytest.TestReport | pytest.CollectReport, allowed: list[AllowedSkip]) -> None:
    """Turns a skip that nobody allowed into a failure. An expected failure (xfail) is no skip."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not any(skip.covers(report.nodeid, reason) for skip in allowed):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} skipped, and tests/allowed_skips.txt does not allow it: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    judge(report, allowed_skips())
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    judge(report, allowed_skips())
    return report
